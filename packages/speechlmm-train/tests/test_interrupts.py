"""Ctrl-C that comes twice counts once, and what is left of a run is said in any case."""

import logging
import os
import signal
import time

import click
import pytest

from speechlmm_train import interrupts
from speechlmm_train.cli.errors import report
from speechlmm_train.cli.main import cli, main
from speechlmm_train.interrupts import heed_once, interrupted_by
from speechlmm_train.launch import local
from speechlmm_train.launch.job import Job
from speechlmm_train.launch.state import State


@pytest.fixture(autouse=True)
def handler():
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def interrupt():
    os.kill(os.getpid(), signal.SIGINT)
    for _ in range(10):  # where Python runs handlers
        time.sleep(0.001)


def test_the_same_ctrl_c_counts_once_and_a_later_one_again(monkeypatch):
    heed_once()
    with pytest.raises(KeyboardInterrupt):
        interrupt()
    interrupt()
    monkeypatch.setattr(interrupts, "SAME_S", 0.0)
    with pytest.raises(KeyboardInterrupt):
        interrupt()


def test_a_handler_of_ones_own_stays():
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    heed_once()
    assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN


def test_an_exception_of_ones_own_is_raised_in_the_block_alone():
    with interrupted_by(lambda: LookupError("stop")):
        with pytest.raises(LookupError, match="stop"):
            interrupt()
        interrupt()
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_what_an_interrupted_command_says_is_told(capsys):
    for words, told in (("interrupted; all is lost", "interrupted; all is lost"), ("", "interrupted")):

        @click.command()
        def stopped(words=words):
            raise KeyboardInterrupt(*([words] if words else []))

        with pytest.raises(click.Abort) as caught:
            stopped.main([], standalone_mode=False)
        capsys.readouterr()
        assert report(caught.value) == 130
        assert capsys.readouterr().err == f"error: {told}\n"
    assert report(click.Abort()) == 130
    assert capsys.readouterr().err == "error: interrupted\n"


@pytest.mark.parametrize("rank_says", [True, False])
def test_what_is_left_is_said_once_whether_or_not_the_first_rank_came_to_it(tmp_path, monkeypatch, capfd, rank_says):
    out = tmp_path / "out"
    left = "interrupted; the last checkpoint is checkpoint-5, and --resume goes on from there"

    def run_processes(_, *, logs, **__):
        (out / "checkpoint-5").mkdir()
        logs.mkdir()
        (logs / "rank-0.err").write_text(f"train: 5/9\nerror: {left}\n" if rank_says else "train: 5/9\n")
        return 130

    monkeypatch.setattr(local, "run_processes", run_processes)
    assert local.run_job(Job({"training": {"output_dir": str(out)}}, str(tmp_path)), processes=2) == 130
    # What rank 0 says is shown where its log is followed, which is not done here.
    assert capfd.readouterr().err == ("" if rank_says else f"error: {left}\n")
    state = State.read(out)
    assert (state.state, state.exit_code, state.reason) == ("failed", 130, left)


def test_no_command_shows_what_libraries_say_when_they_are_imported(monkeypatch, caplog):
    def imports(*_, **__):
        logging.getLogger("bitsandbytes.backends.cpu.ops").warning(
            "Failed to load CPU gemm_4bit_forward from kernels-community: %s.", "No module named 'kernels'"
        )
        logging.getLogger("bitsandbytes.backends.cpu.ops").warning("the library is broken")
        logging.getLogger("DeepSpeed").warning("Setting accelerator to CPU.")
        logging.getLogger("DeepSpeed").warning("no compiler")

    monkeypatch.setattr(cli, "main", imports)
    monkeypatch.setattr(logging.getLogger("DeepSpeed"), "propagate", True)
    for name in ("bitsandbytes.backends.cpu.ops", "DeepSpeed"):
        caplog.set_level(logging.WARNING, logger=name)
    with pytest.raises(SystemExit):
        main(["plan"])
    told = [record.getMessage() for record in caplog.records]  # DeepSpeed's twice, where its own handler stands there
    assert list(dict.fromkeys(told)) == ["the library is broken", "no compiler"]
