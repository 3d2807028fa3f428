"""`speechlmm-serve infer`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import click
from click.core import ParameterSource

from speechlmm_core.errors import ConfigError
from speechlmm_serve.cli.options import load_engine, model_options, task_options

if TYPE_CHECKING:
    from speechlmm_serve.infer.inputs import Inputs
    from speechlmm_serve.task_prompt import TaskPrompt


def _batch_size(ctx: click.Context, param: click.Parameter, value: str) -> int | Literal["auto"]:
    if value == "auto":
        return "auto"
    if not value.isdigit() or int(value) < 1:
        raise click.BadParameter(f"expected a number from 1 on, or auto, got {value!r}")
    return int(value)


def _source(audios: Path | None, videos: Path | None, texts: Path | None) -> tuple[str, Path]:
    """What is asked about (audio, video, text), and where it is."""
    given = [(kind, path) for kind, path in (("audio", audios), ("video", videos), ("text", texts)) if path is not None]
    if len(given) == 1:
        return given[0]
    found = ("both" if len(given) == 2 else "all") if given else "neither"
    raise ConfigError(
        f"expected --audios-file-path or --videos-file-path, got {found}; a manifest may name both "
        "(--texts-file-path instead is for tasks about texts)"
    )


def _inputs(kind: str, path: Path, model_path: Path, prompt: TaskPrompt) -> Inputs:
    """What the task is run on."""
    from speechlmm_core.checkpoint.load import read_model_config, resolve_model_path
    from speechlmm_serve.infer.inputs import find_inputs
    from speechlmm_serve.infer.texts import TextInputs
    from speechlmm_serve.task_prompt import media_input

    config = read_model_config(resolve_model_path(model_path))
    if kind == "text":
        return TextInputs(path, prompt)
    return find_inputs(path, media_input(config, kind), kind)


def _refuse_beside_specification() -> None:
    """Refuses options that a specification decides.

    Raises:
        ConfigError: One is given.
    """
    names = ("audios_file_path", "videos_file_path", "texts_file_path", "task", "source_language", "target_language")
    context = click.get_current_context()
    for name in (*names, "question"):
        if context.get_parameter_source(name) is ParameterSource.COMMANDLINE:
            option = f"--{name.replace('_', '-')}"
            raise ConfigError(f"{option}: the specification says that; leave it out, or leave out --dataset-config")


@click.command()
@model_options
@task_options(default="asr")
@click.option(
    "--audios-file-path",
    type=click.Path(path_type=Path),
    help="A folder (searched recursively), an audio file, a .txt list of paths, or a .jsonl manifest.",
)
@click.option(
    "--videos-file-path",
    type=click.Path(path_type=Path),
    help="The same of video files, for a model that takes video.",
)
@click.option(
    "--texts-file-path",
    type=click.Path(path_type=Path),
    help="Texts for tasks that work on them (mt, tsum, …): one a line, a folder of .txt files, or a .jsonl manifest.",
)
@click.option(
    "--dataset-config",
    help="A dataset specification (a path, or a name below conf/datasets), which brings its tasks along.",
)
@click.option("--dataset", "dataset_names", multiple=True, help="Only this dataset of it; may be given several times.")
@click.option(
    "--split",
    type=click.Choice(["train", "eval", "test", "guard"]),
    help="What its partitions are for.  [default: test, or eval where there is no test set]",
)
@click.option("--output", type=click.Path(path_type=Path), help="JSONL file to write; standard output if not given.")
@click.option("--batch-size", default="auto", show_default=True, callback=_batch_size, help="A number, or auto.")
@click.option("--resume", is_flag=True, help="Keep the lines of --output that succeeded, and run the rest.")
@click.option("--overwrite", is_flag=True, help="Replace --output.")
@click.option("--temperature", type=click.FloatRange(min=0), default=0.0, show_default=True, help="0 is greedy.")
@click.option("--max-new-tokens", type=click.IntRange(min=1), default=512, show_default=True)
@click.option("--progress/--no-progress", default=True, help="Show a progress bar.")
def infer(
    *,
    model_path: Path,
    task: str,
    source_language: str | None,
    target_language: str | None,
    question: str | None,
    audios_file_path: Path | None,
    videos_file_path: Path | None,
    texts_file_path: Path | None,
    dataset_config: str | None,
    dataset_names: tuple[str, ...],
    split: Literal["train", "eval", "test", "guard"] | None,
    output: Path | None,
    batch_size: int | Literal["auto"],
    resume: bool,
    overwrite: bool,
    temperature: float,
    max_new_tokens: int,
    progress: bool,
    **place: Any,
) -> int:
    """Run a task over audio or video files, texts, a list, a manifest, or what a dataset specification names.

    Writes one JSON object a line for each input, in input order: path, text, duration, error, and more. A file that
    cannot be used is a line with its error; the others go on, and the exit code is 1.
    """
    from speechlmm_core.inference.options import GenerationOptions
    from speechlmm_serve.infer.output import check_output
    from speechlmm_serve.infer.run import run_inference
    from speechlmm_serve.infer.spec_inputs import open_inputs
    from speechlmm_serve.task_prompt import TaskPrompt

    # Everything that can be wrong with the call is looked at before a weight is loaded.
    output = None if output is None else output.expanduser()
    check_output(output, resume=resume, overwrite=overwrite)
    if dataset_config is not None:
        _refuse_beside_specification()
        prompt, inputs = None, open_inputs(dataset_config, split=split, datasets=dataset_names)
    else:
        if dataset_names or split:
            raise ConfigError("--dataset and --split choose from a specification; name one with --dataset-config")
        prompt = TaskPrompt.of(task, source_language, target_language, question)
        kind, path = _source(audios_file_path, videos_file_path, texts_file_path)
        inputs = _inputs(kind, path, model_path, prompt)
        inputs.check(prompt)
    engine = load_engine(model_path, **place)
    failed = run_inference(
        engine,
        inputs,
        prompt,
        options=GenerationOptions(max_new_tokens=max_new_tokens, temperature=temperature),
        batch_size=batch_size,
        output=output,
        resume=resume,
        # Lines that scroll by on the same terminal are progress enough.
        progress=progress and sys.stderr.isatty() and not (output is None and sys.stdout.isatty()),
    )
    lines = [f"{failed} of {len(inputs)} inputs failed; their lines say why"] if failed else []
    if output is not None:
        answered = len(inputs) - failed
        lines.insert(0, f"{answered} {'answer is' if answered == 1 else 'answers are'} in {output}")
    if lines:
        click.echo("; ".join(lines), err=True)
    return 1 if failed else 0
