"""An optimiser's state by parameter under DeepSpeed's ZeRO, where it lies in flat tensors that are spread.

Tensors are gathered by DeepSpeed's own `safe_get_full_optimizer_state`. They are put back into the flat tensors at the
places that DeepSpeed has noted at each parameter: its `safe_set_full_optimizer_state` works only after a first step,
and not where a parameter's size is no multiple of the number of processes (0.19).
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from speechlmm_core.errors import CheckpointError
from speechlmm_train.optimizer_state.named import MASTER, STEP, Read, Scalars, names_of

_FLAT = {
    "single_partition_of_fp32_groups": "bit16_groups",
    "fp32_groups_flat_partition": "bf16_groups",
    "fp32_partitioned_groups_flat": "fp16_groups",
}
"""Where stages 1 and 2, 0 with bf16, and 3 keep their flat tensors, and the parameters that are in them."""


def find_zero(wrapped: Any) -> Any:
    """DeepSpeed's optimiser with flat tensors inside others' wrappers; None where there is none."""
    seen: set[int] = set()
    while wrapped is not None and id(wrapped) not in seen:
        if any(hasattr(wrapped, name) for name in _FLAT):
            return wrapped
        seen.add(id(wrapped))
        wrapped = getattr(wrapped, "optimizer", None)
    return None


class ZeroStates:
    """The state of an optimiser under ZeRO.

    Args:
        zero: DeepSpeed's optimiser.
        model: The model.
    """

    def __init__(self, zero: Any, model: nn.Module) -> None:
        self.zero = zero
        self.inner: torch.optim.Optimizer = zero.optimizer
        flat = next(name for name in _FLAT if hasattr(zero, name))
        self._stage_3 = flat == "fp32_partitioned_groups_flat"
        names = names_of(model)
        self._flats: list[Any] = list(getattr(zero, flat))
        self._members: list[list[tuple[str, Any]]] = [
            [(names[id(parameter)], parameter) for parameter in group] for group in getattr(zero, _FLAT[flat])
        ]
        self._place = {name: number for number, group in enumerate(self._members) for name, _ in group}
        order = {name: number for number, name in enumerate(names.values())}
        everyone = [member for group in self._members for member in group]
        self._parameters = dict(sorted(everyone, key=lambda member: order[member[0]]))

    @property
    def kind(self) -> str:
        """Name of the optimiser's class."""
        return type(self.inner).__name__

    @property
    def defaults(self) -> Collection[str]:
        """The settings that are given to the optimiser."""
        return self.inner.defaults

    @property
    def settings(self) -> list[dict[str, Any]]:
        """The optimiser's own groups."""
        return self.inner.param_groups

    def groups(self) -> list[dict[str, Any]]:
        """The groups' settings, each with the names of its parameters."""
        numbers = [self._group_of(number) for number in range(len(self._members))]
        found: list[dict[str, Any]] = []
        for number, group in enumerate(self.settings):
            members = [name for at, own in zip(numbers, self._members, strict=True) if at == number for name, _ in own]
            found.append({**group, "params": members})
        return found

    def tensors(self) -> Iterator[tuple[str, str, Tensor]]:
        """Parameter, key and whole tensor; all processes gather them together."""
        from deepspeed.utils import safe_get_full_fp32_param, safe_get_full_optimizer_state

        self._link()
        for name, parameter in self._parameters.items():
            for key in self._keys(self._flats[self._place[name]]):
                yield name, key, _given(safe_get_full_optimizer_state(parameter, key))
            if parameter.dtype != torch.float32:
                yield name, MASTER, _given(safe_get_full_fp32_param(parameter))

    def scalars(self) -> Scalars:
        """The numbers in the state: the step."""
        found: Scalars = {}
        for number, members in enumerate(self._members):
            flat = self._flats[number]
            state = self.inner.state.get(flat) or {}
            step = state.get(STEP, self.settings[self._group_of(number)].get(STEP))
            if step is not None:
                value = step.item() if isinstance(step, Tensor) else step
                found |= {name: {STEP: value} for name, _ in members}
        return found

    def load(self, held: Mapping[str, Sequence[str]], read: Read, scalars: Scalars) -> None:
        """Takes over a state."""
        for number, members in enumerate(self._members):
            flat = self._flats[number]
            keys = sorted({key for name, _ in members for key in held.get(name, ())})
            state: dict[str, Any] = {key: torch.zeros_like(flat) for key in keys if key != MASTER}
            for name, parameter in members:
                for key in held.get(name, ()):
                    value = read(name, key).to(flat.dtype)
                    if value.numel() != self._size(parameter):
                        raise CheckpointError(
                            f"the state {key!r} of {name} has the shape {tuple(value.shape)}, which ZeRO cannot spread "
                            f"(it was saved by {self.kind}); go on with ddp or one process"
                        )
                    target = flat.data if key == MASTER else state[key]
                    self._put(parameter, value.flatten().to(flat.device), target)
            steps = [scalars[name][STEP] for name, _ in members if STEP in scalars.get(name, {})]
            if steps:
                state[STEP] = self._step(steps[0], flat, self.settings[self._group_of(number)])
            if state:
                self.inner.state[flat] = state
        self._link()

    def _step(self, value: float, flat: Tensor, settings: Mapping[str, Any]) -> Tensor | int:
        """A count of steps as the optimiser itself begins one."""
        if not type(self.inner).__module__.startswith("torch.optim"):
            return int(value)
        # Fused kernels, and those that CUDA graphs take, read it where the parameter lies.
        beside = settings.get("fused") or settings.get("capturable")
        return torch.tensor(float(value), dtype=torch.float32, device=flat.device if beside else "cpu")

    def _link(self) -> None:
        """Has DeepSpeed note at each parameter where its state lies.

        It does so by itself when the first group has done its first step, and the others have no state yet.
        """
        if hasattr(self.zero, "_hp_optimizer_states_linked"):
            self.zero._hp_optimizer_states_linked = False
            if all(self.inner.state.get(flat) for flat in self._flats):
                self.zero._lazy_init_hp_params_optimizer_state()

    def _put(self, parameter: Any, value: Tensor, target: Tensor) -> None:
        """Copies this process's share of a parameter's tensor into a flat tensor."""
        if self._stage_3:
            _, start, count = self.zero.grad_position[self.zero.get_param_id(parameter)]
            group = getattr(parameter, "ds_process_group", self.zero.dp_process_group)
            rank = torch.distributed.get_rank(group=group)
            share = value[count * rank : count * (rank + 1)]
            target.narrow(0, start, len(share)).copy_(share)  # the last share is filled up with zeros
            return
        mapping = parameter._hp_mapping
        if mapping is not None:
            here, there = mapping.lp_fragment_address, mapping.hp_fragment_address
            share = value.narrow(0, here.start, here.numel)
            target.narrow(0, there.start, there.numel).copy_(share)

    def _keys(self, flat: Any) -> list[str]:
        state = self.inner.state.get(flat) or {}
        return sorted(key for key, value in state.items() if isinstance(value, Tensor) and value.shape == flat.shape)

    def _size(self, parameter: Any) -> int:
        return parameter.ds_numel if self._stage_3 else parameter.numel()

    def _group_of(self, number: int) -> int:
        """The optimiser's group that a flat tensor belongs to; stage 3 cuts a group into several."""
        if not self._stage_3:
            return number
        return int(self.zero.sub_group_to_group_id[number])


def _given(tensor: Tensor | None) -> Tensor:
    assert tensor is not None, "DeepSpeed gives none for what it does not train"
    return tensor
