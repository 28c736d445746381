"""Figure 7: Lyapunov exponents, dimensions and return against policy entropy."""

from pathlib import Path

import numpy as np
from matplotlib.ticker import FixedLocator

from paper_figs.style import plt, read_csv, save, unique

NAME = "fig07_chaos"
CAPTION = (
    "Is entropy tied to chaos? Largest Lyapunov exponent (per step of the map), dimension and return against mean "
    "policy entropy; faint points are seeds, lines join the means over seeds along the setting that is varied. Top: "
    "the bandit's learning map z + step size × gradient, settled under an entropy bonus (left, symmetric log scale; "
    "PG is the policy gradient, NPG the natural one) and at large step sizes, written beside the points, where it "
    "becomes chaotic (middle); NPG's exponent is log |1 - step size × bonus| whatever the entropy. Bottom: CartPole "
    "closed by a policy, its mean action (left) and the policy itself on common noise (middle), for neighbours 0.01 "
    "apart (filled) and 10⁻⁶ apart (open; the dotted line is the exponent of the upright pole alone). Right: "
    "return as a share of the best along the line, and the participation dimension of CartPole's states (coordinates "
    "scaled to unit variance)."
)

INKS = ("#0072B2", "#E69F00", "#009E73", "#CC3377", "#444444")
PLANT = 0.07644
"""Exponent per step of the upright pole under a force that does not depend on the state (`sims.cartpole_map`)."""

Line = tuple[str, str, str]
"""Map, knob and label of a line."""

SETTLED: tuple[Line, ...] = (
    ("policy gradient", "bonus", "PG, bonus"),
    ("policy gradient", "reward_scale", "PG, reward scale"),
    ("policy gradient", "temperature", "PG, temperature"),
    ("natural gradient", "bonus", "NPG, bonus"),
    ("natural gradient", "reward_scale", "NPG, reward scale"),
)
LARGE = ("policy gradient", "step_size")


def draw(data: Path, out: Path) -> Path:
    """Draw from data/chaos.csv into `out`; returns the PNG's path."""
    rows = read_csv(data / "chaos.csv")
    figure, axes = plt.subplots(2, 3, figsize=(9.6, 6.8))
    draw_bandit(axes[0], rows)
    draw_cartpole(axes[1], axes[0, 2], rows)
    for axis in (*axes[:, 0], *axes[:, 1]):
        axis.axhline(0, color="#444444", linewidth=0.6)
        axis.set_ylabel("largest exponent")
    for axis in axes.flat:
        axis.set_xlabel("entropy (nats)")
    for axis in (axes[0, 0], axes[0, 2]):
        axis.legend(fontsize=7, loc="upper center", bbox_to_anchor=(0.5, -0.2), ncols=2, columnspacing=1)
    return save(figure, out, NAME)


def draw_bandit(axes, rows: list[dict]) -> None:
    """Settled maps, large steps, and the bandit's lines of the return."""
    settled, large, earned = axes
    for ink, (name, knob, label) in zip(INKS, SETTLED, strict=True):
        draw_line(settled, rows, name, knob, "exponent", color=ink, label=label)
    settled.set_yscale("symlog", linthresh=1e-4)
    settled.yaxis.set_major_locator(FixedLocator([0, -1e-4, -1e-3, -1e-2, -1e-1, -1]))
    settled.set_title("Bandit, settled")
    draw_line(large, rows, "policy gradient", "step_size", "exponent", color=INKS[0])
    for value in (30.0, 60.0, 80.0, 100.0, 150.0):
        points = [row for row in rows if (row["map"], row["knob"], row["value"]) == (*LARGE, value)]
        if points:
            place = tuple(np.mean([row[column] for row in points]) for column in ("entropy", "exponent"))
            large.annotate(f"{value:g}", place, textcoords="offset points", xytext=(5, 5), fontsize=7)
    large.set_title("Bandit, step sizes 1 to 300")
    draw_line(earned, rows, "policy gradient", "updates", "return", color=INKS[3], label="bandit, training")
    draw_line(earned, rows, *LARGE, "return", color=INKS[4], label="bandit, step size")


def draw_cartpole(axes, earned, rows: list[dict]) -> None:
    """Both closed loops and the states' dimension, and CartPole's lines of the return."""
    smooth, noisy, states = axes
    knobs = [knob for knob in unique(rows, "knob") if knob == "rollouts" or knob.startswith("temperature after")]
    apart, close = (f"common noise, {length} apart" for length in ("0.01", "1e-06"))
    for ink, knob in zip(INKS, knobs, strict=False):
        label = "training" if knob == "rollouts" else knob.replace("temperature after", "T after")
        draw_line(smooth, rows, "mean action", knob, "exponent", color=ink, label=label)
        draw_line(noisy, rows, apart, knob, "exponent", color=ink)
        draw_line(noisy, rows, close, knob, "exponent", color=ink, fill=False)
        draw_line(states, rows, apart, knob, "participation_unit", color=ink)
        draw_line(earned, rows, apart, knob, "return", color=ink, label=f"CartPole, {label}")
    noisy.axhline(PLANT, color="#444444", linewidth=0.8, linestyle=":")
    smooth.legend(fontsize=7)
    smooth.set_title("CartPole, mean action")
    noisy.set_title("CartPole, common noise")
    states.set(title="CartPole, states", ylabel="participation dimension", ylim=(1, 4))
    earned.set(title="Return", ylabel="share of the best", ylim=(-0.05, 1.08))


def draw_line(axis, rows: list[dict], name: str, knob: str, column: str, fill: bool = True, **look) -> None:
    """Means over seeds of `column` against entropy along a knob, and the seeds' own points."""
    chosen = [row for row in rows if row["map"] == name and row["knob"] == knob]
    values = unique(chosen, "value")
    x, y = (np.array([[row[c] for row in chosen if row["value"] == v] for v in values]) for c in ("entropy", column))
    if column == "return":
        y = y / y.max(axis=0)
    ink = look["color"]
    axis.plot(x, y, ".", color=ink, markersize=2, alpha=0.25)
    axis.plot(x.mean(1), y.mean(1), "-o", markersize=4, linewidth=1, markerfacecolor=ink if fill else "white", **look)
