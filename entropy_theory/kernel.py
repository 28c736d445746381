"""Policies that are not tabular: what one gradient step on a network does to the logits of every state.

A policy is a function of its parameters, `policy(parameters) -> logits [states, actions]`, at fixed states. The
objective is J = sum_s d(s) sum_a pi(a|s) A(s, a) with d and A held fixed.
"""

from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch
from torch import Tensor
from torch.func import jacrev

from entropy_theory.softmax import entropy, finite_log_probs
from entropy_theory.theorems import (
    entropy_change_first_order,
    entropy_change_second_order,
    natural_gradient_step,
    policy_gradient_step,
)

Parameters = Mapping[str, Tensor]
Policy = Callable[[Parameters], Tensor]


class KernelStep(NamedTuple):
    """One plain gradient step: what it did, and what the logit kernel and Theorem 1 predicted.

    logits_before, logits_after:     [states, actions], the latter after the step was really taken
    kernel_change, identity_change:  [states, actions], predicted with the policy's kernel K and with K = I
    step_size:                       eta, parameter units per unit of gradient
    """

    logits_before: Tensor
    logits_after: Tensor
    kernel_change: Tensor
    identity_change: Tensor
    step_size: float

    @property
    def measured(self) -> Tensor:
        """Entropy after minus entropy before, [states], nats."""
        return entropy(self.logits_after) - entropy(self.logits_before)

    @property
    def kernel_prediction(self) -> Tensor:
        """Lemma 1 fed the kernel's logit change, [states], nats; its error is O(step_size^2)."""
        return entropy_change_first_order(self.logits_before, self.kernel_change)

    @property
    def kernel_prediction_second_order(self) -> Tensor:
        """The same with the exact quadratic term of the entropy, [states], nats: what moves a uniform policy."""
        return entropy_change_second_order(self.logits_before, self.kernel_change)

    @property
    def identity_prediction(self) -> Tensor:
        """Theorem 1 with the state's weight d(s), [states], nats."""
        return entropy_change_first_order(self.logits_before, self.identity_change)


def sampled_advantage(logits: Tensor, action: Tensor, advantage: Tensor) -> Tensor:
    r"""The advantage of every action as one sample estimates it.

        A(s, b) = advantage (1[b = a] / pi_a - 1),    E_pi A = 0

    With it the exact expectation over actions has the gradient of the sampled objective advantage * log pi(a|s).

    Args:
      logits: [states, actions]; action: [states] int64, the sampled one; advantage: [states], reward units.
    Returns: [states, actions], reward units.
    """
    _, probability = finite_log_probs(logits)
    chosen = torch.zeros_like(logits).scatter(-1, action.unsqueeze(-1), 1.0)
    weight = chosen / probability.gather(-1, action.unsqueeze(-1))
    return advantage.unsqueeze(-1) * (weight - 1)


def objective(logits: Tensor, advantage: Tensor, weight: Tensor) -> Tensor:
    r"""J = sum_s d(s) sum_a pi(a|s) A(s, a), a scalar with gradient.

    Args:
      logits, advantage: [states, actions]; weight: d, [states].
    """
    _, probability = finite_log_probs(logits)
    return (weight * (probability * advantage).sum(-1)).sum()


def kernel_product(policy: Policy, parameters: Parameters, vector: Tensor) -> Tensor:
    r"""Logit kernel (neural tangent kernel of the logits) times a vector, without forming the kernel.

        (K v)(s) = sum_s' K(s, s') v(s'),    K = G G^T,    G = d logits / d parameters

    Jacot et al. 2018 (arXiv 1806.07572). G^T v is one backward pass; G w is the derivative of u -> w . G^T u, a
    backward pass through that backward pass (torch's forward mode lacks fused operations and costs seconds to load).

    Args:
      policy: parameters -> logits [states, actions], twice differentiable; vector: [states, actions].
    Returns: [states, actions].
    """
    leaves = {name: value.detach().clone().requires_grad_() for name, value in parameters.items()}
    with torch.enable_grad():
        logits = policy(leaves)
        probe = torch.zeros_like(logits, requires_grad=True)
        pulled = torch.autograd.grad(logits, list(leaves.values()), probe, create_graph=True)
        gradient = torch.autograd.grad(logits, list(leaves.values()), vector, retain_graph=True)
        return torch.autograd.grad(pulled, probe, gradient)[0]


