"""Which inputs the examples of a stage have, and which medium stands in for each."""

from types import SimpleNamespace

import numpy as np

from speechlmm_core.data.example import Example
from speechlmm_core.data.examples import ListExamples
from speechlmm_train.batching.spacers import Spacers

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
