"""Which tokens a covariance score ranks first, and what its mean is made of: against loops, and on real rollouts."""

import math

import numpy as np
import oracles
import pytest
import strategies
import torch
from hypothesis import given
from hypothesis import strategies as st

from entropy_theory.decomposition import POINTS, Parts, part_rows, point_rows, top_rows, within_between
from entropy_theory.measure import top_tokens
from entropy_theory.records import Batch

F64 = torch.float64
U = torch.finfo(F64).eps / 2


def flat(tensor) -> list:
    return tensor.flatten().tolist()


# --- the top tokens -------------------------------------------------------------------------------------------------


@given(strategies.batches(leading=()), st.sampled_from([0.01, 0.3, 1.0]), st.integers(0, 2**32 - 1))
def test_top_tokens_by_loops(batch, fraction, seed):
    rng = np.random.default_rng(seed)
    collision = torch.from_numpy(rng.uniform(0, 0.3, batch.logp.shape))
    found = {name: value.item() for name, value in top_tokens(batch, collision, fraction).items()}
    mask = flat(batch.mask)
    valid = [i for i, m in enumerate(mask) if m]
    if not valid:
        assert found == dict.fromkeys(found, 0.0)
        return
    logp, advantage, entropy, c = (flat(x) for x in (batch.logp, batch.advantage, batch.entropy, collision))
    weights = [float(m) for m in mask]
    clean = [[x if m else 0.0 for x, m in zip(values, mask, strict=True)] for values in (logp, advantage)]
    score = oracles.centred_product(*clean, weights)
    loss = [
        a * (math.exp(lp) * (lp + h) - k) if m else 0.0
        for a, lp, h, k, m in zip(advantage, logp, entropy, c, mask, strict=True)
    ]
    count = max(1, math.floor(fraction * len(valid)))
    gap = 1e-9  # ranks are only certain where no score is closer to another than rounding can move it
    for values in (score, loss):
        ordered = sorted((values[i] for i in valid), reverse=True)
        if count < len(ordered) and ordered[count - 1] - ordered[count] < gap:
            return
    top, largest = (set(sorted(valid, key=lambda i: -values[i])[:count]) for values in (score, loss))
    assert found["top_negative_share"] == pytest.approx(sum(advantage[i] < 0 for i in top) / count, rel=8 * U)
    assert found["top_probability"] == pytest.approx(sum(math.exp(logp[i]) for i in top) / count, rel=100 * U)
    assert found["top_overlap"] == pytest.approx(len(top & largest) / count, rel=8 * U)
    x, y = ([values[i] for i in valid] for values in (score, loss))
    if np.std(x) < 1e-6 or np.std(y) < 1e-6:  # a correlation of rounding errors
        return
    assert found["score_effect_correlation"] == pytest.approx(np.corrcoef(x, y)[0, 1], abs=1e-8)


def test_the_top_of_a_minibatch_by_hand():
    """The rare punished token has the highest score, and takes away less entropy than the likely rewarded one."""
    probability = torch.tensor([[0.01, 0.9, 0.5, 0.5]], dtype=F64)
    batch = strategies.Batch(
        logp=probability.log(),
        old_logp=probability.log(),
        advantage=torch.tensor([[-1.0, 1.0, 0.0, 0.0]], dtype=F64),
        mask=torch.ones(1, 4, dtype=torch.bool),
        entropy=torch.full((1, 4), 0.3, dtype=F64),
        outcome=torch.zeros(1, dtype=F64),
        group=torch.zeros(1, dtype=torch.int64),
    )
    found = top_tokens(batch, torch.full((1, 4), 0.05, dtype=F64), 0.25)
    assert found["top_negative_share"] == 1 and found["top_probability"] == pytest.approx(0.01, rel=1e-15)
    assert found["top_overlap"] == 0
    both = top_tokens(batch, torch.full((1, 4), 0.05, dtype=F64), 0.5)
    assert both["top_negative_share"] == 0.5 and both["top_overlap"] == 1


@pytest.mark.parametrize("fraction", [0.0, -0.1, 1.1, float("nan")])
def test_a_fraction_outside_its_range_is_refused(fraction):
    with pytest.raises(ValueError, match=r"fraction must lie in \(0, 1\]"):
        top_tokens(None, torch.zeros(1), fraction)  # before anything else


