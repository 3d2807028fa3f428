"""What a preparation looks for."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

Check = Literal["fast", "full"]


@dataclass(frozen=True)
class Settings:
    """What is checked, and the limits beyond which a row is put into quarantine."""

    check: Check = "fast"
    """`fast`: headers and hashes; `full`: decodes all media as well."""
    max_duration: float | None = None
    """Seconds of media at most; None for what can be loaded at all."""
    max_words_per_minute: float = 700.0
    """Words of what is spoken at most; nobody speaks faster."""
    max_characters_per_second: float = 25.0
    """Characters of what is spoken at most, white space aside: one for every two frames at 50 Hz, as a loss that
    aligns characters with frames (CTC) needs a frame for each, and one between equal ones."""
    silence: float = 1e-3
    """Greatest amplitude of silence (-60 dB of full scale)."""
    clipping: float = 0.01
    """Share of samples at full scale from which a row is reported as clipped."""

    def plain(self) -> dict[str, Any]:
        """As it is kept in the index."""
        return asdict(self)
