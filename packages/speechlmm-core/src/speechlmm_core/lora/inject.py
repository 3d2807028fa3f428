"""Puts low-rank adapters on parts of a model, through PEFT.

PEFT (https://github.com/huggingface/peft, Apache-2.0) is imported when an adapter is put on, and not before. Each
adapter belongs to one part of the model, its *root*: the names in the adapter's folder start there, so that PEFT loads
the folder onto that part.
"""

from __future__ import annotations

import logging
import re
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from torch import nn

from speechlmm_core.errors import ConfigError, MissingDependencyError
from speechlmm_core.lora.config import LoraAdapterConfig
from speechlmm_core.lora.plain import BASE, MATRICES, adapted_layers, is_adapted
from speechlmm_core.registry import nearest

if TYPE_CHECKING:
    from peft import LoraConfig

    from speechlmm_core.model.speechlmm import SpeechLMM

ALL_LINEAR = "all-linear"


def require_peft() -> None:
    """Checks that PEFT is installed.

    Raises:
        MissingDependencyError: It is not.
    """
    if find_spec("peft") is None:
        raise MissingDependencyError(
            "low-rank adapters need PEFT, which is not installed: pip install 'speechlmm-core[lora]'"
        )
    # PEFT imports bitsandbytes where it is installed, which tells on some CPUs of a kernel that nothing here needs.
    logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)


def adapters_of(model: SpeechLMM) -> tuple[LoraAdapterConfig, ...]:
    """The adapters that a model has, in the order in which they were put on."""
    return model.lora_adapters


def inject(model: SpeechLMM, adapters: Sequence[LoraAdapterConfig]) -> None:
    """Puts adapters on a model; all of them, and those that it has, are active.

    Nothing is put on unless all can be. Freezing is left to `freeze` and `set_trainable`, which know of adapters.

    Args:
        model: The model; it may be on the meta device.
        adapters: The adapters, each under a name of its own.

    Raises:
        ConfigError: A name is taken, a target does not exist or holds nothing that takes an adapter, or PEFT refuses a
            field.
        MissingDependencyError: PEFT is not installed.
    """
    if not adapters:
        return
    require_peft()
    planned = [*model.lora_adapters]
    for adapter in adapters:
        _check_name(adapter, planned)
        planned.append(adapter)
    chosen = [(adapter, *_targets(model, adapter)) for adapter in adapters]
    for adapter, root, config, _ in chosen:
        _put_on(model.get_submodule(root), adapter.name, config)
        model.lora_adapters = (*model.lora_adapters, adapter)
    activate(model)
    model.train(model.training)  # new layers are in training mode


def root_of(model: SpeechLMM, adapter: LoraAdapterConfig) -> str:
    """The module that the names in an adapter's folder start from: its target, or where that is a layer, what holds it.

    Raises:
        ConfigError: There is no such module.
    """
    names = {name for name, _ in model.named_modules() if name and not _within_adapter(name)}
    target = adapter.target_module
    if target not in names:
        raise ConfigError(
            f"adapter {adapter.name!r}: the model has no module {target!r}{nearest(target, sorted(names))}; the "
            f"components are {', '.join(model.components())}"
        )
    module = model.get_submodule(target)
    if isinstance(module, nn.Linear) or is_adapted(module):
        return target.rpartition(".")[0]
    return target


def peft_config(model: SpeechLMM, adapter: LoraAdapterConfig) -> LoraConfig:
    """PEFT's configuration of an adapter, with the layers that it is put on.

    Raises:
        ConfigError: As for `inject`.
    """
    return _targets(model, adapter)[1]


def activate(model: nn.Module) -> None:
    """Makes all adapters of every layer active; PEFT leaves active only the last that was put on."""
    for _, layer in adapted_layers(model):
        held: Any = layer
        names = list(dict.fromkeys(name for kind in MATRICES for name in getattr(held, kind, {})))
        held.set_adapter(names)


