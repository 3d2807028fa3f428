# pyright: strict
"""Lets faults of a configuration come up together, where a validator of ours would hide those that pydantic finds."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, LiteralString, TypeVar, cast

from pydantic import ValidationError
from pydantic_core import InitErrorDetails, PydanticCustomError

T = TypeVar("T")

OWN = "own_fault"
"""Type of a fault whose message says what was got."""


def fault(said: str, value: Any, *place: str | int, kind: str = OWN) -> InitErrorDetails:
    """A fault of our own.

    Args:
        said: What is wrong.
        value: What was got.
        place: Where, below what is validated.
        kind: Its type.
    """
    # The type asks for a literal so that nobody makes one up; this one is pydantic's, or a literal of ours.
    error = PydanticCustomError(cast("LiteralString", kind), "{said}", {"said": said})
    return InitErrorDetails(type=error, loc=place, input=value)


def faults_of(error: ValidationError) -> list[InitErrorDetails]:
    """The faults that pydantic found, so that they can be raised again beside others."""
    return [fault(one["msg"], one["input"], *one["loc"], kind=one["type"]) for one in error.errors(include_url=False)]


def checked(title: str, handler: Callable[[Any], T], data: Any, faults: Sequence[InitErrorDetails]) -> T:
    """What pydantic makes of a value, unless it or we found something wrong; then all of it is told.

    Args:
        title: The class that is validated.
        handler: Pydantic's own validation.
        data: What was got.
        faults: What is wrong besides; may be nothing.

    Raises:
        ValidationError: There are faults.
    """
    try:
        found = handler(data)
    except ValidationError as exc:
        refuse(title, [*faults_of(exc), *faults])
        raise
    refuse(title, faults)
    return found


def refuse(title: str, faults: Sequence[InitErrorDetails]) -> None:
    """Refuses a value if anything is wrong with it.

    Args:
        title: The class that was validated.
        faults: What is wrong; may be nothing.

    Raises:
        ValidationError: There are faults.
    """
    if faults:
        raise ValidationError.from_exception_data(title, list(faults))
