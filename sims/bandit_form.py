"""The one form of all bandits: a finite tree of states, some of whose arms end the episode with a reward."""

from typing import NamedTuple

from torch import Tensor


class Sequences(NamedTuple):
    """Every sequence of a bandit, [sequences, steps]; the structure alone, the same in all replicas.

    state, arm: int64, 0 where the sequence has ended; mask: bool, the tokens that exist.
    """

    state: Tensor
    arm: Tensor
    mask: Tensor


class Problem(NamedTuple):
    """One bandit for each seed and problem, E = [seeds, problems].

    reward:     [E, states, arms], expected reward of ending by this arm, in [0, 1]; 0 where the episode goes on
    parameters: what is learned, at the start: logits [E, states, arms], or weights [E, features]
    features:   [E, states, arms, features] with logits = features . weights; None where the logits are learned
    key:        [E], of the random draws
    child:      [states, arms] int64, the next state, always of a larger number, or -1 where the episode ends
    start:      [states], distribution of the first state
    depth:      arms of the longest episode
    sequences:  all there are, for exact gradients; None where pulls are sampled
    """

    reward: Tensor
    parameters: Tensor
    features: Tensor | None
    key: Tensor
    child: Tensor
    start: Tensor
    depth: int
    sequences: Sequences | None

    def part(self, chosen: slice) -> "Problem":
        """Some of the seeds."""
        features = None if self.features is None else self.features[chosen]
        return self._replace(
            reward=self.reward[chosen], parameters=self.parameters[chosen], key=self.key[chosen], features=features
        )


def logits_of(problem: Problem, parameters: Tensor) -> Tensor:
    """Logits [E, states, arms] of the policy with these parameters."""
    if problem.features is None:
        return parameters
    # not a matrix product: its rounding may depend on how many replicas are multiplied at once
    return (problem.features * parameters[..., None, None, :]).sum(-1)
