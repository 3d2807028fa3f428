# pyright: strict
"""How tensors of the first SpeechLMM are called here: one table of rules a kind of component. Imports no torch.

Names are relative to the component (`audio_adapter.layers.0.weight` is `layers.0.weight`). A rule's pattern has to
match a whole name; the first rule that matches counts, and a name that none matches has no place here.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

How = Literal["copy", "squeeze", "add", "rows", "leave_out"]
"""What becomes of a tensor:

- `copy`: it is copied.
- `squeeze`: its first dimension, of length 1, is dropped.
- `add`: it is added to what is there (a bias behind a bias).
- `rows`: its first rows are copied; the others belong to tokens that no chat template here has.
- `leave_out`: it is a constant that follows from the configuration.
"""


@dataclass(frozen=True)
class Rule:
    """Where tensors whose names match go."""

    pattern: str
    into: str | Callable[[re.Match[str]], str] = ""
    """The new name, with `\\1`, … for groups, or what makes it."""
    how: How = "copy"

    def name(self, old: str) -> str | None:
        """The new name; None where the rule does not match."""
        found = re.fullmatch(self.pattern, old)
        if found is None:
            return None
        return self.into(found) if callable(self.into) else found.expand(self.into)


@dataclass(frozen=True)
class Target:
    """Where one tensor goes."""

    name: str
    how: How


TOWER = (
    # torch's older parametrisation of weight norm (HuBERT's and WavLM's positions) under its name of today.
    Rule(r"(model\..*)\.weight_g", r"\1.parametrizations.weight.original0"),
    Rule(r"(model\..*)\.weight_v", r"\1.parametrizations.weight.original1"),
    Rule(r"(model\..*)", r"\1"),
)
"""Encoders: networks of transformers, and AutoAVSR's by its published names, are `.model` there and here."""

TEXT_DECODER = (
    Rule(r"(model\.(?:model\.embed_tokens|lm_head)\.weight)", r"\1", "rows"),
    Rule(r"model\..*rotary_emb\.inv_freq", how="leave_out"),
    Rule(r"(model\..*)", r"\1"),
)
"""Causal language models of transformers are `.model` there and here."""

MLP = (
    # Linear, LayerNorm, ReLU there; Linear, LayerNorm, ReLU, Dropout here.
    Rule(r"layers\.(\d+)\.(weight|bias)", lambda m: f"model.{4 * (int(m[1]) // 3) + int(m[1]) % 3}.{m[2]}"),
    Rule(r"residual_projector\.weight", "residual.weight"),
)


def mlp(section: Mapping[str, Any]) -> tuple[Rule, ...]:
    """The perceptron. The bias of its residual has no place of its own: it is added to the last layer norm's."""
    last = 4 * (mlp_layers(section) - 1) + 1
    return (*MLP, Rule(r"residual_projector\.bias", f"model.{last}.bias", "add"))


def mlp_layers(section: Mapping[str, Any]) -> int:
    """Linear layers of the first one's perceptron."""
    width, hidden = section.get("input_dim"), section.get("hidden_size", 4096)
    into = width != hidden or section.get("force_input_projection", True)
    return int(section.get("hidden_layers", 2)) + bool(into) + 1


def conv(section: Mapping[str, Any]) -> tuple[Rule, ...]:
    """The strided convolutions, with the residual ones between them."""
    last = 1 + int(section.get("hidden_layers", 0))
    return (
        Rule(r"conv1d_in\.(weight|bias)", r"model.0.conv.\1"),
        Rule(r"layer_norm_in\.(weight|bias)", r"norms.0.\1"),
        Rule(r"residual_conv1d_hidden_layers\.(\d+)\.(weight|bias)", lambda m: f"model.{int(m[1]) + 1}.conv.{m[2]}"),
        Rule(r"layer_norm_hidden_layers\.(\d+)\.(weight|bias)", lambda m: f"norms.{int(m[1]) + 1}.{m[2]}"),
        Rule(r"conv1d_out\.(weight|bias)", rf"model.{last}.conv.\1"),
        Rule(r"layer_norm_out\.(weight|bias)", rf"norms.{last}.\1"),
    )


