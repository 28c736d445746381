"""verl's own functions on the golden batches: equal within the proved bounds, or different for a reason shown here.

Run with `make test-verl`. A fix in verl makes a test fail here, and its entry in KNOWN can go.
"""

import numpy as np
import pytest
import torch
from known import Known, assert_documented, differing, explained
from verl.trainer.ppo import core_algos
from verl.utils import torch_functional
from verl.workers.config import ActorConfig
from verl.workers.config.actor import PolicyLossConfig

from entropy_theory.conformance import batches, compare

DUAL_CLIP = 3.0
NEVER = 1e300
"""As `clip_ratio_c`: no dual clip."""


def config(tokens=None, clip_low=0.2, clip_high=0.2, dual_clip=DUAL_CLIP, **policy_loss):
    """verl's actor configuration with everything else at its default."""
    made = ActorConfig(
        strategy="fsdp",
        rollout_n=8,
        ppo_micro_batch_size_per_gpu=1,
        clip_ratio_low=clip_low,
        clip_ratio_high=clip_high,
        clip_ratio_c=dual_clip,
        policy_loss=PolicyLossConfig(**policy_loss),
    )
    if tokens is not None:
        made.global_batch_info["batch_num_tokens"] = tokens
    return made


def run(function, configured, logp, old_logp, advantage, mask):
    """(loss, metrics) as verl's actor calls the function; its response mask is an integer tensor."""
    mask = mask.long() if mask.dtype == torch.bool else mask
    return function(old_log_prob=old_logp, log_prob=logp, advantages=advantage, response_mask=mask, config=configured)


def vanilla(dual_clip=DUAL_CLIP):
    def loss(tokens, clip_low, clip_high, **batch):
        configured = config(tokens, clip_low, clip_high, dual_clip)
        return run(core_algos.compute_policy_loss_vanilla, configured, **batch)[0]

    return loss


def clip_cov(tokens, clip_low, clip_high, fraction, low, high, **batch):
    configured = config(tokens, clip_low, clip_high, clip_cov_ratio=fraction, clip_cov_lb=low, clip_cov_ub=high)
    return run(core_algos.compute_policy_loss_clip_cov, configured, **batch)[0]


def kl_cov(tokens, fraction, coef, **batch):
    configured = config(tokens, kl_cov_ratio=fraction, ppo_kl_coef=coef)
    return run(core_algos.compute_policy_loss_kl_cov, configured, **batch)[0]


def grpo(reward, group, eps):
    """Outcome advantage of responses of one token each."""
    mask = torch.ones(len(reward), 1, dtype=torch.long)
    advantage, _ = core_algos.compute_grpo_outcome_advantage(reward[:, None].clone(), mask, group.numpy(), epsilon=eps)
    return advantage[:, 0]


def entropy_bonus(dual_clip=DUAL_CLIP):
    """The policy loss minus the coefficient times the aggregated entropy, as verl's actor adds them."""

    def loss(logits, action, old_logp, advantage, mask, tokens, clip_low, clip_high, coef):
        logp = torch_functional.logprobs_from_logits(logits, action)
        entropy = torch_functional.entropy_from_logits(logits)
        policy = vanilla(dual_clip)(
            tokens, clip_low, clip_high, logp=logp, old_logp=old_logp, advantage=advantage, mask=mask
        )
        return policy - coef * core_algos.agg_loss(entropy, mask.long(), "token-mean", batch_num_tokens=tokens)

    return loss


VERL = {
    "entropy": torch_functional.entropy_from_logits,
    "log_prob": lambda logits, action: torch_functional.logprobs_from_logits(logits, action),
    "grpo": grpo,
    "ppo": vanilla(),
    "clip_higher": vanilla(),
    "clip_cov": clip_cov,
    "kl_cov": kl_cov,
    "entropy_bonus": entropy_bonus(),
}

