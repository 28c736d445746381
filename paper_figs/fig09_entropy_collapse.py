"""Figure 9: how fast entropy falls in the bandit, by step size, arms, prior and sign of the advantages."""

from pathlib import Path

import numpy as np

from paper_figs.style import plt, power_law, read_csv, save, shades, unique

NAME = "fig09_entropy_collapse"
CAPTION = (
    "Entropy of bandits without control as a share of its start (top, sampled gradients, log scale) and the rollouts "
    "until it is halved (bottom; exponents by least squares, of the step size up to 0.2 where PPO's clip acts). Step "
    "size: over step size × rollouts the curves of small steps fall onto each other, as Theorem 1 says; beyond, the "
    "clip sets the pace, and without it half-life × step size stays constant. Sign of the advantages: rewards minus a "
    "baseline, 4 pulls a rollout, from no negative advantage (0) to no positive one (1); the expected gradient is the "
    "same throughout. Dashed, and open below: without the clip. Dotted: GRPO. Means over seeds, each with 8 bandits of "
    "its own; bands and bars are 95 % bootstrap intervals."
)

BASE = {
    "gradient": "sampled",
    "step_size": 0.5,
    "arms": 10.0,
    "prior_scale": 1.0,
    "samples": 64.0,
    "advantage": "grpo",
    "clip_high": 0.2,
}
"""What the runs of a panel share, but for what is varied in it."""

UNCLIPPED = 1e9
"""The clip distance of runs without clip."""

SMALL_STEPS = 0.2
"""Largest step size of the fit of the exponent where there is a clip: beyond it the clip acts."""

PANELS = {"step_size": "Step size", "arms": "Arms K", "prior_scale": "Prior (std of the logits, nats)"}
INK = "#444444"
CLIPPED_INK, UNCLIPPED_INK = "#0072B2", "#CC3377"


def draw(data: Path, out: Path) -> Path:
    """Draw from data/entropy_collapse_curves.csv into `out`; returns the PNG's path."""
    rows = read_csv(data / "entropy_collapse_curves.csv")
    figure, axes = plt.subplots(2, 4, figsize=(11.2, 5.4))
    for (above, below), (axis_name, title) in zip(axes.T[:3], PANELS.items(), strict=True):
        sampled, exact = (panel(rows, axis_name, gradient=gradient) for gradient in ("sampled", "exact"))
        draw_curves(above, sampled, axis_name)
        draw_half_lives(below, sampled, axis_name, "sampled", fill=True)
        draw_half_lives(below, exact, axis_name, "exact", fill=False)
        above.set_title(title, fontsize=10)
        below.set_xlabel(title[0].lower() + title[1:] if axis_name != "arms" else title)
    draw_half_lives(axes[1, 0], panel(rows, "step_size", clip_high=UNCLIPPED), "step_size", "no clip", fill=True)
    axes[0, 0].set(xlabel="step size × rollouts", xscale="log", xlim=(0.3, 300))
    draw_signs(axes[:, 3], rows)
    for axis in axes[0]:
        axis.set(yscale="log", ylim=(0.012, 1.3))
        axis.yaxis.set_major_formatter("{x:g}")
        axis.axhline(0.5, color=INK, linewidth=0.6, linestyle=":")
    for axis in axes[1]:
        axis.set(yscale="log", ylim=(0.4, 900) if axis is axes[1, 0] else (5, 200))
        axis.yaxis.set_major_formatter("{x:g}")
    axes[0, 0].set_ylabel("entropy / entropy at the start")
    axes[1, 0].set_ylabel("half-life of entropy (rollouts)")
    return save(figure, out, NAME)


def panel(rows: list[dict], varied: str, **others) -> list[dict]:
    """Rows of the runs that differ from the base in one thing and in `others` only, in the order of its values."""
    same = {key: value for key, value in (BASE | others).items() if key != varied}
    chosen = [row for row in rows if same.items() <= row.items()]
    return sorted(chosen, key=lambda row: (row[varied], row["step"]))


