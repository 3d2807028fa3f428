"""An optimiser's state by parameter: of torch's optimisers and those built like them, in one process, DDP and FSDP2."""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor

from speechlmm_core.errors import CheckpointError

logger = logging.getLogger(__name__)

STEP = "step"
MASTER = "master"
"""The copy in full precision of a parameter in half precision."""
Scalars = dict[str, dict[str, float | int]]
"""Numbers by parameter."""
Read = Callable[[str, str], Tensor]
"""Gives a whole tensor of a parameter's state."""


class States(Protocol):
    """An optimiser's state, by the names of the parameters."""

    @property
    def kind(self) -> str:
        """Name of the optimiser's class."""
        ...

    @property
    def settings(self) -> list[dict[str, Any]]:
        """The optimiser's own groups."""
        ...

    @property
    def defaults(self) -> Collection[str]:
        """The settings that are given to the optimiser, and do not change by its steps."""
        ...

    def groups(self) -> list[dict[str, Any]]:
        """The groups' settings, each with the names of its `params`."""
        ...

    def tensors(self) -> Iterator[tuple[str, str, Tensor]]:
        """Parameter, key, and what this process has of a tensor. Every process must walk through all of them."""
        ...

    def scalars(self) -> Scalars:
        """The numbers in the state."""
        ...

    def load(self, held: Mapping[str, Sequence[str]], read: Read, scalars: Scalars) -> None:
        """Takes over a state.

        Args:
            held: The keys of the tensors that there are for each parameter.
            read: Gives one of them.
            scalars: The numbers.
        """
        ...


def names_of(model: nn.Module) -> dict[int, str]:
    """The names of a model's parameters, by what they are."""
    return {id(parameter): clean(name) for name, parameter in model.named_parameters()}


def clean(name: str) -> str:
    """A parameter's name without what wrappers add to it."""
    for part in ("_checkpoint_wrapped_module.", "_orig_mod.", "_fsdp_wrapped_module."):
        name = name.replace(part, "")
    return name.removeprefix("module.")


class PlainStates:
    """The state of an optimiser that holds the model's own parameters.

    Args:
        optimizer: The optimiser, without accelerate's wrapper.
        model: The model.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, model: nn.Module) -> None:
        self.optimizer = optimizer
        self._names = names_of(model)
        self._parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        unknown = sum(id(parameter) not in self._names for parameter in self._parameters)
        if unknown:
            raise CheckpointError(
                f"{unknown} of the {len(self._parameters)} tensors that {type(optimizer).__name__} trains are no "
                "parameters of the model, so that its state cannot be saved by their names; set training.optim to "
                "another, such as adamw_torch, or save_steps to null"
            )

    @property
    def kind(self) -> str:
        """Name of the optimiser's class."""
        return type(self.optimizer).__name__

    def groups(self) -> list[dict[str, Any]]:
        """The groups' settings, each with the names of its parameters."""
        return [{**group, "params": [self._name(one) for one in group["params"]]} for group in self.settings]

    @property
    def defaults(self) -> Collection[str]:
        """The settings that are given to the optimiser."""
        return self.optimizer.defaults

    @property
    def settings(self) -> list[dict[str, Any]]:
        """The optimiser's own groups."""
        return self.optimizer.param_groups

    def tensors(self) -> Iterator[tuple[str, str, Tensor]]:
        """Parameter, key, and what this process has of the tensor."""
        for name, state in self._states():
            for key in sorted(state):
                if isinstance(state[key], Tensor) and not _is_step(key, state[key]):
                    yield name, key, state[key]

    def scalars(self) -> Scalars:
        """The numbers in the state."""
        found: Scalars = {}
        other: set[str] = set()
        for name, state in self._states():
            for key, value in state.items():
                if isinstance(value, bool | int | float) or _is_step(key, value):
                    number = value.item() if isinstance(value, Tensor) else value
                    found.setdefault(name, {})[key] = number
                elif not isinstance(value, Tensor) and value is not None:
                    other.add(f"{key!r} ({type(value).__name__})")
        if other:
            logger.warning(
                "what %s keeps as %s is not saved; a resumed run starts that anew", self.kind, ", ".join(sorted(other))
            )
        return found

    def load(self, held: Mapping[str, Sequence[str]], read: Read, scalars: Scalars) -> None:
        """Takes over a state."""
        state: dict[int, dict[str, Any]] = {}
        for index, parameter in enumerate(self._parameters):
            name = self._name(parameter)
            own: dict[str, Any] = dict(scalars.get(name, {}))
            own |= {key: _like(read(name, key), parameter) for key in held.get(name, ()) if key != MASTER}
            if own:
                state[index] = own
        packed = self.optimizer.state_dict()
        self.optimizer.load_state_dict({**packed, "state": state})

    def _states(self) -> Iterator[tuple[str, dict[str, Any]]]:
        # What the optimiser gives itself: some (bitsandbytes) put other things there than they work with.
        packed = self.optimizer.state_dict()["state"]
        for index, parameter in enumerate(self._parameters):
            if index in packed:
                yield self._name(parameter), packed[index]

    def _name(self, parameter: Any) -> str:
        return self._names[id(parameter)]


def _is_step(key: str, value: Any) -> bool:
    return key == STEP and isinstance(value, Tensor) and value.numel() == 1


def _like(value: Tensor, parameter: Tensor) -> Tensor:
    """A whole tensor as this process needs it: its share, where the parameter is spread."""
    if not isinstance(parameter, DTensor) or value.shape != parameter.shape:
        return value
    mesh: Any = parameter.device_mesh
    value = value.to(mesh.device_type)
    # Every process has the whole, and takes its share without a word to the others.
    return distribute_tensor(value, mesh, parameter.placements, src_data_rank=None)
