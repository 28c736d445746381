"""Claims 32 to 67: they come out as recorded, each judge notices a planted fault, and what they measure is right."""

import itertools
import math
from dataclasses import replace
from fractions import Fraction

import mpmath
import oracles
import pytest
import strategies
import torch
from exact import LAST_DIGITS, Policy
from hypothesis import given
from hypothesis import strategies as st

from entropy_theory import claims, controls, remainder, theorems
from entropy_theory.claims import published
from entropy_theory.claims.claim import Finding, SampledTokens
from entropy_theory.claims.ledger import (
    evidence,
    network,
    note_002,
    note_002_methods,
    note_002_runs,
    note_002_theory,
    note_003,
    note_004,
    note_004_network,
    note_004_tree,
    tabular,
    tokens,
    tree,
)
from entropy_theory.claims.ledger.common import Measured
from entropy_theory.cli.worlds import committed_data
from entropy_theory.fit import fit_entropy_reward
from entropy_theory.loss import token_loss
from entropy_theory.records import Batch, Objective
from entropy_theory.softmax import entropy

QUICK = claims.PROFILES["quick"]
MINE = {c.id: c for c in (*note_002.NOTE_002, *note_003.NOTE_003, *note_004.NOTE_004)}
HOLDS, REFUTED, UNDER, EMPIRICAL = (
    claims.Verdict.HOLDS,
    claims.Verdict.REFUTED,
    claims.Verdict.UNDER_ASSUMPTION,
    claims.Verdict.EMPIRICAL,
)


def judged(number, **settings):
    """The finding of one claim."""
    return MINE[f"claim_{number}"].judge(claims.Context(QUICK, **settings))


def test_every_claim_of_the_three_notes_is_there_once():
    assert list(MINE) == [f"claim_{n}" for n in range(32, 68)]
    for claim in MINE.values():
        note = "002" if claim.id < "claim_50" else "003" if claim.id < "claim_58" else "004"
        assert claim.source == f"study note {note}, claim {int(claim.id[-2:])}"
        assert (claim.recorded == UNDER) <= bool(claim.assumptions)


@pytest.mark.parametrize("seed", [0, 1])
def test_every_claim_comes_out_as_recorded(seed):
    found = claims.judge(MINE.values(), claims.Context(QUICK, seed=seed, data=committed_data))
    assert {j.claim.id: j.finding.verdict for j in found if not j.as_recorded} == {}
    for j in found:
        assert (j.finding.counterexample is not None) == (j.finding.verdict in (REFUTED, UNDER))
        assert len(j.finding.evidence) > 20


# --- every judge can come to another verdict --------------------------------------------------------------------------


def negated(function):
    """The function with its sign turned."""
    return lambda *arguments: -function(*arguments)


def larger(function):
    """The function wrong by a thousandth."""
    return lambda *arguments, **settings: 1.001 * function(*arguments, **settings)


def lowest_first(fraction):
    """KL-Cov with the ranking turned round."""
    right = controls.kl_cov(fraction)
    return right._replace(edit=lambda o, b, s: right.edit(o, replace(b, advantage=-b.advantage), s))


def half_dropped(fraction, low, high, seed):
    """Clip-Cov that halves the chosen tokens' weight in place of dropping it."""
    right = controls.clip_cov(fraction, low, high, seed=seed)

    def edit(objective, batch, state):
        return replace(objective, weight=(1 + right.edit(objective, batch, state).weight) / 2)

    return right._replace(edit=edit)


NATURAL = note_004_network.natural_change


def plain_in_the_table(instance):
    """The plain gradient step where the natural one of a table is asked for."""
    if instance.feature is not None:
        return NATURAL(instance)
    total, tenths = sum(instance.problem.weights), instance.problem.tenths
    mean = Fraction(sum(w * t for w, t in zip(instance.problem.weights, tenths, strict=True)), total)
    return [Fraction(w, total) * (t - mean) for w, t in zip(instance.problem.weights, tenths, strict=True)]


