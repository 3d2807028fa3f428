"""AutoAVSR's visual front end: a convolution over time and a ResNet-18 over each frame.

He et al., 2016, "Deep Residual Learning for Image Recognition" (arXiv:1512.03385); Stafylakis and Tzimiropoulos, 2017,
"Combining Residual Networks with LSTMs for Lipreading" (arXiv:1703.04105).

Everything works on the valid frames of a batch in one row, whichever clips they are from: padding costs nothing and
takes no part in the statistics of a batch norm. What the convolution over time sees of a frame's neighbours is cut out
before, so that it becomes a convolution over a frame with as many channels as its kernel has steps.

Shapes: N frames of all clips, K frames of a window, C channels, H x W pixels.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from speechlmm_core.lengths import ceil_div

WINDOW = 5
"""Frames that the convolution over time sees: one and two on either side."""

MAX_FRAMES = 512
"""Frames computed at a time, which bounds the memory that is needed."""

CACHED_VALUES = 1 << 19
"""Values that a stage puts out at a time on a processor: what fits into its cache. More, where the stage has more
weights than that, since it rearranges them for every group."""

STEM_SIDE = 44
"""Height and width of what the convolution over time puts out, before pooling."""

STAGE_SIDES = (22, 11, 6, 3)
"""Height and width of what the stages of the residual network put out."""


class WindowConv3d(nn.Conv3d):
    """A convolution of one channel over time and pixels, given the window of each of its steps in time."""

    def forward(self, input: Tensor) -> Tensor:
        """(N, K, H, W) -> (N, C, H_out, W_out)."""
        return nn.functional.conv2d(input, self.weight[:, 0], stride=self.stride[1:], padding=self.padding[1:])


class SkippingConv2d(nn.Conv2d):
    """A convolution with a kernel of one pixel, which leaves out the pixels between its strides before it begins.

    torch 2.14's own, over few channels that are last, writes beyond its memory in the backward pass on several threads.
    """

    def forward(self, input: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, C_out, H_out, W_out)."""
        rows, columns = self.stride
        return nn.functional.conv2d(input[:, :, ::rows, ::columns], self.weight)


class ResidualBlock(nn.Module):
    """Two convolutions with batch norm and swish, around which the input is led."""

    def __init__(self, size_in: int, size_out: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(size_in, size_out, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(size_out)
        self.conv2 = nn.Conv2d(size_out, size_out, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(size_out)
        self.downsample: nn.Sequential | None = None
        if stride != 1 or size_in != size_out:
            self.downsample = nn.Sequential(
                SkippingConv2d(size_in, size_out, 1, stride, bias=False), nn.BatchNorm2d(size_out)
            )

    def forward(self, values: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, C_out, H_out, W_out)."""
        hidden = nn.functional.silu(self.bn1(self.conv1(values)), inplace=True)
        hidden = self.bn2(self.conv2(hidden))
        around = values if self.downsample is None else self.downsample(values)
        return nn.functional.silu(hidden.add_(around), inplace=True)


class ResNet18(nn.Module):
    """The four stages of a ResNet-18 and the mean over pixels."""

    def __init__(self, sizes: Sequence[int]) -> None:
        super().__init__()
        self.sizes = tuple(sizes)
        before = sizes[0]
        for number, size in enumerate(sizes, start=1):
            first = ResidualBlock(before, size, stride=1 if number == 1 else 2)
            self.add_module(f"layer{number}", nn.Sequential(first, ResidualBlock(size, size, stride=1)))
            before = size

    def forward(self, values: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, C_out)."""
        for stage, size, side in zip(self.children(), self.sizes, STAGE_SIDES, strict=True):
            num_weights = sum(parameter.numel() for parameter in stage.parameters())
            values = in_groups(stage, values, size * side**2, num_weights=num_weights, whole=self.training)
        return values.mean((2, 3))  # (N, C_out)


class VisualFrontend(nn.Module):
    """Grey frames to vectors."""

    def __init__(self, sizes: Sequence[int]) -> None:
        super().__init__()
        self.trunk = ResNet18(sizes)
        half = WINDOW // 2
        self.frontend3D = nn.Sequential(
            WindowConv3d(1, sizes[0], (WINDOW, 7, 7), (1, 2, 2), (half, 3, 3), bias=False),
            nn.BatchNorm2d(sizes[0]),
            nn.SiLU(inplace=True),
            nn.MaxPool2d(3, 2, 1),
        )

    def forward(self, frames: Tensor, windows: Tensor) -> Tensor:
        """Encodes the frames of a batch.

        Args:
            frames: (N + 1, H, W) normalised frames; the last one is what lies beyond the ends of a clip.
            windows: (N, K) which frames the window of each valid frame holds.

        Returns:
            (N, C_out).
        """

        def stem(own: Tensor) -> Tensor:
            # With the channels last, pooling and norms are several times as fast.
            return self.frontend3D(frames[own].contiguous(memory_format=torch.channels_last))  # (N, C, H, W)

        num_values = self.trunk.sizes[0] * STEM_SIDE**2
        # A batch norm in training mode needs all frames at once.
        count = 1 if self.training else ceil_div(len(windows), MAX_FRAMES)
        parts = windows.tensor_split(count)
        return torch.cat([self.trunk(in_groups(stem, part, num_values, whole=self.training)) for part in parts])


def in_groups(
    stage: Callable[[Tensor], Tensor], values: Tensor, num_values: int, *, num_weights: int = 0, whole: bool
) -> Tensor:
    """What a stage makes of all frames, computed by few frames at a time where that is faster.

    Args:
        stage: (N, ...) -> (N, ...); treats every frame alike.
        values: (N, ...).
        num_values: Values that come out for a frame.
        num_weights: Weights of the stage, where they are many.
        whole: Whether the stage has to see all frames at once.
    """
    if whole or values.device.type != "cpu":
        return stage(values)
    count = ceil_div(len(values) * num_values, max(CACHED_VALUES, num_weights))
    if count <= 1:
        return stage(values)
    return torch.cat([stage(part) for part in values.tensor_split(min(count, len(values)))])


def frame_windows(index: Tensor, lengths: Tensor, num_frames: int) -> Tensor:
    """The frames that the convolution over time sees around each valid frame.

    Args:
        index: (N,) where in the (R * T) frames the valid ones are.
        lengths: (R,) valid frames of each row.
        num_frames: T.

    Returns:
        (N, K) positions among the N valid frames; N where there is none, before a clip's first and after its last.
    """
    offsets = torch.arange(-(WINDOW // 2), WINDOW // 2 + 1, device=index.device)  # (K,)
    row, time = index // num_frames, index % num_frames
    times = time[:, None] + offsets  # (N, K)
    inside = (times >= 0) & (times < lengths[row][:, None])
    own = torch.arange(len(index), device=index.device)[:, None] + offsets
    return torch.where(inside, own, len(index))  # (N, K)
