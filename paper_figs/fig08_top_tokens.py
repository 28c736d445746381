"""Figure 8: the covariance score of sampled tokens against their probability, and against the entropy they take."""

from pathlib import Path

import numpy as np

from paper_figs.style import WORLDS, plt, read_csv, save, unique

NAME = "fig08_top_tokens"
CAPTION = (
    "Tokens of real minibatches of each world: the score of eq. 10 by which Clip-Cov and KL-Cov rank them, against "
    "the probability of the sampled action (top) and against the entropy it takes away in a policy-gradient step, per "
    "unit of step size (bottom; exact for a single sample on a table). Large points are the top 2 % of their "
    "minibatch. Titles give, over all seeds, the share of them with negative advantage, the share that is also among "
    "the 2 % taking away most, and the correlation of score and effect over all tokens."
)

SIGNS = ((-1, "A < 0", "#CC3377"), (1, "A > 0", "#0072B2"))


def draw(data: Path, out: Path) -> Path:
    """Draw from data/token_points.csv and data/top_tokens.csv into `out`; returns the PNG's path."""
    rows, tops = read_csv(data / "token_points.csv"), read_csv(data / "top_tokens.csv")
    worlds = [world for world in WORLDS if world in unique(rows, "world")]
    figure, axes = plt.subplots(2, len(worlds), figsize=(3.2 * len(worlds), 5.6), squeeze=False, sharey="col")
    for column, world in enumerate(worlds):
        chosen = [row for row in rows if row["world"] == world]
        for sign, label, ink in SIGNS:
            for top, size, alpha in ((0, 2, 0.3), (1, 5, 0.8)):
                tokens = [row for row in chosen if row["advantage"] * sign > 0 and row["top"] == top]
                score = [row["score"] for row in tokens]
                look = {"color": ink, "markersize": size, "alpha": alpha, "markeredgewidth": 0}
                for axis, name in zip(axes[:, column], ("probability", "loss"), strict=True):
                    shown = f"{label}, top 2 %" if top else label
                    axis.plot([row[name] for row in tokens], score, "o", label=shown, **look)
        share = {
            name: np.mean([row[name] for row in tops if row["world"] == world and row["fraction"] == 0.02])
            for name in ("top_negative_share", "top_overlap", "score_effect_correlation")
        }
        axes[0, column].set_title(f"{WORLDS[world]}\ntop 2 %: {share['top_negative_share']:.0%} have A < 0", fontsize=9)
        axes[1, column].set_title(
            f"overlap {share['top_overlap']:.0%}, correlation {share['score_effect_correlation']:.2f}", fontsize=9
        )
        rare = min(row["probability"] for row in chosen) < 0.01
        axes[0, column].set(xlabel="probability", xscale="log" if rare else "linear")
        axes[1, column].set_xlabel("entropy taken away (nats / step size)")
    axes[0, 0].legend(fontsize=8)
    for axis in axes[:, 0]:
        axis.set_ylabel("score (eq. 10)")
    return save(figure, out, NAME)
