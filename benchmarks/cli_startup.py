"""Start-up of the command lines: `--help`, and how soon a wrong key under `model:` or `data:` is reported.

Every case is a process of its own, run in turns; the alternative is a process that imports torch before it looks.
"""

from __future__ import annotations

import subprocess
import sys
from typing import Any

from _bench import compare, report

GOALS = {"train_help": 0.3, "serve_help": 0.3, "wrong_model_key": 1.0, "wrong_data_key": 1.0}


def _command(package: str, *argv: str) -> list[str]:
    code = f"import sys; sys.argv[1:] = {list(argv)!r}; from {package}.cli import main; main()"
    return [sys.executable, "-c", code]


CASES: dict[str, tuple[list[str], int, str]] = {
    "train_help": (_command("speechlmm_train", "--help"), 0, "Usage"),
    "serve_help": (_command("speechlmm_serve", "--help"), 0, "Usage"),
    "wrong_model_key": (
        _command("speechlmm_train", "run", "model/text_decoder=tiny_llama", "model.text_decoder.chat_templat=x"),
        2,
        "did you mean 'chat_template'?",
    ),
    "wrong_data_key": (_command("speechlmm_train", "run", "data.trian=[a.jsonl]"), 2, "did you mean 'train'?"),
    "python": ([sys.executable, "-c", "print('Usage')"], 0, "Usage"),
    "import_torch": ([sys.executable, "-c", "import torch; print('Usage')"], 0, "Usage"),
}


def _run(name: str) -> None:
    command, code, said = CASES[name]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != code or said not in done.stdout + done.stderr:
        raise RuntimeError(f"{name}: exit code {done.returncode}: {done.stdout}{done.stderr}")


def main() -> None:
    """Measures every case."""
    seconds = compare({name: (lambda name=name: _run(name)) for name in CASES}, repeats=9)
    result: dict[str, Any] = {
        "median_seconds": {name: round(value, 3) for name, value in seconds.items()},
        "goals_seconds": GOALS,
        "met": {name: seconds[name] <= goal for name, goal in GOALS.items()},
        "import_torch_over_wrong_key": round(seconds["import_torch"] / seconds["wrong_model_key"], 2),
    }
    report("cli_startup", result)


if __name__ == "__main__":
    main()
