"""Configuration of a causal language model of transformers. Imports neither torch nor transformers."""

from __future__ import annotations

from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

from pydantic import Field, model_validator

from speechlmm_core.checkpoint.source import fetch_pretrained, read_json_config, resolve_pretrained
from speechlmm_core.errors import CheckpointError, ConfigError
from speechlmm_core.interfaces.decoder import DecoderConfig
from speechlmm_core.interfaces.parts import CheckpointParts
from speechlmm_core.text_decoder import byte_tokenizer

if TYPE_CHECKING:
    from speechlmm_core.chat.tokenizer import ChatTokenizer
    from speechlmm_core.interfaces.context import BuildContext
    from speechlmm_core.text_decoder.decoder import CausalLMDecoder

BYTES = "bytes"

_HIDDEN_SIZE_KEYS = ("hidden_size", "n_embd", "d_model")
_DEPTH_KEYS = ("num_hidden_layers", "n_layer", "num_layers", "n_layers")
_TOKENIZER_FILES = ("tokenizer*", "special_tokens_map.json", "added_tokens.json", "vocab.*", "merges.txt", "*.model")

# Facts about how a checkpoint was written, not about the model.
_NOT_ARCHITECTURE = ("architectures", "dtype", "torch_dtype", "transformers_version", "_name_or_path", "use_cache")


def _tiny_llama(data: dict[str, Any]) -> dict[str, Any]:
    if data.get("pretrained"):
        return {}
    return {
        "model_type": "llama",
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 4096,
        "tie_word_embeddings": True,
    }


class CausalLMConfig(DecoderConfig):
    """Any causal language model of transformers, from a checkpoint or from numbers given here."""

    type: Literal["causal_lm"] = "causal_lm"
    model: dict[str, Any] = Field(default_factory=_tiny_llama)
    """Fields of the transformers configuration, `model_type` included; those that a checkpoint gives may be left out.

    Without any, and without a checkpoint, a tiny Llama.
    """
    published: dict[str, Any] | None = None
    """The fields that the checkpoint's `config.json` gives; null to read them there. They are filled in at validation,
    so that a saved model can be built without the checkpoint that it began with."""
    tokenizer: str | None = None
    """Folder or hub name of the tokenizer, or `bytes` for one over bytes that needs no file; null to take the
    checkpoint's (`bytes` where there is no checkpoint)."""
    chat_template: str = "chatml"
    """Name of a pinned chat template (`llama_3`, `qwen3`, `gemma3`, `smollm3`, `mistral`, `vicuna`, `chatml`, or
    `plain` for models that were not tuned to chat), or the path of a Jinja file."""

    @model_validator(mode="before")
    @classmethod
    def _take_numbers(cls, data: Any) -> Any:
        if not isinstance(data, dict):
            return data
        given = cast("dict[str, Any]", data)
        name, model = given.get("pretrained"), cast("object", given.get("model") or {})
        if not isinstance(name, str) or not isinstance(model, dict) or given.get("published") is not None:
            return given
        complete = _is_complete(cast("dict[str, Any]", model))
        try:
            # A checkpoint on the hub is asked only where the numbers given here do not suffice.
            if complete and not isinstance(resolve_pretrained(name), Path):
                return given
            return {**given, "published": architecture(read_json_config(name))}
        except CheckpointError:
            if complete:
                return given
            raise

    @property
    def uses_bytes(self) -> bool:
        """Whether the tokenizer is the one over bytes."""
        return self.tokenizer == BYTES or (self.tokenizer is None and self.pretrained is None)

    def checkpoint_parts(self) -> dict[str, CheckpointParts]:
        """The weights of `pretrained`, and the files of the tokenizer where they are."""
        found: dict[str, CheckpointParts] = {}
        if self.pretrained is not None:
            found[self.pretrained] = CheckpointParts()
        name = None if self.uses_bytes else self.tokenizer or self.pretrained
        if name is not None:
            weights = found.get(name, CheckpointParts(files=(), keep=()))
            found[name] = replace(weights, files=(*weights.files, *_TOKENIZER_FILES))
        return found

    @cached_property
    def numbers(self) -> dict[str, Any]:
        """Fields of the transformers configuration: the ones given here, and the checkpoint's.

        Raises:
            ConfigError: A number given here differs from the checkpoint's.
        """
        found = dict(self.model)
        if self.pretrained is not None and self.published is not None:
            found = merge(found, self.published, self.pretrained)
        return {**self._byte_numbers(), **found}

    def _byte_numbers(self) -> dict[str, Any]:
        """What follows from the tokenizer over bytes, where it is used."""
        if not self.uses_bytes:
            return {}
        ids = byte_tokenizer.token_ids(self.chat_template)
        tokens = byte_tokenizer.special_tokens(self.chat_template)
        special = {f"{key}_token_id": ids[getattr(tokens, key)] for key in ("bos", "eos", "pad")}
        return {"vocab_size": byte_tokenizer.NUM_BYTES + len(ids), **special}

    @property
    def model_type(self) -> str:
        """Name of the architecture in transformers."""
        found = self.numbers.get("model_type")
        if not isinstance(found, str):
            raise ConfigError(
                f"expected a `model_type` under the text decoder's `model:` (`llama`, `qwen3`, …), got {found!r}"
            )
        return found

    @property
    def hidden_size(self) -> int:
        """Width D of the input embeddings and hidden states."""
        return self._number(*_HIDDEN_SIZE_KEYS)

    @property
    def vocab_size(self) -> int:
        """Rows of the embedding table."""
        return self._number("vocab_size")

    def _number(self, *keys: str) -> int:
        for key in keys:
            value = self.numbers.get(key)
            if isinstance(value, int) and not isinstance(value, bool) and value > 0:
                return value
        if "text_config" in self.numbers:
            raise ConfigError(
                f"the checkpoint {self.pretrained!r} holds a model of several modalities, of which the language model "
                "is a part; a text decoder is a language model alone: choose another checkpoint"
            )
        got = {key: self.numbers[key] for key in keys if key in self.numbers}
        where = f"the checkpoint {self.pretrained!r}" if self.pretrained else "`pretrained`"
        raise ConfigError(
            f"expected a positive {keys[0]!r} for the text decoder, got {got or 'none'}; "
            f"give it under `model:` or by {where}"
        )

    def build_tokenizer(self, path: str | None = None) -> ChatTokenizer:
        """The tokenizer with its chat template; from a saved folder if ``path`` is given.

        Raises:
            CheckpointError: The tokenizer's files are missing or unreadable.
            ConfigError: Tokenizer, template and embedding table do not fit together.
        """
        from speechlmm_core.chat.template import check_template, read_template
        from speechlmm_core.chat.tokenizer import ChatTokenizer
        from speechlmm_core.text_decoder.tokenizer_files import load_tokenizer

        saved = Path(path) / "chat_template.jinja" if path is not None else None
        if saved is not None and saved.is_file():
            template = saved.read_text(encoding="utf-8")
            check_template(template, str(saved))
        else:
            template = read_template(self.chat_template)
        if path is not None:
            base = load_tokenizer(Path(path))
        elif self.uses_bytes:
            base = byte_tokenizer.build_byte_tokenizer(self.chat_template)
        else:
            name = self.tokenizer or self.pretrained
            assert name is not None
            base = load_tokenizer(fetch_pretrained(name, _TOKENIZER_FILES))
        tokenizer = ChatTokenizer(base, template, self.chat_template)
        if (needed := len(tokenizer)) > self.vocab_size:
            last = tokenizer.tokenizer.convert_ids_to_tokens(needed - 1)
            if self.pretrained is None:
                advice = f"take a smaller tokenizer, or a `model.vocab_size` of {needed} or more"
            else:
                advice = f"take the tokenizer and the chat template that belong to {self.pretrained!r}"
            raise ConfigError(
                f"the tokenizer needs {needed} rows (the last for {last!r}), but the text decoder's embedding table "
                f"has {self.vocab_size}; {advice}"
            )
        return tokenizer

    def build(self, ctx: BuildContext) -> CausalLMDecoder:
        """The module with random weights; `load_base_weights` loads the checkpoint's.

        Raises:
            ConfigError: The numbers do not make a model of that type.
        """
        from speechlmm_core.text_decoder.decoder import CausalLMDecoder

        return CausalLMDecoder(self, ctx)


