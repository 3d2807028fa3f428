"""Loading published weights into a module, strictly and without unpickling code."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from speechlmm_core.checkpoint.source import WEIGHT_SUFFIXES, fetch_pretrained, pretrained_file, resolve_pretrained
from speechlmm_core.checkpoint.torch_file import read_torch_file, unreadable
from speechlmm_core.errors import CheckpointError

if TYPE_CHECKING:
    from torch import Tensor, nn

WEIGHT_FILES = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)
"""Names under which checkpoints keep their weights, in the order in which they are looked for."""

SHOWN = 5
"""Names that an error message lists at most."""


def load_weights(
    module: nn.Module,
    source: str | Path,
    *,
    prefixes: Sequence[str] = ("",),
    ignore: Sequence[str] = (),
    rename: Callable[[str], str] | None = None,
) -> None:
    """Copies a checkpoint's weights into a module.

    Args:
        module: Gets every one of its tensors from the checkpoint, but those of adapters on it; they keep their dtype
            and device. Of tensors that the module ties, the checkpoint needs only one, and may not hold different ones.
        source: Folder or single file, name under `$PRETRAINED_COMPONENTS`, or hub name.
        prefixes: What may stand before the module's own names; the first that fits is cut off.
        ignore: Beginnings of names that belong to other parts of the checkpoint.
        rename: Turns an older name (without prefix) into today's.

    Raises:
        CheckpointError: There are no weights, or tensors are missing, superfluous or of another shape.
    """
    import torch

    from speechlmm_core.checkpoint.fill import fill, full_shape, whole
    from speechlmm_core.lora.plain import plain_state

    own = plain_state(module)
    missing, unexpected, wrong = set(own), list[str](), list[str]()
    loaded: dict[int, str] = {}
    for name, read in _tensors(weight_files(source)):
        target = _target(name, own, prefixes, rename)
        if target is None:
            if not name.startswith(tuple(ignore)):
                unexpected.append(name)
            continue
        tensor = read()
        missing.discard(target)
        if tensor.shape != (wanted := full_shape(own[target])):
            wrong.append(f"{name} is {tuple(tensor.shape)}, expected {tuple(wanted)}")
            continue
        tied = loaded.setdefault(id(own[target]), name)
        if tied != name:
            before = whole(own[target])
            if not torch.equal(before, tensor.to(before)):
                wrong.append(f"{name} differs from {tied}, to which the model ties it")
            continue
        fill(own[target], tensor)
    missing = {name for name in missing if id(own[name]) not in loaded}
    faults = [
        f"{len(names)} tensors {what} ({', '.join(sorted(names)[:SHOWN])}{', …' if len(names) > SHOWN else ''})"
        for what, names in (("missing", missing), ("unexpected", unexpected), ("of the wrong shape or value", wrong))
        if names
    ]
    if faults:
        raise CheckpointError(
            f"the weights of {str(source)!r} do not fit {type(module).__name__}: {'; '.join(faults)}; "
            "check that the configuration's architecture is the checkpoint's"
        )


def weight_files(source: str | Path) -> list[Path]:
    """The files that hold a checkpoint's weights, downloaded first if ``source`` is a hub name.

    A folder without the usual names may hold a single file of weights.

    Raises:
        CheckpointError: There are none, or they cannot be fetched.
    """
    single = pretrained_file(str(source))
    if single is not None:
        return [single]
    for name in WEIGHT_FILES:
        found = checkpoint_file(source, name)
        if found is None:
            continue
        if found.suffix != ".json":
            return [found]
        shards = read_shards(found)
        files = {shard: checkpoint_file(source, shard) for shard in shards}
        absent = [shard for shard, file in files.items() if file is None]
        if absent:
            raise CheckpointError(f"{str(source)!r} lacks {', '.join(absent)}, which {name} names; fetch it again")
        return [file for file in files.values() if file is not None]
    folder = resolve_pretrained(str(source))
    if isinstance(folder, Path):
        others = [file for file in folder.iterdir() if file.suffix in WEIGHT_SUFFIXES]
        if len(others) == 1:
            return others
    raise CheckpointError(f"{str(source)!r} holds no weights; expected one of {', '.join(WEIGHT_FILES)}")


def read_shards(index: Path) -> list[str]:
    """The names of the files that an index of sharded weights lists.

    Raises:
        CheckpointError: It is no such index, or names anything but files beside itself.
    """
    try:
        names = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as exc:
        raise CheckpointError(f"{str(index)!r} is not an index of weight files ({exc}); fetch it again") from exc
    for name in names:
        _check_plain(name, index)
    if not names:
        raise CheckpointError(f"{str(index)!r} names no weight files; fetch it again")
    return sorted(names)


def _check_plain(name: object, source: str | Path) -> None:
    # A shard's name comes from a file that others wrote; it may not lead out of the folder.
    if not isinstance(name, str) or not name or Path(name).name != name:
        raise CheckpointError(f"{str(source)!r} names the weight file {name!r}, expected a plain file name")


def checkpoint_file(source: str | Path, name: str) -> Path | None:
    """A file of a checkpoint, downloaded first if ``source`` is a hub name; None where it has no such file.

    Raises:
        CheckpointError: There is no such checkpoint, or it cannot be fetched.
    """
    _check_plain(name, source)
    path = fetch_pretrained(str(source), [name]) / name
    return path if path.is_file() else None


def _tensors(files: Sequence[Path]) -> Iterator[tuple[str, Callable[[], Tensor]]]:
    """Each tensor's name and a way to read it; of safetensors files only what is asked for is read."""
    from safetensors import SafetensorError, safe_open

    for file in files:
        if file.suffix != ".safetensors":
            for name, tensor in read_torch_file(file).items():
                yield name, lambda tensor=tensor: tensor
            continue
        try:
            with safe_open(file, framework="pt") as handle:
                for name in list(handle.keys()):
                    yield name, lambda name=name, handle=handle: handle.get_tensor(name)
        except (SafetensorError, OSError, RuntimeError) as exc:
            raise unreadable(file, f"it is no safetensors file, or cut off ({' '.join(str(exc).split())})") from exc


def _target(
    name: str, own: Mapping[str, Tensor], prefixes: Sequence[str], rename: Callable[[str], str] | None
) -> str | None:
    for prefix in prefixes:
        if name.startswith(prefix):
            short = name.removeprefix(prefix)
            short = rename(short) if rename else short
            if short in own:
                return short
    return None
