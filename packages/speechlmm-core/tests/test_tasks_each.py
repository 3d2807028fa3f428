"""Each task on an example of its own: what is asked, what is answered, what is right, and what is missing."""

import pytest

from speechlmm_core.chat.messages import Message
from speechlmm_core.data.chats import chat_of, question_of
from speechlmm_core.data.example import Example
from speechlmm_core.errors import DataError
from speechlmm_core.interfaces.task import get_task

AUDIO = {"type": "audio", "path": "a.wav"}
VIDEO = {"type": "video", "path": "v.mp4"}
PAIR = {"source_language": "de", "target_language": "en"}
CHAT = [Message(role="user", content="Hi"), Message(role="assistant", content="Hello.")]
WORDS = [{"text": f"w{n}", "start": n / 2, "end": n / 2 + 0.4} for n in range(12)]

# Task -> (fields of an example, the texts of the user's message, the answer).
CASES = {
    "asr": ({"media": {"audio": AUDIO}, "text": "hallo"}, ["Transcribe the audio."], "hallo"),
    "st": (
        {"media": {"audio": AUDIO}, "text": "hello", "transcript": "hallo", **PAIR},
        ["Translate the speech from German into English."],
        "hello",
    ),
    "mt": (
        {"source_text": "hallo {name} </s>", "text": "hello", **PAIR},
        ["Translate this text from German into English: hallo {name} </s>"],
        "hello",
    ),
    "slu": (
        {"media": {"audio": AUDIO}, "fields": {"intent": "greet", "slots": {"who": "you"}}},
        ["Give the intent and the slots of the spoken request as JSON."],
        '{"intent": "greet", "slots": [{"who": "you"}]}',
    ),
    "slu_intent": (
        {"media": {"audio": AUDIO}, "fields": {"intent": "greet"}},
        ["What is the intent of the spoken request?"],
        "greet",
    ),
    "sqa": (
        {"media": {"audio": AUDIO}, "instruction": "Who speaks?", "text": "Ada"},
        ["Answer the question about the audio: Who speaks?"],
        "Ada",
    ),
    "ssum": ({"media": {"audio": AUDIO}, "text": "short", "transcript": "long"}, ["Summarise the audio."], "short"),
    "tsum": ({"source_text": "a long\ntext", "text": "short"}, ["Summarise this text: a long\ntext"], "short"),
    "vsr": (
        {"media": {"video": VIDEO}, "text": "hallo"},
        ["Read the speaker's lips and write down what is said."],
        "hallo",
    ),
    "text_instruct": ({"instruction": "Count {}.", "text": "1 2 3"}, ["Count {}."], "1 2 3"),
}
LACKS = [
    *((task, "media", "medium") for task in ("asr", "st", "slu", "slu_intent", "sqa", "ssum", "vsr")),
    *((task, "text", "`text`") for task in ("asr", "st", "mt", "sqa", "ssum", "tsum", "vsr", "text_instruct")),
    *((task, "fields", "`fields.intent`") for task in ("slu", "slu_intent")),
    *((task, "source_language", "`source_language`") for task in ("st", "mt")),
    *((task, "target_language", "`target_language`") for task in ("st", "mt")),
    *((task, "source_text", "`source_text`") for task in ("mt", "tsum")),
    ("text_instruct", "instruction", "`instruction`"),
]


def case(task, **fields):
    return Example(id="1", task=task, **{**CASES[task][0], **fields})


@pytest.mark.parametrize("task", CASES)
def test_what_is_asked_and_answered(task):
    _, prompt, answer = CASES[task]
    asked, answered = chat_of(case(task))
    assert [item["text"] for item in asked.content if item["type"] == "text"] == prompt
    assert [item["path"] for item in asked.media] == [m["path"] for m in case(task).media.values()]
    assert answered.content == [{"type": "text", "text": answer}]
    assert question_of(case(task)) == ([asked], answer)
    assert chat_of(case(task), with_answer=False) == [asked]
    assert get_task(task).check(case(task)) is None


