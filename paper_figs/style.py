"""One look for every figure, and one way to save it (PNG and PDF, reproducible bytes)."""

import csv
import os
from pathlib import Path
from typing import NamedTuple

import matplotlib
import numpy as np
from scipy import stats

matplotlib.use("Agg")
import matplotlib.pyplot as plt

DATA = Path(__file__).parent / "data"
"""The small committed data that `make figures` draws from."""

COLORS = {
    "none": "#444444",
    "clip_higher": "#0072B2",
    "entropy_bonus": "#E69F00",
    "clip_cov": "#009E73",
    "kl_cov": "#CC3377",
}
"""Colour-blind safe (Okabe & Ito); controls not listed take matplotlib's cycle."""

WORLDS = {"bandit": "Softmax bandit", "cartpole": "CartPole (PPO)", "llm": "Tiny Qwen2 (GRPO)"}
RETURNS = {"bandit": "expected reward", "cartpole": "episode return", "llm": "pass rate"}
STEPS = {"bandit": "rollout", "cartpole": "rollout", "llm": "update"}

plt.rcParams.update(
    {
        "figure.dpi": 110,
        "savefig.dpi": 160,
        "font.size": 9,
        "axes.titlesize": 10,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.grid": True,
        "grid.alpha": 0.25,
        "grid.linewidth": 0.6,
        "lines.linewidth": 1.6,
        "legend.frameon": False,
        "figure.constrained_layout.use": True,
        "pdf.fonttype": 42,
        "svg.hashsalt": "entropy-theory",
    }
)


def read_csv(path: Path) -> list[dict]:
    """Rows of a CSV file, numbers as floats (an empty cell as NaN), everything else as text."""
    with open(path, newline="") as file:
        return [{key: _value(text) for key, text in row.items()} for row in csv.DictReader(file)]


def _value(text: str) -> float | str:
    try:
        return float(text) if text else float("nan")
    except ValueError:
        return text


def save(figure, out: Path, name: str) -> Path:
    """Write NAME.png and NAME.pdf into `out` and close the figure; returns the PNG's path."""
    out.mkdir(parents=True, exist_ok=True)
    for suffix, metadata in (("png", {"Software": None}), ("pdf", {"CreationDate": None})):
        temporary = out / f"{name}.tmp.{suffix}"
        figure.savefig(temporary, metadata=metadata)
        os.replace(temporary, out / f"{name}.{suffix}")
    plt.close(figure)
    return out / f"{name}.png"


def draw_band(axis, rows: list[dict], name: str, **line) -> None:
    """Column `name` of the rows against their step, with the band from name_low to name_high in the line's colour."""
    steps = [row["step"] for row in rows]
    (drawn,) = axis.plot(steps, [row[name] for row in rows], **line)
    low, high = ([row[f"{name}_{side}"] for row in rows] for side in ("low", "high"))
    axis.fill_between(steps, low, high, color=drawn.get_color(), alpha=0.15, linewidth=0)


def unique(rows: list[dict], key: str) -> list:
    """Values of a column in order of first appearance."""
    return list(dict.fromkeys(row[key] for row in rows))


def color(control: str) -> str | None:
    """The colour of a control, None for matplotlib's next one."""
    return COLORS.get(control)


def shades(values: list) -> list[tuple]:
    """(value, colour) pairs of a quantity that is varied: dark to light in the order given."""
    places = np.linspace(0, 0.88, len(values))
    return [(value, plt.get_cmap("viridis")(place)) for value, place in zip(values, places, strict=True)]


class PowerLaw(NamedTuple):
    """y = factor x^slope, fitted by least squares of the logarithms; low and high: 95 % t interval of the slope."""

    factor: float
    slope: float
    low: float
    high: float

    def at(self, x: np.ndarray) -> np.ndarray:
        """Its values."""
        return self.factor * np.asarray(x) ** self.slope


def power_law(x: np.ndarray, y: np.ndarray) -> PowerLaw:
    """The power law through points (x, y), at least three."""
    found = stats.linregress(np.log(x), np.log(y))
    margin = stats.t.ppf(0.975, len(x) - 2) * found.stderr
    return PowerLaw(float(np.exp(found.intercept)), found.slope, found.slope - margin, found.slope + margin)
