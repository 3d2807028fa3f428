"""Base weights of the conformer encoders, from the layouts that transformers saves them in."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    HubertConfig,
    HubertModel,
    SeamlessM4Tv2Config,
    SeamlessM4Tv2ForSpeechToText,
    SeamlessM4Tv2Model,
    Wav2Vec2BertConfig,
    Wav2Vec2BertForCTC,
)

from speechlmm_core.errors import CheckpointError
from speechlmm_core.interfaces.context import BuildContext
from speechlmm_core.interfaces.encoder import encoders

SEAMLESS = {
    "hidden_size": 32,
    "feature_projection_input_dim": 16,
    "speech_encoder_layers": 2,
    "speech_encoder_attention_heads": 2,
    "speech_encoder_intermediate_size": 24,
    "conv_depthwise_kernel_size": 5,
    "left_max_position_embeddings": 4,
    "right_max_position_embeddings": 2,
    "speech_encoder_chunk_size": 50,
}
REST = {
    **dict.fromkeys(("vocab_size", "t2u_vocab_size", "char_vocab_size", "unit_hifi_gan_vocab_size"), 12),
    **dict.fromkeys(("encoder_layers", "decoder_layers", "t2u_encoder_layers", "t2u_decoder_layers"), 1),
    **dict.fromkeys(("encoder_ffn_dim", "decoder_ffn_dim", "t2u_encoder_ffn_dim", "t2u_decoder_ffn_dim"), 8),
    **dict.fromkeys(("encoder_attention_heads", "decoder_attention_heads"), 2),
    **dict.fromkeys(("t2u_encoder_attention_heads", "t2u_decoder_attention_heads"), 2),
    **dict.fromkeys(("unit_embed_dim", "lang_embed_dim", "spkr_embed_dim", "upsample_initial_channel"), 4),
    **dict.fromkeys(("t2u_variance_predictor_embed_dim", "t2u_variance_predictor_hidden_dim"), 32),
    "upsample_rates": (2, 2),
    "upsample_kernel_sizes": (4, 4),
    "max_position_embeddings": 8,
    "t2u_max_position_embeddings": 8,
}
W2V_BERT = {
    "hidden_size": 32,
    "feature_projection_input_dim": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "conv_depthwise_kernel_size": 5,
    "left_max_position_embeddings": 4,
    "right_max_position_embeddings": 2,
}


def random_weights(model):
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_()
    return model.eval()


@pytest.fixture(scope="module")
def seamless(tmp_path_factory):
    """The same speech encoder in every layout."""
    root = tmp_path_factory.mktemp("seamless")
    config = SeamlessM4Tv2Config(**SEAMLESS, **REST)
    whole = random_weights(SeamlessM4Tv2Model(config))
    whole.save_pretrained(root / "whole")
    whole.save_pretrained(root / "sharded", max_shard_size="40KB")
    text = random_weights(SeamlessM4Tv2ForSpeechToText(config))
    text.speech_encoder.load_state_dict(whole.speech_encoder.state_dict())
    text.save_pretrained(root / "speech_to_text")
    whole.speech_encoder.save_pretrained(root / "encoder")
    return root, whole.speech_encoder


@pytest.fixture(scope="module")
def w2v_bert(tmp_path_factory):
    root = tmp_path_factory.mktemp("w2v_bert")
    ctc = random_weights(Wav2Vec2BertForCTC(Wav2Vec2BertConfig(**W2V_BERT, vocab_size=8, mask_time_prob=0.05)))
    ctc.save_pretrained(root / "ctc")
    ctc.wav2vec2_bert.save_pretrained(root / "model")
    adapted = Wav2Vec2BertConfig(**W2V_BERT, vocab_size=8, add_adapter=True, output_hidden_size=16)
    random_weights(Wav2Vec2BertForCTC(adapted)).save_pretrained(root / "adapter")
    return root, ctc.wav2vec2_bert


def load(data):
    encoder = encoders.validate(data).build(BuildContext())
    encoder.load_base_weights()
    return encoder


def parts(folder):
    names = {name for file in folder.glob("*.safetensors") for name in load_file(file)}
    return {name.partition(".")[0] for name in names}


@pytest.mark.parametrize("layout", ["whole", "sharded", "speech_to_text", "encoder"])
def test_seamless(seamless, layout):
    root, published = seamless
    if layout == "whole":
        assert parts(root / layout) >= {"speech_encoder", "text_encoder", "text_decoder", "t2u_model", "vocoder"}
    encoder = load({"type": "seamless", "pretrained": str(root / layout)})
    assert encoder.config.model.speech_encoder_chunk_size == 50
    own = encoder.model.state_dict()
    assert own.keys() == published.state_dict().keys()
    for name, tensor in published.state_dict().items():
        assert torch.equal(own[name], tensor), name


@pytest.mark.parametrize("spec_augment", [False, True])
@pytest.mark.parametrize("layout", ["ctc", "model"])
def test_w2v_bert_2(w2v_bert, layout, spec_augment):
    root, published = w2v_bert
    encoder = load({"type": "w2v_bert_2", "pretrained": str(root / layout), "apply_spec_augment": spec_augment})
    own = encoder.model.state_dict()
    assert set(published.state_dict()) - set(own) == (set() if spec_augment else {"masked_spec_embed"})
    for name, tensor in own.items():
        assert torch.equal(tensor, published.state_dict()[name]), name


def test_w2v_bert_2_with_an_adapter(w2v_bert):
    root, _ = w2v_bert
    config = load({"type": "w2v_bert_2", "pretrained": str(root / "adapter")}).config
    assert (config.hidden_size, config.frame_rate) == (16, 25)


@pytest.mark.parametrize("kind", ["seamless", "w2v_bert_2"])
def test_a_checkpoint_of_another_model(kind, tmp_path):
    numbers = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}
    HubertModel(HubertConfig(**numbers, conv_dim=[4] * 7, num_conv_pos_embedding_groups=2)).save_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match="is a model of type 'hubert', expected"):
        load({"type": kind, "pretrained": str(tmp_path)})


@pytest.mark.parametrize(
    ("key", "value"), [("speech_encoder_layers", 3), ("adaptor_stride", 4), ("speech_encoder_chunk_size", 60)]
)
def test_numbers_that_disagree_with_the_checkpoint(seamless, key, value):
    root, _ = seamless
    there = SEAMLESS.get(key, 8)
    with pytest.raises(CheckpointError, match=rf"{key} is {value} here and {there} there"):
        load({"type": "seamless", "pretrained": str(root / "whole"), "model": {**SEAMLESS, key: value}})


def test_dropout_may_differ_from_the_checkpoint(seamless):
    root, _ = seamless
    load({"type": "seamless", "pretrained": str(root / "encoder"), "model": {**SEAMLESS, "adaptor_dropout": 0.4}})


@pytest.mark.parametrize(
    ("kind", "layout", "lost"),
    [
        ("seamless", "whole", "speech_encoder.inner_layer_norm.bias"),
        ("w2v_bert_2", "ctc", "wav2vec2_bert.feature_projection.projection.bias"),
    ],
)
def test_a_tensor_too_few_and_one_too_many(seamless, w2v_bert, tmp_path, kind, layout, lost):
    for file in ((seamless if kind == "seamless" else w2v_bert)[0] / layout).iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    tensors = load_file(tmp_path / "model.safetensors")
    tensors["speech_encoder.more.weight"] = tensors.pop(lost)
    save_file(tensors, tmp_path / "model.safetensors")
    name = lost.partition(".")[2].replace(".", r"\.")
    with pytest.raises(CheckpointError, match=rf"missing \({name}\).*unexpected \(speech_encoder\.more\.weight\)"):
        load({"type": kind, "pretrained": str(tmp_path)})


def test_a_smaller_adapter_s_weights(seamless, tmp_path):
    root, _ = seamless
    for file in (root / "encoder").iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    tensors = load_file(tmp_path / "model.safetensors")
    tensors["adapter.layers.0.residual_conv.weight"] = torch.zeros(64, 32, 4)
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"residual_conv\.weight is \(64, 32, 4\), expected \(64, 32, 8\)"):
        load({"type": "seamless", "pretrained": str(tmp_path)})
