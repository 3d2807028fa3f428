"""Configuration of CIF's quantity loss. Imports no torch.

Paper: Dong and Xu 2020, "CIF: Continuous Integrate-and-Fire for End-to-End Speech Recognition" (arXiv:1905.11235).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from speechlmm_core.interfaces.objective import ObjectiveConfig

if TYPE_CHECKING:
    from speechlmm_adapters.cif.objective import CIFQuantityObjective
    from speechlmm_core.chat.tokenizer import ChatTokenizer
    from speechlmm_core.interfaces.context import BuildContext


class CIFQuantityObjectiveConfig(ObjectiveConfig):
    """Distance between the frames that a CIF adapter would fire and the transcript's tokens.

    The unit is `<name>_valid`, media with a transcript. The adapter adds this objective to the model by itself.
    """

    type: Literal["cif_quantity"] = "cif_quantity"
    stage: Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]*_adapter$")] = "audio_adapter"
    """The adapter: `<input>_adapter`."""

    @property
    def stages(self) -> tuple[str, ...]:
        """The adapter."""
        return (self.stage,)

    @property
    def needs_transcript(self) -> bool:
        """Its tokens are counted."""
        return True

    @property
    def accepts_empty_targets(self) -> bool:
        """Nothing shall fire where nothing is said."""
        return True

    def encode_transcript(self, transcript: str, tokenizer: ChatTokenizer) -> list[int]:
        """The text decoder's tokens, of which only the number matters."""
        text = " ".join(transcript.split())
        return list(tokenizer.encode(text)) if text else []

    def min_frames(self, target: list[int]) -> int:
        """One a token."""
        return len(target)

    def build(self, ctx: BuildContext) -> CIFQuantityObjective:
        """The module, which has no parameters."""
        from speechlmm_adapters.cif.objective import CIFQuantityObjective

        return CIFQuantityObjective(self)
