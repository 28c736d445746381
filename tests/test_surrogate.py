"""Every surrogate's value and slope against plain Python, at ordinary ratios and where exponentials end."""

import math
from dataclasses import replace

import pytest
import strategies
import torch
from contract import fixed_batch
from hypothesis import given
from hypothesis import strategies as st

from entropy_theory.aggregation import sequence_mean_token_mean
from entropy_theory.loss import minibatch_loss, token_loss
from entropy_theory.records import Batch, Objective, map_tensors
from entropy_theory.surrogate import HEADROOM, SURROGATES, dual_clip, ratio_of, sapo

DOUBLE = torch.float64
NAMES = sorted(SURROGATES)
POSITIVE, NEGATIVE, LIMIT = 1.0, 1.05, 3.0


# --- the formulas, one token at a time: (value, d value / d logp) ---------------------------------------------------


def ppo(x, logp, a, low, high, mean):
    ratio = math.exp(x)
    clipped = min(max(ratio, 1 - low), 1 + high)
    return (clipped * a, 0.0) if clipped * a < ratio * a else (ratio * a, ratio * a)


def dual(x, logp, a, low, high, mean):
    value, slope = ppo(x, logp, a, low, high, mean)
    return (LIMIT * a, 0.0) if a < 0 and value < LIMIT * a else (value, slope)


def cispo(x, logp, a, low, high, mean):
    weight = min(math.exp(x), 1 + high)
    return weight * a * logp, weight * a


def gspo(x, logp, a, low, high, mean):
    return ppo(mean, logp, a, low, high, mean)


def gate(x, logp, a, low, high, mean):
    tau = POSITIVE if a > 0 else NEGATIVE
    sigmoid = 1 / (1 + math.exp(-tau * (math.exp(x) - 1)))
    # (4 / tau) sigma'(u) du/dlogp with u = tau (r - 1) and du/dlogp = tau r
    return a * 4 / tau * sigmoid, a * 4 * sigmoid * (1 - sigmoid) * math.exp(x)


def williams(x, logp, a, low, high, mean):
    return a * logp, a


ORACLES = {"ppo": ppo, "dual_clip": dual, "cispo": cispo, "gspo": gspo, "sapo": gate, "reinforce": williams}


def expected(name, batch, objective):
    """Per token (value, slope) of the loss without penalties and entropy, and their size; flat, 0 where masked."""
    columns = (batch.logp, batch.old_logp, objective.advantage, objective.mask)
    edits = (objective.weight, objective.clip_low, objective.clip_high)
    stacks = [t.reshape(-1, t.shape[-1]).tolist() for t in (*columns, *edits)]
    for logp, old, advantage, mask, weight, low, high in zip(*stacks, strict=True):
        logs = [new - before for new, before, m in zip(logp, old, mask, strict=True) if m]
        mean = math.fsum(logs) / len(logs) if logs else 0.0
        for new, before, a, m, w, down, up in zip(logp, old, advantage, mask, weight, low, high, strict=True):
            if not m:
                yield 0.0, 0.0, 0.0
                continue
            value, slope = ORACLES[name](new - before, new, a, down, up, mean)
            yield -w * value, -w * slope, w * abs(a) * (1 + abs(new)) * 4 * (1 + math.exp(max(new - before, mean)))


def surrogate_of(name):
    """The surrogate of that name, made anew where a factory makes it: the one in the table was made on import."""
    return {"dual_clip": dual_clip, "sapo": sapo}.get(name, lambda: SURROGATES[name])()


def slopes(name, batch, objective, surrogate=None):
    """(loss of every token, its gradient by the log-probability)."""
    logp = batch.logp.clone().requires_grad_()
    loss = token_loss(logp, batch.entropy, batch, objective, surrogate or surrogate_of(name))
    return loss.detach(), torch.autograd.grad(loss.sum(), logp)[0]


def of_surrogate_alone(objective):
    return replace(objective, penalties=(), entropy_coef=torch.zeros_like(objective.entropy_coef))


@pytest.mark.parametrize("name", NAMES)
@given(data=st.data())
def test_value_and_slope_are_the_formula(name, data):
    batch = data.draw(strategies.batches())
    objective = of_surrogate_alone(data.draw(strategies.objectives(batch)))
    loss, slope = slopes(name, batch, objective)
    for mine, mine_slope, (value, of_logp, size) in zip(
        loss.flatten().tolist(), slope.flatten().tolist(), expected(name, batch, objective), strict=True
    ):
        # a handful of products and two exponentials within 2 ulp each; GSPO's mean of up to 6 ratios adds as many
        assert abs(mine - value) <= 32 * 2**-52 * size
        assert abs(mine_slope - of_logp) <= 32 * 2**-52 * size


