"""Figure 1: entropy and return of every control in every world, mean and 95 % interval over seeds."""

from pathlib import Path

from matplotlib.ticker import LogLocator

from paper_figs.style import RETURNS, STEPS, WORLDS, color, draw_band, plt, read_csv, save, unique

NAME = "fig01_entropy_and_return"
CAPTION = (
    "Policy entropy (top, log scale) and what the policy earns (bottom) in the three worlds under each control. "
    "Lines are means, bands 95 % t intervals over seeds. Every curve comes from the same loop and the same loss; "
    "only the control's edit of the objective differs."
)


def draw(data: Path, out: Path) -> Path:
    """Draw from data/curves.csv into `out`; returns the PNG's path."""
    rows = read_csv(data / "curves.csv")
    worlds = unique(rows, "world")
    figure, axes = plt.subplots(2, len(worlds), figsize=(3.2 * len(worlds), 5), squeeze=False, sharex="col")
    for column, world in enumerate(worlds):
        chosen = [row for row in rows if row["world"] == world]
        for control in unique(chosen, "control"):
            curve = [row for row in chosen if row["control"] == control]
            for axis, name in zip(axes[:, column], ("entropy", "return"), strict=True):
                draw_band(axis, curve, name, color=color(control), label=control)
        entropies = [row["entropy"] for row in chosen]
        axes[0, column].set(title=WORLDS[world], yscale="log", ylim=(min(entropies) / 1.3, max(entropies) * 1.3))
        axes[0, column].yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes[0, column].yaxis.set_major_formatter("{x:g}")
        axes[0, column].yaxis.set_minor_formatter("")
        returns = [row["return"] for row in chosen]
        margin = 0.05 * (max(returns) - min(returns))
        axes[1, column].set(xlabel=STEPS[world], ylabel=RETURNS[world])
        axes[1, column].set_ylim(min(returns) - margin, max(returns) + margin)
    axes[0, 0].set_ylabel("entropy (nats, log scale)")
    handles, labels = axes[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(labels))
    return save(figure, out, NAME)
