"""XML of corpora as elements, without what makes XML of strangers dangerous. Imports no torch.

Entities are refused where they are declared, so that none can expand without end or read another file.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, NoReturn
from xml.etree.ElementTree import Element, TreeBuilder
from xml.parsers import expat

from speechlmm_core.errors import DataError
from speechlmm_train.corpora.lines import unreadable


def read_xml(path: Path | str) -> Element:
    """The root of a file's elements; names keep their prefixes (`nite:id`).

    Raises:
        DataError: It cannot be read, is not well-formed, or declares entities.
    """
    builder = TreeBuilder()
    parser = expat.ParserCreate()
    parser.buffer_text = True
    parser.StartElementHandler = builder.start
    parser.EndElementHandler = builder.end
    parser.CharacterDataHandler = builder.data
    parser.EntityDeclHandler = _refuse
    parser.ExternalEntityRefHandler = _refuse
    try:
        with open(path, "rb") as file:
            parser.ParseFile(file)
        return builder.close()
    except OSError as exc:
        raise DataError(unreadable(str(path), exc)) from exc
    except _EntityError as exc:
        raise DataError(f"{str(path)!r} declares XML entities, which no corpus needs; it is not read") from exc
    except (expat.ExpatError, LookupError, ValueError, AssertionError) as exc:  # an unknown encoding is a LookupError
        raise DataError(f"{str(path)!r} is not well-formed XML: {exc}") from exc


class _EntityError(Exception):
    pass


def _refuse(*_: Any) -> NoReturn:
    raise _EntityError