PPO = tuple(f"{name} {what}" for name in ("ppo", "clip_higher", "entropy_bonus") for what in ("loss", "gradient"))
KNOWN = (
    Known(
        ("entropy", "entropy_bonus loss", "entropy_bonus gradient"),
        ("masked_logits",),
        "NaN: log-sum-exp minus sum p z multiplies a probability of 0 by a logit of -inf",
    ),
    Known(("grpo",), ("one_token",), "a group of one keeps its raw reward (mean 0, std 1) instead of 0"),
    Known(
        PPO,
        ("stale", "ragged"),
        "dual clip: at A < 0 and a ratio above 3 the loss stops at 3 \\|A\\| and has no gradient",
    ),
    Known(
        ("clip_cov gradient", "kl_cov gradient"),
        ("overflow",),
        "NaN at masked tokens: the ratio is neither clamped nor masked before exp, and 0 times inf is NaN",
    ),
)
KNOWN_SPLIT = (
    Known(
        ("clip_cov selection",),
        ("micro_batches",),
        "selected per micro-batch: within one response the advantage is constant, every score 0 and nothing eligible",
    ),
    Known(
        ("kl_cov selection",),
        ("micro_batches",),
        "selected per micro-batch: max(1, int(k n)) tokens of each, so 8 where the minibatch has 1, and all among ties",
    ),
)


@pytest.fixture(scope="module")
def report():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return compare(VERL)


@pytest.fixture(scope="module")
def split_report():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return compare(VERL, micro_batches=True)


def test_what_differs_is_what_is_known(report):
    print(report)
    assert differing(report) == explained(report, KNOWN)
    assert_documented(report, KNOWN)


def test_what_differs_between_micro_batches_is_what_is_known(split_report):
    print(split_report)
    assert differing(split_report) == explained(split_report, KNOWN_SPLIT)
    assert_documented(split_report, KNOWN_SPLIT)


def test_float32_differs_where_float64_does(report):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        assert differing(compare(VERL, "float32")) == differing(report)


# --- why: each reason, shown --------------------------------------------------------------------------------------


def test_without_the_dual_clip_ppo_is_equal_everywhere():
    functions = {"ppo": vanilla(NEVER), "clip_higher": vanilla(NEVER)}
    assert compare(functions).equal


@pytest.mark.parametrize("name", ["stale", "ragged"])
def test_the_dual_clip_accounts_for_the_whole_difference(report, name):
    (batch,) = batches(name)
    mask = batch["mask"]
    ratio, a = np.exp(batch["logp"] - batch["old_logp"])[mask], batch["advantage"][mask]
    beyond = (a < 0) & (ratio > DUAL_CLIP)
    assert beyond.any()
    row = report.row("ppo loss", name)
    expected = (np.abs(a) * (ratio - DUAL_CLIP))[beyond].sum() / batch.tokens
    assert abs(row.difference - expected) <= row.allowed
    row = report.row("ppo gradient", name)
    assert abs(row.difference - (np.abs(a) * ratio)[beyond].max() / batch.tokens) <= row.allowed


def test_the_entropy_is_nan_exactly_where_an_action_is_masked():
    (batch,) = batches("masked_logits")
    entropy = torch_functional.entropy_from_logits(torch.tensor(batch["logits"]))
    assert np.array_equal(torch.isnan(entropy).numpy(), np.isinf(batch["logits"]).any(-1))


def test_a_group_of_one_keeps_its_reward():
    (batch,) = batches("one_token")
    eps = batch.hyper["grpo"]["eps"]
    advantage = grpo(torch.tensor(batch["reward"]), torch.tensor(batch["group"]), eps)
    # that mean and that std are float32 tensors, whatever the rewards are
    assert abs(advantage.item() - batch["reward"][0] / (1 + eps)) <= np.finfo(np.float32).eps
    assert batch["grpo"].tolist() == [0.0]


