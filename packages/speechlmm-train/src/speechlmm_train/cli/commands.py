"""The commands by name: where each is, and its summary."""

from __future__ import annotations

COMMANDS: dict[str, tuple[str, str]] = {
    "run": ("speechlmm_train.cli.run:run", "Train a model from a configuration."),
    "plan": ("speechlmm_train.cli.plan:plan", "Check a configuration and show the model it makes."),
    "download": ("speechlmm_train.cli.download:download", "Fetch the base checkpoints that components need."),
    "evaluate": ("speechlmm_train.cli.evaluate:evaluate", "Score a trained model on manifests."),
    "demo": ("speechlmm_train.demo.cli:demo", "Train and show a tiny speech LLM on synthetic speech."),
    "components": ("speechlmm_train.cli.components:components", "List the installed components."),
    "schema": ("speechlmm_train.cli.schema:schema", "Write the schema that editors check configurations with."),
}
