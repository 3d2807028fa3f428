"""The mean of several checkpoints' weights, tensor by tensor: memory holds one tensor, whatever the model's size.

Polyak and Juditsky, 1992, "Acceleration of Stochastic Approximation by Averaging" (doi:10.1137/0330046).
"""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from speechlmm_core.checkpoint.load import read_config, resolve_model_path
from speechlmm_core.checkpoint.save import INDEX, WEIGHTS
from speechlmm_core.checkpoint.weights import read_shards
from speechlmm_core.errors import CheckpointError, ConfigError
from speechlmm_train.download.tensors import read_header
from speechlmm_train.replacing import NOTE, bases_of, check_apart, replaced
from speechlmm_train.trainer.output_folder import OutputFolder

if TYPE_CHECKING:
    from torch import Tensor

COUNTER = ".num_batches_tracked"
"""Ending of the names of batch norm's counters, of which the largest is kept."""
_SHOWN = 5


@dataclass(frozen=True)
class Average:
    """What was averaged."""

    checkpoints: list[Path]
    weights: list[float]
    """Their shares, whose sum is 1."""
    tensors: int
    """Tensors that are means; those of integers are the same in all checkpoints."""


def find_checkpoints(paths: Sequence[Path], last: int | None) -> list[Path]:
    """The checkpoints to average.

    Args:
        paths: Checkpoints, or a run's output folder where ``last`` is given.
        last: How many of the run's last checkpoints are meant.

    Raises:
        CheckpointError: One is not there.
        ConfigError: There are too few, or one is given twice.
    """
    if last is not None:
        if len(paths) != 1:
            raise ConfigError(f"--last takes the output folder of one run, got {len(paths)} paths")
        found = [one.path for one in OutputFolder(paths[0]).checkpoints()] if paths[0].is_dir() else []
        if len(found) < last:
            names = ", ".join(path.name for path in found) or "none"
            raise ConfigError(f"--last {last}: {str(paths[0])!r} holds fewer whole checkpoints ({names})")
        paths = found[-last:]
    folders = [resolve_model_path(path) for path in paths]
    if len(folders) < 2:
        raise ConfigError("expected two checkpoints or more, or a run's output folder with --last <number>")
    seen: dict[Path, Path] = {}
    for path, folder in zip(paths, folders, strict=True):
        if (earlier := seen.setdefault(folder.resolve(), path)) is not path:
            raise ConfigError(f"{str(earlier)!r} and {str(path)!r} are the same checkpoint; use --weights instead")
    return folders


def average_checkpoints(
    folders: Sequence[Path],
    output: Path,
    *,
    weights: Sequence[float] | None = None,
    tick: Callable[[int], object] = lambda size: None,
) -> Average:
    """Writes a checkpoint whose weights are the mean of others', summed in fp32.

    Args:
        folders: The checkpoints; the last one's tokenizer goes along.
        output: Where to; it appears whole or not at all, and keeps what else lies there.
        weights: How much each counts; alike by default.
        tick: Is told the bytes of each tensor that is done.

    Raises:
        CheckpointError: The checkpoints are not of one model, are damaged, or hold what has no mean.
        ConfigError: The weights do not fit, or the output is one of the checkpoints, holds one or lies in one.
    """
    shares = _shares(weights, len(folders))
    check_apart(output, [*folders, *(base for folder in folders for base in bases_of(folder))])
    _check_alike(folders)
    files = _files(folders[0])
    _check_tensors(folders)
    with replaced(output) as temporary:
        count = 0
        with _Readers(folders) as readers:
            for name in files:
                count += _write_means(folders[0] / name, temporary / name, readers, shares, tick)
        # The index is that of the files, which lie as the first checkpoint's.
        for folder, name in ((folders[0], INDEX), (folders[-1], "generation_config.json")):
            if (name != INDEX or files != [WEIGHTS]) and (folder / name).is_file():
                shutil.copyfile(folder / name, temporary / name)
        _save_processor(folders[-1], temporary)
        note = {"checkpoints": [str(folder) for folder in folders], "weights": shares}
        (temporary / NOTE).write_text(json.dumps(note, indent=2) + "\n", encoding="utf-8")
        shutil.copyfile(folders[-1] / "config.json", temporary / "config.json")
    return Average(list(folders), shares, count)


def total_bytes(folder: Path) -> int:
    """Bytes of a checkpoint's tensors."""
    return sum((folder / name).stat().st_size for name in _files(folder))


def _shares(weights: Sequence[float] | None, count: int) -> list[float]:
    given = [1.0] * count if weights is None else list(weights)
    if len(given) != count:
        raise ConfigError(f"--weights: got {len(given)} for {count} checkpoints; give one for each")
    if not all(math.isfinite(weight) and weight > 0 for weight in given):
        raise ConfigError(f"--weights: expected numbers above 0, got {given}")
    return [weight / sum(given) for weight in given]


def _files(folder: Path) -> list[str]:
    names = read_shards(folder / INDEX) if (folder / INDEX).is_file() else [WEIGHTS]
    for name in names:
        if not (folder / name).is_file():
            raise CheckpointError(f"the checkpoint {str(folder)!r} is incomplete: {name} is missing")
    return names


