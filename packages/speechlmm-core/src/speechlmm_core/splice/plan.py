"""Where each position of a batch takes its input embedding from, decided in the data worker.

A batch's positions index one table: [text embeddings, R*N rows | each input's features, B*T rows | one zero row].
With that, `forward` does a single gather and reads nothing back from the device.

Shapes: R rows, N positions a row, S samples, n positions of one sample, B media of one input, T frames, M targets.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol, cast

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from speechlmm_core.errors import DataError

Int32 = npt.NDArray[np.int32]
Int64 = npt.NDArray[np.int64]
Bool = npt.NDArray[np.bool_]
PaddingSide = Literal["right", "left"]


class TextLike(Protocol):
    """A run of token ids (`speechlmm_core.chat.tokenizer.TextPiece`)."""

    @property
    def ids(self) -> Sequence[int]:
        """Token ids."""
        ...

    @property
    def supervised(self) -> Sequence[bool]:
        """Whether each token is to be predicted."""
        ...


class MediaLike(Protocol):
    """A medium in its place (`speechlmm_core.chat.tokenizer.MediaPiece`)."""

    @property
    def item(self) -> dict[str, Any]:
        """The content item; its `type` is the input's name."""
        ...


@dataclass(frozen=True)
class SampleLayout:
    """The n positions of one sample."""

    input_ids: Int64
    """(n,); the padding token at a medium's positions."""
    supervised: Bool
    """(n,): the token at this position is to be predicted."""
    medium: Int32
    """(n,): -1 for text, else an index into `inputs`."""
    frame: Int32
    """(n,): number of the frame within its medium."""
    inputs: list[str]
    """Name of each medium's input, in order of appearance."""
    num_frames: list[int]
    """Frames of each medium; an upper bound where they depend on the content."""

    @property
    def num_positions(self) -> int:
        """Positions n."""
        return len(self.input_ids)


@dataclass(frozen=True)
class AdditiveLayout:
    """Frames that are added to a sample's input embeddings (the codes that a talking head feeds back, say)."""

    medium: Int32
    """(n,): -1 for nothing, else an index into the sample's `inputs`."""
    frame: Int32
    """(n,): number of the frame within its medium."""


def build_layout(pieces: Sequence[TextLike | MediaLike], num_frames: Sequence[int], pad_token_id: int) -> SampleLayout:
    """Lays out one sample.

    Args:
        pieces: What the chat tokenizer made of the messages.
        num_frames: Frames of each medium, in order of appearance.
        pad_token_id: Token that stands at the media's positions; it is never embedded.

    Raises:
        DataError: The number of media differs from the number of placeholders, or a length is negative.
    """
    items: list[dict[str, Any]] = [cast(MediaLike, piece).item for piece in pieces if hasattr(piece, "item")]
    if len(items) != len(num_frames):
        raise DataError(
            f"got {len(num_frames)} media for {len(items)} placeholders in the messages; give each placeholder "
            "exactly one medium"
        )
    if any(frames < 0 for frames in num_frames):
        raise DataError(f"got a medium with a negative number of frames in {list(num_frames)!r}")
    ids: list[Int64] = []
    supervised: list[Bool] = []
    medium: list[Int32] = []
    frame: list[Int32] = []
    seen = 0
    for piece in pieces:
        if hasattr(piece, "item"):
            n = int(num_frames[seen])
            ids.append(np.full(n, pad_token_id, dtype=np.int64))
            supervised.append(np.zeros(n, dtype=np.bool_))
            medium.append(np.full(n, seen, dtype=np.int32))
            frame.append(np.arange(n, dtype=np.int32))
            seen += 1
        else:
            text = cast(TextLike, piece)
            ids.append(np.asarray(text.ids, dtype=np.int64))
            supervised.append(np.asarray(text.supervised, dtype=np.bool_))
            medium.append(np.full(len(ids[-1]), -1, dtype=np.int32))
            frame.append(np.zeros(len(ids[-1]), dtype=np.int32))
    return SampleLayout(
        input_ids=np.concatenate(ids) if ids else np.zeros(0, dtype=np.int64),
        supervised=np.concatenate(supervised) if ids else np.zeros(0, dtype=np.bool_),
        medium=np.concatenate(medium) if ids else np.zeros(0, dtype=np.int32),
        frame=np.concatenate(frame) if ids else np.zeros(0, dtype=np.int32),
        inputs=[item["type"] for item in items],
        num_frames=[int(frames) for frames in num_frames],
    )


@dataclass(frozen=True)
class _Media:
    """All media of a batch, numbered through the samples in order of appearance."""

    first: Int64
    """(S,): number of each sample's first medium."""
    start: Int64
    """(media,): row of the table that holds each medium's frame 0."""
    input: Int64
    """(media,): index of each medium's input in the input order."""
    row: Int64
    """(media,): which of its input's B rows each medium is."""
    max_frames: list[int]
    """T of each input."""
    num_rows: int
    """Rows of the table, the zero row left out."""


def _number_media(samples: Sequence[SampleLayout], input_order: Sequence[str], num_text_rows: int) -> _Media:
    index = {name: j for j, name in enumerate(input_order)}
    names = [name for sample in samples for name in sample.inputs]
    unknown = sorted(set(names) - set(index))
    if unknown:
        raise DataError(
            f"got a content item of type {unknown[0]!r}; the model's inputs are {', '.join(input_order) or 'none'}"
        )
    which = np.array([index[name] for name in names], dtype=np.int64)
    frames = np.array([n for sample in samples for n in sample.num_frames], dtype=np.int64)
    row = np.zeros(len(names), dtype=np.int64)
    start = np.zeros(len(names), dtype=np.int64)
    max_frames: list[int] = []
    offset = num_text_rows
    for j in range(len(input_order)):
        mine = np.flatnonzero(which == j)
        longest = int(frames[mine].max(initial=0))
        row[mine] = np.arange(len(mine))
        start[mine] = offset + row[mine] * longest
        offset += len(mine) * longest
        max_frames.append(longest)
    counts = np.array([len(sample.inputs) for sample in samples], dtype=np.int64)
    return _Media(np.cumsum(counts) - counts, start, which, row, max_frames, offset)


