"""Figure 13: five controls on the deceptive bandit, each with the parameters that an equal search found for it."""

from pathlib import Path

from paper_figs.style import color, draw_band, plt, read_csv, save, unique

NAME = "fig13_deceptive_controls"
CAPTION = (
    "Bandits with a decent arm that is likely (reward 0.6) and a better one that is rare (0.9, probability 0.01 at "
    "first). Step size and own parameters of each control, of `none` the step size alone, were searched with 30 trials "
    "each for the least final regret on seeds 0 to 49; shown are seeds 100 to 199, a bandit each: mean entropy and "
    "regret (bands: 95 % bootstrap intervals), interquartile mean of the final regret, and share of seeds whose final "
    "expected reward is nearer to the better arm's (above 0.75)."
)

FOUND = 0.75
"""Expected reward half way between the two arms."""


def draw(data: Path, out: Path) -> Path:
    """Draw from data/deceptive_controls_{curves,summary,profiles}.csv into `out`; returns the PNG's path."""
    curves, summary, profiles = (
        read_csv(data / f"deceptive_controls_{table}.csv") for table in ("curves", "summary", "profiles")
    )
    figure, axes = plt.subplots(1, 4, figsize=(11.2, 3), width_ratios=(3, 3, 2, 2))
    controls = unique(curves, "control")
    for control in controls:
        curve = [row for row in curves if row["control"] == control]
        for axis, name in zip(axes, ("entropy", "regret"), strict=False):
            draw_band(axis, curve, name, color=color(control), label=control)
    axes[0].set(ylabel="entropy (nats, log scale)", yscale="log", xlabel="rollout")
    axes[1].set(ylabel="regret (log scale)", yscale="log", xlabel="rollout")
    axes[0].legend(fontsize=7)
    for place, control in enumerate(controls):
        (row,) = (row for row in summary if row["control"] == control)
        draw_interval(axes[2], row, "regret_iqm", place)
        draw_interval(axes[3], found(profiles, control), "share", place)
    axes[2].set(xlabel="final regret (IQM)", xscale="log")
    axes[3].set(xlabel="share of seeds that\nfind the better arm", xlim=(-0.03, 1.03))
    axes[2].set_yticks(range(len(controls)), controls)
    axes[3].set_yticks(range(len(controls)), [])
    for axis in axes[2:]:
        axis.set_ylim(len(controls) - 0.5, -0.5)
    return save(figure, out, NAME)


def found(profiles: list[dict], control: str) -> dict:
    """The row of a control's performance profile whose threshold is nearest to `FOUND`."""
    rows = [row for row in profiles if row["control"] == control]
    return min(rows, key=lambda row: abs(row["threshold"] - FOUND))


def draw_interval(axis, row: dict, name: str, place: float) -> None:
    """A number and its interval at a height."""
    value, low, high = (row[f"{name}{end}"] for end in ("", "_low", "_high"))
    ink = color(row["control"])
    axis.plot([low, high], [place, place], color=ink, linewidth=2.2, alpha=0.5)
    axis.plot(value, place, "o", color=ink, markersize=6)
