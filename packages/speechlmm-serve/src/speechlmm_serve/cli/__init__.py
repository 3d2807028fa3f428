"""The command line."""

from speechlmm_serve.cli.main import main

__all__ = ["main"]
