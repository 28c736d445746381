"""Controls on single tokens (Lp-Reg, EGSW, high-entropy tokens, entropy advantage): by hand, by loops, their errors."""

import math

import oracles
import pytest
import strategies
import torch
from contract import edited, fixed_batch, gradients, identical
from hypothesis import assume, given
from hypothesis import strategies as st

from entropy_theory.control import Need
from entropy_theory.controls import presets
from entropy_theory.controls.egsw import egsw
from entropy_theory.controls.entropy_advantage import entropy_advantage
from entropy_theory.controls.high_entropy_tokens import high_entropy_tokens
from entropy_theory.controls.lp_reg import lp_reg
from entropy_theory.loss import minibatch_loss, token_loss
from entropy_theory.records import Batch
from entropy_theory.reduce import token_count

F64 = torch.float64
EPS = torch.finfo(F64).eps


def tokens(**fields):
    """A fresh batch of one row, from lists over its steps; logp -1, advantage 0 and entropy 1 unless given."""
    steps = len(next(iter(fields.values())))
    values = {k: torch.tensor([v], dtype=F64) for k, v in fields.items()}
    logp = values.setdefault("logp", torch.full((1, steps), -1.0, dtype=F64))
    return Batch(
        old_logp=values.pop("old_logp", logp),
        advantage=values.pop("advantage", torch.zeros(1, steps, dtype=F64)),
        mask=torch.ones(1, steps, dtype=torch.bool),
        entropy=values.pop("entropy", torch.ones(1, steps, dtype=F64)),
        outcome=torch.zeros(1, dtype=F64),
        group=torch.zeros(1, dtype=torch.int64),
        **values,
    )


def replicas(batch, *results):
    """For each replica the lists [rows][steps] of the batch's fields and of results, as one dict."""
    names = ("logp", "advantage", "entropy", "mask", "proxy_logp")
    stacks = [getattr(batch, n) for n in names] + list(results)
    flat = [t.reshape(-1, *t.shape[-2:]).tolist() for t in stacks]
    rows = [t.reshape(-1, t.shape[-1]).tolist() for t in (batch.group, batch.micro_batch)]
    names += tuple(f"result_{i}" for i in range(len(results)))
    for values in zip(*flat, *rows, strict=True):
        yield dict(zip((*names, "group", "micro_batch"), values, strict=True))


def pools(replica, scope):
    """The sets of valid positions (row, step) that are compared with each other."""
    valid = [(i, j) for i, row in enumerate(replica["mask"]) for j, m in enumerate(row) if m]
    if scope == "minibatch":
        return [valid]
    numbers = replica["micro_batch"]
    return [[(i, j) for i, j in valid if numbers[i] == n] for n in set(numbers)]


# --- lp_reg -----------------------------------------------------------------------------------------------------------

# Probabilities .05, .5, .02, the first two punished, under a filter that keeps 5/8 of the first state's mass: .08.
RARE = {"logp": [math.log(p) for p in (0.05, 0.5, 0.02)], "advantage": [-1.0, -1.0, 1.0]}
PROXY = {"proxy_logp": [math.log(p) for p in (0.08, 0.5, 0.03)]}


@pytest.mark.parametrize(
    ("fraction", "among", "expected"),
    [
        (1 / 3, "all", [0, 0, 0]),  # the rarest of all tokens is praised
        (0.67, "all", [0.5, 0, 0]),  # floor(2.01) = 2: the praised one and .05
        (1.0, "all", [0.5, 0.5, 0]),
        (1 / 3, "negative", [0.5, 0, 0]),  # max(1, floor(2/3)) = 1 of the two punished ones
        (1.0, "negative", [0.5, 0.5, 0]),
    ],
)
def test_lp_reg_by_hand(fraction, among, expected):
    batch = tokens(**RARE, **PROXY)
    (penalty,) = edited(lp_reg(fraction=fraction, among=among, coef=0.5), batch).penalties
    assert penalty.coef.tolist() == [expected] and penalty.divergence == "k3"
    assert torch.equal(penalty.target, batch.proxy_logp)


