"""Corpora of commands and questions, made in their public layouts: SLURP, Spoken-SQuAD."""

from __future__ import annotations

import json
from typing import Any

import pytest

from speechlmm_core.errors import DataError
from speechlmm_core.tasks.slu.frame import slots_of


def slurp_entry(number: int, words: list[str], entities: list[dict[str, Any]], files: dict[str, float]) -> str:
    return json.dumps(
        {
            "slurp_id": number,
            "sentence": " ".join(words),
            "sentence_annotation": "unused",
            "intent": "alarm_set",
            "action": "set",
            "scenario": "alarm",
            "tokens": [{"surface": word, "id": at, "lemma": word, "pos": "NN"} for at, word in enumerate(words)],
            "recordings": [
                {"file": name, "wer": rate, "ent_wer": 0.0, "status": "correct"} for name, rate in files.items()
            ],
            "entities": entities,
        }
    )


def make_slurp(made: Any) -> None:
    lines = [
        slurp_entry(
            4489,
            ["wake", "me", "at", "eight", "am", "on", "friday"],
            [{"span": [6], "type": "date"}, {"span": [3, 4], "type": "time"}],
            {"audio-1-headset.flac": 0.0, "audio-1.flac": 0.25},
        ),
        slurp_entry(17, ["stop"], [], {"audio-2-headset.flac": 0.0}),
    ]
    made.text("dataset/slurp/devel.jsonl", "\n".join(lines) + "\n")
    made.text("dataset/slurp/train_synthetic.jsonl", slurp_entry(3, ["go"], [], {"audio-s.flac": 0.0}) + "\n")
    speakers = {
        "4489": {"recordings": {"audio-1-headset.flac": {"usrid": "FO-488"}, "audio-1.flac": {"usrid": "FO-488"}}}
    }
    made.text("dataset/slurp/metadata.json", json.dumps(speakers))
    for name, seconds in {"audio-1-headset": 0.5, "audio-1": 0.75, "audio-2-headset": 0.25}.items():
        made.audio(f"audio/slurp_real/{name}.flac", seconds)
    made.audio("audio/slurp_synth/audio-s.flac", 1.0)


def test_slurp(made: Any, heard: Any) -> None:
    make_slurp(made)
    (part,) = made.parts("Slurp", task="SLU", partitions=["devel"]).values()
    found = list(part.examples)
    assert part.destination == "eval"
    assert [(e.id, e.transcript, e.speaker, e.quality, heard(e)) for e in found] == [
        ("audio-1-headset", "wake me at eight am on friday", "FO-488", 1.0, 8_000),
        ("audio-1", "wake me at eight am on friday", "FO-488", 0.75, 12_000),
        ("audio-2-headset", "stop", None, 1.0, 4_000),
    ]
    assert {example.fields["intent"] for example in found} == {"alarm_set"}
    assert slots_of(found[0].fields["slots"]) == (("time", "eight am"), ("date", "friday"))
    assert slots_of(found[2].fields["slots"]) == ()
    chat = part.examples.chat(0)
    assert json.loads(chat[-1].content[0]["text"]) == {
        "intent": "alarm_set",
        "slots": [{"time": "eight am"}, {"date": "friday"}],
    }
    close = made.examples("slurp", task="slu_intent", partitions=["devel"], microphone="headset")
    assert [example.id for example in close] == ["audio-1-headset", "audio-2-headset"]
    far = made.examples("slurp", task="asr", partitions=["devel"], microphone="distant")
    assert [(example.id, example.text) for example in far] == [("audio-1", "wake me at eight am on friday")]
    (synthetic,) = made.examples("slurp", task="asr", partitions=["train_synthetic"])
    assert heard(synthetic) == 16_000


