"""TRL's own functions on the golden batches: equal within the proved bounds, or different for a reason shown here.

Run with `make test-trl`. TRL has no loss as a function: `GRPOTrainer._compute_loss` is called on a stand-in that
holds the attributes it reads and gives it log-probabilities and entropies by TRL's own
`selective_log_softmax_and_entropy`. TRL has neither Clip-Cov nor KL-Cov; its group advantages are computed inside
the rollout and are not compared.
"""

from collections import defaultdict
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from known import Known, assert_documented, differing, explained
from trl import GRPOTrainer
from trl.trainer.utils import entropy_from_logits, selective_log_softmax, selective_log_softmax_and_entropy

from entropy_theory.conformance import batches, compare

ACCELERATOR = SimpleNamespace(
    num_processes=1,
    sync_gradients=True,
    gather=lambda x: x,
    gather_for_metrics=lambda x: x,
    reduce=lambda x, reduction: x,
    pad_across_processes=lambda x, dim, pad_index: x,
)


def trainer(logp, entropies, clip_low, clip_high, coef=0.0, loss_type="dapo", accumulation=1):
    """What `_compute_loss` reads of a trainer, with everything optional switched off."""
    return SimpleNamespace(
        _get_per_token_logps_and_entropies=lambda *args, **kwargs: (logp, entropies, None),
        _entropy_bonus_enabled=coef != 0,
        _metrics={"train": defaultdict(list)},
        accelerator=ACCELERATOR,
        args=SimpleNamespace(delta=None, steps_per_generation=accumulation, use_bias_correction_kl=False),
        aux_loss_enabled=False,
        beta=0.0,
        current_gradient_accumulation_steps=accumulation,
        entropy_coef=coef,
        epsilon_high=clip_high,
        epsilon_low=clip_low,
        importance_sampling_level="token",
        loss_type=loss_type,
        max_completion_length=logp.shape[1],
        model=SimpleNamespace(training=True),
        off_policy_mask_threshold=None,
        top_entropy_quantile=1.0,
        use_adaptive_entropy=False,
        use_vllm=False,
    )


def computed(stand_in, old_logp, advantage, mask, tokens):
    """TRL's loss of one micro-batch; `tokens` are those of the whole minibatch."""
    rows = mask.shape[0]
    ids = torch.zeros(mask.shape, dtype=torch.long)
    inputs = {
        "prompt_ids": ids[:, :1],
        "prompt_mask": torch.ones(rows, 1, dtype=torch.long),
        "completion_ids": ids,
        "completion_mask": mask.long(),
        "advantages": advantage,
        "old_per_token_logps": old_logp,
        "num_items_in_batch": torch.tensor(tokens),
    }
    return GRPOTrainer._compute_loss(stand_in, None, inputs)


def ppo(logp, old_logp, advantage, mask, tokens, clip_low, clip_high, **settings):
    stand_in = trainer(logp, torch.zeros_like(logp), clip_low, clip_high, **settings)
    return computed(stand_in, old_logp, advantage, mask, tokens)


def entropy_bonus(logits, action, old_logp, advantage, mask, tokens, clip_low, clip_high, coef, **settings):
    logp, entropies = selective_log_softmax_and_entropy(logits, action)
    stand_in = trainer(logp, entropies, clip_low, clip_high, coef, **settings)
    return computed(stand_in, old_logp, advantage, mask, tokens)


def split(function, accumulation):
    """The function with TRL's number of accumulated micro-batches; TRL's own rescaling brings `tokens` back."""
    return lambda **arguments: function(**arguments, accumulation=accumulation)


TRL = {
    "entropy": entropy_from_logits,
    "log_prob": lambda logits, action: selective_log_softmax(logits, action),
    "ppo": ppo,
    "clip_higher": ppo,
    "entropy_bonus": entropy_bonus,
}
LOSSES = tuple(f"{name} {what}" for name in ("ppo", "clip_higher", "entropy_bonus") for what in ("loss", "gradient"))
KNOWN = (
    Known(
        ("entropy", "entropy_bonus loss", "entropy_bonus gradient"),
        ("masked_logits",),
        "NaN: exp(log p) log p multiplies a probability of 0 by a log-probability of -inf",
    ),
    Known(LOSSES, ("overflow",), "NaN: the token losses are multiplied by the mask, and inf times 0 is NaN"),
)
KNOWN_SPLIT = (
    Known(
        ("entropy_bonus loss", "entropy_bonus gradient"),
        ("micro_batches",),
        "the entropy bonus is a mean of the micro-batches' token means, the policy loss a mean over all tokens",
    ),
)


@pytest.fixture(scope="module")
def report():
    return compare(TRL)


@pytest.fixture(scope="module")
def split_report():
    (batch,) = batches("micro_batches")
    losses = {name: split(TRL[name], len(batch.micro_batches)) for name in ("ppo", "clip_higher", "entropy_bonus")}
    return compare(losses, micro_batches=True)


