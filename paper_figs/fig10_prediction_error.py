"""Figure 10: error of Theorems 1 and 2 for one update against the step size."""

from pathlib import Path

import numpy as np

from paper_figs.style import plt, power_law, read_csv, save

NAME = "fig10_prediction_error"
CAPTION = (
    "Distance of the predicted from the measured entropy change of one update of a bandit (10 arms), against the step "
    "size; interquartile mean and 95 % bootstrap interval over 100 bandits. In brackets the 95 % t interval of the "
    "least-squares slope over step sizes up to 0.1 (lines). The error of a first-order prediction has slope 2, that of "
    "one that misses part of the first order slope 1: Theorem 1 is about the policy gradient, Theorem 2 about the "
    "natural one. On sampled pulls Theorem 1 with the expected advantage misses the noise of 64 pulls; with the "
    "advantages of the pulls that made the update it has slope 2. Grey: size of the mean measured change. At the first "
    "update of a rollout every ratio is 1 and nothing is clipped; what bends the lines at large steps is that entropy "
    "stays between 0 and log 10 while the prediction grows."
)

FITTED = 0.1
"""Largest step size of the fit: up to here the logits change by a tenth of a nat at most."""

THEOREM_1 = ("theorem_1_error", "Theorem 1", "#009E73")
THEOREM_2 = ("theorem_2_error", "Theorem 2", "#CC3377")
OWN = ("minibatch_theorem_1_error", "its own advantages", "#0072B2")
PANELS = {
    "Policy gradient, exact": (("exact", "False"), (THEOREM_1, THEOREM_2)),
    "Natural gradient, exact": (("exact", "True"), (THEOREM_2, THEOREM_1)),
    "Policy gradient, 64 pulls": (("sampled", "False"), (OWN, (THEOREM_1[0], "expected advantage", THEOREM_1[2]))),
}
"""Title: (gradient, whether natural), and (column, label, colour) of its lines, the exact theorem first."""


def draw(data: Path, out: Path) -> Path:
    """Draw from data/prediction_error_summary.csv into `out`; returns the PNG's path."""
    rows = read_csv(data / "prediction_error_summary.csv")
    figure, axes = plt.subplots(1, len(PANELS), figsize=(9.9, 3.5), sharey=True)
    for axis, (title, (which, lines)) in zip(axes, PANELS.items(), strict=True):
        chosen = sorted((row for row in rows if (row["gradient"], row["natural"]) == which), key=by_step_size)
        step_size = np.array([row["step_size"] for row in chosen])
        measured = [abs(row["measured_entropy_change_iqm"]) for row in chosen]
        axis.plot(step_size, measured, color="#999999", linewidth=1, label="measured change")
        for column, label, ink in lines:
            draw_error(axis, step_size, chosen, column, label, ink)
        axis.set(xscale="log", yscale="log", xlabel="step size", title=title)
        axis.legend(fontsize=7, loc="upper left")
    axes[0].set(ylabel="|measured - predicted| (nats)", ylim=(3e-10, 1e4))
    return save(figure, out, NAME)


def by_step_size(row: dict) -> float:
    """The order of a panel's rows."""
    return row["step_size"]


def draw_error(axis, step_size: np.ndarray, rows: list[dict], column: str, label: str, ink: str) -> None:
    """One prediction's error with its interval, and the power law of its small steps."""
    error, low, high = (np.array([row[f"{column}_iqm{end}"] for row in rows]) for end in ("", "_low", "_high"))
    small = step_size <= FITTED
    law = power_law(step_size[small], error[small])
    text = f"{label}: slope {law.slope:.2f} [{law.low:.2f}, {law.high:.2f}]"
    axis.errorbar(
        step_size, error, (error - low, high - error), fmt="o", color=ink, markersize=4, elinewidth=1, label=text
    )
    axis.plot(step_size, law.at(step_size), color=ink, linewidth=0.8, alpha=0.7)
