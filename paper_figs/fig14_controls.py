"""Every control in the three worlds: final performance and final entropy, each beside the run without a control."""

from pathlib import Path

from matplotlib.ticker import LogLocator, NullFormatter

from paper_figs.style import RETURNS, WORLDS, plt, read_csv, save, unique

CAPTION = (
    "Every entropy control, tuned alike and judged on other seeds: interquartile means of the final performance and of "
    "the final entropy with 95 % intervals. The line is the run without a control, its band that run's interval."
)


def draw(data: Path, out: Path) -> Path:
    """Draw comparison.csv; returns the PNG's path."""
    rows = read_csv(data / "comparison.csv")
    sweeps = unique(rows, "sweep")
    labels = unique(rows, "label")[::-1]
    place = {label: i for i, label in enumerate(labels)}
    figure, axes = plt.subplots(
        1, 2 * len(sweeps), figsize=(2.3 * 2 * len(sweeps) + 1.2, 0.24 * len(labels) + 1.6), sharey=True, squeeze=False
    )
    for i, sweep in enumerate(sweeps):
        of_world = [row for row in rows if row["sweep"] == sweep]
        world = of_world[0]["world"]
        for axis, name, text in (
            (axes[0, 2 * i], "final_return", RETURNS[world]),
            (axes[0, 2 * i + 1], "final_entropy", "entropy (nats)"),
        ):
            _panel(axis, of_world, name, place)
            axis.set_xlabel(f"final {text}", fontsize=8)
            axis.tick_params(axis="x", labelsize=7)
        axes[0, 2 * i].set_title(WORLDS[world], loc="left", fontsize=9)
        axes[0, 2 * i + 1].set_xscale("log")
        axes[0, 2 * i + 1].xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
        axes[0, 2 * i + 1].xaxis.set_major_formatter("{x:g}")
        axes[0, 2 * i + 1].xaxis.set_minor_formatter(NullFormatter())
    axes[0, 0].set_yticks(range(len(labels)), labels, fontsize=7.5)
    return save(figure, out, "fig14_controls")


def _panel(axis, rows, name: str, place: dict[str, int]) -> None:
    for row in rows:
        if row["control"] == "none":
            axis.axvspan(row[f"{name}_low"], row[f"{name}_high"], color="0.9", lw=0)
            axis.axvline(row[name], color="0.5", lw=0.8)
        y = place[row["label"]]
        axis.plot([row[f"{name}_low"], row[f"{name}_high"]], [y, y], color="C0", lw=1.6, solid_capstyle="butt")
        axis.plot(row[name], y, "o", color="C0", ms=3.5)
    axis.set_ylim(-0.7, len(place) - 0.3)
    axis.grid(axis="y", lw=0.3, color="0.85")