@pytest.mark.parametrize(("task", "field", "named"), LACKS)
def test_what_is_missing_is_said(task, field, named):
    empty = {"media": {}, "fields": {}}.get(field)
    one = case(task, **{field: empty})
    fault = get_task(task).check(one)
    assert fault is not None
    assert named in fault
    assert any(field == need.split(".")[0] for needs in get_task(task).needs for need in needs.split("|"))
    with pytest.raises(DataError, match="example '1'"):
        get_task(task).messages(one)
    if field in ("text", "fields"):  # the answer is not needed to ask
        (asked,) = chat_of(one, with_answer=False)
        assert asked.content[-1] == chat_of(case(task))[0].content[-1]


def test_every_need_is_a_field_of_an_example():
    known = {*Example.model_fields, "media.video", "fields.intent", "fields.words", "fields.answers"}
    for task in (*CASES, "chat", "multi_turn_text_instruct", "ntp", "interleaved"):
        needs = [one for need in get_task(task).needs for one in need.split("|")]
        assert needs
        assert set(needs) <= known


def test_metrics():
    found = {
        task: get_task(task).metrics for task in (*CASES, "chat", "multi_turn_text_instruct", "ntp", "interleaved")
    }
    known = {"wer", "cer", "bleu", "chrf", "comet", "rouge", "exact_match", "token_f1", "intent_accuracy", "slot_f1"}
    assert all(set(names) <= known and names for names in found.values())
    assert found["sqa"] == ("exact_match", "token_f1")
    assert found["slu"] == ("intent_accuracy", "slot_f1")
    assert found["st"] == found["mt"] == ("bleu", "chrf")


def test_a_summary_of_a_text_holds_the_text_in_every_wording():
    # The first toolkit asked for summaries of texts that it did not show.
    for task in ("tsum", "mt"):
        for language in ("en", "de", "fr", "it", "es"):
            config = get_task(task, {"prompt_languages": language})
            one = case(task, source_text="the text itself")
            for draw in config.draws(one):
                assert "the text itself" in config.messages(one, draw=draw)[0].content[0]["text"]


def test_a_wording_that_leaves_the_text_out_is_refused(tmp_path):
    from speechlmm_core.errors import ConfigError

    (tmp_path / "mine.yaml").write_text("- Sum it up.\n")
    with pytest.raises(ConfigError, match=r"must hold \{text\}"):
        chat_of(case("tsum", task_config=get_task("tsum", {"prompts_path": str(tmp_path / "mine.yaml")})))


@pytest.mark.parametrize("wording", ["Sum up: {text:d}", "Sum up: {text!r}", "Sum up: {text!x}", "Sum up: {text:>9}"])
def test_a_wording_that_formats_the_text_is_refused(tmp_path, wording):
    # Python's format codes raised an error of their own in the midst of training, or changed the text.
    from speechlmm_core.errors import ConfigError

    (tmp_path / "mine.yaml").write_text(f"- '{wording}'\n")
    with pytest.raises(ConfigError, match=r"must hold \{text\}, as they stand here, got \{text[!:]"):
        get_task("tsum", {"prompts_path": str(tmp_path / "mine.yaml")}).prompts()


def test_questions_that_are_spoken():
    one = case("sqa", instruction=None)
    assert chat_of(one)[0].content[-1]["text"] == "Answer the question in the audio."
    config = get_task("sqa")
    drawn = {chat_of(one, draw=draw)[0].content[-1]["text"] for draw in config.draws(one)}
    assert drawn == set(config.spoken_prompts())
    with_text = chat_of(case("sqa", instruction=None, source_text="A page."))[0].content
    assert [item.get("text") for item in with_text] == [None, "A page.\n\n", "Answer the question in the audio."]


