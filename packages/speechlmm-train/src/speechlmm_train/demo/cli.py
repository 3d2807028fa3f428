"""`speechlmm-train demo`."""

from __future__ import annotations

from pathlib import Path

import click

from speechlmm_train.cli.options import debug_option


@click.command()
@click.option(
    "--output-dir",
    type=click.Path(path_type=Path),
    default=Path("runs/demo"),
    show_default=True,
    help="Folder for the corpus, the model and the report; it is a model path, too.",
)
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Seed of everything random.")
@click.option("--resume", is_flag=True, help="Go on where an earlier demo in the folder stopped.")
@click.option("--overwrite", is_flag=True, help="Train anew; a finished corpus in the folder is kept.")
@click.option("--progress/--no-progress", default=True, help="Show progress bars.")
@click.option("--num-train", type=click.IntRange(min=16), default=4000, hidden=True)
@click.option("--num-test", type=click.IntRange(min=4), default=300, hidden=True)
@click.argument("overrides", nargs=-1, metavar="[KEY=VALUE]...")
@debug_option
def demo(
    *,
    output_dir: Path,
    seed: int,
    resume: bool,
    overwrite: bool,
    progress: bool,
    num_train: int,
    num_test: int,
    overrides: tuple[str, ...],
) -> None:
    """Train and show a tiny speech LLM on synthetic speech.

    Speech is synthesised with eSpeak NG, a model is trained on it from scratch, and it is scored on sentences that it
    has never met. Takes minutes on two cores; no data and no weights are downloaded.

    KEY=VALUE changes the recipe: `stages.1.max_steps=300` trains on speech for 300 steps in place of 1,900.
    """
    import time

    import psutil
    from rich.console import Console

    from speechlmm_train.demo.memory import PeakMemory
    from speechlmm_train.demo.recipe import BESIDE, CorpusSize, evaluate_all, prepare
    from speechlmm_train.demo.show import show
    from speechlmm_train.folders import make_folder
    from speechlmm_train.launch.claim import claimed
    from speechlmm_train.process import prepare_process
    from speechlmm_train.trainer.output_folder import OutputFolder

    started = psutil.Process().create_time()
    prepare_process()
    console = Console()
    output_dir = output_dir.expanduser()
    OutputFolder(output_dir, beside=BESIDE).check(resume=resume, overwrite=overwrite)
    make_folder(output_dir, "--output-dir")
    with claimed(output_dir.absolute(), name="demo"), PeakMemory() as memory:
        console.print("[bold]1/3[/] speech: sentences of a small grammar, spoken by eSpeak NG")
        prepared = prepare(
            output_dir,
            seed=seed,
            size=CorpusSize(num_train, num_test, num_test // 3),
            overrides=overrides,
            resume=resume,
            progress=progress,
        )
        console.print(f"    {prepared.corpus.num_train:,} utterances in {prepared.corpus.folder}")

        from speechlmm_train.run import run

        console.print("[bold]2/3[/] training: the language model on text, then all of it on speech")
        config, plain = prepared.composed.config, prepared.composed.plain
        trained = run(config, plain=plain, resume=resume, overwrite=overwrite, progress=progress, beside=BESIDE)
        console.print("[bold]3/3[/] evaluation: sentences that are in no training data")
        evaluations = evaluate_all(trained.model_path, prepared, output_dir / "evaluations")
        memory.sample()
        show(
            console,
            output_dir,
            evaluations=evaluations,
            trained=trained,
            seed=seed,
            seconds=time.time() - started,
            peak_rss_bytes=memory.peak_bytes,
        )
