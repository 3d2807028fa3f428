"""CTC against a naive dynamic programme over each medium, and its configuration."""

import logging

import pytest
import torch
from pydantic import ValidationError
from torch import nn

from speechlmm_core.errors import ConfigError
from speechlmm_core.features import Features
from speechlmm_core.interfaces.context import BuildContext
from speechlmm_core.interfaces.modules import TextDecoder
from speechlmm_core.losses.ctc import ctc_loss_restricted
from speechlmm_core.objectives.ctc.config import CTCObjectiveConfig

D, V = 6, 11
SIZES = {"audio_encoder": 4, "audio_adapter": D, "text_decoder": D}


class Tokenizer:
    """One token a word, numbered by its length; `_` is token 7."""

    def encode(self, text):
        return [7 if word == "_" else len(word) for word in text.replace(" ", " _ ").split()]


class Decoder(TextDecoder):
    def __init__(self, vocab_size=V):
        super().__init__()
        self.table = nn.Parameter(torch.randn(vocab_size, D))

    def embed(self, input_ids):
        return self.table[input_ids]

    @property
    def embedding_weight(self):
        return self.table

    @property
    def output_weight(self):
        return self.table

    def forward(self, inputs_embeds, **kwargs):
        return inputs_embeds


def build(config, name="ctc", **kwargs):
    torch.manual_seed(0)
    module = config.build(BuildContext(vocab_size=V, stage_sizes=SIZES, **kwargs))
    module.name = name
    return module


def naive_ctc(log_probs, target, blank):
    """Minus the log of the sum over all alignments of one medium, in fp64, by the textbook's recursion."""
    labels = [blank]
    for token in target:
        labels += [token, blank]
    alpha = [torch.tensor(-1e30, dtype=torch.double)] * len(labels)  # no infinity: its gradient is undefined
    alpha[0] = log_probs[0][blank]
    if target:
        alpha[1] = log_probs[0][target[0]]
    for frame in log_probs[1:]:
        new = []
        for s, label in enumerate(labels):
            reach = [alpha[s]] + ([alpha[s - 1]] if s else [])
            if s > 1 and label not in (blank, labels[s - 2]):
                reach.append(alpha[s - 2])
            new.append(torch.logsumexp(torch.stack(reach), 0) + frame[label])
        alpha = new
    return -torch.logsumexp(torch.stack(alpha[-2:]), 0)


def batch_of(targets, name="ctc", valid=None, padding=0):
    U = max(map(len, targets), default=0)
    ids = torch.tensor([list(t) + [padding] * (U - len(t)) for t in targets], dtype=torch.long).reshape(len(targets), U)
    lengths = torch.tensor([len(t) for t in targets], dtype=torch.long)
    valid = torch.tensor(valid if valid is not None else [True] * len(targets), dtype=torch.bool)
    return {"targets": {name: {"ids": ids, "lengths": lengths, "valid": valid}}}


TARGETS = [[3, 3, 5], [2], [1, 2, 1, 4], [9, 9]]
LENGTHS = [7, 3, 5, 3]  # the last is exactly as long as the target with its blank


def features(width=D):
    torch.manual_seed(1)
    values = torch.randn(4, 9, width, dtype=torch.double, requires_grad=True)
    return Features(values, torch.tensor(LENGTHS))


def scores(module, values, decoder):
    """Log-probabilities over the labels, and the blank's index, from the definition."""
    config = module.config
    if config.head == "linear":
        logits = values @ module.linear.weight.T
        logits = logits if module.linear.bias is None else logits + module.linear.bias
        return logits.log_softmax(-1), 0 if config.vocabulary == "characters" else V
    scale = D**-0.5 if config.scale == "fixed" else module.log_scale.exp()
    table = decoder.table if config.blank else torch.cat([decoder.table, module.blank[None]])
    return (values @ table.T * scale).log_softmax(-1), 7 if config.blank else V


CONFIGS = {
    "linear": CTCObjectiveConfig(vocabulary="text_decoder", stage="audio_adapter"),
    "embeddings": CTCObjectiveConfig(vocabulary="text_decoder", stage="audio_adapter", head="embeddings"),
    "learned_scale": CTCObjectiveConfig(
        vocabulary="text_decoder", stage="audio_adapter", head="embeddings", scale="learned"
    ),
    "named_blank": CTCObjectiveConfig(vocabulary="text_decoder", stage="audio_adapter", head="embeddings", blank="_"),
}


