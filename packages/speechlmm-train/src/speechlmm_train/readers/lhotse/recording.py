"""From lhotse's recordings, supervisions and cuts, as JSON has them, to records. Imports no torch."""

from __future__ import annotations

import base64
import binascii
import math
import os
from collections.abc import Mapping
from typing import Any

from speechlmm_core.tasks.languages import NAMES
from speechlmm_train.readers.table.dialect import RowError

WHOLE_S = 0.01
"""A segment that ends so close to its recording's end is not cut."""
HARMLESS = frozenset({"Resample"})
"""Transforms that need not be carried out: audio is resampled as the model needs it."""
CODES = {name.lower(): code for code, name in NAMES.items()}
SHAR = "shar"


def audio_item(recording: Mapping[str, Any], channels: list[int] | None, root: str) -> dict[str, Any]:
    """Where the audio of a recording is.

    Args:
        recording: lhotse's `Recording`.
        channels: Channels that are meant; None for all.
        root: Folder where relative paths start.

    Raises:
        RowError: It is no recording, or its audio cannot or must not be got.
    """
    done = recording.get("transforms") or []
    names = [str(one.get("name") if isinstance(one, Mapping) else one) for one in done]
    if undone := [name for name in names if name not in HARMLESS]:
        raise RowError(
            f"the recording {recording.get('id')!r} is to be changed by {', '.join(undone)}, which is not done "
            "here; save its audio in lhotse (CutSet.save_audios), or use augmentation"
        )
    sources = recording.get("sources")
    if not isinstance(sources, list) or not sources or not all(isinstance(one, Mapping) for one in sources):
        raise RowError(f"the recording {recording.get('id')!r} has no `sources`")
    fitting = [one for one in sources if channels is None or set(channels) & set(_channels(one))]
    if len(fitting) != 1:
        raise RowError(
            f"the recording {recording.get('id')!r} is spread over {len(fitting)} files for the channels {channels}; "
            "use cuts of one channel, or save its audio in lhotse (CutSet.save_audios)"
        )
    item = _source(fitting[0], recording, root)
    own = _channels(fitting[0])
    if channels is not None and set(channels) != set(own):
        if len(channels) != 1:
            raise RowError(
                f"{len(channels)} of {len(own)} channels of {recording.get('id')!r} are asked for; use one, or all"
            )
        item["channel"] = own.index(channels[0])
    return item


def _source(source: Mapping[str, Any], recording: Mapping[str, Any], root: str) -> dict[str, Any]:
    kind, place = source.get("type"), source.get("source")
    name = recording.get("id")
    if kind == "file" and isinstance(place, str) and place and "\0" not in place:
        return {"path": os.path.join(root, os.path.expanduser(place))}
    if kind == SHAR:
        return {SHAR: True}
    if kind == "command":
        raise RowError(
            f"the recording {name!r} is the output of a command, which is never run; save its audio to files"
        )
    if kind == "url":
        raise RowError(f"the recording {name!r} is at {place!r:.100}; download it, and make the manifest for the files")
    if kind == "memory" and isinstance(place, str):
        try:
            return {"bytes": base64.b64decode(place, validate=True), "member": str(name)}
        except (binascii.Error, ValueError) as exc:
            raise RowError(f"the recording {name!r} holds its data as text that is not base64 ({exc})") from exc
    raise RowError(f"the recording {name!r} has a source of type {kind!r}; expected a file")


def supervision_record(
    supervision: Mapping[str, Any], recording: Mapping[str, Any], root: str, languages: Mapping[str, str]
) -> dict[str, Any]:
    """The record of a supervision whose times are those of its recording.

    Raises:
        RowError: What is wrong with it.
    """
    item = audio_item(recording, _wanted(supervision, recording), root)
    start, duration = number(supervision, "start"), number(supervision, "duration")
    return {**_told(supervision, languages), "audio": segment(item, recording, start, start + duration)}


