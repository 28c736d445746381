"""Figure 6: entropy change of single states in one gradient step, predicted with the logit kernel and without."""

from pathlib import Path

import numpy as np

from paper_figs.style import WORLDS, plt, read_csv, save, unique

NAME = "fig06_kernel"
CAPTION = (
    "One step of plain gradient ascent on a real network (float64): measured entropy change of each state against "
    "Lemma 1 fed the logit change that the network's kernel K predicts (left) and that a table of logits would show, "
    "K = I, which is Theorem 1 (right). The step size is such that the largest spread of a state's logit change is "
    "0.05 nats. The line is exact agreement on the left and the least-squares line on the right, where the horizontal "
    "axis has another scale: a table underrates the change, and its correlation with it is small."
)

INKS = {"kernel": "#0072B2", "identity": "#CC3377"}
NETWORKS = {"cartpole": "CartPole, tanh network", "llm": "Tiny Qwen2"}


def draw(data: Path, out: Path) -> Path:
    """Draw from data/kernel.csv into `out`; returns the PNG's path."""
    rows = read_csv(data / "kernel.csv")
    worlds = [world for world in WORLDS if world in unique(rows, "world")]
    figure, axes = plt.subplots(len(worlds), 2, figsize=(6.6, 2.9 * len(worlds)), squeeze=False)
    for line, world in zip(axes, worlds, strict=True):
        chosen = [row for row in rows if row["world"] == world]
        measured = np.array([row["measured"] for row in chosen])
        for axis, name in zip(line, INKS, strict=True):
            predicted = np.array([row[name] for row in chosen])
            axis.plot(predicted, measured, ".", color=INKS[name], markersize=3, alpha=0.6)
            ends = np.array([predicted.min(), predicted.max()])
            slope, offset = np.polyfit(predicted, measured, 1) if name == "identity" else (1.0, 0.0)
            axis.plot(ends, slope * ends + offset, color="#444444", linewidth=0.8)
            axis.set_title(f"{NETWORKS[world]}, {title(name, predicted, measured)}", fontsize=9)
            axis.locator_params(nbins=5)
            axis.ticklabel_format(scilimits=(-2, 2))
            axis.set_xlabel("predicted change (nats)")
        line[0].set_ylabel("measured change (nats)")
    return save(figure, out, NAME)


def title(name: str, predicted: np.ndarray, measured: np.ndarray) -> str:
    """R squared of the prediction as it is; for K = I also its slope and correlation."""
    explained = 1 - ((measured - predicted) ** 2).sum() / ((measured - measured.mean()) ** 2).sum()
    if name == "kernel":
        return f"kernel K\nR² = {explained:.4f}"
    slope, correlation = np.polyfit(predicted, measured, 1)[0], np.corrcoef(predicted, measured)[0, 1]
    return f"K = I (Theorem 1)\nR² = {explained:.2f}, correlation {correlation:.2f}, slope {slope:.0f}"
