"""ERA for a handful of actions."""

import math
from typing import Literal

import torch
from torch import Tensor

from entropy_theory.control import Control, Need, control
from entropy_theory.controls.checks import check_choice, check_target

NEWTON_STEPS = 3
"""After which y - log y = L holds to rounding for every L of float32 and float64, from the published start."""


def era_activation(target: float = 0.6, tau: float = 4.0, inverse: Literal["exact", "published"] = "exact") -> Control:
    r"""Replace the logits by ones whose softmax has at least `target` nats of entropy, whatever the network says.

        p = softmax(z),  m = log tau / tau,  C = exp(target - 1),  a = (C - m) / (n - 1)
        h_i = a + (m - a) p_i,    z'_i = h^{-1}(h_i) with h(z) = -z exp(z) on z <= -1 (Lambert's W_{-1}(-h_i))

    Why: sum_i h_i = C for every p, so with Z = sum exp(z'_i) the entropy is C / Z + log Z >= 1 + log C = target. It is
    even at least target - 1 - log m (0.06 nats more at tau = 4), since no z' exceeds -log tau; a one-hot p comes out
    further above. Sampling and updates use the same z', and there is no entropy term in the loss; a temperature below
    1 divides z' and may undo the floor. The order of the actions stays. A logit of -inf is read as probability 0, and
    the action comes out with a positive one: this is no way to forbid actions.

    ERA, arXiv 2510.08549, discrete form of the authors' code, whose floor at h = 0 is never met since C > 1/e >= m.

    Args:
      target: lowest entropy, nats, > 0 and at most 1 + log(n m) for n actions: log n at tau = e, 0.633 for 2 actions at
        tau = 4. Above it the order of the actions would turn round.
      tau: a sure action's z' is -log tau; at least e, where the highest targets are possible.
      inverse: "exact", or the authors' z' = -1 - sqrt(2u) - 3u/4 with u = -1 - log h, for which the
        floor is unproved (none was seen broken); with many actions it leaves more entropy.
    Raises: ValueError if target is not positive, tau is below e, inverse is unknown, or n actions cannot have `target`.
    """
    if not math.e <= tau < math.inf:
        raise ValueError(f"era_activation.tau must be finite and at least e = 2.71828..., got {tau}")
    check_choice("era_activation.inverse", inverse, INVERSES)
    m = math.log(tau) / tau
    check_actions = check_target(
        "era_activation.target", target, lambda actions: 1 + math.log(actions * m) + 1e-12
    )  # 1e-12: log n itself is allowed at tau = e, where rounding may fall on either side

    def activate(logits):
        wide = logits if logits.dtype in (torch.float32, torch.float64) else logits.float()
        least = (math.exp(target - 1) - m) / max(wide.shape[-1] - 1, 1)
        height = least + (m - least) * torch.softmax(wide, -1)
        return INVERSES[inverse](height).to(logits.dtype)

    return control(activate=activate, needs={Need.ACTIVATION}, check_actions=check_actions)


def _excess(height: Tensor) -> Tensor:
    """u = -1 - log h, kept from 0, where the inverse has no derivative: eps/2 is what rounding of h does to u."""
    return (-1 - torch.log(height)).clamp(min=torch.finfo(height.dtype).eps / 2)


def published_inverse(height: Tensor) -> Tensor:
    """-1 - sqrt(2u) - 3u/4 with u = -1 - log h: the authors' approximation of the inverse of h = -z exp(z), z <= -1."""
    u = _excess(height)
    return -1 - torch.sqrt(2 * u) - 0.75 * u


def exact_inverse(height: Tensor) -> Tensor:
    r"""z <= -1 with -z exp(z) = h, to rounding.

    Newton's method for y - log y = 1 + u, y = -z, u = -1 - log h: convex, so no step fails. The last step alone carries
    a gradient, dy/du = y / (y - 1), which is that of the implicit function.

    Args:
      height: h, any shape, in (0, 1/e].
    """
    u = _excess(height)
    with torch.no_grad():
        y = -published_inverse(height)
        for _ in range(NEWTON_STEPS):
            y = y * (torch.log(y) + u) / (y - 1)
    return -y * (torch.log(y) + u) / (y - 1)


INVERSES = {"exact": exact_inverse, "published": published_inverse}