# --- within and between ---------------------------------------------------------------------------------------------


@given(strategies.batches(), st.integers(0, 2**32 - 1))
def test_the_covariance_is_what_is_within_plus_what_is_between(batch, seed):
    """Replica by replica against loops; the identity holds for any ids."""
    rng = np.random.default_rng(seed)
    rows, steps = batch.mask.shape[-2:]
    state = torch.from_numpy(rng.integers(0, rng.integers(1, rows * steps + 1), batch.mask.shape))
    state = torch.where(batch.mask, state, torch.from_numpy(rng.choice([-5, 10**6], batch.mask.shape)))
    found = within_between(batch.logp, batch.advantage, batch.mask, state)
    replicas = math.prod(batch.mask.shape[:-2])
    fields = [t.reshape(replicas, rows * steps) for t in (batch.logp, batch.advantage, batch.mask, state)]
    parts = [t.reshape(replicas).tolist() for t in found]
    for logp, advantage, mask, ids, *values in zip(*(f.tolist() for f in fields), *parts, strict=True):
        groups: dict[int, list] = {}
        for lp, a, m, s in zip(logp, advantage, mask, ids, strict=True):
            if m:
                groups.setdefault(s, []).append((lp, a))
        tokens = [pair for group in groups.values() for pair in group]
        total, within, between, states = values
        assert states == len(groups)
        if not tokens:
            assert (total, within, between) == (0, 0, 0)
            continue
        largest = max(abs(lp) for lp, _ in tokens) * max(abs(a) for _, a in tokens)
        bound = (16 * len(tokens) + 56) * 2 * U * largest + 1e-300  # as oracles.centred_product_rounding, twice
        inside = math.fsum(len(g) * oracles.covariance(*zip(*g, strict=True), [1] * len(g)) for g in groups.values())
        assert abs(within - inside / len(tokens)) <= bound
        means = [[math.fsum(x) / len(g) for x in zip(*g, strict=True)] for g in groups.values()]
        outside = oracles.covariance(*zip(*means, strict=True), [len(g) for g in groups.values()])
        assert abs(between - outside) <= bound
        assert abs(total - within - between) <= bound


def test_one_state_has_no_between_and_states_met_once_no_within():
    logp, advantage = (torch.from_numpy(x) for x in np.random.default_rng(0).normal(size=(2, 3, 4)))
    mask = torch.ones(3, 4, dtype=torch.bool)
    one = within_between(logp, advantage, mask, torch.full((3, 4), 7))
    assert one.between == 0 and one.within == pytest.approx(float(one.total), rel=64 * U)
    apart = within_between(logp, advantage, mask, torch.arange(12).view(3, 4))
    assert apart.within == 0 and apart.between == pytest.approx(float(apart.total), rel=64 * U)


# --- the worlds -----------------------------------------------------------------------------------------------------


def entropies_and_collisions_agree(batch, collision):
    """C = Cov(log pi, pi) lies in [0, E[pi |c|]] <= 2 max pi H; and a probability cannot exceed its policy's bounds."""
    mask = batch.mask
    assert (collision[mask] >= -1e-6).all() and (collision[mask] <= 2 * batch.entropy[mask] + 1e-6).all()
    assert (batch.logp[mask] <= 0).all() and torch.isfinite(batch.advantage[mask]).all()
    assert batch.outcome.min() >= 0 and batch.outcome.max() <= 1


def test_bandit_minibatch():
    from sims.selection import bandit_decomposition, bandit_minibatch

    batch, collision = bandit_minibatch(seed=3, rollouts=2, seeds=2)
    assert batch.logp.shape == collision.shape == (2, 32 * 64, 1)
    entropies_and_collisions_agree(batch, collision)
    assert torch.equal(batch.logp, batch.old_logp)
    for replica in range(2):
        for number in (0, 5):  # the pulls of one bandit: one state, a group of its own
            rows = batch.group[replica] == number
            assert rows.sum() == 64
            assert batch.entropy[replica, rows].unique().numel() == 1
            advantage, outcome = batch.advantage[replica, rows, 0], batch.outcome[replica, rows]
            assert advantage.mean().abs() <= 64 * U
            assert 0 < outcome.mean() < 1 and torch.equal(advantage > 0, outcome > 0)
    again, _ = bandit_minibatch(seed=4, rollouts=2, seeds=1)  # replica 1 of the first call
    assert torch.equal(again.logp[0], batch.logp[1])
    parts = bandit_decomposition(seed=3, rollouts=2, seeds=2)
    # GRPO centres over the pulls of a bandit, so nothing is left between bandits; a common baseline leaves something
    assert parts["grpo"].between.abs().max() <= 1e-12
    assert parts["reward"].between.abs().max() > 1e-4
    assert (parts["grpo"].states == 32).all()


