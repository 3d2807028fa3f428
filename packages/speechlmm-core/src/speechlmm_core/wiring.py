"""How the components of a model fit together: widths, rates and vocabulary, handed from one to the next.

Imports no torch, so that a configuration that cannot be wired is reported before anything heavy is loaded.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from speechlmm_core.config import ModelConfig
from speechlmm_core.errors import ConfigError
from speechlmm_core.interfaces.context import BuildContext
from speechlmm_core.registry import nearest


@dataclass(frozen=True)
class Wiring:
    """The build context of every component, by component name (objectives as ``objectives.<name>``)."""

    contexts: Mapping[str, BuildContext]
    stage_sizes: Mapping[str, int]
    """Width of every stage output."""


def wire(config: ModelConfig) -> Wiring:
    """Works out what each component is told when it is built.

    Raises:
        ConfigError: An adapter does not reach the text decoder's width, an objective reads an unknown stage, or a
            part of speech output is asked for, which no model computes yet.
    """
    for part in ("codec", "talking_head", "backfeeding_adapter", "conditioning_adapter"):
        if getattr(config, part) is not None:
            raise ConfigError(f"model.{part} is not built yet: this version's models put out text only; leave it out")
    decoder = config.text_decoder
    width, vocab = decoder.hidden_size, decoder.vocab_size
    contexts: dict[str, BuildContext] = {
        "text_decoder": BuildContext(
            component="text_decoder",
            output_size=width,
            vocab_size=vocab,
            attn_implementation=config.attention_of("text_decoder"),
        )
    }
    stage_sizes = {"text_decoder": width}
    for name, towers in config.inputs.items():
        encoder = f"{name}_encoder"
        contexts[encoder] = BuildContext(
            component=encoder,
            output_size=towers.encoder.hidden_size,
            attn_implementation=config.attention_of(encoder),
        )
        adapter = BuildContext(
            component=f"{name}_adapter",
            input_size=towers.encoder.hidden_size,
            output_size=width,
            frame_rate=towers.encoder.frame_rate,
            vocab_size=vocab,
            attn_implementation=config.attention_of(f"{name}_adapter"),
        )
        reached = towers.adapter.output_size(adapter)
        if reached != width:
            raise ConfigError(
                f"model.{name}_adapter ({towers.adapter.type}) gives frames of width {reached}, but model.text_decoder "
                f"takes {width}; choose an adapter that projects (`mlp`), or an encoder of width {width}"
            )
        contexts[f"{name}_adapter"] = adapter
        stage_sizes[encoder] = towers.encoder.hidden_size
        stage_sizes[f"{name}_adapter"] = reached
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
