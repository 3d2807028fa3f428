"""Each task of the core names metrics that are installed, and a right answer gets their best value."""

import pytest

from speechlmm_core.data.chats import references_of
from speechlmm_core.data.example import Example
from speechlmm_core.interfaces.metric import Answer, metrics
from speechlmm_core.interfaces.task import get_task, tasks

TEXT = "the quick brown fox jumps over the lazy dog"
FIELDS = {
    "intent": "alarm_set",
    "slots": {"time": "five am"},
    "answers": ["a fox"],
    "words": [{"text": word, "start": n / 2, "end": n / 2 + 0.4} for n, word in enumerate(TEXT.split() * 3)],
}
SHIPPED = [
    name for name, (entry, *_) in sorted(tasks.entry_points().items()) if entry.value.startswith("speechlmm_core.")
]


def test_all_are_looked_at():
    assert len(SHIPPED) == 14


@pytest.mark.parametrize("name", SHIPPED)
def test_a_right_answer_gets_the_best_value(name):
    conversation = [{"role": "user", "content": "Which?"}, {"role": "assistant", "content": TEXT}]
    one = Example.model_validate(
        {
            "id": "1",
            "task": name,
            "media": {"audio": {"type": "audio", "path": "a.wav"}},
            "text": TEXT,
            "fields": FIELDS,
            "messages": conversation if name in ("chat", "multi_turn_text_instruct") else None,
        }
    )
    references = references_of(one)
    assert references
    for metric in get_task(name).metrics:
        config = metrics.validate({"type": metric})
        for reference in references:
            values = config.compute([Answer(reference, references, language="en", fields=one.fields)] * 2)
            best = {"bleu": 100, "chrf": 100}.get(metric, 1 if config.higher_is_better else 0)
            assert next(iter(values.values())) == pytest.approx(best), (metric, values)
        wrong = config.compute([Answer("zzz", references, language="en", fields=one.fields)])
        value = next(iter(wrong.values()))
        assert value < 50 if config.higher_is_better and metric in ("bleu", "chrf") else value != best
