"""The tokens a selection is taken over: the whole minibatch, or each micro-batch by itself as in the published code."""

import inspect
import math
from dataclasses import replace

import oracles
import pytest
import strategies
import torch
from contract import CONTRACT, identical, start, tie_free
from hypothesis import assume, given
from hypothesis import strategies as st

from entropy_theory.controls import CONTROLS
from entropy_theory.measure import selection
from entropy_theory.records import Batch, Objective, map_tensors

SCOPED = [name for name in CONTROLS if "scope" in inspect.signature(CONTROLS[name]).parameters]
DRAWN = [name for name in SCOPED if CONTRACT[name].drawn]
RANKED = [name for name in SCOPED if name not in DRAWN]


def edit_of(name, scope, batch, objective=None, **parameters):
    """The control's edit, with the parameters with which the contract knows it to act."""
    row = CONTRACT[name]
    control = CONTROLS[name](**{**row.acting, **parameters}, scope=scope)
    return control.edit(objective or Objective.from_batch(batch), batch, start(control, batch, row.steps))


def micro_batches(batch, numbers):
    """Each micro-batch as a batch of its own, for a batch without replica axes."""
    for number in sorted(set(numbers.tolist())):
        rows = (numbers == number).nonzero().squeeze(-1)
        yield rows, map_tensors(batch, lambda t, rows=rows: t[rows])


def test_the_controls_whose_published_code_selects_by_micro_batch_are_scoped():
    assert set(SCOPED) >= {"clip_cov", "kl_cov", "lp_reg", "high_entropy_tokens", "steer", "entropic"}


@pytest.mark.parametrize("name", SCOPED)
@given(batch=strategies.batches(), rng=strategies.generators())
def test_over_the_minibatch_the_split_does_not_matter(name, batch, rng):
    numbers = torch.from_numpy(rng.integers(0, 4, tuple(batch.outcome.shape)))
    expected = edit_of(name, "minibatch", batch)
    for split in (numbers, torch.zeros_like(numbers), None):
        assert identical(edit_of(name, "minibatch", replace(batch, micro_batch=split)), expected)


@pytest.mark.parametrize("name", SCOPED)
@given(batch=strategies.batches(), number=st.integers(0, 2))
def test_one_micro_batch_is_the_minibatch(name, batch, number):
    """Whatever its number, and where a world does not split at all."""
    expected = edit_of(name, "minibatch", batch)
    for split in (torch.full_like(batch.group, number), None):
        assert identical(edit_of(name, "microbatch", replace(batch, micro_batch=split)), expected)


@pytest.mark.parametrize("name", RANKED)
@given(batch=strategies.batches(leading=()), data=st.data())
def test_by_micro_batch_each_is_edited_as_if_it_were_alone(name, batch, data):
    """After another control too. Sums of other lengths may round otherwise, so that ties are left out."""
    objective = data.draw(strategies.objectives(batch))
    whole = edit_of(name, "microbatch", batch, objective)
    for rows, part in micro_batches(batch, batch.micro_batch):
        assume(tie_free(part))
        pick = lambda t, rows=rows: t[rows]  # noqa: E731
        alone = edit_of(name, "minibatch", part, map_tensors(objective, pick))
        keep = lambda t, part=part: t[part.mask]  # noqa: E731
        assert identical(map_tensors(map_tensors(whole, pick), keep), map_tensors(alone, keep))


@pytest.mark.parametrize("name", DRAWN)
@given(batch=strategies.batches(leading=()), fraction=st.floats(0.05, 1.0))
def test_by_micro_batch_each_draws_as_many_as_if_it_were_alone(name, batch, fraction):
    """Which ones hangs on the token's place in the minibatch, so the numbers are compared; and all of them at 1."""
    limits = {"low": -math.inf, "high": math.inf, "fraction": fraction}
    whole = edit_of(name, "microbatch", batch, **limits)
    for rows, part in micro_batches(batch, batch.micro_batch):
        alone = edit_of(name, "minibatch", part, **limits)
        dropped = [(weight == 0) & part.mask for weight in (whole.weight[rows], alone.weight)]
        assert int(dropped[0].sum()) == int(dropped[1].sum())
        assert fraction < 1 or torch.equal(*dropped)


@pytest.mark.parametrize("name", SCOPED)
def test_a_scope_that_does_not_exist_is_refused(name):
    with pytest.raises(ValueError, match=f"{name}.scope must be one of minibatch, microbatch, got 'group'"):
        CONTROLS[name](scope="group")


# --- how many, as the published code counts them ------------------------------------------------------------------


def long_batch(by_token=True, rows=8, steps=1024):
    """Eight sequences of 1,024 tokens, with advantages of their own or of their sequence."""
    rng = torch.Generator().manual_seed(11)
    logp = -torch.rand(rows, steps, generator=rng, dtype=torch.float64) * 3
    advantage = torch.randn(rows, steps if by_token else 1, generator=rng, dtype=torch.float64).expand(rows, steps)
    return Batch(
        logp=logp,
        old_logp=logp,
        advantage=advantage,
        mask=torch.ones(rows, steps, dtype=torch.bool),
        entropy=torch.rand(rows, steps, generator=rng, dtype=torch.float64),
        outcome=torch.zeros(rows, dtype=torch.float64),
        group=torch.zeros(rows, dtype=torch.int64),
        proxy_logp=logp,
        micro_batch=torch.zeros(rows, dtype=torch.int64),
    )


@pytest.mark.parametrize(("pieces", "expected"), [(1, 1), (2, 2), (4, 4), (8, 8)])
@pytest.mark.parametrize("name", ["kl_cov", "clip_cov"])
def test_a_fraction_of_two_in_ten_thousand_takes_one_token_of_each_micro_batch(name, pieces, expected):
    """8,192 tokens: floor(1.6) = 1 as one micro-batch; in 2, 4 or 8 pieces max(1, 0) = 1 of each piece."""
    batch = long_batch()
    batch = replace(batch, micro_batch=torch.arange(8) // (8 // pieces))
    parameters = {"fraction": 2e-4} | ({"low": -math.inf, "high": math.inf} if name == "clip_cov" else {})
    counted = {}
    for scope in ("microbatch", "minibatch"):
        found = selection(Objective.from_batch(batch), edit_of(name, scope, batch, **parameters))
        counted[scope] = int(found["selected_tokens"])
    assert counted == {"microbatch": expected, "minibatch": 1}
    assert expected == pieces * oracles.published_count(2e-4, 8192 // pieces)


@pytest.mark.parametrize("pieces", [1, 4, 8])
def test_a_fifth_of_each_micro_batch_is_a_fifth_of_the_minibatch_but_not_the_same_one(pieces):
    """Of 8 * 1,024 tokens 1,638 (of one piece), 4 * 409 or 8 * 204; the tokens differ as soon as there are pieces."""
    batch = replace(long_batch(), micro_batch=torch.arange(8) // (8 // pieces))
    kept = [edit_of("high_entropy_tokens", s, batch, fraction=0.2).mask for s in ("microbatch", "minibatch")]
    assert int(kept[0].sum()) == pieces * oracles.published_count(0.2, 8192 // pieces)
    assert int(kept[1].sum()) == 1638
    assert torch.equal(*kept) == (pieces == 1)
