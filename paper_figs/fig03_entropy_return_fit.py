"""Figure 3: return against entropy on the uncontrolled runs, with the fit R = -a exp(H) + b."""

from pathlib import Path

import numpy as np

from paper_figs.style import RETURNS, WORLDS, plt, read_csv, save, unique

NAME = "fig03_entropy_return_fit"
CAPTION = (
    "Return against entropy along the runs without control (a colour per seed, up to five), and the law "
    "R = -a exp(H) + b with the mean coefficients over all seeds. The title gives the ceiling b - a at H = 0 with its "
    "95 % t interval over seeds."
)


def draw(data: Path, out: Path) -> Path:
    """Draw from data/fit_points.csv and data/fit.csv into `out`; returns the PNG's path."""
    points, fits = read_csv(data / "fit_points.csv"), read_csv(data / "fit.csv")
    worlds = unique(points, "world")
    figure, axes = plt.subplots(1, len(worlds), figsize=(3.2 * len(worlds), 3.1), squeeze=False)
    for axis, world in zip(axes[0], worlds, strict=True):
        chosen = [row for row in points if row["world"] == world]
        for seed in unique(chosen, "seed"):
            runs = [row for row in chosen if row["seed"] == seed]
            axis.plot([r["entropy"] for r in runs], [r["return"] for r in runs], ".", markersize=4, alpha=0.6)
        fit = next(row for row in fits if row["world"] == world)
        entropy = np.linspace(0, max(row["entropy"] for row in chosen), 100)
        axis.plot(entropy, fit["b"] - fit["a"] * np.exp(entropy), color="#444444")
        ceiling = f"{fit['ceiling']:.3g} [{fit['ceiling_low']:.3g}, {fit['ceiling_high']:.3g}]"
        axis.set_title(f"{WORLDS[world]}\nb - a = {ceiling}, R² = {fit['r_squared']:.2f}", fontsize=9)
        axis.set(xlabel="entropy (nats)", ylabel=RETURNS[world])
    return save(figure, out, NAME)
