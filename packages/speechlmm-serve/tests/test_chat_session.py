"""Conversations: history, media, what stops and what fails."""

from __future__ import annotations

import pytest

from speechlmm_core.errors import DataError, MediaError
from speechlmm_core.inference.engine import InferenceEngine
from speechlmm_core.inference.options import GenerationOptions
from speechlmm_serve.chat.session import ChatSession
from speechlmm_serve.task_prompt import TaskPrompt

OPTIONS = GenerationOptions(max_new_tokens=6)


@pytest.fixture
def session(engine):
    return ChatSession(engine, OPTIONS)


def texts(session):
    return [(m.role, [item.get("path") or item["text"] for item in m.content]) for m in session.history]


def test_history_grows_and_is_sent(session, engine):
    first = "".join(session.ask("one")).strip()
    second = "".join(session.ask("two")).strip()
    assert texts(session) == [("user", ["one"]), ("assistant", [first]), ("user", ["two"]), ("assistant", [second])]
    assert second == engine.answer(session.history[:3], OPTIONS)
    session.reset()
    assert session.history == []
    assert "".join(session.ask("one")).strip() == first


def test_a_file_stays_with_the_first_message(session, engine, clips):
    "".join(session.ask("before"))
    assert session.load(clips / "a.wav") == pytest.approx(engine.prepare(_about(clips / "a.wav")).duration_s)
    assert session.history == []
    "".join(session.ask("what?"))
    answer = "".join(session.ask("and then?")).strip()
    path = str(clips / "a.wav")
    assert [content for _, content in texts(session)][::2] == [[path, "what?"], ["and then?"]]
    # The audio is heard again in the second turn: with another file the same words are answered otherwise.
    assert answer == engine.answer(session.history[:3], OPTIONS)
    other = session.history[0].model_copy(
        update={"content": [{"type": "audio", "path": str(clips / "g.flac")}, {"type": "text", "text": "what?"}]}
    )
    assert answer != engine.answer([other, *session.history[1:3]], OPTIONS)


def _about(path):
    return [{"role": "user", "content": [{"type": "audio", "path": str(path)}]}]


def test_an_unusable_file_keeps_the_conversation(session, mixed):
    "".join(session.ask("one"))
    before = list(session.history)
    for path in sorted(mixed.iterdir()):
        if "good" not in path.name:
            with pytest.raises(MediaError):
                session.load(path)
            assert session.history == before
    assert not session.can_ask_task


def test_a_stopped_answer_stays_as_far_as_it_was_said(engine):
    session = ChatSession(engine, GenerationOptions(max_new_tokens=300))
    pieces = session.ask("one")
    said = next(pieces)
    while not said.strip():
        said += next(pieces)
    pieces.close()
    assert texts(session) == [("user", ["one"]), ("assistant", [said.strip()])]


def test_a_question_that_was_stopped_at_once_is_taken_back(engine, clips, monkeypatch):
    session = ChatSession(engine, OPTIONS, TaskPrompt.of("asr", None, None))
    session.load(clips / "a.wav")

    def interrupted(self, messages, options):
        raise KeyboardInterrupt
        yield ""

    with monkeypatch.context() as patch:
        patch.setattr(InferenceEngine, "stream", interrupted)
        with pytest.raises(KeyboardInterrupt):
            "".join(session.ask_task())
    assert session.history == []
    assert session.can_ask_task, "the file still waits"


def test_an_empty_answer_is_part_of_the_conversation(engine, clips, monkeypatch):
    session = ChatSession(engine, OPTIONS)
    session.load(clips / "a.wav")
    with monkeypatch.context() as patch:
        patch.setattr(InferenceEngine, "stream", lambda self, messages, options: iter(()))
        assert list(session.ask("anything?")) == []
    assert [role for role, _ in texts(session)] == ["user", "assistant"]
    "".join(session.ask("really?"))
    assert len(session.history) == 4


def test_a_failing_answer_leaves_no_trace(engine, monkeypatch):
    session = ChatSession(engine, OPTIONS)

    def broken(self, messages, options):
        yield "half"
        raise DataError("no more")

    monkeypatch.setattr(InferenceEngine, "stream", broken)
    with pytest.raises(DataError):
        "".join(session.ask("one"))
    assert session.history == []


def test_a_conversation_beyond_the_model_is_refused(session):
    with pytest.raises(DataError, match=r"takes \d+ positions, more than the language model has \(1024"):
        "".join(session.ask("x" * 1100))
    assert session.history == []
    "".join(session.ask("shorter"))


def test_the_task_asks_in_its_own_words(engine, clips):
    prompt = TaskPrompt.of("st", "en", "de")
    prompt.check()
    session = ChatSession(engine, OPTIONS, prompt)
    assert not session.can_ask_task
    session.load(clips / "a.wav")
    "".join(session.ask_task())
    ((_, content), _) = texts(session)
    assert content[0] == str(clips / "a.wav")
    assert "English" in content[1]
    assert "German" in content[1]
    assert not session.can_ask_task