def draw_curves(axis, rows: list[dict], varied: str, linestyle: str = "-") -> None:
    """Entropy as a share of its start, a shade for each value of what varies."""
    for value, ink in shades(unique(rows, varied)):
        curve = [row for row in rows if row[varied] == value]
        start = curve[0]["entropy"]
        time = np.array([row["step"] - 1 for row in curve]) * (value if varied == "step_size" else 1)
        low, middle, high = (
            np.array([row[name] for row in curve]) / start for name in ("entropy_low", "entropy", "entropy_high")
        )
        later = time > 0 if varied == "step_size" else time >= 0
        label = f"{value:g}" if linestyle == "-" else None
        axis.plot(time[later], middle[later], color=ink, linestyle=linestyle, label=label)
        if linestyle == "-":
            axis.fill_between(time[later], low[later], high[later], color=ink, alpha=0.15, linewidth=0)
    axis.set_xlabel("rollout")
    axis.legend(fontsize=7, loc="lower left", ncols=2, columnspacing=0.8, handlelength=1.2)


def draw_half_lives(axis, rows: list[dict], varied: str, name: str, fill: bool) -> None:
    """Half-lives with their intervals, and the exponent of their law where both scales are logarithmic."""
    values = np.array(unique(rows, varied))
    lives = np.array([half_life([row for row in rows if row[varied] == value]) for value in values])
    ink = CLIPPED_INK if rows[0]["clip_high"] < UNCLIPPED else UNCLIPPED_INK
    label = name
    if varied in ("step_size", "arms"):
        axis.set_xscale("log")
        fitted = (values <= SMALL_STEPS) | (varied == "arms") | (ink == UNCLIPPED_INK)
        law = power_law(values[fitted], lives[fitted, 1])
        label = f"{name}: exponent {law.slope:.2f}"
        axis.plot(values[fitted], law.at(values[fitted]), color=ink, linewidth=0.8, linestyle="-" if fill else "--")
    bars = np.abs(lives[:, [0, 2]] - lives[:, [1]]).T
    look = {"markersize": 5, "mfc": ink if fill else "white", "elinewidth": 1}
    axis.errorbar(values, lives[:, 1], bars, fmt="o", color=ink, label=label, **look)
    axis.legend(fontsize=7)


def half_life(curve: list[dict]) -> tuple[float, float, float]:
    """Rollouts until a curve's lower end, mean and upper end are half of the mean's start; NaN if they never are."""
    step = np.array([row["step"] - 1 for row in curve])
    half = np.log(curve[0]["entropy"] / 2)
    found = []
    for name in ("entropy_low", "entropy", "entropy_high"):
        height = np.log([row[name] for row in curve])
        below = np.flatnonzero(height <= half)
        if not len(below):
            found.append(float("nan"))
            continue
        pair = slice(max(below[0] - 1, 0), below[0] + 1)
        found.append(float(np.interp(-half, -height[pair], step[pair])))
    return tuple(found)


def draw_signs(axes, rows: list[dict]) -> None:
    """The sign of the advantages, with PPO's clip and without, beside GRPO."""
    above, below = axes
    few = [row for row in rows if row["samples"] == 4]
    signed = [row for row in few if row["advantage"] == "reward"]
    for clipped, linestyle in ((True, "-"), (False, "--")):
        chosen = [row for row in signed if (row["clip_high"] < UNCLIPPED) == clipped]
        draw_curves(above, chosen, "baseline", linestyle)
        draw_half_lives(below, chosen, "baseline", "with PPO's clip" if clipped else "without", fill=clipped)
    grpo = [row for row in few if row["advantage"] == "grpo"]
    start = grpo[0]["entropy"]
    above.plot([row["step"] - 1 for row in grpo], [row["entropy"] / start for row in grpo], ":", color=INK)
    below.axhline(half_life(grpo)[1], color=INK, linestyle=":", linewidth=1.2, label="GRPO")
    below.legend(fontsize=7)
    above.set_title("Baseline (sign of the advantages)", fontsize=10)
    below.set_xlabel("baseline (0: all A ≥ 0, 1: all A ≤ 0)")
