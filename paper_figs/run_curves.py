"""The figure of a single command: entropy and return of one run, every seed and their mean."""

from pathlib import Path

from paper_figs.style import RETURNS, STEPS, WORLDS, color, plt, save


def draw(curves, out: Path) -> Path:
    """Draw `curves` (steps [T] and columns [seeds, T]) into `out`/curves.png and .pdf; returns the PNG's path."""
    figure, axes = plt.subplots(1, 2, figsize=(8, 3))
    ink = color(curves.control) or "C0"
    for axis, name, label in zip(axes, ("entropy", "return"), ("entropy (nats)", RETURNS[curves.world]), strict=True):
        values = curves.column(name)
        if len(values) > 1:
            axis.plot(curves.steps, values.T, color=ink, alpha=0.25, linewidth=0.7)
        axis.plot(curves.steps, values.mean(0), color=ink)
        axis.set(xlabel=STEPS[curves.world], ylabel=label)
    axes[0].set_ylim(bottom=0)
    count = len(curves.column("entropy"))
    figure.suptitle(f"{WORLDS[curves.world]}, control {curves.control}: {count} seed{'s' * (count > 1)} and their mean")
    return save(figure, out, "curves")
