"""Products by oneDNN: float64's numbers within a bound, the same model, and torch's own where it is not for them."""

import copy
from contextlib import contextmanager

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from llm import onednn
from llm.models import load_model

needs_onednn = pytest.mark.skipif(not onednn.HERE, reason="torch multiplies by itself on this processor")
HALF_UNIT = 2.0**-24


@contextmanager
def any_size():
    """Products of any size are for oneDNN, and pieces have few rows."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(onednn, "LEAST", {name: (2, 1) for name in onednn.LEAST})
        yield


@pytest.fixture
def small_products():
    with any_size():
        yield


def bound(a, b):
    """Of a product in float32: gamma_k sum |a| |b|, whatever the order of its k terms (Higham 2002, section 3.1)."""
    k = a.shape[1] + 1
    gamma = k * HALF_UNIT / (1 - k * HALF_UNIT)
    return gamma * (a.double().abs() @ b.double().abs())


sizes = st.tuples(st.integers(1, 70), st.integers(1, 20), st.integers(1, 20), st.integers(0, 2**31))


@needs_onednn
@given(sizes)
def test_products_of_every_layout_are_those_of_float64(size):
    n, k, m, seed = size
    generator = torch.Generator().manual_seed(seed)
    a, b = torch.randn(n, k, generator=generator), torch.randn(k, m, generator=generator)
    exact, most = a.double() @ b.double(), bound(a, b)
    for left in (a, a.mT.contiguous().mT):
        for right in (b, b.mT.contiguous().mT):
            with any_size():
                found = onednn.matmul(left, right)
            assert ((found - exact).abs() <= most).all()


@needs_onednn
@given(sizes, st.booleans(), st.booleans())
def test_a_layer_and_its_gradients_are_those_of_float64(size, biased, nested):
    n, k, m, seed = size
    torch.manual_seed(seed)
    x, weight, bias, grad = torch.randn(n, k), torch.randn(m, k), torch.randn(m) if biased else None, torch.randn(n, m)
    given_ = [t.requires_grad_() for t in (x, weight, bias) if t is not None]
    with any_size():
        found = onednn.linear(x.unsqueeze(1) if nested else x, weight, bias)
        assert found.shape == ((n, 1, m) if nested else (n, m))
        found = found.reshape(n, m)
        ours = torch.autograd.grad(found, given_, grad, retain_graph=True)
    wide = [t.detach().double().requires_grad_() for t in given_]
    exact = nn.functional.linear(*wide)
    most = bound(x, weight.mT) + (0 if bias is None else (k + 1) * HALF_UNIT * bias.abs())
    assert ((found - exact).abs() <= most * (1 + 1e-6) + HALF_UNIT * exact.abs()).all()
    theirs = torch.autograd.grad(exact, wide, grad.double())
    limits = [bound(grad, weight), bound(grad.mT, x), bound(torch.ones(1, n), grad)[0]]
    for mine, its, limit in zip(ours, theirs, limits, strict=False):
        assert ((mine - its).abs() <= limit).all()


@given(st.integers(0, 5000), st.integers(1, 10**6), st.integers(1, 600), st.integers(1, 10**8))
def test_pieces_are_every_token_once_and_of_few_shapes(tokens, each, rows, work):
    pieces = onednn._pieces(tokens, each, (rows, work))
    covered = [i for piece, _ in pieces for i in range(piece.start, piece.stop)]
    assert covered == list(range(tokens))
    large = [piece.stop - piece.start for piece, large in pieces if large]
    assert all(size >= rows and size * each >= work for size in large)
    if tokens * each < onednn.WHOLE:
        assert all(size & (size - 1) == 0 for size in large)
    assert len(pieces) - len(large) <= 1
    # what is left to torch is less than one piece would need
    least = max(rows, -(-work // each))
    assert all(p.stop - p.start < 2 * least for p, is_large in pieces if not is_large)


@needs_onednn
def test_the_same_product_has_the_same_bits(small_products):
    a, b = torch.randn(100, 30), torch.randn(30, 20)
    assert torch.equal(onednn.matmul(a, b), onednn.matmul(a.clone(), b.clone()))


@needs_onednn
def test_a_row_that_is_no_number_stays_alone(small_products):
    a, b = torch.randn(9, 5), torch.randn(7, 5)
    a[3] = torch.nan
    found = onednn.matmul(a, b.mT)
    assert found[3].isnan().all() and not found[[0, 1, 2, 4, 5, 6, 7, 8]].isnan().any()


@needs_onednn
def test_large_products_take_onednn_and_small_ones_do_not(monkeypatch):
    called = []
    original = onednn._linear_pointwise
    monkeypatch.setattr(onednn, "_linear_pointwise", lambda *a: called.append(len(a[0])) or original(*a))
    onednn.linear(torch.randn(8, 64), torch.randn(64, 64))
    assert called == []
    onednn.linear(torch.randn(2048 + 64 + 3, 64), torch.randn(384, 64))
    assert called == [2048, 64]


def left_to_torch(monkeypatch):
    """No product may reach oneDNN from here on."""

    def refuse(*_):
        raise AssertionError("oneDNN was asked")

    monkeypatch.setattr(onednn, "_linear_pointwise", refuse)
    monkeypatch.setattr(onednn, "_weights", refuse)


def test_the_switch_of_torch_leaves_everything_to_torch(small_products, monkeypatch):
    left_to_torch(monkeypatch)
    a, b = torch.randn(100, 30), torch.randn(30, 20)
    monkeypatch.setattr(torch.backends.mkldnn, "enabled", False)
    assert torch.equal(onednn.matmul(a, b), a @ b)


def test_other_processors_leave_everything_to_torch(small_products, monkeypatch):
    left_to_torch(monkeypatch)
    monkeypatch.setattr(onednn, "HERE", False)
    x, weight = torch.randn(100, 30), torch.randn(20, 30)
    assert torch.equal(onednn.linear(x, weight), nn.functional.linear(x, weight))


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_other_types_are_torchs(small_products, monkeypatch, dtype):
    left_to_torch(monkeypatch)
    x, weight = torch.randn(100, 30, dtype=dtype), torch.randn(20, 30, dtype=dtype)
    assert torch.equal(onednn.linear(x, weight), nn.functional.linear(x, weight))


def test_autocast_is_torchs(small_products, monkeypatch):
    left_to_torch(monkeypatch)
    with torch.autocast("cpu", torch.bfloat16):
        assert onednn.linear(torch.randn(100, 30), torch.randn(20, 30)).dtype == torch.bfloat16


def test_transforms_of_functions_are_torchs(small_products):
    layer = onednn.Linear(5, 4)
    x = torch.randn(8, 5)
    jacobian = torch.func.jacrev(lambda w: torch.func.functional_call(layer, {"weight": w}, (x,)))(
        layer.weight.detach()
    )
    # d (x W^T)_no / d W_pi = x_ni [o = p]
    assert torch.equal(jacobian, torch.einsum("ni,op->nopi", x, torch.eye(4)))


@needs_onednn
def test_a_second_derivative_is_refused(small_products):
    x = torch.randn(8, 5, requires_grad=True)
    (grad,) = torch.autograd.grad(onednn.linear(x, torch.randn(4, 5)).square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        grad.sum().backward()


def test_a_model_keeps_its_weights_and_names():
    model = load_model("tiny").model
    assert any(type(module) is onednn.Linear for module in model.modules())
    assert not any(type(module) is nn.Linear for module in model.modules())
    plain = copy.deepcopy(model)
    for module in plain.modules():
        if type(module) is onednn.Linear:
            module.__class__ = nn.Linear
    state, expected = model.state_dict(), plain.state_dict()
    assert list(state) == list(expected)
    assert all(torch.equal(state[name], expected[name]) for name in state)
    tokens = torch.randint(2, 20, (40, 12))
    with torch.no_grad():
        ours, theirs = model(tokens).logits, plain(tokens).logits
    # either is up to 3e-5 away from the same weights in float64 (logits up to 12); from each other they are less
    assert torch.allclose(ours, theirs, rtol=0, atol=2e-5)


def test_a_copy_of_a_model_reads_its_own_weights():
    layer = nn.Sequential(nn.Linear(3, 2))
    onednn.equip(layer)
    other = copy.deepcopy(layer)
    with torch.no_grad():
        other[0].weight.zero_()
        other[0].bias.zero_()
    assert not other(torch.ones(1, 3)).any()
