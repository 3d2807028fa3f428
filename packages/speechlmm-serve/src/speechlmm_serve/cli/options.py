"""Options that the commands share: which model, on what, and how it generates. Imports no torch."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from speechlmm_core.errors import ConfigError

if TYPE_CHECKING:
    from speechlmm_core.inference.engine import InferenceEngine

ATTENTION = ["auto", "eager", "sdpa", "flash_attention_2"]
DTYPES = ["auto", "float32", "bfloat16", "float16"]


def model_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Adds the options that name and place a model."""
    for decorate in (
        click.option("--debug", is_flag=True, expose_value=False, help="Show a traceback when something fails."),
        click.option("--load-in-8bit", is_flag=True, help="Quantise the language model to 8 bits (bitsandbytes)."),
        click.option("--load-in-4bit", is_flag=True, help="Quantise the language model to 4 bits (bitsandbytes)."),
        click.option("--attn-implementation", type=click.Choice(ATTENTION), default="auto", show_default=True),
        click.option("--dtype", type=click.Choice(DTYPES), default="auto", show_default=True, help="auto: as saved."),
        click.option(
            "--device", default="auto", show_default=True, help="auto, cpu, cuda, cuda:1, …; all: spread over all GPUs."
        ),
        click.option("--model-path", type=click.Path(path_type=Path), required=True, help="A checkpoint, or a run."),
    ):
        function = decorate(function)
    return function


def task_options(*, default: str | None) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Adds the options that name a task, its languages and its question."""

    def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
        for option in (
            click.option("--question", help="What is asked about each file, with --task sqa."),
            click.option("--target-language", help="Language of the answer (de, fr, …), where the task needs it."),
            click.option("--source-language", help="Language that is spoken."),
            click.option(
                "--task", default=default, show_default=default is not None, help="Task: asr, st, sqa, ssum, mt, …"
            ),
        ):
            function = option(function)
        return function

    return decorate


def load_engine(
    model_path: Path, *, device: str, dtype: str, attn_implementation: str, load_in_4bit: bool, load_in_8bit: bool
) -> InferenceEngine:
    """Loads a model for inference.

    Raises:
        ConfigError: The device is not there, or two quantisations are asked for.
        CheckpointError: The checkpoint is missing or does not fit.
    """
    if load_in_4bit and load_in_8bit:
        raise ConfigError("give either --load-in-4bit or --load-in-8bit, not both")
    from speechlmm_core.checkpoint.load import read_model_config, resolve_model_path

    read_model_config(resolve_model_path(model_path))  # says what is wrong before torch is imported
    from speechlmm_core.inference.device import device_arguments
    from speechlmm_core.inference.engine import InferenceEngine

    return InferenceEngine.from_pretrained(
        str(model_path),
        **device_arguments(device),
        dtype=dtype,
        attn_implementation=attn_implementation,
        load_in_4bit=load_in_4bit,
        load_in_8bit=load_in_8bit,
    )
