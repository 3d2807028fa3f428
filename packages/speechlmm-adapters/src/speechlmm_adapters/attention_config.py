"""What the configurations of adapters with attention layers have in common. Imports no torch."""

from __future__ import annotations

from typing import Annotated, Self

from pydantic import Field, model_validator
from pydantic_core import PydanticCustomError

from speechlmm_core.interfaces.adapter import AdapterConfig

Rate = Annotated[float, Field(ge=0, le=1)]


class AttentionAdapterConfig(AdapterConfig):
    """Numbers of attention layers; the defaults are those of BERT's base size (arXiv:1810.04805), four layers deep."""

    hidden_size: Annotated[int, Field(ge=1)] = 768
    """Width of the layers."""
    num_layers: Annotated[int, Field(ge=1)] = 4
    """Layers."""
    num_attention_heads: Annotated[int, Field(ge=1)] = 12
    """Heads; they divide `hidden_size`."""
    intermediate_size: Annotated[int, Field(ge=1)] = 3072
    """Width inside the feed-forward blocks."""
    activation: str = "gelu"
    """Activation of the feed-forward blocks, by its name in transformers."""
    dropout: Rate = 0.1
    """Dropout of the embeddings and after every block."""
    attention_dropout: Rate = 0.1
    """Dropout of the attention weights."""
    layer_norm_eps: Annotated[float, Field(gt=0)] = 1e-5
    """Added to the variance in layer norms."""

    @model_validator(mode="after")
    def _heads_divide(self) -> Self:
        if self.hidden_size % self.num_attention_heads:
            raise PydanticCustomError(
                "heads",
                "`num_attention_heads: {heads}` does not divide `hidden_size: {width}`; change one of them",
                {"heads": self.num_attention_heads, "width": self.hidden_size},
            )
        return self

    @property
    def head_size(self) -> int:
        """Width of one head."""
        return self.hidden_size // self.num_attention_heads