@pytest.mark.parametrize(
    ("fields", "references"),
    [
        ({"text": "Ada", "fields": {"answers": ["Ada", "Ada Lovelace"]}}, ("Ada", "Ada Lovelace")),
        ({"text": None, "fields": {"answers": ["A", " ", "B"]}}, ("A", "B")),
        ({"text": None, "fields": {"answers": {"text": ["A"], "answer_start": [3]}}}, ("A",)),
        ({"text": None, "fields": {"answers": "A"}}, ("A",)),
    ],
)
def test_several_answers_are_right(fields, references):
    one = case("sqa", **fields)
    assert get_task("sqa").references(one) == references
    assert chat_of(one)[-1].content[0]["text"] == references[0]


def test_lip_reading_hears_nothing():
    one = case("vsr", media={"audio": AUDIO, "video": VIDEO})
    assert [item["type"] for item in chat_of(one)[0].media] == ["video"]
    assert chat_of(one)[0].media[0]["transcript"] == "hallo"
    assert "needs a `video`, got audio" in (get_task("vsr").check(case("vsr", media={"audio": AUDIO})) or "")


def test_instructions_about_a_text():
    one = case("text_instruct", source_text="</s> {text}")
    assert chat_of(one)[0].content[0]["text"] == "Count {}.\n\n</s> {text}"
    drawn = {chat_of(one, draw=draw)[0].content[0]["text"] for draw in get_task("text_instruct").draws(one)}
    assert len(drawn) == len(get_task("text_instruct").prompts())
    assert all("Count {}." in text and "</s> {text}" in text for text in drawn)
    assert get_task("text_instruct").draws(case("text_instruct")) == (0,)


@pytest.mark.parametrize("task", ["chat", "multi_turn_text_instruct"])
def test_conversations_are_passed_on(task):
    one = Example(id="1", task=task, messages=CHAT)
    assert chat_of(one) == CHAT
    assert question_of(one) == (CHAT[:1], "Hello.")
    config = get_task(task, {"system": "Be brief."})
    with_system = chat_of(one.model_copy(update={"task_config": config}))
    assert [message.role for message in with_system] == ["system", "user", "assistant"]
    assert "`messages`" in (get_task(task).check(Example()) or "")


def test_conversations_in_text_hold_no_media():
    heard = [Message(role="user", content=[AUDIO]), CHAT[1]]
    assert get_task("chat").check(Example(messages=heard)) is None
    assert "takes text only" in (get_task("multi_turn_text_instruct").check(Example(messages=heard)) or "")


def test_another_tasks_example_may_bring_its_own_conversation():
    one = Example(id="1", task="asr", messages=CHAT)
    assert chat_of(one) == CHAT
    assert question_of(one)[1] == "Hello."


@pytest.mark.parametrize("task", ["asr", "chat"])
def test_options_of_a_task_hold_for_examples_that_bring_their_own_conversation(task):
    config = get_task(task, {"system": "Be brief.", "supervise": "last"})
    one = Example(id="1", task=task, messages=[*CHAT, *CHAT], task_config=config)
    found = chat_of(one)
    assert [message.role for message in found] == ["system", "user", "assistant", "user", "assistant"]
    assert [message.supervised for message in found if message.role == "assistant"] == [False, True]
    spoken = one.model_copy(update={"messages": [Message(role="system", content="Sing."), *CHAT]})
    assert chat_of(spoken)[0] == Message(role="system", content="Sing.")


def test_an_instruction_alone_needs_no_wordings_in_its_language():
    config = get_task("text_instruct", {"prompt_languages": ["target"]})
    one = case("text_instruct", target_language="pl", task_config=config)
    assert config.check(one) is None
    assert chat_of(one, draw=5)[0].content[0]["text"] == "Count {}."
    assert "no prompts in the example's languages" in (config.check(one.model_copy(update={"source_text": "x"})) or "")


def test_the_name_of_an_input_is_its_type_whatever_its_item_says():
    one = case("asr", media={"speaker": {"type": "audio", "path": "a.wav"}})
    assert chat_of(one)[0].media[0]["type"] == "speaker"


