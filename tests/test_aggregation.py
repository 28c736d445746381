"""How token losses become one number: against loops, and independent of split, order and padding."""

import math

import pytest
import strategies
import torch
from hypothesis import given
from hypothesis import strategies as st

from entropy_theory.aggregation import AGGREGATIONS
from entropy_theory.loss import minibatch_loss

NAMES = sorted(AGGREGATIONS)
DOUBLE = torch.float64


def by_loop(name, loss, mask, horizon):
    """One replica; loss and mask as nested lists."""
    rows = [[v for v, m in zip(*pair, strict=True) if m] for pair in zip(loss, mask, strict=True)]
    rows = [row for row in rows if row]
    if not rows:
        return 0.0
    sums = [math.fsum(row) for row in rows]
    lengths = [len(row) for row in rows]
    return {
        "token-mean": math.fsum(sums) / sum(lengths),
        "seq-mean-token-mean": math.fsum(s / n for s, n in zip(sums, lengths, strict=True)) / len(rows),
        "seq-mean-token-sum": math.fsum(sums) / len(rows),
        "constant": math.fsum(sums) / (len(rows) * horizon),
    }[name]


@st.composite
def losses(draw, leading=None):
    """(loss, mask, horizon): loss 0 where masked, as `token_loss` gives it."""
    shape = (*(draw(strategies.leading_axes()) if leading is None else leading), draw(st.integers(1, 6)))
    steps = draw(st.integers(1, 7))
    mask = draw(strategies.masks((*shape, steps)))
    values = torch.from_numpy(draw(strategies.generators()).normal(size=tuple(mask.shape)))
    return torch.where(mask, values, 0.0), mask, draw(st.integers(steps, 20))


def rounding(loss):
    """Sums of n terms on both sides, each multiplied and divided once: (2 n + 8) roundings of the summed sizes."""
    return (2 * loss.numel() + 8) * 2**-52 * float(loss.abs().sum())


@pytest.mark.parametrize("name", NAMES)
@given(losses())
def test_equals_the_loop_summed_over_replicas(name, drawn):
    loss, mask, horizon = drawn
    mine = minibatch_loss(loss, *AGGREGATIONS[name](mask, horizon))
    flat = zip(loss.reshape(-1, *loss.shape[-2:]).tolist(), mask.reshape(-1, *mask.shape[-2:]).tolist(), strict=True)
    assert abs(float(mine) - math.fsum(by_loop(name, *pair, horizon) for pair in flat)) <= rounding(loss)


@pytest.mark.parametrize("name", NAMES)
@given(losses(leading=()), st.data())
def test_micro_batches_order_and_padding_change_nothing(name, drawn, data):
    loss, mask, horizon = drawn
    count, share = AGGREGATIONS[name](mask, horizon)
    whole = float(minibatch_loss(loss, count, share))
    cut = data.draw(st.integers(0, loss.shape[0]))
    pieces = [slice(None, cut), slice(cut, None)]
    parts = sum(float(minibatch_loss(loss[p], count, None if share is None else share[p])) for p in pieces)
    assert abs(parts - whole) <= rounding(loss)
    order = torch.from_numpy(data.draw(strategies.generators()).permutation(loss.shape[0]))
    assert abs(float(minibatch_loss(loss[order], *AGGREGATIONS[name](mask[order], horizon))) - whole) <= rounding(loss)
    more = (0, data.draw(st.integers(0, 3)), 0, data.draw(st.integers(0, 2)))
    padded, wide = torch.nn.functional.pad(loss, more), torch.nn.functional.pad(mask, more)
    assert abs(float(minibatch_loss(padded, *AGGREGATIONS[name](wide, horizon))) - whole) <= rounding(loss)


@pytest.mark.parametrize("name", NAMES)
@given(losses())
def test_the_gradient_is_what_a_token_counts_for(name, drawn):
    """d loss / d token loss is share / count of the token's own replica; the loop's, by raising one token by 1."""
    loss, mask, horizon = drawn
    variable = loss.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(minibatch_loss(variable, *AGGREGATIONS[name](mask, horizon)), variable)
    stacks = (t.reshape(-1, *t.shape[-2:]) for t in (gradient, mask))
    for slopes, valid in zip(*stacks, strict=True):
        nothing = torch.zeros_like(slopes)
        for place in valid.nonzero().tolist():
            one = nothing.clone()
            one[tuple(place)] = 1.0
            wanted = by_loop(name, one.tolist(), valid.tolist(), horizon)
            assert float(slopes[tuple(place)]) == pytest.approx(wanted, rel=4 * 2**-52)  # two divisions on each side


# rows of 2, 1 and 0 tokens with losses 3, 5 | 4 and a horizon of 10:
# token-mean 12 / 3; seq-mean-token-mean (4 + 4) / 2; seq-mean-token-sum (8 + 4) / 2; constant (8 + 4) / (2 * 10)
BY_HAND = {"token-mean": 4.0, "seq-mean-token-mean": 4.0, "seq-mean-token-sum": 6.0, "constant": 0.6}


@pytest.mark.parametrize("name", NAMES)
def test_three_tokens_by_hand(name):
    loss = torch.tensor([[3.0, 5.0], [4.0, 0.0], [0.0, 0.0]], dtype=DOUBLE)
    mask = torch.tensor([[True, True], [True, False], [False, False]])
    assert float(minibatch_loss(loss, *AGGREGATIONS[name](mask, 10))) == pytest.approx(BY_HAND[name], rel=1e-15)


def test_what_a_long_response_counts_for_differs():
    """Lengths 4 and 1 with losses of 1 per token and 6: 10/5, (1 + 6)/2, (4 + 6)/2, (4 + 6)/(2 * 4)."""
    loss = torch.tensor([[1.0] * 4, [6.0, 0.0, 0.0, 0.0]], dtype=DOUBLE)
    mask = torch.tensor([[True] * 4, [True, False, False, False]])
    found = {name: float(minibatch_loss(loss, *AGGREGATIONS[name](mask, 4))) for name in NAMES}
    assert found == {"token-mean": 2.0, "seq-mean-token-mean": 3.5, "seq-mean-token-sum": 5.0, "constant": 1.25}


@pytest.mark.parametrize("name", NAMES)
@given(losses(), st.sampled_from(strategies.DTYPES))
def test_dtype_is_the_losses(name, drawn, dtype):
    loss, mask, horizon = drawn
    assert minibatch_loss(loss.to(dtype), *AGGREGATIONS[name](mask, horizon)).dtype == dtype


@pytest.mark.parametrize("name", NAMES)
def test_nothing_branches_on_a_value(name):
    loss = torch.zeros(2, 3, 4, device="meta")
    assert minibatch_loss(loss, *AGGREGATIONS[name](loss == 0, 4)).device.type == "meta"


@pytest.mark.parametrize("name", NAMES)
def test_an_empty_replica_adds_nothing_and_is_not_nan(name):
    loss = torch.tensor([[[1.0, 2.0]], [[0.0, 0.0]]], dtype=DOUBLE)
    mask = torch.tensor([[[True, True]], [[False, False]]])
    alone = minibatch_loss(loss[:1], *AGGREGATIONS[name](mask[:1], 2))
    assert torch.equal(minibatch_loss(loss, *AGGREGATIONS[name](mask, 2)), alone)
