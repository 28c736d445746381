"""The table of findings: yes and no need the whole interval, anything else is undecided."""

import numpy as np
import pytest

from entropy_theory.cli.data import finding_cells, kept
from entropy_theory.cli.results import Curves, final_row


def curves(control: str, entropy: np.ndarray, reward: np.ndarray) -> Curves:
    steps = np.arange(1, entropy.shape[1] + 1)
    change = np.random.default_rng(0).normal(size=entropy.shape)
    columns = {"entropy": entropy, "reward": reward, "measured_entropy_change": change, "predicted_first_order": change}
    return Curves("llm", control, steps, columns)


def falling(finals) -> np.ndarray:
    """Ten steps from 1 nat to the given final entropies, one row per seed."""
    return np.array([[1.0] * 9 + [value] for value in finals])


@pytest.mark.parametrize(
    ("none", "kept_entropy", "loss", "expected"),
    [
        ([0.10, 0.11, 0.10], [0.30, 0.32, 0.31], [0.0, 0.001, 0.0], ["yes", "yes", "yes", "yes"]),
        ([0.30, 0.31, 0.30], [0.30, 0.32, 0.31], [0.10, 0.11, 0.10], ["no", "yes", "no", "no"]),
        ([0.05, 0.20, 0.10], [0.10, 0.50, 0.25], [0.0, 0.05, 0.02], ["undecided", "yes", "undecided", "undecided"]),
    ],
)
def test_verdicts(none, kept_entropy, loss, expected):
    reward = np.ones((3, 10))
    base = curves("none", falling(none), reward)
    other = curves("kl_cov", falling(kept_entropy), reward - np.array(loss)[:, None])
    lines = finding_cells([base, other], {"llm": base})[1:]
    assert [line[-1] for line in lines] == expected


def test_ratios_are_paired_by_seed():
    """Seeds that differ from each other by a factor 100, and from none by exactly 3, give 3 without doubt."""
    base = curves("none", falling([0.001, 0.1, 0.01]), np.ones((3, 10)))
    other = curves("kl_cov", falling([0.003, 0.3, 0.03]), np.ones((3, 10)))
    row = final_row(other, base)
    for name in ("entropy_ratio", "entropy_ratio_low", "entropy_ratio_high"):
        assert row[name] == pytest.approx(3, rel=1e-9)


def test_kept_steps_hold_both_ends():
    assert kept(1000, 7).tolist() == [0, 166, 333, 500, 666, 832, 999]
    assert kept(3, 100).tolist() == [0, 1, 2]
