"""Adapters in sequence.

Shapes: B batch, T frames, D hidden.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

from torch import Tensor, nn

from speechlmm_core.features import Features
from speechlmm_core.interfaces.modules import Adapter

if TYPE_CHECKING:
    from speechlmm_adapters.stack.config import StackAdapterConfig
    from speechlmm_core.interfaces.context import BuildContext


class StackAdapter(Adapter):
    """See `StackAdapterConfig`; the adapters are `.stages`."""

    config: StackAdapterConfig

    def __init__(self, config: StackAdapterConfig, ctx: BuildContext) -> None:
        super().__init__()
        self.config = config
        contexts = config.contexts(ctx)
        self.stages = nn.ModuleList(stage.build(c) for stage, c in zip(config.stages, contexts, strict=True))

    def load_base_weights(self) -> None:
        """Loads those of the stages."""
        for stage in self._adapters():
            stage.load_base_weights()

    def reset_buffers(self) -> None:
        """Recomputes those of the stages."""
        for stage in self._adapters():
            stage.reset_buffers()

    def forward(self, features: Features, target_lengths: Tensor | None = None) -> Features:
        """Adapts (B, T, D_in) to (B, T_out, D_out), one stage after another.

        The extras are those of all stages, as ``<stage>.<name>``, and beside them each stage's frames and lengths as
        ``<stage>.values`` and ``<stage>.lengths``, for the stages' own losses.
        """
        extras: dict[str, Tensor] = {}
        for label, stage in zip(self.config.labels, self._adapters(), strict=True):
            features = stage(features, target_lengths)
            own = {**features.extras, "values": features.values, "lengths": features.lengths}
            extras.update({f"{label}.{name}": value for name, value in own.items()})
        return Features(features.values, features.lengths, extras)

    def _adapters(self) -> list[Adapter]:
        return [cast("Adapter", stage) for stage in self.stages]


def features_of_stage(features: Features, label: str) -> Features:
    """What one stage put out, from what the stack put out."""
    prefix = f"{label}."
    own = {name.removeprefix(prefix): value for name, value in features.extras.items() if name.startswith(prefix)}
    return Features(own.pop("values"), own.pop("lengths"), own)