def cut_records(cut: Mapping[str, Any], unit: str, root: str, languages: Mapping[str, str]) -> list[dict[str, Any]]:
    """The records of a cut.

    Raises:
        RowError: What is wrong with it.
    """
    cut = _unpadded(cut)
    recording = cut.get("recording")
    if not isinstance(recording, Mapping):
        raise RowError(f"the cut {cut.get('id')!r} has no recording; features alone are not read")
    supervisions = cut.get("supervisions") or []
    if not isinstance(supervisions, list) or not all(isinstance(one, Mapping) for one in supervisions):
        raise RowError(f"the cut {cut.get('id')!r} has `supervisions` that are no list of objects")
    start, length = number(cut, "start"), number(cut, "duration")
    if unit == "cut" or not supervisions:
        item = audio_item(recording, _wanted(cut, recording), root)
        told = [_told(one, languages) for one in supervisions]
        texts = [one["text"] for one in told if one["text"]]
        shared = {
            key: told[0][key] for key in ("language", "speaker", "gender") if len({str(x[key]) for x in told}) == 1
        }
        whole = {
            **dict.fromkeys(("language", "speaker", "gender", "alignment")),
            **shared,
            "id": str(cut.get("id")),
            "text": " ".join(texts) or None,
            "duration": length,
            "recording_id": recording.get("id"),
            "custom": cut.get("custom") or {},
            "cut_id": cut.get("id"),
        }
        return [{**whole, "audio": segment(item, recording, start, start + length)}]
    found: list[dict[str, Any]] = []
    for one in supervisions:
        # Its times are those of the cut, which it may reach out of.
        first = max(0.0, number(one, "start"))
        last = min(length, number(one, "start") + number(one, "duration"))
        if last <= first:
            raise RowError(f"the supervision {one.get('id')!r} lies outside its cut {cut.get('id')!r}")
        item = audio_item(recording, _wanted(one if one.get("channel") is not None else cut, recording), root)
        record = {**_told(one, languages), "cut_id": cut.get("id"), "duration": round(last - first, 6)}
        record["custom"] = {**(cut.get("custom") or {}), **record["custom"]}
        found.append({**record, "audio": segment(item, recording, start + first, start + last)})
    return found


def segment(item: dict[str, Any], recording: Mapping[str, Any], start: float, end: float) -> dict[str, Any]:
    """An item's part from ``start`` to ``end`` seconds; the whole where these are its recording's."""
    length = number(recording, "duration")
    if start >= end or start >= length:
        raise RowError(f"{start:g} to {end:g} s is no part of the recording {recording.get('id')!r} of {length:g} s")
    found = dict(item)
    if start > 0:
        found["start"] = round(start, 6)
    if end < length - WHOLE_S:
        found["end"] = round(end, 6)
    return found


def number(values: Mapping[str, Any], key: str) -> float:
    """Seconds.

    Raises:
        RowError: They are none.
    """
    value = values.get(key, 0.0 if key == "start" else None)
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise RowError(f"{values.get('id')!r}: `{key}` must be a number of seconds, got {value!r:.60}")
    return float(value)


def _told(supervision: Mapping[str, Any], languages: Mapping[str, str]) -> dict[str, Any]:
    language = supervision.get("language")
    if isinstance(language, str):
        language = languages.get(language) or CODES.get(language.lower()) or language
    return {
        "id": str(supervision.get("id")),
        "text": supervision.get("text") or None,
        "language": language,
        "speaker": supervision.get("speaker"),
        "gender": supervision.get("gender"),
        "duration": number(supervision, "duration"),
        "recording_id": supervision.get("recording_id"),
        "cut_id": None,
        "custom": supervision.get("custom") or {},
        "alignment": supervision.get("alignment"),
    }


def _unpadded(cut: Mapping[str, Any]) -> Mapping[str, Any]:
    """The one cut within a mixed one that only pads it."""
    kind = cut.get("type")
    if kind in ("MonoCut", "MultiCut", "Cut"):
        return cut
    if kind != "MixedCut":
        raise RowError(f"expected a cut, got {'a ' + kind if isinstance(kind, str) else 'an object without a `type`'}")
    tracks = cut.get("tracks")
    inner = [one for one in tracks if isinstance(one, Mapping)] if isinstance(tracks, list) else []
    real = [one for one in inner if not _is_padding(one.get("cut"))]
    if len(real) != 1 or real[0].get("offset") or cut.get("transforms") or not isinstance(real[0].get("cut"), Mapping):
        raise RowError(
            f"the cut {cut.get('id')!r} mixes several, which is not done here; save its audio in lhotse "
            "(CutSet.save_audios)"
        )
    return {"type": "MonoCut", **real[0]["cut"], "id": cut.get("id")}


def _is_padding(cut: Any) -> bool:
    return (
        isinstance(cut, Mapping)
        and "recording" not in cut
        and ("num_samples" in cut or cut.get("type") == "PaddingCut")
    )


def _wanted(one: Mapping[str, Any], recording: Mapping[str, Any]) -> list[int] | None:
    """Channels that a cut or a supervision is about; None for all of the recording's."""
    channel = one.get("channel")
    wanted = [channel] if isinstance(channel, int) else channel
    if wanted is None:
        return None
    if not isinstance(wanted, list) or not wanted or not all(isinstance(c, int) for c in wanted):
        raise RowError(f"{one.get('id')!r}: `channel` must be a number or a list of them, got {channel!r:.60}")
    sources = recording.get("sources")
    if not sources:
        return wanted
    own = (
        {c for one in sources if isinstance(one, Mapping) for c in _channels(one)}
        if isinstance(sources, list)
        else set()
    )
    if not set(wanted) <= own:
        raise RowError(
            f"{one.get('id')!r}: the recording {recording.get('id')!r} has no channel {wanted}, but {sorted(own)}"
        )
    return None if set(wanted) == own else wanted


def _channels(source: Mapping[str, Any]) -> list[int]:
    channels = source.get("channels")
    return [c for c in channels if isinstance(c, int)] if isinstance(channels, list) else []
