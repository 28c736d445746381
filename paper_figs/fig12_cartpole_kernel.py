"""Figure 12: how far the network's kernel moves Theorem 1 in CartPole, along training and by setting."""

from pathlib import Path

import numpy as np
from scipy import stats

from paper_figs.style import plt, read_csv, save, unique

NAME = "fig12_cartpole_kernel"
CAPTION = (
    "Theorem 1 on minibatches of real training runs in CartPole, per unit of step size: as if the logits were a table "
    "(kernel I), and through the network's own logit kernel. Left: one against the other in PPO's first updates of a "
    "rollout, all seeds, by rollout; on the line the kernel changes nothing. Middle: correlation, over a run's "
    "measured updates, of each rate (and of Theorem 2's) with the measured entropy change of the minibatch's states, "
    "and of the change predicted from the weights' actual change with the measured one on probe states; what lies "
    "between is what the optimizer makes of the gradient. Right: median size of the kernel's rate over that of the "
    "table's. Points are means over 10 seeds, bars 95 % t intervals."
)

MEASURED, TABLE, KERNEL = (
    "minibatch_entropy_change",
    "theorem_1_per_step_size",
    "theorem_1_through_kernel_per_step_size",
)
PAIRS = {
    "Theorem 1, kernel I": (TABLE, MEASURED, "#CC3377"),
    "Theorem 1, network's kernel": (KERNEL, MEASURED, "#0072B2"),
    "Theorem 2": ("theorem_2_per_step_size", MEASURED, "#009E73"),
    "weights' actual change": ("predicted_through_kernel", "measured_entropy_change", "#444444"),
}
"""Predicted, measured and colour of each correlation."""

ALGORITHMS = {"ppo": "PPO", "npg": "NPG", "grpo": "GRPO", "reinforce": "REINFORCE"}
BASE = {"hidden": 64.0, "init": "orthogonal", "algorithm": "ppo"}


def draw(data: Path, out: Path) -> Path:
    """Draw from data/cartpole_kernel_seeds.csv into `out`; returns the PNG's path."""
    rows = read_csv(data / "cartpole_kernel_seeds.csv")
    figure, axes = plt.subplots(1, 3, figsize=(11.2, 3.5), width_ratios=(3.2, 4, 2.2))
    draw_rates(figure, axes[0], [row for row in rows if BASE.items() <= row.items()])
    runs = unique(rows, "index")
    for place, index in enumerate(runs):
        run = [row for row in rows if row["index"] == index]
        for shift, (predicted, measured, ink) in zip((-0.24, -0.08, 0.08, 0.24), PAIRS.values(), strict=True):
            draw_interval(axes[1], each_seed(run, predicted, measured, correlation), place + shift, ink)
        draw_interval(axes[2], each_seed(run, KERNEL, TABLE, size_ratio), place, "#444444")
    for label, (_, _, ink) in PAIRS.items():
        axes[1].plot([], [], "o", color=ink, markersize=4, label=label)
    axes[1].legend(fontsize=7, loc="lower center", bbox_to_anchor=(0.45, 1), ncols=2, columnspacing=0.8)
    axes[1].axvline(0, color="#444444", linewidth=0.6)
    axes[1].set(xlabel="correlation with the measured entropy change", xlim=(-0.35, 1.05))
    axes[2].axvline(1, color="#444444", linewidth=0.6)
    axes[2].set(xlabel="|kernel's rate| / |table's|", xscale="log")
    axes[2].xaxis.set_minor_formatter("")
    axes[2].set_xticks([1, 2, 5, 10], ["1", "2", "5", "10"])
    axes[1].set_yticks(range(len(runs)), [label_of(rows, index) for index in runs])
    axes[2].set_yticks(range(len(runs)), [])
    for axis in axes[1:]:
        axis.set_ylim(len(runs) - 0.5, -0.5)
    return save(figure, out, NAME)


def draw_rates(figure, axis, run: list[dict]) -> None:
    """Both rates of every update, in the colour of its rollout."""
    x, y, step = (np.array([row[name] for row in run]) for name in (TABLE, KERNEL, "step"))
    points = axis.scatter(x, y, c=step, s=6, linewidths=0)
    figure.colorbar(points, ax=axis, label="rollout")
    ends = np.array([x.min(), x.max()])
    axis.plot(ends, ends, color="#444444", linewidth=0.8)
    alike = np.mean(each_seed(run, KERNEL, TABLE, correlation))
    axis.set_title(f"PPO, 64 units: correlation {alike:.2f}", fontsize=9)
    axis.set(xlabel="Theorem 1, kernel I (nats / step size)", ylabel="network's kernel (nats / step size)")


def label_of(rows: list[dict], index: float) -> str:
    """How a run differs from the base."""
    row = next(row for row in rows if row["index"] == index)
    name = ALGORITHMS[row["algorithm"]]
    if row["algorithm"] != BASE["algorithm"]:
        return name
    return f"{name}, {row['hidden']:g} units" + (", default init" if row["init"] != BASE["init"] else "")


def each_seed(run: list[dict], first: str, second: str, statistic) -> list[float]:
    """A statistic of two columns, for each seed."""
    found = []
    for seed in unique(run, "seed"):
        pairs = np.array([(row[first], row[second]) for row in run if row["seed"] == seed])
        found.append(statistic(*pairs[np.isfinite(pairs).all(1)].T))
    return found


def correlation(predicted: np.ndarray, measured: np.ndarray) -> float:
    """Pearson's."""
    return float(np.corrcoef(predicted, measured)[0, 1])


def size_ratio(first: np.ndarray, second: np.ndarray) -> float:
    """Median size of one over that of the other, over updates that have a gradient (not all advantages 0)."""
    moved = second != 0
    return float(np.median(np.abs(first[moved])) / np.median(np.abs(second[moved])))


def draw_interval(axis, values: list[float], place: float, ink: str) -> None:
    """Mean over seeds and its 95 % t interval at a height."""
    mean, margin = np.mean(values), stats.t.ppf(0.975, len(values) - 1) * stats.sem(values)
    axis.plot([mean - margin, mean + margin], [place, place], color=ink, linewidth=2, alpha=0.5)
    axis.plot(mean, place, "o", color=ink, markersize=4)
