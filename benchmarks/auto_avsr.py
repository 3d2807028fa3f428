"""AutoAVSR's encoder over a batch of clips of differing lengths, against clip by clip.

`loop` is the same encoder on one clip after the other. `plain_loop` is the usual way to write it down: a convolution
over (1, 1, T, H, W) and the residual network over all of a clip's frames. `plain_padded` is that over the padded batch.
Goals: batched not slower than 0.9 times the faster loop on a CPU, and at least 3 times as fast on a GPU; equal to 1e-4.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

import torch
from _bench import check_equal, compare, report
from torch import Tensor, nn

from speechlmm_core.interfaces.context import BuildContext
from speechlmm_core.media.medium import Medium
from speechlmm_encoders.auto_avsr.config import FRAME_RATE, IMAGE_SIZE, AutoAvsrEncoderConfig

TOLERANCE = 1e-4

TINY = {
    "frontend_hidden_sizes": [16, 32, 64, 128],
    "hidden_size": 192,
    "num_attention_heads": 3,
    "intermediate_size": 768,
}


class PlainFrontend(nn.Module):
    """The front end over whole clips, with the same parameters; takes all frames of (B, T), padding included."""

    def __init__(self, ours: Any, shape: tuple[int, int]) -> None:
        super().__init__()
        self.ours, self.shape = ours, shape

    def forward(self, frames: Tensor, _: Tensor) -> Tensor:
        """(B * T + 1, H, W), the last one black -> (B * T, C)."""
        convolution, norm, _, _ = self.ours.frontend3D
        pixels = frames[:-1].view(self.shape[0], 1, self.shape[1], IMAGE_SIZE, IMAGE_SIZE)
        hidden = nn.functional.conv3d(pixels, convolution.weight, stride=(1, 2, 2), padding=(2, 3, 3))
        mean, variance = norm.running_mean, norm.running_var
        hidden = nn.functional.batch_norm(hidden, mean, variance, norm.weight, norm.bias, eps=norm.eps)
        hidden = nn.functional.max_pool3d(nn.functional.silu(hidden), (1, 3, 3), (1, 2, 2), (0, 1, 1))
        values = hidden.transpose(1, 2).flatten(0, 1).contiguous()
        for stage in self.ours.trunk.children():
            values = stage(values)
        return values.mean((2, 3))


def plain(encoder: Any, inputs: dict[str, Tensor]) -> Tensor:
    """(B, T, D) by the plain front end, and by conformers that compute padding as well."""
    rows, frames = inputs["pixel_values_videos"].shape[:2]
    every = torch.arange(rows * frames, device=inputs["lengths"].device)
    ours = encoder.model.frontend
    try:
        encoder.model.frontend = PlainFrontend(ours, (rows, frames))
        return encoder({**inputs, "frame_index": every}).values
    finally:
        encoder.model.frontend = ours


def main() -> None:
    """Runs the comparison and prints it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--clips", type=int, default=8)
    parser.add_argument("--shortest", type=float, default=1.0, help="seconds")
    parser.add_argument("--longest", type=float, default=4.0, help="seconds")
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--tiny", action="store_true", help="a quarter of the published widths")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    device, dtype = torch.device(options.device), getattr(torch, options.dtype)
    config = AutoAvsrEncoderConfig.model_validate(
        {"model": {"num_hidden_layers": options.layers, **(TINY if options.tiny else {})}}
    )
    encoder = config.build(BuildContext()).eval().to(device, dtype)
    steps = max(options.clips - 1, 1)
    seconds = [options.shortest + (options.longest - options.shortest) * n / steps for n in range(options.clips)]
    lengths = [round(one * FRAME_RATE) for one in seconds]
    preprocessor = config.build_preprocessor()
    media = [Medium(torch.randint(0, 256, (n, IMAGE_SIZE, IMAGE_SIZE), dtype=torch.uint8), FRAME_RATE) for n in lengths]

    def on_device(clips: list[Medium]) -> dict[str, Tensor]:
        return {name: tensor.to(device) for name, tensor in preprocessor(clips).items()}

    batch, alone = on_device(media), [on_device([one]) for one in media]

    def timed(run: Callable[[], list[Tensor]]) -> Callable[[], list[Tensor]]:
        def inner() -> list[Tensor]:
            with torch.inference_mode():
                found = run()
                if device.type == "cuda":
                    torch.cuda.synchronize()
                return found

        return inner

    def cut(values: Tensor) -> list[Tensor]:
        return [row[:length] for row, length in zip(values, lengths, strict=True)]

    cases = {
        "batched": timed(lambda: cut(encoder(batch).values)),
        "loop": timed(lambda: [encoder(one).values[0] for one in alone]),
        "plain_loop": timed(lambda: [plain(encoder, one)[0] for one in alone]),
        "plain_padded": timed(lambda: cut(plain(encoder, batch))),
    }
    wanted = torch.cat(cases["plain_loop"]()).float()
    differences = {
        name: (torch.cat(run()).float() - wanted).abs().max().item()
        for name, run in cases.items()
        if name != "plain_padded"  # frames beyond a clip's end are not zero behind its norms
    }
    if dtype == torch.float32:  # in half precision the ways round differently
        check_equal(differences, TOLERANCE)
    median = compare(cases, options.repeats)
    report(
        "auto_avsr",
        {
            **vars(options),
            "frames": lengths,
            "median_s": median,
            "largest_difference": differences,
            "ratio_to_loop": median["loop"] / median["batched"],
            "ratio_to_plain_loop": median["plain_loop"] / median["batched"],
            "ratio_to_plain_padded": median["plain_padded"] / median["batched"],
        },
    )


if __name__ == "__main__":
    main()
