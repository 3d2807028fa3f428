"""Pinned chat templates: where they are found, what they need, and what is refused. Imports no torch.

A template must mark the assistant's part with ``{% generation %}``; without the markers nothing says which tokens are
to be learnt, and the mask of Hugging Face's own chat templates is then silently all zero.
"""

from __future__ import annotations

import logging
import re
from dataclasses import dataclass
from difflib import get_close_matches
from importlib import resources
from pathlib import Path

from speechlmm_core.errors import ConfigError

logger = logging.getLogger(__name__)

_MARKER = re.compile(r"\{%[-+]?\s*generation\s*[-+]?%\}")

STOP_TOKENS = (
    "<|eot_id|>",
    "<|eom_id|>",
    "<|end_of_text|>",
    "<|im_end|>",
    "<|endoftext|>",
    "<end_of_turn>",
    "<eos>",
    "</s>",
)
"""Special tokens that end a turn or a text, by the names that model families give them."""

PAD_TOKENS = ("<|finetune_right_pad_id|>", "<|pad|>", "<pad>", "[PAD]")
"""Special tokens that are meant for padding, for tokenizers that declare none."""


@dataclass(frozen=True)
class TemplateTokens:
    """The special tokens of a built-in template."""

    bos: str
    eos: str
    pad: str
    others: tuple[str, ...] = ()
    """Those that the template writes out, so that the tokenizer must have them."""

    @property
    def all(self) -> list[str]:
        """Every token once, in the order of their ids in the byte-level tokenizer."""
        return list(dict.fromkeys((self.pad, self.bos, self.eos, *self.others)))


BUILT_IN = {
    "llama_3": TemplateTokens(
        bos="<|begin_of_text|>",
        eos="<|eot_id|>",
        pad="<|finetune_right_pad_id|>",
        others=("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"),
    ),
    "chatml": TemplateTokens(
        bos="<|endoftext|>", eos="<|im_end|>", pad="<|endoftext|>", others=("<|im_start|>", "<|im_end|>")
    ),
    "qwen3": TemplateTokens(
        bos="<|endoftext|>",
        eos="<|im_end|>",
        pad="<|endoftext|>",
        others=("<|im_start|>", "<|im_end|>", "<think>", "</think>"),
    ),
    "gemma3": TemplateTokens(bos="<bos>", eos="<eos>", pad="<pad>", others=("<start_of_turn>", "<end_of_turn>")),
    "smollm3": TemplateTokens(
        bos="<|begin_of_text|>",
        eos="<|im_end|>",
        pad="<|finetune_right_pad_id|>",
        others=("<|im_start|>", "<|im_end|>", "<think>", "</think>"),
    ),
    "mistral": TemplateTokens(bos="<s>", eos="</s>", pad="<pad>"),
    "vicuna": TemplateTokens(bos="<s>", eos="</s>", pad="<pad>"),
    "plain": TemplateTokens(bos="<|begin_of_text|>", eos="<|end_of_text|>", pad="<|finetune_right_pad_id|>"),
}


def read_template(name: str) -> str:
    """The Jinja source of a built-in template, or of the file that ``name`` is the path of.

    Raises:
        ConfigError: There is no such template, or it has no generation markers.
    """
    if name in BUILT_IN:
        return resources.files("speechlmm_core.chat.templates").joinpath(f"{name}.jinja").read_text(encoding="utf-8")
    path = Path(name).expanduser()
    if not path.is_file():
        near = get_close_matches(name, BUILT_IN, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise ConfigError(
            f"unknown chat template {name!r}{hint} (built in: {', '.join(BUILT_IN)}; or give the path of a Jinja file)"
        )
    try:
        source = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as exc:
        raise ConfigError(f"cannot read the chat template {name!r}: {exc}") from exc
    check_template(source, name)
    return source


def check_template(source: str, name: str) -> None:
    """Refuses a template that does not say which part is the assistant's.

    Raises:
        ConfigError: The template has no generation markers.
    """
    if not _MARKER.search(source):
        raise ConfigError(
            f"chat template {name!r} has no {{% generation %}} ... {{% endgeneration %}} around the assistant's part, "
            "so nothing says which tokens are to be learnt; put the markers in, "
            f"or use a built-in template ({', '.join(BUILT_IN)})"
        )
    if "strftime_now" in source:
        logger.warning("chat template %r writes today's date into the prompt; runs will not be reproducible", name)