def test_lp_reg_pulls_a_punished_token_back_by_hand():
    """d loss / d logp = -A r + coef (1 - exp(-x)), x = log(.05 / .08): 1 + (1 - 1.6) = .4; the others -A: 1 and -1."""
    batch = tokens(**RARE, **PROXY)
    slope = gradients(batch, edited(lp_reg(fraction=0.67), batch))[1]
    assert slope[0].tolist() == pytest.approx([0.4, 1.0, -1.0], rel=1e-14)  # some ten roundings


def test_lp_reg_spares_what_the_filter_removes():
    """A token of probability 0 under the proxy is noise, and a penalty on it would be infinite."""
    batch = tokens(**RARE, proxy_logp=[-math.inf, math.log(0.5), -math.inf])
    objective = edited(lp_reg(fraction=1.0), batch)
    assert objective.penalties[0].coef.tolist() == [[0, 1, 0]]
    assert all(bool(t.isfinite().all()) for t in gradients(batch, objective))


def test_lp_reg_below_the_proxy_only_as_the_code():
    """The second token has the same probability under both: kept by the paper's condition, not by the code's."""
    batch = tokens(**RARE, **PROXY)
    coefs = [edited(lp_reg(fraction=1.0, condition=c), batch).penalties[0].coef for c in ("kept", "below_proxy")]
    assert [c.tolist() for c in coefs] == [[[1, 1, 0]], [[1, 0, 0]]]


@given(
    strategies.batches(),
    st.floats(0.01, 1.0),
    st.sampled_from(["all", "negative"]),
    st.sampled_from(["kept", "below_proxy"]),
    st.sampled_from(["minibatch", "microbatch"]),
    strategies.generators(),
)
def test_lp_reg_selects_as_loops_do(batch, fraction, among, condition, scope, rng):
    removed = torch.from_numpy(rng.random(tuple(batch.mask.shape)) < 0.3)
    batch = Batch(**vars(batch) | {"proxy_logp": batch.proxy_logp.masked_fill(removed, -torch.inf)})
    control = lp_reg(fraction=fraction, among=among, condition=condition, scope=scope, coef=0.5)
    for r in replicas(batch, edited(control, batch).penalties[0].coef):
        chosen = set()
        for pool in pools(r, scope):
            ranked = [(i, j) for i, j in pool if among == "all" or r["advantage"][i][j] < 0]
            ranked.sort(key=lambda t, logp=r["logp"]: logp[t[0]][t[1]])
            for i, j in ranked[: max(1, math.floor(fraction * len(ranked)))]:
                p, q = r["logp"][i][j], r["proxy_logp"][i][j]
                if r["advantage"][i][j] < 0 and q > -math.inf and (condition == "kept" or p < q):
                    chosen.add((i, j))
        found = {(i, j): c for i, row in enumerate(r["result_0"]) for j, c in enumerate(row)}
        assert found == {t: 0.5 if t in chosen else 0.0 for t in found}


def test_lp_reg_caps_ratios_of_praised_tokens_only():
    """At ratios 9, 11 and 11 with A = 1, 1, -1: slopes -9, 0 (capped at 10) and 11."""
    old = [-math.log(r) - 1 for r in (9, 11, 11)]
    batch = tokens(logp=[-1.0] * 3, old_logp=old, advantage=[1.0, 1.0, -1.0], proxy_logp=[-math.inf] * 3)
    slope = gradients(batch, edited(lp_reg(), batch))[1]
    assert slope[0].tolist() == pytest.approx([-9, 0, 11], rel=1e-13)  # exp of a rounded logarithm
    assert edited(lp_reg(), batch).clip_low.unique().tolist() == [1.0]
    spared = edited(lp_reg(ratio_cap=None), batch)
    assert spared.clip_low.unique().tolist() == spared.clip_high.unique().tolist() == [0.2]