def own_state_product(policy: Policy, parameters: Parameters, vector: Tensor, states: Tensor) -> Tensor:
    """K(s, s) v(s) at each of `states` [n] alone, [n, actions]: the kernel without what other states contribute."""
    alone = torch.zeros_like(vector)
    rows = []
    for state in states.tolist():
        own = alone.clone()
        own[state] = vector[state]
        rows.append(kernel_product(policy, parameters, own)[state])
    return torch.stack(rows)


def ascended(policy: Policy, parameters: Parameters, gradient: Parameters, step_size: float) -> Tensor:
    """Logits after parameters + step_size * gradient, [states, actions]."""
    with torch.no_grad():
        return policy({name: value + step_size * gradient[name] for name, value in parameters.items()})


def kernel_step(
    policy: Policy, parameters: Parameters, advantage: Tensor, weight: Tensor, step_size: float
) -> KernelStep:
    r"""Take one step of plain gradient ascent on J, and predict its logit change.

        dz(s) = eta sum_s' K(s, s') d(s') [pi(s') o (A(s') - E_pi A)],    K = I: Proposition 1 with the factor d(s)

    The prediction applies the kernel to Proposition 1's closed form; the step itself differentiates J by autograd.

    Args:
      policy: parameters -> logits [states, actions], twice differentiable.
      parameters: tensors by name; float64 keeps rounding below the changes.
      advantage: A, [states, actions], reward units; weight: d, [states].
      step_size: eta.
    """
    return _step(policy, parameters, advantage, weight, lambda _: step_size)


def kernel_step_of_spread(
    policy: Policy, parameters: Parameters, advantage: Tensor, weight: Tensor, spread: float
) -> KernelStep:
    """`kernel_step` at the step size that the kernel says will move some state's logits by `spread` nats.

    Args:
      spread: max - min of the largest predicted logit change.
    Raises: ValueError if the gradient is 0, so that no step moves anything.
    """

    def step_size(unit: Tensor) -> float:
        largest = float((unit.amax(-1) - unit.amin(-1)).max())
        if largest == 0:
            raise ValueError("the gradient of the objective is 0, so no step moves the logits; check the advantages")
        return spread / largest

    return _step(policy, parameters, advantage, weight, step_size)


def _step(policy: Policy, parameters: Parameters, advantage: Tensor, weight: Tensor, choose) -> KernelStep:
    """One step of the size that `choose` makes of the kernel's change at step size 1."""
    parameters = {name: value.detach() for name, value in parameters.items()}
    with torch.no_grad():
        before = policy(parameters)
    push = weight.unsqueeze(-1) * policy_gradient_step(before, advantage, 1.0)
    unit = kernel_product(policy, parameters, push)
    step_size = choose(unit)
    gradient = _gradient(policy, parameters, advantage, weight)
    return KernelStep(
        logits_before=before,
        logits_after=ascended(policy, parameters, gradient, step_size),
        kernel_change=step_size * unit,
        identity_change=step_size * push,
        step_size=step_size,
    )


def _gradient(policy: Policy, parameters: Parameters, advantage: Tensor, weight: Tensor) -> dict[str, Tensor]:
    leaves = {name: value.clone().requires_grad_() for name, value in parameters.items()}
    with torch.enable_grad():
        value = objective(policy(leaves), advantage, weight)
        return dict(zip(leaves, torch.autograd.grad(value, list(leaves.values())), strict=True))


def error_slope(
    policy: Policy, parameters: Parameters, advantage: Tensor, weight: Tensor, step_size: float, halvings: int = 4
) -> float:
    """Order of convergence of the kernel's prediction of the entropy change: about 2 where it is exact to first order.

    Least-squares slope of log2(largest error over states) against log2(step size), halving `step_size`.
    """
    errors = []
    for k in range(halvings + 1):
        step = kernel_step(policy, parameters, advantage, weight, step_size / 2**k)
        errors.append((step.measured - step.kernel_prediction).abs().max())
    order = torch.arange(halvings, -1, -1, dtype=torch.float64)
    order = order - order.mean()
    return float((order * torch.stack(errors).log2()).sum() / order.square().sum())


