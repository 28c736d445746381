"""Figure 11: a confident policy that is wrong, whose entropy first rises."""

from pathlib import Path

import numpy as np

from paper_figs.style import draw_band, plt, read_csv, save, unique

NAME = "fig11_rare_good_arm"
CAPTION = (
    "Bandits whose good arm (reward 0.9) has probability 0.01 at first and a poor one (0.2) nine tenths of the rest. "
    "Left: entropy, and the good arm's probability. Right: entropy change of each rollout's first update, measured "
    "(line) and predicted (points: Lemma 1 from the update's logit change; crosses: Theorem 1 from the exact "
    "advantage). Entropy rises while the arm that gains has less than average log-probability, and falls once it "
    "leads. Dotted: the peak of entropy. Means over seeds, each with 8 bandits of its own; bands are 95 % bootstrap "
    "intervals."
)

INKS = {"exact": "#444444", "sampled": "#0072B2"}
SHOWN = 4
"""Every so many points of a prediction are shown, so that the line stays visible."""


def draw(data: Path, out: Path) -> Path:
    """Draw from data/rare_good_arm_curves.csv into `out`; returns the PNG's path."""
    rows = read_csv(data / "rare_good_arm_curves.csv")
    gradients = unique(rows, "gradient")
    figure, axes = plt.subplots(1, 2 + len(gradients), figsize=(11.2, 3.1))
    for gradient, change in zip(gradients, axes[2:], strict=True):
        curve = [row for row in rows if row["gradient"] == gradient]
        for axis, name in zip(axes, ("entropy", "best_arm_probability"), strict=False):
            draw_band(axis, curve, name, color=INKS[gradient], label=f"{gradient} gradient")
        draw_changes(change, curve, gradient)
        for axis in (axes[0], change):
            axis.axvline(peak(curve), color=INKS[gradient], linewidth=0.8, linestyle=":")
    axes[0].set(ylabel="entropy (nats)", ylim=(0, None))
    axes[1].set(ylabel="probability of the good arm", ylim=(-0.02, 1.02))
    axes[2].set_ylabel("entropy change of an update (nats)")
    for axis in axes:
        axis.set_xlabel("rollout")
    axes[1].legend(fontsize=8, loc="lower right")
    return save(figure, out, NAME)


def peak(curve: list[dict]) -> float:
    """The step at which mean entropy is largest."""
    return max(curve, key=lambda row: row["entropy"])["step"]


def draw_changes(axis, curve: list[dict], gradient: str) -> None:
    """Measured and predicted change of the first update of each rollout."""
    ink = INKS[gradient]
    draw_band(axis, curve, "measured_entropy_change", color=ink, label="measured")
    step = np.array([row["step"] for row in curve])
    for name, marker, label in (("predicted_first_order", "o", "Lemma 1"), ("theorem_1", "x", "Theorem 1")):
        predicted = np.array([row[name] for row in curve])
        first = 0 if marker == "o" else SHOWN // 2
        look = {"color": "#CC3377" if marker == "o" else "#009E73", "markersize": 4, "linestyle": ""}
        axis.plot(step[first::SHOWN], predicted[first::SHOWN], marker, label=label, **look)
    axis.axhline(0, color="#444444", linewidth=0.6)
    axis.set_title(f"{gradient[0].upper()}{gradient[1:]} gradient")
    axis.legend(fontsize=7)
