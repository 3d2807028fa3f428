"""Changes the pictures of a video: grey, cut, scaled. Imports torch late.

Shapes: H rows, W pixels, C channels (3, or 1 for grey).
"""

from __future__ import annotations

from typing import Any

import numpy as np

Frame = np.ndarray[Any, np.dtype[np.uint8]]

LUMA = (19595, 38470, 7471)
"""Weights of red, green and blue in 1/65536: 0.299, 0.587, 0.114 (ITU-R BT.601), as Pillow and OpenCV use them."""


def to_grey(frame: Frame) -> Frame:
    """Turns RGB (H, W, 3) into grey (H, W, 1), rounded."""
    red, green, blue = (frame[..., number].astype(np.uint32) * weight for number, weight in enumerate(LUMA))
    return ((red + green + blue + (1 << 15)) >> 16).astype(np.uint8)[..., None]  # (H, W, 1)


def centre_cut(frame: Frame, size: tuple[int, int]) -> Frame:
    """Cuts the middle (height, width) out of (H, W, C); a smaller frame is scaled up first so that it covers them."""
    height, width, _ = frame.shape
    scale = max(size[0] / height, size[1] / width)
    if scale > 1:
        frame = resize(frame, (max(size[0], round(height * scale)), max(size[1], round(width * scale))))
        height, width, _ = frame.shape
    top, left = (height - size[0]) // 2, (width - size[1]) // 2
    return frame[top : top + size[0], left : left + size[1]]  # (height, width, C)


def resize(frame: Frame, size: tuple[int, int]) -> Frame:
    """Scales (H, W, C) to (height, width, C), bilinearly; averages where it gets smaller."""
    if frame.shape[:2] == size:
        return frame
    import torch

    writable = frame if frame.flags.writeable and min(frame.strides) > 0 else frame.copy()
    values = torch.from_numpy(writable).permute(2, 0, 1)[None]  # (1, C, H, W)
    scaled = torch.nn.functional.interpolate(values, size, mode="bilinear", align_corners=False, antialias=True)
    return scaled[0].permute(1, 2, 0).numpy()  # (height, width, C)
