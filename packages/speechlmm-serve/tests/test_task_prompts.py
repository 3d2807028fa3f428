"""Every task that can be asked for on the command line: one prompt logic, the core's."""

import json

import pytest

from speechlmm_core.chat.messages import Message
from speechlmm_core.errors import ConfigError, DataError
from speechlmm_core.inference.engine import InferenceEngine
from speechlmm_core.inference.options import GenerationOptions
from speechlmm_core.interfaces.task import get_task, tasks
from speechlmm_serve.chat.session import ChatSession
from speechlmm_serve.cli.main import main
from speechlmm_serve.infer.inputs import find_inputs
from speechlmm_serve.infer.texts import TextInputs
from speechlmm_serve.task_prompt import TaskPrompt

OPTIONS = GenerationOptions(max_new_tokens=4)
PAIR = ("de", "fr")
HEARD = ("asr", "st", "slu", "slu_intent", "sqa", "ssum", "vsr")
READ = ("mt", "tsum", "text_instruct", "ntp")
WHOLE = ("chat", "multi_turn_text_instruct", "interleaved")


@pytest.fixture(scope="module")
def video_engine(toy_video_model_path):
    return InferenceEngine.from_pretrained(str(toy_video_model_path))


def asked(messages):
    return [(m.role, [item.get("path") or item["text"] for item in m.content]) for m in messages]


def test_every_task_of_the_core_is_looked_at_here():
    assert {*HEARD, *READ, *WHOLE} <= set(tasks.names())


@pytest.mark.parametrize("task", HEARD)
def test_tasks_about_media_are_asked_in_their_own_words_within_the_chat_template(task, video_engine, clips, videos):
    # In the first toolkit the template was left out for SLU, and SQA and VSR failed.
    prompt = TaskPrompt.of(task.upper(), *PAIR, "Who speaks?" if task == "sqa" else None)
    prompt.check()
    name, path = ("lips", videos / "a.mp4") if task == "vsr" else ("audio", clips / "a.wav")
    messages = prompt.messages({name: {"path": str(path)}})
    ((role, content),) = asked(messages)
    assert role == "user"
    assert content[0] == str(path)
    assert messages[0].content[0]["type"] == name
    assert isinstance(video_engine.answer(messages, OPTIONS), str)
    pieces = video_engine.processor.tokenizer.encode_chat(messages, add_generation_prompt=True)
    assert video_engine.processor.tokenizer.tokenizer.decode(pieces[-1].ids).endswith(
        f"{content[1]}<|im_end|>\n<|im_start|>assistant\n"
    )
    if task == "sqa":
        assert content[1] == "Answer the question about the audio: Who speaks?"


@pytest.mark.parametrize("task", READ)
def test_tasks_about_texts_put_them_into_their_own_words(task, video_engine):
    prompt = TaskPrompt.of(task, *PAIR)
    prompt.check()
    assert prompt.takes_text
    (message,) = prompt.messages({}, prompt.example_of("a text of words"))
    assert "a text of words" in message.content[0]["text"]
    assert isinstance(video_engine.answer([message], OPTIONS), str)
    with pytest.raises(ConfigError, match="works on no text"):
        TaskPrompt.of("asr", None, None).example_of("x")


@pytest.mark.parametrize("task", WHOLE)
def test_tasks_of_whole_conversations_say_what_they_need(task):
    with pytest.raises(ConfigError, match="needs"):
        TaskPrompt.of(task, None, None).check()


def test_names_and_questions_that_do_not_fit_are_refused():
    assert TaskPrompt.of("SLU_INTENT_ONLY", None, None).task == get_task("slu_intent")
    with pytest.raises(ConfigError, match="did you mean 'ssum'"):
        TaskPrompt.of("ssumm", None, None)
    with pytest.raises(ConfigError, match="--question is for the task 'sqa'"):
        TaskPrompt.of("asr", None, None, "Who?")
    with pytest.raises(ConfigError, match="needs a --target-language"):
        TaskPrompt.of("mt", "de", None).check()
    with pytest.raises(ConfigError, match="needs a `video`, got audio"):
        TaskPrompt.of("vsr", None, None).check(names=("audio",))


def test_without_a_question_it_is_spoken(clips):
    (message,) = TaskPrompt.of("sqa", None, None).messages({"audio": {"path": "a.wav"}})
    assert message.content[-1]["text"] == "Answer the question in the audio."


