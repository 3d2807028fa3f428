# pyright: strict
"""What a low-rank adapter is (Hu et al., 2021, arXiv 2106.09685). Imports neither torch nor PEFT."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self, cast

from pydantic import BaseModel, ConfigDict, Field, ModelWrapValidatorHandler, model_validator

from speechlmm_core.faults import checked, fault
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

    @model_validator(mode="wrap")
    @classmethod
    def _known_extras(cls, data: Any, handler: ModelWrapValidatorHandler[Self]) -> Self:
        # Beside the fields, and not after them, so that what is wrong is told at once.
        given = cast("dict[Any, Any]", data) if isinstance(data, dict) else {}
        # Keys that are no text are for pydantic to refuse.
        extras = {key: value for key, value in given.items() if isinstance(key, str) and key not in cls.model_fields}
        told = field_faults(extras, list(cls.model_fields))
        faults = [fault("; ".join(told), given)] if told else []
        return checked(cls.__name__, handler, data, faults)

    @property
    def extras(self) -> dict[str, Any]:
        """Further fields of PEFT's `LoraConfig`."""
        return dict(self.__pydantic_extra__ or {})
