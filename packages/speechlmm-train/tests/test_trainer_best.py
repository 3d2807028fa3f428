"""What a run remembers of its evaluations."""

import logging

from speechlmm_train.trainer.best import Rule, RunState


def test_unlike_figures_are_not_compared():
    state = RunState()
    assert state.judge("a", {"eval/asr_wer": 0.2}, rule=Rule("eval/asr_wer", greater=False), step=10) == (True, False)
    bleu = Rule("eval/st_bleu", greater=True, patience=2)
    assert state.judge("a", {"eval/asr_wer": 0.9, "eval/st_bleu": 0.1}, rule=bleu, step=20) == (True, False)
    assert (state.best["a"].figure, state.best["a"].step) == ("eval/st_bleu", 20)
    assert state.judge("a", {"eval/st_bleu": 0.05}, rule=bleu, step=30) == (False, False)
    accuracy = Rule("eval/slu_accuracy", greater=True, patience=2)
    assert state.judge("a", {"eval/slu_accuracy": 0.01}, rule=accuracy, step=40) == (True, False)
    assert state.stale["a"] == 0
    turned = Rule("eval/slu_accuracy", greater=False)
    assert state.judge("a", {"eval/slu_accuracy": 0.5}, rule=turned, step=50) == (True, False)
    other = Rule("eval/slu_accuracy", greater=False, measured="a larger sample")
    assert state.judge("a", {"eval/slu_accuracy": 0.6}, rule=other, step=60) == (True, False)
    assert not state.forget_unlike("a", other)


def test_a_damaged_state_is_told(tmp_path, caplog):
    state = RunState(stale={"a": 2}, guards={"a": {"guard/asr_wer": [0.5, 0.6, 3]}})
    state.write(tmp_path)
    assert RunState.read(tmp_path) == state
    with caplog.at_level(logging.WARNING):
        assert RunState.read(tmp_path / "nothing") == RunState()
        assert not caplog.records
        (tmp_path / "evaluation_state.json").write_text('{"best": ')
        assert RunState.read(tmp_path) == RunState()
    assert "evaluation_state.json cannot be read" in caplog.text