_LAYER = r"qformer\.encoder\.layer\.(\d+)"
_PARAMETER = r"(weight|bias)"
QFORMER = (
    Rule(rf"pre_qformer_layer_norm\.{_PARAMETER}", r"input_norm.\1"),
    Rule(r"query_embeds", "model.queries", "squeeze"),
    Rule(rf"qformer\.embeddings\.LayerNorm\.{_PARAMETER}", r"model.query_norm.\1"),
    Rule(r"qformer\.embeddings\.position_ids", how="leave_out"),
    Rule(rf"{_LAYER}\.attention\.self\.(query|key|value)\.{_PARAMETER}", r"model.layers.\1.attention.\2.\3"),
    Rule(rf"{_LAYER}\.attention\.output\.dense\.{_PARAMETER}", r"model.layers.\1.attention.output.\2"),
    Rule(rf"{_LAYER}\.attention\.output\.LayerNorm\.{_PARAMETER}", r"model.layers.\1.attention_norm.\2"),
    Rule(rf"{_LAYER}\.crossattention\.self\.(query|key|value)\.{_PARAMETER}", r"model.layers.\1.cross_attention.\2.\3"),
    Rule(rf"{_LAYER}\.crossattention\.output\.dense\.{_PARAMETER}", r"model.layers.\1.cross_attention.output.\2"),
    Rule(rf"{_LAYER}\.crossattention\.output\.LayerNorm\.{_PARAMETER}", r"model.layers.\1.cross_attention_norm.\2"),
    Rule(rf"{_LAYER}\.intermediate_query\.dense\.{_PARAMETER}", r"model.layers.\1.feed_forward.up.\2"),
    Rule(rf"{_LAYER}\.output_query\.dense\.{_PARAMETER}", r"model.layers.\1.feed_forward.down.\2"),
    Rule(rf"{_LAYER}\.output_query\.LayerNorm\.{_PARAMETER}", r"model.layers.\1.feed_forward_norm.\2"),
    Rule(rf"output_projector\.{_PARAMETER}", r"output.\1"),
)

STAGES = ("modality_adapter_before", "length_adapter", "modality_adapter_after")
"""The parts of a two-stage adapter, in the order in which frames flow through them."""


def two_stage(section: Mapping[str, Any]) -> tuple[Rule, ...]:
    """The parts by their rules, each below its stage."""
    there = [part for part in STAGES if section.get(part)]
    found: list[Rule] = []
    for number, part in enumerate(there):
        own: Mapping[str, Any] = section[part]
        for rule in ADAPTERS[str(own.get("model_type"))](own):
            found.append(_below(rule, rf"{part}\.", f"stages.{number}."))
    return tuple(found)


def _below(rule: Rule, prefix: str, into: str) -> Rule:
    def name(match: re.Match[str]) -> str:
        return into + (rule.name(match.string[match.end("below") :]) or "")

    return Rule(rf"(?P<below>{prefix}){_ungrouped(rule.pattern)}", name, rule.how)


def _ungrouped(pattern: str) -> str:
    """The pattern as a group without effect on others' numbers: the inner rule matches it again for itself."""
    return f"(?:{pattern})"


ADAPTERS: dict[str, Callable[[Mapping[str, Any]], tuple[Rule, ...]]] = {
    "mlp": mlp,
    "conv": conv,
    "qformer": lambda section: QFORMER,
    "cmlp": two_stage,
}
"""Rules by the first one's `model_type`; types that are not here have no counterpart that computes the same."""


def rules_of(component: str, section: Mapping[str, Any]) -> tuple[Rule, ...]:
    """The rules of a component.

    Args:
        component: Its name, which is the same there and here.
        section: Its section of the first one's `config.json`.
    """
    if component == "text_decoder":
        return TEXT_DECODER
    if component.endswith("_encoder"):
        return TOWER
    make = ADAPTERS.get(str(section.get("model_type")))
    return make(section) if make else ()


def place(name: str, rules: Mapping[str, tuple[Rule, ...]]) -> Target | None:
    """Where a tensor goes.

    Args:
        name: Its name in the first one's checkpoint.
        rules: Rules by component.

    Returns:
        None where no rule knows it.
    """
    component, _, rest = name.partition(".")
    for rule in rules.get(component, ()):
        if (found := rule.name(rest)) is not None:
            return Target(f"{component}.{found}", rule.how)
    return None
