"""Models and batches that have shapes and no content: a step of an 8B model runs on them in seconds, without memory.

Shapes: T frames, B media, U target ids.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map


class ShapeRules(TorchDispatchMode):
    """Shapes of what torch cannot tell without content."""

    def __torch_dispatch__(
        self, func: Any, types: Iterable[type], args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Runs an operation, or makes its result by shape alone."""
        name = str(func)
        if name.startswith("aten._ctc_loss."):
            log_probs, targets = args[0], args[1]  # (T, B, V), (B, U)
            num_frames, batch = log_probs.shape[0], log_probs.shape[1]
            longest = targets.shape[1] if targets.dim() == 2 else int(targets.shape[0])
            return log_probs.new_empty(batch), log_probs.new_empty(batch, num_frames, 2 * longest + 1)
        if name.startswith("aten._ctc_loss_backward."):
            return torch.empty_like(args[1])
        return func(*args, **(kwargs or {}))


def make_fake(model: nn.Module, mode: FakeTensorMode) -> None:
    """Puts tensors without content in the place of a model's own (those of the meta device, say), as if on the CPU.

    Args:
        model: The model; tensors that are shared stay so.
        mode: The mode in which it will run.
    """
    made: dict[int, Tensor] = {}

    def fake(tensor: Tensor) -> Tensor:
        if id(tensor) not in made:
            with mode:
                empty = torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device="cpu")
            is_parameter = isinstance(tensor, nn.Parameter)
            made[id(tensor)] = nn.Parameter(empty, requires_grad=tensor.requires_grad) if is_parameter else empty
        return made[id(tensor)]

    originals = [*model.parameters(), *model.buffers()]  # alive, so that no address is given twice
    for module in model.modules():
        for tensors in (module._parameters, module._buffers):
            for name, tensor in tensors.items():
                if tensor is not None:
                    tensors[name] = fake(tensor)  # pyright: ignore[reportArgumentType]  # a parameter for a parameter
    originals.clear()


def fake_batch(batch: Mapping[str, Any], mode: FakeTensorMode) -> dict[str, Any]:
    """A batch whose tensors have shapes only."""
    return tree_map(lambda leaf: mode.from_tensor(leaf) if isinstance(leaf, Tensor) else leaf, dict(batch))
