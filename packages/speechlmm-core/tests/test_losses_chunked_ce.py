"""The chunked loss head against torch's cross-entropy."""

import pytest
import torch
from torch.nn import functional as F

from speechlmm_core.losses.chunked_ce import chunked_cross_entropy
from speechlmm_core.losses.logsumexp import chunked_logsumexp

M, V, D = 23, 37, 6


def inputs(dtype=torch.float32, **kwargs):
    torch.manual_seed(0)
    hidden = torch.randn(M, D).to(dtype).requires_grad_()
    weight = torch.randn(V, D).to(dtype).requires_grad_(kwargs.get("trainable", True))
    return hidden, weight, torch.randint(0, V, (M,))


def reference(hidden, weight, targets, softcap=None, label_smoothing=0.0):
    logits = (hidden @ weight.T).float() if hidden.dtype == torch.bfloat16 else hidden @ weight.T
    if softcap is not None:
        logits = softcap * torch.tanh(logits / softcap)
    return F.cross_entropy(logits, targets, reduction="sum", label_smoothing=label_smoothing)


@pytest.mark.parametrize(
    "options", [{}, {"softcap": 1.5}, {"label_smoothing": 0.1}, {"softcap": 2.0, "label_smoothing": 0.2}]
)
@pytest.mark.parametrize("chunk_size", [1, 5, 23, None])
def test_loss_and_gradients_equal_cross_entropy(options, chunk_size):
    hidden, weight, targets = inputs()
    expected = reference(hidden, weight, targets, **options)
    gradients = torch.autograd.grad(expected * 0.5, (hidden, weight))
    got = chunked_cross_entropy(hidden, weight, targets, chunk_size=chunk_size, **options)
    assert got.dtype == torch.float32
    assert got.shape == ()
    torch.testing.assert_close(got, expected)
    for one, other in zip(torch.autograd.grad(got * 0.5, (hidden, weight)), gradients, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("softcap", [None, 1.5])
@pytest.mark.parametrize("label_smoothing", [0.0, 0.1])
def test_gradcheck(softcap, label_smoothing):
    hidden, weight, targets = inputs(torch.float64)

    def loss(hidden, weight):
        return chunked_cross_entropy(
            hidden, weight, targets, chunk_size=7, softcap=softcap, label_smoothing=label_smoothing
        )

    assert torch.autograd.gradcheck(loss, (hidden, weight))


def test_bf16_weights_get_gradients_summed_in_fp32():
    hidden, weight, targets = inputs(torch.bfloat16)
    exact_hidden, exact_weight = (t.detach().float().requires_grad_() for t in (hidden, weight))
    reference(exact_hidden, exact_weight, targets).backward()
    loss = chunked_cross_entropy(hidden, weight, targets, chunk_size=1)
    loss.backward()
    assert loss.dtype == torch.float32
    assert (weight.grad.dtype, hidden.grad.dtype) == (torch.bfloat16, torch.bfloat16)
    # Twenty-three additions in bf16 would be off by several units in the last place.
    torch.testing.assert_close(weight.grad.float(), exact_weight.grad, rtol=2e-2, atol=2e-2)
    torch.testing.assert_close(hidden.grad.float(), exact_hidden.grad, rtol=2e-2, atol=2e-2)


def test_autocast_multiplies_in_bf16_and_keeps_fp32_gradients():
    hidden, weight, targets = inputs()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = chunked_cross_entropy(hidden, weight, targets, chunk_size=4)
        expected = F.cross_entropy((hidden @ weight.T).float(), targets, reduction="sum")
    loss.backward()
    assert weight.grad.dtype == torch.float32
    torch.testing.assert_close(loss, expected)


def test_nothing_supervised():
    hidden, weight, _ = inputs()
    loss = chunked_cross_entropy(hidden[:0], weight, torch.zeros(0, dtype=torch.long))
    loss.backward()
    assert loss.item() == 0
    assert not weight.grad.any()
    assert not hidden.grad.any()


def test_negative_targets_are_left_out():
    hidden, weight, targets = inputs()
    targets[3:9] = -100
    expected = reference(hidden, weight, targets)
    gradients = torch.autograd.grad(expected, (hidden, weight))
    got = chunked_cross_entropy(hidden, weight, targets, chunk_size=4)
    torch.testing.assert_close(got, expected)
    for one, other in zip(torch.autograd.grad(got, (hidden, weight)), gradients, strict=True):
        torch.testing.assert_close(one, other)


class Shapes(torch.utils._python_dispatch.TorchDispatchMode):
    """Records the shape of every tensor that an operation returns."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        self.seen += [tuple(t.shape) for t in torch.utils._pytree.tree_leaves(out) if isinstance(t, torch.Tensor)]
        return out


@pytest.mark.parametrize("trainable", [True, False])
def test_no_full_logits_and_no_gradient_of_a_frozen_head(trainable):
    hidden, weight, targets = inputs(trainable=trainable)
    with Shapes() as shapes:
        chunked_cross_entropy(hidden, weight, targets, chunk_size=5).backward()
    assert max(shape[0] for shape in shapes.seen if shape[1:] == (V,) and shape[0] != D) <= 5
    made = [shape for shape in shapes.seen if shape == (V, D)]
    assert bool(made) == trainable
    assert (weight.grad is not None) == trainable


def test_evaluation_computes_no_gradient():
    hidden, weight, targets = inputs()
    with torch.no_grad(), Shapes() as shapes:
        loss = chunked_cross_entropy(hidden, weight, targets, chunk_size=5)
    assert not loss.requires_grad
    assert (V, D) not in shapes.seen
    assert (M, D) not in shapes.seen
    torch.testing.assert_close(loss, reference(hidden, weight, targets).detach())


def test_a_second_backward_pass_gives_the_same_gradients():
    hidden, weight, targets = inputs()
    loss = chunked_cross_entropy(hidden, weight, targets, chunk_size=5)
    first = torch.autograd.grad(loss * 3, (hidden, weight), retain_graph=True)
    for one, other in zip(torch.autograd.grad(loss * 3, (hidden, weight)), first, strict=True):
        torch.testing.assert_close(one, other)


def test_logsumexp_equals_the_full_one():
    hidden, weight, _ = inputs(torch.float64)
    torch.testing.assert_close(
        chunked_logsumexp(hidden, weight, chunk_size=4), torch.logsumexp(hidden @ weight.T, dim=1)
    )
    assert torch.autograd.gradcheck(lambda h, w: chunked_logsumexp(h, w, chunk_size=4), (hidden, weight))