@given(strategies.logits(max_actions=30), st.sampled_from([0.02, 0.3, 1.0]))
def test_lp_reg_filters_by_min_p(logits, kappa):
    """Actions of at least kappa times the largest probability; softmax of the rest is pi over the mass it keeps."""
    p = oracles.probabilities(logits.tolist())
    # a probability within rounding of the threshold may fall on either side (1e-12: 2^12 eps, logits are up to 50)
    assume(all(abs(math.log(q / max(p) / kappa)) > 1e-12 or q == max(p) for q in p if q > 0))
    kept = [q if q >= kappa * max(p) else 0.0 for q in p]
    found = torch.softmax(lp_reg(kappa=kappa).proxy(logits), -1).tolist()
    # logits up to 50 apart from the largest: exp errs by 100 eps, a sum of 30 by 30 eps
    assert found == pytest.approx([q / math.fsum(kept) for q in kept], rel=260 * EPS)


@given(strategies.logits(max_actions=30), st.sampled_from([0.0, 0.02, 0.5, 0.99]))
def test_lp_reg_filters_by_a_fixed_threshold(logits, tau):
    """Actions of probability above tau, and the likeliest ones whatever theirs is."""
    p = oracles.probabilities(logits.tolist())
    assume(all(abs(q - tau) > 1e-12 for q in p if q > 0))
    kept = [q if q > tau or z == max(logits.tolist()) else 0.0 for q, z in zip(p, logits.tolist(), strict=True)]
    found = torch.softmax(lp_reg(tau=tau).proxy(logits), -1).tolist()
    assert found == pytest.approx([q / math.fsum(kept) for q in kept], rel=260 * EPS)


@given(strategies.logits(leading=None), st.sampled_from([{"kappa": 1.0}, {"kappa": 0.02}, {"tau": 0.9}]))
def test_lp_reg_always_keeps_the_likeliest_action(logits, parameters):
    proxy = lp_reg(**parameters).proxy(logits)
    top = logits == logits.amax(-1, keepdim=True)
    assert torch.equal(proxy[top], logits[top])
    assert bool(((proxy == logits) | (proxy == -torch.inf)).all())


def test_lp_reg_on_policy_is_as_strong_as_the_mass_removed():
    """pi = .6, .39, .01 and kappa = .02: .01 < .012 goes, m = .99; the pull on the second is 1 - 1/.99 = -.0101."""
    logits = torch.tensor([0.6, 0.39, 0.01], dtype=F64).log()
    proxy = torch.log_softmax(lp_reg().proxy(logits), -1)
    assert proxy.exp().tolist() == pytest.approx([0.6 / 0.99, 0.39 / 0.99, 0.0], rel=1e-14)
    batch = tokens(logp=[float(logits[1])], advantage=[-1.0], proxy_logp=[float(proxy[1])])
    slope = gradients(batch, edited(lp_reg(fraction=1.0), batch))[1]
    assert float(slope) == pytest.approx(1 + 1 - 1 / 0.99, rel=1e-14)


def test_lp_reg_presets():
    batch = fixed_batch(fresh=False)
    for values in presets("lp_reg").values():
        found = edited(lp_reg(**values), batch)
        assert found.clip_high.unique().tolist() == [9.0] and found.clip_low.unique().tolist() == [1.0]
    assert lp_reg().needs == {Need.SAMPLES, Need.PROXY_LOGP}


# --- egsw -------------------------------------------------------------------------------------------------------------


def rows_of(advantage, entropy, group, mask=None):
    """A fresh batch from nested lists and the rows' groups."""
    advantage, entropy = (torch.tensor(v, dtype=F64) for v in (advantage, entropy))
    logp = torch.full_like(advantage, -1.0)
    mask = torch.ones_like(logp, dtype=torch.bool) if mask is None else torch.tensor(mask)
    return Batch(logp, logp, advantage, mask, entropy, torch.zeros(len(group), dtype=F64), torch.tensor(group))


def test_egsw_by_hand():
    """A + H / 2 is log 3, 0 in group 0: softmax 3/4, 1/4, times two rows. Alone in group 2: weight 1."""
    batch = rows_of([[0.0], [0.0], [7.0]], [[2 * math.log(3)], [0.0], [1.0]], [0, 0, 2])
    weight = edited(egsw(alpha=0.5), batch).weight
    assert weight.flatten().tolist() == pytest.approx([1.5, 0.5, 1.0], rel=1e-15)
    colder = edited(egsw(alpha=0.5, temperature=0.5), batch).weight  # 9/10, 1/10
    assert colder.flatten().tolist() == pytest.approx([1.8, 0.2, 1.0], rel=1e-15)