@pytest.mark.parametrize("name", NAMES)
@given(batch=strategies.batches(fresh=True, mask_kinds=("full", "ragged", "random")))
def test_on_the_first_update_every_surrogate_pulls_by_the_advantage(name, batch):
    """They differ only from the second update on. Exact but for SAPO, whose 4 / tau and quarter round."""
    _, slope = slopes(name, batch, Objective.from_batch(batch))
    found, wanted = -slope[batch.mask], batch.advantage[batch.mask]
    # tau (4 / tau) and sigmoid(0) (1 - sigmoid(0)): four roundings
    assert ((found - wanted).abs() <= (4 * 2**-53 * wanted.abs() if name == "sapo" else 0.0)).all()


@pytest.mark.parametrize("name", NAMES)
@given(batch=strategies.batches())
def test_without_an_advantage_there_is_nothing(name, batch):
    batch = replace(batch, advantage=torch.zeros_like(batch.advantage))
    assert not any(t.any() for t in slopes(name, batch, Objective.from_batch(batch)))


@pytest.mark.parametrize("name", NAMES)
@given(data=st.data())
def test_masked_tokens_carry_nothing(name, data):
    batch = data.draw(strategies.batches(garbage=True))
    objective = data.draw(strategies.objectives(batch))
    garbage = data.draw(st.sampled_from([math.nan, math.inf, -math.inf]))

    def filled(value):
        return lambda t: (
            torch.where(batch.mask, t, value) if t.is_floating_point() and t.shape == batch.mask.shape else t
        )

    one, two = (slopes(name, map_tensors(batch, filled(g)), map_tensors(objective, filled(g))) for g in (garbage, 0.0))
    assert all(torch.equal(a, b) for a, b in zip(one, two, strict=True))
    assert all(torch.isfinite(t).all() and (t[~batch.mask] == 0).all() for t in one)


@pytest.mark.parametrize("name", NAMES)
@given(batch=strategies.batches(dtype=None))
def test_dtype_is_kept(name, batch):
    assert all(t.dtype == batch.logp.dtype for t in slopes(name, batch, Objective.from_batch(batch)))


@pytest.mark.parametrize("name", NAMES)
def test_nothing_branches_on_a_value(name):
    """On "meta" tensors a branch on a value, or a tensor made on the CPU, raises."""
    batch = map_tensors(fixed_batch(fresh=False), lambda t: t.to("meta"))
    loss = token_loss(batch.logp, batch.entropy, batch, Objective.from_batch(batch), surrogate_of(name))
    assert loss.device.type == "meta" and loss.dtype == batch.logp.dtype


@pytest.mark.parametrize("name", NAMES)
@given(data=st.data())
def test_replicas_do_not_mix(name, data):
    batch = data.draw(strategies.batches(leading=(3,)))
    objective = Objective.from_batch(batch)
    together = slopes(name, batch, objective)
    for i in range(3):
        pick = lambda t, i=i: t[i]  # noqa: E731
        alone = slopes(name, map_tensors(batch, pick), map_tensors(objective, pick))
        assert all(torch.equal(a[i], b) for a, b in zip(together, alone, strict=True))


# --- worked by hand -------------------------------------------------------------------------------------------------


def tokens(ratio, advantage, logp=-1.0, dtype=DOUBLE):
    """One row of valid tokens with these ratios and advantages."""
    ratio, advantage = torch.tensor([ratio], dtype=dtype), torch.tensor([advantage], dtype=dtype)
    new = torch.full_like(ratio, logp)
    return Batch(
        logp=new,
        old_logp=new - ratio.log(),
        advantage=advantage,
        mask=torch.ones_like(ratio, dtype=torch.bool),
        entropy=torch.zeros_like(ratio),
        outcome=torch.zeros(1, dtype=dtype),
        group=torch.zeros(1, dtype=torch.int64),
    )


