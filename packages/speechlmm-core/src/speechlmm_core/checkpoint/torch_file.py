"""Reads files that `torch.save` wrote, without running code in them, and says what is wrong with any others."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING
from zipfile import ZipFile, is_zipfile

from speechlmm_core.errors import CheckpointError

if TYPE_CHECKING:
    from torch import Tensor

WRAPPERS = ("state_dict", "model", "e2e")
"""Names under which files that were pickled at training keep their tensors by name."""

EXPECTED = "expected a state dict of tensors, as safetensors or saved by `torch.save(model.state_dict(), ...)`"
"""What every message about a file of weights says."""

_FOREIGN = re.compile(r"\bGLOBAL ([\w.]+)")  # how torch names what it refuses to unpickle


def read_torch_file(path: Path) -> Mapping[str, Tensor]:
    """The tensors by name of a file that `torch.save` wrote; mapped into memory where its format allows.

    They may lie under a name that training scripts use (`WRAPPERS`), beside anything but Python objects.

    Raises:
        CheckpointError: It is empty, damaged or no such file (a TorchScript archive, say), or holds anything but
            tensors by name.
    """
    import pickle

    import torch

    try:
        if path.stat().st_size == 0:
            raise unreadable(path, "it is empty")
        is_zip = is_zipfile(path)
        if is_zip and _is_torchscript(path):
            raise CheckpointError(
                f"{str(path)!r} cannot be read: it is a TorchScript archive, which holds code; {EXPECTED}; save the "
                "state dict of the model that is in it, or get another file"
            )
        # Only the newer of torch's two formats, a zip archive, can be mapped.
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=is_zip)
    except (CheckpointError, MemoryError):
        raise
    except OSError as exc:
        raise unreadable(path, exc.strerror or str(exc)) from exc
    except pickle.UnpicklingError as exc:
        foreign = _FOREIGN.search(str(exc))
        if foreign is None:
            raise unreadable(path, "it is damaged, or no file of torch's") from exc
        raise CheckpointError(
            f"{str(path)!r} cannot be read: it holds Python objects ({foreign[1]}), which are not unpickled, since "
            f"that runs code; {EXPECTED}; where you trust its source, save its tensors alone, or ask its authors to"
        ) from exc
    except Exception as exc:  # torch raises nearly anything on bytes that mean nothing
        raise unreadable(path, "it is cut off or damaged, or no file of torch's") from exc
    return _tensors_by_name(content, path)


def _is_torchscript(path: Path) -> bool:
    """Whether an archive is TorchScript's, by the file that torch tells it by."""
    with ZipFile(path) as archive:
        return any(name.count("/") == 1 and name.endswith("/constants.pkl") for name in archive.namelist())


def unreadable(path: Path, why: str) -> CheckpointError:
    """The error for a file of weights of which nothing can be read."""
    return CheckpointError(f"{str(path)!r} cannot be read: {why}; {EXPECTED}; fetch it again")


def _tensors_by_name(content: object, path: Path) -> Mapping[str, Tensor]:
    import torch

    for _ in WRAPPERS:
        if isinstance(content, Mapping):
            content = next((content[key] for key in WRAPPERS if isinstance(content.get(key), Mapping)), content)
    if not isinstance(content, Mapping):
        held = f"a value of type {type(content).__name__}"
    else:
        wrong = ((name, value) for name, value in content.items() if not isinstance(name, str))
        strange = ((name, value) for name, value in content.items() if not isinstance(value, torch.Tensor))
        name, value = next(wrong, None) or next(strange, (None, None))
        if name is None:
            return content
        held = f"a value of type {type(value).__name__} under {name!r}"
    raise CheckpointError(f"{str(path)!r} holds {held}; {EXPECTED}; save its tensors alone, or get another file")
