"""What devices can compute at most, for the share of it that a training uses (MFU).

Dense matrix products, as NVIDIA's data sheets state them (their figures with sparsity are twice these): "A100 Tensor
Core GPU" (2021), "H100 Tensor Core GPU" (2023), "H200 Tensor Core GPU" (2024), "GH200 Grace Hopper Superchip" (2023),
"L40S" (2023), "A40" (2021), "HGX B200" (2024).
"""

from __future__ import annotations

from dataclasses import dataclass

TERA = 1e12


@dataclass(frozen=True)
class Peak:
    """TFLOP/s of matrix products by the type of what is multiplied."""

    half: float
    """bf16 and fp16."""
    tf32: float
    fp32: float


_SXM5 = Peak(989.4, 494.7, 66.9)
_NVL = Peak(835.5, 417.5, 60.0)
PEAKS: tuple[tuple[tuple[str, ...], Peak], ...] = (
    (("GH200",), _SXM5),
    (("H200", "NVL"), _NVL),
    (("H200",), _SXM5),
    (("H100", "NVL"), _NVL),
    (("H100", "PCIE"), Peak(756.0, 378.0, 51.0)),
    (("H100", "HBM3"), _SXM5),
    (("A100",), Peak(312.0, 156.0, 19.5)),
    (("L40S",), Peak(362.0, 183.0, 91.6)),
    (("A40",), Peak(149.7, 74.8, 37.4)),
    (("B200",), Peak(2250.0, 1125.0, 75.0)),
)
"""Words that a device's name holds, the first match counting, and its peak."""


def peak_flops(device_name: str, *, half: bool, tf32: bool) -> float | None:
    """FLOP/s of a device; None for one that is not known.

    Args:
        device_name: As `torch.cuda.get_device_name` gives it.
        half: Whether training is in bf16 or fp16.
        tf32: Whether products of fp32 matrices may be computed in TF32.
    """
    words = device_name.upper().replace("-", " ").split()
    if "MIG" in words:  # a slice of the device, of whichever size
        return None
    for wanted, peak in PEAKS:
        if set(wanted) <= set(words):
            return TERA * (peak.half if half else peak.tf32 if tf32 else peak.fp32)
    return None
