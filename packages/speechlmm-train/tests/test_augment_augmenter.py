"""A list of augmentations on the media of examples: order, chance, lengths, faults before training."""

import pickle
from collections.abc import Sequence
from fractions import Fraction
from itertools import islice
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal

import numpy as np
import pytest
import torch

from speechlmm_core.data.example import Example
from speechlmm_core.errors import DataError, MediaError
from speechlmm_core.interfaces.augmentation import AugmentationConfig
from speechlmm_core.media.medium import Medium
from speechlmm_train.augment.augmenter import Augmenter
from speechlmm_train.augment.gain.config import GainAugmentationConfig
from speechlmm_train.augment.noise.config import NoiseAugmentationConfig
from speechlmm_train.augment.speed.config import SpeedAugmentationConfig
from speechlmm_train.batching.loader import TrainingBatches
from speechlmm_train.batching.plan import BatchPlan

RATE = 16_000


class Add(AugmentationConfig):
    type: Literal["test_add"] = "test_add"
    value: float = 1

    def apply(self, samples: Any, sampling_rate: int, generator: np.random.Generator) -> Any:
        samples += self.value
        return samples


class Multiply(AugmentationConfig):
    type: Literal["test_multiply"] = "test_multiply"

    def apply(self, samples: Any, sampling_rate: int, generator: np.random.Generator) -> Any:
        return samples * 2


class Random(AugmentationConfig):
    type: Literal["test_random"] = "test_random"

    def apply(self, samples: Any, sampling_rate: int, generator: np.random.Generator) -> Any:
        return samples + np.float32(generator.random())


class Encoder:
    """An encoder of 100 frames a second that takes at most 30 s."""

    modality = "audio"
    frame_rate = Fraction(100)

    def check_length(self, num_samples: int) -> None:
        if num_samples > 30 * RATE:
            raise MediaError("too long")

    def output_lengths(self, num_samples: int) -> int:
        return num_samples // 160


class Adapter:
    """An adapter that makes one frame of four."""

    def max_output_lengths(self, num_frames: int, frame_rate: Fraction) -> int:
        return num_frames // 4


def towers(modality: str = "audio") -> Any:
    encoder = Encoder()
    encoder.modality = modality
    return SimpleNamespace(encoder=encoder, adapter=Adapter())


INPUTS = {"audio": towers(), "speaker": towers(), "video": towers("video")}


def medium(num: int = 4) -> Medium:
    return Medium(torch.zeros(num), RATE)


def test_they_are_applied_in_their_order_to_their_inputs() -> None:
    augmenter = Augmenter([Add(), Multiply(), Add(value=10, inputs=("speaker",))], INPUTS)
    transform = augmenter(5)
    loaded = medium()
    assert transform("audio", loaded).values.tolist() == [2.0] * 4
    assert not loaded.values.any()  # what was loaded stays as it is
    assert transform("speaker", medium()).values.tolist() == [10.0] * 4
    video = medium()
    assert transform("video", video) is video


def test_chance_depends_on_the_number_the_medium_and_the_place_alone() -> None:
    augmenter = Augmenter([Random(), Random()], INPUTS)

    def values(number: int, count: int = 3) -> list[float]:
        transform = augmenter(number)
        return [transform("audio", medium()).values[0].item() for _ in range(count)]

    assert values(7) == values(7)
    assert len({*values(7), *values(8)}) == 6
    assert values(7, 2) == values(7)[:2]
    restored = pickle.loads(pickle.dumps(augmenter))
    assert [restored(7)("audio", medium()).values[0].item()] == values(7, 1)


def test_a_probability_is_kept() -> None:
    augmenter = Augmenter([Add(probability=0.3)], INPUTS)
    changed = sum(bool(augmenter(number)("audio", medium()).values.any()) for number in range(1000))
    assert 250 < changed < 350
    assert not Augmenter([Add(probability=0)], INPUTS)(3)("audio", medium()).values.any()


def test_the_longest_that_may_come_out() -> None:
    slow = SpeedAugmentationConfig(factors=(0.5, 1.0))
    augmenter = Augmenter([slow, GainAugmentationConfig()], INPUTS)
    assert augmenter.max_length("audio", 1001) == 2002
    assert augmenter.max_length("video", 1001) == 1001
    assert Augmenter([slow, slow], INPUTS).max_length("audio", 100) == 400
    # Longer than the encoder takes: such a change is left out, so the plan need not count on it.
    assert augmenter.max_length("audio", 20 * RATE) == 30 * RATE
    assert augmenter(1)("audio", medium(20 * RATE)).num_samples == 20 * RATE
    assert augmenter.max_length("audio", 40 * RATE) == 40 * RATE


def test_a_change_that_would_leave_no_frame_is_left_out() -> None:
    fast = Augmenter([SpeedAugmentationConfig(factors=(2.0,))], INPUTS)
    assert fast(0)("audio", medium(700)).num_samples == 700
    assert fast(0)("audio", medium(2000)).num_samples == 1000


def test_faults_come_together_before_training(tmp_path: Path) -> None:
    wrong = [
        GainAugmentationConfig(inputs=("sounds",)),
        GainAugmentationConfig(inputs=("video",)),
        NoiseAugmentationConfig(path="nowhere"),
    ]
    with pytest.raises(DataError) as caught:
        Augmenter.open(wrong, INPUTS, base=tmp_path)
    message = str(caught.value)
    assert "data.augment.0 (gain): the model has no input 'sounds', only audio, speaker, video" in message
    assert "data.augment.1 (gain): the input 'video' is video, no audio" in message
    assert f"data.augment.2 (noise): {tmp_path / 'nowhere'}: no such folder" in message
    assert Augmenter.open([], INPUTS, base=tmp_path) is None


class Processor:
    """Takes what becomes of a medium of zeros for the sample."""

    def sample(self, messages: Sequence[Any], *, with_answer: bool, transform: Any = None) -> Any:
        return transform("audio", medium(1600)).values[:2].tolist()

    def collate(self, samples: Sequence[Any], *, packed: bool = False) -> dict[str, Any]:
        return {"samples": samples}


def chats() -> list[Example]:
    turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    return [Example.model_validate({"id": str(index), "messages": turns}) for index in range(24)]


def test_workers_ranks_and_the_starting_step_change_nothing() -> None:
    augmenter = Augmenter([Random(), SpeedAugmentationConfig(), Random(probability=0.5)], INPUTS)

    def batches(count: int, **options: Any) -> list[Any]:
        plan = BatchPlan([10] * 24, [10] * 24, token_budget=40, micro_batches_per_step=2)
        found = TrainingBatches(chats(), Processor(), plan, augment=augmenter, **options)
        return [batch["samples"] for batch in islice(iter(found), count)]

    straight = batches(24)
    assert batches(18, num_workers=2, start_step=3) == straight[6:24]
    ranks = [batches(12, rank=rank, world_size=2) for rank in range(2)]
    assert [ranks[i % 2][i // 2] for i in range(24)] == straight
    epochs = [sorted(values for batch in straight[start : start + 6] for values in batch) for start in (0, 6)]
    assert epochs[0] != epochs[1]  # drawn anew in every epoch