@pytest.mark.parametrize(("loss", "name"), [(clip_cov, "clip_cov"), (kl_cov, "kl_cov")])
def test_the_nan_gradients_are_those_of_masked_tokens_whose_ratio_overflows(loss, name):
    (batch,) = batches("overflow")
    gradient = gradient_of(loss, batch, name)
    with np.errstate(over="ignore"):
        overflows = np.isinf(np.exp(batch["logp"] - batch["old_logp"]))
    assert np.array_equal(np.isnan(gradient), overflows & ~batch["mask"]) and overflows.any()
    assert compare({"ppo": vanilla()}, names=("overflow",)).equal  # its log-ratio is clamped to 20


def gradient_of(loss, batch, name, mask=None, **change):
    """d loss / d logp, [rows, steps]."""
    tensors = {key: torch.tensor(batch[key]) for key in ("logp", "old_logp", "advantage", "mask")}
    tensors["mask"] = tensors["mask"] if mask is None else mask
    tensors["logp"].requires_grad_()
    with torch.random.fork_rng():
        torch.manual_seed(change.pop("seed", 0))
        value = loss(tokens=batch.tokens, **tensors, **batch.hyper[name] | change)
    return torch.autograd.grad(value, tensors["logp"])[0].numpy()


def test_kl_cov_selects_one_token_of_each_micro_batch_among_equal_scores(split_report):
    (batch,) = batches("micro_batches")
    counts = [int(batch["mask"][first:last].sum()) for first, last in batch.micro_batches]
    wanted = sum(max(1, int(batch.hyper["kl_cov"]["fraction"] * n)) for n in counts)
    assert wanted == len(counts) == 8 and batch["kl_cov_count"] == 1
    assert split_report.row("kl_cov selection", "micro_batches").note.startswith("8 penalised, 1 wanted")
    for first, last in batch.micro_batches:  # the reason: no spread of A within a micro-batch
        assert len(set(batch["advantage"][first:last][batch["mask"][first:last]])) == 1


def test_clip_cov_drops_nothing_in_micro_batches_of_one_response(split_report):
    note = split_report.row("clip_cov selection", "micro_batches").note
    assert note == "0 dropped, 2 wanted"


def test_given_its_own_selection_each_micro_batched_loss_is_right(split_report):
    for quantity in ("clip_cov loss", "clip_cov gradient", "kl_cov loss", "kl_cov gradient"):
        assert split_report.row(quantity, "micro_batches").verdict == "equal"


# --- what is equal in value and still a trap ------------------------------------------------------------------------


def test_kl_cov_does_nothing_on_the_first_update():
    """Not a difference: |logp - old_logp| has gradient 0 at 0. With one update per rollout KL-Cov is GRPO."""
    (batch,) = batches("fresh")
    assert np.array_equal(
        gradient_of(kl_cov, batch, "kl_cov", coef=1.0), gradient_of(kl_cov, batch, "kl_cov", coef=0.0)
    )


def test_clip_cov_draws_from_the_global_generator():
    """Another seed of the process drops other tokens, and the draw moves every later draw of the process."""
    (batch,) = batches("fresh")
    assert len({(gradient_of(clip_cov, batch, "clip_cov", seed=seed) == 0).tobytes() for seed in range(5)}) > 1
    with torch.random.fork_rng():
        before = torch.random.get_rng_state()
        tensors = {key: torch.tensor(batch[key]) for key in ("logp", "old_logp", "advantage", "mask")}
        clip_cov(tokens=batch.tokens, **tensors, **batch.hyper["clip_cov"])
        assert not torch.equal(before, torch.random.get_rng_state())


def test_a_float_mask_makes_equal_advantages_unequal():
    """masked_mean divides by n + 1e-8: lost for verl's integer masks, scores of 3e-10 for a float64 mask."""
    (batch,) = batches("zero_covariance")
    mask = torch.tensor(batch["mask"])
    dropped = {
        dtype: (gradient_of(clip_cov, batch, "clip_cov", mask.to(dtype)) == 0) & batch["mask"]
        for dtype in (torch.long, torch.float64)
    }
    assert dropped[torch.long].sum() == 0 and dropped[torch.float64].sum() == 2


