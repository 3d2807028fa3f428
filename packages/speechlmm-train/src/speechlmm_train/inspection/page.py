"""The page of inspected samples, with pictures and sound in it, and the same as files beside it."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

from speechlmm_core.checkpoint.atomic import atomic_write, write_text
from speechlmm_train.inspection.pictures import picture, wav
from speechlmm_train.inspection.sample import SeenMedium, SeenSample

PAGE = "index.html"
EMBEDDED_BYTES = 4 << 20
"""Sound beyond this, two minutes at 16 kHz, is not put into the page, which then plays the file beside it."""


def write_page(
    groups: Sequence[tuple[str, str, Sequence[SeenSample]]], folder: Path, *, model: str, notes: Sequence[str]
) -> Path:
    """Writes `index.html`, and a PNG and a WAV file for each medium.

    Args:
        groups: Datasets: name, what there is to say about it, samples.
        folder: Where to write.
        model: What the samples were made for.
        notes: What the reader should know.

    Returns:
        The page.
    """
    from jinja2 import Environment

    folder.mkdir(parents=True, exist_ok=True)
    source = files("speechlmm_train.inspection").joinpath("page.html.j2").read_text(encoding="utf-8")
    parts: list[dict[str, Any]] = []
    for number, (name, summary, samples) in enumerate(groups):
        shown = [
            {"sample": one, "media": [_medium(f"{number}-{one.index}-{i}", m, folder) for i, m in enumerate(one.media)]}
            for one in samples
        ]
        parts.append({"name": name, "summary": summary, "samples": shown})
    environment = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    text = environment.from_string(source).render(parts=parts, model=model, notes=notes)
    write_text(folder / PAGE, text)
    return folder / PAGE


def _medium(stem: str, seen: SeenMedium, folder: Path) -> dict[str, Any]:
    title = f"{seen.name}: {seen.medium.duration_s:.2f} s"
    image, caption = picture(seen.features, seen.medium, title)
    name = f"{stem}-{seen.name}"
    with atomic_write(folder / f"{name}.png") as file:
        file.write_bytes(image)
    shown = {"seen": seen, "caption": caption, "image": _uri("image/png", image), "sound": None}
    if seen.medium.values.ndim == 1:
        sound = wav(seen.medium)
        with atomic_write(folder / f"{name}.wav") as file:
            file.write_bytes(sound)
        shown["sound"] = _uri("audio/wav", sound) if len(sound) <= EMBEDDED_BYTES else f"{name}.wav"
    return shown


def _uri(kind: str, data: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"