def plan_batch(
    samples: Sequence[SampleLayout],
    *,
    packed: bool,
    padding_side: PaddingSide = "right",
    pad_token_id: int,
    input_order: Sequence[str],
    additive: Sequence[AdditiveLayout | None] | None = None,
    dynamic_inputs: Sequence[str] = (),
) -> dict[str, Any]:
    """Plans a batch; media rows are numbered in batch order, and within a sample in order of appearance.

    Args:
        samples: Layouts of the samples.
        packed: All samples in one row, kept apart by `segments`; otherwise one row each, padded.
        padding_side: `right` to train, `left` to generate.
        pad_token_id: Token at padded positions.
        input_order: The model's inputs, in the order in which their features follow the text embeddings.
        additive: Frames to add at each sample's positions; their media are among the sample's `inputs`.
        dynamic_inputs: Inputs whose true lengths are known on the device only; see `speechlmm_core.splice.gather`.

    Returns:
        `input_ids`, `position_ids`, `attention_mask` or `segments`, `splice`, `supervised`, `samples` (their `count`,
        and the sample of each `supervised` position), and `dynamic` where an input is dynamic: torch tensors, and
        Python numbers where the host needs them.

    Raises:
        DataError: No samples, or a medium of an input that the model does not have.
    """
    if not samples:
        raise DataError("got an empty batch; a batch needs at least one sample")
    lengths = np.array([sample.num_positions for sample in samples], dtype=np.int64)  # (S,)
    num_samples, total = len(samples), int(lengths.sum())
    R, N = (1, total) if packed else (num_samples, int(lengths.max()))
    starts = np.cumsum(lengths) - lengths  # (S,)
    sample = np.repeat(np.arange(num_samples), lengths)  # (total,)
    within = np.arange(total) - starts[sample]  # (total,)
    shift = np.zeros_like(lengths) if padding_side == "right" else N - lengths
    flat = np.arange(total) if packed else sample * N + within + shift[sample]  # (total,)

    def spread(values: npt.NDArray[Any], fill: int) -> Tensor:
        grid = np.full(R * N, fill, dtype=np.int64)
        grid[flat] = values
        return _tensor(grid.reshape(R, N))  # (R, N)

    media = _number_media(samples, input_order, R * N)
    medium = np.concatenate([one.medium for one in samples])
    frame = np.concatenate([one.frame for one in samples])
    is_media = medium >= 0
    number = np.where(is_media, medium + media.first[sample], -1)  # (total,)
    base = np.arange(R * N)
    base[flat[is_media]] = media.start[number[is_media]] + frame[is_media]
    splice: dict[str, Any] = {"base": _tensor(base.reshape(R, N)), "num_frames": media.max_frames}
    splice["exact"] = [name not in dynamic_inputs for name in input_order]
    if additive is not None and any(one is not None for one in additive):
        splice["additive"] = spread(_additive_rows(additive, samples, media), media.num_rows)

    input_ids = np.concatenate([one.input_ids for one in samples])
    target = np.concatenate([one.supervised for one in samples]) & (within > 0)
    plan: dict[str, Any] = {
        "input_ids": spread(input_ids, pad_token_id),
        "position_ids": spread(within, 0),
        "splice": splice,
        "supervised": {
            "positions": _tensor(flat[target] - 1),  # (M,)
            "ids": _tensor(input_ids[target]),  # (M,)
        },
        "samples": {"count": num_samples, "supervised": _tensor(sample[target])},  # (M,)
    }
    if packed:
        bounds = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
        plan["segments"] = {"cu_seqlens": _tensor(bounds), "lengths": lengths.tolist()}
    else:
        plan["attention_mask"] = spread(np.ones(total, dtype=np.int64), 0)
    if any(name in dynamic_inputs for name in set(input_order)):
        position_input = np.where(is_media, media.input[number], -1) if len(media.input) else np.full(total, -1)
        position_row = np.where(is_media, media.row[number], 0) if len(media.row) else np.zeros(total, np.int64)
        plan["dynamic"] = {
            "input": spread(position_input, -1),
            "row": spread(position_row, 0),
            "frame": spread(frame, 0),
            "sample": spread(sample, -1),
            "inputs": [j for j, name in enumerate(input_order) if name in dynamic_inputs],
            "num_samples": num_samples,
            "padding_side": padding_side,
            "pad_token_id": pad_token_id,
        }
    return plan


def _tensor(values: npt.NDArray[Any]) -> Tensor:
    return torch.as_tensor(values)


def _additive_rows(additive: Sequence[AdditiveLayout | None], samples: Sequence[SampleLayout], media: _Media) -> Int64:
    """(total,) rows of the table to add; the zero row where a position adds nothing."""
    if len(additive) != len(samples):
        raise DataError(f"got additive frames for {len(additive)} samples; expected {len(samples)}")
    rows: list[Int64] = []
    for first, one, sample in zip(media.first, additive, samples, strict=True):
        out = np.full(sample.num_positions, media.num_rows, dtype=np.int64)
        if one is not None:
            if len(one.medium) != sample.num_positions:
                raise DataError(f"got additive frames for {len(one.medium)} of {sample.num_positions} positions")
            used = one.medium >= 0
            out[used] = media.start[first + one.medium[used]] + one.frame[used]
        rows.append(out)
    return np.concatenate(rows)
