"""Progress bars with the time left: redrawn on a terminal, a line every ten seconds in a log file."""

import sys

from tqdm import tqdm


def bar(total: float, description: str, unit: str = "rollout") -> tqdm:
    """A tqdm bar on standard error."""
    terminal = sys.stderr.isatty()
    return tqdm(
        total=total,
        desc=description,
        unit=unit,
        mininterval=0.2 if terminal else 10,
        maxinterval=0.2 if terminal else 10,
        dynamic_ncols=terminal,
        delay=0 if terminal else 10,
        bar_format=None if terminal else "{desc}: {percentage:3.0f}% {elapsed}<{remaining} {postfix}\n",
    )


def summary(line: dict) -> str:
    """Entropy and reward of a metrics line, averaged over seeds, for the end of a bar."""
    parts = []
    for name in ("entropy", "reward", "pass_rate", "episode_return"):
        if name in line:
            value = line[name]
            value = (
                value.mean()
                if hasattr(value, "mean")
                else sum(value) / len(value)
                if isinstance(value, list)
                else value
            )
            parts.append(f"{name} {float(value):.3g}")
    return ", ".join(parts)
