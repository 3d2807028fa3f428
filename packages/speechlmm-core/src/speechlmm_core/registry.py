"""Open, typed, lazy registries: a config's ``type:`` names a component and is resolved when it is validated.

Plugins announce their config classes by entry points in the group ``speechlmm.<kind>``. They are listed without
being imported, and one is imported only when a configuration names it.
"""

from __future__ import annotations

import warnings
from difflib import get_close_matches
from importlib.metadata import EntryPoint, entry_points
from typing import TYPE_CHECKING, Any, ClassVar, Generic, TypeVar, cast

from pydantic import BaseModel, ConfigDict, PydanticUserError
from pydantic_core import CoreSchema, PydanticCustomError, core_schema

from speechlmm_core.errors import ComponentLoadError

if TYPE_CHECKING:
    from pydantic import GetCoreSchemaHandler, GetJsonSchemaHandler

KINDS = (
    *("encoder", "adapter", "decoder", "objective", "codec", "talking_head"),
    *("task", "dataset", "metric", "augmentation"),
)


class ComponentConfig(BaseModel):
    """Base of every component's configuration; a subclass pins ``type`` to a ``Literal``."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True, protected_namespaces=())

    # Any, not str: a subclass's `Literal` would count as an incompatible override of a field that might be set.
    type: Any
    """Name of the component in its registry."""


C = TypeVar("C", bound=ComponentConfig)


def nearest(name: str, candidates: list[str]) -> str:
    """Words the hint ``; did you mean 'x'?``, or an empty string when nothing is near."""
    near = get_close_matches(name, candidates, n=1)
    return f"; did you mean {near[0]!r}?" if near else ""


class Registry(Generic[C]):
    """Maps ``type`` names to the config classes of one kind.

    Used as ``Annotated[Base, registry]`` it is also the pydantic type of a field that holds any component of the kind.
    """

    by_kind: ClassVar[dict[str, Registry[Any]]] = {}

    def __init__(self, kind: str, base: type[C]) -> None:
        self.kind = kind
        self.base = base
        self._classes: dict[str, type[C]] = {}
        Registry.by_kind[kind] = self

    @property
    def loaded(self) -> dict[str, type[C]]:
        """The classes registered by hand or imported so far, by name; the dictionary itself, for tests to replace."""
        return self._classes

    @property
    def group(self) -> str:
        """Entry-point group that plugins of this kind use."""
        return f"speechlmm.{self.kind}"

    def entry_points(self) -> dict[str, list[EntryPoint]]:
        """The entry points by name; several under one name are rival providers."""
        found: dict[str, list[EntryPoint]] = {}
        for entry in entry_points(group=self.group):
            same = found.setdefault(entry.name, [])
            if entry.value not in [other.value for other in same]:
                same.append(entry)
        return found

    def names(self) -> list[str]:
        """Every available name, importing no plugin."""
        return sorted({*self._classes, *self.entry_points()})

    def register(self, cls: type[C]) -> type[C]:
        """Registers a class by hand (notebooks, tests); packages declare entry points instead.

        Raises:
            ValueError: The name is already taken.
        """
        name = cls.model_fields["type"].default
        if name in self.names():
            raise ValueError(f"{self.kind} {name!r} already exists; choose another name")
        self._classes[name] = cls
        return cls

    def get(self, name: str) -> type[C]:
        """Imports and returns the config class called ``name``.

        Raises:
            PydanticCustomError: No installed distribution provides the name.
            ComponentLoadError: Two distributions provide it, or the one that does fails to import.
        """
        if name in self._classes:
            return self._classes[name]
        providers = self.entry_points().get(name, [])
        if not providers:
            available = self.names()
            raise PydanticCustomError(
                "unknown_component",
                "unknown {kind} {name}{hint} (available: {available})",
                {
                    "kind": self.kind,
                    "name": repr(name),
                    "hint": nearest(name, available),
                    "available": ", ".join(available) or "none; is the plugin's package installed?",
                },
            )
        sources = [describe(entry) for entry in providers]
        if len(providers) > 1:
            raise ComponentLoadError(f"{self.kind} {name!r} is provided by {' and by '.join(sources)}; uninstall one")
        try:
            cls = providers[0].load()
        except Exception as exc:
            raise ComponentLoadError(f"{self.kind} {name!r} from {sources[0]} failed to import: {exc}") from exc
        if not (isinstance(cls, type) and issubclass(cls, self.base)):
            raise ComponentLoadError(f"{self.kind} {name!r} from {sources[0]} is no {self.base.__name__}")
        if cls.model_fields["type"].default != name:
            raise ComponentLoadError(
                f"{self.kind} {name!r} from {sources[0]} calls itself {cls.model_fields['type'].default!r}; "
                "the entry point and the config's type must agree"
            )
        return self._classes.setdefault(name, cls)

    def validate(self, value: Any) -> C:
        """Turns a mapping with a ``type:`` into the config it names; a config passes through."""
        if isinstance(value, self.base):
            return value
        document = cast("dict[str, Any]", value) if isinstance(value, dict) else {}
        if not isinstance(document.get("type"), str):
            raise PydanticCustomError(
                "missing_type",
                "expected a mapping with a `type:` that names one of the {kind}s: {available}",
                {"kind": self.kind, "available": ", ".join(self.names())},
            )
        return self.get(document["type"]).model_validate(document)

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        def dump(value: BaseModel, info: core_schema.SerializationInfo) -> dict[str, Any]:
            return value.model_dump(mode=info.mode)

        return core_schema.no_info_plain_validator_function(
            self.validate,
            serialization=core_schema.plain_serializer_function_ser_schema(dump, info_arg=True),
        )

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        # A tagged union here would recurse for ever once an adapter nests adapters; `schema` fills this in.
        return {"x-registry": f"#/$defs/{self.kind}"}


def describe(entry: EntryPoint) -> str:
    """The distribution and version behind an entry point."""
    return f"{entry.dist.name} {entry.dist.version}" if entry.dist else entry.value


def component_schemas(root: dict[str, Any]) -> dict[str, Any]:
    """Fills a JSON schema's registry placeholders with every installed component's schema."""
    definitions: dict[str, Any] = root.setdefault("$defs", {})
    for kind, registry in Registry.by_kind.items():
        options: list[dict[str, str]] = []
        for name in registry.names():
            key = f"{kind}.{name}"
            try:
                one = registry.get(name).model_json_schema(ref_template=f"#/$defs/{key}.{{model}}")
            except (ComponentLoadError, PydanticUserError) as exc:  # one broken plugin must not take the others along
                warnings.warn(f"left out of the schema: {key}: {exc}", stacklevel=2)
                continue
            one["required"] = ["type", *(field for field in one.get("required", []) if field != "type")]
            definitions.update({f"{key}.{sub}": body for sub, body in one.pop("$defs", {}).items()})
            definitions[key] = one
            options.append({"$ref": f"#/$defs/{key}"})
        definitions[kind] = {"oneOf": options} if options else {"not": {}}
    return _fill(root)


def _fill(node: Any) -> Any:
    if isinstance(node, dict):
        mapping = cast("dict[str, Any]", node)
        return {("$ref" if key == "x-registry" else key): _fill(value) for key, value in mapping.items()}
    if isinstance(node, list):
        return [_fill(value) for value in cast("list[Any]", node)]
    return node