def _check_alike(folders: Sequence[Path]) -> None:
    """Refuses checkpoints of different models, and such as have no mean of their own."""
    first = read_config(folders[0])
    for folder in folders:
        if (folder / "adapters").is_dir():
            raise CheckpointError(
                f"{str(folder)!r} has low-rank adapters: the mean of their matrices is not the mean of the models; "
                "merge each checkpoint with `speechlmm-train merge-lora` first, and average what that writes"
            )
        config = read_config(folder)
        for key in ("model", "saved", "bases", "tensors", "dtype"):
            if (place := _difference(first.get(key), config.get(key), key)) is not None:
                raise CheckpointError(
                    f"{str(folders[0])!r} and {str(folder)!r} are not of one model: `{place}` differs in their "
                    "config.json; average checkpoints of one configuration"
                )


def _difference(one: Any, other: Any, place: str) -> str | None:
    """The path of the first value in which two configurations differ."""
    if isinstance(one, dict) and isinstance(other, dict):
        for key in [*one, *(key for key in other if key not in one)]:
            if (found := _difference(one.get(key), other.get(key), f"{place}.{key}")) is not None:
                return found
        return None
    return None if one == other else place


def _facts(folder: Path) -> dict[str, tuple[str, list[int]]]:
    """Type and shape of each tensor."""
    entries = [entry for name in _files(folder) for entry in read_header(folder / name)[0].items()]
    return {name: (entry["dtype"], entry["shape"]) for name, entry in entries if name != "__metadata__"}


def _check_tensors(folders: Sequence[Path]) -> None:
    """Refuses checkpoints whose tensors have other names, shapes or types than the first's."""
    facts = _facts(folders[0])
    for folder in folders[1:]:
        own = _facts(folder)
        wrong = sorted({*facts, *own} - {name for name in facts if own.get(name) == facts[name]})
        if wrong:
            more = ", …" if len(wrong) > _SHOWN else ""
            raise CheckpointError(
                f"{str(folders[0])!r} and {str(folder)!r} hold different tensors: {', '.join(wrong[:_SHOWN])}{more} "
                "(missing in one, or of another shape or type)"
            )


class _Readers:
    """Reads tensors of several checkpoints by name."""

    def __init__(self, folders: Sequence[Path]) -> None:
        self.folders = folders

    def __enter__(self) -> _Readers:
        from contextlib import ExitStack

        from safetensors import safe_open

        self.stack = ExitStack()
        self.places: list[dict[str, Any]] = []
        for folder in self.folders:
            places: dict[str, Any] = {}
            for name in _files(folder):
                handle: Any = self.stack.enter_context(safe_open(folder / name, framework="pt"))
                places.update(dict.fromkeys(handle.keys(), handle))
            self.places.append(places)
        return self

    def __exit__(self, *exc: object) -> None:
        self.stack.close()

    def read(self, name: str) -> list[Callable[[], Tensor]]:
        """Ways to read a tensor of each checkpoint."""
        return [lambda handle=places[name]: handle.get_tensor(name) for places in self.places]


def _write_means(
    source: Path, target: Path, readers: _Readers, shares: Sequence[float], tick: Callable[[int], object]
) -> int:
    """Writes one file of weights in the layout of the first checkpoint's; returns how many tensors are means."""
    import torch

    header, start = read_header(source)
    entries = {name: entry["data_offsets"] for name, entry in header.items() if name != "__metadata__"}
    count = 0
    with source.open("rb") as old, target.open("wb") as file:
        file.write(old.read(start))  # names, types, shapes and places are the same
        for name in sorted(entries, key=lambda name: entries[name]):
            value = _mean(name, readers, shares)
            count += value.is_floating_point()
            value.contiguous().reshape(-1).view(torch.uint8).numpy().tofile(file)
            tick(entries[name][1] - entries[name][0])
    return count


def _mean(name: str, readers: _Readers, shares: Sequence[float]) -> Tensor:
    import torch

    reads = readers.read(name)
    first = reads[0]()
    if not first.is_floating_point():
        others = [read() for read in reads[1:]]
        if name.endswith(COUNTER):
            return torch.stack([first, *others]).amax(0)
        if not all(torch.equal(first, other) for other in others):
            raise CheckpointError(
                f"{name!r} holds whole numbers and differs among the checkpoints, so that it has no mean"
            )
        return first
    wide = torch.float64 if first.dtype == torch.float64 else torch.float32
    # Uniform shares are divided by at the end, so that the mean of equal weights is those weights.
    uniform = len(set(shares)) == 1
    total = first.to(wide, copy=True) if uniform else first.to(wide) * shares[0]
    for read, share in zip(reads[1:], shares[1:], strict=True):
        total.add_(read().to(wide), alpha=1.0 if uniform else share)
    if uniform:
        total.div_(len(shares))
    if not bool(torch.isfinite(total).all()):
        raise CheckpointError(f"the mean of {name!r} is not finite: a checkpoint holds weights of a run that diverged")
    return total.to(first.dtype)


def _save_processor(source: Path, target: Path) -> None:
    from speechlmm_core.processor.processor import SpeechLMMProcessor

    SpeechLMMProcessor.from_pretrained(source).save_pretrained(target)