def test_egsw_by_step_and_by_trajectory_by_hand():
    """Two rows of a group, A = 0, alpha = P = 1, entropies in units of log 3: (2, 0), (0, masked).

    By step: 9/10, 1/10 at the first, and at the second the first row is alone. By mean: 1 against 0, so 3/4 and 1/4.
    """
    unit = math.log(3)
    batch = rows_of([[0.0, 0.0]] * 2, [[2 * unit, 0.0], [0.0, 5 * unit]], [0, 0], [[True, True], [True, False]])
    by_step = edited(egsw(alpha=1.0), batch).weight[batch.mask]
    by_row = edited(egsw(alpha=1.0, level="trajectory"), batch).weight[batch.mask]
    assert by_step.tolist() == pytest.approx([1.8, 1.0, 0.2], rel=1e-15)
    assert by_row.tolist() == pytest.approx([1.5, 1.5, 0.5], rel=1e-15)


@given(
    strategies.batches(),
    st.sampled_from([0.0, 0.1, 2.0]),
    st.sampled_from([0.25, 1.0, math.inf]),
    st.sampled_from(["step", "trajectory"]),
    st.data(),
)
def test_egsw_by_loops(batch, alpha, temperature, level, data):
    objective = data.draw(strategies.objectives(batch))
    found = edited(egsw(alpha, temperature, level), batch, objective=objective).weight
    for r in replicas(batch, found, objective.weight):
        (valid,) = pools(r, "minibatch")
        score = {(i, j): (r["advantage"][i][j] + alpha * r["entropy"][i][j]) / temperature for i, j in valid}
        if level == "trajectory":
            rows = {i: [score[t] for t in valid if t[0] == i] for i, _ in valid}
            score = {(i, j): math.fsum(rows[i]) / len(rows[i]) for i, j in valid}
        for i, j in valid:
            peers = {k: score[k, c] for k, c in valid if r["group"][k] == r["group"][i] and level == "trajectory"}
            if level == "step":
                peers = {k: score[k, c] for k, c in valid if r["group"][k] == r["group"][i] and c == j}
            total = math.fsum(math.exp(x - score[i, j]) for x in peers.values())
            # exponents are below 2 (4 + 2 * 3) / .25 = 80 and round three times (six more by a mean), sums of six peers
            expected = r["result_1"][i][j] * len(peers) / total
            assert r["result_0"][i][j] == pytest.approx(expected, rel=(80 * 9 + 20) * EPS)


@given(strategies.batches(), st.sampled_from([0.25, 3.0]))
def test_egsw_weights_have_mean_one_in_each_group_and_step(batch, temperature):
    for r in replicas(batch, edited(egsw(0.5, temperature), batch).weight):
        (valid,) = pools(r, "minibatch")
        for group, step in {(r["group"][i], j) for i, j in valid}:
            weights = [r["result_0"][i][j] for i, j in valid if (r["group"][i], j) == (group, step)]
            assert math.fsum(weights) == pytest.approx(len(weights), rel=20 * EPS)  # a sum and a quotient of six
            assert min(weights) >= 0


def test_egsw_takes_any_size_of_score():
    batch = rows_of([[1e4], [-1e4], [1e4]], [[1.0]] * 3, [1, 1, 1])
    assert edited(egsw(temperature=1e-3), batch).weight.flatten().tolist() == [1.5, 0.0, 1.5]


def test_egsw_weighs_praise_above_entropy_unless_entropy_dominates():
    """A = 1 with 0 nats against A = -1 with 1 nat: alpha = 0 favours the first, alpha = 3 the second."""
    batch = rows_of([[1.0], [-1.0]], [[0.0], [1.0]], [0, 0])
    sure, open_ = (edited(egsw(alpha=a), batch).weight.flatten().tolist() for a in (0.0, 3.0))
    assert sure[0] > 1 > sure[1] and open_[1] > 1 > open_[0]


