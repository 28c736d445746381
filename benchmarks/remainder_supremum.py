"""How tight the proved remainder constants are: the largest derivative a search finds, the constant, the ratio.

    python benchmarks/remainder_supremum.py [K ...]

The search ascends |phi''|/R^2 and |phi'''|/R^3 (docs/remainder.md) over policies and changes that take few distinct
values: level j has n_j actions of equal probability p_j / n_j, all changed by x_j in [0, 1]. For a given number of
actions n_j is whole, so every value found is attained by a real policy; what is found is a lower bound of the
supremum, and the constant an upper one. Without arguments: K = 2, 3, 5, 10, 100, 1000 and 151,936, half a minute.
"""

import itertools
import math
import sys

import torch

from entropy_theory import remainder

ACTIONS = (2, 3, 5, 10, 100, 1000, 151_936)
LEVELS, STARTS, STEPS, RATE = 4, 24, 1500, 0.05


def multiplicities(actions: int) -> torch.Tensor:
    """Candidate counts per level, [candidates, levels]; 0 leaves a level out."""
    if actions <= 10:
        parts = itertools.combinations_with_replacement(range(actions + 1), LEVELS)
        found = [p for p in parts if sum(p) == actions]
    else:
        between = sorted({round((actions - 2) ** (i / 6)) for i in range(6)} | {(actions - 2) * i // 4 for i in (1, 2)})
        found = [(0, 0, 1, actions - 1), (0, 1, 1, actions - 2), (1, 1, 1, actions - 3)]
        found += [(x, 1, n, actions - 1 - x - n) for n in between for x in (0, 1) if n < actions - 1 - x - n]
    return torch.tensor(sorted(set(found)), dtype=torch.float64)


def derivatives(share: torch.Tensor, level: torch.Tensor, counts: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Second and third derivative of the entropy, [...], from mass and change per level, [..., levels]."""
    logp = torch.where(counts > 0, share.clamp(min=1e-300).log() - counts.clamp(min=1).log(), 0.0)
    c = logp - (share * logp).sum(-1, keepdim=True)
    d = level - (share * level).sum(-1, keepdim=True)

    def mean(x: torch.Tensor) -> torch.Tensor:
        return (share * x).sum(-1)

    third = -2 * mean(d**3) - mean(c * d**3) + 3 * mean(c * d) * mean(d**2)
    return -mean((1 + c) * d**2), third


def supremum(actions: int, order: int, seed: int = 0) -> float:
    """The largest |second| (order 2) or |third| (order 3) derivative found at spread 1."""
    counts = multiplicities(actions)
    shape = (2, STARTS, *counts.shape)  # both signs
    generator = torch.Generator().manual_seed(seed)
    mass = torch.randn(shape, generator=generator, dtype=torch.float64)
    place = 3 * torch.randn(shape, generator=generator, dtype=torch.float64)
    variables = [mass.requires_grad_(True), place.requires_grad_(True)]
    sign = torch.tensor([1.0, -1.0], dtype=torch.float64)[:, None, None]
    optimizer = torch.optim.Adam(variables, lr=RATE, maximize=True)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, STEPS)
    for _ in range(STEPS):
        share = variables[0].masked_fill(counts == 0, -torch.inf).softmax(-1)
        value = sign * derivatives(share, torch.sigmoid(variables[1]), counts)[order - 2]
        optimizer.zero_grad()
        value.sum().backward()
        optimizer.step()
        schedule.step()
    return float(value.detach().max())


def two_valued(actions: int) -> float:
    """max_q q(1-q)[1 + (1-2q) ln((K-1)q/(1-q))]: the first-order value of a change of one action."""
    q = torch.linspace(0, 1, 1_000_001, dtype=torch.float64)[1:-1]
    return float((q * (1 - q) * (1 + (1 - 2 * q) * ((actions - 1) * q / (1 - q)).log())).max())


def main(arguments: list[str]) -> int:
    """Print one row per number of actions."""
    print("        K   first: found  (two-valued)  constant  ratio    second: found  constant  ratio")
    for actions in [int(x) for x in arguments] or ACTIONS:
        pair, first, second = two_valued(actions), supremum(actions, 2), supremum(actions, 3)
        found = max(first, pair)
        one, two = remainder.remainder_constant(actions), remainder.second_order_remainder_constant(actions)
        if found > one or second > two:
            print(f"K = {actions}: a value above a proved constant was found", file=sys.stderr)
            return 1
        print(
            f"{actions:>9}        {found:.6f}    {pair:.6f}   {one:.5f}  {math.floor(1000 * found / one) / 1000:.3f}"
            f"         {second:.6f}   {two:.5f}  {math.floor(1000 * second / two) / 1000:.3f}",
            flush=True,
        )
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
