"""Speech-MASSIVE, made in its public layout: Parquet with the bytes of recordings."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import soundfile as sf

from speechlmm_core.errors import DataError

ROWS = {
    ("fr-FR", "train-00000-of-00002"): [
        ("1", "réveille moi à huit heures", "réveille moi à [time : huit heures]", 0.5)
    ],
    ("fr-FR", "train-00001-of-00002"): [("2", "arrête", "arrête", 0.25)],
    ("fr-FR", "train_115-00000-of-00001"): [("1", "réveille moi", "réveille moi", 0.25)],
    ("de-DE", "validation-00000-of-00001"): [
        ("9", "licht im bad und flur an", "licht im [place : bad] und [place : flur] an", 0.75)
    ],
}


def wav(seconds: float) -> bytes:
    file = io.BytesIO()
    sf.write(file, 0.1 * np.sin(np.arange(round(seconds * 16_000)) * 0.05), 16_000, format="WAV")
    return file.getvalue()


def make(root: Path) -> None:
    for (locale, file), rows in ROWS.items():
        partition = file.partition("-")[0]
        columns = {
            "id": [number for number, *_ in rows],
            "locale": [locale] * len(rows),
            "partition": [partition] * len(rows),
            "scenario_str": ["alarm"] * len(rows),
            "intent_idx": [48] * len(rows),
            "intent_str": ["alarm_set"] * len(rows),
            "utt": [text for _, text, _, _ in rows],
            "annot_utt": [annotated for _, _, annotated, _ in rows],
            "tokens": [text.split() for _, text, _, _ in rows],
            "audio": [{"bytes": wav(seconds), "path": f"{number}.wav"} for number, _, _, seconds in rows],
            "path": [f"{partition}/{locale}{number}.wav" for number, *_ in rows],
            "speaker_id": [f"speaker{number}" for number, *_ in rows],
        }
        path = root / locale / f"{file}.parquet"
        path.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(pa.table(columns), path)


def test_speech_massive(made: Any, heard: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPEECHLMM_CACHE", str(tmp_path / "cache"))
    make(made.root)
    parts = made.parts("SpeechMassive", task="SLU", languages=["fr"], partitions=["train", "train_115"])
    assert {name: (part.destination, len(part.examples)) for name, part in parts.items()} == {
        "train/fr": ("train", 2),
        "train_115/fr": ("train", 1),
    }
    first, second = parts["train/fr"].examples
    assert (first.id, first.transcript, first.speaker, first.source_language) == (
        "train/fr-FR1.wav",
        "réveille moi à huit heures",
        "speaker1",
        "fr",
    )
    assert [heard(first), heard(second)] == [8_000, 4_000]
    assert json.loads(parts["train/fr"].examples.chat(0)[-1].content[0]["text"]) == {
        "intent": "alarm_set",
        "slots": [{"time": "huit heures"}],
    }
    (german,) = made.parts("speech_massive", task="slu", languages=["de"], partitions=["validation"]).values()
    assert german.destination == "eval"
    assert json.loads(german.examples.chat(0)[-1].content[0]["text"])["slots"] == [{"place": "bad"}, {"place": "flur"}]
    (intent,) = made.examples("speech_massive", task="slu_intent", languages=["de"], partitions=["validation"])
    assert (intent.fields["intent"], heard(intent)) == ("alarm_set", 12_000)
    (spoken,) = made.examples("speech_massive", task="asr", languages=["de"], partitions=["validation"])
    assert spoken.text == "licht im bad und flur an"
    every = made.examples("speech_massive", task="asr", languages="all", partitions=["train", "validation"])
    assert [e.source_language for e in every] == ["fr", "fr", "de"]
    with pytest.raises(DataError, match=r"no partition 'dev'"):
        made.parts("speech_massive", task="slu", languages=["de"], partitions=["dev"])
