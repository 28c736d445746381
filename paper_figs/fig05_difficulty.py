"""Figure 5: pass rate and response-level covariance by difficulty on the uncontrolled language-model runs."""

from pathlib import Path

from paper_figs.style import STEPS, draw_band, plt, read_csv, save, unique

NAME = "fig05_difficulty"
CAPTION = (
    "Tiny Qwen2 without control, by number of operations in the prompt. Left: pass rate. Right: covariance between a "
    "response's mean token log-probability and its advantage within its prompt. Lines are means, bands 95 % t "
    "intervals over seeds."
)


def draw(data: Path, out: Path) -> Path:
    """Draw from data/difficulty.csv into `out`; returns the PNG's path."""
    rows = read_csv(data / "difficulty.csv")
    figure, axes = plt.subplots(1, 2, figsize=(7.5, 3.1))
    levels = unique(rows, "difficulty")
    for index, level in enumerate(levels):
        curve = [row for row in rows if row["difficulty"] == level]
        ink = plt.get_cmap("viridis")(index / max(1, len(levels) - 1) * 0.85)
        for axis, name in zip(axes, ("pass_rate", "cov_group"), strict=True):
            draw_band(axis, curve, name, color=ink, label=f"{level:g}")
    axes[0].set(xlabel=STEPS["llm"], ylabel="pass rate", ylim=(0, 1.02))
    axes[1].set(xlabel=STEPS["llm"], ylabel="cov_group (nats)")
    axes[0].legend(title="operations")
    return save(figure, out, NAME)