def test_chunked_entropy_is_float32_whatever_it_is_given():
    def chunked(logits):
        return torch_functional.entropy_from_logits_with_chunking(logits.flatten(0, 1)).view(logits.shape[:2])

    assert all(row.verdict == "differs" for row in compare({"entropy": chunked}).rows)
    assert {row.batch for row in compare({"entropy": chunked}, "float32").differences()} == {"masked_logits"}


def test_the_default_penalty_is_a_tenth_of_the_papers():
    """The paper and verl's own docstring say 1; the defaults of the configuration are 0.1 and the 32B fraction."""
    defaults = PolicyLossConfig()
    assert (defaults.ppo_kl_coef, defaults.kl_cov_ratio, defaults.clip_cov_ratio) == (0.1, 2e-4, 2e-4)
    assert "Defaults to 1." in core_algos.compute_policy_loss_kl_cov.__doc__


def test_clip_ratio_alone_changes_nothing():
    """The losses read clip_ratio_low and clip_ratio_high, which default to 0.2 and not to clip_ratio."""
    (batch,) = batches("stale")
    losses = []
    for clip_ratio in (0.2, 0.5):
        configured = ActorConfig(strategy="fsdp", rollout_n=8, ppo_micro_batch_size_per_gpu=1, clip_ratio=clip_ratio)
        tensors = {key: torch.tensor(batch[key]) for key in ("logp", "old_logp", "advantage", "mask")}
        losses.append(run(core_algos.compute_policy_loss_vanilla, configured, **tensors)[0].item())
    assert losses[0] == losses[1]


def test_metrics_do_not_mean_the_same_in_each_loss():
    """Clip-Cov's pg_clipfrac leaves out what PPO clipped; KL-Cov's ppo_kl is mean |log r|, the others' mean -log r."""
    (batch,) = batches("stale")
    mask, n = batch["mask"], batch.tokens
    tensors = {key: torch.tensor(batch[key]) for key in ("logp", "old_logp", "advantage", "mask")}
    h = batch.hyper["clip_cov"]
    configured = config(n, clip_cov_ratio=h["fraction"], clip_cov_lb=h["low"], clip_cov_ub=h["high"])
    with torch.random.fork_rng():
        torch.manual_seed(0)
        metrics = run(core_algos.compute_policy_loss_clip_cov, configured, **tensors)[1]
    clipped = int(((batch["ppo_gradient"] == 0) & mask).sum())
    assert clipped > 0
    assert round(metrics["actor/pg_clipfrac"] * n) == batch["clip_cov_count"]
    x = (batch["logp"] - batch["old_logp"])[mask]
    kl = run(core_algos.compute_policy_loss_kl_cov, configured, **tensors)[1]["actor/ppo_kl"]
    bound = 4 * n * np.finfo(np.float64).eps * np.abs(x).mean()  # two means of n numbers
    assert abs(kl - np.abs(x).mean()) <= bound and abs(metrics["actor/ppo_kl"] + x.mean()) <= bound


def test_a_mean_over_each_micro_batch_is_not_the_mean_over_the_minibatch():
    """agg_loss divides by the micro-batch's own count unless it is given batch_num_tokens."""
    (batch,) = batches("micro_batches")
    values, mask = torch.tensor(batch["token_surrogate"]), torch.tensor(batch["mask"])
    parts = [slice(*part) for part in batch.micro_batches]

    def summed(**count):
        return sum(core_algos.agg_loss(values[p], mask[p].long(), "token-mean", **count).item() for p in parts)

    bound = 4 * batch.tokens * np.finfo(np.float64).eps * np.abs(batch["token_surrogate"]).max()
    assert abs(summed(batch_num_tokens=batch.tokens) - batch["ppo_loss"]) <= bound
    mean_of_means = np.mean([batch["token_surrogate"][p][batch["mask"][p]].mean() for p in parts])
    assert abs(summed() / len(parts) - mean_of_means) <= bound < abs(mean_of_means - batch["ppo_loss"])
