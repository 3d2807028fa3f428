"""Which inputs the examples of a stage have, and which medium stands in for each."""

from types import SimpleNamespace

import numpy as np
import torch
from torch import nn

from speechlmm_core.data.example import Example
from speechlmm_core.data.examples import ListExamples
from speechlmm_train.batching.spacers import Spacers
from speechlmm_train.parallel.touch import statistics_kept

PROCESSOR = SimpleNamespace(inputs={"audio": None, "video": None})
COMMON = {"task": "asr", "source_language": "en", "text": "a"}


KINDS = list(PROCESSOR.inputs)


def example(kinds, number):
    media = {kind: {"type": kind, "path": f"{kind}-{number}"} for kind in kinds.split()}
    return Example(media=media, **{**COMMON, "task": "asr" if len(media) == 1 else "chat"})


class Looked(ListExamples):
    """Notes which examples are made."""

    def __init__(self, examples, shown=()):
        super().__init__(examples)
        self.shown, self.looked = list(shown), []

    def example(self, index):
        self.looked.append(index)
        return super().example(index)

    def shown_first(self):
        return self.shown


def spacers(kinds, frames, *, shown=(), indices=None):
    indices = np.arange(len(kinds)) if indices is None else np.array(indices)
    examples = Looked([example(kind, number) for number, kind in enumerate(kinds)], shown)
    bits = np.array([sum(1 << KINDS.index(one) for one in kind.split()) for kind in kinds], np.uint32)
    found = Spacers.of(PROCESSOR, examples, indices, np.array(frames)[indices], bits[indices])
    return found, examples.looked


def test_the_shortest_of_each_input_is_all_that_is_looked_at():
    kinds, frames = ["audio"] * 900 + ["video"] * 9 + [""], [*range(1000, 100, -1), *range(2009, 2000, -1), 0]
    found, looked = spacers(kinds, frames)
    assert found.numbers == {"audio": 899, "video": 908}
    assert found.media["video"]["path"] == "video-908"
    assert looked == [899, 908]


def test_examples_that_do_not_take_part_stand_in_for_nothing():
    found, looked = spacers(["audio", "video", "audio", "video"], [5, 5, 4, 4], indices=[0, 2])
    assert (found.numbers, looked) == ({"audio": 2}, [2])


def test_an_input_that_never_comes_costs_no_look():
    found, looked = spacers(["audio"] * 50_000, range(60_000, 10_000, -1))
    assert (found.numbers, looked) == ({"audio": 49_999}, [49_999])
    assert spacers([""] * 5, [0] * 5)[0].numbers == {}


def test_an_input_that_is_only_shown_first():
    found, _ = spacers(["audio"] * 3, [3, 2, 1], shown=[example("audio", 8), example("video", 9)])
    assert found.numbers == {"audio": 2, "video": -1}
    assert found.media["video"]["path"] == "video-9"


def test_what_fills_up_changes_no_running_statistics():
    torch.manual_seed(0)
    towers = {name: nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4)) for name in ("audio", "video")}
    model = SimpleNamespace(encoder=towers.get, adapter=lambda name: nn.Identity())
    before = {name: {key: value.clone() for key, value in tower.state_dict().items()} for name, tower in towers.items()}
    with statistics_kept(model, ["video"]):
        outputs = {name: tower(torch.ones(2, 3).cumsum(0)) for name, tower in towers.items()}
    assert torch.allclose(outputs["video"].mean(0), torch.zeros(4), atol=1e-6)  # by the batch's own, as in training
    assert all(torch.equal(value, before["video"][key]) for key, value in towers["video"].state_dict().items())
    assert not torch.equal(towers["audio"][1].running_mean, before["audio"]["1.running_mean"])
    towers["video"](torch.ones(2, 3).cumsum(0))
    assert int(towers["video"][1].num_batches_tracked) == 1
