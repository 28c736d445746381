"""First-order effect of a minibatch's tokens on entropy, and the rules that take a share of it off, against loops."""

import math
from dataclasses import replace

import oracles
import pytest
import strategies
import torch
from contract import bits, edited, fixed_batch
from hypothesis import given
from hypothesis import strategies as st

from entropy_theory.controls import CONTROLS
from entropy_theory.controls.cov_state import drop, level
from entropy_theory.controls.effect import effects, ordered_sum, push
from entropy_theory.loss import score_coefficient, token_loss
from entropy_theory.surrogate import in_range

EPS = torch.finfo(torch.float64).eps
TINY = torch.finfo(torch.float64).tiny
"""What a result that underflows is off by at most."""


def tokens(batch, objective):
    """Each replica's tokens as (effect, size): the loop's e_i, and the sum of the sizes of its terms.

    e_i errs by a few roundings of its terms, not of itself: its two terms may cancel.
    """
    names = [getattr(batch, n) for n in ("logp", "old_logp", "entropy", "collision")]
    edits = [getattr(objective, n) for n in ("advantage", "mask", "weight", "clip_low", "clip_high")]
    for replica in zip(*(t.reshape(-1, *t.shape[-2:]).tolist() for t in (*names, *edits)), strict=True):
        found = []
        for logp, old, h, c, a, m, w, low, high in zip(*map(oracles.flat, replica), strict=True):
            pull = oracles.score_coefficient(logp, old, a, m, w, low, high)
            p = math.exp(logp) if m else 0.0
            found.append((-pull * (p * (logp + h) - c), abs(pull) * (p * (abs(logp) + h) + c)) if m else (0.0, 0.0))
        yield found


def predicted(batch, objective):
    """Per replica: (sum of effects, sum of the negative ones, bound on the rounding of a sum met to rounding).

    Of n tokens, the sums of the package err by n roundings of the sum of sizes (the effects themselves by some 16), and
    so does what is left after scaling; twice that for the request and the result: (4 n + 64) eps sum of sizes.
    """
    for found in tokens(batch, objective):
        size = math.fsum(s for _, s in found)
        values = [e for e, _ in found]
        yield math.fsum(values), math.fsum(min(e, 0.0) for e in values), (4 * len(found) + 64) * EPS * size


@given(strategies.batches(), st.data())
def test_effects_are_those_of_the_loops(batch, data):
    objective = data.draw(strategies.objectives(batch))
    ours = effects(batch, objective)
    ours = ours.reshape(-1, batch.mask.shape[-2] * batch.mask.shape[-1]).tolist()
    for mine, found in zip(ours, tokens(batch, objective), strict=True):
        for value, (expected, size) in zip(mine, found, strict=True):
            assert value == pytest.approx(
                expected, abs=16 * EPS * size
            )  # some 8 operations a term, ours and the loop's


@given(strategies.batches(dtype=None), st.data())
def test_push_is_the_slope_of_the_token_loss(batch, data):
    """Without penalties, as they are left out; in the batch's own precision a few roundings of its exp apart.

    Left out: tokens so near the edge of the clip range that both terms of the minimum round to one number, of which
    autograd takes the mean.
    """
    objective = replace(data.draw(strategies.objectives(batch)), penalties=())
    logp = batch.logp.clone().requires_grad_()
    slope = score_coefficient(token_loss(logp, batch.entropy, batch, objective), logp).double()
    ratio = torch.exp(batch.logp - batch.old_logp)
    inside = in_range(ratio, objective)
    edge = (inside != ratio) & (inside * objective.advantage == ratio * objective.advantage)
    eps = torch.finfo(batch.logp.dtype).eps
    # exp(x) of a rounded x of at most 10 errs by 10 roundings of itself, the products by a few more
    assert (((slope - push(batch, objective)).abs() <= 20 * eps * slope.abs()) | edge).all()


