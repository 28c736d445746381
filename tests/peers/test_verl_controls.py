"""verl's covariance controls, losses, advantages, aggregations and divergences beside ours, on the same minibatches.

Run with `make test-verl`. What differs is asserted with its size and its reason, as docs/conformance.md has it.
"""

import numpy as np
import oracles
import pytest
import torch
from ours_beside import EPS, all_minibatches, assert_equal, golden, minibatch, ours, rounding, splits, theirs
from verl.trainer.config import AlgoConfig
from verl.trainer.ppo import core_algos
from verl.utils import torch_functional
from verl.workers.config import ActorConfig
from verl.workers.config.actor import PolicyLossConfig

from entropy_theory.advantage import ADVANTAGES
from entropy_theory.controls import CONTROLS
from entropy_theory.loss import DIVERGENCES

SEEDS = range(6)


def config(tokens, clip=(0.2, 0.2), rows=None, horizon=None, dual_clip=3.0, **policy_loss):
    made = ActorConfig(
        strategy="fsdp",
        rollout_n=8,
        ppo_micro_batch_size_per_gpu=1,
        clip_ratio_low=clip[0],
        clip_ratio_high=clip[1],
        clip_ratio_c=dual_clip,
        policy_loss=PolicyLossConfig(**policy_loss),
    )
    made.global_batch_info["batch_num_tokens"] = tokens
    if rows is not None:
        made.global_batch_info["global_batch_size"] = rows
    if horizon is not None:
        made.global_batch_info["loss_scale_factor"] = horizon
    return made


def called(function, configured, mode="token-mean"):
    """One of verl's losses as a function of one micro-batch."""

    def loss(logp, old_logp, advantage, mask):
        return function(
            old_log_prob=old_logp,
            log_prob=logp,
            advantages=advantage,
            response_mask=mask.long(),
            loss_agg_mode=mode,
            config=configured,
        )[0]

    return loss


# --- Clip-Cov and KL-Cov, with the scope of the published code and the same draw ------------------------------------


def our_order(tensors, parts, low, high, clip):
    """For each micro-batch the order in which our numbers (seed 0, step 0) take its eligible tokens.

    Eligible tokens and numbers are the tests' own (`oracles`): verl asks for a permutation of as many as it found.
    """
    mask = tensors["mask"]
    place = (mask.flatten().cumsum(0) - 1).view(mask.shape)
    orders = []
    for part in parts:
        piece = [tensors[k][part].tolist() for k in ("logp", "old_logp", "advantage", "mask")]
        eligible = oracles.published_clip_cov_eligible(*piece, low, high, *clip)
        places = [p for p, e in zip(place[part].flatten().tolist(), eligible, strict=True) if e]
        numbers = [oracles.uniform(0, 0, p) for p in places]
        orders.append(torch.tensor(sorted(range(len(numbers)), key=numbers.__getitem__), dtype=torch.long))
    return [order for order in orders if len(order)]


def dealt(monkeypatch, orders):
    """Let verl draw these permutations; each must have as many entries as it asks for."""
    left = iter(orders)

    def randperm(count):
        order = next(left)
        assert len(order) == count, "verl finds another number of eligible tokens"
        return order

    monkeypatch.setattr(core_algos.torch, "randperm", randperm)
    return left