CONSUMED = published.CUI_RUNS["consumption"].values
FORKS = ("wait", "however", "unless")
FAULTS = {
    "33: a law that peaks at 1 nat": (note_002, "reward", lambda a, b, h: -a * (h - 1) ** 2 + b, REFUTED),
    "34: a print that agrees": (
        published.CUI_RUNS["consumption"],
        "values",
        CONSUMED | {"% of entropy in 800 steps": 93, "% of gain in 800 steps": 94},
        HOLDS,
    ),
    "35: an error of 2.5 %": (published.CUI_RUNS["extrapolation"].values, "code, final", 2.5, REFUTED),
    "37: a law with twice the slope": (note_002, "reward", lambda a, b, h: -2 * a * math.exp(h) + b, REFUTED),
    "38: a gradient of the other sign": (
        note_002_theory,
        "return_gradient",
        negated(note_002_theory.return_gradient),
        HOLDS,
    ),
    "39: the sign of Lemma 1": (
        theorems,
        "entropy_change_first_order",
        negated(theorems.entropy_change_first_order),
        REFUTED,
    ),
    "40: a gradient along the advantage": (note_002_theory, "return_gradient", lambda z, r: 0.3 * r, HOLDS),
    "41: the sign of Theorem 1": (theorems, "theorem_1", negated(theorems.theorem_1), REFUTED),
    "44: a score that is too large": (note_002_theory, "covariance", larger(note_002_theory.covariance), REFUTED),
    "45: a flat Table 1": (published.TABLE_1, 2e-3, 0.003, REFUTED),
    "45: a Table 1 of one token": (published.TABLE_1, 2e-3, 30.0, HOLDS),
    "46: another share": (published.CUI_RUNS["clip_cov"].values, "share", 2e-3, REFUTED),
    "46: half a gradient": (note_002_methods, "clip_cov", half_dropped, REFUTED),
    "46: another band": (
        note_002_methods,
        "clip_cov",
        lambda f, low, high, seed: controls.clip_cov(f, low - 1, high, seed=seed),
        REFUTED,
    ),
    "47: the lowest scores": (note_002_methods, "kl_cov", lowest_first, REFUTED),
    "47: another share": (note_002_methods, "kl_cov", lambda f: controls.kl_cov(2 * f), REFUTED),
    "49: another batch": (published.CUI_RUNS["settings of the fits"].values, "batch", 512, REFUTED),
    "50: an entropy that is too large": (note_003, "entropy", larger(entropy), REFUTED),
    "51: an inverse proportion": (note_003, "_change", lambda p, times=1.0: torch.tensor(-0.01 / times), HOLDS),
    "52: a straight line": (note_003, "reward", lambda a, b, h: -a * h + b, REFUTED),
    "55: another list": (published.EIGHTY_TWENTY["forks"].values, "words", FORKS, EMPIRICAL),
    "57: another entropy": (published.EIGHTY_TWENTY["entropy"].values, "entropy of", "the policy", REFUTED),
    "58: an entropy that is too large": (note_004_network, "entropy", larger(entropy), REFUTED),
    "59: the sign of Lemma 1": (
        theorems,
        "entropy_change_first_order",
        negated(theorems.entropy_change_first_order),
        REFUTED,
    ),
    "60: the sign of Lemma 1": (
        theorems,
        "entropy_change_first_order",
        negated(theorems.entropy_change_first_order),
        REFUTED,
    ),
    "61: descent": (note_004_network, "_gradient_step", negated(note_004_network._gradient_step), REFUTED),
    "61: another kernel": (note_004_network, "_kernel_change", larger(note_004_network._kernel_change), REFUTED),
    "62: the advantage itself": (
        note_004,
        "_natural_score",
        lambda problem, action: [Fraction(t, 10) for t in problem.tenths],
        HOLDS,
    ),
    "63: the plain gradient": (note_004_network, "natural_change", plain_in_the_table, REFUTED),
    "64: the sign of F^+": (
        theorems,
        "fisher_pseudo_inverse_product",
        negated(theorems.fisher_pseudo_inverse_product),
        REFUTED,
    ),
    "65: a gradient that is too large": (note_004_tree, "policy_gradient", larger(tree.policy_gradient), REFUTED),
    "67: the sign of entropy": (note_004_tree, "mean_entropy", negated(tree.mean_entropy), REFUTED),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_planted_fault_changes_the_verdict(fault, monkeypatch):
    number, (place, name, wrong, verdict) = int(fault[:2]), FAULTS[fault]
    if isinstance(place, published.Published):
        for key, value in wrong.items():
            monkeypatch.setitem(place.values, key, value)
    elif isinstance(place, dict):
        monkeypatch.setitem(place, name, wrong)
    else:
        monkeypatch.setattr(place, name, wrong)
    assert judged(number).verdict == verdict != MINE[f"claim_{number}"].recorded


def test_every_claim_that_is_not_empirical_has_a_fault():
    decided = {int(id[-2:]) for id, claim in MINE.items() if claim.recorded != EMPIRICAL}
    assert {int(fault[:2]) for fault in FAULTS} == decided


def test_the_worst_part_decides_and_more_measurements_do_not():
    def part(verdict):
        return lambda context: Finding(verdict, f"{verdict}.", {str(verdict): 1.0})

    found = evidence.all_of(part(HOLDS), part(UNDER), part(EMPIRICAL))(None)
    assert found.verdict == EMPIRICAL and found.evidence == "holds. holds under assumption. empirical."
    assert evidence.all_of(part(HOLDS), part(REFUTED), part(EMPIRICAL))(None).verdict == REFUTED
    more = evidence.also(part(UNDER), lambda c: Measured("More.", {"x": 2.0}), lambda c: None)(None)
    assert more.verdict == UNDER and more.evidence == "holds under assumption. More."
    assert more.numbers == {"holds under assumption": 1.0, "x": 2.0}


# --- what is read from the stored results -----------------------------------------------------------------------------


def stored(**tables):
    """A source of results: name -> rows."""
    return lambda name: tables.get(name, [])


def texts(**columns):
    """Rows of text from columns of numbers or words."""
    return [dict(zip(columns, map(str, row), strict=True)) for row in zip(*columns.values(), strict=True)]


@pytest.mark.parametrize("number", [32, 42, 43])
def test_missing_results_are_named(number):
    found = judged(number)
    assert found.verdict == EMPIRICAL and found.evidence.startswith("Not measured in this check: it takes ")


def test_collapse_is_read_from_the_curves():
    steps = range(1, 21)
    falling = [2.0 - 0.05 * s + (0.2 if s == 10 else 0) for s in steps]  # one bump: up once, down after
    curves = texts(world=["bandit"] * 20, control=["none"] * 20, step=steps, entropy=falling, **{"return": steps})
    final = texts(world=["bandit"], control=["none"], entropy_start=[2.0], entropy_final=[1.0], entropy_share=[0.5])
    found = judged(32, data=stored(curves=curves, final=final))
    assert found.numbers == {"bandit entropy share left": 0.5, "bandit rising steps": 1 / 19}
    assert "15% of the drop in the first tenth" in found.evidence  # step 3: (2 - 1.85) / (2 - 1)
    swapped = judged(34, data=stored(curves=curves)).numbers  # up to step 1 and up to step 6 of 20
    assert swapped["bandit entropy lost at 1/12"] == 0.0
    assert swapped["bandit gain at 1/3"] == pytest.approx(5 / 19)


def test_the_sign_of_the_covariance_is_read_from_the_logged_changes():
    change = texts(
        world=["llm"] * 4,
        predicted_first_order=[-0.1, -0.2, -0.3, 0.2],
        measured_entropy_change=[-0.1, 0.01, -0.2, 0.1],
    )
    for number in (42, 53, 66, 67):
        numbers = judged(number, data=stored(change=change)).numbers
        assert numbers["llm share positive"] == 0.75 and numbers["llm rises though positive"] == pytest.approx(1 / 3)


def test_difficulty_counts_steps_with_intervals_apart():
    easy, hard = [0.5, 0.5, 0.5, 0.5], [0.1, 0.1, 0.5, 0.9]
    cov = [*easy, *hard]
    table = texts(
        difficulty=[1] * 4 + [10] * 4,
        pass_rate=[0.9] * 4 + [0.1] * 4,
        cov_group=cov,
        cov_group_low=[c - 0.1 for c in cov],
        cov_group_high=[c + 0.1 for c in cov],
    )
    found = judged(43, data=stored(difficulty=table))
    assert found.numbers["below"] == 2 and found.numbers["above"] == 1
    assert found.numbers["covariance at difficulty 10"] == pytest.approx(0.4)


def test_the_law_is_extrapolated_from_the_first_points_only():
    h = [2 - 0.04 * k for k in range(40)]
    follows = [1 - 0.1 * math.exp(x) for x in h]
    bent = [r + (0.3 if k >= 6 else 0) for k, r in enumerate(follows)]  # 15 % of 40 points are 6
    for gain, wanted in ((follows, 0.0), (bent, 0.3 / (max(bent) - min(bent)))):
        points = texts(world=["bandit"] * 40, seed=[0] * 40, entropy=h, **{"return": gain})
        found = judged(35, data=stored(fit_points=points)).numbers["bandit error of prediction"]
        assert found == pytest.approx(wanted, abs=1e-9)


# --- sampled tokens ---------------------------------------------------------------------------------------------------


def lists(batch, collision):
    """The valid tokens of a minibatch without replicas, as plain numbers."""
    kept = batch.mask.flatten().tolist()
    columns = (batch.logp, batch.advantage, batch.entropy, collision)
    return [[v for v, k in zip(c.flatten().tolist(), kept, strict=True) if k] for c in columns]


@given(
    batch=strategies.batches(leading=(), min_rows=2, min_steps=2, mask_kinds=("full", "random")),
    data=st.data(),
    share=st.sampled_from([0.02, 0.3, 1.0]),
)
def test_the_top_tokens_are_those_of_a_loop(batch, data, share):
    if not batch.mask.any():
        return
    rng = data.draw(strategies.generators())
    lent = SampledTokens(batch, torch.from_numpy(rng.uniform(0, 1, batch.logp.shape)))
    logp, advantage, h, c = lists(*lent)
    scores = oracles.centred_product(logp, advantage, [1] * len(logp))
    order = sorted(range(len(logp)), key=lambda i: -scores[i])[: max(1, math.floor(share * len(logp)))]
    loss = [a * (math.exp(x) * (x + e) - k) for x, a, e, k in zip(logp, advantage, h, c, strict=True)]
    found = tokens.top(lent, tokens.score(lent), share)
    assert found.negative == pytest.approx(sum(advantage[i] < 0 for i in order) / len(order))
    assert found.probability == pytest.approx(sum(math.exp(logp[i]) for i in order) / len(order))
    losses = sum(max(x, 0) for x in loss)
    if losses > 1e-6 * sum(map(abs, loss)):  # otherwise a quotient of rounding
        assert found.of_losses == pytest.approx(sum(max(loss[i], 0) for i in order) / losses)
    sizes = [oracles.covariance(x, x, [1] * len(x)) for x in (logp, advantage)]
    if min(sizes) > 1e-6:
        wanted = oracles.covariance(logp, advantage, [1] * len(logp)) / math.sqrt(sizes[0] * sizes[1])
        assert tokens.correlation(lent) == pytest.approx(wanted, abs=1e-9)
    push = [abs(a) * (1 - math.exp(x)) for x, a in zip(logp, advantage, strict=True)]
    top = sorted(range(len(h)), key=lambda i: -h[i])[: len(order)]
    assert tokens.share_by_entropy(lent, share) == pytest.approx(sum(push[i] for i in top) / sum(push))


def four_prompts():
    """Four prompts with 0, 1, 3 and 4 right answers of 4; two tokens each; log-probabilities from a table."""
    right = [0, 0, 0, 0, 1, 0, 0, 0, 1, 1, 1, 0, 1, 1, 1, 1]
    outcome = torch.tensor(right, dtype=torch.float64)
    group = torch.arange(16) // 4
    advantage = (outcome - 0.5)[:, None].expand(16, 2)
    logp = torch.where(outcome[:, None] > 0, torch.tensor([-0.5, -1.5]), torch.tensor([-1.0, -3.0])).double()
    return SampledTokens(
        Batch(logp, logp, advantage, torch.ones(16, 2, dtype=torch.bool), -logp, outcome, group),
        torch.zeros(16, 2, dtype=torch.float64),
    )


def test_prompts_are_sorted_by_pass_rate_and_those_without_a_signal_left_out():
    # within a prompt with k right answers of 4: cov = k/4 (1 - k/4) (-1 + 2)(0.5 + 0.5)
    assert tokens.by_accuracy(four_prompts()) == [
        (pytest.approx(1 / 3), pytest.approx(3 / 16), 4),
        (pytest.approx(1.0), pytest.approx(3 / 16), 4),
    ]


def test_a_lent_minibatch_enters_the_evidence():
    world = claims.World(minibatch=four_prompts)
    for number in (42, 43, 45, 54, 57, 66):
        claim = MINE[f"claim_{number}"]
        context = claims.Context(QUICK, worlds={"llm": world}, random=False)
        assert context.chosen(claim.places) == ("llm",)
        found = claim.judge(context)
        assert "language model" in found.evidence and found.verdict == claim.recorded


# --- exact bandits ----------------------------------------------------------------------------------------------------


@given(seed=st.integers(0, 2**32), kl=st.sampled_from([0.0, 0.1, 1.0]))
def test_a_step_is_the_gradient_of_what_is_maximised(seed, kl):
    """One step against autograd on E[r] - kl KL(pi || pi_0), from a point where pi differs from pi_0."""
    z, r = tabular.drawn_problems(3, 4, seed)
    one = tabular.ascend(z, r, 2, 0.5, kl=kl)
    first = z + theorems.policy_gradient_step(z, r, 0.5)  # the KL has gradient 0 at its start
    moving = first.clone().requires_grad_()
    divergence = (moving.softmax(-1) * (moving.log_softmax(-1) - z.log_softmax(-1))).sum(-1)
    value = ((moving.softmax(-1) * r).sum(-1) - kl * divergence).sum()
    second = first + 0.5 * torch.autograd.grad(value, moving)[0]
    # both sides are a few operations on numbers of order 1: 1e-13 is hundreds of roundings
    assert torch.allclose(one.entropy, torch.stack([entropy(y) for y in (z, first, second)]), rtol=0, atol=1e-13)
    natural = tabular.ascend(z, r, 1, 0.5, natural=True)
    assert torch.allclose(natural.entropy[1], entropy(z + 0.5 * r), rtol=0, atol=1e-13)


def test_the_law_of_a_path_is_the_least_squares_fit():
    path = tabular.ascend(*tabular.drawn_problems(5, 6, 0), 40, 2.0)
    a, b = tabular.law(path)
    for problem in range(5):
        fit = fit_entropy_reward(path.entropy[:, problem], path.reward[:, problem])
        assert (float(a[problem]), float(b[problem])) == (pytest.approx(fit.a), pytest.approx(fit.b))
    falls = (path.entropy[1:] < path.entropy[:-1]).double().mean(0)
    assert torch.equal(path.share_falling, falls)


# --- the network and its bounds ---------------------------------------------------------------------------------------


def exactly(net, parameters):
    """Logits and Jacobian rows of the network in 60 digits, from float parameters."""
    hidden = len(net.inner)
    inner, outer = ([mpmath.mpf(float(x)) for x in part] for part in (parameters[:hidden], parameters[hidden:]))
    rows = [outer[a * hidden : (a + 1) * hidden] for a in range(len(net.tenths))]
    t = [mpmath.tanh(u) for u in inner]
    z = [mpmath.fsum(v * x for v, x in zip(row, t, strict=True)) for row in rows]
    jacobian = []
    for a, row in enumerate(rows):
        of_outer = [x if b == a else mpmath.mpf(0) for b in range(len(rows)) for x in t]
        jacobian.append([v * (1 - x * x) for v, x in zip(row, t, strict=True)] + of_outer)
    return z, jacobian


@given(net=network.networks())
def test_logits_are_linear_in_the_parameters_up_to_the_bound(net):
    before, change = net.parameters, net.step
    (z, jacobian), (after, _) = exactly(net, before), exactly(net, before + change)
    bound = network.linear_error(net, before, change)
    for a in range(len(z)):
        linear = mpmath.fsum(j * mpmath.mpf(float(d)) for j, d in zip(jacobian[a], change, strict=True))
        assert abs(after[a] - z[a] - linear) <= float(bound[a]) + LAST_DIGITS
    computed = net.logits(before + change) - net.logits(before) - net.jacobian(before) @ change
    assert (computed.abs() <= bound).all()


@given(net=network.networks())
def test_derivatives_and_the_gradient_of_entropy_round_within_their_bounds(net):
    theta = net.parameters
    z, jacobian = exactly(net, theta)
    slope = network.slope_bound(net, theta)
    for computed, row in zip(net.jacobian(theta), jacobian, strict=True):
        for x, exact in zip(computed, row, strict=True):
            assert abs(mpmath.mpf(float(x)) - exact) <= 32 * network.U * slope
    logits = net.logits(theta)
    policy = Policy(logits.tolist())
    leaf = logits.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(entropy(leaf), leaf)
    exact = [-p * c for p, c in zip(policy.pi, policy.c, strict=True)]
    error = mpmath.fsum(abs(mpmath.mpf(float(g)) - e) for g, e in zip(gradient, exact, strict=True))
    assert error <= float(network.entropy_gradient_rounding(logits))
    assert max(abs(x - y) for x, y in zip(z, map(float, logits), strict=True)) <= 1e-14  # |z| <= 4


def test_a_curved_network_needs_its_remainder():
    """Without the Taylor term the bound is broken, so it is not idle."""
    net = network.Network((5,), (20, -20), (5, 0, 0), (0, 0))
    change = net.step
    moved = net.logits(net.parameters + change) - net.logits(net.parameters)
    missed = (moved - net.jacobian(net.parameters) @ change).abs().max()
    assert 0.05 < missed <= network.linear_error(net, net.parameters, change).max()


# --- natural gradients in exact arithmetic ----------------------------------------------------------------------------


@given(instance=note_004_network.shared(True) | note_004_network.shared(False))
def test_the_exact_natural_step_is_that_of_the_pseudo_inverse(instance):
    z, r = instance.problem.logits, instance.problem.reward
    found = torch.tensor([float(x) for x in note_004_network.natural_change(instance)], dtype=torch.float64)
    if instance.feature is None:
        wanted = theorems.fisher_pseudo_inverse_product(z, theorems.policy_gradient_step(z, r, 1.0))
    else:  # the same by autograd: d theta = Fisher^+ dJ / d theta with one parameter
        f = torch.tensor(instance.feature, dtype=torch.float64)
        theta = torch.zeros((), dtype=torch.float64, requires_grad=True)
        (gradient,) = torch.autograd.grad(((z + theta * f).softmax(-1) * r).sum(), theta)
        fisher = f @ theorems.fisher_matrix(z) @ f
        wanted = f * gradient / fisher if len(set(instance.feature)) > 1 else 0 * f
    # weights up to 20: at most a factor 80 on a handful of roundings of numbers up to 10
    assert torch.allclose(found, wanted, rtol=1e-11, atol=1e-11)


@given(problem=note_004.problems(2, 4), action=st.integers(0, 1))
def test_the_exact_score_is_that_of_the_pseudo_inverse(problem, action):
    found = torch.tensor([float(x) for x in note_004._natural_score(problem, action)], dtype=torch.float64)
    one = torch.eye(len(problem.weights), dtype=torch.float64)[action]
    wanted = theorems.fisher_pseudo_inverse_product(problem.logits, one - problem.probability)
    assert torch.allclose(found, wanted, rtol=1e-11, atol=1e-11)
    # and it is e_a / pi_a up to a constant
    rest = found - one / problem.probability
    assert torch.allclose(rest, rest[0].expand_as(rest), rtol=1e-11, atol=1e-11)


# --- two-step decisions -----------------------------------------------------------------------------------------------


def enumerated(instance):
    """E[R grad log pi] over all trajectories, without any baseline, in exact arithmetic; [3][actions]."""
    root = [Fraction(w, sum(instance.root)) for w in instance.root]
    gradient = [[Fraction(0)] * len(z) for z in (instance.root, instance.first.weights, instance.second.weights)]
    value = Fraction(0)
    for first, problem in enumerate((instance.first, instance.second)):
        pi = [Fraction(w, sum(problem.weights)) for w in problem.weights]
        for second, tenths in enumerate(problem.tenths):
            weight = root[first] * pi[second] * Fraction(tenths, 10)
            value += weight
            for a, p in enumerate(root):
                gradient[0][a] += weight * ((a == first) - p)
            for a, p in enumerate(pi):
                gradient[1 + first][a] += weight * ((a == second) - p)
    return value, gradient


@given(instance=tree.trees() | tree.crossroads())
def test_the_policy_gradient_is_that_of_enumerated_trajectories(instance):
    value, gradient = enumerated(instance)
    z, r = instance.logits, instance.rewards
    bound = float(tree.policy_gradient_rounding(z, r)) + 1e-15  # the stored rewards and logits are rounded themselves
    assert float(tree.expected_return(z, r)) == pytest.approx(float(value), abs=1e-14)
    for computed in (tree.policy_gradient(z, r), note_004_tree._autograd(instance)):
        for row, exact in zip(computed.tolist(), gradient, strict=True):
            for x, e in itertools.zip_longest(row, exact, fillvalue=0):
                assert abs(x - float(e)) <= bound


@given(instance=tree.trees(), size=st.integers(1, 5))
def test_averages_over_states_are_those_of_loops(instance, size):
    z = instance.logits
    change = size * tree.policy_gradient(z, instance.rewards)
    weights = tree.visits(z)
    root = [w / sum(instance.root) for w in instance.root]
    assert weights.tolist() == pytest.approx([1.0, *root])
    mean = sum(w * oracles.entropy(row) for w, row in zip([1.0, *root], z.tolist(), strict=True)) / 2
    rounding = float(tree.averages_rounding(z, change))
    assert abs(float(tree.mean_entropy(z, weights)) - mean) <= rounding
    lines = zip([1.0, *root], z.tolist(), change.tolist(), strict=True)
    covariance = -sum(w * oracles.entropy_change_first_order(row, d) for w, row, d in lines) / 2
    assert abs(float(tree.mean_covariance(z, change, weights)) - covariance) <= rounding


def test_a_small_step_lies_below_the_proved_remainder():
    """What the assumption of claims 60 and 67 grants: at a tenth more than the largest size it no longer does."""
    problem = note_004.Problem((9, 1), (0, 10))
    change, rate, eta = note_004.Step(problem, 9, True).first_order
    bound = remainder.remainder_bound(eta * (change.max() - change.min()), 2)
    assert 0.89 * eta * rate.abs() < bound < eta * rate.abs()
    descent = note_004_tree.Descent(tree.Tree((2, 1), problem, note_004.Problem((1, 1), (0, 0))), 9, True)
    assert descent.change.abs().max() >= 0
    cov, risen = descent.sides(descent.change)
    assert (cov > 0) == (descent.change.abs().max() > 0) and risen <= 0


# --- the methods' claims look at the right thing ----------------------------------------------------------------------


@given(drawn=note_002_methods.responses(5))
def test_exact_scores_are_those_of_the_oracle(drawn):
    logp, advantage = ([x / 10 for x in c] for c in (drawn.logp, drawn.advantage))
    found = [float(x) for x in drawn.scores]
    assert found == pytest.approx(oracles.centred_product(logp, advantage, [1] * len(logp)), abs=1e-12)
    batch = drawn.batch
    assert torch.allclose((batch.logp - batch.old_logp)[0] * 10, torch.tensor(drawn.drift).double(), atol=1e-12)
    plain = Objective.from_batch(batch, clip_low=torch.inf, clip_high=torch.inf)
    assert float(token_loss(batch.logp, batch.entropy, batch, plain).sum()) == pytest.approx(
        -sum(math.exp(d / 10) * a for d, a in zip(drawn.drift, advantage, strict=True))
    )


def test_derived_figures_are_recomputed_from_the_table():
    numbers = judged(46).numbers
    assert round(numbers["low over mean"]) == 333 and round(numbers["high over mean"]) == 1667
    few = judged(45)
    assert few.numbers["of the net sum"] == pytest.approx(2.07, abs=0.01)
    assert few.numbers["of the positive part, at most"] == pytest.approx(0.082, abs=0.001)
    assert published.CUI_RUNS["clip_cov"].values["share"] == controls.parameters("clip_cov")["fraction"]
    assert published.CUI_RUNS["kl_cov"].values["share at 7B"] == controls.parameters("kl_cov")["fraction"]


def test_seeds_give_other_bandits():
    assert note_002_runs._two_algorithms(claims.Context(QUICK, seed=0)).numbers != (
        note_002_runs._two_algorithms(claims.Context(QUICK, seed=1)).numbers
    )
