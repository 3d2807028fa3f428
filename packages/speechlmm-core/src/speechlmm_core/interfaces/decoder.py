"""The interface of a text decoder's configuration. Imports no torch."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Annotated

from speechlmm_core.interfaces.parts import CheckpointParts
from speechlmm_core.registry import ComponentConfig, Registry

if TYPE_CHECKING:
    from speechlmm_core.chat.tokenizer import ChatTokenizer
    from speechlmm_core.interfaces.context import BuildContext
    from speechlmm_core.interfaces.modules import TextDecoder


class DecoderConfig(ComponentConfig, ABC):
    """Configuration of a text decoder: a causal language model, its tokenizer and its pinned chat template."""

    pretrained: str | None = None
    """Folder, name under `$PRETRAINED_COMPONENTS`, or hub name of the base checkpoint; null for random weights."""

    @property
    @abstractmethod
    def hidden_size(self) -> int:
        """Width D of the input embeddings and hidden states."""

    @property
    @abstractmethod
    def vocab_size(self) -> int:
        """Rows of the embedding table."""

    def checkpoint_parts(self) -> dict[str, CheckpointParts]:
        """What this decoder needs, by the names of checkpoints (its tokenizer may come from another one)."""
        return {} if self.pretrained is None else {self.pretrained: CheckpointParts()}

    @abstractmethod
    def build_tokenizer(self, path: str | None = None) -> ChatTokenizer:
        """The tokenizer with its chat template; from a saved folder if ``path`` is given."""

    @abstractmethod
    def build(self, ctx: BuildContext) -> TextDecoder:
        """The module with its architecture; base weights are loaded later, by `TextDecoder.load_base_weights`."""


decoders: Registry[DecoderConfig] = Registry("decoder", DecoderConfig)
AnyDecoder = Annotated[DecoderConfig, decoders]
