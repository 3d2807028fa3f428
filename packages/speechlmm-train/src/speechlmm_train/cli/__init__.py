"""The command `speechlmm-train`."""

from speechlmm_train.cli.main import main

__all__ = ["main"]
