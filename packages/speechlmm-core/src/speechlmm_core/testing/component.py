"""Checks that every component must pass, whatever it computes: its configuration, its state, its modes, its dtypes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from abc import ABC, abstractmethod
from collections.abc import Collection
from typing import Any

import torch
from pydantic import ValidationError
from torch import Tensor, nn

from speechlmm_core.interfaces.modules import Component
from speechlmm_core.registry import ComponentConfig, Registry
from speechlmm_core.testing.checks import assert_same, check
from speechlmm_core.testing.composite import new_model, saved_and_loaded, tiny_model_config

IMPORT_PROBE = """
import importlib, sys
name = sys.argv[1]
try:
    importlib.import_module(name)
except ModuleNotFoundError as exc:
    if exc.name and (name == exc.name or name.startswith(exc.name + ".")):
        sys.exit(0)  # defined in a script or a test: there is no module to import
    raise
print(",".join(sorted({"torch", "transformers"} & sys.modules.keys())))
"""


class ComponentKit(ABC):
    """What the kits of encoders, adapters and objectives have in common."""

    low_precision = torch.bfloat16
    """Dtype of the output of a module in bfloat16."""

    def __init__(self, config: Any, registry: Registry[Any], unreached: Collection[str]) -> None:
        self.config = config
        self.registry = registry
        self.unreached = tuple(unreached)

    @abstractmethod
    def make(self, config: Any) -> Component:
        """Builds the module from a configuration."""

    @property
    @abstractmethod
    def place(self) -> str:
        """Where the component stands in `towers`."""

    @abstractmethod
    def towers(self) -> dict[str, Any]:
        """The component and those that it needs beside it, as keys of a `ModelConfig`."""

    def composite_output(self, module: Any) -> Tensor:
        """What the module computes when it was built for `towers`."""
        return self.output(module)

    @abstractmethod
    def output(self, module: Any, dtype: torch.dtype = torch.float32) -> Tensor:
        """What the module computes on the kit's standard input, padding left out, as one flat tensor."""

    def build(self, seed: int = 0) -> Component:
        """A fresh module, the same for the same seed; the caller's random state is kept."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return self.make(self.config)

    def built(self) -> Any:
        """A fresh module in eval mode."""
        return self.build().eval()

    @check
    def config_defaults(self) -> None:
        """A configuration is constructible without arguments, and knows its `type`."""
        cls = type(self.config)
        name = cls.model_fields["type"].default
        assert isinstance(name, str), f'`type` has no default; write `type: Literal["..."] = "..."` in {cls.__name__}'
        assert cls().type == name == self.config.type, f"{cls.__name__}().type is {cls().type!r}, expected {name!r}"

    @check
    def config_round_trip(self) -> None:
        """A configuration survives being dumped to JSON and read again, and refuses keys that it does not know."""
        config: ComponentConfig = self.config
        dumped = json.loads(json.dumps(config.model_dump(mode="json"), allow_nan=False))
        again = type(config).model_validate(dumped)
        assert again == config, f"read back {again!r}, expected {config!r}"
        if config.type in self.registry.names() and self.registry.get(config.type) is type(config):
            assert self.registry.validate(dumped) == config, "the registry reads it back differently"
        try:
            type(config).model_validate({**dumped, "no_such_key": 1})
        except ValidationError:
            pass
        else:
            raise AssertionError("an unknown key was accepted; keep `extra='forbid'`")
        assert config.model_config.get("frozen"), "the configuration can be changed; keep `frozen=True`"

    @check
    def config_import(self) -> None:
        """The configuration's module is imported without torch and transformers."""
        name = type(self.config).__module__
        if name == "__main__":
            return
        # The working folder stays out: a test's own module must not be found there as a namespace package.
        path = [folder for folder in sys.path if folder and folder != os.getcwd()]
        done = subprocess.run(
            [sys.executable, "-P", "-c", IMPORT_PROBE, name],
            env={**os.environ, "PYTHONPATH": os.pathsep.join(path)},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, f"importing {name} alone fails: {done.stderr.strip().splitlines()[-1:]}"
        found = done.stdout.strip()
        assert not found, f"importing {name} imports {found}; import them inside `build` and `build_preprocessor`"

    @check
    def builds_on_meta(self) -> None:
        """The module can be built on the meta device, where `plan` and `from_pretrained` build it."""
        with torch.device("meta"):
            module = self.make(self.config)
        real = {name: tuple(value.shape) for name, value in self.build().state_dict().items()}
        meta = {name: tuple(value.shape) for name, value in module.state_dict().items()}
        assert meta == real, f"the states differ in {sorted(meta.items() ^ real.items())[:3]}"

    @check
    def deterministic(self) -> None:
        """In eval mode, the same input gives the same output."""
        module = self.built()
        assert_same(self.output(module), self.output(module), "a second call")

    @check
    def frozen(self) -> None:
        """Frozen (eval mode, no gradients wanted) means no dropout, no masking, and buffers that stay as they are."""
        module = self.build()
        module.train()
        module.requires_grad_(False).eval()
        active = [name or "the module itself" for name, one in module.named_modules() if one.training]
        assert not active, f"eval() leaves {active[:3]} in training mode"
        before = {name: value.clone() for name, value in module.named_buffers()}
        first, second = self.output(module), self.output(module)
        assert_same(second, first, "a second call (dropout, layer drop or masking is active)")
        for name, value in module.named_buffers():
            assert name in before, f"buffer {name!r} appeared during the forward pass"
            assert_same(value, before[name], f"buffer {name!r} after the forward pass")
        moved = [name for name, value in module.named_parameters() if value.requires_grad]
        assert not moved, f"the forward pass asks for gradients of {moved[:3]}"

    @check
    def gradients_reach_parameters(self) -> None:
        """Gradients reach every trainable parameter, and are finite."""
        module = self.built()
        parameters = {name: value for name, value in module.named_parameters() if value.requires_grad}
        if not parameters:
            return
        output = self.output(module)
        assert output.requires_grad, "the output is detached from the parameters"
        output.backward(probe(output))
        missed = [name for name, value in parameters.items() if value.grad is None]
        missed = [name for name in missed if not name.endswith(self.unreached or ("\0",))]
        if missed:
            missed = [name for name in missed if name not in self.reached_by_losses()]
        assert not missed, f"no gradient for {missed[:5]}; use them, drop them, or name them in `unreached`"
        wild = [
            name for name, value in parameters.items() if value.grad is not None and not value.grad.isfinite().all()
        ]
        assert not wild, f"the gradient of {wild[:5]} is not finite"

    def reached_by_losses(self) -> Collection[str]:
        """Parameters that get a gradient from losses of the component's own, though not from its output."""
        return ()

    @check
    def state_dict_round_trip(self) -> None:
        """A state dict loaded into another instance gives the same output."""
        source, target = self.built(), self.build(seed=1).eval()
        state = {name: value.clone() for name, value in source.state_dict().items()}
        target.load_state_dict(state, strict=True)
        assert_same(self.output(target), self.output(source), "after loading the state dict")

    @check
    def buffers_are_restored(self) -> None:
        """`reset_buffers` restores every buffer that is not saved: `from_pretrained` leaves these as garbage."""
        source, target = self.built(), self.built()
        saved = target.state_dict().keys()
        lost = {name: value for name, value in target.named_buffers() if name not in saved}
        for value in lost.values():
            value.fill_(float("nan") if value.is_floating_point() else 101)
        target.reset_buffers()
        after = dict(target.named_buffers())
        for name, value in source.named_buffers():
            assert_same(after[name], value, f"buffer {name!r} after `reset_buffers`")
        assert_same(self.output(target), self.output(source), "the output after `reset_buffers`")

    @check
    def bfloat16(self) -> None:
        """In bfloat16 the output is finite, of the right dtype, and close to that in fp32."""
        self.assert_as_in_fp32(self.built().to(torch.bfloat16), self.built())

    @check
    def built_in_bfloat16(self) -> None:
        """Built where bfloat16 is the default dtype, as `from_pretrained` does, the module computes the same."""
        source, previous = self.built(), torch.get_default_dtype()
        torch.set_default_dtype(torch.bfloat16)
        try:
            target = self.make(self.config).eval()
        finally:
            torch.set_default_dtype(previous)
        wrong = [name for name, value in target.named_parameters() if value.dtype != torch.bfloat16]
        assert not wrong, f"{wrong[:3]} are not bfloat16"
        target.load_state_dict(source.state_dict())
        self.assert_as_in_fp32(target, source)

    def assert_as_in_fp32(self, low: Any, module: Any) -> None:
        """Asserts that a module in low precision computes what it does in fp32, but for rounding."""
        self.assert_near(self.output(low, torch.bfloat16), self.output(module))

    def assert_near(self, got: Tensor, expected: Tensor) -> None:
        """Asserts that an output in low precision is what was computed in fp32, but for rounding."""
        assert got.shape == expected.shape, f"shape {tuple(got.shape)}, expected {tuple(expected.shape)}"
        assert got.dtype == self.low_precision, f"{got.dtype}, expected {self.low_precision}"
        assert bool(got.isfinite().all()), "the output is not finite"
        got, expected = got.detach().float(), expected.detach().float()
        off = float((got - expected).norm() / expected.norm().clamp(min=1e-6))
        assert off <= 0.1, f"differs from fp32 by {off:.1%} in norm (allowed: 10 %)"

    @check
    def pretrained_equals_constructor(self) -> None:
        """Saved in a model and loaded by `from_pretrained`, the component has every parameter and buffer as before."""
        with tiny_model_config(self.towers()) as config:
            before, after = (model.components()[self.place] for model in saved_and_loaded(config))
        tensors = dict(after.named_parameters()) | dict(after.named_buffers())
        for name, value in [*before.named_parameters(), *before.named_buffers()]:
            assert name in tensors, f"{name!r} is missing"
            assert_same(tensors[name], value, f"{name!r} after loading")
        assert_same(self.composite_output(after), self.composite_output(before), "the output after loading")

    @check
    def frozen_in_a_model(self) -> None:
        """Frozen by `freeze_modules`, the component stays in eval mode, without gradients, while the model trains."""
        from speechlmm_core.model.freezing import freeze

        with tiny_model_config(self.towers()) as config:
            model = new_model(config)
        freeze(model, [self.place])
        model.train()
        component = model.components()[self.place]
        active = [name or "the component itself" for name, one in component.named_modules() if one.training]
        assert not active, f"{active[:3]} are in training mode"
        moved = [name for name, value in component.named_parameters() if value.requires_grad]
        assert not moved, f"{moved[:3]} still want gradients"
        buffers = {name: value.clone() for name, value in component.named_buffers()}
        assert_same(self.composite_output(component), self.composite_output(component), "a second call")
        for name, value in component.named_buffers():
            assert_same(value, buffers[name], f"buffer {name!r} after the forward pass")

    @check
    def frozen_inside(self) -> None:
        """Frozen by the name of its network, the component drops nothing out either while the model trains."""
        from speechlmm_core.model.freezing import freeze

        with tiny_model_config(self.towers()) as config:
            model = new_model(config)
        component = model.components()[self.place]
        inner = getattr(component, "model", None)
        if not isinstance(inner, nn.Module) or not any(True for _ in inner.parameters()):
            return
        freeze(model, [f"{self.place}.model"])
        model.train()
        active = [name for name, one in inner.named_modules() if one.training]
        assert not active, f"{active[:3]} of the frozen network are in training mode"
        if not any(parameter.requires_grad for parameter in component.parameters()):
            first, second = self.composite_output(component), self.composite_output(component)
            assert_same(second, first, "a second call (it drops out although nothing in it trains)")


def probe(like: Tensor, seed: int = 0) -> Tensor:
    """A fixed random direction for gradients; a plain sum has none behind a layer norm."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(like.shape, generator=generator).to(like.dtype)


def lengths_agree(got: Any, expected: Any, what: str) -> None:
    """Asserts that two sequences of lengths are equal, naming the first difference."""
    for position, (one, other) in enumerate(zip(list(got), list(expected), strict=True)):
        assert int(one) == int(other), f"{what}: {int(one)} in row {position}, expected {int(other)}"
