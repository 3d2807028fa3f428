"""The line that stands for an intent and its slots."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from speechlmm_core.data.example import Example
from speechlmm_core.errors import DataError
from speechlmm_core.interfaces.task import get_task
from speechlmm_core.tasks.slu.frame import Frame, parse, slots_of, write

words = st.text(st.characters(codec="utf-8"), max_size=12).map(str.strip)
AUDIO = {"audio": {"type": "audio", "path": "a.wav"}}


@given(words.filter(bool), st.lists(st.tuples(words, words), max_size=4))
def test_what_is_written_is_read_back(intent, slots):
    frame = Frame(intent, tuple(slots))
    line = write(frame)
    assert "\n" not in line
    assert json.loads(line) == {"intent": intent, "slots": [{kind: value} for kind, value in slots]}
    assert parse(line) == frame
    assert parse(f"Sure! {line} Anything else?") == frame


@given(st.text(max_size=60))
def test_no_text_breaks_the_reader(text):
    parse(text)
    parse('{"intent": "a", "slots": ' + text)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "alarm_set",
        "{",
        '{"slots": []}',
        '{"intent": 3}',
        '{"intent": "a", "slots": 3}',
        '{"intent": "a", "slots": [3]}',
        '{"intent": "a", "slots": [{"type": "time"} ]',
        "[" * 5000 + "{" * 5000,
    ],
)
def test_what_is_no_frame_gives_none(text):
    assert parse(text) is None


@pytest.mark.parametrize(
    "value",
    [
        [["time", "five am"], ["date", "friday"]],
        [("time", "five am"), ("date", " friday ")],
        [{"time": "five am"}, {"date": "friday"}],
        [{"type": "time", "value": "five am"}, {"slot": "date", "filler": "friday"}],
        [{"type": "time", "filler": "five am", "span": [1, 2]}, {"label": "date", "text": "friday"}],
        {"time": "five am", "date": "friday"},
        {"time": ["five am"], "date": ["friday"]},
        "wake me up at [time : five am] on [date:friday]",
    ],
)
def test_corpora_write_slots_in_many_forms(value):
    assert slots_of(value) == (("time", "five am"), ("date", "friday"))


def test_no_slots_and_wrong_slots():
    assert slots_of(None) == slots_of([]) == slots_of({}) == slots_of("turn it on") == ()
    assert slots_of("wake me at 5:30 or 6 : 15") == ()
    for bad in (3, [3], [["a"]], [{"a": {"b": 1}}], [{"x": 1, "y": 2}], [None]):
        with pytest.raises(DataError):
            slots_of(bad)


def test_the_answer_is_the_line():
    one = Example(
        id="1", media=AUDIO, fields={"intent": "alarm_set", "slots": [{"time": "fünf"}]}, transcript="weck mich"
    )
    (asked, answer) = get_task("slu").messages(one)
    assert answer.content == [{"type": "text", "text": '{"intent": "alarm_set", "slots": [{"time": "fünf"}]}'}]
    assert asked.media[0]["transcript"] == "weck mich"
    assert get_task("slu").references(one) == ('{"intent": "alarm_set", "slots": [{"time": "fünf"}]}',)
    assert get_task("slu_intent").messages(one)[1].content[0]["text"] == "alarm_set"
    written = Example(id="1", media=AUDIO, text='{"slots": {"time": "five"}, "intent": "alarm_set"}')
    assert get_task("slu").references(written) == ('{"intent": "alarm_set", "slots": [{"time": "five"}]}',)


@pytest.mark.parametrize("fields", [{}, {"intent": " "}, {"intent": "a", "slots": 3}])
def test_what_is_missing_is_said(fields):
    fault = get_task("slu").check(Example(id="1", media=AUDIO, text="turn it on", fields=fields))
    assert fault is not None
    assert "slot" in fault or "`fields.intent`" in fault


def test_asking_needs_no_intent():
    (message,) = get_task("slu").messages(Example(id="1", media=AUDIO), with_answer=False)
    assert message.content[-1]["text"] == "Give the intent and the slots of the spoken request as JSON."


@pytest.mark.parametrize(
    "value",
    [
        '[{"type": "time", "value": "five am"}, {"date": "friday"}]',
        ' {"time": "five am", "date": ["friday"]} ',
    ],
)
def test_slots_may_be_written_as_json(value):
    assert slots_of(value) == (("time", "five am"), ("date", "friday"))


@pytest.mark.parametrize(
    "value",
    [
        "garbage time: five",
        "time : five",
        "wake me at [time five]",
        "wake me at [time : five",
        '[{"time": "five"',
        '["time"]',
        '{"time": {"a": 1}}',
    ],
)
def test_slots_that_are_written_in_no_form_are_refused(value):
    # They gave no slots, or pieces of JSON as slots.
    with pytest.raises(DataError):
        slots_of(value)


@pytest.mark.parametrize(("intent", "answer"), [(0, "0"), (3, "3"), (" greet ", "greet")])
def test_intents_may_be_numbers_of_classes(intent, answer):
    one = Example(id="1", media=AUDIO, text="turn it on", fields={"intent": intent})
    assert get_task("slu_intent").messages(one)[1].content[0]["text"] == answer
    assert get_task("slu_intent").references(one) == (answer,)
    assert parse(get_task("slu").references(one)[0]) == Frame(answer)


@pytest.mark.parametrize("task", ["slu", "slu_intent"])
@pytest.mark.parametrize("intent", [{"name": "greet"}, ["greet"], 1.5, True, ""])
def test_intents_that_are_no_names_are_refused(task, intent):
    one = Example(id="1", task=task, media=AUDIO, text="turn it on", fields={"intent": intent})
    assert "`fields.intent`" in (get_task(task).check(one) or "")
    with pytest.raises(DataError, match="example '1'"):
        get_task(task).messages(one)
    assert get_task(task).messages(one, with_answer=False)
