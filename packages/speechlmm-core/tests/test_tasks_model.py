"""Every task through a tiny model: a packed batch of all of them is learnt from, and each is answered."""

import numpy as np
import pytest
import soundfile
import torch

from speechlmm_core.data.chats import chat_of
from speechlmm_core.data.example import Example
from speechlmm_core.inference.engine import InferenceEngine
from speechlmm_core.inference.options import GenerationOptions, Request
from speechlmm_core.interfaces.task import get_task

PAIR = {"source_language": "de", "target_language": "fr"}
TEXT_ONLY = ("mt", "tsum", "text_instruct", "multi_turn_text_instruct", "ntp")
TASKS = ("asr", "st", "slu", "slu_intent", "sqa", "ssum", "interleaved", "chat", *TEXT_ONLY)


@pytest.fixture(scope="module")
def examples(tmp_path_factory):
    path = tmp_path_factory.mktemp("tasks") / "a.wav"
    soundfile.write(path, np.random.default_rng(0).uniform(-0.1, 0.1, 16_000 * 3), 16_000)
    audio = {"type": "audio", "path": str(path)}
    words = [{"text": f"w{n}", "start": n / 10, "end": n / 10 + 0.09} for n in range(28)]
    conversation = [
        {"role": role, "content": text} for role, text in zip(["user", "assistant"] * 2, "abcd", strict=True)
    ]
    fields = {"intent": "greet", "slots": [{"who": "you"}], "words": words, "answers": ["Ada"]}
    return {
        task: Example.model_validate(
            {
                "id": task,
                "task": task,
                "media": {} if task in TEXT_ONLY or task == "chat" else {"audio": audio},
                "text": "some words",
                "source_text": "a text" if task in ("mt", "tsum") else None,
                "instruction": "What is it?",
                "fields": fields,
                "messages": conversation if "turn" in task or task == "chat" else None,
                **PAIR,
            }
        )
        for task in TASKS
    }


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("tasks", [TASKS, TEXT_ONLY, ("ntp",)])
def test_a_batch_of_tasks_is_learnt_from(tiny_model, tiny_processor, examples, tasks, packed):
    samples = [tiny_processor.sample(chat_of(examples[task], draw=7), with_answer=True) for task in tasks]
    batch = tiny_processor.collate(samples, packed=packed)
    assert batch["num_items"]["supervised_tokens"] == sum(int(sample.layout.supervised.sum()) for sample in samples)
    together = tiny_model(**batch)
    assert torch.isfinite(together.loss)
    together.loss.backward()
    alone = [tiny_model(**tiny_processor.collate([one], packed=packed)).losses["lm"].sum.item() for one in samples]
    assert together.losses["lm"].sum.item() == pytest.approx(sum(alone), rel=1e-4)
    tiny_model.zero_grad()


def test_each_task_is_answered_alike_alone_and_in_a_batch(tiny_model, tiny_processor, examples):
    engine = InferenceEngine(tiny_model, tiny_processor)
    options = GenerationOptions(max_new_tokens=4)
    asked = {task: chat_of(examples[task], with_answer=False) for task in TASKS}
    together = engine.run([Request(messages, task) for task, messages in asked.items()], options=options)
    for result in together:
        assert result.error is None, (result.id, result.error)
        assert result.text == engine.answer(asked[result.id], options)


def test_references_are_there_for_each(examples):
    assert all(get_task(task).references(one) for task, one in examples.items())
