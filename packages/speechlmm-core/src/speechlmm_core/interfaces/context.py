"""What the composite model tells a component when it builds it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from fractions import Fraction


@dataclass(frozen=True, kw_only=True)
class BuildContext:
    """Facts known to the composite at the time a component is built; a component takes those it needs.

    Widths and rates are wired here, so no configuration repeats a number that follows from another component.
    """

    component: str = ""
    """Name of the component in the model (`audio_encoder`, `objectives.lm`), for messages."""
    input_size: int = 0
    """Width of what flows in (an adapter: the encoder's hidden size); 0 where codes flow in, which are numbers."""
    output_size: int = 0
    """Width of what must flow out (an adapter: the text decoder's hidden size)."""
    frame_rate: Fraction = Fraction(0)
    """Frames per second that flow in."""
    vocab_size: int = 0
    """Rows of the text decoder's embedding table."""
    num_codebooks: int = 0
    """Codebooks K of the model's codec; 0 where it has none."""
    codebook_size: int = 0
    """Entries of each of them."""
    attn_implementation: str = "auto"
    """`auto`, or one of the implementations of transformers (`eager`, `sdpa`, `flash_attention_2`)."""
    flash_attention: bool = False
    """Whether FlashAttention can run: in half precision, on a GPU that has it."""
    weights_follow: bool = False
    """Whether every weight is loaded afterwards, so that a component need not draw random ones."""
    stage_sizes: dict[str, int] = field(default_factory=dict)
    """Widths of the named stage outputs (`audio_encoder`, `audio_adapter`, `text_decoder`): objectives use them."""
    encode: Callable[[str], Sequence[int]] | None = None
    """Token ids of a text under the text decoder's tokenizer, for a component that names a token."""