def _check_name(adapter: LoraAdapterConfig, others: Sequence[LoraAdapterConfig]) -> None:
    for other in others:
        if other.name == adapter.name:
            raise ConfigError(
                f"two adapters are called {adapter.name!r}, one on {other.target_module!r} and one on "
                f"{adapter.target_module!r}; give each a name of its own"
            )


def _targets(model: SpeechLMM, adapter: LoraAdapterConfig) -> tuple[str, LoraConfig, list[str]]:
    """The root of an adapter, its configuration for PEFT, and the layers under the root that it is put on."""
    from peft import LoraConfig
    from peft.tuners.tuners_utils import check_target_module_exists

    root = root_of(model, adapter)
    module = model.get_submodule(root)
    names = [name for name, _ in module.named_modules() if name and not _within_adapter(name)]
    config = _peft_config(adapter)
    if config.target_modules is None or config.target_modules == ALL_LINEAR:
        below = adapter.target_module[len(root) :].strip(".")
        wanted = [name for name in _linear_layers(model, root) if not below or name == below]
        if config.exclude_modules:
            every = LoraConfig(target_modules=".*", exclude_modules=config.exclude_modules)
            wanted = [name for name in wanted if check_target_module_exists(every, name)]
        config.target_modules = _shortest(wanted, names)
    with _told(adapter):
        found = [name for name in names if check_target_module_exists(config, name)]
    if not found:
        asked = adapter.extras.get("target_modules")
        what = f"target_modules {asked!r} name none of its modules" if asked else "it holds no linear layer"
        raise ConfigError(
            f"adapter {adapter.name!r} cannot be put on {adapter.target_module!r}: {what}; choose another "
            "target_module or target_modules"
        )
    for name in found:
        if reads_weights(module.get_submodule(name.rpartition(".")[0])):
            raise ConfigError(
                f"adapter {adapter.name!r} cannot be put on {name!r}: the module that it is in reads its weights "
                "without calling it, so that the adapter would have no effect; name others by target_modules"
            )
    _refuse_tied(model, adapter, root, found)
    if adapter.extras.get("lora_bias"):
        _refuse_without_bias(module, adapter, found)
    return root, config, found


def _linear_layers(model: SpeechLMM, root: str) -> list[str]:
    """The linear layers under a module, but the head and those whose weights are read without a call."""
    head = model.get_output_embeddings()
    module = model.get_submodule(root)
    found: list[str] = []
    for name, child in module.named_modules():
        if not name or _within_adapter(name):
            continue
        inner = getattr(child, BASE) if is_adapted(child) else child
        if not isinstance(inner, nn.Linear) or child is head or inner is head:
            continue
        holder = module.get_submodule(name.rpartition(".")[0])
        if not reads_weights(holder):
            found.append(name)
    return found


def reads_weights(holder: nn.Module) -> bool:
    """Whether a module reads the weights of its linear layers without calling them, so that adapters have no effect."""
    return isinstance(holder, nn.MultiheadAttention) or any(cls.__name__ in _READERS for cls in type(holder).__mro__)


_READERS = ("WavLMAttention",)
"""Classes of transformers that hand their layers' weights to one function for all of attention."""


def _within_adapter(name: str) -> bool:
    parts = name.split(".")
    return BASE in parts or any(part.startswith("lora_") for part in parts)


def _shortest(wanted: list[str], names: list[str]) -> list[str] | str:
    """The shortest `target_modules` that mean just these layers: last names, whole names, or an expression."""
    if not wanted:
        return []

    def meant(targets: list[str]) -> list[str]:
        ends = tuple(f".{target}" for target in targets)
        return [name for name in names if name in targets or name.endswith(ends)]

    for targets in (sorted({name.rpartition(".")[2] for name in wanted}), wanted):
        if meant(targets) == wanted:
            return targets
    return "|".join(re.escape(name) for name in wanted)


