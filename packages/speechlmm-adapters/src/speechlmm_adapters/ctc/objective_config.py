"""Configuration of CTC with a head that an adapter brings. Imports no torch.

Paper: Graves et al. 2006, "Connectionist temporal classification", doi:10.1145/1143844.1143891.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from speechlmm_adapters.ctc.vocabulary import Vocabulary
from speechlmm_core.interfaces.objective import ObjectiveConfig
from speechlmm_core.objectives.ctc.config import CHARACTERS, Characters, CTCObjectiveConfig

if TYPE_CHECKING:
    from speechlmm_adapters.ctc.objective import AdapterCTCObjective
    from speechlmm_core.chat.tokenizer import ChatTokenizer
    from speechlmm_core.interfaces.context import BuildContext


class AdapterCTCObjectiveConfig(ObjectiveConfig):
    """CTC between an adapter's frames before it shortens them and the transcript, in the unit `<name>_targets`.

    The adapter brings the head, since it needs it at inference too, and adds this objective to the model by itself.
    """

    type: Literal["adapter_ctc"] = "adapter_ctc"
    stage: Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]*_adapter$")] = "audio_adapter"
    """The adapter: `<input>_adapter`."""
    vocabulary: Vocabulary = "text_decoder"
    """What the targets are: the text decoder's tokens, or characters."""
    characters: Characters = CHARACTERS
    """The characters, where they are the vocabulary."""
    leading_space: bool = False
    """Whether a space precedes the transcript, for tokenizers that write word beginnings with it."""

    @property
    def stages(self) -> tuple[str, ...]:
        """The adapter."""
        return (self.stage,)

    @property
    def needs_transcript(self) -> bool:
        """The transcript is the target."""
        return True

    def encode_transcript(self, transcript: str, tokenizer: ChatTokenizer) -> list[int]:
        """Target ids, as in the objective `ctc`: characters from 1 on (0 is the blank), or token ids."""
        return self._plain.encode_transcript(transcript, tokenizer)

    def min_frames(self, target: list[int]) -> int:
        """One frame a label, and one blank between equal neighbours."""
        return self._plain.min_frames(target)

    @property
    def _plain(self) -> CTCObjectiveConfig:
        return CTCObjectiveConfig(
            stage=self.stage,
            vocabulary=self.vocabulary,
            characters=self.characters,
            leading_space=self.leading_space,
        )

    def build(self, ctx: BuildContext) -> AdapterCTCObjective:
        """The module, which has no parameters."""
        from speechlmm_adapters.ctc.objective import AdapterCTCObjective

        return AdapterCTCObjective(self)
