"""The commands by name: where each is, and its summary."""

from __future__ import annotations

COMMANDS: dict[str, tuple[str, str]] = {
    "run": ("speechlmm_train.cli.run:run", "Train a model from a configuration."),
    "status": ("speechlmm_train.cli.status:status", "Show the states of runs and of their SLURM jobs."),
    "plan": ("speechlmm_train.cli.plan:plan", "Check a configuration and show the model it makes."),
    "download": ("speechlmm_train.cli.download:download", "Fetch the base checkpoints that components need."),
    "prepare": ("speechlmm_train.cli.prepare:prepare", "Check corpora and index them, so that runs start at once."),
    "inspect": ("speechlmm_train.cli.inspect:inspect", "Show samples as the model will see them."),
    "evaluate": ("speechlmm_train.cli.evaluate:evaluate", "Score a trained model on datasets."),
    "score": ("speechlmm_train.cli.score:score", "Score an evaluation's predictions again."),
    "compare": ("speechlmm_train.cli.compare:compare", "Compare the predictions of two models."),
    "import-checkpoint": (
        "speechlmm_train.cli.import_checkpoint:import_checkpoint",
        "Take over a checkpoint of the first SpeechLMM.",
    ),
    "merge-lora": ("speechlmm_train.cli.merge_lora:merge_lora", "Merge a model's low-rank adapters into its weights."),
    "average-checkpoints": (
        "speechlmm_train.cli.average_checkpoints:average_checkpoints",
        "Write the mean of several checkpoints.",
    ),
    "demo": ("speechlmm_train.demo.cli:demo", "Train and show a tiny speech LLM on synthetic speech."),
    "components": ("speechlmm_train.cli.components:components", "List the installed components."),
    "schema": ("speechlmm_train.cli.schema:schema", "Write the schema that editors check configurations with."),
}
