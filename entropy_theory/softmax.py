"""Statistics of a softmax policy, taken along the last (action) axis.

Everything here accepts logits of any leading shape, keeps dtype and device, is differentiable, and is
finite for one-hot policies and for logits of -inf (an action that is masked out).
"""

import torch
from torch import Tensor


def finite_log_probs(logits: Tensor) -> tuple[Tensor, Tensor]:
    r"""Log-probabilities with 0 in place of -inf, and the probabilities.

        logp_a = z_a - log sum_b exp(z_b),    pi_a = exp(logp_a)

    An action of probability 0 contributes pi log pi -> 0 to every statistic, so its log-probability may be
    any finite number; 0 keeps 0 * inf out of values and gradients.

    Args:
      logits: [..., actions]; -inf masks an action. At least one logit per row must be finite.
    Returns: (logp [..., actions] in nats, probability [..., actions]).
    """
    logp = torch.log_softmax(logits, dim=-1)
    return logp.masked_fill(logp == -torch.inf, 0.0), logp.exp()


def entropy(logits: Tensor) -> Tensor:
    r"""Shannon entropy of softmax(logits), in nats.

        H = -sum_a pi_a log pi_a        (gradient: dH/dz_a = -pi_a (log pi_a + H))

    Args:
      logits: [..., actions], already divided by the sampling temperature.
    Returns: [...], in [0, log actions] up to rounding (`remainder.entropy_rounding`).
    """
    logp, probability = finite_log_probs(logits)
    return -(probability * logp).sum(-1)


def collision(logits: Tensor) -> Tensor:
    r"""C = Cov_pi(log pi, pi) = sum_a pi_a^2 (log pi_a + H), in nats; never negative.

    The part of a single sample's entropy effect that does not depend on which action was drawn: a gradient
    step on one token moves entropy by -step_size * w * (pi_a c_a - C), c_a = log pi_a + H.

    Args:
      logits: [..., actions].
    Returns: [...].
    """
    logp, probability = finite_log_probs(logits)
    h = -(probability * logp).sum(-1, keepdim=True)
    return (probability.square() * (logp + h)).sum(-1)


def token_statistics(logits: Tensor, action: Tensor) -> tuple[Tensor, Tensor]:
    """Log-probability of the sampled action and the exact entropy, both differentiable.

    Args:
      logits: [..., actions]; action: [...] int64.
    Returns: (logp [...], entropy [...]), nats.
    """
    logp = torch.log_softmax(logits, dim=-1)
    chosen = logp.gather(-1, action.unsqueeze(-1)).squeeze(-1)
    finite = logp.masked_fill(logp == -torch.inf, 0.0)
    return chosen, -(logp.exp() * finite).sum(-1)
