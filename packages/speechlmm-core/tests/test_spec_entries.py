"""Specifications as they are written, and the typed form that they become."""

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from speechlmm_core.data.spec import presets
from speechlmm_core.data.spec.amount import limit_of, slice_of
from speechlmm_core.data.spec.config import DatasetSpec, DataSpec, Languages, PartitionSpec
from speechlmm_core.data.spec.entries import dataset_spec
from speechlmm_core.data.spec.file import read_spec
from speechlmm_core.data.spec.language_codes import parse_languages, same_language
from speechlmm_core.data.spec.yaml_text import parse_yaml
from speechlmm_core.errors import ConfigError, DataError


@pytest.fixture
def corpora(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two presets, in place of those that are installed."""
    (tmp_path / "covost2.yaml").write_text(
        "aliases: [CoVoST]\ntype: jsonl\npath: '{partition}.jsonl'\nlanguages: [en]\n"
        "partitions: {train: {}, dev: {destination: eval, max_duration: 30}, test: {}}\n"
        "tasks:\n  asr: {columns: {text: sentence}}\n  st: {columns: {text: translation, transcript: sentence}}\n"
    )
    (tmp_path / "alpaca.yaml").write_text("type: jsonl\ntasks: {text_instruct: {columns: {text: output, id: key}}}\n")
    files = {file.stem: file for file in sorted(tmp_path.glob("*.yaml"))}
    monkeypatch.setattr(presets, "preset_files", lambda: files)
    for function in (presets.find_preset, presets.read_preset):
        function.cache_clear()
    for module in ("entries", "schema"):
        monkeypatch.setattr(f"speechlmm_core.data.spec.{module}.preset_files", lambda: files)
    yield
    for function in (presets.find_preset, presets.read_preset):
        function.cache_clear()


def written(folder: Path, text: str) -> Path:
    path = folder / "spec.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def faults_of(folder: Path, text: str) -> list[str]:
    path = written(folder, text)
    with pytest.raises(DataError) as caught:
        read_spec(path)
    lines = str(caught.value).splitlines()
    assert all(line.startswith(f"{path}: ") for line in lines)
    return [line.removeprefix(f"{path}: ") for line in lines]


def test_both_forms_become_the_same(corpora: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DATA_HOME", "/corpora")
    first, second = (
        read_spec(
            written(
                tmp_path,
                """
DATA:
  - CoVoST:
      datapath: ${oc.env:DATA_HOME}/covost
      task: ST
      languages: [en-de, fr-zh-CN]
      partitions:
        train: {amount: 10:20, min_duration: 1}
        dev: {}
      additional_args: {num_few_shots: 2}
""",
            )
        ).datasets
        + read_spec(
            written(
                tmp_path,
                """
datasets:
  - preset: covost2
    path: ${DATA_HOME}/covost
    task: {type: st, num_few_shots: 2}
    languages: [{source: en, target: de}, {source: fr, target: zh-CN}]
    partitions: {train: {amount: "10:20", min_duration: 1.0}, dev: {}}
""",
            )
        ).datasets
    )
    assert first == second
    assert first.model_dump(exclude_defaults=True, exclude={"reader", "task"}) == {
        "name": "covost2",
        "languages": ({"source": "en", "target": "de"}, {"source": "fr", "target": "zh-CN"}),
        "partitions": {
            "train": {"amount": "10:20", "min_duration": 1.0},
            "dev": {"destination": "eval", "max_duration": 30.0},
        },
    }
    assert first.reader.model_dump() == {
        "type": "jsonl",
        "path": "/corpora/covost",
        "columns": {"text": "translation", "transcript": "sentence"},
    }
    assert first.task is not None
    assert (first.task.type, first.task.num_shots) == ("st", 2)


def test_a_preset_is_merged_deeply(corpora: None) -> None:
    spec = dataset_spec({"type": "CoVoST", "task": "asr", "columns": {"id": "key", "text": None}, "languages": "all"})
    assert spec.reader.model_dump()["columns"] == {"text": None, "id": "key"}
    assert (spec.name, spec.languages, list(spec.partitions)) == ("covost2", None, ["train", "dev", "test"])
    assert dataset_spec({"preset": "alpaca"}).task.type == "text_instruct"  # pyright: ignore[reportOptionalMemberAccess]
    assert dataset_spec({"Alpaca": None}).reader.model_dump()["columns"] == {"text": "output", "id": "key"}


def test_a_preset_says_which_tasks_it_serves(corpora: None) -> None:
    with pytest.raises(ConfigError, match=r"dataset\.task: the dataset does not serve the task 'slu' \(covost2 serves"):
        dataset_spec({"preset": "covost2", "task": "slu"})
    with pytest.raises(ConfigError, match="no task is named"):
        dataset_spec({"preset": "covost2"})
    assert dataset_spec({"preset": "covost2", "task": "slu", "columns": {"text": "x"}}).task is not None


def test_a_list_decides_what_its_datasets_are_for(corpora: None, tmp_path: Path) -> None:
    spec = read_spec(
        written(
            tmp_path,
            "train: [{preset: covost2, task: asr}, a.jsonl]\neval: {preset: covost2, task: asr}\n"
            "test: [{preset: covost2, task: asr, partitions: [dev]}]\nguard: b.jsonl\n",
        )
    )
    found = [
        ({name: part.destination for name, part in one.partitions.items()}, one.whole.destination)
        for one in spec.datasets
    ]
    assert found == [
        ({"train": "train"}, "train"),
        ({}, "train"),
        ({"dev": "eval"}, "eval"),
        ({"dev": "test"}, "test"),
        ({}, "guard"),
    ]
    assert [one.name for one in spec.datasets] == [
        "covost2-asr",
        "a",
        "covost2-asr-2",
        "covost2-asr-3",
        "b",
    ]
    (line,) = faults_of(tmp_path, "eval: [{type: jsonl, path: x, partitions: {dev: {destination: train}}}]")
    assert line == (
        "eval[0].partitions.dev.destination: 'train' in a list of datasets for 'eval'; "
        "leave it out, or list it elsewhere"
    )


def test_settings_beside_the_reader_hold_for_all_partitions() -> None:
    spec = dataset_spec(
        {"type": "jsonl", "path": "x", "max_duration": 20, "partitions": {"a": {"max_duration": 5}, "b": None}}
    )
    assert [part.max_duration for part in spec.partitions.values()] == [5, 20]
    assert spec.whole.max_duration == 20


def test_faults_are_a_line_each(tmp_path: Path) -> None:
    lines = faults_of(
        tmp_path,
        """
datasets:
  - {type: jsonl, pth: x, task: asrr}
  - type: jsonl
    path: x
    partitions: {dev: {amount: 5x, min_duraton: 1}, test: {min_duration: 3, max_duration: 2}}
    languages: [english, en-de, en-de]
  - {type: jsonk, path: x}
  - {type: jsonl, path: x, task_options: {a: 1}}
  - {type: jsonl, path: "${oc.env:NO_SUCH_VARIABLE}/x"}
  - {typ: jsonl, path: x}
  - [x]
  - {jsonl: 7}
dataset: [x]
""",
    )
    expected = [
        "datasets[0].pth: unknown key 'pth'; did you mean 'path'?",
        "datasets[0].task: unknown task 'asrr'; did you mean 'asr'?",
        "datasets[1].partitions.dev.amount: expected a number of records (1000), or a slice",
        "datasets[1].partitions.dev.min_duraton: unknown key 'min_duraton'; did you mean 'min_duration'?",
        "datasets[1].partitions.test: min_duration (3) is above max_duration (2)",
        "datasets[1].languages[0]: expected a language (en, pt-BR)",
        "datasets[1].languages[2]: 'en-de' is there twice",
        "datasets[2].type: unknown dataset 'jsonk'; did you mean 'jsonl'?",
        "datasets[3].task_options: there is no `task` that takes them",
        "datasets[4].path: the environment variable 'NO_SUCH_VARIABLE' is not set",
        "datasets[5]: unknown key 'typ'; did you mean 'type'?",
        "datasets[6]: expected a manifest's path, or a mapping with a `type` or `preset`, got ['x']",
        "datasets[7].jsonl: expected a mapping with the dataset's fields, got 7",
        "dataset: unknown key 'dataset'; did you mean 'datasets'?",
    ]
    for line in expected:
        assert any(found.startswith(line) for found in lines), (line, lines)
    assert "got '5x'" in lines[2] or any("got '5x'" in line for line in lines)
    assert "did you mean 'en'?" in next(line for line in lines if "languages[0]" in line)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", "an empty file"),
        ("- a.jsonl", "expected a list of datasets"),
        ("datasets: []", "got none"),
        ("datasets: [", "no valid YAML"),
        ("datasets: &a [*a]", "does an anchor contain itself?"),
        ("a: &a {b: *a}", "does an anchor contain itself?"),
        ("datasets: " + "[" * 3000, "nested too deeply"),
        ("datasets: " + "[" * 100 + "]" * 100, "nested too deeply"),
        ("a: 1\na: 2", "the key 'a' is there twice"),
        ("datasets: !!python/object/apply:os.system [ls]", "no valid YAML"),
        ("? [a]\n: b", "no valid YAML"),
        ("\x00", "no valid YAML"),
        ("datasets: [{type: jsonl, path: x, weight: " + "9" * 5000 + "}]", ""),
        ("datasets: [{type: jsonl, path: x, amount: " + "9" * 400 + "%}]", "amount: expected"),
        ("datasets: [{type: jsonl, path: x, weight: .inf}]", "weight: expected a number from 0 on, got inf"),
        ("datasets: [{type: jsonl, path: x, min_duration: .nan}]", "min_duration: input should be a finite number"),
        ("datasets: [{type: jsonl, path: x, max_num_words: 1e30}]", "max_num_words"),
    ],
)
def test_what_is_no_specification(tmp_path: Path, text: str, expected: str) -> None:
    assert expected in "\n".join(faults_of(tmp_path, text))


def test_keys_of_the_first_speechlmm_say_what_to_do(tmp_path: Path) -> None:
    options = ["add_speaker_descriptions", "caption_only", "condition_on_input", "condition_on_speaker_prob"]
    options += ["add_translation_prefix"]
    lines = faults_of(
        tmp_path,
        f"""
INPUTS_TEXT_LIST: [a.json]
OUTPUTS_TEXT_LIST: [b.json]
DATA:
  - jsonl: {{datapath: x, task: ST, additional_args: {{{", ".join(f"{one}: true" for one in options)}}}}}
  - {{type: jsonl, path: x, caption_only: true}}
""",
    )
    assert [line.partition(": ")[0] for line in lines] == [
        *("INPUTS_TEXT_LIST", "OUTPUTS_TEXT_LIST"),
        *(f"DATA[0].task_options.{one}" for one in options),
        "DATA[1].caption_only",
    ]
    assert all("is a key of the first SpeechLMM, of " in line and "remove it" in line for line in lines)
    assert "by the task's `prompts_path`" in lines[0]


@pytest.mark.parametrize(
    ("text", "quoted"),
    [
        ("DATA: [{jsonl: {datapath: ${DATA_HOME}/x, task: ST}}]", '"${DATA_HOME}/x"'),
        ("datasets:\n  - {path: ~/a${B}c, type: jsonl}", '"~/a${B}c"'),
        ("train: [${oc.env:A}/x.jsonl]", '"${oc.env:A}/x.jsonl"'),
    ],
)
def test_a_variable_that_is_not_quoted(tmp_path: Path, text: str, quoted: str) -> None:
    (line,) = faults_of(tmp_path, text)
    assert f"; quote what has a variable between brackets ({quoted})" in line


def test_merges_that_multiply_are_refused_before_they_are_made(tmp_path: Path) -> None:
    lines = [f"a0: &a0 {{{', '.join(f'k{n}: 1' for n in range(10))}}}"]
    lines += [f"a{n}: &a{n} {{<<: [{', '.join([f'*a{n - 1}'] * 10)}]}}" for n in range(1, 30)]
    assert "merges (`<<`) make over" in faults_of(tmp_path, "\n".join(lines))[0]


def test_many_aliases_are_refused_and_not_expanded(tmp_path: Path) -> None:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 12)]
    assert "too large" in faults_of(tmp_path, "\n".join(lines))[0]


def test_a_file_that_is_none(tmp_path: Path) -> None:
    for path, expected in ((tmp_path / "no.yaml", "it does not exist"), (tmp_path, "Is a directory")):
        with pytest.raises(DataError, match=expected):
            read_spec(path)
    (tmp_path / "large.yaml").write_bytes(b"#" * (5 << 20))
    with pytest.raises(DataError, match="more than 4 MiB"):
        read_spec(tmp_path / "large.yaml")


def test_yaml_is_read_as_version_1_2_has_it() -> None:
    text = b"{a: no, b: 10:20, c: 010, d: 1e3, e: 2020-01-01, f: true, g: 0x1f, h: ~, i: off, j: -.5, k: .inf}"
    assert parse_yaml(text, "x") == {
        **{"a": "no", "b": "10:20", "c": 10, "d": 1000.0, "e": "2020-01-01", "f": True, "g": 31, "h": None},
        **{"i": "off", "j": -0.5, "k": float("inf")},
    }
    merged = b"base: &b {x: 1, y: 2}\none: &o {<<: *b, y: 3}\ntwo: {<<: *o, x: 4}"
    assert parse_yaml(merged, "x")["two"] == {"x": 4, "y": 3}


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        ("en", ("en", None)),
        ("en-de", ("en", "de")),
        ("pt-BR", ("pt-BR", None)),
        ("zh-CN-en", ("zh-CN", "en")),
        ("en-zh-Hant-TW", ("en", "zh-Hant-TW")),
        ("no", ("no", None)),
        ("en_us", ("en_us", None)),
        ("eng-deu", ("eng", "deu")),
        ({"source": "de"}, ("de", None)),
    ],
)
def test_languages(written: Any, expected: tuple[str, str | None]) -> None:
    found = parse_languages(written)
    assert (found.source, found.target) == expected


@pytest.mark.parametrize(
    "written", ["", "-", "en-", "-de", "e", "german", 3, None, True, {"target": "de"}, "en de", ["en"]]
)
def test_what_is_no_language(written: Any) -> None:
    with pytest.raises(ValueError, match="expected a language"):
        parse_languages(written)


@given(st.sampled_from(["en", "de", "zh", "kab", "pt"]), st.sampled_from([None, "fr", "no", "yue"]))
def test_languages_are_read_as_they_are_shown(source: str, target: str | None) -> None:
    languages = Languages(source=source, target=target)
    assert parse_languages(str(languages)) == languages


def test_the_same_language() -> None:
    assert all(same_language(*pair) for pair in (("en", "eng"), ("pt", "pt-BR"), ("EN_us", "en-US")))
    assert not any(same_language(*pair) for pair in (("pt-PT", "pt-BR"), ("en", "de"), ("kab", "ka")))


@given(st.integers(0, 1000), st.integers(0, 1000), st.integers(0, 1000))
def test_a_slice_of_records_is_pythons(count: int, first: int, last: int) -> None:
    records = list(range(count))
    for bounds in ((first, last), (-first - 1, None), (None, -last - 1), (first, None), (None, last)):
        text = ":".join("" if bound is None else str(bound) for bound in bounds)
        assert [records[at] for at in slice_of(text, count)] == records[bounds[0] : bounds[1]]
    if first:
        assert list(slice_of(first, count)) == list(slice_of(f":{first}", count)) == records[:first]


@given(st.integers(0, 10_000), st.lists(st.integers(0, 100), max_size=6))
def test_slices_in_per_cent_are_parts_of_a_whole(count: int, inner: list[int]) -> None:
    bounds = [0, *sorted(inner), 100]
    parts = [slice_of(f"{a}%:{b}%", count) for a, b in pairwise(bounds)]
    assert [at for part in parts for at in part] == list(range(count))
    assert len(slice_of("10%", count)) == count // 10


@pytest.mark.parametrize(
    "amount",
    [
        *(0, -1, True, 1.5, "", ":", "a", "1:2:3", "101%", "5.5", "--5", "1:b", [], {}, "½", "5 %x"),
        *("0", ":0", "0%", "5:2", "5:5", "50%:20%", "-2:-5", "100%:5", "-10%:5"),
    ],
)
def test_what_is_no_amount(amount: Any) -> None:
    if amount in ("", ":"):
        assert len(slice_of(str(amount), 7)) == 7  # all of it
        return
    with pytest.raises(ConfigError, match="expected a number of records"):
        dataset_spec({"type": "jsonl", "path": "x", "amount": amount})


def test_how_many_records_have_to_be_fetched() -> None:
    asked = {None: None, 7: 7, ":7": 7, "3:7": 7, "7:": None, ":10%": None, ":-1": None, "-5:": None}
    assert {amount: limit_of(amount) for amount in asked} == asked


def test_the_typed_form_is_read_again() -> None:
    spec = dataset_spec(
        {
            "type": "jsonl",
            "path": "x",
            "task": "st",
            "languages": ["en-de", "fr"],
            "partitions": {"train": {"amount": 5}, "dev": {}},
            "weight": 2,
            "min_quality": 0.5,
        }
    )
    assert dataset_spec(json.loads(spec.model_dump_json())) == spec
    assert dataset_spec(yaml.safe_load(yaml.safe_dump(spec.model_dump(mode="json")))) == spec
    assert dataset_spec(spec) is spec
    assert DataSpec(datasets=(spec,)).datasets[0].partitions["train"] == PartitionSpec(amount=5, min_quality=0.5)
    assert isinstance(dataset_spec(spec.reader), DatasetSpec)


@pytest.mark.parametrize(
    ("written_as", "name"),
    [
        ("ASR", "asr"),
        ("ST", "st"),
        ("MT", "mt"),
        ("SLU", "slu"),
        ("SLU_INTENT_ONLY", "slu_intent"),
        ("SQA", "sqa"),
        ("SSUM", "ssum"),
        ("TSUM", "tsum"),
        ("VSR", "vsr"),
        ("TextInstruct", "text_instruct"),
        ("MultiTurnTextInstruct", "multi_turn_text_instruct"),
        ("NTP", "ntp"),
        ("InterleavedTextAudioNTP", "interleaved"),
    ],
)
def test_tasks_have_the_first_speechlmms_names(tmp_path: Path, written_as: str, name: str) -> None:
    flat = f"- {{type: jsonl, path: a.jsonl, task: {written_as}}}"
    keyed = f"- {{jsonl: {{datapath: a.jsonl, task: {written_as}}}}}"
    mapped = f"- {{type: jsonl, path: a.jsonl, task: {{type: {written_as}}}}}"
    for entry in (flat, keyed, mapped):
        (found,) = read_spec(written(tmp_path, f"DATA:\n{entry}\n")).datasets
        assert found.task is not None
        assert found.task.type == name
