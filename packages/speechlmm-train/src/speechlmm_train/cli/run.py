"""`speechlmm-train run`."""

from __future__ import annotations

from pathlib import Path

import click

from speechlmm_train.cli.options import run_options


@click.command()
@run_options
def run(
    *,
    overrides: tuple[str, ...],
    config_name: str,
    config_dir: Path | None,
    imports: tuple[Path, ...],
    resume: bool,
    overwrite: bool,
    progress: bool,
) -> None:
    """Train a model.

    Values are set in Hydra's grammar: model/audio_encoder=tiny_whisper picks a preset, training.max_steps=100 sets a
    value, +key=value adds one, ~key removes one.
    """
    from speechlmm_train.compose import compose_config

    composed = compose_config(config_name, overrides, config_dir=config_dir, imports=imports)

    from speechlmm_train.process import prepare_process

    prepare_process()
    from speechlmm_train.run import run as train
    from speechlmm_train.trainer.mixture import table
    from speechlmm_train.trainer.summary import evaluation_lines

    report = train(composed.config, plain=composed.plain, resume=resume, overwrite=overwrite, progress=progress)
    for stage, rows in report.mixture.items():
        if len(rows) > 1:
            click.echo(f"stage {stage} was trained on")
            for line in table(rows):
                click.echo(line)
    for line in evaluation_lines(report.figures, report.best):
        click.echo(line)
    for name, guard in report.guard.items():
        if guard["worsened"] > composed.config.training.guard_tolerance:
            first, last = guard["first"], guard["last"]
            click.echo(f"note: {name} has worsened from {first:.4g} to {last:.4g}", err=True)
    click.echo(f"trained {report.steps} steps in {report.seconds:.0f} s; the model is in {report.model_path}")