def test_cartpole_minibatch():
    from sims.selection import cartpole_minibatch

    batch, collision = cartpole_minibatch(seed=0, rollouts=1, seeds=2)
    assert batch.logp.shape == collision.shape == (2, 128, 1)
    entropies_and_collisions_agree(batch, collision)
    p = batch.logp.exp()
    exact = p * (1 - p) * (p - (1 - p)) * (batch.logp - torch.log1p(-p))  # Cov(log pi, pi) of two actions
    assert (exact - collision).abs().max() <= 1e-6
    # the logits were formed by another matrix shape than at sampling
    assert (batch.logp - batch.old_logp)[batch.mask].abs().max() <= 1e-5


def test_language_model_minibatch():
    from llm.selection import probe_minibatch

    batch, collision = probe_minibatch(seed=0, prompts=6)
    assert batch.logp.shape[0] == 48 and collision.shape == batch.mask.shape
    entropies_and_collisions_agree(batch, collision)
    for group in batch.advantage[:, 0].view(6, 8):
        assert abs(float(group.sum())) <= 1e-4  # float32
    again, _ = probe_minibatch(seed=0, prompts=6)
    assert torch.equal(again.logp, batch.logp)


def test_a_prefix_has_one_id_wherever_it_occurs():
    from llm.selection import prefix_ids

    tokens = torch.tensor([[4, 5, 6], [4, 5, 7], [4, 9, 6], [4, 5, 6]])
    mask = torch.tensor([[1, 1, 1], [1, 1, 0], [1, 1, 1], [1, 1, 1]], dtype=torch.bool)
    ids = prefix_ids(torch.tensor([0, 0, 0, 1]), tokens, mask)
    assert ids[:3, 0].unique().numel() == 1 and ids[3, 0] != ids[0, 0]  # another prompt, another state
    assert ids[0, 1] == ids[1, 1] == ids[2, 1]  # all after "4"
    assert ids[0, 2] != ids[2, 2]  # after "4 5" and after "4 9"
    assert ids[mask].max() < tokens.numel()


def test_language_model_decomposition():
    from llm.selection import decomposition

    parts = decomposition(seed=0, prompts=4, samples=16)
    for part in parts.values():
        assert abs(float(part.total - part.within - part.between)) <= 1e-9
    # all responses of a prompt share its first state, where GRPO's advantage has mean 0 (but for its eps)
    assert abs(float(parts["first token"].between)) <= 1e-5
    assert parts["first token"].states == 4
    assert abs(float(parts["group, by response"].between)) <= 1e-5
    assert parts["group, by response"].states == 4 * 16 / 8  # groups of 8, as in training
    assert parts["prefix"].states > parts["prefix met 8 times"].states >= 4


def test_tables_of_all_worlds(tmp_path):
    import llm.selection
    import sims.selection
    from entropy_theory.decomposition import POINTS
    from entropy_theory.tables import read_csv

    sims.selection.write_tables(tmp_path, seeds=2)
    llm.selection.write_tables(tmp_path, seeds=1, prompts=4)
    tops, points, parts = (
        read_csv(tmp_path / f"{name}.csv") for name in ("top_tokens", "token_points", "decomposition")
    )
    batch, collision = sims.selection.cartpole_minibatch(seeds=2)
    expected = top_tokens(batch, collision, 0.2)
    for name, values in expected.items():
        stored = [float(row[name]) for row in tops if row["world"] == "cartpole" and row["fraction"] == "0.2"]
        assert stored == pytest.approx(values.tolist(), rel=1e-5, abs=1e-6)
    assert len(tops) == 3 * (2 + 2 + 1)
    assert {row["world"] for row in points} == {row["world"] for row in tops} == {"bandit", "cartpole", "llm"}
    for world in ("bandit", "cartpole", "llm"):
        chosen = [row for row in points if row["world"] == world]
        assert 30 < len(chosen) <= POINTS + 2
        assert {row["top"] for row in chosen} == {"0", "1"}
    assert sum(row["world"] == "cartpole" for row in points) == int(batch.mask.sum())  # all of a small minibatch
    assert [row["of"] for row in parts if row["world"] == "bandit"] == ["grpo"] * 2 + ["reward"] * 2
    for row in parts:
        assert float(row["total"]) == pytest.approx(float(row["within"]) + float(row["between"]), rel=2e-5, abs=1e-6)


