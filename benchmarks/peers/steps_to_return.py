"""How long a seed took to learn CartPole, by one definition for every contender. NumPy only."""

import numpy as np

TARGET, WINDOW = 475.0, 100
"""CartPole-v1 counts as solved at this mean return over this many episodes."""


def steps_to_return(done, returns, target: float = TARGET, window: int = WINDOW) -> list[int | None]:
    """Environment steps of each seed until the mean of its last `window` finished episodes reaches `target`.

    Judged at the end of every rollout, never before `window` episodes have ended; episodes count in the order in which
    they ended, those of one moment in the order of the environments.

    Args:
      done: [seeds, rollouts, steps, envs], whether an episode ended there.
      returns: its return, read where `done`.
    Returns: for each seed the steps (of all its environments together) by the end of that rollout, None if never.
    """
    done, returns = np.asarray(done, bool), np.asarray(returns, float)
    rollout_size = done.shape[2] * done.shape[3]
    found: list[int | None] = []
    for seed_done, seed_returns in zip(done, returns, strict=True):
        episodes = seed_returns[seed_done]
        ended = seed_done.sum((1, 2)).cumsum()  # episodes by the end of each rollout
        means = (episodes[n - window : n].mean() if n >= window else -np.inf for n in ended)
        found.append(next((k * rollout_size for k, mean in enumerate(means, 1) if mean >= target), None))
    return found
