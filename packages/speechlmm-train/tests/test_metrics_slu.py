"""Intents and slots against counts made by hand."""

import json

import numpy as np
import pytest

from speechlmm_core.interfaces.metric import Answer
from speechlmm_train.metrics.slu import IntentAccuracyConfig, SlotF1Config


def line(intent, *slots):
    return json.dumps({"intent": intent, "slots": [dict([slot]) for slot in slots]})


GIVEN = [
    Answer(line("alarm_set", ("time", "5 AM."), ("date", "friday")), (line("alarm_set", ("time", "5 am")),)),
    Answer(line("play", ("song", "yesterday")), (line("music_play", ("song", "Yesterday"), ("artist", "who")),)),
    Answer("Sorry?", (line("quit"),)),
    Answer("Music_Play", ("music_play",)),
    Answer("", (line("stop", ("when", "now"), ("when", "now")),)),
]


def test_counts_by_hand():
    assert IntentAccuracyConfig().compute(GIVEN) == {"intent_accuracy": 2 / 5, "intent_accuracy_answers": 5}
    assert SlotF1Config().statistics(GIVEN).tolist() == [[1, 1, 0], [1, 0, 1], [0, 0, 0], [0, 0, 0], [0, 0, 2]]
    values = SlotF1Config().compute(GIVEN)
    assert values["slot_f1"] == pytest.approx(2 * (2 / 3) * (2 / 5) / (2 / 3 + 2 / 5))
    assert (values["slot_f1_precision"], values["slot_f1_recall"]) == (2 / 3, 2 / 5)


def test_the_nearest_reference_counts():
    given = Answer(line("a", ("x", "1")), (line("b", ("y", "2"), ("z", "3")), line("a", ("x", "1"), ("z", "3"))))
    assert SlotF1Config().statistics([given]).tolist() == [[1, 0, 1]]
    assert IntentAccuracyConfig().compute([given])["intent_accuracy"] == 1
    assert SlotF1Config().score(np.zeros(3))["slot_f1"] == 1
