"""Configuration of the `jsonl` dataset. Imports no torch."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal

from speechlmm_core.interfaces.dataset import EVERYTHING, DatasetConfig, Selection

if TYPE_CHECKING:
    from speechlmm_core.data.example import Example


class JsonlDatasetConfig(DatasetConfig):
    """A manifest with one JSON object a line.

    A line is ``{audio and/or video, text, task?, language?, source_language?, target_language?, transcript?,
    duration?, id?}`` or
    ``{messages: [{role, content: [{type: audio, path, transcript?, start?, end?} | {type: text, text}]}], …}``.
    `audio` and `video` are a path or ``{path, start?, end?}`` (seconds); inputs with other names stand under
    ``media: {<input>: …}``. The task is `asr` for lines with media and `chat` for lines with messages unless the line
    says otherwise. Paths are relative to the manifest. Further keys are metadata and are passed over.
    """

    type: Literal["jsonl"] = "jsonl"
    path: str = ""
    """The manifest; a relative path starts at the configuration's folder."""
    strict: ClassVar[bool] = True

    def read(self, base: Path, selection: Selection = EVERYTHING) -> Sequence[Example]:
        """Checks every line, and opens the manifest as a random-access sequence.

        Raises:
            DataError: The manifest cannot be read, or lines are wrong: all of them are counted, the first are listed.
        """
        from speechlmm_core.data.jsonl.reader import JsonlExamples
        from speechlmm_core.errors import DataError

        if not self.path:
            raise DataError("a dataset of type 'jsonl' needs the `path` of its manifest")
        return JsonlExamples(base / Path(self.path).expanduser(), check_task=selection.task is None)
