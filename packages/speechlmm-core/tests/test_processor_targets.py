"""What transcripts decide in a batch: positions that are planned for adapters that meet them, and empty targets."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from speechlmm_core.interfaces.objective import ObjectiveConfig
from speechlmm_core.processor.targets import pad_targets


@pytest.fixture
def meeting(tiny_processor, monkeypatch):
    """A processor of a model whose adapters put out what the content asks for, or what they are told."""
    adapter = type(tiny_processor.inputs["audio"].adapter)
    monkeypatch.setattr(adapter, "output_lengths", lambda self, num_frames, frame_rate: None)
    monkeypatch.setattr(adapter, "meets_target_lengths", True, raising=False)
    return tiny_processor


def planned(processor, chat, **options):
    """Frames of each medium, and positions in all: as laid out, and as foretold without loading the media."""
    sample = processor.sample(chat, **options)
    samples = [medium.num_samples for _, medium in sample.media]
    positions, _ = processor.sizes(chat, samples, **options)
    assert positions == sample.layout.num_positions
    return sample.layout.num_frames


@pytest.mark.parametrize("text", ["", "hello you", "many more letters than the thirty-one frames that there are"])
def test_a_position_for_each_token_is_planned_and_no_more(meeting, conversation, text):
    chat = conversation(10_000, text, speaker=4_000)
    chat[-1]["content"] = "an answer"
    bound = 10_000 // 320
    expected = min(len(meeting.tokenizer.encode(text)) if text else 0, bound)
    assert planned(meeting, chat, with_answer=True) == [4_000 // 320, expected]
    batch = meeting.collate([meeting.sample(chat, with_answer=True)])
    audio = batch["media"]["audio"]
    assert (audio["num_frames"], audio["lengths"].tolist()) == (expected, [expected])
    assert batch["splice"]["num_frames"] == [
        {"audio": expected, "speaker": 4_000 // 320}[name] for name in meeting.inputs
    ]


def test_what_is_to_be_generated_does_not_lean_on_the_transcript(meeting, conversation):
    chat = conversation(10_000, "hello you")
    assert planned(meeting, chat[:1], with_answer=False) == [10_000 // 320]
    batch = meeting.collate([meeting.sample(chat[:1], with_answer=False)], padding_side="left")
    assert batch["media"]["audio"]["lengths"].tolist() == [10_000 // 320]
    assert "target_lengths" not in batch["media"]["audio"]


def test_the_bound_is_planned_where_no_length_is_met_or_known(meeting, conversation, monkeypatch):
    chat = conversation(10_000, "hello you")
    chat[0]["content"][0].pop("transcript")
    assert planned(meeting, chat, with_answer=True) == [10_000 // 320]
    monkeypatch.setattr(type(meeting.inputs["audio"].adapter), "meets_target_lengths", False)
    assert planned(meeting, conversation(10_000, "hello you"), with_answer=True) == [10_000 // 320]


@pytest.mark.parametrize("accepts", [False, True])
def test_empty_targets(accepts):
    objective = SimpleNamespace(accepts_empty_targets=accepts, min_frames=len)
    counts = dict.fromkeys(("x_targets", "x_valid", "x_infeasible"), 0)
    targets = [[], None, [3, 4], [1, 1, 1]]
    found = pad_targets(objective, targets, torch.tensor([5, 5, 5, 2]), counts, "x")
    assert found["valid"].tolist() == [accepts, False, True, False]
    assert found["lengths"].tolist() == [0, 0, 2, 0]
    assert counts == {"x_targets": 2, "x_valid": 1 + accepts, "x_infeasible": 1}
    assert found["ids"].tolist()[2] == [3, 4, 0]
    assert ObjectiveConfig.accepts_empty_targets.fget(objective) is False
