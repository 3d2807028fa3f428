"""The page of inspected samples, with pictures and sound in it, and the same as files beside it."""

from __future__ import annotations

import base64
import re
from collections.abc import Sequence
from contextlib import suppress
from importlib.resources import files
from pathlib import Path
from typing import Any

from speechlmm_core.checkpoint.atomic import atomic_write, write_text
from speechlmm_train.inspection.pictures import picture, wav
from speechlmm_train.inspection.sample import SeenMedium, SeenSample

PAGE = "index.html"
LIST = ".inspection"
"""Names of the files that lie beside the page."""
_OWN = re.compile(r"\d+-\d+-\d+-\w+\.(png|wav)")
EMBEDDED_BYTES = 4 << 20
"""Sound beyond this, two minutes at 16 kHz, is not put into the page, which then plays the file beside it."""


def write_page(
    groups: Sequence[tuple[str, str, Sequence[SeenSample]]], folder: Path, *, model: str, notes: Sequence[str]
) -> Path:
    """Writes `index.html`, and a PNG and a WAV file for each medium, in place of what the folder's last page had.

    Args:
        groups: Datasets: name, what there is to say about it, samples.
        folder: Where to write.
        model: What the samples were made for.
        notes: What the reader should know.

    Returns:
        The page.
    """
    from jinja2 import Environment

    source = files("speechlmm_train.inspection").joinpath("page.html.j2").read_text(encoding="utf-8")
    parts: list[dict[str, Any]] = []
    made: dict[str, bytes] = {}
    for number, (name, summary, samples) in enumerate(groups):
        shown = [
            {"sample": one, "media": [_medium(f"{number}-{one.index}-{i}", m, made) for i, m in enumerate(one.media)]}
            for one in samples
        ]
        parts.append({"name": name, "summary": summary, "samples": shown})
    environment = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    text = environment.from_string(source).render(parts=parts, model=model, notes=notes)
    folder.mkdir(parents=True, exist_ok=True)
    _remove_last(folder)
    write_text(folder / LIST, "".join(f"{name}\n" for name in made))
    for name, content in made.items():
        with atomic_write(folder / name) as file:
            file.write_bytes(content)
    write_text(folder / PAGE, text)
    return folder / PAGE


def _remove_last(folder: Path) -> None:
    """Removes the pictures and sounds that were written here before, and nothing else."""
    with suppress(FileNotFoundError, UnicodeDecodeError):
        for name in (folder / LIST).read_text(encoding="utf-8").splitlines():
            if _OWN.fullmatch(name):  # whatever the list holds, no other file is touched
                (folder / name).unlink(missing_ok=True)


def _medium(stem: str, seen: SeenMedium, made: dict[str, bytes]) -> dict[str, Any]:
    """What the page shows of a medium; its files go to `made`."""
    title = f"{seen.name}: {seen.medium.duration_s:.2f} s"
    image, caption = picture(seen.features, seen.medium, title)
    name = f"{stem}-{seen.name}"
    made[f"{name}.png"] = image
    shown = {"seen": seen, "caption": caption, "image": _uri("image/png", image), "sound": None}
    if seen.medium.values.ndim == 1:
        made[f"{name}.wav"] = sound = wav(seen.medium)
        shown["sound"] = _uri("audio/wav", sound) if len(sound) <= EMBEDDED_BYTES else f"{name}.wav"
    return shown


def _uri(kind: str, data: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"
