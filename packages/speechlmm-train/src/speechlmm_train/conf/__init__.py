"""The Hydra tree of `speechlmm-train run`."""
