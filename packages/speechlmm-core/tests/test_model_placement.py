"""Models on several devices: where parts go, and that answers stay the same."""

import pytest
import torch

from speechlmm_core.checkpoint.save import save_model
from speechlmm_core.errors import ConfigError
from speechlmm_core.features import Features
from speechlmm_core.inference.device import device_arguments
from speechlmm_core.inference.engine import to_device
from speechlmm_core.model.placement import automatic, blocks, moved, place
from speechlmm_core.model.speechlmm import SpeechLMM
from speechlmm_core.processor.processor import SpeechLMMProcessor


@pytest.fixture
def saved(tiny_model, tiny_processor, tmp_path):
    save_model(tiny_model, tiny_processor, tmp_path / "model")
    return tmp_path / "model"


def answer(model, folder):
    processor = SpeechLMMProcessor.from_pretrained(folder)
    batch = processor([[{"role": "user", "content": "Say something"}]])
    return model.generate(batch, max_new_tokens=8, do_sample=False)


MAP = {"": "cpu", "text_decoder.model.model.layers.1": "cpu", "audio_encoder": "cpu"}


def test_a_map_changes_no_answer(saved):
    model = SpeechLMM.from_pretrained(saved, device_map=MAP)
    assert torch.equal(answer(model, saved), answer(SpeechLMM.from_pretrained(saved), saved))
    assert list(blocks(model)) == ["text_decoder.model.model.layers.0", "text_decoder.model.model.layers.1"]


def test_inputs_follow_to_where_a_part_lies(saved):
    """The meta device stands for another one: what a part on it puts out shows that its inputs came to it."""
    model = SpeechLMM.from_pretrained(saved)
    place(model, {"": "cpu", "text_decoder.model.model.layers.0": "meta"})
    layers = model.text_decoder.model.model.layers
    assert {parameter.device.type for parameter in layers[0].parameters()} == {"meta"}
    assert {parameter.device.type for parameter in layers[1].parameters()} == {"cpu"}
    seen = []
    layers[0].self_attn.register_forward_pre_hook(
        lambda _module, args, kwargs: seen.append(kwargs["hidden_states"].device.type), with_kwargs=True
    )
    with torch.no_grad(), pytest.raises(NotImplementedError, match="meta"):  # from there, nothing comes back
        model.text_decoder(torch.zeros(1, 3, model.text_decoder.embedding_weight.shape[1]))
    assert seen == ["meta"]
    assert model.device.type == "cpu"


def test_no_part_passes_through_the_device_of_what_is_around_it(saved):
    """What has been on the meta device has no values any more."""
    model, block = SpeechLMM.from_pretrained(saved), "text_decoder.model.model.layers.1"
    before = {name: value.clone() for name, value in model.get_submodule(block).state_dict().items()}
    place(model, {"": "meta", block: "cpu"})
    after = model.get_submodule(block).state_dict()
    assert all(torch.equal(after[name], value) for name, value in before.items())
    rest = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    assert {value.device.type for name, value in rest.items() if not name.startswith(f"{block}.")} == {"meta"}


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_weights_that_parts_share_stay_one(saved, device):
    model = SpeechLMM.from_pretrained(saved)
    body = model.text_decoder.model
    body.lm_head.weight = body.model.embed_tokens.weight
    place(model, {"": device, "text_decoder.model.model.layers.1": "cpu"})
    assert body.lm_head.weight is body.model.embed_tokens.weight
    assert body.lm_head.weight.device.type == device


def test_parts_that_share_a_weight_cannot_lie_apart(saved):
    model = SpeechLMM.from_pretrained(saved)
    body = model.text_decoder.model
    body.lm_head.weight = body.model.embed_tokens.weight
    with pytest.raises(ConfigError, match=r"embed_tokens' and .*lm_head' share one weight"):
        place(model, {"": "cpu", "text_decoder.model.lm_head": "meta"})
    assert not body.model.embed_tokens.weight.is_meta


def test_everything_that_holds_tensors_is_moved():
    features = Features(torch.zeros(1, 2, 3), torch.tensor([2]), {"weights": torch.ones(1, 2)})
    there = moved({"one": (features, 3), "two": [torch.zeros(1)]}, torch.device("meta"))
    assert there["one"][0].values.is_meta
    assert there["one"][0].lengths.is_meta
    assert there["one"][0].extras["weights"].is_meta
    assert there["one"][1] == 3
    assert there["two"][0].is_meta


@pytest.mark.parametrize(
    ("device_map", "expected"),
    [
        ({"audio_encodr": "cpu"}, "'audio_encodr' is no component and no part of the text decoder; did you mean"),
        ({"audio_encoder": "disk"}, "'audio_encoder' cannot stay on the disk; name 'cpu'"),
        ({"audio_encoder": "cuda:77"}, "'audio_encoder': there is no device 'cuda:77' here"),
        ("balanced", "unknown device_map 'balanced'; expected 'auto'"),
    ],
)
def test_maps_that_fit_nothing(saved, device_map, expected):
    with pytest.raises(ConfigError, match=expected.replace("(", r"\(")):
        SpeechLMM.from_pretrained(saved, device_map=device_map)


def test_a_map_and_a_device(saved):
    with pytest.raises(ConfigError, match="device_map goes with neither"):
        SpeechLMM.from_pretrained(saved, device_map="auto", device="cpu")


@pytest.mark.parametrize(
    ("free", "expected"),
    [([10**9, 10**9], {"": 0}), ([None, 10**9], {"": 0, "text_decoder.model.model.layers.1": 1}), ([10, 10], None)],
)
def test_blocks_go_to_the_next_gpu_when_one_is_full(saved, monkeypatch, free, expected):
    model = SpeechLMM.from_pretrained(saved)
    whole = sum(p.numel() * p.element_size() for p in (*model.parameters(), *model.buffers()))
    block = sum(p.numel() * p.element_size() for p in model.text_decoder.model.model.layers[1].parameters())
    free = [int((whole - block // 2) / 0.9) if one is None else one for one in free]
    monkeypatch.setattr(torch.cuda, "device_count", lambda: len(free))
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda number: (free[number], 0))
    if expected is None:
        with pytest.raises(ConfigError, match="more than the 2 GPUs have free"):
            automatic(model)
    else:
        assert automatic(model) == {name: torch.device("cuda", number) for name, number in expected.items()}


def test_the_name_for_all_gpus():
    assert device_arguments("all") == {"device_map": "auto"}
    assert device_arguments("cpu") == {"device": torch.device("cpu")}


@pytest.mark.gpu
def test_a_gpu_never_holds_what_lies_elsewhere(saved):
    model = SpeechLMM.from_pretrained(saved)
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    place(model, {"": "cuda:0", "text_decoder.model.model.layers.0": "cpu", "text_decoder.model.model.layers.1": "cpu"})
    held = torch.cuda.memory_allocated() - before
    assert held
    assert torch.cuda.max_memory_allocated() - before == held


@pytest.mark.gpu
def test_parts_on_a_gpu_and_on_the_cpu(saved):
    one = answer(SpeechLMM.from_pretrained(saved), saved)
    model = SpeechLMM.from_pretrained(saved, device_map={**MAP, "": "cuda:0"})
    assert model.device.type == "cuda"
    processor = SpeechLMMProcessor.from_pretrained(saved)
    batch = processor([[{"role": "user", "content": "Say something"}]])
    other = model.generate(to_device(batch, model.device), max_new_tokens=8, do_sample=False)
    assert torch.equal(other.cpu(), one)
