"""Random and adversarial policies, logit changes and advantages, as a pure function of (seed, number).

Every row draws its kind of policy, of change and of advantage on its own, so all combinations occur.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from entropy_theory.claims.statement import States

ACTIONS = (2, 3, 4, 5, 7, 10, 13, 21, 30, 47, 64, 101, 211, 256, 499, 1000, 2003, 4999, 10_000)
"""Numbers of actions: about evenly spaced in the logarithm, many of them prime, 256 the last dense Fisher matrix."""
LARGEST_LOGIT = 50.0
SMALLEST_CHANGE, LARGEST_CHANGE = 1e-6, 10.0
STEP_SIZES = (0.01, 0.1, 1.0)

Draw = Callable[[int, int, torch.Generator], Tensor]


def _normal(rows: int, actions: int, generator: torch.Generator) -> Tensor:
    return torch.randn(rows, actions, generator=generator, dtype=torch.float64)


def _uniform(rows: int, actions: int, generator: torch.Generator) -> Tensor:
    return torch.rand(rows, actions, generator=generator, dtype=torch.float64)


def _one(rows: int, actions: int, generator: torch.Generator) -> Tensor:
    """1 at one drawn action per row, 0 elsewhere."""
    index = torch.randint(actions, (rows, 1), generator=generator)
    return torch.zeros(rows, actions, dtype=torch.float64).scatter_(-1, index, 1.0)


def _subset(rows: int, actions: int, generator: torch.Generator) -> Tensor:
    """1 on a drawn part of the actions, 0 elsewhere; the share of ones is drawn per row."""
    return (_uniform(rows, actions, generator) < _uniform(rows, 1, generator)).double()


def _masked(rows: int, actions: int, generator: torch.Generator) -> Tensor:
    """Some actions at -inf; one drawn action per row always stays."""
    kept = (_subset(rows, actions, generator) + _one(rows, actions, generator)) > 0
    return (2 * _normal(rows, actions, generator)).masked_fill(~kept, -torch.inf)


def _logarithmic(rows: int, low: float, high: float, generator: torch.Generator) -> Tensor:
    """[rows, 1], uniform in the logarithm between low and high."""
    return torch.exp(math.log(low) + (math.log(high) - math.log(low)) * _uniform(rows, 1, generator))


LOGITS: dict[str, Draw] = {
    "normal": _normal,
    "peaked": lambda n, k, g: 5 * _normal(n, k, g),
    "wide": lambda n, k, g: LARGEST_LOGIT * (2 * _uniform(n, k, g) - 1),
    "uniform": lambda n, k, g: (2 * LARGEST_LOGIT * (_uniform(n, 1, g) - 0.5)).expand(n, k).clone(),
    "ties": lambda n, k, g: torch.randint(-3, 4, (n, k), generator=g).double(),
    "two levels": lambda n, k, g: 10 * _uniform(n, 1, g) * _subset(n, k, g),
    "zipf": lambda n, k, g: -3 * _uniform(n, 1, g) * torch.arange(1.0, k + 1, dtype=torch.float64).log(),
    "one and a flat tail": lambda n, k, g: (math.log(k) + 6 * _uniform(n, 1, g) - 3) * _one(n, k, g),
    "one and a rough tail": lambda n, k, g: _normal(n, k, g) + (math.log(k) + 10 * _uniform(n, 1, g)) * _one(n, k, g),
    "near one-hot": lambda n, k, g: LARGEST_LOGIT * (2 * _one(n, k, g) - 1),
    "one-hot": lambda n, k, g: torch.zeros(n, k, dtype=torch.float64).masked_fill(_one(n, k, g) == 0, -torch.inf),
    "masked": _masked,
}
"""Kinds of policies; a draw gives [rows, actions] logits within +-50 or -inf."""

ADVANTAGES: dict[str, Draw] = {
    "normal": _normal,
    "sparse": _one,
    "zero and one": _subset,
    "huge spread": lambda n, k, g: _normal(n, k, g).sign() * torch.exp(3 * math.log(10) * (2 * _uniform(n, k, g) - 1)),
    "small": lambda n, k, g: _logarithmic(n, SMALLEST_CHANGE, 1.0, g) * _normal(n, k, g),
}
"""Kinds of advantages (rewards, not centred); "huge spread" runs from 1e-3 to 1e3 within a row."""

CHANGES = ("normal", "two-valued", "sparse", "along log pi", "the likely against the rare", "offset")
"""Kinds of changes; each row is scaled to a largest entry between 1e-6 and 10."""


def _changes(logits: Tensor, generator: torch.Generator) -> Tensor:
    """One change per row of logits, of a drawn kind."""
    rows, actions = logits.shape
    logp = torch.log_softmax(logits, -1)
    logp = logp.masked_fill(torch.isinf(logp), 0.0)
    above = (logp > (torch.softmax(logits, -1) * logp).sum(-1, keepdim=True)).double()  # pi > exp(-H)
    drawn = {
        "normal": _normal(rows, actions, generator),
        "two-valued": _subset(rows, actions, generator),
        "sparse": _one(rows, actions, generator),
        "along log pi": logp,
        "the likely against the rare": above,
        "offset": 1 + 1e-3 * _normal(rows, actions, generator),
    }
    kind = torch.randint(len(CHANGES), (rows, 1, 1), generator=generator).expand(rows, actions, 1)
    change = torch.stack([drawn[name] for name in CHANGES], -1).gather(-1, kind).squeeze(-1)
    sign = _uniform(rows, 1, generator).sub(0.5).sign()
    largest = change.abs().amax(-1, keepdim=True)
    size = _logarithmic(rows, SMALLEST_CHANGE, LARGEST_CHANGE, generator)
    return sign * size * change / torch.where(largest > 0, largest, 1.0)


def _by_kind(kinds: dict[str, Draw], rows: int, actions: int, generator: torch.Generator) -> Tensor:
    """Rows of drawn kinds."""
    kind = torch.randint(len(kinds), (rows,), generator=generator)
    result = torch.empty(rows, actions, dtype=torch.float64)
    for index, draw in enumerate(kinds.values()):
        chosen = kind == index
        result[chosen] = draw(int(chosen.sum()), actions, generator)
    return result


def drawn_change(logits: Tensor, seed: int) -> Tensor:
    """A change for each of a caller's own policies, [n, actions]."""
    return _changes(logits, torch.Generator().manual_seed(seed))


