"""Readers of public corpora whose layouts no generic reader covers; the presets under `presets/dataset` use them."""
