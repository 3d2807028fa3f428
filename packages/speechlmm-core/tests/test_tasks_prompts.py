"""Tasks: the chats they make, the prompts they draw, and what they find missing."""

import re

import pytest

from speechlmm_core.chat.messages import Message
from speechlmm_core.data.example import Example
from speechlmm_core.errors import ConfigError, DataError
from speechlmm_core.interfaces.task import get_task, tasks
from speechlmm_core.tasks.languages import NAMES, language_name

AUDIO = {"type": "audio", "path": "a.wav", "start": 1.0}
LANGUAGES = {"source_language": "de", "target_language": "pt-BR"}


def example(task="asr", **fields):
    return Example(**{"id": "1", "task": task, "media": {"audio": AUDIO}, "text": "turn it on", **fields})


def shown(messages):
    return [
        (m.role, [item.get("text", item) if item["type"] == "text" else item for item in m.content]) for m in messages
    ]


def test_recognition():
    messages = get_task("asr").messages(example())
    assert shown(messages) == [
        ("user", [{**AUDIO, "transcript": "turn it on"}, "Transcribe the audio."]),
        ("assistant", ["turn it on"]),
    ]
    assert shown(get_task("asr").messages(example(), with_answer=False)) == shown(messages)[:1]


def test_recognition_with_a_transcript_of_its_own():
    messages = get_task("asr").messages(example(transcript="TURN IT ON"))
    assert messages[0].media == [{**AUDIO, "transcript": "TURN IT ON"}]
    assert messages[1].content[0]["text"] == "turn it on"
    given = {**AUDIO, "transcript": "mine"}
    assert get_task("asr").messages(example(media={"audio": given}))[0].media == [given]


def test_translation_keeps_transcript_and_answer_apart():
    messages = get_task("st").messages(example("st", text="ligue", transcript="mach an", **LANGUAGES))
    assert shown(messages) == [
        ("user", [{**AUDIO, "transcript": "mach an"}, "Translate the speech from German into Portuguese."]),
        ("assistant", ["ligue"]),
    ]
    (medium,) = get_task("st").messages(example("st", **LANGUAGES))[0].media
    assert "transcript" not in medium


def test_several_media_keep_their_order_and_get_no_transcript():
    media = {"speaker": {"type": "speaker", "path": "s.wav"}, "audio": AUDIO}
    messages = get_task("asr").messages(example(media=media))
    assert messages[0].media == [media["speaker"], AUDIO]


def test_sound_and_picture_of_one_recording_get_its_transcript():
    media = {"video": {"type": "video", "path": "v.mp4"}, "audio": {**AUDIO, "transcript": "its own"}}
    messages = get_task("asr").messages(example(media=media, text="turn it on"))
    assert messages[0].media == [{**media["video"], "transcript": "turn it on"}, media["audio"]]


def test_chat_passes_conversations_through():
    conversation = [
        Message(role="user", content=[{"type": "audio", "path": "a.wav", "transcript": "hi"}]),
        Message(role="assistant", content="hello"),
    ]
    one = Example(messages=conversation)
    assert get_task("chat").check(one) is None
    assert get_task("chat").messages(one) == conversation
    assert get_task("chat").messages(one, with_answer=False) == conversation[:1]
    assert get_task("chat").messages(Example(messages=conversation[:1]), with_answer=False) == conversation[:1]


@pytest.mark.parametrize("name", ["asr", "st"])
def test_the_draws_lead_to_every_wording(name):
    task = get_task(name)
    wordings = task.prompts()
    assert len(wordings) >= 8
    one = example(name, **LANGUAGES)
    draws = task.draws(one)
    assert draws[0] == 0
    drawn = [task.messages(one, draw=draw, with_answer=False)[0].content[-1]["text"] for draw in draws]
    assert len(set(drawn)) == len(draws) == len(wordings)
    assert not any(re.search(r"[{}]", text) for text in drawn)
    if name == "st":
        assert all("German" in text and "Portuguese" in text for text in drawn)


@pytest.mark.parametrize(
    ("task", "fields", "missing"),
    [
        ("asr", {"media": {}}, "needs a medium"),
        ("asr", {"text": None}, "needs a `text`"),
        ("asr", {"text": " "}, "needs a `text`"),
        ("st", {"target_language": "de"}, "needs a `source_language`"),
        ("st", {"source_language": "de"}, "needs a `target_language`"),
        (
            "st",
            {"source_language": "germn", "target_language": "en"},
            "unknown language 'germn'; did you mean 'german'",
        ),
        ("chat", {}, "needs `messages`"),
        ("chat", {"messages": [Message(role="user", content="a")]}, "an assistant's message to learn from"),
        (
            "chat",
            {"messages": [Message(role="assistant", content="a"), Message(role="user", content="a")]},
            "a last message of the assistant's",
        ),
    ],
)
def test_what_is_missing_is_said(task, fields, missing):
    one = example(task, **fields)
    assert missing in (get_task(task).check(one) or "")
    if task != "chat" or not one.messages:
        with pytest.raises(DataError, match="example '1'"):
            get_task(task).messages(one)


def test_an_answer_is_not_needed_to_ask():
    assert len(get_task("asr").messages(example(text=None), with_answer=False)) == 1
    with pytest.raises(DataError, match="source_language"):
        get_task("st").messages(example("st", text=None), with_answer=False)


def test_ones_own_prompts(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("- Hör zu.\n- Schreib mit.\n")
    shipped = get_task("asr").prompts()
    assert get_task("asr", {"prompts_path": str(path)}).prompts() == [*shipped, "Hör zu.", "Schreib mit."]
    folder = tmp_path / "all"
    folder.mkdir()
    (folder / "de.yaml").write_text("- Hör zu.\n")
    task = get_task("asr", {"prompts_path": str(folder), "prompt_languages": "de", "system": "Kurz."})
    assert task.prompts("de")[-1] == "Hör zu."
    messages = task.messages(example(), with_answer=False)
    assert shown(messages)[0] == ("system", ["Kurz."])
    assert messages[1].content[-1]["text"] == task.prompts("de")[0]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("a: 1", "expected a YAML list"),
        ("- [", "not valid YAML"),
        ("[]", "expected a YAML list"),
        ("- Into {target_language}.", "must hold {source_language} and {target_language}"),
        ("- From {source_language} into {target_language} {", "stray brace"),
    ],
)
def test_broken_prompts_are_refused(tmp_path, content, message):
    path = tmp_path / "mine.yaml"
    path.write_text(content)
    with pytest.raises(ConfigError, match=re.escape(message)):
        get_task("st", {"prompts_path": str(path)}).prompts()


def test_unknown_names_are_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"no prompts in the language 'xx' \(available: de, en, es, fr, it\)"):
        get_task("asr").prompts("xx")
    with pytest.raises(ConfigError, match="cannot read the prompts"):
        get_task("asr", {"prompts_path": str(tmp_path / "none.yaml")}).prompts()
    with pytest.raises(ConfigError, match="unknown task 'asrr'; did you mean 'asr'"):
        get_task("asrr")
    assert {"asr", "st", "chat"} <= set(tasks.names())


@pytest.mark.parametrize(
    ("code", "name"),
    [
        ("de", "German"),
        ("de-CH", "German"),
        ("deu", "German"),
        ("zh_TW", "Chinese"),
        ("german", "German"),
        ("xx", None),
    ],
)
def test_language_names(code, name):
    assert language_name(code) == name


def test_each_language_has_one_name():
    assert len(set(NAMES.values())) == len(NAMES)