# --- rows of tables -------------------------------------------------------------------------------------------------


def tokens(count, replicas=1):
    """A batch [replicas, 1, count] of distinct tokens, the last of each replica masked."""
    generator = torch.Generator().manual_seed(1)
    logp, advantage, entropy = torch.randn(3, replicas, 1, count, generator=generator, dtype=F64)
    mask = torch.ones(replicas, 1, count, dtype=torch.bool)
    mask[..., -1] = False
    logp = -logp.abs()
    outcome = torch.zeros(replicas, 1, dtype=F64)
    return Batch(logp, logp, advantage, mask, entropy.abs(), outcome, torch.zeros(replicas, 1, dtype=torch.long))


def test_rows_of_single_tokens_by_loops():
    batch = tokens(11)
    c = torch.full_like(batch.logp, 0.1)
    rows = point_rows(batch, c, {"world": "here"}, fraction=0.2)
    logp, advantage, entropy = (flat(x)[:10] for x in (batch.logp, batch.advantage, batch.entropy))
    score = oracles.centred_product(logp, advantage, [1.0] * 10)
    best = set(sorted(range(10), key=lambda i: -score[i])[:2])
    assert [row["top"] for row in rows] == [1.0] * 2 + [0.0] * 8
    assert len({row["probability"] for row in rows}) == 10
    for row in rows:
        (i,) = [i for i in range(10) if advantage[i] == row["advantage"]]
        assert set(row) == {"world", "probability", "score", "loss", "advantage", "top"} and row["world"] == "here"
        pi = math.exp(logp[i])
        # numbers below 10, a few roundings each
        assert row["probability"] == pytest.approx(pi, rel=1e-15)
        assert row["score"] == pytest.approx(score[i], abs=1e-14)
        assert row["loss"] == pytest.approx(advantage[i] * (pi * (logp[i] + entropy[i]) - 0.1), abs=1e-14)
        assert (row["top"] == 1) == (i in best)


def test_of_many_tokens_every_nth_is_kept():
    count = 3 * POINTS + 1
    batch = tokens(count)
    rows = point_rows(batch, torch.zeros_like(batch.logp), {}, fraction=0.5)
    top = [row for row in rows if row["top"]]
    # half of 3 POINTS tokens, one in three of each half
    assert len(top) == len(rows) - len(top) == POINTS // 2


def test_rows_of_the_top_tokens_say_which_replica_and_how_many_tokens():
    batch = tokens(7, replicas=3)
    c = torch.full_like(batch.logp, 0.1)
    rows = top_rows(batch, c, {"world": "here"})
    fractions = list(dict.fromkeys(row["fraction"] for row in rows))
    assert [(row["fraction"], row["replica"]) for row in rows] == [(f, i) for f in fractions for i in range(3)]
    for row in rows:
        assert (row["world"], row["tokens"]) == ("here", 6)
        for name, value in top_tokens(batch, c, row["fraction"]).items():
            assert row[name] == value[row["replica"]].item()


def test_rows_of_parts_are_named():
    parts = {"state": Parts(*(torch.tensor([i, i + 0.5]) for i in range(len(Parts._fields))))}
    rows = part_rows(parts, {"world": "here"})
    first = {"world": "here", "of": "state"} | {name: float(i) for i, name in enumerate(Parts._fields)}
    second = {"world": "here", "of": "state"} | {name: i + 0.5 for i, name in enumerate(Parts._fields)}
    assert rows == [first, second]
