"""The folder that an evaluation writes to: predictions as they come, resumable after a kill, and what they are of.

Imports no torch.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

from speechlmm_core.checkpoint.atomic import write_text
from speechlmm_core.checkpoint.provenance import fingerprint
from speechlmm_core.errors import ConfigError, DataError
from speechlmm_train.evaluate.prediction import PREDICTIONS, Prediction, parse_line, write_predictions
from speechlmm_train.evaluate.questions import same_question
from speechlmm_train.folders import make_folder

ABOUT = "predictions.about.json"
REPORT = "report"
"""Name of the reports, before `.json`, `.md` and `.html`."""
FORMAT = 1


def model_fingerprint(folder: Path) -> str:
    """A fingerprint of a checkpoint's files; where they lie does not matter."""
    kinds = ("*.json", "*.safetensors", "*.jinja", "tokenizer*")
    files = {path for kind in kinds for path in folder.glob(kind) if path.is_file()}
    return fingerprint(sorted(files))


class EvaluationFolder:
    """An evaluation's folder.

    Args:
        path: The folder; made by `open`.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.predictions = path / PREDICTIONS
        self.about = path / ABOUT
        self.reports = [path / f"{REPORT}.{kind}" for kind in ("json", "md", "html")]

    def check(self, *, resume: bool, overwrite: bool) -> None:
        """Refuses to touch what is there already.

        Raises:
            ConfigError: An evaluation is there and neither flag is given, or both are, or it cannot be written to.
        """
        if resume and overwrite:
            raise ConfigError("give either --resume or --overwrite, not both")
        for file in (self.predictions, *self.reports):
            if file.exists() and not (resume or overwrite):
                raise ConfigError(
                    f"{str(file)!r} is there already; replace it with --overwrite, go on with --resume, or choose "
                    "--output-dir"
                )
        self.make()

    def make(self) -> None:
        """Makes the folder.

        Raises:
            ConfigError: It cannot be written to.
        """
        make_folder(self.path, "--output-dir")

    def kept(self, about: Mapping[str, Any]) -> dict[str, Prediction]:
        """What an earlier evaluation left, to go on with: predictions that succeeded, by key. Writes nothing.

        Args:
            about: What decides the answers: fingerprint of the model, options, data.

        Raises:
            ConfigError: What is there is of another model, other data or other options.
            DataError: What is there are no predictions.
        """
        if not self.predictions.exists():
            return {}
        self._check_same(about)
        return {one.key: one for one in self._read() if one.error is None}

    def begin(self, about: Mapping[str, Any], kept: Mapping[str, Prediction]) -> None:
        """Begins an evaluation: what is there goes, its reports as well, but for the predictions that are kept."""
        for report in self.reports:
            report.unlink(missing_ok=True)
        write_text(self.about, json.dumps({"format": FORMAT, **about}, indent=2) + "\n")
        write_predictions(self.predictions, list(kept.values()))

    def append(self) -> IO[str]:
        """The file of predictions, to be written to at its end."""
        return self.predictions.open("a", encoding="utf-8")

    def write_report(self, kind: str, text: str) -> Path:
        """Writes one form of the report atomically."""
        path = self.path / f"{REPORT}.{kind}"
        write_text(path, text)
        return path

    def _check_same(self, about: Mapping[str, Any]) -> None:
        try:
            found = json.loads(self.about.read_text(encoding="utf-8"))
            before = {name: found[name] for name in about} if found["format"] == FORMAT else {}
        except (OSError, ValueError, KeyError, TypeError):
            before = {}
        if not before:
            raise ConfigError(
                f"{str(self.predictions)!r} cannot be gone on with: {ABOUT} beside it, which says what they are of, "
                "is missing or of another version; replace them with --overwrite"
            )
        for name, value in json.loads(json.dumps(about)).items():
            if before[name] != value:
                raise ConfigError(
                    f"{str(self.predictions)!r} is of {_differing(name, before[name], value)}; replace it with "
                    "--overwrite, or choose --output-dir"
                )

    def _read(self) -> list[Prediction]:
        found: list[Prediction] = []
        lines = self.predictions.read_bytes().split(b"\n")
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            row = parse_line(line.decode("utf-8", errors="replace"))
            if not isinstance(row, str):
                found.append(row)
            elif number < len(lines):  # the last line was torn when the earlier evaluation was killed
                raise DataError(f"{self.predictions}:{number}: {row}")
        return found


def check_questions(kept: Mapping[str, Prediction], asked: Prediction, path: Path) -> None:
    """Sees that a prediction that is kept answers what would be asked now.

    Raises:
        ConfigError: The data changed.
    """
    differs = same_question(kept[asked.key], asked)
    if differs is not None:
        raise ConfigError(
            f"{str(path)!r}: {asked.key!r} was made from other data (its {differs!r} is not the same); replace the "
            "predictions with --overwrite, or choose --output-dir"
        )


def _differing(name: str, before: Any, now: Any) -> str:
    if isinstance(before, dict) and isinstance(now, dict):
        for key in sorted({*before, *now}):
            if before.get(key) != now.get(key):
                return f"another call: its {name}.{key} was {before.get(key)!r}, not {now.get(key)!r}"
    return f"another {name} ({before!r}, not {now!r})"