# --- high_entropy_tokens ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("denominator", "loss"), [("selected", -3.0), ("all", -1.0)])
def test_high_entropy_tokens_by_hand(denominator, loss):
    """Of .1, .9, .5 nats the top floor(3 * .4) = 1: loss -A = -3 of that token, over 1 token or over 3."""
    batch = tokens(entropy=[0.1, 0.9, 0.5], advantage=[1.0, 3.0, 2.0])
    objective = edited(high_entropy_tokens(fraction=0.4, denominator=denominator), batch)
    assert (objective.mask & (objective.weight != 0)).tolist() == [[False, True, False]]
    losses = token_loss(batch.logp, batch.entropy, batch, objective)
    assert float(minibatch_loss(losses, token_count(objective.mask))) == loss


def test_high_entropy_tokens_keeps_ties_together():
    """Fraction .4 of five tokens are two; the second highest entropy is shared by three tokens, so four stay."""
    batch = tokens(entropy=[0.5, 0.9, 0.5, 0.1, 0.5])
    assert edited(high_entropy_tokens(fraction=0.4), batch).mask.tolist() == [[True, True, True, False, True]]
    one_state = tokens(entropy=[0.5] * 5)
    assert edited(high_entropy_tokens(fraction=0.2), one_state).mask.all()
    assert Need.SEVERAL_STATES in high_entropy_tokens().idle_without


@given(
    strategies.batches(),
    st.floats(0.01, 1.0),
    st.sampled_from(["selected", "all"]),
    st.sampled_from(["minibatch", "microbatch"]),
    st.data(),
)
def test_high_entropy_tokens_by_loops(batch, fraction, denominator, scope, data):
    tied = data.draw(st.booleans())  # entropies in whole nats
    batch = Batch(**vars(batch) | {"entropy": batch.entropy.round() if tied else batch.entropy})
    objective = data.draw(strategies.objectives(batch))
    found = edited(high_entropy_tokens(fraction, denominator, scope), batch, objective=objective)
    for r in replicas(batch, found.mask, found.weight, objective.weight):
        kept = set()
        for pool in pools(r, scope):
            falling = sorted((r["entropy"][i][j] for i, j in pool), reverse=True)
            if pool:
                threshold = falling[max(1, math.floor(fraction * len(pool))) - 1]
                kept |= {(i, j) for i, j in pool if r["entropy"][i][j] >= threshold}
        (valid,) = pools(r, "minibatch")
        counted = kept if denominator == "selected" else set(valid)
        assert {(i, j) for i, row in enumerate(r["result_0"]) for j, m in enumerate(row) if m} == counted
        for i, j in valid:
            dropped = denominator == "all" and (i, j) not in kept
            assert r["result_1"][i][j] == (0.0 if dropped else r["result_2"][i][j])


def test_high_entropy_tokens_by_micro_batch_keeps_more_rows():
    """Rows of 1 and of 0 nats in two micro-batches: together the second row has none of the top half, apart half."""
    batch = Batch(
        **vars(rows_of([[1.0] * 4] * 2, [[2.0, 2.1, 2.2, 2.3], [0.0, 0.1, 0.2, 0.3]], [0, 0]))
        | {"micro_batch": torch.tensor([0, 1])}
    )
    whole, apart = (edited(high_entropy_tokens(0.5, scope=s), batch).mask for s in ("minibatch", "microbatch"))
    assert whole.tolist() == [[True] * 4, [False] * 4]
    assert apart.tolist() == [[False, False, True, True]] * 2


def test_high_entropy_presets_differ_by_the_denominator():
    batch = fixed_batch(fresh=True)
    paper, trl = (edited(high_entropy_tokens(**presets("high_entropy_tokens")[n]), batch) for n in ("paper", "trl"))
    assert torch.equal(paper.mask, trl.mask & (trl.weight != 0))
    assert int(trl.mask.sum()) == int(batch.mask.sum()) > int(paper.mask.sum())


# --- entropy_advantage ------------------------------------------------------------------------------------------------


def test_entropy_advantage_by_hand():
    """A + min(.4 H, |A| / 2): 1 + min(.2, .5); -.1 + min(.2, .05); -1 + min(.2, .5); 0 stays."""
    batch = tokens(advantage=[1.0, -0.1, -1.0, 0.0], entropy=[0.5] * 4)
    found = edited(entropy_advantage(), batch).advantage
    assert found[0].tolist() == pytest.approx([1.2, -0.05, -0.8, 0.0], rel=1e-15)


