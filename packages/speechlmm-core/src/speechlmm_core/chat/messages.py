"""Chat messages: a role and a list of content items, in the format of transformers.

A content item is ``{"type": "text", "text": ...}`` or a medium: ``{"type": <input>, "path": ...}`` with an optional
``transcript``, ``start`` and ``end`` (seconds). ``type`` names an input of the model (`audio`, `video`, `speaker`, …).

A message with the role `text` is no turn: it stands alone, no chat template is laid around it, and all of its text is
learnt.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, field_validator

Role = Literal["system", "user", "assistant", "text"]


class Message(BaseModel):
    """One turn of a conversation."""

    model_config = ConfigDict(extra="forbid", frozen=True, arbitrary_types_allowed=True, use_attribute_docstrings=True)

    role: Role
    content: list[dict[str, Any]]
    supervised: bool = True
    """Whether the message is learnt in training, where it is the assistant's."""

    @field_validator("content", mode="before")
    @classmethod
    def _from_text(cls, content: Any) -> Any:
        return [{"type": "text", "text": content}] if isinstance(content, str) else content

    @field_validator("content")
    @classmethod
    def _items_are_typed(cls, content: list[dict[str, Any]]) -> list[dict[str, Any]]:
        for item in content:
            kind = item.get("type")
            if not isinstance(kind, str):
                raise ValueError(f"expected a content item with a `type`, got {item!r}")
            if kind == "text" and not isinstance(item.get("text"), str):
                raise ValueError(f"expected a text item with a `text`, got {item!r}")
        return content

    @property
    def media(self) -> list[dict[str, Any]]:
        """The content items that are media, in order."""
        return [item for item in self.content if item["type"] != "text"]
