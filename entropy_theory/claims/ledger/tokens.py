"""Statistics of the sampled tokens that a world lends: which tokens the score of eq. 10 ranks first, and their effect.

Replica axes are averaged over; everything is taken in float64.
"""

from collections.abc import Callable
from typing import NamedTuple

from torch import Tensor

from entropy_theory.claims.claim import Context, SampledTokens
from entropy_theory.claims.ledger.common import WORLD_NAMES
from entropy_theory.covariances import centred_product, covariance
from entropy_theory.measure import group_covariance
from entropy_theory.records import map_tensors
from entropy_theory.reduce import group_mean, lowest, token_fraction, token_mean, token_sum
from entropy_theory.theorems import sampled_theorem_1


def minibatches(context: Context) -> dict[str, SampledTokens]:
    """The minibatches of the chosen worlds that have one, by the world's name in words; float64."""
    found = {}
    for world, name in WORLD_NAMES.items():
        lent = context.worlds.get(world)
        if lent is not None and lent.minibatch is not None:
            batch, collision = lent.minibatch
            found[name] = SampledTokens(map_tensors(batch, _double), collision.double())
    return found


def _double(values: Tensor) -> Tensor:
    return values.double() if values.is_floating_point() else values


class Top(NamedTuple):
    """The top share of a minibatch's tokens by some rank.

    negative:    share of them with advantage < 0
    probability: their mean probability
    of_net:      their part of the sum of the tokens' exact entropy effects (positive where the effect is a loss)
    of_losses:   their part of the sum over the tokens that lower entropy
    """

    negative: float
    probability: float
    of_net: float
    of_losses: float


def score(tokens: SampledTokens) -> Tensor:
    """Eq. 10 of Cui et al. 2025, E."""
    batch = tokens.batch
    return centred_product(batch.logp, batch.advantage, batch.mask)


def loss_of_entropy(tokens: SampledTokens) -> Tensor:
    """Entropy each token takes away in a policy-gradient step, per unit of step size, E (`sampled_theorem_1`)."""
    batch = tokens.batch
    return -sampled_theorem_1(batch.logp, batch.entropy, tokens.collision, batch.advantage)


def top(tokens: SampledTokens, rank: Tensor, share: float) -> Top:
    """What the tokens of highest `rank` are; at least one per replica."""
    batch, loss = tokens.batch, loss_of_entropy(tokens)
    chosen = lowest(-rank, batch.mask, token_fraction(batch.mask, share))

    def mean(values: Tensor) -> float:
        return float(token_mean(values.double(), chosen).mean())

    taken = token_sum(loss, chosen).sum()
    return Top(
        negative=mean(batch.advantage < 0),
        probability=mean(batch.logp.exp()),
        of_net=float(taken / token_sum(loss, batch.mask).sum()),
        of_losses=float(token_sum(loss.clamp(min=0), chosen).sum() / token_sum(loss.clamp(min=0), batch.mask).sum()),
    )


def correlation(tokens: SampledTokens) -> float:
    """Pearson correlation of log-probability and advantage over the tokens, mean over replicas."""
    batch = tokens.batch
    x, y = batch.logp, batch.advantage
    product = covariance(x, x, batch.mask) * covariance(y, y, batch.mask)
    return float((covariance(x, y, batch.mask) / product.sqrt()).nan_to_num().mean())


def share_by_entropy(tokens: SampledTokens, share: float) -> float:
    """Part of sum |A| (1 - pi), the push on the sampled actions' logits, that is on the tokens of highest entropy."""
    batch = tokens.batch
    push = batch.advantage.abs() * (1 - batch.logp.exp())
    chosen = lowest(-batch.entropy, batch.mask, token_fraction(batch.mask, share))
    return float(token_sum(push, chosen).sum() / token_sum(push, batch.mask).sum())


def over_worlds(context: Context, tell: Callable[[SampledTokens], str]) -> str:
    """`tell` of every minibatch at hand, joined; "" if there is none."""
    return "; ".join(f"{name} {tell(tokens)}" for name, tokens in minibatches(context).items())


def by_accuracy(tokens: SampledTokens) -> list[tuple[float, float, int]]:
    """(largest pass rate, mean covariance, rows) of the prompts with a signal, in thirds by pass rate; [] if none."""
    batch = tokens.batch
    rate = group_mean(batch.outcome, batch.group).flatten()
    covariances = group_covariance(batch).flatten()
    spread = (batch.outcome - group_mean(batch.outcome, batch.group)).abs().flatten()
    mixed = group_mean(spread.view(batch.outcome.shape), batch.group).flatten() > 0
    found = []
    for low, high in ((0.0, 1 / 3), (1 / 3, 2 / 3), (2 / 3, 1.0)):
        chosen = mixed & (rate > low) & (rate <= high)
        if chosen.any():
            found.append((high, float(covariances[chosen].mean()), int(chosen.sum())))
    return found