def _is_complete(numbers: dict[str, Any]) -> bool:
    """Whether numbers say what model they make, so that no checkpoint need be asked."""
    named = {"model_type", "vocab_size"} <= numbers.keys()
    return named and all(any(key in numbers for key in keys) for keys in (_HIDDEN_SIZE_KEYS, _DEPTH_KEYS))


def architecture(found: dict[str, Any]) -> dict[str, Any]:
    """The fields of a checkpoint's `config.json` that are about the model."""
    return {key: value for key, value in found.items() if key not in _NOT_ARCHITECTURE}


def merge(given: dict[str, Any], found: dict[str, Any], name: str) -> dict[str, Any]:
    """The checkpoint's fields with the given ones, which must agree where both are there.

    Raises:
        ConfigError: They do not agree.
    """
    ours, theirs = with_rope_parameters(given), with_rope_parameters(architecture(found))
    for key, value in ours.items():
        if key in theirs and theirs[key] != value:
            raise ConfigError(
                f"the text decoder's `model.{key}` is {value!r}, but the checkpoint {name!r} has {theirs[key]!r}; "
                "leave the key out, or name the checkpoint that it belongs to"
            )
    return {**theirs, **ours}


def with_rope_parameters(numbers: dict[str, Any]) -> dict[str, Any]:
    """Brings older checkpoints' `rope_theta` and `rope_scaling` into the layout of transformers 5.

    Gemma 3 has two sets, of which `rope_local_base_freq` belongs to the layers with a sliding window.
    """
    if "rope_parameters" in numbers or not ("rope_theta" in numbers or numbers.get("rope_scaling")):
        return {key: value for key, value in numbers.items() if key != "rope_scaling" or value}
    old = ("rope_theta", "rope_scaling", "rope_local_base_freq")
    rest = {key: value for key, value in numbers.items() if key not in old}
    scaling = dict(numbers.get("rope_scaling") or {})
    scaling.setdefault("rope_type", scaling.pop("type", "default"))
    if "rope_theta" in numbers:
        scaling["rope_theta"] = numbers["rope_theta"]
    if "rope_local_base_freq" not in numbers:
        return {**rest, "rope_parameters": scaling}
    local = {"rope_type": "default", "rope_theta": numbers["rope_local_base_freq"]}
    return {**rest, "rope_parameters": {"full_attention": scaling, "sliding_attention": local}}
