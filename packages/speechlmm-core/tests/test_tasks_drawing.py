"""What is drawn when an example is asked for: the prompt's language, its wording, the examples shown first."""

import pickle
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from speechlmm_core.data.draw import draw
from speechlmm_core.data.example import Example
from speechlmm_core.data.examples import ConcatExamples, ListExamples, SubsetExamples
from speechlmm_core.data.spec.task_examples import TaskExamples
from speechlmm_core.errors import ConfigError, DataError
from speechlmm_core.interfaces.task import get_task
from speechlmm_core.tasks.prompted.config import covering_draws

AUDIO = {"type": "audio", "path": "a.wav"}


def example(number=1, **fields):
    return Example(
        **{"id": str(number), "task": "asr", "media": {"audio": AUDIO}, "text": f"answer {number}", **fields}
    )


def asked(messages):
    return messages[-1].content[-1]["text"] if messages[-1].role == "user" else messages[-2].content[-1]["text"]


def dataset(count=30, **options):
    examples = ListExamples([example(number) for number in range(count)])
    return TaskExamples(examples, range(count), task=get_task("asr", options))


def test_languages_and_wordings_are_drawn_evenly_and_apart():
    config = get_task("asr", {"prompt_languages": ["en", "de", "source"]})
    one = example(source_language="fr-CH")
    lists = {language: config.prompts(language) for language in ("en", "de", "fr")}
    found = Counter(asked(config.messages(one, draw=draw(7, 0, index))) for index in range(30_000))
    assert set(found) == {line for lines in lists.values() for line in lines}
    for lines in lists.values():
        assert abs(sum(found[line] for line in lines) - 10_000) < 6 * 82  # six standard deviations of a binomial
        for line in lines:
            expected = 10_000 / len(lines)
            assert abs(found[line] - expected) < 6 * expected**0.5


def test_nothing_is_frozen_another_epoch_asks_in_other_words():
    # The first toolkit kept what it had drawn in its cache.
    data = dataset()
    epochs = [[asked(data.chat(i, draw=draw(1, epoch, i))) for i in range(len(data))] for epoch in range(2)]
    again = [asked(pickle.loads(pickle.dumps(data)).chat(i, draw=draw(1, 0, i))) for i in range(len(data))]
    assert again == epochs[0]
    assert sum(a != b for a, b in zip(*epochs, strict=True)) > len(data) / 2
    assert len({asked(data.chat(i)) for i in range(len(data))}) == 1  # evaluation takes the first


@given(st.lists(st.integers(1, 12), min_size=1, max_size=4))
def test_the_draws_that_are_planned_with_lead_everywhere(counts):
    from speechlmm_core.data.draw import derive

    draws = covering_draws(tuple(counts))
    assert draws[0] == 0
    languages = [derive(number, "language") % len(counts) for number in draws]
    pairs = {
        (language, derive(number, "wording") % counts[language])
        for language, number in zip(languages, draws, strict=True)
    }
    assert pairs == {(language, wording) for language, count in enumerate(counts) for wording in range(count)}
    assert len(draws) == sum(counts)


def test_an_examples_own_language_falls_away_where_there_are_no_wordings_in_it():
    config = get_task("asr", {"prompt_languages": ["source", "target", "en"]})
    assert config.languages(example(source_language="pl", target_language="de")) == ["de", "en"]
    assert config.languages(example(source_language="en-GB")) == ["en"]
    assert config.languages(example()) == ["en"]
    alone = get_task("asr", {"prompt_languages": "source"})
    assert "no prompts in the example's languages (source 'pl'" in (alone.check(example(source_language="pl")) or "")
    with pytest.raises(DataError, match="add 'en' to `prompt_languages`"):
        alone.messages(example(source_language="pl"))
    assert alone.check(example(source_language="it")) is None


def test_a_language_that_is_asked_for_and_has_no_wordings_is_refused():
    with pytest.raises(ConfigError, match=r"no prompts in the language 'pl' \(available: de, en, es, fr, it\)"):
        get_task("asr", {"prompt_languages": ["en", "pl"]}).draws(example())
    with pytest.raises(ConfigError, match="unknown language 'germn'; did you mean 'german'"):
        get_task("asr", {"prompt_languages": "germn"})
    with pytest.raises(ConfigError, match="at least 1"):
        get_task("asr", {"prompt_languages": []})
    assert get_task("asr", {"prompt_languages": "German"}).prompt_languages == ("de",)


def test_ones_own_wordings_serve_a_language_that_has_none(tmp_path):
    (tmp_path / "pl.yaml").write_text("- Zapisz nagranie.\n", encoding="utf-8")
    config = get_task("asr", {"prompt_languages": ["source", "en"], "prompts_path": str(tmp_path)})
    one = example(source_language="pl")
    assert config.languages(one) == ["pl", "en"]
    assert asked(config.messages(one)) == "Zapisz nagranie."
    assert len(config.draws(one)) == 1 + len(config.prompts("en"))


def shown(messages):
    return [message.content[0]["text"] for message in messages if message.role == "assistant"]


def test_examples_that_are_shown_first_differ_and_are_never_the_one_asked_about():
    data = dataset(num_few_shots=3)
    seen = Counter()
    for epoch in range(40):
        for index in range(len(data)):
            *shots, own = shown(data.chat(index, draw=draw(3, epoch, index)))
            assert own == f"answer {index}"
            assert len(set(shots)) == 3
            assert own not in shots
            seen.update(shots)
    assert len(seen) > 3
    first = [shown(data.chat(index)) for index in range(len(data))]
    assert first == [shown(data.chat(index)) for index in range(len(data))]
    other = dataset(num_few_shots=3, few_shots_seed=1)
    assert [shown(other.chat(index)) for index in range(len(data))] != first


def test_the_examples_shown_are_asked_about_in_the_same_words_and_before_the_answer():
    data = dataset(num_few_shots=2, system="Be brief.")
    messages = data.chat(4, draw=99, with_answer=False)
    assert [message.role for message in messages] == ["system", "user", "assistant", "user", "assistant", "user"]
    prompts = {message.content[-1]["text"] for message in messages if message.role == "user"}
    assert len(prompts) == 1
    assert all(len(message.media) == 1 for message in messages if message.role == "user")


def test_views_show_the_examples_of_the_dataset_that_one_belongs_to():
    whole = ConcatExamples([dataset(10, num_few_shots=1), ListExamples([example(50)])])
    view = SubsetExamples(whole, [10, 3])
    assert shown(view.chat(0)) == ["answer 50"]
    assert shown(view.chat(1)) == shown(whole.chat(3)) == shown(dataset(10, num_few_shots=1).chat(3))


def test_paths_of_prompts_start_at_the_specification(tmp_path):
    import json

    from speechlmm_core.data.spec.file import read_spec
    from speechlmm_core.data.spec.open import open_spec

    (tmp_path / "a.wav").write_bytes(b"RIFF")
    (tmp_path / "m.jsonl").write_text(json.dumps({"audio": "a.wav", "text": "x", "language": "pl"}) + "\n")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "pl.yaml").write_text("- Zapisz nagranie.\n")
    spec = tmp_path / "spec.yaml"
    options = "{prompt_languages: source, prompts_path: mine}"
    spec.write_text(f"datasets:\n- {{type: jsonl, path: m.jsonl, task: ASR, task_options: {options}}}\n")
    (opened,) = open_spec(read_spec(spec), base=tmp_path)
    assert asked(opened.examples.chat(0)) == "Zapisz nagranie."