def test_the_answer_of_a_manifest_is_not_told(tmp_path):
    path = tmp_path / "m.jsonl"
    line = {"audio": "a.wav", "text": "Ada", "instruction": "Who?", "transcript": "I am Ada", "task": "sqa"}
    path.write_text(json.dumps(line) + "\n")
    (one,) = find_inputs(path, "audio")
    prompt = TaskPrompt.of("sqa", None, None, "What?")
    (message,) = prompt.messages(one.media, one.example)
    assert "Ada" not in str(message)
    assert message.content[-1]["text"] == "Answer the question about the audio: Who?"


def test_what_is_typed_in_a_chat_is_the_tasks_text_or_question(engine, clips):
    session = ChatSession(engine, OPTIONS, TaskPrompt.of("mt", *PAIR))
    for text in ("eins", "zwei"):
        "".join(session.ask(text))
        # Each text stands by itself.
        assert asked(session.history)[0] == ("user", [f"Translate this text from German into French: {text}"])
        assert len(session.history) == 2
    session = ChatSession(engine, OPTIONS, TaskPrompt.of("sqa", None, None))
    session.load(clips / "a.wav")
    "".join(session.ask("Who speaks?"))
    question = "Answer the question about the audio: Who speaks?"
    assert asked(session.history)[0] == ("user", [str(clips / "a.wav"), question])
    "".join(session.ask("And then?"))
    assert asked(session.history)[2] == ("user", ["And then?"])


def test_texts_from_lines_from_files_and_from_a_manifest(tmp_path):
    prompt = TaskPrompt.of("mt", *PAIR)
    lines = tmp_path / "lines.txt"
    lines.write_text("\ufeffeins\n\n zwei \u2028 drei\n", encoding="utf-8")
    found = list(TextInputs(lines, prompt))
    assert [one.example.source_text for one in found] == ["eins", "zwei \u2028 drei"]
    assert [one.key for one in found] == [f"{lines}#1", f"{lines}#3"]
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "b.txt").write_text("two\nlines\n")
    (folder / "a.txt").write_text("one")
    assert [(one.example.id, one.example.source_text) for one in TextInputs(folder, prompt)] == [
        ("a.txt", "one"),
        ("b.txt", "two\nlines"),
    ]
    manifest = tmp_path / "m.jsonl"
    rows = [{"task": "mt", "source_text": "eins"}, {"task": "mt", "source_text": "", "id": "x"}]
    manifest.write_text("".join(json.dumps(row) + "\n" for row in rows))
    inputs = TextInputs(manifest, prompt)
    with pytest.raises(DataError, match=r"m\.jsonl:x: task 'mt' needs a `source_text`"):
        inputs.check(prompt)
    for path, message in ((tmp_path / "none.txt", "it does not exist"), (tmp_path, None)):
        if message:
            with pytest.raises(DataError, match=message):
                TextInputs(path, prompt)
    (tmp_path / "empty.txt").write_text("\n")
    with pytest.raises(DataError, match="expected a text on each line"):
        TextInputs(tmp_path / "empty.txt", prompt)
    with pytest.raises(ConfigError, match="works on no text"):
        TextInputs(lines, TaskPrompt.of("asr", None, None))


def run(call):
    with pytest.raises(SystemExit) as done:
        main(call)
    assert done.value.code == 0


def test_infer_translates_texts(toy_model_path, tmp_path):
    lines = tmp_path / "lines.txt"
    lines.write_text("eins\nzwei\n")
    output = tmp_path / "out.jsonl"
    call = ["infer", "--model-path", str(toy_model_path), "--task", "MT", "--texts-file-path", str(lines)]
    call += ["--source-language", "de", "--target-language", "fr", "--output", str(output), "--max-new-tokens", "3"]
    run(call)
    rows = [json.loads(line) for line in output.read_text().splitlines()]
    assert [(row["task"], row["id"], row["error"]) for row in rows] == [("mt", "1", None), ("mt", "2", None)]
    engine = InferenceEngine.from_pretrained(str(toy_model_path))
    question = Message(role="user", content="Translate this text from German into French: zwei")
    assert rows[1]["text"] == engine.answer([question], GenerationOptions(max_new_tokens=3))


def test_infer_answers_a_question_about_each_file(toy_model_path, clips, tmp_path):
    output = tmp_path / "out.jsonl"
    call = [
        "infer",
        "--model-path",
        str(toy_model_path),
        "--task",
        "sqa",
        "--question",
        "Who?",
        "--max-new-tokens",
        "3",
    ]
    run([*call, "--audios-file-path", str(clips / "a.wav"), "--output", str(output)])
    (row,) = [json.loads(line) for line in output.read_text().splitlines()]
    assert (row["task"], row["question"], row["error"]) == ("sqa", "Who?", None)
