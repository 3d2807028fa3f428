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

from speechlmm_core.attention import choice
from speechlmm_core.attention.choice import choose_attention
from speechlmm_core.config import ModelConfig
from speechlmm_core.errors import ConfigError
from speechlmm_core.model.describe import attention_of, describe
from speechlmm_core.model.speechlmm import SpeechLMM


class Everything:
    _supports_flash_attn = True
    _supports_sdpa = True


class OnlyItsOwn:
    """A transformers module that knows neither."""


class NoFlash(Everything):
    _supports_flash_attn = False


@pytest.fixture
def flash(monkeypatch):
    """A machine with a GPU and flash-attn."""
    monkeypatch.setattr(choice, "flash_usable", lambda: True)


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
    ],
)
def test_what_is_asked_for_where_it_is_possible(module, requested, with_flash, without, monkeypatch):
    monkeypatch.setattr(choice, "flash_usable", lambda: False)
    assert choose_attention(requested, module) == without
    monkeypatch.setattr(choice, "flash_usable", lambda: True)
    assert choose_attention(requested, module) == with_flash


def test_what_is_not_possible_is_logged_once_and_no_error(caplog, monkeypatch):
    monkeypatch.setattr(choice, "_reported", set())
    with caplog.at_level(logging.WARNING, choice.__name__):
        for _ in range(2):
            assert choose_attention("sdpa", OnlyItsOwn, component="video_encoder") == "eager"
            assert choose_attention("auto", OnlyItsOwn, component="audio_encoder") == "eager"
    (told,) = (record.getMessage() for record in caplog.records)
    assert told == "video_encoder cannot run on 'sdpa' here; it runs on 'eager'"


@pytest.mark.parametrize(
    ("installed", "gpu", "usable"), [(False, True, False), (True, False, False), (True, True, True)]
)
def test_flash_needs_its_package_and_a_gpu(installed, gpu, usable, monkeypatch):
    if installed:
        module = ModuleType("flash_attn")
        module.__spec__ = SimpleNamespace(name="flash_attn")  # all that `find_spec` asks of a loaded module
        monkeypatch.setitem(sys.modules, "flash_attn", module)
    else:
        monkeypatch.setattr(choice, "find_spec", lambda name: None)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu)
    assert choice.flash_usable() is usable


def of(tiny_config, attention, **changes):
    return ModelConfig.model_validate(
        {**tiny_config.model_dump(mode="json"), "attn_implementation": attention, **changes}
    )


def test_a_text_decoder_that_cannot_falls_back(tiny_config, monkeypatch):
    """Without a GPU and flash-attn, and with a family that has its own attention only."""
    monkeypatch.setattr(choice, "flash_usable", lambda: False)
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