# ratios 4, .5 and 1 with A = -1, -1 and 2; logp is -1 throughout.
# ppo:       -4 (not clipped: A < 0), clip(.5) = .8: -.8 and silent, 2
# dual_clip: max(-4, -3) = -3 and silent; the others as ppo
# cispo:     min(r, 1.2) A logp: 1.2 * -1 * -1, .5 * -1 * -1, 1 * 2 * -1; slopes min(r, 1.2) A
# gspo:      s = (4 * .5 * 1)^(1/3) = 2^(1/3); A = -1: -s with slope -s; A = 2: clip(s) 2 = 2.4 and silent
# sapo:      tau 1.05, 1.05, 1; -(4 / 1.05) sigma(3.15), -(4 / 1.05) sigma(-.525), 2 * 4 * sigma(0) = 4
# reinforce: A logp
S = 2 ** (1 / 3)
UP, DOWN = 1 / (1 + math.exp(-3.15)), 1 / (1 + math.exp(0.525))
BY_HAND = {
    "ppo": ([-4, -0.8, 2], [-4, 0, 2]),
    "dual_clip": ([-3, -0.8, 2], [0, 0, 2]),
    "cispo": ([1.2, 0.5, -2], [-1.2, -0.5, 2]),
    "gspo": ([-S, -S, 2.4], [-S, -S, 0]),
    "sapo": ([-4 / 1.05 * UP, -4 / 1.05 * DOWN, 4], [-4 * UP * (1 - UP) * 4, -4 * DOWN * (1 - DOWN) * 0.5, 2]),
    "reinforce": ([1, 1, -2], [-1, -1, 2]),
}


@pytest.mark.parametrize("name", NAMES)
def test_three_tokens_by_hand(name):
    batch = tokens([4.0, 0.5, 1.0], [-1.0, -1.0, 2.0])
    loss, slope = slopes(name, batch, Objective.from_batch(batch))
    values, wanted = BY_HAND[name]
    assert (-loss)[0].tolist() == pytest.approx(values, rel=1e-14)  # 32 roundings, as above
    assert (-slope)[0].tolist() == pytest.approx(wanted, rel=1e-14)


@pytest.mark.parametrize("name", NAMES)
def test_the_table_holds_each_at_its_defaults(name):
    batch = tokens([4.0, 0.5, 1.0], [-1.0, -1.0, 2.0])
    made, held = (slopes(name, batch, Objective.from_batch(batch), f) for f in (None, SURROGATES[name]))
    assert all(torch.equal(a, b) for a, b in zip(made, held, strict=True))


def test_sapos_gate_is_exact_in_float64():
    """A float32 tau of 1.05 is off by 5e-8."""
    batch = tokens([2.0], [-1.0])
    loss, _ = slopes("sapo", batch, Objective.from_batch(batch))
    assert loss.item() == pytest.approx(4 / 1.05 / (1 + math.exp(-1.05)), rel=1e-14)


# --- GSPO is a loss of sequences ------------------------------------------------------------------------------------


@given(data=st.data())
def test_gspo_averaged_by_sequence_has_the_gradient_of_the_sequence_loss(data):
    """min(s A, clip(s) A) of each row, averaged over rows, differentiated by torch."""
    batch = data.draw(strategies.batches(leading=(), garbage=False, mask_kinds=("full", "ragged", "empty_rows")))
    batch = replace(batch, advantage=batch.advantage[:, :1].expand(batch.mask.shape))
    low, high = data.draw(st.sampled_from([(3e-4, 4e-4), (0.2, 0.2), (0.2, 0.28)]))
    logp = batch.logp.clone().requires_grad_()
    objective = Objective.from_batch(batch, low, high)
    loss = token_loss(logp, batch.entropy, batch, objective, SURROGATES["gspo"])
    mine = minibatch_loss(loss, *sequence_mean_token_mean(batch.mask, batch.mask.shape[-1]))
    rows = []
    for i in range(batch.mask.shape[0]):
        kept = batch.mask[i].nonzero().flatten().tolist()
        if kept:
            s = torch.exp(sum(logp[i, t] - batch.old_logp[i, t] for t in kept) / len(kept))
            a = batch.advantage[i, 0]
            rows.append(torch.minimum(s * a, s.clamp(1 - low, 1 + high) * a))
    whole = -sum(rows) / len(rows) if rows else 0 * logp.sum()
    one, two = (torch.autograd.grad(value, logp)[0] for value in (mine, whole))
    # ratios below e^.6, advantages below 5, and some 20 roundings
    assert float((one - two).abs().max()) <= 20 * 2**-52 * 10
    assert abs(float(mine.detach() - whole.detach())) <= 20 * 2**-52 * 10 * batch.mask.shape[0]


# --- where numbers end ----------------------------------------------------------------------------------------------

