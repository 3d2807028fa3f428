"""What a typed line means."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from speechlmm_serve.chat.line import RESET, Line, parse_line, read_path


@pytest.fixture
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    return tmp_path


@pytest.mark.parametrize("line", ["", "   ", "\n", "\t\r\n"])
def test_an_empty_line_ends(line):
    assert parse_line(line) == Line(end=True)


def test_reset_and_plain_text():
    assert parse_line(" <reset>\n") == Line(reset=True)
    assert parse_line("what is <reset> for?") == Line(text="what is <reset> for?")
    assert parse_line("the audio: is it good?") == Line(text="the audio: is it good?")
    assert parse_line("myaudio:/tmp/x.wav") == Line(text="myaudio:/tmp/x.wav")


@pytest.mark.parametrize("name", ["plain.wav", "two words.wav", "it's.wav", 'a "b".wav', "é ü.wav", "a audio:b.wav"])
@pytest.mark.parametrize(
    "write", [str, lambda name: shlex.quote(str(name)), lambda name: str(name).replace(" ", "\\ ")]
)
def test_every_way_to_write_a_path(tmp_path, name, write):
    path = tmp_path / name
    path.touch()
    assert parse_line(f"audio:{write(path)}\n") == Line(audio=path)
    assert parse_line(f"  what is this?  audio:{write(path)}  ") == Line(text="what is this?", audio=path)


@pytest.mark.parametrize("written", ["~/my clip.wav", "~/my\\ clip.wav", "'~/my clip.wav'", '"~/my clip.wav"'])
def test_the_home_folder(home, written):
    (home / "my clip.wav").touch()
    assert parse_line(f"audio:{written}").audio == home / "my clip.wav"


def test_a_path_that_is_not_there_is_given_back_readable():
    assert read_path("'/no where/x.wav'") == Path("/no where/x.wav")
    assert read_path("/no where/x.wav") == Path("/no where/x.wav")
    assert read_path("/no/it's.wav") == Path("/no/it's.wav")
    assert read_path("~no-such-user-here/x.wav") == Path("~no-such-user-here/x.wav")
    assert read_path("''") == Path("''")


def test_the_last_of_two_paths_counts():
    line = parse_line("compare audio:/no/a.wav and audio:/no/b.wav")
    assert line == Line(text="compare audio:/no/a.wav and", audio=Path("/no/b.wav"))


def test_a_video_is_told_from_an_audio_file(tmp_path):
    assert parse_line("what? video:/no/a.mp4") == Line(text="what?", video=Path("/no/a.mp4"))
    assert parse_line("video:/no/a.mp4 audio:/no/b.wav") == Line(text="video:/no/a.mp4", audio=Path("/no/b.wav"))
    path = tmp_path / "a audio:b.mp4"
    path.touch()
    assert parse_line(f"video:{path}") == Line(video=path)
    assert parse_line("myvideo:/no/a.mp4") == Line(text="myvideo:/no/a.mp4")


@given(st.text())
def test_any_line_is_understood(line):
    found = parse_line(line)
    assert found.end == (not line.strip())
    assert found.reset == (line.strip() == RESET)
    assert bool(found.text) or bool(found.audio or found.video) or found.end or found.reset


@given(st.text(max_size=20), st.text(alphabet=st.characters(exclude_characters="\0", codec="utf-8"), min_size=1))
def test_a_quoted_path_is_read_back(message, name):
    path = "/nowhere-at-all/" + name
    found = parse_line(f"{message} audio:{shlex.quote(path)}")
    if not any(mark in name + message for mark in ("audio:", "video:")):
        assert found.audio == Path(path)
        assert found.text == message.strip()
