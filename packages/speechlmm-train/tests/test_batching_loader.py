import json
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch

from speechlmm_core.data.spec.open import open_datasets
from speechlmm_core.errors import ConfigError, MediaError
from speechlmm_train.batching.loader import TrainingBatches
from speechlmm_train.batching.plan import BatchPlan


class Processor:
    """A processor that makes a sample of the words of a conversation."""

    def sample(self, messages: Sequence[Any], *, with_answer: bool, transform: Any = None) -> tuple[str, str]:
        prompt = next(i["text"] for i in messages[0].content if i["type"] == "text")
        path = messages[0].media[0]["path"]
        if Path(path).name == "broken.wav":
            raise MediaError(f"{path}: broken")
        return prompt, messages[-1].content[0]["text"]

    def collate(self, samples: Sequence[Any], *, packed: bool = False) -> dict[str, Any]:
        return {
            "prompts": [prompt for prompt, _ in samples],
            "answers": [answer for _, answer in samples],
            "packed": packed,
            "tensor": torch.tensor([int(answer) for _, answer in samples]),
            "threads": torch.get_num_threads(),
        }


@pytest.fixture
def examples(tmp_path: Path) -> Any:
    (tmp_path / "a.wav").write_bytes(b"RIFF")
    lines = [{"audio": "a.wav", "text": str(i)} for i in range(40)]
    (tmp_path / "m.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return open_datasets(["m.jsonl"], tmp_path)


def plan_for(examples: Any, **kwargs: Any) -> BatchPlan:
    positions = [10 + i % 7 for i in range(len(examples))]
    return BatchPlan(positions, positions, **({"token_budget": 50, "micro_batches_per_step": 4} | kwargs))


def first(batches: Iterator[Any] | TrainingBatches, count: int) -> list[Any]:
    return [(batch["answers"], batch["prompts"]) for batch in islice(batches, count)]


def test_batches_follow_the_plan(examples: Any) -> None:
    plan = plan_for(examples)
    got = first(iter(TrainingBatches(examples, Processor(), plan, num_workers=0)), 40)
    assert [[int(a) for a in answers] for answers, _ in got] == [
        batch for step in range(10) for batch in plan.step(step)
    ]
    assert len({prompt for _, prompts in got for prompt in prompts}) > 1


def test_workers_ranks_and_the_starting_step_change_nothing(examples: Any) -> None:
    plan = plan_for(examples)
    straight = first(iter(TrainingBatches(examples, Processor(), plan)), 48)
    for workers in (1, 3):
        batches = TrainingBatches(examples, Processor(), plan_for(examples), num_workers=workers, start_step=5)
        assert first(iter(batches), 20) == straight[20:40]
    for world_size in (2, 4):
        ranks = [
            first(
                iter(TrainingBatches(examples, Processor(), plan, rank=rank, world_size=world_size)), 48 // world_size
            )
            for rank in range(world_size)
        ]
        assert [ranks[i % world_size][i // world_size] for i in range(48)] == straight


def test_steps_and_worker_threads(examples: Any) -> None:
    batches = TrainingBatches(examples, Processor(), plan_for(examples), world_size=2, num_workers=1, prefetch_factor=1)
    step = next(batches.steps())
    assert len(step) == 2
    assert all(batch["threads"] == 1 and batch["packed"] for batch in step)


def test_the_global_generator_is_left_alone(examples: Any) -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    first(iter(TrainingBatches(examples, Processor(), plan_for(examples), num_workers=1)), 3)
    assert torch.equal(torch.rand(3), expected)


def test_a_subset_keeps_the_dataset_s_numbers(examples: Any) -> None:
    kept = [3, 5, 8, 13]
    plan = BatchPlan([1] * 4, [1] * 4, batch_size=4, packed=False)
    (batch,) = islice(TrainingBatches(examples, Processor(), plan, indices=kept), 1)
    assert sorted(batch["tensor"].tolist()) == kept
    assert not batch["packed"]


@pytest.mark.parametrize("workers", [0, 2])
def test_a_broken_file_is_named_with_its_line(tmp_path: Path, workers: int) -> None:
    (tmp_path / "a.wav").write_bytes(b"RIFF")
    (tmp_path / "broken.wav").write_bytes(b"RIFF")
    lines = [{"audio": "broken.wav" if i == 6 else "a.wav", "text": str(i), "id": f"utt{i}"} for i in range(10)]
    (tmp_path / "m.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    examples = open_datasets(["m.jsonl"], tmp_path)
    batches = TrainingBatches(examples, Processor(), BatchPlan([1] * 10, [1] * 10, batch_size=2), num_workers=workers)
    with pytest.raises(MediaError, match=rf"^{tmp_path}/m\.jsonl:7: example 'utt6': {tmp_path}/broken\.wav: broken$"):
        list(islice(batches, 5))
    advised = TrainingBatches(examples, Processor(), batches.plan, num_workers=workers, advice="prepare it")
    with pytest.raises(MediaError, match=r"broken\.wav: broken; prepare it$"):
        list(islice(advised, 5))


def test_ranks_are_checked_at_once(examples: Any) -> None:
    with pytest.raises(ConfigError, match="3 ranks cannot share"):
        TrainingBatches(examples, Processor(), plan_for(examples), world_size=3)
    with pytest.raises(ValueError, match="rank must lie in"):
        TrainingBatches(examples, Processor(), plan_for(examples), rank=2, world_size=2)
