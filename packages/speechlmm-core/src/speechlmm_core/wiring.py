"""How the components of a model fit together: widths, rates and vocabulary, handed from one to the next.

Imports no torch, so that a configuration that cannot be wired is reported before anything heavy is loaded.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from speechlmm_core.config import SPEECH_OUTPUT, ModelConfig
from speechlmm_core.errors import ConfigError
from speechlmm_core.interfaces.adapter import AdapterConfig
from speechlmm_core.interfaces.context import BuildContext
from speechlmm_core.registry import nearest


@dataclass(frozen=True)
class Wiring:
    """The build context of every component, by component name (objectives as ``objectives.<name>``)."""

    contexts: Mapping[str, BuildContext]
    stage_sizes: Mapping[str, int]
    """Width of every stage output."""


def wire(config: ModelConfig, *, flash_attention: bool = False) -> Wiring:
    """Works out what each component is told when it is built.

    Args:
        config: The components.
        flash_attention: Whether FlashAttention can run where the model will.

    Raises:
        ConfigError: An adapter does not reach the text decoder's width or needs a frame rate where there is none, an
            objective reads an unknown stage, or a part of speech output has no codec.
    """
    decoder = config.text_decoder
    width, vocab = decoder.hidden_size, decoder.vocab_size

    def context(component: str, **known: Any) -> BuildContext:
        attention = {"attn_implementation": config.attention_of(component), "flash_attention": flash_attention}
        return BuildContext(component=component, output_size=width, vocab_size=vocab, **attention, **known)

    contexts = {"text_decoder": context("text_decoder")}
    stage_sizes = {"text_decoder": width}
    for name, towers in config.inputs.items():
        encoder = f"{name}_encoder"
        contexts[encoder] = BuildContext(
            component=encoder,
            output_size=towers.encoder.hidden_size,
            attn_implementation=config.attention_of(encoder),
            flash_attention=flash_attention,
        )
        adapter = context(
            f"{name}_adapter", input_size=towers.encoder.hidden_size, frame_rate=towers.encoder.frame_rate
        )
        _check_adapter(towers.adapter, adapter)
        contexts[f"{name}_adapter"] = adapter
        stage_sizes[encoder] = towers.encoder.hidden_size
        stage_sizes[f"{name}_adapter"] = width
    contexts |= _speech_output(config, context)
    for name, objective in config.all_objectives.items():
        for stage in objective.stages:
            if stage not in stage_sizes:
                raise ConfigError(
                    f"model.objectives.{name} reads the stage {stage!r}{nearest(stage, list(stage_sizes))}, "
                    f"but this model has: {', '.join(stage_sizes)}"
                )
        contexts[f"objectives.{name}"] = BuildContext(
            component=f"objectives.{name}",
            output_size=width,
            vocab_size=vocab,
            stage_sizes=dict(stage_sizes),
            encode=lambda text: decoder.build_tokenizer().encode(text),
        )
    return Wiring(contexts, stage_sizes)


def refuse_speech_output(config: ModelConfig) -> None:
    """Refuses the parts that can be wired, but that no model computes yet.

    Raises:
        ConfigError: The configuration has one.
    """
    for part in SPEECH_OUTPUT:
        if getattr(config, part) is not None:
            raise ConfigError(f"model.{part} is not built yet: this version's models put out text only; leave it out")


def _speech_output(config: ModelConfig, context: Callable[..., BuildContext]) -> dict[str, BuildContext]:
    """The contexts of the parts of speech output; their numbers are the codec's."""
    parts = [part for part in SPEECH_OUTPUT if getattr(config, part) is not None]
    if not parts:
        return {}
    codec = config.codec
    if codec is None:
        raise ConfigError(f"model.{parts[0]} needs to know its codebooks; name the codec under model.codec")
    known: dict[str, Any] = {
        "frame_rate": codec.frame_rate,
        "num_codebooks": codec.num_codebooks,
        "codebook_size": codec.codebook_size,
    }
    contexts = {part: context(part, **known, input_size=_width_into(part, config)) for part in parts}
    for part, adapter in (
        ("backfeeding_adapter", config.backfeeding_adapter),
        ("conditioning_adapter", config.conditioning_adapter),
    ):
        if adapter is not None:
            _check_adapter(adapter, contexts[part])
    return contexts


def _width_into(part: str, config: ModelConfig) -> int:
    """Width of what flows into a part of speech output: hidden states into a talking head, codes into all others."""
    return config.text_decoder.hidden_size if part == "talking_head" else 0


def _check_adapter(adapter: AdapterConfig, ctx: BuildContext) -> None:
    """Refuses an adapter that does not reach the width, or whose lengths need a frame rate where there is none."""
    try:
        adapter.max_output_lengths(1, ctx.frame_rate)
        adapter.output_frame_rate(ctx.frame_rate)
    except ConfigError as exc:
        raise ConfigError(f"model.{ctx.component} ({adapter.type}): {exc}") from exc
    reached = adapter.output_size(ctx)
    if reached != ctx.output_size:
        raise ConfigError(
            f"model.{ctx.component} ({adapter.type}) gives frames of width {reached}, but model.text_decoder takes "
            f"{ctx.output_size}; choose an adapter that projects (`mlp`), or an encoder of width {ctx.output_size}"
        )
