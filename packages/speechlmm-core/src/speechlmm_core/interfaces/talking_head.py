"""The interface of a talking head's configuration: hidden states to codec tokens. Imports no torch.

Shapes: N flat frames, D hidden, K codebooks. No talking head is shipped yet.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Annotated

from speechlmm_core.registry import ComponentConfig, Registry

if TYPE_CHECKING:
    from torch import nn

    from speechlmm_core.interfaces.context import BuildContext


class TalkingHeadConfig(ComponentConfig, ABC):
    """Configuration of a talking head.

    Its module offers ``loss(hidden (N, D), codes (N, K), ...) -> Loss`` and ``sample(hidden (N, D), ..., cache)`` over
    flat frames, so that heads with other output spaces fit.
    """

    @abstractmethod
    def build(self, ctx: BuildContext) -> nn.Module:
        """The module."""


talking_heads: Registry[TalkingHeadConfig] = Registry("talking_head", TalkingHeadConfig)
AnyTalkingHead = Annotated[TalkingHeadConfig, talking_heads]