def drawn_advantage(logits: Tensor, seed: int) -> Tensor:
    """An advantage for each of a caller's own policies, [n, actions]."""
    return _by_kind(ADVANTAGES, *logits.shape, torch.Generator().manual_seed(seed))


def sizes(instances: int) -> dict[int, int]:
    """How many instances each number of actions gets: about in proportion to 1 / actions, at least one each."""
    numbers = ACTIONS[: max(1, min(len(ACTIONS), instances))]
    weights = [1 / k for k in numbers]
    free = instances - len(numbers)
    counts = {k: 1 + math.floor(free * w / sum(weights)) for k, w in zip(numbers, weights, strict=True)}
    counts[numbers[0]] += instances - sum(counts.values())
    return counts


def generate(instances: int, seed: int) -> list[States]:
    """`instances` instances in batches of one number of actions and one step size each.

    Args:
      instances: at least 1; fewer than 19 use only the smallest numbers of actions.
      seed: any integer; the same (instances, seed) gives the same numbers.
    """
    generator = torch.Generator().manual_seed(seed)
    batches = []
    for actions, rows in sizes(instances).items():
        for index, part in enumerate(torch.arange(rows).chunk(len(STEP_SIZES))):
            logits = _by_kind(LOGITS, len(part), actions, generator)
            change = _changes(logits, generator)
            advantage = _by_kind(ADVANTAGES, len(part), actions, generator)
            batches.append(States(logits, change, advantage, STEP_SIZES[index]))
    return batches