def test_plain_text():
    one = Example(id="1", task="ntp", text="one two  three four")
    assert chat_of(one) == [Message(role="text", content="one two  three four")]
    assert question_of(one) == ([Message(role="text", content="one two")], "three four")
    begun = Example(id="1", task="ntp", source_text="Once upon", text="a time")
    assert chat_of(begun) == [Message(role="text", content="Once upon a time")]
    assert question_of(begun) == ([Message(role="text", content="Once upon")], "a time")
    with pytest.raises(DataError, match="one word"):
        chat_of(Example(id="1", task="ntp", text="word"), with_answer=False)
    assert "needs a `text`" in (get_task("ntp").check(Example(text=" ")) or "")
    with pytest.raises(DataError, match="needs a `text`"):
        chat_of(Example(id="1", task="ntp"))


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (None, "`fields.words` must be a list"),
        ([], "`fields.words` must be a list"),
        ("one two", "`fields.words` must be a list"),
        ([{"text": "a", "start": 0}], "`fields.words` must hold"),
        ([{"text": "a", "start": 0, "end": float("nan")}], "`fields.words` must hold"),
        ([{"text": "a", "start": 2, "end": 1}], "must be in order of time"),
        ([{"text": "a", "start": 2, "end": 3}, {"text": "a", "start": 1, "end": 3}], "must be in order of time"),
        ([{"text": " ", "start": 0, "end": 1}], "holds no word"),
    ],
)
def test_words_that_are_wrong_are_said(words, named):
    one = Example(id="1", task="interleaved", media={"audio": AUDIO}, fields={"words": words})
    assert named in (get_task("interleaved").check(one) or "")
    with pytest.raises(DataError, match="example '1'"):
        chat_of(one)


def test_words_outside_of_their_medium_are_said():
    for item in ({**AUDIO, "start": 7.5}, {**AUDIO, "end": 0.4}):
        one = Example(id="1", task="interleaved", media={"audio": item}, fields={"words": WORDS})
        assert "within the medium, in seconds of its file, got" in (get_task("interleaved").check(one) or "")
    partly = Example(id="1", task="interleaved", media={"audio": {**AUDIO, "start": 0.2}}, fields={"words": WORDS})
    assert get_task("interleaved").check(partly) is None


@pytest.mark.parametrize(("start", "end"), [(0.0, None), (1.0, 7.0)])
def test_words_without_length_may_stand_at_either_end(start, end):
    # Aligners give the first word of a recording no length where they fail on it.
    edges = [{"text": "first", "start": start, "end": start}, {"text": "last", "start": end or 9.0, "end": end or 9.0}]
    words = [edges[0], *(word for word in WORDS if start <= word["start"]), edges[1]]
    one = Example(
        id="1", task="interleaved", media={"audio": {**AUDIO, "start": start, "end": end}}, fields={"words": words}
    )
    assert get_task("interleaved").check(one) is None
    for draw in range(8):
        for item in chat_of(one, draw=draw)[0].media:
            assert item["end"] > item["start"] >= start
    before = {"text": "out", "start": start + 20, "end": start + 20}
    late = one.model_copy(update={"fields": {"words": [*words, before]}})
    assert (get_task("interleaved").check(late) is None) == (end is None)


def test_interleaved_text_needs_one_medium():
    one = Example(id="1", task="interleaved", media={}, fields={"words": WORDS})
    assert "needs one medium" in (get_task("interleaved").check(one) or "")


def test_interleaved_text_is_asked_about_up_to_what_is_heard():
    one = Example(id="1", task="interleaved", media={"audio": AUDIO}, fields={"words": WORDS})
    (asked,), answer = question_of(one)
    (whole,) = chat_of(one)
    assert whole.content[: len(asked.content)] == asked.content
    assert asked.content[-1]["type"] == "audio" or not whole.media
    given = " ".join(item.get("transcript", item.get("text", "")).strip() for item in asked.content)
    assert f"{given} {answer}" == " ".join(word["text"] for word in WORDS)
