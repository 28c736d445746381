"""TRL's loss types, adaptive entropy rule and high-entropy mask beside ours, on the same minibatches.

Run with `make test-trl`. `GRPOTrainer._compute_loss` is called on the stand-in of `test_trl.py`. What differs is
asserted with its size and its reason, as docs/conformance.md has it.
"""

import numpy as np
import pytest
import torch
from ours_beside import EPS, assert_equal, golden, minibatch, ours, size, theirs
from test_trl import ACCELERATOR, computed, trainer
from trl import GRPOConfig, GRPOTrainer

from entropy_theory.advantage import dr_grpo, grpo
from entropy_theory.controls import CONTROLS
from entropy_theory.records import Measurement
from entropy_theory.surrogate import dual_clip, sapo

# its advantages belong to a response; NaN on "overflow" is shown in test_trl.py
DRAWN = [(f"drawn {s}", minibatch(s, constant=True)) for s in range(10)]
BATCHES = [*((n, t) for n, t in golden() if n != "overflow"), *DRAWN]
NAMES = [name for name, _ in BATCHES]
over_batches = pytest.mark.parametrize(("name", "tensors"), BATCHES, ids=NAMES)


def called(entropies=None, level="token", clip=(0.2, 0.2), delta=None, taus=(1.0, 1.05), quantile=1.0, **settings):
    """TRL's loss as a function of one minibatch."""

    def loss(logp, old_logp, advantage, mask):
        known = torch.zeros_like(logp) if entropies is None else entropies
        stand_in = trainer(logp, known, *clip, **settings)
        stand_in.args.delta = delta
        stand_in.args.sapo_temperature_pos, stand_in.args.sapo_temperature_neg = taus
        stand_in.importance_sampling_level = level
        stand_in.max_completion_length = 40
        stand_in.top_entropy_quantile = quantile
        stand_in.get_high_entropy_mask = lambda e, m, t: GRPOTrainer.get_high_entropy_mask(stand_in, e, m, t)
        return computed(stand_in, old_logp, advantage, mask, int(mask.sum()))

    return loss


def found(tensors, **settings):
    return theirs(tensors, called(**settings), [slice(None)])


def nonempty(tensors):
    """Share of the rows that hold a token: TRL counts the others as rows of loss 0."""
    return float(tensors["mask"].any(-1).double().mean())


def scaled(pair, factor):
    return pair[0] * factor, pair[1] * factor


# --- loss types -----------------------------------------------------------------------------------------------------


@over_batches
@pytest.mark.parametrize(
    ("loss_type", "aggregation"), [("dapo", "token-mean"), ("bnpo", "token-mean"), ("grpo", "seq-mean-token-mean")]
)
def test_loss_types_are_aggregations(name, tensors, loss_type, aggregation):
    mine = ours(tensors, aggregation=aggregation)
    assert_equal(
        tensors, found(tensors, loss_type=loss_type), scaled(mine, nonempty(tensors) if loss_type == "grpo" else 1)
    )


@over_batches
def test_dr_grpo_is_the_constant_aggregation(name, tensors):
    mine = ours(tensors, aggregation="constant", horizon=40)
    assert_equal(tensors, found(tensors, loss_type="dr_grpo"), scaled(mine, nonempty(tensors)))


@over_batches
def test_cispo_clamps_at_epsilon_high_itself(name, tensors):
    """epsilon_high 1.28 is our clip_high 0.28; verl adds 1. With TRL's usual 0.28 every ratio is clamped."""
    assert_equal(
        tensors, found(tensors, loss_type="cispo", clip=(0.2, 1.28)), ours(tensors, surrogate="cispo", clip=(0.2, 0.28))
    )
    literal = ours(tensors, surrogate="cispo", clip=(0.2, 0.28 - 1))
    assert_equal(tensors, found(tensors, loss_type="cispo", clip=(0.2, 0.28)), literal)


@over_batches
def test_two_sided_clipping_is_the_dual_clip(name, tensors):
    mine = ours(tensors, surrogate=dual_clip(1.5), aggregation="token-mean")
    assert_equal(tensors, found(tensors, delta=1.5, loss_type="dapo"), mine)


@over_batches
@pytest.mark.parametrize("clip", [(3e-4, 4e-4), (0.2, 0.28)])
def test_sequence_level_ratios_are_gspo(name, tensors, clip):
    """Where the advantage is the response's. TRL's gradient goes through the mean, ours through each token."""
    first = tensors["advantage"][:, :1]
    tensors = tensors | {"advantage": first.expand(tensors["mask"].shape).contiguous()}
    one = theirs(
        tensors,
        lambda advantage, **rest: called(level="sequence", clip=clip, loss_type="grpo")(
            advantage=advantage[:, 0], **rest
        ),
        [slice(None)],
    )
    mine = ours(tensors, surrogate="gspo", aggregation="seq-mean-token-mean", clip=clip)
    assert_equal(tensors, one, scaled(mine, nonempty(tensors)))


