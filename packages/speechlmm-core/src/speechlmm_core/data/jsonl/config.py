"""Configuration of the `jsonl` dataset. Imports no torch."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from speechlmm_core.errors import DataError
from speechlmm_core.interfaces.dataset import EVERYTHING, DatasetConfig, Selection

if TYPE_CHECKING:
    from speechlmm_core.data.examples import Examples


class JsonlDatasetConfig(DatasetConfig):
    """Manifests with one JSON object a line.

    A line is ``{audio and/or video, text, task?, language?, source_language?, target_language?, transcript?,
    source_text?, instruction?, speaker?, quality?, fields?, duration?, id?}`` or
    ``{messages: [{role, content: [{type: audio, path, transcript?, start?, end?} | {type: text, text}]}], …}``.
    `audio` and `video` are a path or ``{path, start?, end?}`` (seconds); inputs with other names stand under
    ``media: {<input>: …}``. The task is `asr` for lines with media and `chat` for lines with messages unless the line
    or the specification says otherwise. Paths are relative to the manifest. Further keys are metadata and are passed
    over.
    """

    type: Literal["jsonl"] = "jsonl"
    path: str = ""
    """The manifest, a folder of `<partition>.jsonl`, or a template (`{partition}/{language}.jsonl`); a relative path
    starts at the file that names it."""
    columns: dict[str, str | None] = Field(default_factory=dict)
    """Source by field of the example, where lines have keys of other names: a key, a template of keys, or `=constant`;
    null for a key that is not meant."""
    strict: ClassVar[bool] = True

    def read(self, base: Path, selection: Selection = EVERYTHING) -> Examples:
        """Checks every line, and opens the manifests as a random-access sequence.

        Raises:
            DataError: A manifest cannot be read, or lines are wrong: all of them are counted, the first are listed.
        """
        return self.open(base, selection)

    def open(
        self, base: Path, selection: Selection = EVERYTHING, *, check_media: bool = True, check_task: bool = True
    ) -> Examples:
        """Opens the manifests.

        Args:
            base: Folder where a relative path starts.
            selection: The part that is read.
            check_media: Whether a missing media file is a fault, or left to whoever reads it.
            check_task: Whether an example must have what the line's task needs; the specification's own task, where
                it names one, is checked by whoever knows its options.

        Raises:
            DataError: A manifest cannot be read, or lines are wrong.
        """
        from speechlmm_core.data.examples import ConcatExamples
        from speechlmm_core.data.faults import Faults
        from speechlmm_core.data.jsonl.files import find_manifests
        from speechlmm_core.data.jsonl.line import LineForm
        from speechlmm_core.data.jsonl.reader import JsonlExamples

        faults = Faults()
        parts: list[JsonlExamples] = []
        for manifest in find_manifests(self._root(base), selection):
            try:
                form = LineForm(self.columns, manifest.told, selection.task)
                check = check_task and selection.task is None
                parts.append(JsonlExamples(manifest.path, check_media=check_media, check_task=check, form=form))
            except DataError as exc:
                faults.extend(exc)
        faults.raise_if_any()
        return parts[0] if len(parts) == 1 else ConcatExamples(parts)

    def partitions(self, base: Path) -> list[str]:
        """Names of the partitions that the path tells apart."""
        from speechlmm_core.data.jsonl.files import partitions_of

        return partitions_of(self._root(base))

    def _root(self, base: Path) -> Path:
        if not self.path:
            raise DataError("a dataset of type 'jsonl' needs the `path` of its manifest")
        try:
            return base / Path(self.path).expanduser()
        except RuntimeError:  # `~` and what is no user
            return base / self.path
