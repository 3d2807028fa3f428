"""A task whose answer is speech: its chats are built, and a model without an output codec refuses them in one line."""

from collections.abc import Sequence
from typing import Any, ClassVar, Literal

import pytest
import soundfile

from speechlmm_core.chat.messages import Message
from speechlmm_core.data.chats import chat_of, references_of
from speechlmm_core.data.example import Example
from speechlmm_core.errors import DataError
from speechlmm_core.tasks.text import TextTaskConfig


class SpeakTaskConfig(TextTaskConfig):
    """Reads a text aloud: the answer is the text, and the recording of it."""

    type: Literal["speak"] = "speak"

    outputs: ClassVar[tuple[str, ...]] = ("text", "audio")

    @property
    def metrics(self) -> tuple[str, ...]:
        return ("cer",)

    def prompts(self, language: str = "en") -> list[str]:
        return ["Read this aloud: {text}", "{text}\nSay it."]

    def answer(self, example: Example) -> list[dict[str, Any]]:
        return [{"type": "text", "text": example.text or ""}, {"type": "audio", **example.media["audio"]}]


@pytest.fixture
def example(tmp_path):
    path = tmp_path / "a.wav"
    soundfile.write(path, [0.0] * 16_000, 16_000)
    return Example(
        id="1",
        task="speak",
        task_config=SpeakTaskConfig(),
        media={"audio": {"path": str(path)}},
        source_text="hello",
        text="hello",
    )


def test_the_answer_holds_the_recording(example):
    asked, answer = chat_of(example)
    assert [message.role for message in (asked, answer)] == ["user", "assistant"]
    assert asked.content == [{"type": "text", "text": "Read this aloud: hello"}]
    assert [item["type"] for item in answer.content] == ["text", "audio"]
    assert answer.media == [{"type": "audio", "path": example.media["audio"]["path"]}]
    assert references_of(example) == ("hello",)
    assert SpeakTaskConfig().outputs == ("text", "audio")
    shots = SpeakTaskConfig(num_few_shots=1).messages(example, shots=[example])
    assert [len(message.media) for message in shots] == [0, 1, 0, 1]


@pytest.mark.parametrize("with_answer", [True, False])
def test_a_model_without_a_codec_refuses_it(tiny_processor, example, with_answer):
    messages: Sequence[Message] = chat_of(example)
    if not with_answer:  # an earlier turn's answer
        messages = [*messages, Message(role="user", content="Again.")]
    for use in (
        tiny_processor.sample,
        lambda m, with_answer: tiny_processor.sizes(m, [16_000], with_answer=with_answer),
    ):
        with pytest.raises(DataError) as caught:
            use(messages, with_answer=with_answer)
        assert str(caught.value) == (
            "the assistant's message holds 'audio', but this model puts out text only: it has no output codec"
        )
    if with_answer:
        asked = tiny_processor.sample(chat_of(example, with_answer=False), with_answer=False)
        assert asked.layout.inputs == []
