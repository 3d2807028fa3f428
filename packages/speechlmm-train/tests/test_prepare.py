"""`speechlmm-train prepare` on corpora made by hand."""

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from click.testing import CliRunner

from speechlmm_core.data.index.layout import HEADER
from speechlmm_core.data.index.open import index_dir_of, open_prepared
from speechlmm_core.data.index.prepared import PreparedExamples
from speechlmm_core.data.index.views import prepared_in
from speechlmm_core.data.spec.file import read_spec
from speechlmm_core.data.spec.open import open_spec
from speechlmm_core.data.spec.parts import parts_of
from speechlmm_core.errors import DataError
from speechlmm_train.cli.main import cli
from speechlmm_train.prepare.prepare import JOURNAL, prepare
from speechlmm_train.prepare.report import PreparationReport
from speechlmm_train.prepare.settings import Settings

RATE = 16_000


def sound(path: Path, seconds: float, seed: int = 0, level: float = 0.1) -> None:
    """Noise, so that no two seeds have the same bytes."""
    values = np.random.default_rng(seed).uniform(-level, level, round(seconds * RATE))
    soundfile.write(path, values.astype(np.float32), RATE, subtype="PCM_16")


def manifest(folder: Path, rows: list[dict[str, Any]], name: str = "m") -> Path:
    (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder / f"{name}.jsonl"


def spec_of(folder: Path, *lines: str) -> Path:
    path = folder / "s.yaml"
    path.write_text("datasets:\n" + "".join(f"- {{{line}}}\n" for line in lines))
    return path


def run(spec: Path, *, check: Any = "fast", jobs: int = 0, **options: Any) -> PreparationReport:
    settings = Settings(check, options.pop("max_duration", None))
    index_dir = options.pop("index_dir", index_dir_of(spec))
    return prepare(spec, index_dir=index_dir, settings=settings, jobs=jobs, progress=False, **options)


@pytest.fixture(autouse=True)
def no_picture(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Drawing takes longer than all the rest; one test looks at the picture."""
    if "picture" not in request.node.name:
        monkeypatch.setattr("speechlmm_train.prepare.histogram.draw_histogram", lambda *_: False)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The files of `corpus` and of `many`, made once."""
    tmp_path = tmp_path_factory.mktemp("made")
    (tmp_path / "many").mkdir()
    for number in range(400):
        sound(tmp_path / "many" / f"{number}.wav", 0.2, number)
    for number in range(4):
        sound(tmp_path / f"{number}.flac", 1 + number, number)
    sound(tmp_path / "copy.flac", 1, 0)
    sound(tmp_path / "silent.wav", 1, 9, level=1e-5)
    sound(tmp_path / "clipped.wav", 1, 10, level=1)
    values, _ = soundfile.read(tmp_path / "clipped.wav", dtype="float32")
    soundfile.write(tmp_path / "clipped.wav", np.clip(values * 2, -1, 1), RATE, subtype="FLOAT")
    sound(tmp_path / "long.flac", 30, 11)
    whole = (tmp_path / "3.flac").read_bytes()
    (tmp_path / "cut.flac").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "text.wav").write_text("no sound at all")
    return tmp_path


@pytest.fixture
def corpus(tmp_path: Path, made: Path) -> Path:
    """Four good rows, and one for each reason."""
    for path in made.glob("*.*"):
        shutil.copy2(path, tmp_path)
    rows: list[dict[str, Any]] = [{"audio": f"{n}.flac", "text": f"row {n}", "language": "en"} for n in range(4)]
    rows += [
        {"audio": "copy.flac", "text": "Row 0", "id": "copy", "language": "en"},
        {"audio": "silent.wav", "text": "hush", "id": "silent"},
        {"audio": "clipped.wav", "text": "loud", "id": "clipped"},
        {"audio": "long.flac", "text": "long", "id": "long"},
        {"audio": "cut.flac", "text": "cut", "id": "cut"},
        {"audio": "text.wav", "text": "text", "id": "text"},
        {"audio": "missing.wav", "text": "missing", "id": "missing"},
        {"audio": {"path": "1.flac", "start": 1.0, "end": 9.0}, "text": "late", "id": "late"},
        {"audio": {"path": "3.flac", "start": 0.5, "end": 1.5}, "text": "a part", "id": "part"},
        {"audio": {"path": "3.flac", "start": 0.5, "end": 1.5}, "text": "a part", "id": "same part"},
        {"audio": "2.flac", "text": " ", "id": "empty"},
        {"audio": {"path": "3.flac", "start": 0, "end": 1}, "text": "a b c d e f g h i j k l", "id": "fast"},
        {"audio": {"path": "3.flac", "start": 1, "end": 2}, "text": "abcdefghijklmnopqrstuvwxyz", "id": "dense"},
    ]
    manifest(tmp_path, rows)
    return spec_of(tmp_path, "type: jsonl, path: m.jsonl, name: m")


def reasons(spec: Path) -> dict[str, str]:
    lines = (index_dir_of(spec) / "quarantine.jsonl").read_text().splitlines()
    return {row["id"]: row["reason"] for row in map(json.loads, lines)}


def opened(spec: Path) -> PreparedExamples:
    part = parts_of(read_spec(spec).datasets[0], spec.parent)[0]
    found = open_prepared(index_dir_of(spec), part.name, part.spec.reader, spec.parent, part.selection)
    assert found is not None
    return found


FAST = {
    "copy": "duplicate",
    "same part": "duplicate",
    "text": "unreadable",
    "missing": "unreadable",
    "cut": "unreadable",
    "long": "too long",
    "late": "no such segment",
    "empty": "empty text",
    "fast": "too many words per minute",
    "dense": "transcript longer than the frames allow",
}


def test_each_reason_is_found_by_its_check(corpus: Path) -> None:
    report = run(corpus, max_duration=20)
    assert reasons(corpus) == FAST  # what is silent shows only when it is decoded
    part = report.parts[0]
    assert part.total == 17
    assert part.kept + sum(part.reasons.values()) == part.total
    assert Counter(part.reasons) == Counter(FAST.values())
    report = run(corpus, check="full", max_duration=20)
    assert reasons(corpus) == {**FAST, "silent": "silent"}
    part = report.parts[0]
    assert part.kept + sum(part.reasons.values()) == part.total
    assert part.clipped == 1
    assert report.parts[0].quarantine[0].place == f"{corpus.parent / 'm.jsonl'}:5"
    page = (index_dir_of(corpus) / "report.md").read_text()
    assert "| m | train | 17 | 6 |" in page
    assert "truncated" in page


def test_the_index_holds_what_soundfile_and_hashlib_say(corpus: Path) -> None:
    run(corpus, max_duration=20)
    found = opened(corpus)
    for index, example in enumerate(found):
        item = example.media["audio"]
        info = soundfile.info(item["path"])
        assert found.headers(index) == [(info.frames, info.samplerate)]
        expected = item["end"] - item["start"] if "end" in item else info.duration
        assert found.seconds[index] == pytest.approx(expected)
        first = int(found.column("media_starts")[found.rows[index]])
        digest = hashlib.blake2b(Path(item["path"]).read_bytes(), digest_size=16).digest()
        assert found.column("hashes")[first].tobytes() == digest
        assert found.num_words[index] == len((example.text or "").split())


def test_a_prepared_specification_opens_to_the_same_examples_without_a_look_at_audio(
    corpus: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(corpus, max_duration=20)
    bad = set(FAST)
    lines = [json.loads(line) for line in (corpus.parent / "m.jsonl").read_text().splitlines()]
    kept = [line for number, line in enumerate(lines, 1) if line.get("id", str(number)) not in bad]
    for line in kept:  # numbers stand for ids where there are none
        line.setdefault("id", str(lines.index(line) + 1))
    manifest(corpus.parent, kept, "good")
    spec_of(corpus.parent, "type: jsonl, path: good.jsonl, name: m").rename(corpus.parent / "good.yaml")
    expected = open_spec(read_spec(corpus.parent / "good.yaml"), base=corpus.parent)[0]
    spec_of(corpus.parent, "type: jsonl, path: m.jsonl, name: m")
    real = os.open
    touched: list[str] = []
    monkeypatch.setattr(os, "open", lambda path, *rest, **more: touched.append(str(path)) or real(path, *rest, **more))
    monkeypatch.setattr(soundfile, "SoundFile", lambda *_: pytest.fail("opened audio"))
    found = open_spec(read_spec(corpus), base=corpus.parent, index_dir=index_dir_of(corpus))[0]
    assert [one.model_dump() for one in found.examples] == [one.model_dump() for one in expected.examples]
    assert found.total == 17
    assert dict(found.dropped) == Counter(FAST.values())
    assert not [path for path in touched if path.endswith((".flac", ".wav"))]


def test_filters_of_a_prepared_specification_choose_the_same(tmp_path: Path) -> None:
    for number in range(6):
        sound(tmp_path / f"{number}.flac", 1 + number / 2, number)
    manifest(tmp_path, [{"audio": f"{n}.flac", "text": "w " * (n % 4 + 1)} for n in range(6)])
    for line in ("max_duration: 2.7", "min_duration: 1.3, max_num_words: 3", 'amount: "20%:80%"', "amount: 4"):
        spec = spec_of(tmp_path, f"type: jsonl, path: m.jsonl, name: m, task: ASR, {line}")
        plain = open_spec(read_spec(spec), base=tmp_path)
        run(spec)
        fast = open_spec(read_spec(spec), base=tmp_path, index_dir=index_dir_of(spec))
        assert [one.id for one in fast[0].examples] == [one.id for one in plain[0].examples]
        assert (fast[0].total, fast[0].dropped) == (plain[0].total, plain[0].dropped)


def test_sets_for_evaluation_are_kept_whole(corpus: Path) -> None:
    spec = spec_of(corpus.parent, "type: jsonl, path: m.jsonl, name: m, destination: test")
    report = run(spec, max_duration=20)
    assert report.parts[0].kept == 17
    assert not report.parts[0].reasons
    assert Counter(report.parts[0].flagged) == Counter(FAST.values())
    assert "kept whole" in (index_dir_of(spec) / "report.md").read_text()
    command = CliRunner().invoke(cli, ["prepare", str(spec), "--jobs", "0", "--no-progress"])
    assert "17 rows, 17 used" in command.output
    assert "9 kept for evaluation that training would leave out" in command.output  # without the limit on seconds


def test_what_cannot_be_loaded_fails_in_evaluation_with_an_index_and_without(corpus: Path) -> None:
    for more in ("", ", min_duration: 0.5, max_duration: 25"):
        lines = "columns: {audio: audio, text: text}, destination: test" + more
        spec = spec_of(corpus.parent, f"type: table, path: m.jsonl, name: m, task: asr, {lines}")
        (plain,) = open_spec(read_spec(spec), base=spec.parent)
        run(spec)
        (fast,) = open_spec(read_spec(spec), base=spec.parent, index_dir=index_dir_of(spec))
        assert len(prepared_in(fast.examples)) == 1
        assert [one.model_dump() for one in fast.examples] == [one.model_dump() for one in plain.examples]
        assert (fast.total, fast.dropped) == (plain.total, plain.dropped)
        found = {one.text for one in fast.examples}
        assert {"text", "missing"} <= found if not more else not {"text", "missing", "long"} & found


def test_what_was_prepared_for_something_else_is_not_taken(corpus: Path) -> None:
    for first, then in (("train", "test"), ("test", "train")):
        entry = "type: jsonl, path: m.jsonl, name: m, destination: "
        run(spec_of(corpus.parent, entry + first))
        spec = spec_of(corpus.parent, entry + then)
        with pytest.raises(DataError, match=f"prepared for '{first}', and now for '{then}'.*speechlmm-train prepare"):
            open_spec(read_spec(spec), base=spec.parent, index_dir=index_dir_of(spec))


def test_only_what_is_new_is_read(tmp_path: Path) -> None:
    rows = [{"audio": f"{n}.wav", "text": f"row {n}"} for n in range(4)]
    for number in range(4):
        sound(tmp_path / f"{number}.wav", 1, number)
    manifest(tmp_path, rows)
    spec = spec_of(tmp_path, "type: jsonl, path: m.jsonl, name: m")
    assert run(spec).files_read == 4
    before = [bytes(one) for one in opened(spec).column("hashes")]
    # Other bytes of the same size and time: were the file opened, its hash would be another.
    state = (tmp_path / "0.wav").stat()
    data = bytearray((tmp_path / "0.wav").read_bytes())
    data[-5] ^= 1
    (tmp_path / "0.wav").write_bytes(data)
    os.utime(tmp_path / "0.wav", ns=(state.st_atime_ns, state.st_mtime_ns))
    sound(tmp_path / "2.wav", 2, 22)
    sound(tmp_path / "4.wav", 1, 4)
    manifest(tmp_path, [rows[3], *rows[:3], {"audio": "4.wav", "text": "row 4"}])
    with pytest.raises(DataError, match=r"m\.jsonl has changed.*speechlmm-train prepare .*s\.yaml"):
        opened(spec)
    assert run(spec).files_read == 2
    after = [bytes(one) for one in opened(spec).column("hashes")]
    assert [after[1], after[2], after[0]] == [before[0], before[1], before[3]]
    assert after[3] != before[2]
    assert run(spec).files_read == 0
    assert run(spec, check="full").files_read == 5
    assert run(spec, check="full").files_read == 0
    assert run(spec).files_read == 0  # what was decoded is not forgotten
    assert run(spec, check="full").files_read == 0
    assert run(spec, redo=True).files_read == 5


def test_a_file_that_several_parts_use_is_read_once(tmp_path: Path) -> None:
    sound(tmp_path / "a.flac", 3)
    halves = [{"audio": {"path": "a.flac", "start": n, "end": n + 1}, "text": f"{n}"} for n in range(3)]
    manifest(tmp_path, halves, "one")
    manifest(tmp_path, halves[:2], "two")
    spec = spec_of(tmp_path, "type: jsonl, path: one.jsonl, name: one", "type: jsonl, path: two.jsonl, name: two")
    report = run(spec, check="full")
    assert report.files_read == 1
    assert [part.kept for part in report.parts] == [3, 2]
    assert run(spec, check="full").files_read == 0


def test_parts_of_containers_are_hashed_by_their_bytes(tmp_path: Path) -> None:
    from speechlmm_train.prepare.media import Medium, measure_medium

    sound(tmp_path / "a.flac", 1)
    data = (tmp_path / "a.flac").read_bytes()
    (tmp_path / "shard").write_bytes(b"x" * 100 + data + b"y" * 50)
    status = (tmp_path / "shard").stat()
    item = {"type": "audio", "path": str(tmp_path / "shard"), "offset": 100, "size": len(data)}
    found = measure_medium(Medium(7, item, (status.st_size, status.st_mtime_ns), ((None, None),)))
    assert (found.number, found.fault, found.header) == (7, None, (RATE, RATE))
    assert found.digest == hashlib.blake2b(data, digest_size=16).digest()
    in_memory = measure_medium(Medium(8, {"type": "audio", "bytes": data}, (0, 0), ()))
    assert (in_memory.digest, in_memory.header) == (found.digest, found.header)
    changed = measure_medium(Medium(9, item, (status.st_size, status.st_mtime_ns + 1), ()))
    assert changed.fault == f"{tmp_path / 'shard'}: changed while it was read; prepare it again when it is complete"


def test_loudness_is_that_of_the_samples(tmp_path: Path) -> None:
    from speechlmm_core.media.source import MediaSource
    from speechlmm_train.prepare.media import loudness_of

    rng = np.random.default_rng(3)
    values = (rng.uniform(-1, 1, 100_003) * np.linspace(0, 1.5, 100_003)).clip(-1, 1).astype(np.float32)
    soundfile.write(tmp_path / "a.wav", values, RATE, subtype="FLOAT")
    segments = [(None, None), (0.0, 1.0), (2.0, 6.0), (6.2, None), (7.0, 8.0)]
    found = loudness_of(MediaSource(tmp_path / "a.wav"), segments)
    for (start, end), (peak, clipped) in zip(segments[:4], found, strict=False):
        part = np.abs(values[round((start or 0) * RATE) : round(end * RATE) if end else None])
        assert peak == pytest.approx(part.max())
        assert clipped == pytest.approx(np.mean(part >= 0.999), abs=1e-6)
    assert np.isnan(found[4]).all()
    values[5] = np.nan
    soundfile.write(tmp_path / "nan.wav", values, RATE, subtype="FLOAT")
    with pytest.raises(DataError, match="no numbers"):
        loudness_of(MediaSource(tmp_path / "nan.wav"), segments)


@pytest.fixture
def many(tmp_path: Path, made: Path) -> Path:
    shutil.copytree(made / "many", tmp_path, dirs_exist_ok=True)
    manifest(tmp_path, [{"audio": f"{n}.wav", "text": f"{n}"} for n in range(400)])
    return spec_of(tmp_path, "type: jsonl, path: m.jsonl, name: m")


UNHURRIED = """
import time
from speechlmm_train.cli.main import main
from speechlmm_train.prepare.known import Journal

append = Journal.append

def append_and_wait(self, records):  # so that what ends the process finds it at work, however late it comes
    append(self, records)
    time.sleep(0.5)

Journal.append = append_and_wait
if __name__ == "__main__":
    main()
"""


def start(spec: Path, *options: str) -> subprocess.Popen[bytes]:
    script = spec.parent / "start.py"
    script.write_text(UNHURRIED)
    command = [sys.executable, str(script), "prepare", str(spec), "--jobs", "1", "--no-progress", *options]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def wait_for_journal(spec: Path, process: subprocess.Popen[bytes]) -> None:
    journal = index_dir_of(spec) / JOURNAL
    until = time.monotonic() + 60
    while process.poll() is None and time.monotonic() < until and not (journal.exists() and journal.stat().st_size):
        time.sleep(0.001)


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_a_preparation_that_was_ended_goes_on_where_it_was(many: Path, how: signal.Signals) -> None:
    process = start(many)
    wait_for_journal(many, process)
    process.send_signal(how)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == (-9 if how == signal.SIGKILL else 130), errors
    assert how == signal.SIGKILL or errors.strip() == b"error: interrupted"
    assert not list(index_dir_of(many).glob(f"*/{HEADER}"))
    resumed = run(many)
    assert 0 < resumed.files_read < 400
    assert resumed.parts[0].kept == 400
    names = {path.name for path in index_dir_of(many).iterdir() if not path.is_dir()}
    assert names == {".lock", "report.md", "quarantine.jsonl"}
    whole = run(many, index_dir=many.parent / "again")
    assert whole.files_read == 400
    for file in sorted((many.parent / "again").glob("*/*")):
        if file.name != HEADER:
            assert file.read_bytes() == (index_dir_of(many) / file.parent.name / file.name).read_bytes(), file.name


class Bomb:
    """Ends the process that unpickles it, as a decoder's crash does."""

    def __reduce__(self) -> tuple[Any, tuple[int]]:
        return os._exit, (3,)


def test_the_file_that_a_decoder_crashes_on_is_found(tmp_path: Path) -> None:
    from speechlmm_train.prepare.media import Medium
    from speechlmm_train.prepare.pool import MediaPool

    media: list[Medium] = []
    for number in range(6):
        sound(tmp_path / f"{number}.wav", 0.1, number)
        status = (tmp_path / f"{number}.wav").stat()
        item: dict[str, Any] = {"type": "audio", "path": str(tmp_path / f"{number}.wav")}
        if number == 4:
            item["bomb"] = Bomb()
        media.append(Medium(number, item, (status.st_size, status.st_mtime_ns)))
    with MediaPool(1) as pool:
        found = {one.number: one for chunk in pool.run([media[:3], media[3:]]) for one in chunk}
    assert sorted(found) == list(range(6))
    assert [number for number, one in found.items() if one.fault] == [4]
    assert found[4].fault == f"{tmp_path / '4.wav'}: the decoder crashed; check it or convert it"


def test_two_preparations_at_once(corpus: Path) -> None:
    from speechlmm_train.prepare.lock import locked

    index_dir_of(corpus).mkdir()
    with (
        locked(index_dir_of(corpus)),
        pytest.raises(DataError, match=rf"another `speechlmm-train prepare` \(process {os.getpid()}\)"),
    ):
        run(corpus)
    assert run(corpus).parts


def test_an_index_that_cannot_be_written(corpus: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (corpus.parent / "file").touch()
    with pytest.raises(DataError, match=r"cannot write the index .*Not a directory.*--index-dir"):
        run(corpus, index_dir=corpus.parent / "file" / "x")
    run(corpus, max_duration=20)
    before = {path: path.read_bytes() for path in index_dir_of(corpus).glob("*/*")}

    def full(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    for name in ("numpy.save", "speechlmm_train.prepare.known.os.write"):
        with monkeypatch.context() as patch:
            patch.setattr(name, full)
            with pytest.raises(DataError, match=r"cannot write the index .*No space left on device; make room"):
                run(corpus, redo=True)
        assert {path: path.read_bytes() for path in index_dir_of(corpus).glob("*/*")} == before
    assert run(corpus, max_duration=20).parts[0].kept == 7


def test_what_a_newer_release_wrote_is_not_overwritten(corpus: Path) -> None:
    run(corpus)
    header = next(index_dir_of(corpus).glob(f"*/{HEADER}"))
    header.write_text(json.dumps({**json.loads(header.read_text()), "version": 99}))
    with pytest.raises(DataError, match=r"version 99.*--redo"):
        run(corpus)
    assert run(corpus, redo=True).files_read == 10


def test_a_damaged_index_is_made_again(corpus: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert run(corpus).files_read == 10
    next(index_dir_of(corpus).glob("*/keys.npy")).write_bytes(b"")
    assert run(corpus).files_read == 10
    assert "keys.npy: damaged index (0 bytes, expected" in caplog.text
    assert len(opened(corpus))


def test_a_manifest_that_changes_while_it_is_prepared(corpus: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from speechlmm_train.prepare import prepare as module

    real = module.read_missing

    def meanwhile(*args: Any, **options: Any) -> Any:
        with (corpus.parent / "m.jsonl").open("a") as file:
            file.write('{"audio": "0.flac", "text": "new"}\n')
        return real(*args, **options)

    monkeypatch.setattr(module, "read_missing", meanwhile)
    with pytest.raises(DataError, match=r"m\.jsonl has changed: .* while it was prepared; start again"):
        run(corpus)
    monkeypatch.undo()
    assert run(corpus).files_read < 3  # only those that cannot be read are tried again


def test_odd_names(tmp_path: Path) -> None:
    names = ["ä ö.wav", "名前.wav", "new\nline.wav", "tab\t|.wav", "$x^2$.wav"]
    for number, name in enumerate(names):
        sound(tmp_path / name, 1, number)
    rows = [{"audio": name, "text": name, "id": name} for name in names]
    manifest(tmp_path, [*rows, {"audio": "x" * 300 + ".wav", "text": "long", "id": "long"}])
    spec = spec_of(tmp_path, 'type: jsonl, path: m.jsonl, name: "größe $x$ | y"')
    report = run(spec)
    assert report.parts[0].kept == len(names)
    assert reasons(spec) == {"long": "unreadable"}
    assert [
        one.id for one in open_spec(read_spec(spec), base=tmp_path, index_dir=index_dir_of(spec))[0].examples
    ] == names


def test_the_picture_shows_each_dataset(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from matplotlib.axes import Axes

    drawn: list[tuple[str, int]] = []
    real = Axes.hist

    def hist(self: Axes, values: Any, **options: Any) -> Any:
        drawn.append((options.get("label", ""), len(values)))
        return real(self, values, **options)

    monkeypatch.setattr(Axes, "hist", hist)
    sound(tmp_path / "a.wav", 1)
    parts = [{"audio": {"path": "a.wav", "end": n / 10}, "text": f"{n}"} for n in range(2, 8)]
    manifest(tmp_path, parts, "a")
    manifest(tmp_path, parts[:2], "b")
    spec = spec_of(tmp_path, 'type: jsonl, path: a.jsonl, name: "$a"', "type: jsonl, path: b.jsonl, name: b")
    run(spec)
    assert (index_dir_of(spec) / "durations.png").read_bytes().startswith(b"\x89PNG")
    assert drawn == [  # of several sets only the outlines, with a legend for each half
        (r"\$a (6 rows, median 0.45 s)", 6),
        ("b (2 rows, median 0.25 s)", 2),
        (r"\$a (6 rows, median 135 a minute)", 6),
        ("b (2 rows, median 250 a minute)", 2),
    ]
    assert "durations.png" in (index_dir_of(spec) / "report.md").read_text()


def test_a_limit_is_for_trying_out(corpus: Path) -> None:
    assert run(corpus, limit=3).parts[0].total == 3
    part = parts_of(read_spec(corpus).datasets[0], corpus.parent)[0]
    found = open_prepared(index_dir_of(corpus), part.name, part.spec.reader, corpus.parent, part.selection)
    assert found is None
    assert run(corpus).files_read == 7


def test_the_command(corpus: Path) -> None:
    found = CliRunner().invoke(cli, ["prepare", str(corpus), "--jobs", "0", "--no-progress", "--max-duration", "20"])
    assert found.exit_code == 0, found.output
    assert "17 rows, 7 used, 10 in quarantine; 10 files read" in found.output
    manifest(corpus.parent, [{"audio": "text.wav", "text": "x"}], "bad")
    spec = spec_of(corpus.parent, "type: jsonl, path: m.jsonl, name: m", "type: jsonl, path: bad.jsonl, name: bad")
    found = CliRunner().invoke(cli, ["prepare", str(spec), "--jobs", "0", "--no-progress"], standalone_mode=False)
    assert found.return_value == 1
    assert "error: bad: all of its rows are in quarantine" in found.output


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "no lines"),
        ("{", "bad JSON"),
        (None, "does not exist"),
    ],
)
def test_a_manifest_that_is_none(tmp_path: Path, text: str | None, message: str) -> None:
    if text is not None:
        (tmp_path / "m.jsonl").write_text(text)
    with pytest.raises(DataError, match=message):
        run(spec_of(tmp_path, "type: jsonl, path: m.jsonl, name: m"))


@pytest.mark.parametrize(
    "item",
    [
        {"path": "a\0b.wav"},
        {"path": ""},
        {"path": "/"},
        {"path": 3},
        {},
        {"path": "x", "bytes": b""},
        {"bytes": b""},
        {"bytes": b"fLaC" + bytes(100)},
        {"array": "no", "sampling_rate": 16_000},
        {"array": [0.0, 0.1], "sampling_rate": "fast"},
        {"array": [0.0, 0.1]},
        {"path": "/dev/zero"},
        {"path": "~nobody/x.wav"},
        {"path": "\udcff.wav"},
        {"path": "x", "row": 1},
    ],
)
def test_whatever_is_wrong_with_a_medium_is_told(item: dict[str, Any]) -> None:
    from speechlmm_train.prepare.media import Medium, measure_medium

    found = measure_medium(Medium(0, {"type": "audio", **item}, (0, 0), ((None, None),)))
    assert found.fault
    assert "\n" not in found.fault


def test_a_name_below_conf_datasets(corpus: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (corpus.parent / "conf" / "datasets").mkdir(parents=True)
    text = corpus.read_text().replace("m.jsonl", "../../m.jsonl")
    (corpus.parent / "conf" / "datasets" / "mine.yaml").write_text(text)
    monkeypatch.chdir(corpus.parent)
    found = CliRunner().invoke(cli, ["prepare", "mine", "--jobs", "0", "--no-progress"])
    assert found.exit_code == 0, found.output
    assert len(opened(corpus.parent / "conf" / "datasets" / "mine.yaml")) == 8
    found = CliRunner().invoke(cli, ["prepare", "mine2"], standalone_mode=False)
    assert isinstance(found.exception, DataError)
    assert "no dataset specification 'mine2'; did you mean 'mine'?" in str(found.exception)