def test_what_differs_is_what_is_known(report):
    print(report)
    assert differing(report) == explained(report, KNOWN)
    assert_documented(report, KNOWN)


def test_what_differs_between_micro_batches_is_what_is_known(split_report):
    print(split_report)
    assert differing(split_report) == explained(split_report, KNOWN_SPLIT)
    assert_documented(split_report, KNOWN_SPLIT)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_other_dtypes_differ_where_float64_does(report, dtype):
    assert differing(compare(TRL, dtype)) == differing(report)


# --- why: each reason, shown --------------------------------------------------------------------------------------


def test_the_entropy_is_nan_exactly_where_an_action_is_masked():
    (batch,) = batches("masked_logits")
    entropy = entropy_from_logits(torch.tensor(batch["logits"]))
    assert np.array_equal(torch.isnan(entropy).numpy(), np.isinf(batch["logits"]).any(-1))


def test_the_loss_is_nan_because_of_a_masked_token_alone():
    (batch,) = batches("overflow")
    tensors = {key: torch.tensor(batch[key]) for key in ("logp", "old_logp", "advantage", "mask")}
    loss = ppo(**tensors, tokens=batch.tokens, **batch.hyper["ppo"])
    assert torch.isnan(loss)
    clean = {key: torch.where(tensors["mask"], tensors[key], 0.0) for key in ("logp", "old_logp", "advantage")}
    loss = ppo(**clean, mask=tensors["mask"], tokens=batch.tokens, **batch.hyper["ppo"])
    row = compare({"ppo": lambda **_: (loss, batch["ppo_gradient"])}, names=("overflow",)).row("ppo loss", "overflow")
    assert row.verdict == "equal"


def test_the_entropy_bonus_is_a_mean_of_means(split_report):
    (batch,) = batches("micro_batches")
    coef = batch.hyper["entropy_bonus"]["coef"]
    parts = [slice(*part) for part in batch.micro_batches]
    means = [batch["entropy"][part][batch["mask"][part]].mean() for part in parts]
    whole = batch["entropy"][batch["mask"]].mean()
    row = split_report.row("entropy_bonus loss", "micro_batches")
    assert abs(row.difference - coef * abs(np.mean(means) - whole)) <= row.allowed
    for name in ("ppo", "clip_higher"):
        assert split_report.row(f"{name} loss", "micro_batches").verdict == "equal"


@pytest.mark.parametrize("loss_type", ["grpo", "bnpo", "dr_grpo"])
def test_other_loss_types_divide_by_something_else(loss_type):
    """One minibatch with rows of 6, 1, 4, 0, 6, 3, 2 and 5 tokens; "dapo" above is the mean over the tokens."""
    (batch,) = batches("ragged")
    tensors = {key: torch.tensor(batch[key]) for key in ("logp", "old_logp", "advantage", "mask")}
    loss = ppo(**tensors, tokens=batch.tokens, **batch.hyper["ppo"], loss_type=loss_type).item()
    mask, values = batch["mask"], batch["token_surrogate"]
    rows = mask.sum(-1)
    expected = {
        "grpo": (values.sum(-1) / np.maximum(rows, 1)).mean(),  # an empty row counts as a row of loss 0
        "bnpo": values.sum() / mask.sum(),
        "dr_grpo": values.sum() / mask.size,
    }[loss_type]
    bound = 4 * batch.tokens * np.finfo(np.float64).eps * np.abs(values).max()
    assert abs(loss - expected) <= bound
    assert (abs(loss - batch["ppo_loss"]) <= bound) == (loss_type == "bnpo")


def high_entropy_mask(entropy, mask, threshold):
    return GRPOTrainer.get_high_entropy_mask(SimpleNamespace(accelerator=ACCELERATOR), entropy, mask, threshold)


@pytest.mark.parametrize("batch", batches(), ids=lambda batch: batch.name)
def test_the_high_entropy_mask_is_the_tokens_above_the_quantile(batch):
    """In float32, in which the quantile is taken; a masked token is never among them."""
    entropy, mask = batch["entropy"].astype(np.float32), batch["mask"]
    chosen = high_entropy_mask(torch.tensor(entropy), torch.tensor(mask).long(), 0.8).numpy()
    valid = np.sort(entropy[mask])
    place = 0.8 * (len(valid) - 1)
    below = int(place)
    above = min(below + 1, len(valid) - 1)
    # between the two tokens around the quantile any interpolation gives the same set
    surely, possibly = mask & (entropy >= valid[above]), mask & (entropy >= valid[below])
    assert (surely <= chosen).all() and (chosen <= possibly).all()


def test_the_high_entropy_mask_takes_no_more_than_sixteen_million_tokens():
    """torch.quantile refuses them: 512 responses of 32,768 tokens and one token more."""
    tokens = torch.zeros(1, 2**24 + 1)
    with pytest.raises(RuntimeError, match="too large"):
        high_entropy_mask(tokens, torch.ones_like(tokens, dtype=torch.long), 0.8)
