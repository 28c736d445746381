"""The entropy of the language model under every control, beside the run without one."""

from pathlib import Path

from paper_figs.style import STEPS, WORLDS, draw_band, plt, read_csv, save, unique

CAPTION = (
    "Entropy of the tiny language model under every control, tuned alike, on other seeds: geometric means with 95 % "
    "intervals. Grey: the run without a control, whose candidates were learning rates."
)

WIDE = 6
"""Panels in a row."""


def draw(data: Path, out: Path) -> Path:
    """Draw the language model's sweep of comparison_entropy.csv, the last one if it is not there; the PNG's path."""
    rows = read_csv(data / "comparison_entropy.csv")
    shown = next((row for row in rows if row["world"] == "llm"), rows[-1])
    rows = [row for row in rows if row["sweep"] == shown["sweep"]]
    plain = [row for row in rows if row["control"] == "none"]
    labels = [label for label in unique(rows, "label") if label != "none"] or ["none"]
    high = -(-len(labels) // WIDE)
    wide = min(WIDE, len(labels))
    figure, axes = plt.subplots(
        high, wide, figsize=(1.75 * wide + 0.6, 1.35 * high + 0.7), sharex=True, sharey=True, squeeze=False
    )
    for axis, label in zip(axes.flat, labels, strict=False):
        if plain:
            draw_band(axis, plain, "entropy", color="0.6", lw=1)
        draw_band(axis, [row for row in rows if row["label"] == label], "entropy", color="C0")
        axis.set_yscale("log")
        axis.set_title(label, loc="left", fontsize=7.5)
        axis.tick_params(labelsize=7)
    for axis in axes.flat[len(labels) :]:
        axis.set_visible(False)
    for axis in axes.flat[max(0, len(labels) - wide) : len(labels)]:  # nothing stands below them
        axis.tick_params(labelbottom=True)
    figure.supylabel("entropy (nats)", fontsize=9)
    figure.supxlabel(STEPS[shown["world"]], fontsize=9)
    figure.suptitle(WORLDS[shown["world"]], fontsize=10)
    return save(figure, out, "fig17_entropy_curves")