def _refuse_tied(model: SpeechLMM, adapter: LoraAdapterConfig, root: str, found: Sequence[str]) -> None:
    """Refuses an adapter on tied tables: merged, it would change both, and in the head it would change nothing."""
    table, head = model.get_input_embeddings(), model.get_output_embeddings()
    for name in found:
        layer = model.get_submodule(f"{root}.{name}" if root else name)
        inner = getattr(layer, BASE, layer)
        if inner is getattr(head, BASE, head) or inner is getattr(table, BASE, table):
            if getattr(table, "weight", None) is getattr(head, "weight", None):
                raise ConfigError(
                    f"adapter {adapter.name!r} cannot be put on {name!r}: the embedding table and the head of this "
                    "text decoder are one; leave it out"
                )
            if adapter.extras.get("use_dora"):
                raise ConfigError(
                    f"adapter {adapter.name!r} cannot be put on {name!r} with use_dora: the loss takes this table as a "
                    "whole; leave the field or the table out"
                )


def _refuse_without_bias(module: nn.Module, adapter: LoraAdapterConfig, found: Sequence[str]) -> None:
    """Refuses biases of adapters on layers without one: there would be nothing to merge them into."""
    for name in found:
        layer = module.get_submodule(name)
        if getattr(getattr(layer, BASE, layer), "bias", None) is None:
            raise ConfigError(
                f"adapter {adapter.name!r} cannot be put on {name!r} with lora_bias: the layer has no bias that the "
                "adapter's could be merged into; leave the field out, or name layers with a bias by target_modules"
            )


def _peft_config(adapter: LoraAdapterConfig, **more: Any) -> LoraConfig:
    from peft import LoraConfig

    given = adapter.model_dump(exclude={"name", "target_module"}) | more
    _check_types(adapter, given)
    if float(given["lora_alpha"]).is_integer():
        given["lora_alpha"] = int(given["lora_alpha"])
    with _told(adapter):
        return LoraConfig(**given)


def _check_types(adapter: LoraAdapterConfig, given: dict[str, Any]) -> None:
    from typing import get_type_hints

    from peft import LoraConfig
    from pydantic import TypeAdapter, ValidationError

    hints = get_type_hints(LoraConfig)
    for key, value in given.items():
        if key in LoraAdapterConfig.model_fields:
            continue
        try:
            TypeAdapter(hints[key]).validate_python(value, strict=True)
        except KeyError:
            raise ConfigError(f"adapter {adapter.name!r}: unknown key {key!r}{nearest(key, sorted(hints))}") from None
        except ValidationError as exc:
            reasons = " or ".join(dict.fromkeys(error["msg"].lower() for error in exc.errors()))
            raise ConfigError(f"adapter {adapter.name!r}: {key}: got {value!r}: {reasons}") from None


def _put_on(root: Any, name: str, config: LoraConfig) -> None:
    from peft import inject_adapter_in_model

    for flag, kind in (("is_loaded_in_4bit", "Linear4bit"), ("is_loaded_in_8bit", "Linear8bitLt")):
        if any(type(module).__name__ == kind for module in root.modules()):
            setattr(root, flag, True)  # PEFT has layers of its own for these, and looks here
    with _told(name), warnings.catch_warnings():
        # Two adapters on one part are what is wanted.
        warnings.filterwarnings("ignore", message="Already found a `peft_config`")
        inject_adapter_in_model(config, root, adapter_name=name)


@contextmanager
def _told(adapter: LoraAdapterConfig | str) -> Iterator[None]:
    """Tells what PEFT does not take as a fault of the configuration."""
    name = adapter if isinstance(adapter, str) else adapter.name
    try:
        yield
    except (ValueError, TypeError, NotImplementedError, ImportError, re.error) as exc:
        if isinstance(exc, ConfigError):
            raise
        raise ConfigError(f"adapter {name!r}: {' '.join(str(exc).split())}") from exc
