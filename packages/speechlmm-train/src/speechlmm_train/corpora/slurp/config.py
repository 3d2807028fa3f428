"""Configuration of the `slurp` dataset. Imports no torch."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field

from speechlmm_core.interfaces.dataset import EVERYTHING, Selection
from speechlmm_train.corpora.config import LayoutDatasetConfig, Strings
from speechlmm_train.corpora.rows import Rows
from speechlmm_train.corpora.slurp.reader import read_slurp


class SlurpDatasetConfig(LayoutDatasetConfig):
    """SLURP (Bastianelli et al., 2020): a row for each recording of a sentence.

    Columns: `id` (the recording's), `slurp_id`, `text`, `scenario`, `action`, `intent`, `slots` (a list of
    `{type, value}`), `speaker`, `audio`, `quality` (one minus the word error rate that the corpus
    gives, where it does), `status`.
    """

    type: Literal["slurp"] = "slurp"
    files: Strings = ("dataset/slurp/{partition}.jsonl",)
    """Templates of the annotations."""
    metadata: str = "dataset/slurp/metadata.json"
    """File with the speakers of the recordings; without it they are unknown."""
    audio_folders: dict[str, str] = Field(default={"train_synthetic": "audio/slurp_synth"})
    """Folders of the recordings, by partition."""
    audio_folder: str = "audio/slurp_real"
    """Folder of the recordings of other partitions."""
    microphone: Literal["headset", "distant", "all"] = "all"
    """Recordings that are used: those of the headset, the others, or all."""

    def records(self, base: Path, selection: Selection = EVERYTHING) -> Rows:
        """Opens a part of the corpus.

        Raises:
            DataError: Files are missing or lines are wrong: all are counted, the first are listed.
        """
        root = self.root(base)
        return read_slurp(self, root, self.layout().find(root, selection))
