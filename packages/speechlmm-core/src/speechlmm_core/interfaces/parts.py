"""What a component needs of its base checkpoint, so that no more than that is downloaded and kept. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class CheckpointParts:
    """A selection from a checkpoint: its files beside the weights, and the tensors by the beginnings of their names."""

    files: tuple[str, ...] = ("config.json",)
    """Names or patterns of files beside the weights, at the top of the checkpoint."""
    keep: tuple[str, ...] = ("",)
    """Beginnings of the names of the tensors that are needed; none at all where it is empty."""
    skip: tuple[str, ...] = ()
    """Beginnings of the names of tensors among them that are not."""
    by_hand: str | None = None
    """How to get the checkpoint where it is not on the hub: where it is published, as part of a sentence."""

    def wants(self, tensor: str) -> bool:
        """Whether a tensor of that name is needed."""
        return tensor.startswith(self.keep) and not tensor.startswith(self.skip)