@pytest.mark.parametrize("restricted", [False, True])
@pytest.mark.parametrize("kind", CONFIGS)
def test_loss_and_gradients_equal_the_naive_programme(kind, restricted):
    module = build(CONFIGS[kind], encode=Tokenizer().encode).double()
    if module.blank is not None:
        nn.init.normal_(module.blank)
    module.full_vocabulary = 0 if restricted else 4096
    decoder, stage = Decoder().double(), features()
    log_probs, blank = scores(module, stage.values, decoder)
    expected = sum(naive_ctc(log_probs[b, :n], TARGETS[b], blank) for b, n in enumerate(LENGTHS))
    wanted = [stage.values, *module.parameters(), *([decoder.table] if kind != "linear" else [])]
    gradients = torch.autograd.grad(expected, wanted)

    loss = module({"audio_adapter": stage}, batch_of(TARGETS), decoder)
    assert loss.unit == "ctc_targets"
    torch.testing.assert_close(loss.sum, expected)
    for got, other in zip(torch.autograd.grad(loss.sum, wanted), gradients, strict=True):
        torch.testing.assert_close(got, other)


def test_characters_equal_the_naive_programme():
    config = CTCObjectiveConfig()
    module = build(config).double()
    stage = features(4)
    targets = [config.encode_transcript(text, None) for text in ("aab", "z", "a'c", "ee")]
    log_probs, blank = scores(module, stage.values, None)
    expected = sum(naive_ctc(log_probs[b, :n], targets[b], blank) for b, n in enumerate(LENGTHS))
    loss = module({"audio_encoder": stage}, batch_of(targets), Decoder())
    torch.testing.assert_close(loss.sum, expected)


@pytest.mark.parametrize("restricted", [False, True])
def test_targets_are_neither_inverted_nor_overwritten(restricted):
    """The predecessor applied `~` to an integer mask, which overwrote the targets of the last two rows."""
    module = build(CONFIGS["embeddings"]).double()
    module.full_vocabulary = 0 if restricted else 4096
    decoder, stage = Decoder().double(), features()
    batch = batch_of(TARGETS, valid=[True, False, True, False], padding=5)
    before = {key: value.clone() for key, value in batch["targets"]["ctc"].items()}
    loss = module({"audio_adapter": stage}, batch, decoder)
    for key, value in before.items():
        assert torch.equal(batch["targets"]["ctc"][key], value)
    log_probs, blank = scores(module, stage.values, decoder)
    expected = sum(naive_ctc(log_probs[b, : LENGTHS[b]], TARGETS[b], blank) for b in (0, 2))
    torch.testing.assert_close(loss.sum, expected)
    loss.sum.backward()
    assert stage.values.grad[[0, 2]].abs().amax((1, 2)).min() > 0
    assert not stage.values.grad[[1, 3]].any()


@pytest.mark.parametrize("restricted", [False, True])
def test_the_loss_reaches_the_stage_and_ignores_its_padding(restricted):
    """The predecessor compressed under `no_grad`."""
    module = build(CONFIGS["named_blank"], encode=Tokenizer().encode)
    module.full_vocabulary = 0 if restricted else 4096
    decoder = Decoder()
    values = features().values.detach().float()
    for b, n in enumerate(LENGTHS):
        values[b, n:] = torch.inf
    stage = Features(values.requires_grad_(), torch.tensor(LENGTHS))
    loss = module({"audio_adapter": stage}, batch_of(TARGETS), decoder).sum
    loss.backward()
    assert loss.isfinite()
    assert stage.values.grad.isfinite().all()
    assert decoder.table.grad.isfinite().all()
    for b, n in enumerate(LENGTHS):
        assert stage.values.grad[b, :n].abs().sum(1).min() > 0
        assert not stage.values.grad[b, n:].any()


@pytest.mark.parametrize("restricted", [False, True])
def test_targets_that_turn_out_too_long_add_nothing(restricted):
    module = build(CONFIGS["embeddings"]).double()
    module.full_vocabulary = 0 if restricted else 4096
    decoder, stage = Decoder().double(), features()
    short = Features(stage.values, torch.tensor([7, 0, 5, 2]))
    loss = module({"audio_adapter": short}, batch_of(TARGETS), decoder).sum
    log_probs, blank = scores(module, stage.values, decoder)
    expected = sum(naive_ctc(log_probs[b, : LENGTHS[b]], TARGETS[b], blank) for b in (0, 2))
    torch.testing.assert_close(loss, expected)
    loss.backward()
    assert not stage.values.grad[[1, 3]].any()
    assert stage.values.grad.isfinite().all()


def test_a_target_that_is_certain_among_its_own_labels_still_competes_with_the_others():
    """The restricted loss is exactly zero here, but label 2 of the vocabulary takes most of the mass."""
    weight = torch.tensor([[0.0, 0.0], [200.0, 0.0], [201.0, 0.0]])
    hidden = torch.tensor([[[1.0, 0.0]], [[1.0, 0.0]]])
    targets = torch.tensor([[1, 0], [1, 1]])
    loss = ctc_loss_restricted(
        hidden,
        torch.tensor([1, 1]),
        targets,
        torch.tensor([1, 2]),
        weight=weight,
        blank=weight[0],
        blank_in_weight=True,
    )
    expected = -torch.log_softmax(weight @ hidden[0, 0], 0)[1]
    torch.testing.assert_close(loss, torch.stack([expected, torch.tensor(0.0)]))