@pytest.mark.parametrize("each", [1, 2, 3, 8])
@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("clip", [(0.2, 0.2), (1.0, 1.0)])
def test_clip_cov_per_micro_batch_with_the_same_draw(monkeypatch, seed, each, clip):
    tensors, hyper = minibatch(seed, constant=each > 1 and seed % 2 == 0), {"fraction": 0.07, "low": 0.1, "high": 1.5}
    parts, tokens = splits(8, each), int(tensors["mask"].sum())
    left = dealt(monkeypatch, our_order(tensors, parts, hyper["low"], hyper["high"], clip))
    configured = config(tokens, clip, clip_cov_ratio=hyper["fraction"], clip_cov_lb=0.1, clip_cov_ub=1.5)
    found = theirs(tensors, called(core_algos.compute_policy_loss_clip_cov, configured), parts)
    assert next(left, None) is None
    control = CONTROLS["clip_cov"](**hyper, scope="microbatch")
    loss, gradient, objective = ours(tensors, control, clip=clip, micro_batch=torch.arange(8) // each)
    assert_equal(tensors, found, (loss, gradient))
    plain = ours(tensors, clip=clip)[1]
    assert np.array_equal((found[1] == 0) & (plain != 0), (objective.weight == 0).numpy())
    assert (objective.weight == 0).any()


@pytest.mark.parametrize("each", [1, 2, 3, 8])
@pytest.mark.parametrize("seed", SEEDS)
def test_kl_cov_per_micro_batch(seed, each):
    tensors, hyper = minibatch(seed, constant=each > 1 and seed % 2 == 0), {"fraction": 0.07, "coef": 0.7}
    parts, tokens = splits(8, each), int(tensors["mask"].sum())
    configured = config(tokens, kl_cov_ratio=hyper["fraction"], ppo_kl_coef=hyper["coef"])
    found = theirs(tensors, called(core_algos.compute_policy_loss_kl_cov, configured), parts)
    control = CONTROLS["kl_cov"](**hyper, scope="microbatch")
    loss, gradient, objective = ours(tensors, control, micro_batch=torch.arange(8) // each)
    assert_equal(tensors, found, (loss, gradient))
    unpenalised = ours(tensors, CONTROLS["kl_cov"](**hyper | {"coef": 0.0}))[1]
    (penalty,) = objective.penalties
    # a penalised token's gradient is off by coef / tokens, a thousand million times the rounding
    assert np.array_equal(np.abs(found[1] - unpenalised) > hyper["coef"] / (2 * tokens), (penalty.coef != 0).numpy())


def test_per_minibatch_selects_fewer_than_per_micro_batch():
    """The size of the difference that the scope makes: 8 micro-batches select a token each, the minibatch one."""
    tensors = minibatch(0)
    counts = []
    for scope in ("minibatch", "microbatch"):
        control = CONTROLS["kl_cov"](fraction=0.01, coef=1.0, scope=scope)
        (penalty,) = ours(tensors, control, micro_batch=torch.arange(8))[2].penalties
        counts.append(int((penalty.coef != 0).sum()))
    assert counts == [1, 8]


# --- the other losses -----------------------------------------------------------------------------------------------

BATCHES = all_minibatches()
NAMES = [name for name, _ in BATCHES]


def with_info(tensors, clip, **more):
    rows = int(tensors["mask"].any(-1).sum())
    return config(int(tensors["mask"].sum()), clip, rows=rows, **more)


def halves(tensors):
    rows = tensors["mask"].shape[0]
    return splits(rows, max(1, rows // 2))


@pytest.mark.parametrize(("name", "tensors"), BATCHES, ids=NAMES)
def test_dual_clip(name, tensors):
    """verl's "vanilla" is our "dual_clip"; our "ppo" is Schulman's."""
    found = theirs(
        tensors, called(core_algos.compute_policy_loss_vanilla, with_info(tensors, (0.2, 0.28))), halves(tensors)
    )
    assert_equal(tensors, found, ours(tensors, surrogate="dual_clip", clip=(0.2, 0.28)))


@pytest.mark.parametrize("clip", [(3e-4, 4e-4), (0.2, 0.2)])
@pytest.mark.parametrize(("name", "tensors"), BATCHES, ids=NAMES)
def test_gspo(name, tensors, clip):
    loss = called(core_algos.compute_policy_loss_gspo, with_info(tensors, clip), "seq-mean-token-mean")
    found = theirs(tensors, loss, halves(tensors))
    assert_equal(tensors, found, ours(tensors, surrogate="gspo", aggregation="seq-mean-token-mean", clip=clip))


@pytest.mark.parametrize(("name", "tensors"), BATCHES, ids=NAMES)
def test_sapo(name, tensors):
    loss = called(core_algos.compute_policy_loss_sapo, with_info(tensors, (0.2, 0.2)))
    found = theirs(tensors, loss, halves(tensors))
    assert_equal(tensors, found, ours(tensors, surrogate="sapo", aggregation="seq-mean-token-mean"))


def test_sapo_ignores_the_aggregation_it_is_given():
    tensors = minibatch(0)
    losses = [
        theirs(
            tensors, called(core_algos.compute_policy_loss_sapo, with_info(tensors, (0.2, 0.2)), mode), [slice(None)]
        )
        for mode in ("token-mean", "seq-mean-token-mean")
    ]
    assert losses[0][0] == losses[1][0]


@pytest.mark.parametrize(("name", "tensors"), BATCHES, ids=NAMES)
def test_cispo_without_a_lower_clip(name, tensors):
    found = theirs(
        tensors, called(core_algos.compute_policy_loss_cispo, with_info(tensors, (1.0, 0.2))), halves(tensors)
    )
    assert_equal(tensors, found, ours(tensors, surrogate="cispo"))


@pytest.mark.parametrize(("name", "tensors"), BATCHES, ids=NAMES)
def test_cispos_lower_clip_is_the_whole_difference(name, tensors):
    """verl clips at 1 - clip_ratio_low too, 0.8 by default; the paper's authors do not."""
    found = theirs(
        tensors, called(core_algos.compute_policy_loss_cispo, with_info(tensors, (0.2, 0.2))), halves(tensors)
    )
    loss, gradient, _ = ours(tensors, surrogate="cispo")
    mask, tokens = tensors["mask"], int(tensors["mask"].sum())
    ratio = (tensors["logp"] - tensors["old_logp"]).exp()
    missing = torch.where(mask, (0.8 - ratio).clamp(min=0.0) * tensors["advantage"], 0.0) / tokens
    by_logp = torch.where(mask, missing * tensors["logp"], 0.0)
    assert_equal(tensors, found, (loss - float(by_logp.sum()), gradient - missing.numpy()))


# --- aggregations ---------------------------------------------------------------------------------------------------

MODES = {
    "token-mean": "token-mean",
    "seq-mean-token-mean": "seq-mean-token-mean",
    "seq-mean-token-sum": "seq-mean-token-sum",
    "constant": "seq-mean-token-sum-norm",
}


@pytest.mark.parametrize("aggregation", MODES)
@pytest.mark.parametrize(("name", "tensors"), BATCHES, ids=NAMES)
def test_aggregations(name, tensors, aggregation):
    horizon = 40 if aggregation == "constant" else None
    configured = with_info(tensors, (0.2, 0.2), horizon=horizon, dual_clip=1e300)  # none
    loss = called(core_algos.compute_policy_loss_vanilla, configured, MODES[aggregation])
    assert_equal(tensors, theirs(tensors, loss, halves(tensors)), ours(tensors, aggregation=aggregation, horizon=40))


# --- advantages -----------------------------------------------------------------------------------------------------


def rewarded(seed):
    """(reward, group, mask): three prompts with two to four responses, and one with a single response."""
    rng = np.random.default_rng(seed)
    group = torch.tensor(rng.permutation([0, 0, 1, 1, 1, 2, 2, 2, 2, 3]))
    reward = torch.tensor(rng.choice([0.0, 1.0, 0.5], 10))
    mask = torch.tensor(np.arange(7) < rng.integers(1, 8, 10)[:, None])
    return reward, group, mask


def at_last(reward, mask):
    """The outcome on the last valid token, as verl stores it."""
    last = mask.long().cumsum(-1).argmax(-1)
    return torch.zeros(mask.shape, dtype=reward.dtype).scatter(-1, last[:, None], reward[:, None])


ESTIMATORS = {
    "grpo": lambda r, m, g: core_algos.compute_grpo_outcome_advantage(r, m, g),
    "dr_grpo": lambda r, m, g: core_algos.compute_grpo_outcome_advantage(r, m, g, norm_adv_by_std_in_grpo=False),
    "rloo": lambda r, m, g: core_algos.compute_rloo_outcome_advantage(r, m, g),
    "rloo, vectorised": lambda r, m, g: core_algos.compute_rloo_vectorized_outcome_advantage(r, m, g),
    "reinforce++": lambda r, m, g: core_algos.compute_reinforce_plus_plus_outcome_advantage(
        r, m, config=AlgoConfig(gamma=1.0)
    ),
    "reinforce++_baseline": lambda r, m, g: core_algos.compute_reinforce_plus_plus_baseline_outcome_advantage(r, m, g),
}
KEEPS_SINGLE = {"grpo", "dr_grpo", "rloo", "reinforce++_baseline"}
"""A prompt with a single response keeps its raw reward (mean 0) instead of 0."""
# a few dozen roundings of advantages below 4; whitening is to the precision of its n / (n - 1), which is float32
WIDTH = 64 * EPS * 4
OF_WHITENING = {"reinforce++": 2.0**-25 * 4, "reinforce++_baseline": 2.0**-25 * 4}


def both(name, reward, group, mask):
    found = ESTIMATORS[name](at_last(reward, mask), mask.long(), group.numpy())[0]
    wanted = ADVANTAGES[name.partition(",")[0]](reward, group, mask)
    return found, torch.where(mask, wanted, 0.0)


@pytest.mark.parametrize("name", ESTIMATORS)
@pytest.mark.parametrize("seed", SEEDS)
def test_advantages_of_prompts_with_several_responses(name, seed):
    reward, group, mask = rewarded(seed)
    kept = group != 3
    found, wanted = both(name, reward[kept], group[kept], mask[kept])
    assert float((found - wanted).abs().max()) <= WIDTH + OF_WHITENING.get(name, 0.0)


def test_whitening_corrects_the_variance_in_float32():
    """mask.sum() / (mask.sum() - 1) of an integer mask is a float32 tensor, whatever is whitened."""
    reward, group, mask = rewarded(0)
    found, wanted = both("reinforce++", reward, group, mask)
    n = mask.sum()
    exact, used = n.double() / (n - 1).double(), (n / (n - 1)).double()
    assert float((found - wanted).abs().max()) > WIDTH
    # the eps of 1e-8 beside a variance of at least .1 changes the correction's own 6e-8 by a ten millionth of it
    assert float((found * (used / exact).sqrt() - wanted).abs().max()) <= WIDTH + 1e-14


@pytest.mark.parametrize("name", ESTIMATORS)
def test_a_prompt_with_one_response(name):
    reward, group, mask = rewarded(0)
    reward = reward.clamp(min=0.5)  # a single reward of 0 would hide it
    found, wanted = both(name, reward, group, mask)
    single = group == 3
    if name in KEEPS_SINGLE - {"reinforce++_baseline"}:
        of_row = found[single][mask[single]]
        # float32 for grpo: that mean and std are float32 tensors, and 1 + eps divides
        assert (of_row - reward[single]).abs().max() <= 2e-6 and (wanted[single] == 0).all()
        assert float((found - wanted)[~single].abs().max()) <= WIDTH
    else:
        bound = WIDTH + OF_WHITENING.get(name, 0.0)
        assert (float((found - wanted).abs().max()) <= bound) == (name not in KEEPS_SINGLE)


def test_whitening_one_token_raises():
    mask = torch.tensor([[1, 0]])
    with pytest.raises(ValueError, match="division by zero"):
        torch_functional.masked_whiten(torch.tensor([[2.0, 0.0]]), mask)
    assert ADVANTAGES["reinforce++"](torch.tensor([2.0]), torch.tensor([0]), mask.bool()).tolist() == [[0.0, 0.0]]


def test_equal_rewards_are_not_exactly_nothing():
    """GRPO's mean of equal numbers is off by a rounding, which eps = 1e-6 turns into an advantage of 1e-10."""
    reward, mask = torch.full((3,), 0.1, dtype=torch.float64), torch.ones(3, 1, dtype=torch.long)
    found = core_algos.compute_grpo_outcome_advantage(reward[:, None].clone(), mask, np.zeros(3, dtype=int))[0]
    largest = float(found.abs().max())
    assert largest == 0.0 or largest < 1e-9
    assert (ADVANTAGES["grpo"](reward, torch.zeros(3, dtype=torch.long), mask.bool()) == 0).all()


# --- divergences ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", DIVERGENCES)
def test_divergences_within_its_clamps(kind):
    """Values and slopes are ours for log-ratios up to 2; verl's k3 stops at 10, with a slope of 0 beyond."""
    x = torch.linspace(-2, 2, 41, dtype=torch.float64).requires_grad_()
    one, two = core_algos.kl_penalty(x, torch.zeros_like(x), kind), DIVERGENCES[kind](x)
    # three roundings of an exponential below 8 on each side
    assert float((one - two).detach().abs().max()) <= 16 * EPS * 8
    slopes = [torch.autograd.grad(value.sum(), x)[0] for value in (one, two)]
    assert float((slopes[0] - slopes[1]).abs().max()) <= 16 * EPS * 8


def test_its_k3_stops_at_ten():
    x = torch.tensor([-3.0], dtype=torch.float64).requires_grad_()
    theirs_, ours_ = core_algos.kl_penalty(x, torch.zeros_like(x), "k3"), DIVERGENCES["k3"](x)
    assert theirs_.item() == 10.0 and ours_.item() > 16
    assert torch.autograd.grad(theirs_.sum(), x)[0].item() == 0.0


def test_the_golden_batches_are_among_those_compared():
    assert {name for name, _ in golden()} <= set(NAMES) and rounding(BATCHES[0][1]) < 1e-10
