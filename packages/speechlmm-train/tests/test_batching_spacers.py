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


def example(kind, number):
    return Example(media={kind: {"type": kind, "path": f"{kind}-{number}"}}, **COMMON)


def spacers(kinds, frames, **how):
    examples = ListExamples([example(kind, number) for number, kind in enumerate(kinds)])
    return Spacers.of(PROCESSOR, examples, np.arange(len(kinds)), np.array(frames), **how)


def test_an_input_behind_many_shorter_examples_is_found():
    found = spacers(["audio"] * 12_000 + ["video"] * 3, [20] * 12_000 + [61, 60, 62])
    assert found.numbers == {"audio": 0, "video": 12_001}
    assert found.media["video"]["path"] == "video-12001"


def test_the_shortest_of_each_group_comes_first(monkeypatch):
    looked = []
    before = ListExamples.example
    monkeypatch.setattr(ListExamples, "example", lambda self, index: looked.append(index) or before(self, index))
    kinds, frames = ["audio"] * 900 + ["video"] * 9, [*range(1000, 100, -1), *range(2009, 2000, -1)]
    found = spacers(kinds, frames, members=np.array([0] * 900 + [1] * 9))
    assert found.numbers == {"audio": 899, "video": 908}
    assert looked == [899, 908]


def test_an_input_that_never_comes():
    assert spacers(["audio"] * 5, [5, 4, 3, 2, 0]).numbers == {"audio": 3}
    assert spacers(["audio"] * 5, [0] * 5).numbers == {}


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