@given(strategies.batches(leading=(2,)), strategies.generators())
def test_ordered_sums_do_not_depend_on_the_order_of_rows(batch, rng):
    values = torch.where(batch.mask, batch.advantage, 0.0)
    order = torch.from_numpy(rng.permutation(values.shape[-2]))
    total = ordered_sum(values)
    assert torch.equal(bits(total), bits(ordered_sum(values[:, order])))
    assert torch.equal(bits(total[0]), bits(ordered_sum(values[0])))
    for ours, row in zip(total.tolist(), values.flatten(-2).tolist(), strict=True):
        bound = len(row) * EPS * math.fsum(map(abs, row))  # n additions
        assert ours == pytest.approx(math.fsum(row), abs=bound)


@pytest.mark.parametrize("name", ["cov_state", "budget", "steer"])
def test_a_token_that_became_impossible_counts_for_nothing(name):
    """Its ratio is 0, so nothing pushes it; the other tokens are edited as if it were masked."""
    batch = fixed_batch(fresh=False)
    gone = torch.zeros_like(batch.mask)
    gone[2, 1] = True
    impossible = replace(batch, logp=batch.logp.masked_fill(gone, -torch.inf))
    masked = replace(batch, mask=batch.mask & ~gone)
    ours, expected = (edited(CONTROLS[name](), b).weight[masked.mask] for b in (impossible, masked))
    # the budget's means have another count, which cancels but for a few roundings
    torch.testing.assert_close(ours, expected, rtol=16 * EPS, atol=0)


# --- the rules of cov_state ---------------------------------------------------------------------------------------


def test_rules_by_hand():
    """Costs 4, 2, 1, of which 3 are to go: drop takes 3/4 of the first; a level of 1.5 takes 2.5 and .5.

    Of 5, drop takes the first and half of the second; a level of 2/3 takes 10/3, 4/3 and 1/3.
    """
    cost = torch.tensor([[2.0, 0.0], [4.0, 1.0]], dtype=torch.float64)
    cases = {
        (drop, 3.0): [1.0, 1.0, 0.25, 1.0],
        (level, 3.0): [0.75, 1.0, 0.375, 1.0],
        (drop, 5.0): [0.5, 1.0, 0.0, 1.0],
        (level, 5.0): [1 / 3, 1.0, 1 / 6, 2 / 3],
        (drop, 0.0): [1.0] * 4,
        (level, 0.0): [1.0] * 4,
        (drop, 7.0): [0.0, 1.0, 0.0, 0.0],
        (level, 7.0): [0.0, 1.0, 0.0, 0.0],
    }
    for (rule, surplus), expected in cases.items():
        found = rule(cost, torch.tensor(surplus, dtype=torch.float64)).flatten().tolist()
        assert found == pytest.approx(expected, abs=4 * EPS), (rule.__name__, surplus)  # a few roundings of 1


COSTS = st.lists(st.sampled_from([0.0, 0.0, 1e-9, 0.1, 0.5, 1.0, 1.0, 3.0]) | st.floats(0, 10), min_size=1, max_size=12)


@given(COSTS, st.floats(0, 1))
def test_rules_take_off_what_they_are_asked_to(costs, share):
    """Exactly the surplus; the largest first, or all above one level."""
    cost = torch.tensor([costs], dtype=torch.float64)
    surplus = share * math.fsum(costs)
    for rule in (drop, level):
        factor = rule(cost, torch.tensor(surplus, dtype=torch.float64)).flatten().tolist()
        assert all(0 <= f <= 1 for f in factor)
        taken = math.fsum(c * (1 - f) for c, f in zip(costs, factor, strict=True))
        assert taken == pytest.approx(surplus, abs=4 * (len(costs) + 1) * (EPS * math.fsum(costs) + TINY))
        left = [c * f for c, f in zip(costs, factor, strict=True)]
        if rule is level:
            assert all(
                f == 1 or x == pytest.approx(max(left), rel=4 * EPS, abs=TINY)
                for f, x in zip(factor, left, strict=True)
            )
        else:
            touched = [c for c, f in zip(costs, factor, strict=True) if f < 1]
            spared = [c for c, f in zip(costs, factor, strict=True) if f == 1]
            assert not touched or not spared or min(touched) >= max(spared)
            assert sum(0 < f < 1 for f in factor) <= 1