class NaturalStep(NamedTuple):
    """One natural-gradient step of a network, and what Theorem 2 says of it.

    logits_before, logits_after:        [states, actions], the latter after the step was really taken
    natural_change, theorem_2_change:   [states, actions]: eta G w to first order, and eta A
    residual:   E[(A - w . grad log pi)^2] / E[A^2], the share of A outside the network's reach; 0 where Theorem 2
                holds
    rank:       directions of the score matrix that were kept
    step_size:  eta
    """

    logits_before: Tensor
    logits_after: Tensor
    natural_change: Tensor
    theorem_2_change: Tensor
    residual: float
    rank: int
    step_size: float

    @property
    def measured(self) -> Tensor:
        """Entropy after minus entropy before, [states], nats."""
        return entropy(self.logits_after) - entropy(self.logits_before)

    @property
    def natural_prediction(self) -> Tensor:
        """Lemma 1 fed the projected step, [states], nats."""
        return entropy_change_first_order(self.logits_before, self.natural_change)

    @property
    def theorem_2_prediction(self) -> Tensor:
        """Theorem 2, [states], nats."""
        return entropy_change_first_order(self.logits_before, self.theorem_2_change)


def natural_step(
    policy: Policy,
    parameters: Parameters,
    advantage: Tensor,
    weight: Tensor,
    step_size: float,
    damping: float = 0.0,
) -> NaturalStep:
    r"""Take one natural policy-gradient step, the least-squares projection of A on the scores.

        w = argmin sum_s d(s) E_pi[(A - w . grad log pi)^2] + damping |w|^2,    parameters += eta w

    Kakade 2001; equivalently w = (F + damping I)^-1 grad J with F the Fisher matrix over d. Of several minimisers
    (more parameters than the states need) the shortest. Forms the score matrix, [states * actions, parameters].

    Args:
      as `kernel_step`; damping: >= 0, reward units squared per parameter unit squared.
    Raises: ValueError if damping is negative or the advantages are all 0.
    """
    if not damping >= 0:
        raise ValueError(f"damping must be at least 0, got {damping}")
    parameters = {name: value.detach() for name, value in parameters.items()}
    with torch.no_grad():
        before = policy(parameters)
    _, probability = finite_log_probs(before)
    jacobian = torch.cat([j.flatten(2) for j in jacrev(policy)(parameters).values()], -1)
    root = (weight.unsqueeze(-1) * probability).sqrt()
    centred = advantage - (probability * advantage).sum(-1, keepdim=True)
    score = jacobian - (probability.unsqueeze(-1) * jacobian).sum(1, keepdim=True)
    target = (root * centred).flatten()
    if not target.any():
        raise ValueError("the advantages are 0 at every state, so there is nothing to project")
    matrix = (root.unsqueeze(-1) * score).flatten(0, 1)
    w, rank = _least_squares(matrix, target, damping)
    return NaturalStep(
        logits_before=before,
        logits_after=ascended(policy, parameters, _unflatten(w, parameters), step_size),
        natural_change=step_size * (jacobian @ w),
        theorem_2_change=natural_gradient_step(advantage, step_size),
        residual=float((target - matrix @ w).square().sum() / target.square().sum()),
        rank=rank,
        step_size=step_size,
    )


def _least_squares(matrix: Tensor, target: Tensor, damping: float) -> tuple[Tensor, int]:
    """Shortest minimiser of |matrix w - target|^2 + damping |w|^2, and the number of singular values kept.

    Singular values below 16 max(shape) eps times the largest are taken as 0: the decomposition rounds by max(shape)
    eps, and the centred scores that go into it by a few times that. The step would magnify what is below by 1 / s.
    """
    u, s, vt = torch.linalg.svd(matrix, full_matrices=False)
    kept = s > s[0] * 16 * max(matrix.shape) * torch.finfo(s.dtype).eps
    inverse = torch.where(kept, s / (s.square() + damping).masked_fill(~kept, 1.0), 0.0)
    return vt.mT @ (inverse * (u.mT @ target)), int(kept.sum())


