"""How much of the rounding bounds is used: the largest error / bound over many instances, in float64 and float32.

    python benchmarks/rounding_bounds.py

The exact values are enclosed in ball arithmetic (docs/theory.md, section 4.9), so each ratio is an upper bound of
the true one to about 30 digits. A quarter of a minute.
"""

import torch

from entropy_theory import balls, remainder, theorems
from entropy_theory.claims import instances
from entropy_theory.softmax import entropy, finite_log_probs

ROWS = {2: 30, 3: 20, 10: 20, 64: 6, 1000: 1, 10_000: 1}
"""Number of actions -> instances per kind, offset and precision."""
OFFSETS = (0.0, 30.0, 5e3)
"""Added to all logits: changes no policy, but rounds every logit."""


def ratios(z: torch.Tensor, d: torch.Tensor) -> dict[str, float]:
    """Quantity -> error / bound for one instance, [actions] each."""
    with balls.precision(160) as flint:
        policy = balls.Policy(z.tolist())
        change = policy.exact(d.tolist())
        logp, probability = finite_log_probs(z)
        tiny = torch.finfo(z.dtype).tiny
        relative = flint.arb(float(remainder.probability_rounding(z))).expm1()

        def error(computed: torch.Tensor, exact: balls.Ball) -> balls.Ball:
            return abs(flint.arb(float(computed)) - exact)

        of_logp = balls.largest([error(logp[a], x) for a, x in zip(policy.support, policy.log_probs, strict=True)])
        parts = zip(policy.support, policy.probabilities, strict=True)
        found = {
            "log-probability": of_logp / float(remainder.log_prob_rounding(z)),
            "probability": balls.largest([error(probability[a], p) / (p * relative + tiny) for a, p in parts]),
            "entropy": error(entropy(z), policy.entropy) / float(remainder.entropy_rounding(z)),
        }
        first, second = theorems.entropy_change_first_order(z, d), theorems.entropy_change_second_order(z, d)
        bounds = remainder.first_order_rounding(z, d), remainder.second_order_rounding(z, d)
        found["first order"] = error(first, policy.first_order(change)) / float(bounds[0])
        found["second order"] = error(second, policy.second_order(change)) / float(bounds[1])
        return {name: balls.above(x) for name, x in found.items()}


def main() -> int:
    """Print one row per precision; 1 if a bound is violated."""
    generator = torch.Generator().manual_seed(1)
    violated = False
    for dtype in (torch.float64, torch.float32):
        worst: dict[str, float] = {}
        count = 0
        for actions, rows in ROWS.items():
            for kind in instances.LOGITS.values():
                for offset in OFFSETS:
                    logits = (kind(rows, actions, generator) + offset).to(dtype)
                    size = 10 ** (6 * torch.rand(rows, 1, generator=generator, dtype=torch.float64) - 5)
                    change = (size * torch.randn(rows, actions, generator=generator, dtype=torch.float64)).to(dtype)
                    for z, d in zip(logits, change, strict=True):
                        count += 1
                        for name, ratio in ratios(z, d).items():
                            worst[name] = max(worst.get(name, 0.0), ratio)
        violated |= max(worst.values()) > 1
        print(f"{str(dtype)[6:]}, {count} instances: " + ", ".join(f"{name} {x:.4f}" for name, x in worst.items()))
    return int(violated)


if __name__ == "__main__":
    raise SystemExit(main())