@pytest.mark.parametrize("kind", CONFIGS)
def test_no_media_and_no_targets(kind):
    module = build(CONFIGS[kind], encode=Tokenizer().encode).double()
    for stage, targets in (
        (Features(torch.zeros(0, 0, D), torch.zeros(0, dtype=torch.long)), []),
        (features(), [[]] * 4),
    ):
        loss = module({"audio_adapter": stage}, batch_of(targets), Decoder().double()).sum
        assert loss.item() == 0


def test_the_full_logits_of_a_large_vocabulary_are_not_built():
    class Shapes(torch.utils._python_dispatch.TorchDispatchMode):
        largest = 0

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            out = func(*args, **(kwargs or {}))
            for tensor in torch.utils._pytree.tree_leaves(out):
                if isinstance(tensor, torch.Tensor):
                    self.largest = max(self.largest, tensor.numel())
            return out

    vocab = 20_000
    module = CONFIGS["embeddings"].build(BuildContext(vocab_size=vocab, stage_sizes=SIZES))
    module.name = "ctc"
    decoder = Decoder(vocab)
    stage = Features(torch.randn(8, 200, D, requires_grad=True), torch.full((8,), 200))
    with Shapes() as shapes:
        module({"audio_adapter": stage}, batch_of([[5, 19_999, 3]] * 8), decoder).sum.backward()
    assert shapes.largest < 8 * 200 * vocab * 0.6


def test_encoding_of_characters(caplog):
    config = CTCObjectiveConfig()
    with caplog.at_level(logging.WARNING):
        ids = config.encode_transcript("  Don\u2019t\tﬁx: IT ß", None)
    text = "".join(config.characters[i - 1] for i in ids)
    assert text == "dont fix it"
    assert "'ß'" in caplog.text
    assert "'\u2019'" in caplog.text
    caplog.clear()
    assert config.encode_transcript("\u2019ß", None) == []
    assert not caplog.records  # each character is named once


def test_encoding_with_the_text_decoders_tokens():
    class Words:
        def encode(self, text):
            return [hash(text)]

    plain = CTCObjectiveConfig(vocabulary="text_decoder")
    spaced = CTCObjectiveConfig(vocabulary="text_decoder", leading_space=True)
    assert plain.encode_transcript(" a  b\n", Words()) == [hash("a b")]
    assert spaced.encode_transcript("a b", Words()) == [hash(" a b")]
    assert plain.encode_transcript("  ", Words()) == []
    # The blank cannot be a target.
    assert CONFIGS["named_blank"].encode_transcript("abc de", Tokenizer()) == [3, 2]


@pytest.mark.parametrize(("target", "frames"), [([], 0), ([1], 1), ([1, 1], 3), ([1, 2, 2, 2, 1], 7)])
def test_min_frames(target, frames):
    assert CTCObjectiveConfig().min_frames(target) == frames


def test_the_blank_must_be_one_token():
    config = CTCObjectiveConfig(vocabulary="text_decoder", head="embeddings", blank="a b")
    with pytest.raises(ConfigError, match="the blank 'a b' is 3 tokens"):
        config.encode_transcript("hello", Tokenizer())


def test_the_blank_is_saved_with_the_weights():
    trained = build(CONFIGS["named_blank"], encode=Tokenizer().encode)
    stages, batch, decoder = {"audio_adapter": features()}, batch_of(TARGETS), Decoder().double()
    expected = trained(stages, batch, decoder).sum
    loaded = build(CONFIGS["named_blank"])
    with pytest.raises(ConfigError, match="built without one"):
        loaded(stages, batch, decoder)
    loaded.load_state_dict(trained.state_dict())
    torch.testing.assert_close(loaded(stages, batch, decoder).sum, expected)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"head": "embeddings"}, "vocabulary: text_decoder"),
        ({"blank": "_"}, "head: embeddings"),
        ({"characters": "abA"}, "never leaves"),
        ({"characters": "aa"}, "distinct"),
        ({"stage": "text_decoder"}, "stage"),
    ],
)
def test_configurations_that_do_not_fit(fields, message):
    with pytest.raises(ValidationError, match=message):
        CTCObjectiveConfig(**fields)


def test_stages_that_do_not_fit():
    with pytest.raises(ConfigError, match="'video_encoder'; the model has audio_encoder"):
        build(CTCObjectiveConfig(stage="video_encoder"))
    with pytest.raises(ConfigError, match="width 6, but audio_encoder gives 4"):
        build(CTCObjectiveConfig(vocabulary="text_decoder", head="embeddings"))
