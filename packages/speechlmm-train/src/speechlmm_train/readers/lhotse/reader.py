"""Opens lhotse's manifests as records. Imports no torch."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from speechlmm_core.data.faults import Faults
from speechlmm_core.data.records import Records
from speechlmm_core.errors import DataError
from speechlmm_core.interfaces.dataset import Selection
from speechlmm_train.readers.file_pattern import FoundFile, find_files, find_partitions
from speechlmm_train.readers.lhotse.lines import CutLines, RecordingLines, SupervisionLines
from speechlmm_train.readers.lhotse.shar import SharRecords, is_shar, shar_files
from speechlmm_train.readers.record_reader import ConcatRecords
from speechlmm_train.readers.table.dialect import Decoder, JsonLines
from speechlmm_train.readers.table.line_table import LineTable
from speechlmm_train.readers.unpack import unpacked

if TYPE_CHECKING:
    from speechlmm_train.readers.lhotse.config import LhotseDatasetConfig

ENDINGS = (".jsonl.gz", ".jsonl")


def forms(kind: str) -> list[list[str]]:
    """How recipes name manifests of a kind (`cuts`, `recordings`, `supervisions`), the commonest first."""
    stems = (f"*_{kind}_{{partition}}", f"{kind}_{{partition}}", f"{{partition}}_{kind}", f"*_{kind}", kind)
    return [[stem + ending for ending in ENDINGS] for stem in stems]


def manifest_partitions(config: LhotseDatasetConfig, root: Path) -> list[str]:
    """Names of the partitions that manifests or Shar folders tell."""
    if not root.is_dir() or is_shar(root):
        return []
    if shards := [folder.name for folder in sorted(root.iterdir()) if is_shar(folder)]:
        return sorted(config.names.ours("partition", name) for name in shards)
    for templates in [*_templates(config.cuts, "cuts"), *_templates(config.supervisions, "supervisions")]:
        if found := find_partitions(root, templates, config.names):
            return found
    return []


def open_manifests(config: LhotseDatasetConfig, root: Path, selection: Selection) -> Records:
    """Opens the manifests that the selection asks for.

    Raises:
        DataError: There are none, or what is wrong with them: all faults are counted, the first listed.
    """
    opener = _Opener(config, root, selection)
    parts = opener.shar() or opener.cuts() or opener.supervisions()
    opener.faults.raise_if_any()
    records = ConcatRecords(parts, opener.sources)
    if not len(records):
        raise DataError(
            f"{root}: the manifests have no cuts or supervisions ({', '.join(map(str, opener.sources[:3]))})"
        )
    return records


class _Opener:
    def __init__(self, config: LhotseDatasetConfig, root: Path, selection: Selection) -> None:
        self.config, self.root, self.selection = config, root, selection
        self.folder = root if root.is_dir() else root.parent
        self.languages = {theirs: ours for ours, theirs in config.language_names.items()}
        self.faults = Faults()
        self.sources: list[Path] = []

    def audio_root(self, manifest: Path) -> str:
        base = manifest.parent if self.config.audio_root is None else self.folder / Path(self.config.audio_root)
        return str(base.absolute())

    def shar(self) -> list[Records]:
        """The records of Shar folders; none where there are none."""
        folders = [(self.root, {})] if is_shar(self.root) else []
        if not folders and self.root.is_dir():
            names = self.config.names
            wanted = self.selection.partition and names.written("partition", self.selection.partition)
            inner = [one for one in sorted(self.root.iterdir()) if wanted in (None, one.name) and is_shar(one)]
            folders = [(one, {"partition": names.ours("partition", one.name)}) for one in inner]
        found: list[Records] = []
        for folder, told in folders:
            for path in shar_files(folder):
                self.sources.append(path)
                root = self.audio_root(path)
                with Noted(self.faults, path):
                    found.append(
                        SharRecords(
                            path,
                            unit=self.config.unit,
                            root=root,
                            languages=self.languages,
                            told=told,
                            faults=self.faults,
                        )
                    )
        return found

    def cuts(self) -> list[Records]:
        """The records of cuts; none where there are no such manifests."""
        if self.root.is_file():
            files = [FoundFile(self.root, {})]
        elif self.config.cuts is None and self.config.supervisions is not None:
            return []
        else:
            files = self.files(_templates(self.config.cuts, "cuts"), needed=self.config.cuts is not None)
        found: list[Records] = []
        for one in files:
            root = self.audio_root(one.path)
            dialect = CutLines(Decoder(), unit=self.config.unit, root=root, languages=self.languages)
            found += self.table(one, dialect)
        return found

    def supervisions(self) -> list[Records]:
        """The records of supervisions with their recordings."""
        if self.faults.count:
            return []
        files = self.files(_templates(self.config.supervisions, "supervisions"), needed=True)
        found: list[Records] = []
        for one in files:
            # The recordings of a partition stand in the manifest that is named after it.
            part = Selection(one.told.get("partition", self.selection.partition))
            recordings = self.files(_templates(self.config.recordings, "recordings"), needed=True, selection=part)
            if len(recordings) != 1:
                raise DataError(f"{one.path}: name its one manifest of `recordings` ({len(recordings)} could be it)")
            tables = self.table(recordings[0], JsonLines(Decoder()))
            if tables and isinstance(tables[0], LineTable):
                root = self.audio_root(recordings[0].path)
                lines = RecordingLines(tables[0])
                dialect = SupervisionLines(Decoder(), root=root, languages=self.languages, recordings=lines)
                found += self.table(one, dialect)
        return found

    def files(self, forms: list[list[str]], *, needed: bool, selection: Selection | None = None) -> list[FoundFile]:
        """The manifests that fit the first of the forms that any fits."""
        fault: DataError | None = None
        for templates in forms:
            try:
                return find_files(self.root, templates, selection or self.selection, self.config.names)
            except DataError as exc:
                fault = fault or exc
        if needed and fault is not None:
            there = manifest_partitions(self.config, self.root)
            known = f"; partitions that are there: {', '.join(there)}" if there else ""
            asked = f" for {self.selection.partition!r}" if self.selection.partition else ""
            raise DataError(
                f"{self.root}: neither manifests of cuts (`*_cuts_<partition>.jsonl.gz`), nor of recordings with "
                f"supervisions, nor a Shar folder{asked}{known}"
            ) from fault
        return []

    def table(self, found: FoundFile, dialect: JsonLines) -> list[Records]:
        self.sources.append(found.path)
        made: list[Records] = []
        with Noted(self.faults, found.path):
            _check_name(found.path)
            made.append(
                LineTable(
                    unpacked(found.path),
                    dialect,
                    shown=str(found.path),
                    skip_first=False,
                    where={},
                    parts={},
                    told=found.told,
                    media_root=self.audio_root(found.path),
                    faults=self.faults,
                )
            )
        return made


class Noted:
    """Notes what goes wrong with a file among the faults."""

    def __init__(self, faults: Faults, path: Path) -> None:
        self.faults, self.path = faults, path

    def __enter__(self) -> None:
        return None

    def __exit__(self, _kind: object, exc: BaseException | None, _trace: object) -> bool:
        if isinstance(exc, DataError):
            self.faults.extend(exc)
            return True
        if isinstance(exc, OSError):
            self.faults.add(str(self.path), f"cannot be read: {exc.strerror or exc}")
            return True
        return False


def _templates(given: str | list[str] | None, kind: str) -> list[list[str]]:
    if given is None:
        return forms(kind)
    return [[given] if isinstance(given, str) else given]


def _check_name(path: Path) -> None:
    if not path.name.endswith(ENDINGS):
        raise DataError(
            f"{path}: expected a manifest by lines (.jsonl, .jsonl.gz); convert it (`lhotse copy {path.name} "
            f"{path.name.split('.')[0]}.jsonl.gz`, from speechlmm-train[lhotse])"
        )
