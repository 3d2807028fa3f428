"""The command line: exit codes, one line for each fault, and what is not imported."""

import json
import subprocess
import sys

import pytest

from speechlmm_train.cli import main
from speechlmm_train.cli.commands import COMMANDS

HEAVY = ("torch", "transformers", "hydra", "pydantic", "accelerate", "huggingface_hub")


def call(capsys, *argv):
    with pytest.raises(SystemExit) as caught:
        main(list(argv))
    out, err = capsys.readouterr()
    return caught.value.code, out, err


def python(code):
    """Runs code in a process of its own and returns what it prints."""
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout


@pytest.mark.parametrize("argv", [["--help"], ["run", "--help"], ["plan", "-h"], ["download", "-h"], ["--version"]])
def test_help_imports_nothing_heavy(argv):
    code = f"""
import contextlib, io, sys
from speechlmm_train.cli import main
try:
    with contextlib.redirect_stdout(io.StringIO()):
        main({argv!r})
except SystemExit as exc:
    print(exc.code, [name for name in {HEAVY!r} if name in sys.modules])
"""
    assert python(code).strip() == "0 []"


def test_a_wrong_key_is_reported_without_torch():
    code = """
import sys
from speechlmm_train.cli import main
try:
    main(["run", "data.trian=[a]", "model.text_decodr={type: x}"])
except SystemExit as exc:
    print(exc.code, "torch" in sys.modules, "transformers" in sys.modules)
"""
    assert python(code).strip() == "2 False False"


def test_components_need_no_torch():
    code = """
import contextlib, io, sys
from speechlmm_train.cli import main
text = io.StringIO()
try:
    with contextlib.redirect_stdout(text):
        main(["components"])
except SystemExit as exc:
    row = next(line for line in text.getvalue().splitlines() if " wer " in line)
    print(exc.code, "torch" in sys.modules, *row.split())
"""
    assert python(code).split()[:5] == ["0", "False", "metric", "wer", "speechlmm-train"]


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        (["rn"], "no such command 'rn'; did you mean 'run'?"),
        (["run", "--resum"], "--resum"),
        (["run", "--config-name", "pretran"], "did you mean 'pretrain'?"),
        (["run", "training.max_steps"], "is not an override"),
        (["plan", "model/text_decodr=x"], "unknown group 'model/text_decodr'"),
        (["evaluate", "--model-path", "x"], "expected what to evaluate on in one way"),
        (["evaluate", "--model-path", "x", "--batch-size", "y", "z"], "expected a number from 1 on or 'auto', got 'y'"),
        (["evaluate", "--model-path", "x", "--batch-size", "0", "z"], "expected a number from 1 on or 'auto', got '0'"),
        (["demo", "--output-dir", "/dev/null/x", "--no-progress"], "--output-dir '/dev/null/x' cannot be written to"),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2(capsys, argv, expected):
    code, out, err = call(capsys, *argv)
    assert code == 2
    assert out == ""
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert expected in err


def test_ctrl_c(capsys, monkeypatch):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("speechlmm_train.compose.compose_config", interrupted)
    code, _, err = call(capsys, "run")
    assert (code, err.strip()) == (130, "error: interrupted")


def test_a_fault_of_ours_hides_its_traceback_unless_asked(capsys, monkeypatch):
    def broken(*_, **__):
        raise ZeroDivisionError("oh")

    monkeypatch.setattr("speechlmm_train.compose.compose_config", broken)
    code, _, err = call(capsys, "run")
    assert (code, err) == (1, "error: ZeroDivisionError: oh (--debug shows where)\n")
    with pytest.raises(ZeroDivisionError):
        main(["run", "--debug"])


def test_schema(capsys, tmp_path):
    file = tmp_path / "schemas" / "run.json"
    code, _, _ = call(capsys, "schema", "--output", str(file))
    schema = json.loads(file.read_text())
    assert code == 0
    # What a run consists of, and what a file of the configuration tree says beside that.
    assert set(schema["properties"]) == {"model", "data", "training", "stages", "defaults", "adjustments"}
    assert schema["$defs"]["TrainingSection"]["properties"]["max_steps"]["description"] == "Optimiser steps."
    assert not schema.get("required")


def test_schema_of_a_model_alone_and_a_file_that_cannot_be_written(capsys, tmp_path):
    file = tmp_path / "model.json"
    assert call(capsys, "schema", "--section", "model", "--output", str(file))[0] == 0
    assert "text_decoder" in json.loads(file.read_text())["properties"]
    (tmp_path / "file").write_text("")
    code, _, err = call(capsys, "schema", "--output", str(tmp_path / "file" / "run.json"))
    assert (code, err.count("\n")) == (2, 1)
    assert "cannot be written: " in err


def test_without_a_command_the_help_is_shown(capsys):
    code, out, err = call(capsys)
    assert (code, err) == (0, "")
    assert out.startswith("Usage: speechlmm-train")
    assert "\n  run " in out


def test_every_command_has_a_summary():
    assert all(summary.endswith(".") for _, summary in COMMANDS.values())