@over_batches
def test_sapo_with_temperatures_that_float32_holds(name, tensors):
    mine = ours(tensors, surrogate=sapo(1.0, 1.25), aggregation="seq-mean-token-mean")
    assert_equal(tensors, found(tensors, loss_type="sapo", taus=(1.0, 1.25)), scaled(mine, nonempty(tensors)))


@over_batches
def test_sapos_default_temperature_is_rounded_to_float32(name, tensors):
    """torch.where of two Python numbers makes a float32 tensor: 1.05 is off by 4.8e-8, in float64 too."""
    rounded = torch.tensor(1.05, dtype=torch.float32).item()
    assert abs(rounded - 1.05) == pytest.approx(4.77e-8, rel=1e-3)
    one = found(tensors, loss_type="sapo")
    mine = [
        scaled(ours(tensors, surrogate=sapo(1.0, tau), aggregation="seq-mean-token-mean"), nonempty(tensors))
        for tau in (rounded, 1.05)
    ]
    # 4 / tau is computed in float32 too: one rounding of 2^-24, and (r - 1) tau in the mask's float64
    bound = 2.0**-24 * 2 * size(tensors)
    assert abs(one[0] - mine[0][0]) <= bound and abs(one[0] - mine[1][0]) <= 2 * bound
    assert np.abs(np.where(tensors["mask"], one[1] - mine[0][1], 0.0)).max() <= bound


# --- the adaptive entropy rule --------------------------------------------------------------------------------------


def test_the_defaults_are_those_of_the_preset():
    from entropy_theory.controls import presets

    defaults = {f.name: f.default for f in GRPOConfig.__dataclass_fields__.values()}
    values = presets("adaptive_entropy")["trl"]
    assert (defaults["entropy_target"], defaults["entropy_coef_delta"]) == (values["target"], values["delta"])
    assert (defaults["entropy_coef_min"], defaults["entropy_coef_max"]) == (0.0, values["high"])
    assert defaults["entropy_coef"] == 0.0


def adaptive(target, delta, high, start):
    """A stand-in that keeps the state of TRL's rule from step to step."""
    nothing = torch.zeros(1, 4, dtype=torch.float64)
    stand_in = trainer(nothing, nothing, 0.2, 0.2)
    stand_in.use_adaptive_entropy = stand_in._entropy_bonus_enabled = True
    stand_in.entropy_coef, stand_in._last_world_entropy, stand_in._entropy_window_stats = start, float("inf"), None
    stand_in.args.entropy_target, stand_in.args.entropy_coef_delta = target, delta
    stand_in.args.entropy_coef_min, stand_in.args.entropy_coef_max = 0.0, high
    return stand_in


@pytest.mark.parametrize("start", [0.0, 0.03])
@pytest.mark.parametrize("seed", range(5))
def test_the_rule_step_by_step(seed, start):
    """Coefficient, gate and the step late; entropies at the target included. Sums of four equal numbers are exact."""
    target, delta, high = 0.25, 0.005, 0.04
    rng = np.random.default_rng(seed)
    entropies = rng.choice([0.0, 0.125, 0.25, 0.25, 0.3, 1.0], 60)
    stand_in = adaptive(target, delta, high, start)
    control = CONTROLS["adaptive_entropy"](target=target, delta=delta, high=high, start=start, at_target="raise")
    state = control.init(torch.zeros((), dtype=torch.float64))
    tensors = minibatch(seed, rows=1, steps=4)
    tensors["mask"] = torch.ones_like(tensors["mask"])
    applied = []
    for entropy in entropies:
        of_tokens = torch.full((1, 4), entropy, dtype=torch.float64)
        variable = of_tokens.clone().requires_grad_()
        stand_in._get_per_token_logps_and_entropies = lambda *a, v=variable, **k: (tensors["logp"], v, None)
        loss = computed(stand_in, tensors["old_logp"], tensors["advantage"], tensors["mask"], 4)
        (slope,) = torch.autograd.grad(loss, variable)
        objective = control.edit(*_plain(tensors, of_tokens), state)
        # four tokens: each has a quarter of the coefficient, exactly
        assert torch.equal(slope, -objective.entropy_coef / 4)
        applied.append(objective.entropy_coef[0, 0].item())
        state = control.advance(state, Measurement(torch.tensor(entropy, dtype=torch.float64)))
        assert stand_in.entropy_coef == pytest.approx(float(state[0]), abs=60 * EPS)  # 60 additions
    assert applied[0] == 0.0 and len(set(applied)) > 2


