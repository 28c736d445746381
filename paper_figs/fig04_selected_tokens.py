"""Figure 4: which tokens Clip-Cov and KL-Cov single out: the share of them with negative advantage."""

from pathlib import Path

from paper_figs.style import STEPS, WORLDS, color, draw_band, plt, read_csv, save, unique

NAME = "fig04_selected_tokens"
CAPTION = (
    "Share of the tokens singled out by the covariance score that have a negative advantage, over training, at each "
    "world's fraction (KL-Cov's are large: a tenth to a third of all tokens). The methods are motivated by confident, "
    "rewarded tokens (share near 0); a share near 1 means that they act on rare, punished ones. Lines are means, bands "
    "95 % t intervals over seeds."
)


def draw(data: Path, out: Path) -> Path:
    """Draw from data/selection.csv into `out`; returns the PNG's path."""
    rows = read_csv(data / "selection.csv")
    worlds = unique(rows, "world")
    figure, axes = plt.subplots(1, len(worlds), figsize=(3.2 * len(worlds), 3.1), squeeze=False, sharey=True)
    for axis, world in zip(axes[0], worlds, strict=True):
        chosen = [row for row in rows if row["world"] == world]
        for control in unique(chosen, "control"):
            curve = [row for row in chosen if row["control"] == control]
            draw_band(axis, curve, "negative_share", color=color(control), label=control)
        axis.axhline(0.5, color="#444444", linewidth=0.6, linestyle=":")
        axis.set(title=WORLDS[world], xlabel=STEPS[world], ylim=(-0.03, 1.03))
        axis.legend()
    axes[0, 0].set_ylabel("share with advantage < 0")
    return save(figure, out, NAME)
