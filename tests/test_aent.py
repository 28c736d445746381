"""AEnt: which actions stay, the gradient of its bonus, its coefficient, and what it does in training."""

import math

import oracles
import pytest
import strategies
import torch
from closed_loop import batch_of, objective_after, tensor, train
from contract import build
from hypothesis import given
from hypothesis import strategies as st

from entropy_theory.controls import CONTROLS, presets
from entropy_theory.controls.aent import aent
from entropy_theory.softmax import entropy


def test_aent_by_hand():
    """Of the logits log 4, log 2, log 1 a third is left out: the entropy is that of (2/3, 1/3)."""
    support = aent(share=1 / 3).entropy_support(tensor([4.0, 1.0, 2.0]).log())
    assert support.isneginf().tolist() == [False, True, False]
    kept = -(2 / 3) * math.log(2 / 3) - (1 / 3) * math.log(1 / 3)
    assert float(entropy(support)) == pytest.approx(kept, rel=1e-15)


@given(strategies.logits(leading=None, max_actions=50), st.sampled_from([0.0, 0.1, 0.3, 0.5, 0.99]))
def test_aent_leaves_out_the_lowest_actions(logits, share):
    support = aent(share).entropy_support(logits)
    actions = logits.shape[-1]
    for before, now in zip(logits.reshape(-1, actions).tolist(), support.reshape(-1, actions).tolist(), strict=True):
        edge = sorted(before)[math.floor(share * actions)]
        assert now == [z if z >= edge else -math.inf for z in before]
        assert max(before) in now  # the likeliest always stays
    if share * actions < 1:
        assert torch.equal(support, logits)


@given(strategies.logits(max_actions=50), st.sampled_from([0.1, 0.3, 0.5]))
def test_aent_bonus_has_the_gradient_of_the_renormalised_policy(logits, share):
    """-q_a (log q_a + H(q)) on what is kept, 0 on what is left out, whose logits do not enter."""
    here = logits.clone().requires_grad_()
    support = aent(share).entropy_support(here)
    (found,) = torch.autograd.grad(entropy(support).sum(), here)
    kept = support.detach() > -torch.inf
    expected = iter(oracles.entropy_gradient(support[kept].tolist()))
    assert torch.isfinite(found).all()
    # 1e-12: a probability times a logarithm of up to 100 (logits within 50)
    assert found.tolist() == pytest.approx([next(expected) if k else 0.0 for k in kept.tolist()], abs=1e-12)


@pytest.mark.parametrize("dtype", strategies.DTYPES)
def test_aent_keeps_the_dtype_and_equal_logits_at_the_edge(dtype):
    logits = torch.tensor([1.0, 0.0, 0.0, 2.0], dtype=dtype)
    support = aent(0.25).entropy_support(logits)
    assert support.dtype == dtype and torch.equal(support, logits)


def test_aent_coefficient_adapts_to_the_range_of_the_recipe():
    """Range 0.05 to 0.23, gain 0.001: 0.03 adds 0.001 * 0.02, 0.1 nothing, 0.43 takes away 0.001 * 0.2, to 1e-5."""
    control = CONTROLS["aent"](**presets("aent")["areal-adaptive"])
    batch = batch_of([[-1.0]], [[1.0]])
    entropies = [0.03, 0.1, 0.43, 0.43]
    found = [float(objective_after(control, entropies[:n], batch).entropy_coef[0, 0]) for n in range(5)]
    # 1e-18: roundings of numbers below 3e-4
    assert found == pytest.approx([2e-4, 2.2e-4, 2.2e-4, 2e-5, 1e-5], abs=1e-18)


def test_aent_leaves_unlikely_actions_alone_where_a_plain_bonus_raises_them():
    """Two good actions and two bad ones: both bonuses spread the good ones, the plain one raises the bad ones too."""
    logits, reward = tensor([1.0, 0.9, -3.0, -3.1]), tensor([1.0, 0.95, 0.0, 0.0])
    plain, _ = train(build("entropy_bonus", {"coef": 0.3}), logits, reward, 800)
    clamped, _ = train(aent(share=0.5, coef=0.3), logits, reward, 800)
    lost = [float(z.softmax(-1)[2:].sum()) for z in (plain, clamped)]
    # the plain optimum is softmax(r / 0.3): exp(-1 / 0.3) = 0.036 of each bad one to 1.85 of the good ones
    assert lost[0] == pytest.approx(
        2 * math.exp(-1 / 0.3) / (1 + math.exp(-0.05 / 0.3) + 2 * math.exp(-1 / 0.3)), abs=1e-3
    )
    assert lost[1] < lost[0] / 10
