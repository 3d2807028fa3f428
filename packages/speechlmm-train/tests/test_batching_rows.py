"""Whether other rows in the place of those that a run was begun with are noticed."""

import json

import numpy as np
import pytest

from speechlmm_core.data.examples import ConcatExamples, SubsetExamples
from speechlmm_core.data.jsonl.config import JsonlDatasetConfig
from speechlmm_train.batching.plan import BatchPlan
from speechlmm_train.batching.rows import digest_of_rows
from speechlmm_train.batching.sequence import changes, sequence_of

ROWS = [{"audio": f"{name}.wav", "text": "ab", "task": "asr", "duration": 1.0} for name in "abcd"]


def opened(folder, rows=ROWS):
    folder.mkdir()
    for row in rows:
        (folder / row["audio"]).write_bytes(b"listed only")
    (folder / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return JsonlDatasetConfig(path="a.jsonl").open(folder)


def digest(examples, indices=(0, 1, 2)):
    return digest_of_rows(ConcatExamples([examples]), np.array(indices))


def test_rows_are_the_same_wherever_they_lie(tmp_path):
    first, second = opened(tmp_path / "first"), opened(tmp_path / "second")
    assert digest(first) == digest(second)
    assert digest(SubsetExamples(first, [0, 1, 2])) == digest(SubsetExamples(second, [0, 1, 2]))


@pytest.mark.parametrize("changed", [{"audio": "e.wav"}, {"text": "ba"}])
def test_another_row_of_the_same_length_is_noticed(tmp_path, changed):
    first, second = opened(tmp_path / "first"), opened(tmp_path / "second", [{**ROWS[0], **changed}, *ROWS[1:]])
    plans = [
        BatchPlan([5, 5, 5], [2, 2, 2], batch_size=1, digest_of_rows=lambda one=one: digest(one))
        for one in (first, second)
    ]
    before, now = map(sequence_of, plans)
    assert changes(before, now) == ["which rows the datasets hold"]
    assert changes({key: value for key, value in before.items() if key != "rows"}, now) == []  # of an older checkpoint


def test_another_choice_of_rows_is_noticed(tmp_path):
    examples = opened(tmp_path / "first")
    found = {digest(examples), digest(examples, (0, 1, 3)), digest(SubsetExamples(examples, [1, 2, 3]))}
    assert len(found) == 3
