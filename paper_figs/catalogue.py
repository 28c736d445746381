"""Every figure in order."""

from pathlib import Path

from paper_figs import (
    fig01_entropy_and_return,
    fig02_predicted_change,
    fig03_entropy_return_fit,
    fig04_selected_tokens,
    fig05_difficulty,
)
from paper_figs.style import read_csv

FIGURES = {
    fig01_entropy_and_return: "curves.csv",
    fig02_predicted_change: "change.csv",
    fig03_entropy_return_fit: "fit.csv",
    fig04_selected_tokens: "selection.csv",
    fig05_difficulty: "difficulty.csv",
}
"""Each figure and the CSV file without which (or with no row in it) there is nothing to draw."""


def draw_all(data: Path, out: Path) -> list[tuple[Path, str]]:
    """Draw every figure whose data are there; returns (PNG, caption) pairs."""
    return [(figure.draw(data, out), figure.CAPTION) for figure, file in FIGURES.items() if read_csv(data / file)]