def _unflatten(flat: Tensor, parameters: Parameters) -> dict[str, Tensor]:
    parts = flat.split([value.numel() for value in parameters.values()])
    return {name: part.view_as(value) for (name, value), part in zip(parameters.items(), parts, strict=True)}


class Agreement(NamedTuple):
    """How well predictions agree with measurements; NaN where the measurements (or predictions) are all equal.

    correlation:     Pearson's
    r_squared:       1 - sum (m - p)^2 / sum (m - mean m)^2, of the prediction as it is; below 0 the mean does better
    slope:           of the least-squares line of m on p; 1 where the prediction has the right size
    relative_error:  |m - p| / |m|, Euclidean norms over states
    sign_agreement:  share of the states with m != 0 whose prediction has the sign of m
    """

    correlation: float
    r_squared: float
    slope: float
    relative_error: float
    sign_agreement: float


def agreement(predicted: Tensor, measured: Tensor) -> Agreement:
    """Compare predicted with measured entropy changes over states, both [states]."""
    p, m = predicted - predicted.mean(), measured - measured.mean()
    moved = measured != 0
    same = (predicted.sign() == measured.sign())[moved]
    return Agreement(
        correlation=float((p * m).sum() / (p.norm() * m.norm())),
        r_squared=float(1 - (measured - predicted).square().sum() / m.square().sum()),
        slope=float((p * m).sum() / p.square().sum()),
        relative_error=float((measured - predicted).norm() / measured.norm()),
        sign_agreement=float(same.to(m.dtype).mean()),
    )


def state_rows(step: KernelStep, place: Mapping) -> list[dict]:
    """One row per state: measured and predicted entropy change, nats."""
    columns = (step.measured, step.kernel_prediction, step.identity_prediction)
    names = ("measured", "kernel", "identity")
    return [dict(place) | dict(zip(names, row, strict=True)) for row in torch.stack(columns, -1).tolist()]


def summary_rows(step: KernelStep, place: Mapping) -> list[dict]:
    """One row per prediction: how well it agrees with the measured entropy change over the states."""
    place = dict(place) | {
        "step_size": step.step_size,
        "states": len(step.measured),
        "entropy": float(entropy(step.logits_before).mean()),
    }
    predictions = {
        "kernel": step.kernel_prediction,
        "kernel, second order": step.kernel_prediction_second_order,
        "identity": step.identity_prediction,
    }
    return [place | {"predicted": n} | agreement(p, step.measured)._asdict() for n, p in predictions.items()]


def own_state_row(problem: tuple, step: KernelStep, place: Mapping, count: int = 32) -> dict:
    """Agreement, over `count` states spread through the problem, of what each state's own push does to it.

    `own_share` is the size of that logit change relative to the whole one (less its mean over actions): what is
    missing comes from the other states, through shared weights.

    Args:
      problem: (policy, parameters, advantage, weight) of the step.
    """
    policy, parameters, advantage, weight = problem
    states = torch.linspace(0, len(weight) - 1, min(count, len(weight))).long()
    push = weight.unsqueeze(-1) * policy_gradient_step(step.logits_before, advantage, step.step_size)
    own, whole = own_state_product(policy, parameters, push, states), step.kernel_change[states]
    own_size, whole_size = (float((x - x.mean(-1, keepdim=True)).norm()) for x in (own, whole))
    predicted = entropy_change_first_order(step.logits_before[states], own)
    row = {"step_size": step.step_size, "states": len(states), "predicted": "own state"}
    return (
        dict(place) | row | agreement(predicted, step.measured[states])._asdict() | {"own_share": own_size / whole_size}
    )


def natural_row(step: NaturalStep, damping: float) -> dict:
    """The projection's residual, and how well Theorem 2 and the projected step predict the measured entropy change."""
    theorem, projected = (agreement(p, step.measured) for p in (step.theorem_2_prediction, step.natural_prediction))
    return {
        "damping": damping,
        "residual": step.residual,
        "rank": step.rank,
        "states": len(step.measured),
        "step_size": step.step_size,
        "theorem_2_r_squared": theorem.r_squared,
        "theorem_2_correlation": theorem.correlation,
        "theorem_2_slope": theorem.slope,
        "projected_r_squared": projected.r_squared,
    }
