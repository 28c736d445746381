"""The natural policy gradient of the actor, by conjugate gradients on products with the Fisher matrix."""

from collections.abc import Callable

import torch
from torch import Tensor

from entropy_theory.softmax import finite_log_probs
from sims.actor import actor_logits, flat, leaves_of, split
from sims.engine import Head

ITERATIONS = 10
"""Conjugate-gradient steps, as TRPO's."""

Product = Callable[[Tensor], Tensor]
"""v [seeds, parameters] -> F v."""


def fisher_product(weights: dict[str, Tensor], states: Tensor, mask: Tensor, head: Head) -> Product:
    r"""The Fisher matrix of the acting policy, averaged over the valid states, as a product.

        F = mean_s G_s^T (diag pi_s - pi_s pi_s^T) G_s,    G_s = d z_s / d theta,  z: the policy's logits

    F is the Hessian of the mean KL from the policy to itself (Kakade 2001). G v is the derivative of u -> v . G^T u, a
    backward pass through a backward pass; G^T is a backward pass.

    Args:
      weights: the actor's by name, [seeds, in, out]; states: [seeds, n, inputs]; mask: bool [seeds, n].
    """
    leaves = leaves_of(weights)
    with torch.enable_grad():
        logits = head.policy(actor_logits(leaves, states))
        probe = torch.zeros_like(logits, requires_grad=True)
        pulled = torch.autograd.grad(logits, list(leaves.values()), probe, create_graph=True)
    _, probability = finite_log_probs(logits.detach())
    valid = mask.to(logits.dtype).unsqueeze(-1)
    share = valid / valid.sum(1, keepdim=True).clamp(min=1)

    def product(vector: Tensor) -> Tensor:
        (moved,) = torch.autograd.grad(pulled, probe, split(vector, leaves), retain_graph=True)
        centred = moved - (probability * moved).sum(-1, keepdim=True)
        push = share * probability * centred
        return flat(torch.autograd.grad(logits, list(leaves.values()), push, retain_graph=True))

    return product


def conjugate_gradient(product: Product, target: Tensor, iterations: int = ITERATIONS) -> Tensor:
    """Approximate solution x of M x = target for each seed, M symmetric and positive, begun at 0.

    Hestenes & Stiefel 1952. A seed whose residual has reached the rounding of its target stays where it is.

    Args:
      product: x -> M x; target: [seeds, parameters].
    """
    x, residual = torch.zeros_like(target), target.clone()
    direction, square = residual.clone(), residual.square().sum(-1, keepdim=True)
    enough = square * torch.finfo(target.dtype).eps ** 2
    for _ in range(iterations):
        moved = product(direction)
        going = (square > enough) & (curvature := (direction * moved).sum(-1, keepdim=True)).gt(0)
        length = torch.where(going, square / curvature.masked_fill(~going, 1.0), 0.0)
        x = x + length * direction
        residual = residual - length * moved
        following = residual.square().sum(-1, keepdim=True)
        direction = residual + torch.where(going, following / square.masked_fill(~going, 1.0), 0.0) * direction
        square = torch.where(going, following, 0.0)
    return x


def natural_step(product: Product, gradient: Tensor, divergence: float, damping: float) -> Tensor:
    r"""The step against the natural gradient whose damped quadratic model of the KL is `divergence`.

        x = (F + damping I)^-1 g,    step = -sqrt(2 divergence / x^T (F + damping I) x) x

    Kakade 2001; the length as in Schulman et al. 2015 (arXiv 1502.05477), appendix C, without line search. The KL
    itself is at most `divergence` up to third order in the step. A seed whose gradient is 0 takes no step.

    Args:
      product: F; gradient: g of the loss, [seeds, parameters]; divergence: nats; damping: >= 0.
    Returns: [seeds, parameters].
    """

    def damped(vector: Tensor) -> Tensor:
        return product(vector) + damping * vector

    x = conjugate_gradient(damped, gradient)
    model = (x * damped(x)).sum(-1, keepdim=True)
    return -torch.where(model > 0, (2 * divergence / model.masked_fill(model <= 0, 1.0)).sqrt(), 0.0) * x
