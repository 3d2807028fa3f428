# pyright: strict
"""What a low-rank adapter is (Hu et al., 2021, arXiv 2106.09685). Imports neither torch nor PEFT."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator
from pydantic_core import PydanticCustomError

from speechlmm_core.lora.fields import field_faults


class LoraAdapterConfig(BaseModel):
    """A low-rank adapter on the linear layers of one part of the model; further fields are PEFT's `LoraConfig`'s."""

    model_config = ConfigDict(
        extra="allow", frozen=True, use_attribute_docstrings=True, protected_namespaces=(), allow_inf_nan=False
    )

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]+$")]
    """Name of the adapter, and of its folder in a checkpoint."""
    target_module: Annotated[str, Field(min_length=1)]
    """The part of the model that it is put on (`text_decoder.model`); each linear layer in it gets two matrices."""
    task_type: str | None = None
    """PEFT's name for what the part does (`CAUSAL_LM`, `FEATURE_EXTRACTION`)."""
    r: Annotated[int, Field(gt=0)] = 8
    """Rank."""
    lora_alpha: Annotated[float, Field(gt=0)] = 16
    """Scale: the product of the matrices counts `lora_alpha / r` times, or `lora_alpha / sqrt(r)` with `use_rslora`."""
    lora_dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Dropout before the first matrix."""
    bias: Literal["none", "all", "lora_only"] = "none"
    """Which biases are trained, too."""
    use_rslora: bool = False
    """Rank-stabilised scale (Kalajdzievski, 2023, arXiv 2312.03732)."""

    @model_validator(mode="after")
    def _known_extras(self) -> LoraAdapterConfig:
        faults = field_faults(self.extras, list(type(self).model_fields))
        if faults:
            raise PydanticCustomError("lora_field", "{faults}", {"faults": "; ".join(faults)})
        return self

    @property
    def extras(self) -> dict[str, Any]:
        """Further fields of PEFT's `LoraConfig`."""
        return dict(self.__pydantic_extra__ or {})
