"""SpeechLMM's core: registries, typed configuration, the composite model, the processor and the inference engine.

The names below are imported on first use, so that ``import speechlmm_core`` needs neither torch nor transformers.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
