"""Sampling temperature that holds an entropy."""

import math

from entropy_theory.control import Control, Need, control
from entropy_theory.controller import Response, integral
from entropy_theory.controls.checks import check_target
from entropy_theory.records import Sampling


def temperature(
    target: float = 0.3,
    gain: float = 0.05,
    low: float = 0.5,
    high: float = 2.0,
    start: float = 1.0,
    response: Response = "proportional",
) -> Control:
    r"""Multiply the sampling temperature so that the entropy of what is sampled holds a target.

        T <- clip(T exp(gain f(target - H)), low, high)

    The plain feedback rule, of no paper. For a fixed policy softmax(z / T), dH / d log T = Var_pi(log pi) >= 0, so H
    approaches the target when gain times that variance, times the updates per rollout, stays below 2. It changes what
    is sampled, and with it the policy that is trained, but leaves the logits free to grow: at temperature 1 entropy may
    collapse all the same.

    Args:
      target: nats, > 0.
      gain: of log T, per nat and optimizer step; with the response "sign" (f = sign) per step; > 0.
      low, high, start: bounds and first value of the factor on the run's temperature, 0 < low <= start <= high.
      response: "proportional" (f the identity) or "sign".
    Raises: ValueError if a parameter is outside its range or, when a run is built, the actions cannot have so much
      entropy.
    """
    check_actions = check_target("temperature.target", target)
    if not 0 < low <= start <= high < math.inf:
        raise ValueError(f"temperature needs 0 < low <= start <= high, got {low}, {start} and {high}")
    rule = integral(target, gain, math.log(low), math.log(high), math.log(start), response)

    def sample(sampling, state):
        factor = rule.value(state).exp().clamp(low, high)  # the logarithms of the bounds are rounded
        return Sampling(sampling.temperature * factor.to(sampling.temperature.dtype))

    return control(
        init=rule.init, advance=rule.advance, sample=sample, needs={Need.SAMPLING}, check_actions=check_actions
    )
