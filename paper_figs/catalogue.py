"""Every figure in order."""

from pathlib import Path

from paper_figs import (
    fig01_entropy_and_return,
    fig02_predicted_change,
    fig03_entropy_return_fit,
    fig04_selected_tokens,
    fig05_difficulty,
    fig06_kernel,
    fig07_chaos,
    fig08_top_tokens,
    fig09_entropy_collapse,
    fig10_prediction_error,
    fig11_rare_good_arm,
    fig12_cartpole_kernel,
    fig13_deceptive_controls,
    fig14_controls,
    fig15_deceptive,
    fig16_tiny_qwen,
    fig17_entropy_curves,
)
from paper_figs.style import read_csv

FIGURES = {
    fig01_entropy_and_return: "curves.csv",
    fig02_predicted_change: "change.csv",
    fig03_entropy_return_fit: "fit.csv",
    fig04_selected_tokens: "selection.csv",
    fig05_difficulty: "difficulty.csv",
}
"""Each figure of the main job and the CSV file without which (or with no row in it) there is nothing to draw."""

STUDIES = {
    fig06_kernel: "kernel.csv",
    fig07_chaos: "chaos.csv",
    fig08_top_tokens: "token_points.csv",
    fig16_tiny_qwen: "qwen_forecast.csv",
}
"""The same for the measurements that have commands of their own."""

SWEEPS = {
    fig09_entropy_collapse: "entropy_collapse_curves.csv",
    fig10_prediction_error: "prediction_error_summary.csv",
    fig11_rare_good_arm: "rare_good_arm_curves.csv",
    fig12_cartpole_kernel: "cartpole_kernel_seeds.csv",
    fig13_deceptive_controls: "deceptive_controls_summary.csv",
}
"""The same for the sweeps that come with the worlds (`entropy-theory ablate NAME`)."""

COMPARISONS = {
    fig14_controls: "comparison.csv",
    fig15_deceptive: "deceptive_llm_summary.csv",
    fig17_entropy_curves: "comparison_entropy.csv",
}
"""The same for what puts all controls side by side (`entropy-theory ablate controls` and `ablate deceptive_llm`)."""


def draw_all(data: Path, out: Path) -> list[tuple[Path, str]]:
    """Draw every figure whose data are there; returns (PNG, caption) pairs."""
    figures = (FIGURES | STUDIES | SWEEPS | COMPARISONS).items()
    there = [figure for figure, file in figures if (data / file).exists() and read_csv(data / file)]
    return [(figure.draw(data, out), figure.CAPTION) for figure in there]