def _plain(tensors, entropy):
    from entropy_theory.records import Batch, Objective

    nothing = torch.zeros(1, dtype=torch.float64)
    batch = Batch(**tensors, entropy=entropy, outcome=nothing, group=nothing.long())
    return Objective.from_batch(batch), batch


# --- the high-entropy mask ------------------------------------------------------------------------------------------


def of_tokens(seed, tokens):
    """One row of distinct entropies that float32 holds, and the tensors of a minibatch of that row."""
    rng = np.random.default_rng(seed)
    entropy = torch.tensor(rng.permutation(tokens)[None] / 64.0)
    tensors = minibatch(seed, rows=1, steps=tokens)
    return entropy, tensors | {"mask": torch.ones(1, tokens, dtype=torch.bool)}


@pytest.mark.parametrize("tokens", range(5, 41))
@pytest.mark.parametrize("seed", range(3))
def test_the_tokens_kept(seed, tokens):
    """The same in a multiple of 5 tokens; otherwise its interpolated quantile keeps one token more."""
    entropy, tensors = of_tokens(seed, tokens)
    stand_in = type("StandIn", (), {"accelerator": ACCELERATOR})
    kept = GRPOTrainer.get_high_entropy_mask(stand_in, entropy, tensors["mask"].long(), 1 - 0.2)
    control = CONTROLS["high_entropy_tokens"](fraction=0.2, denominator="all")
    objective = ours(tensors, control, entropy=entropy)[2]
    mine = objective.weight != 0
    assert not (mine & ~kept).any()
    assert int(kept.sum()) - int(mine.sum()) == (0 if tokens % 5 == 0 else 1)


@pytest.mark.parametrize("tokens", [5, 20, 35])
@pytest.mark.parametrize("seed", range(3))
def test_the_loss_on_the_tokens_kept_is_divided_by_all(seed, tokens):
    entropy, tensors = of_tokens(seed, tokens)
    one = found(tensors, entropies=entropy, quantile=0.2, loss_type="dapo")
    mine = ours(tensors, CONTROLS["high_entropy_tokens"](fraction=0.2, denominator="all"), entropy=entropy)
    assert_equal(tensors, one, mine)
    paper = ours(tensors, CONTROLS["high_entropy_tokens"](fraction=0.2, denominator="selected"), entropy=entropy)
    assert_equal(tensors, one, scaled(paper, 0.2))


def test_gspo_on_the_tokens_kept_takes_the_ratio_of_the_whole_response():
    """As ours does with denominator "all"; with "selected" a response is the tokens kept, and its ratio theirs."""
    entropy, tensors = of_tokens(0, 20)
    tensors["advantage"] = torch.full_like(tensors["advantage"], 0.5)
    loss = called(entropies=entropy, quantile=0.2, level="sequence", loss_type="grpo", clip=(0.5, 0.5))
    one = theirs(tensors, lambda advantage, **rest: loss(advantage=advantage[:, 0], **rest), [slice(None)])
    both = [
        ours(
            tensors,
            CONTROLS["high_entropy_tokens"](fraction=0.2, denominator=denominator),
            "gspo",
            "seq-mean-token-mean",
            (0.5, 0.5),
            entropy=entropy,
        )
        for denominator in ("all", "selected")
    ]
    assert abs(one[0] - both[0][0]) <= 64 * EPS * size(tensors) < abs(one[0] - 0.2 * both[1][0])


# --- advantages -----------------------------------------------------------------------------------------------------


def test_its_group_advantage_is_grpo_with_a_hundred_times_the_eps():
    """(r - mean) / (std + 1e-4) stands inside the rollout; for rewards 0 and 1 the eps takes .02 % of the advantage."""
    import inspect

    assert "std_rewards + 1e-4" in inspect.getsource(GRPOTrainer)
    reward, group = torch.tensor([1.0, 0.0, 0.0, 0.0], dtype=torch.float64), torch.zeros(4, dtype=torch.long)
    shift = 1 - grpo(reward, group, eps=1e-4)[0] / grpo(reward, group)[0]
    assert float(shift) == pytest.approx((1e-4 - 1e-6) / 0.5, rel=1e-3)  # std of 1, 0, 0, 0 is .5
    assert torch.equal(dr_grpo(reward, group), reward - 0.25)  # scale_rewards="none"
