"""What a component's attention runs on: asked for, possible, and reported."""

from __future__ import annotations

import logging
import sys
from types import ModuleType, SimpleNamespace

import pytest
import torch
from pydantic import ValidationError
from torch import nn
from transformers import LlamaForCausalLM
from transformers.utils import import_utils

from speechlmm_core.attention import choice, varlen
from speechlmm_core.attention.choice import choose_attention, flash_usable
from speechlmm_core.config import ModelConfig
from speechlmm_core.errors import ConfigError
from speechlmm_core.interfaces.context import BuildContext
from speechlmm_core.model.describe import attention_of, describe
from speechlmm_core.model.speechlmm import SpeechLMM
from speechlmm_core.text_decoder import decoder


class Everything:
    _supports_flash_attn = True
    _supports_sdpa = True


class OnlyItsOwn:
    """A transformers module that knows neither."""


class NoFlash(Everything):
    _supports_flash_attn = False


class ItsOwnKind:
    attn_implementation = "sdpa"


@pytest.mark.parametrize(
    ("module", "requested", "with_flash", "without"),
    [
        (Everything, "auto", "flash_attention_2", "sdpa"),
        (Everything, "flash_attention_2", "flash_attention_2", "sdpa"),
        (Everything, "sdpa", "sdpa", "sdpa"),
        (Everything, "eager", "eager", "eager"),
        (NoFlash, "auto", "sdpa", "sdpa"),
        (NoFlash, "flash_attention_2", "sdpa", "sdpa"),
        (OnlyItsOwn, "auto", "eager", "eager"),
        (OnlyItsOwn, "sdpa", "eager", "eager"),
        (OnlyItsOwn, "flash_attention_2", "eager", "eager"),
        *((ItsOwnKind, asked, "sdpa", "sdpa") for asked in ("auto", "eager", "sdpa", "flash_attention_2")),
    ],
)
def test_what_is_asked_for_where_it_is_possible(module, requested, with_flash, without):
    for flash, expected in ((True, with_flash), (False, without)):
        assert choose_attention(BuildContext(attn_implementation=requested, flash_attention=flash), module) == expected


def told(caplog, monkeypatch, module, *requests, flash=False):
    monkeypatch.setattr(choice, "_reported", set())
    with caplog.at_level(logging.WARNING, choice.__name__):
        for requested in requests:
            ctx = BuildContext(component="video_encoder", attn_implementation=requested, flash_attention=flash)
            choose_attention(ctx, module)
    return [record.getMessage() for record in caplog.records]


def test_what_is_not_possible_is_logged_once_and_no_error(caplog, monkeypatch):
    messages = told(caplog, monkeypatch, OnlyItsOwn, "sdpa", "auto", "sdpa")
    assert messages == ["video_encoder cannot run on 'sdpa' here; it runs on 'eager'"]


def test_a_request_for_flash_attention_is_told_what_it_needs(caplog, monkeypatch):
    (message,) = told(caplog, monkeypatch, Everything, "auto", "flash_attention_2")
    assert "'flash_attention_2' here (FlashAttention needs flash-attn, a GPU" in message
    assert message.endswith("and half precision); it runs on 'sdpa'")
    caplog.clear()
    assert told(caplog, monkeypatch, Everything, "auto", "flash_attention_2", flash=True) == []


def test_a_module_with_attention_of_one_kind_tells_who_asks_for_another(caplog, monkeypatch):
    messages = told(caplog, monkeypatch, ItsOwnKind, "auto", "sdpa", "eager", "flash_attention_2")
    assert messages == [
        f"video_encoder cannot run on {asked!r} here; it runs on 'sdpa'" for asked in ("eager", "flash_attention_2")
    ]


@pytest.fixture
def gpu(monkeypatch):
    """A machine with flash-attn and a GPU that it runs on."""
    module = ModuleType("flash_attn")
    module.__spec__ = SimpleNamespace(name="flash_attn")  # all that `find_spec` asks of a loaded module
    monkeypatch.setitem(sys.modules, "flash_attn", module)
    monkeypatch.setattr(import_utils, "is_flash_attn_2_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 0))
    return monkeypatch


def test_flash_needs_its_package_a_gpu_and_half_precision(gpu):
    for dtype in (torch.bfloat16, torch.float16):
        assert flash_usable("cuda", dtype)
        assert flash_usable(torch.device("cuda:0"), dtype)
    assert not flash_usable("cuda", torch.float32)
    assert not flash_usable("cpu", torch.bfloat16)  # though there is a GPU
    gpu.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))
    assert not flash_usable("cuda", torch.bfloat16)
    gpu.setattr(torch.cuda, "get_device_capability", lambda device: (12, 0))
    assert flash_usable("cuda", torch.bfloat16)
    gpu.setattr(import_utils, "is_flash_attn_2_available", lambda: False)  # another flash-attn, or one too old
    assert not flash_usable("cuda", torch.bfloat16)
    gpu.setattr(import_utils, "is_flash_attn_2_available", lambda: True)
    gpu.setattr(torch.cuda, "is_available", lambda: False)
    assert not flash_usable("cuda", torch.bfloat16)
    gpu.setattr(torch.cuda, "is_available", lambda: True)
    gpu.setattr(choice, "find_spec", lambda name: None)
    assert not flash_usable("cuda", torch.bfloat16)


