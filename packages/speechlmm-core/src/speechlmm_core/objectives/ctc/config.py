"""Configuration of connectionist temporal classification (CTC). Imports no torch.

Paper: Graves et al. 2006, "Connectionist temporal classification", doi:10.1145/1143844.1143891.
"""

from __future__ import annotations

import logging
import unicodedata
from itertools import pairwise
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import AfterValidator, Field, model_validator
from pydantic_core import PydanticCustomError

from speechlmm_core.errors import ConfigError
from speechlmm_core.interfaces.objective import ObjectiveConfig

if TYPE_CHECKING:
    from speechlmm_core.chat.tokenizer import ChatTokenizer
    from speechlmm_core.interfaces.context import BuildContext
    from speechlmm_core.objectives.ctc.objective import CTCObjective

logger = logging.getLogger(__name__)
_reported: set[str] = set()


def _can_be_told_apart(characters: str) -> str:
    if not characters or len(set(characters)) != len(characters):
        raise PydanticCustomError("ctc_characters", "`characters` must be distinct and not empty", {})
    changed = "".join(c for c in characters if unicodedata.normalize("NFKC", c).lower() != c)
    if changed:
        raise PydanticCustomError(
            "ctc_characters",
            "`characters` holds {changed}, which normalisation (NFKC, lower case) never leaves in a transcript",
            {"changed": repr(changed)},
        )
    return characters


Characters = Annotated[str, AfterValidator(_can_be_told_apart)]
"""The labels of a vocabulary of characters."""
CHARACTERS = " 'abcdefghijklmnopqrstuvwxyz"


class CTCObjectiveConfig(ObjectiveConfig):
    """CTC between the frames of a stage and the medium's transcript, in the unit `<name>_targets` (target tokens).

    With `vocabulary: characters` the transcript is normalised (NFKC, lower case, runs of white space to one space)
    and characters outside `characters` are dropped, each named once in the log. An empty target has no loss.
    """

    type: Literal["ctc"] = "ctc"

    stage: Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]*_(encoder|adapter)$")] = "audio_encoder"
    """Stage whose frames are aligned: `<input>_encoder` or `<input>_adapter`."""
    vocabulary: Literal["characters", "text_decoder"] = "characters"
    """What the targets are: characters, or the text decoder's tokens."""
    characters: Characters = CHARACTERS
    """The characters, where they are the vocabulary."""
    head: Literal["linear", "embeddings"] = "linear"
    """An own linear layer, or scores against the text decoder's embedding table (`vocabulary: text_decoder`)."""
    blank: str | None = None
    """Text that is exactly one token, to serve as the blank (`head: embeddings`); null for an own learned vector."""
    scale: Literal["fixed", "learned"] = "fixed"
    """Factor on the scores against the embedding table: 1/sqrt(D), or learned from there on."""
    leading_space: bool = False
    """Whether a space precedes the transcript, for tokenizers that write word beginnings with it."""

    @model_validator(mode="after")
    def _fits_together(self) -> CTCObjectiveConfig:
        if self.head == "embeddings" and self.vocabulary != "text_decoder":
            raise PydanticCustomError(
                "ctc_head", "`head: embeddings` scores the text decoder's tokens; set `vocabulary: text_decoder`", {}
            )
        if self.blank is not None and self.head != "embeddings":
            raise PydanticCustomError("ctc_blank", "`blank` names a token for `head: embeddings` only", {})
        return self

    @property
    def stages(self) -> tuple[str, ...]:
        """The stage whose frames are aligned."""
        return (self.stage,)

    @property
    def needs_transcript(self) -> bool:
        """The transcript is the target."""
        return True

    def encode_transcript(self, transcript: str, tokenizer: ChatTokenizer) -> list[int]:
        """Target ids: characters from 1 on (0 is the blank), or token ids.

        Raises:
            ConfigError: `blank` is not exactly one token.
        """
        if self.vocabulary == "characters":
            return self._characters(transcript)
        text = " ".join(transcript.split())
        if not text:
            return []
        ids = tokenizer.encode(f" {text}" if self.leading_space else text)
        if self.blank is None:
            return list(ids)
        blank = blank_token(self.blank, tokenizer.encode(self.blank))
        return [token for token in ids if token != blank]

    def _characters(self, transcript: str) -> list[int]:
        text = " ".join(unicodedata.normalize("NFKC", transcript).lower().split())
        index = {character: number for number, character in enumerate(self.characters, start=1)}
        unknown = {*text} - {*index} - {" "}
        if unknown - _reported:
            logger.warning(
                "characters dropped from CTC targets, as `characters` has none of them: %s",
                " ".join(sorted(repr(character) for character in unknown - _reported)),
            )
            _reported.update(unknown)
        # A dropped character must not leave two spaces, nor one at an end.
        text = " ".join("".join(c for c in text if c in index or c == " ").split())
        return [index[character] for character in text if character in index]

    def min_frames(self, target: list[int]) -> int:
        """One frame a token, and one blank between equal neighbours."""
        return len(target) + sum(left == right for left, right in pairwise(target))

    def build(self, ctx: BuildContext) -> CTCObjective:
        """The module with its head.

        Raises:
            ConfigError: The stage is unknown, or does not fit the embedding table.
        """
        from speechlmm_core.objectives.ctc.objective import CTCObjective

        return CTCObjective(self, ctx)


def blank_token(blank: str, ids: list[int]) -> int:
    """The one token that the blank's text is.

    Raises:
        ConfigError: It is none, or several.
    """
    if len(ids) != 1:
        raise ConfigError(
            f"the blank {blank!r} is {len(ids)} tokens for this text decoder; give a text that is exactly one, "
            "or null for a learned blank"
        )
    return ids[0]
