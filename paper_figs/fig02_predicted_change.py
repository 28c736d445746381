"""Figure 2: measured entropy change of single updates against Lemma 1 and Theorems 1-2."""

from pathlib import Path

import numpy as np

from paper_figs.style import WORLDS, plt, read_csv, save, unique

NAME = "fig02_predicted_change"
CAPTION = (
    "Entropy change of single updates (no control). Top: on fixed probe states, Lemma 1 to first and second order "
    "from the measured logit change; the diagonal is exact agreement. Bottom: on the states of the minibatch that "
    "made the update, Theorems 1 and 2 from its sampled advantages; Adam on a network has no tabular step size, "
    "so each is scaled by the one step size that fits best (R² of that fit in the legend). What is left is the "
    "theorems' tabular assumption (a network shares weights between states) and Adam's momentum."
)

LEMMA = (("predicted_first_order", "first order", "#0072B2"), ("predicted_second_order", "second order", "#E69F00"))
THEOREMS = (("theorem_1_per_step_size", "Theorem 1", "#009E73"), ("theorem_2_per_step_size", "Theorem 2", "#CC3377"))


def draw(data: Path, out: Path) -> Path:
    """Draw from data/change.csv into `out`; returns the PNG's path."""
    rows = read_csv(data / "change.csv")
    worlds = unique(rows, "world")
    figure, axes = plt.subplots(2, len(worlds), figsize=(3.2 * len(worlds), 5.6), squeeze=False)
    for column, world in enumerate(worlds):
        chosen = [row for row in rows if row["world"] == world]
        for axis, family, where in zip(axes[:, column], (LEMMA, THEOREMS), ("measured", "minibatch"), strict=True):
            measured = np.array([row[f"{where}_entropy_change"] for row in chosen])
            for name, label, ink in family:
                predicted = np.array([row[name] for row in chosen])
                good = np.isfinite(predicted) & np.isfinite(measured)
                if family is THEOREMS:
                    scale, explained = best_step_size(predicted[good], measured[good])
                    predicted, label = scale * predicted, f"{label} (R² = {explained:.2f})"
                axis.plot(predicted[good], measured[good], ".", color=ink, markersize=3, alpha=0.6, label=label)
            low, high = measured[np.isfinite(measured)].min(), measured[np.isfinite(measured)].max()
            axis.plot([low, high], [low, high], color="#444444", linewidth=0.8)
            axis.legend(markerscale=2, fontsize=8)
            axis.set_xlabel("predicted change (nats)")
            axis.ticklabel_format(scilimits=(-2, 2))
        axes[0, column].set_title(WORLDS[world])
    for axis in axes[:, 0]:
        axis.set_ylabel("measured change (nats)")
    return save(figure, out, NAME)


def best_step_size(predicted: np.ndarray, measured: np.ndarray) -> tuple[float, float]:
    """Least-squares scale through the origin and the share of the variance of `measured` it explains."""
    power = predicted @ predicted
    scale = float(predicted @ measured / power) if power > 0 else 0.0
    residual = measured - scale * predicted
    return scale, float(1 - residual @ residual / ((measured - measured.mean()) ** 2).sum())
