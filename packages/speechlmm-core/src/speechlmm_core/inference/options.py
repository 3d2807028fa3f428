"""Generation options, requests and results. Imports no torch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, NamedTuple

from pydantic import BaseModel, ConfigDict, Field

from speechlmm_core.chat.messages import Message


class GenerationOptions(BaseModel):
    """How answers are generated. The default is greedy: the same text on every run and for every batch size."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    max_new_tokens: Annotated[int, Field(ge=1)] = 512
    """Tokens of an answer at most."""
    temperature: Annotated[float, Field(ge=0)] = 0.0
    """Sampling temperature; 0 is greedy."""
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Probability mass that is sampled from."""
    top_k: Annotated[int, Field(ge=0)] = 0
    """Tokens that are sampled from; 0 for all."""
    repetition_penalty: Annotated[float, Field(gt=0)] = 1.0
    """Above 1, tokens that have occurred (in the prompt, too) become less likely."""
    num_beams: Annotated[int, Field(ge=1)] = 1
    """Beams of a beam search; 1 for none. Streaming takes one."""

    @property
    def is_greedy(self) -> bool:
        """Whether the likeliest token is taken at every step."""
        return self.temperature == 0 and self.num_beams == 1

    def kwargs(self) -> dict[str, Any]:
        """The options as transformers' `generate` names them."""
        options: dict[str, Any] = {
            "max_new_tokens": self.max_new_tokens,
            # Older checkpoints state one, which would only be warned about.
            "max_length": None,
            "do_sample": self.temperature > 0,
            "num_beams": self.num_beams,
            "repetition_penalty": self.repetition_penalty,
        }
        if self.temperature > 0:
            options |= {"temperature": self.temperature, "top_p": self.top_p, "top_k": self.top_k}
        else:
            # A checkpoint's own generation config may set these; greedy search ignores them with a warning.
            options |= {"temperature": None, "top_p": None, "top_k": None}
        return options


class Request(NamedTuple):
    """One conversation to be answered."""

    messages: Sequence[Message]
    id: Any = None


class Result(NamedTuple):
    """The answer to a request, or why there is none."""

    id: Any
    text: str | None
    """The answer; None where there was an error."""
    error: str | None = None
    """One line that says what was wrong with the request."""
    duration: float | None = None
    """Seconds of all media together."""
    num_tokens: int = 0
    """Generated tokens, the stop token included."""
    complete: bool = True
    """Whether the answer ended by itself, not at `max_new_tokens`."""
    seconds: float = 0.0
    """Wall clock of the answer's batch, waiting for its media included, divided by the batch's rows."""