def test_packed_rows_take_kernels_that_the_gpu_runs(gpu):
    """Older GPUs attend segment by segment."""
    device, kernel = torch.device("cuda:0"), lambda *args, **kwargs: None
    sys.modules["flash_attn"].flash_attn_varlen_func = kernel
    for capability, expected in (((8, 0), True), ((7, 5), False)):
        varlen._flash_attn.cache_clear()
        varlen._torch_varlen.cache_clear()
        gpu.setattr(torch.cuda, "get_device_capability", lambda device, found=capability: found)
        assert varlen._flash_attn(device, torch.float16) is (kernel if expected else None)
        assert varlen._flash_attn(device, torch.float32) is None
        assert expected or varlen._torch_varlen(device) is None
    varlen._flash_attn.cache_clear()
    varlen._torch_varlen.cache_clear()


@pytest.mark.parametrize("asked", ["auto", "flash_attention_2"])
def test_a_model_is_told_where_it_will_run(asked, tiny_config, tiny_model, tmp_path, gpu):
    """Beside a GPU with flash-attn, in what each way of building a model knows of device and type."""
    seen = []
    gpu.setattr(decoder, "choose_attention", lambda ctx, family: seen.append(ctx.flash_attention) or "sdpa")
    config = of(tiny_config, asked)
    SpeechLMM.from_model_config(config)
    SpeechLMM.from_model_config(config, flash_attention=flash_usable("cuda", torch.bfloat16))
    describe(config)
    describe(config, flash_attention=True)
    assert seen == [False, True, False, True]
    seen.clear()
    tiny_model.save_pretrained(tmp_path)
    gpu.setattr(nn.Module, "to", lambda self, *args, **kwargs: self)  # there is no GPU in truth
    places = [(None, "bfloat16"), ("cpu", "bfloat16"), ("cuda", "float32"), ("cuda", "bfloat16"), ("cuda", "auto")]
    for device, dtype in places:
        SpeechLMM.from_pretrained(tmp_path, device=device, dtype=dtype, attn_implementation=asked)
    assert seen == [False, False, False, True, False]


def of(tiny_config, attention, **changes):
    return ModelConfig.model_validate(
        {**tiny_config.model_dump(mode="json"), "attn_implementation": attention, **changes}
    )


def test_a_text_decoder_that_cannot_falls_back(tiny_config, monkeypatch):
    """In fp32, and with a family that has its own attention only."""
    model = SpeechLMM.from_model_config(of(tiny_config, "flash_attention_2"))
    assert model.text_decoder.model.config._attn_implementation == "sdpa"
    monkeypatch.setattr(LlamaForCausalLM, "_supports_sdpa", False)
    model = SpeechLMM.from_model_config(of(tiny_config, {"text_decoder": "sdpa"}))
    assert model.text_decoder.model.config._attn_implementation == "eager"


def test_each_component_gets_what_is_asked_for_it(tiny_config):
    rows = {row.name: row for row in describe(of(tiny_config, {"text_decoder": "eager"}))}
    assert rows["text_decoder"].attn_implementation == "eager"
    assert rows["audio_encoder"].attn_implementation == ""
    assert rows["audio_adapter"].attn_implementation == ""
    assert rows["objectives.lm"].attn_implementation == ""
    rows = {row.name: row for row in describe(of(tiny_config, "auto"))}
    assert rows["text_decoder"].attn_implementation == "sdpa"


@pytest.mark.parametrize(
    ("attention", "told"),
    [
        ({"audio_encodr": "sdpa"}, r"names 'audio_encodr'; did you mean 'audio_encoder'\?, but the components of this"),
        ({"video_encoder": "sdpa"}, r"names 'video_encoder'.*: text_decoder, audio_encoder, audio_adapter"),
        ({"codec": "sdpa"}, "names 'codec', but"),
        ({"text_decoder": "spda"}, r"unknown attn_implementation\.text_decoder 'spda'; did you mean 'sdpa'\?"),
        ("flash", r"unknown attn_implementation 'flash' \(known: auto, eager, sdpa, flash_attention_2\)"),
        ("flash_attn_2", r"unknown attn_implementation 'flash_attn_2'; did you mean 'flash_attention_2'\?"),
    ],
)
def test_unknown_components_and_names_are_refused(tiny_config, attention, told):
    with pytest.raises(ValidationError, match=told):
        of(tiny_config, attention)


def test_a_saved_model_is_loaded_onto_another_attention(tiny_model, tmp_path):
    tiny_model.save_pretrained(tmp_path)
    model = SpeechLMM.from_pretrained(tmp_path, attn_implementation="eager")
    assert model.text_decoder.model.config._attn_implementation == "eager"
    with pytest.raises(ConfigError, match=r"unknown attn_implementation 'spda'; did you mean 'sdpa'\?"):
        SpeechLMM.from_pretrained(tmp_path, attn_implementation="spda")


class OwnAttention(nn.Module):
    attn_implementation = "sdpa"


class Wrapper(nn.Module):
    def __init__(self, model):
        super().__init__()
        self.model = model


class Configured(nn.Module):
    config = SimpleNamespace(_attn_implementation="flash_attention_2")


class Tower(Wrapper):
    attn_implementation = "eager"


@pytest.mark.parametrize(
    ("component", "expected"),
    [
        (nn.Linear(2, 2), ""),
        (Wrapper(nn.Sequential(nn.Linear(2, 2))), ""),
        (OwnAttention(), "sdpa"),
        (Wrapper(Configured()), "flash_attention_2"),
        (Tower(Configured()), "eager"),  # what a component says itself comes first
        (nn.ModuleList([nn.Linear(2, 2), OwnAttention(), OwnAttention()]), "sdpa"),
        (nn.ModuleList([OwnAttention(), Wrapper(Configured())]), "flash_attention_2, sdpa"),
        (Wrapper(nn.Identity()), ""),
    ],
)
def test_what_a_component_runs_on_is_found(component, expected):
    assert attention_of(component) == expected
