"""What is said where a model cannot be spread over the processes at all, whatever the micro-batches are."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from speechlmm_core.model.speechlmm import SpeechLMM
from speechlmm_train.preflight.sharding import Split, split_of
from speechlmm_train.preflight.units import in_bytes
from speechlmm_train.stage_config import ResolvedStage

LENGTH = 300
"""Characters that a message takes of what a library says."""
BEFORE = "before any batch"
STEPPING = "in the optimiser's first step"
"""When it is done: DeepSpeed makes the optimiser's states at once, others with their first step."""
_WHAT = "weights, gradients and optimiser states"


@dataclass(frozen=True)
class Layout:
    """A stage's weights, gradients and optimiser states, as they are laid out in each process.

    Args:
        stage: The stage.
        world_size: Number of processes.
        split: Bytes of each process.
        can_load: Whether the language model has weights to load, which quantised ones have to be.
    """

    stage: ResolvedStage
    world_size: int
    split: Split
    can_load: bool

    @classmethod
    def of(cls, model: SpeechLMM, stage: ResolvedStage, *, world_size: int, base: Path | None = None) -> Layout:
        """The layout of a model, spread already or not, that is frozen as the stage wants it.

        Raises:
            ConfigError: The model cannot be spread.
        """
        split = split_of(model, {}, stage.training, world_size, base=base)  # quantised weights are never spread
        return cls(stage, world_size, split, getattr(model.model_config.text_decoder, "pretrained", None) is not None)

    def too_large(self, exc: BaseException, *, when: str, device: torch.device) -> str:
        """Says that they need more memory than there is.

        Args:
            exc: What the library says.
            when: `BEFORE` or `STEPPING`.
            device: Where this process trains.
        """
        split, parallel = self.split, self.stage.training.parallel
        parts = {"weights": split.weights, "gradients": split.gradients, "optimiser": split.optimiser}
        own = sum(parts.values())
        needs = [f"about {in_bytes(own)} ({', '.join(f'{name} {in_bytes(size)}' for name, size in parts.items())})"]
        if split.host:
            needs.append(f"{in_bytes(split.host)} of the host's memory")
        each = f"each of {self.world_size} processes" if self.world_size > 1 else "the process"
        return (
            f"stage {self.stage.name!r}: the {_WHAT} that training.parallel={parallel} lays out do not fit into the "
            f"memory{memory_of(device)}, {when}: {each} takes {' and '.join(needs)}; torch says {_text(exc)!r}; use "
            f"{self._remedies()}"
        )

    def unusable(self, exc: BaseException, *, when: str) -> str:
        """Says that a library failed.

        Args:
            exc: What it says.
            when: `BEFORE` or `STEPPING`.
        """
        training = self.stage.training
        settings = ["training.optim", *(["training.deepspeed_config"] if training.deepspeed_config else [])]
        return (
            f"stage {self.stage.name!r}: training.parallel={training.parallel} cannot lay out the {_WHAT}, {when}: "
            f"{type(exc).__name__}: {_text(exc)}; see {', '.join(settings)} and the libraries' versions (--debug shows "
            "where it failed), or choose another training.parallel"
        )

    def _remedies(self) -> str:
        training = self.stage.training
        found = ["more processes on more GPUs"]
        if training.parallel == "zero3_offload":
            found.append("machines with more memory")
        else:
            found.append("training.parallel=zero3_offload")
        if not training.lora_adapters:
            found.append("training.lora_adapters")
        found.append("training.freeze_modules")
        if self.can_load:
            found.append("training.load_in_4bit=true with adapters and training.parallel=ddp")
        return f"{', '.join(found[:-1])}, or {found[-1]}"


def memory_of(device: torch.device) -> str:
    """How much memory a GPU has, for a message; nothing where it is not one."""
    return f" of {in_bytes(torch.cuda.get_device_properties(device).total_memory)}" if device.type == "cuda" else ""


def _text(exc: BaseException) -> str:
    """What a library says, on one line."""
    return (" ".join(str(exc).split()) or type(exc).__name__)[:LENGTH]