def test_what_is_wrong_with_slurp_is_one_line(made: Any) -> None:
    with pytest.raises(DataError, match=r"holds no dataset/slurp/\{partition\}.jsonl"):
        made.parts("slurp", task="slu", partitions=["train"])
    make_slurp(made)
    with pytest.raises(DataError, match=r"no partition 'dev'; did you mean 'devel'\?"):
        made.parts("slurp", task="slu", partitions=["dev"])
    made.text("dataset/slurp/devel.jsonl", '{"slurp_id": 1}\n[]\n{\n')
    with pytest.raises(DataError) as caught:
        made.parts("slurp", task="slu", partitions=["devel"])
    assert [line.partition(": ")[0].rpartition("/")[2] for line in str(caught.value).splitlines()[1:]] == [
        "devel.jsonl:1",
        "devel.jsonl:2",
        "devel.jsonl:3",
    ]
    made.text("dataset/slurp/devel.jsonl", "[" * 100_000 + "\n" + '{"slurp_id": "\\ud800"}\n')
    with pytest.raises(DataError) as caught:
        made.parts("slurp", task="slu", partitions=["devel"])
    assert "devel.jsonl:1: not an annotation of SLURP (ValueError: brackets are nested too deeply)" in str(caught.value)
    assert "devel.jsonl:2: not an annotation of SLURP (UnicodeEncodeError" in str(caught.value)
    make_slurp(made)
    made.text("dataset/slurp/metadata.json", "[]")
    with pytest.raises(DataError, match=r"metadata.json' is not the metadata of SLURP"):
        made.parts("slurp", task="slu", partitions=["devel"])


def make_spoken_squad(made: Any) -> None:
    passages = [
        {
            "context": "the tower is tall it is of iron",
            "qas": [
                {
                    "id": "q1",
                    "question": " What is it made of? ",
                    "answers": [{"text": "iron", "answer_start": 27}, {"text": "of iron", "answer_start": 24}],
                },
                {"id": "q2", "question": "What is tall?", "answers": [{"text": "the tower", "answer_start": 0}]},
            ],
        },
        {
            "context": "paris",
            "qas": [{"id": "q3", "question": "Where?", "answers": [{"text": "paris", "answer_start": 0}]}],
        },
    ]
    content = {"version": "1.1", "data": [{"title": "Tower", "paragraphs": passages}]}
    made.text("spoken_test-v1.1.json", json.dumps(content))
    for at in (10, 0, 2):  # ten sorts before two as text, and after it as a number
        made.audio(f"Spoken-SQuAD_audio/dev_wav/0_0_{at}.wav", 0.25 + at / 10, rate=24_000)
    made.audio("Spoken-SQuAD_audio/dev_wav/0_1_0.wav", 0.5, rate=24_000)


def test_spoken_squad(made: Any, heard: Any) -> None:
    make_spoken_squad(made)
    (part,) = made.parts("SpokenSQuAD", task="SQA").values()
    first, second, third = part.examples
    assert (first.id, second.id, third.id, part.destination) == ("q1", "q2", "q3", "test")
    assert (first.instruction, first.text, first.fields["answers"]) == (
        "What is it made of?",
        "iron",
        ["iron", "of iron"],
    )
    assert first.task_config.references(first) == ("iron", "of iron")
    chat = part.examples.chat(0)
    assert [m.role for m in chat] == ["user", "assistant"]
    assert [item["path"].rpartition("/")[2] for item in chat[0].media] == ["0_0_0.wav", "0_0_2.wav", "0_0_10.wav"]
    assert chat[0].content[-1] == {"type": "text", "text": "What is it made of?"}
    assert chat[1].content == [{"type": "text", "text": "iron"}]
    assert third.messages is None
    assert heard(third) == 8_000
    assert "Where?" in part.examples.chat(2)[0].content[-1]["text"]


def test_what_is_wrong_with_spoken_squad_is_one_line(made: Any) -> None:
    make_spoken_squad(made)
    (made.root / "Spoken-SQuAD_audio/dev_wav/0_1_0.wav").unlink()
    with pytest.raises(DataError, match=r"article 0, paragraph 1: there is no recording of this passage"):
        made.parts("spoken_squad", task="sqa")
    made.text("spoken_train-v1.1.json", '{"data": [{"paragraphs": [{}]}]}')
    with pytest.raises(DataError, match=r"no recordings of 'train': expected .*_audio/train_wav or train_wav"):
        made.parts("spoken_squad", task="sqa", partitions=["train"])
    (made.root / "train_wav").mkdir()
    with pytest.raises(DataError, match=r"spoken_train-v1.1.json' is not JSON of SQuAD's form: KeyError: 'context'"):
        made.parts("spoken_squad", task="sqa", partitions=["train"])
