"""`speechlmm-serve chat`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import click

from speechlmm_core.errors import ConfigError
from speechlmm_serve.cli.options import load_engine, model_options, task_options


@click.command()
@model_options
@task_options(default=None)
@click.option("--audio", type=click.Path(path_type=Path), help="Audio file to start with.")
@click.option("--video", type=click.Path(path_type=Path), help="Video file to start with.")
@click.option("--temperature", type=click.FloatRange(min=0), default=0.2, show_default=True, help="0 is greedy.")
@click.option("--max-new-tokens", type=click.IntRange(min=1), default=512, show_default=True)
def chat(
    *,
    model_path: Path,
    task: str | None,
    source_language: str | None,
    target_language: str | None,
    question: str | None,
    audio: Path | None,
    video: Path | None,
    temperature: float,
    max_new_tokens: int,
    **place: Any,
) -> int:
    """Talk with a model in the terminal.

    An empty message ends the chat, <reset> clears its history and media, and audio:/path/to/file (or
    video:/path/to/file) at the end of a message clears the history and loads that file. With --task, a file without a
    question is asked the task's, and a task about texts (mt, tsum) takes each message as one.
    Reads from a pipe, too; the exit code is then 1 if a message could not be answered.
    """
    from speechlmm_core.inference.options import GenerationOptions
    from speechlmm_serve.chat.line import read_path
    from speechlmm_serve.chat.session import ChatSession
    from speechlmm_serve.chat.terminal import run_chat
    from speechlmm_serve.task_prompt import TaskPrompt

    if audio is not None and video is not None:
        raise ConfigError("give either --audio or --video to start with, not both")
    if question is not None and not task:
        raise ConfigError("--question goes with --task sqa")
    prompt = TaskPrompt.of(task, source_language, target_language, question) if task else None
    if prompt is not None:
        prompt.check()
    engine = load_engine(model_path, **place)
    options = GenerationOptions(max_new_tokens=max_new_tokens, temperature=temperature)
    start = {name: read_path(str(path)) for name, path in (("audio", audio), ("video", video)) if path}
    failed = run_chat(ChatSession(engine, options, prompt), **start)
    return 1 if failed and not sys.stdin.isatty() else 0
