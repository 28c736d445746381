r"""A small network as a policy: z_a = sum_j outer_aj tanh(inner_j). Its parameters are shared by all actions.

With it go bounds, as everywhere with tanh taken to be accurate to 8 u:

* how far the logits may be from linear in the parameters. Along theta + t d the second derivative of z_a is
  sum_j 2 d_outer d_inner tanh' + outer d_inner^2 tanh'', |tanh'| <= 1, |tanh''| <= 4 / (3 sqrt 3), and Taylor's
  remainder is at most half its maximum;
* rounding: every derivative of z is outer_aj (1 - tanh^2) or tanh, each known to 32 u max(1, |outer|).
"""

import math
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from entropy_theory import remainder
from entropy_theory.claims.small import column

if TYPE_CHECKING:
    from hypothesis.strategies import SearchStrategy

U = remainder.unit_roundoff(torch.float64)
_CURVATURE = 4 / (3 * math.sqrt(3))


class Network(NamedTuple):
    """Parameters, a step of the parameters and a reward per action, all in tenths.

    inner:  [hidden]
    outer:  [actions * hidden], action after action
    change: [hidden + actions * hidden], of (inner, outer)
    tenths: [actions]
    """

    inner: tuple[int, ...]
    outer: tuple[int, ...]
    change: tuple[int, ...]
    tenths: tuple[int, ...]

    @property
    def parameters(self) -> Tensor:
        """(inner, outer), [parameters], float64."""
        return torch.tensor(self.inner + self.outer, dtype=torch.float64) / 10

    @property
    def step(self) -> Tensor:
        """[parameters], float64."""
        return torch.tensor(self.change, dtype=torch.float64) / 10

    @property
    def reward(self) -> Tensor:
        """[actions], float64."""
        return torch.tensor(self.tenths, dtype=torch.float64) / 10

    def logits(self, parameters: Tensor) -> Tensor:
        """[actions] at these parameters, differentiable."""
        hidden = len(self.inner)
        return parameters[hidden:].view(len(self.tenths), hidden) @ parameters[:hidden].tanh()

    def jacobian(self, parameters: Tensor) -> Tensor:
        """dz_a / d theta_j by autograd, [actions, parameters]."""
        parameters = parameters.detach().requires_grad_()
        z = self.logits(parameters)
        rows = [torch.autograd.grad(z[a], parameters, retain_graph=True)[0] for a in range(len(z))]
        return torch.stack(rows)

    @property
    def text(self) -> str:
        """In words."""
        inner, outer, reward = ([x / 10 for x in c] for c in (self.inner, self.outer, self.tenths))
        return f"inner {inner}, outer {outer}, reward {reward}"

    @property
    def code(self) -> str:
        """Python lines that define `theta`, `step`, `reward` and the function `logits`."""
        hidden, actions = len(self.inner), len(self.tenths)
        columns = (self.inner + self.outer, self.change, self.tenths)
        theta, step, reward = (f"torch.tensor({[x / 10 for x in c]}, dtype=torch.float64)" for c in columns)
        return (
            f"import torch\ntheta = {theta}\nstep = {step}\nreward = {reward}\n"
            f"def logits(p):\n    return p[{hidden}:].view({actions}, {hidden}) @ p[:{hidden}].tanh()\n"
        )


def networks() -> "SearchStrategy[Network]":
    """Networks of 1 or 2 hidden units and 2 or 3 actions, parameters within 2 and steps within 0.5."""
    from hypothesis import strategies as st

    def of(hidden: int, actions: int) -> "SearchStrategy[Network]":
        outer = hidden * actions
        parameters = (column(hidden, -20, 20), column(outer, -20, 20))
        return st.builds(Network, *parameters, column(hidden + outer, -5, 5), column(actions, -10, 10))

    return st.one_of(*[of(hidden, actions) for hidden in (1, 2) for actions in (2, 3)])


def slope_bound(network: Network, *points: Tensor) -> float:
    """At least every |dz_a / d theta_j| between the given parameters."""
    return max(1.0, *(float(p[len(network.inner) :].abs().max()) for p in points))


def derivative_rounding(network: Network, slope: float) -> float:
    """Bound on the rounding of a weighted sum of derivatives of z per unit of the sum of |weights|."""
    return (len(network.change) + 48) * U * slope


def linear_error(network: Network, before: Tensor, change: Tensor) -> Tensor:
    """Bound on |z(before + change) - z(before) - J change| as computed from stored parameters, [actions]."""
    hidden, after = len(network.inner), before + change
    slope = slope_bound(network, before, after)
    d_inner, d_outer = change[:hidden].abs(), change[hidden:].abs().view(-1, hidden)
    taylor = d_outer @ d_inner + _CURVATURE / 2 * slope * d_inner.square().sum()
    forward = 2 * math.expm1((hidden + 10) * U) * hidden * slope
    stored = 2 * U * slope * float((after.abs() + change.abs()).sum())
    return taylor * (1 + 16 * U) + forward + stored + derivative_rounding(network, slope) * change.abs().sum()


def entropy_gradient_rounding(logits: Tensor) -> Tensor:
    r"""Bound on sum_a |computed - exact| of dH/dz by autograd of `softmax.entropy`, nats.

    g_a = -pi_a (1 + log pi_a), dH/dz_a = g_a - pi_a sum_b g_b. With e the error of a log-probability and
    r = exp(w + 2u) - 1 the relative one of a probability times two operations, sum |dg| <= G = r L + (1 + r) e,
    L = 1 + ln K >= sum |g|; the sum over b adds K u L, and the last line r L and 4 u L.
    """
    actions = logits.shape[-1]
    size = 1 + math.log(actions)
    relative = torch.expm1(remainder.probability_rounding(logits) + 2 * U)
    of_first = relative * size + (1 + relative) * remainder.log_prob_rounding(logits)
    return (2 + relative) * of_first + ((1 + relative) * actions * U + relative + 4 * U) * size
