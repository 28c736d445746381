"""The figure of a sweep that has none of its own: entropy and return along its runs, and their performance profiles."""

from pathlib import Path

import numpy as np

from paper_figs.style import COLORS, RETURNS, STEPS, WORLDS, draw_band, plt, read_csv, save, unique

MOST = 12
"""Runs shown; more lines in one axis cannot be told apart."""


def draw(data: Path, out: Path, name: str) -> Path:
    """Draw data/NAME_curves.csv and data/NAME_profiles.csv into `out`; returns the PNG's path."""
    curves, profiles = (read_csv(data / f"{name}_{table}.csv") for table in ("curves", "profiles"))
    world = curves[0]["world"]
    labels = unique(curves, "label")
    shown = labels[:MOST]
    colors = dict(zip(shown, plt.cm.viridis(np.linspace(0, 0.92, len(shown))), strict=True)) | {
        label: COLORS[label] for label in shown if label in COLORS
    }
    metrics = {"entropy": "entropy (nats)", "return": RETURNS[world], "regret": "regret"}
    metrics = {key: text for key, text in metrics.items() if key in curves[0]}
    figure, axes = plt.subplots(1, len(metrics) + 1, figsize=(3.2 * (len(metrics) + 1), 3.4))
    for label, color in colors.items():
        rows = [row for row in curves if row["label"] == label]
        for axis, key in zip(axes, metrics, strict=False):
            kept = [row for row in rows if row[key] == row[key]]
            draw_band(axis, kept, key, color=color, label=str(label))
        profile = [row for row in profiles if row["label"] == label]
        axes[-1].step([row["threshold"] for row in profile], [row["share"] for row in profile], color=color)
    for axis, text in zip(axes, metrics.values(), strict=False):
        axis.set(xlabel=STEPS[world], ylabel=text)
    axes[0].set_ylim(bottom=0)
    axes[-1].set(xlabel=f"final {RETURNS[world]}, threshold", ylabel="share of seeds above it", ylim=(-0.03, 1.03))
    more = f"; the first {MOST} of {len(labels)} runs" if len(labels) > MOST else ""
    figure.suptitle(f"{name} ({WORLDS[world]}): means over seeds with 95 % intervals{more}")
    handles, texts = axes[0].get_legend_handles_labels()
    figure.legend(handles, texts, loc="outside lower center", ncols=min(6, len(texts)), fontsize=8)
    return save(figure, out, name)