FAR = {torch.float64: 800.0, torch.float32: 100.0, torch.bfloat16: 100.0}
"""Log-ratios whose exponential overflows."""


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("dtype", FAR)
@pytest.mark.parametrize("advantage", [1.0, 0.0])
def test_a_ratio_beyond_the_dtype_leaves_a_rewarded_token_finite(name, dtype, advantage):
    """The clip silences it (ppo, dual_clip, gspo), holds its weight (cispo) or has closed its gate (sapo)."""
    batch = replace(tokens([1.0], [advantage], dtype=dtype), old_logp=torch.tensor([[-FAR[dtype]]], dtype=dtype))
    loss, slope = slopes(name, batch, Objective.from_batch(batch))
    wanted = {"cispo": -1.2, "reinforce": -1.0}.get(name, 0.0) * advantage
    assert torch.isfinite(loss).all()
    assert slope.item() == torch.tensor(wanted, dtype=dtype).item()


@pytest.mark.parametrize("dtype", FAR)
def test_a_ratio_beyond_the_dtype_is_felt_by_a_punished_token(dtype):
    """PPO does not clip there: loss and gradient stay as large as the dtype nearly holds; the dual clip ends them."""
    batch = replace(tokens([1.0], [-1.0], dtype=dtype), old_logp=torch.tensor([[-FAR[dtype]]], dtype=dtype))
    loss, slope = slopes("ppo", batch, Objective.from_batch(batch))
    assert math.inf > loss.item() == slope.item() > torch.finfo(dtype).max ** 0.85
    loss, slope = slopes("dual_clip", batch, Objective.from_batch(batch))
    assert (loss.item(), slope.item()) == (3.0, 0.0)


def test_no_ratio_is_touched_short_of_overflow():
    edge = HEADROOM * math.log(torch.finfo(DOUBLE).max)
    x = torch.tensor([-math.inf, -700.0, -1.0, 0.0, 3.0, edge * (1 - 1e-12)], dtype=DOUBLE)
    assert torch.equal(ratio_of(x), x.exp())
    assert ratio_of(torch.tensor([edge + 1, 1e300], dtype=DOUBLE)).tolist() == pytest.approx([math.exp(edge)] * 2)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("advantage", [2.0, 0.0, -2.0])
def test_a_token_that_became_impossible(name, advantage):
    """logp = -inf: the ratio is 0, so nothing is left to pull at, except for REINFORCE, which has no ratio."""
    batch = tokens([1.0, 1.0], [advantage, 1.0])
    batch = replace(batch, logp=torch.tensor([[-math.inf, -1.0]], dtype=DOUBLE))
    loss, slope = slopes(name, batch, Objective.from_batch(batch))
    assert slope[0, 0] == (-advantage if name == "reinforce" else 0.0)
    assert torch.isfinite(slope).all() and not loss.isnan().any()
    assert torch.isfinite(loss).all() or (name == "reinforce" and advantage != 0)


@pytest.mark.parametrize("limit", [1.0, 0.0, math.nan])
def test_a_dual_clip_at_or_below_one_is_refused(limit):
    with pytest.raises(ValueError, match=f"must be above 1, got {limit}"):
        dual_clip(limit)


def test_a_dual_clip_just_above_one_is_taken():
    batch = tokens([4.0], [-1.0])
    assert slopes("", batch, Objective.from_batch(batch), dual_clip(1.25))[0].item() == 1.25


@pytest.mark.parametrize(("advantage", "tau"), [(1.0, 0.5), (-1.0, 0.25)])
def test_a_gate_may_be_wide(advantage, tau):
    """(4 / tau) sigma(tau (3 - 1)) A at a ratio of 3."""
    batch = tokens([3.0], [advantage])
    loss, _ = slopes("", batch, Objective.from_batch(batch), sapo(0.5, 0.25))
    assert -loss.item() == pytest.approx(advantage * 4 / tau / (1 + math.exp(-2 * tau)), rel=1e-14)


@pytest.mark.parametrize("taus", [(0.0, 1.0), (1.0, 0.0), (1.0, -1.0), (math.nan, 1.0)])
def test_a_gate_needs_positive_taus(taus):
    with pytest.raises(ValueError, match="must be positive"):
        sapo(*taus)


@given(st.sampled_from([-3.0, -0.5]), st.floats(0.1, 20.0))
def test_the_dual_clip_ends_where_its_limit_says(advantage, ratio):
    batch = tokens([ratio], [advantage])
    loss, slope = (t.item() for t in slopes("", batch, Objective.from_batch(batch), dual_clip(5.0)))
    assert loss == pytest.approx(-max(min(ratio * advantage, max(ratio, 0.8) * advantage), 5.0 * advantage), rel=1e-14)
    assert slope == pytest.approx(0.0 if ratio > 5.0 or ratio < 0.8 else -ratio * advantage, rel=1e-14)
