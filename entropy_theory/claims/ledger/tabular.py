"""Exact ascent on many one-state problems at once: the smallest runs in which entropy can be watched."""

from typing import NamedTuple

import torch
from torch import Tensor

from entropy_theory import theorems
from entropy_theory.softmax import finite_log_probs


class Path(NamedTuple):
    """Entropy (nats) and expected reward before each step and after the last, [steps + 1, problems] each."""

    entropy: Tensor
    reward: Tensor

    @property
    def share_falling(self) -> Tensor:
        """Share of the steps that lowered entropy, [problems]."""
        return (self.entropy.diff(dim=0) < 0).double().mean(0)


def ascend(
    logits: Tensor, reward: Tensor, steps: int, step_size: float, natural: bool = False, kl: float = 0.0
) -> Path:
    r"""`steps` exact gradient steps on E_pi[r] - kl KL(pi || pi_0), pi_0 the policy of `logits`.

        dz = step_size pi (f - E_pi f),  or step_size f for the natural gradient,  f = r - kl (log pi - log pi_0)

    (sum_a pi_a grad(log pi_a) = 0, so the gradient of the KL is that of E_pi with its integrand held fixed.)

    Args:
      logits, reward: [problems, actions], finite.
      step_size: nats per reward unit; kl: reward units per nat.
    """
    start, _ = finite_log_probs(logits)
    entropies, rewards = [], []
    for _ in range(steps + 1):
        logp, probability = finite_log_probs(logits)
        entropies.append(-(probability * logp).sum(-1))
        rewards.append((probability * reward).sum(-1))
        target = reward - kl * (logp - start)
        if natural:
            step = theorems.natural_gradient_step(target, step_size)
        else:
            step = theorems.policy_gradient_step(logits, target, step_size)
        logits = logits + step
    return Path(torch.stack(entropies), torch.stack(rewards))


def drawn_problems(number: int, actions: int, seed: int) -> tuple[Tensor, Tensor]:
    """Standard normal logits and rewards uniform in [0, 1], [number, actions] each, as a function of the seed."""
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(number, actions, generator=generator, dtype=torch.float64)
    return logits, torch.rand(number, actions, generator=generator, dtype=torch.float64)


def law(path: Path) -> tuple[Tensor, Tensor]:
    """Least-squares a and b of R = -a exp(H) + b along each path, [problems] each."""
    x = path.entropy.exp()
    dx, dy = x - x.mean(0), path.reward - path.reward.mean(0)
    a = -(dx * dy).sum(0) / dx.square().sum(0)
    return a, path.reward.mean(0) + a * x.mean(0)