@given(strategies.batches(), st.sampled_from([0.0, 0.1, 5.0]), st.sampled_from([1.001, 2.0, math.inf]), st.data())
def test_entropy_advantage_by_loops_and_never_flips_a_sign(batch, alpha, kappa, data):
    objective = data.draw(strategies.objectives(batch))
    found = edited(entropy_advantage(alpha, kappa), batch, objective=objective)
    for r in replicas(batch, found.advantage):
        for i, j in pools(r, "minibatch")[0]:
            a, h, new = r["advantage"][i][j], r["entropy"][i][j], r["result_0"][i][j]
            bonus = min(alpha * h, abs(a) / kappa)
            assert new == pytest.approx(
                a + bonus, rel=1e-15, abs=4 * EPS * abs(a)
            )  # two roundings of numbers below |a|
            assert (new > 0, new < 0) == (a > 0, a < 0)
    others = {k: v for k, v in vars(objective).items() if k != "advantage"}
    assert all(v is vars(found)[k] for k, v in others.items())


def test_entropy_advantage_presets():
    """alpha .4 with GRPO and .1 with PPO: at one nat and A = 1, 1.4 and 1.1."""
    batch = tokens(advantage=[1.0], entropy=[1.0])
    found = {n: float(edited(entropy_advantage(**v), batch).advantage) for n, v in presets("entropy_advantage").items()}
    assert found == {"grpo": 1.4, "ppo": 1.1}


# --- what they refuse -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("factory", "parameters", "message"),
    [
        (lp_reg, {"fraction": 1.5}, "lp_reg.fraction must lie in"),
        (lp_reg, {"kappa": 0.0}, "lp_reg.kappa must lie in"),
        (lp_reg, {"coef": -1.0}, "lp_reg.coef must be at least 0"),
        (lp_reg, {"tau": 1.0}, r"lp_reg.tau must lie in \[0, 1\), got 1.0"),
        (lp_reg, {"ratio_cap": 1.0}, "lp_reg.ratio_cap must be above 1, got 1.0"),
        (lp_reg, {"among": "positive"}, "lp_reg.among must be one of all, negative, got 'positive'"),
        (lp_reg, {"condition": "any"}, "lp_reg.condition must be one of kept, below_proxy"),
        (lp_reg, {"scope": "row"}, "lp_reg.scope must be one of"),
        (egsw, {"alpha": -0.1}, "egsw.alpha must be at least 0"),
        (egsw, {"temperature": 0.0}, "egsw.temperature must be positive, got 0.0"),
        (egsw, {"temperature": math.nan}, "egsw.temperature must be positive"),
        (egsw, {"level": "token"}, "egsw.level must be one of step, trajectory, got 'token'"),
        (high_entropy_tokens, {"fraction": 20.0}, "not a percentage"),
        (high_entropy_tokens, {"denominator": "both"}, "denominator must be one of selected, all, got 'both'"),
        (high_entropy_tokens, {"scope": "rank"}, "high_entropy_tokens.scope must be one of"),
        (entropy_advantage, {"alpha": math.inf}, "entropy_advantage.alpha must be at least 0 and finite"),
        (
            entropy_advantage,
            {"kappa": 1.0},
            "entropy_advantage.kappa must be above 1, or advantages change sign, got 1",
        ),
        (entropy_advantage, {"kappa": math.nan}, "entropy_advantage.kappa must be above 1"),
    ],
)
def test_refuses(factory, parameters, message):
    with pytest.raises(ValueError, match=message):
        factory(**parameters)


def test_what_is_not_named_stays():
    """Each control touches its own fields of the objective and no other."""
    batch = fixed_batch(fresh=False)
    plain = edited(entropy_advantage(alpha=0.0), batch)
    touched = {lp_reg: {"clip_low", "clip_high", "penalties"}, egsw: {"weight"}, high_entropy_tokens: {"mask"}}
    for factory, fields in touched.items():
        found = edited(factory(), batch)
        rest = {k: v for k, v in vars(plain).items() if k not in fields and k != "advantage"}
        assert identical(tuple(vars(found)[k] for k in rest), tuple(rest.values()))
