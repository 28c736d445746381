"""The remainder constant of Lemma 1 against a numerical ascent, and the guess that two-valued changes are the worst."""

import math

import torch
from torch import Tensor

from entropy_theory import remainder, theorems
from entropy_theory.claims.claim import Claim, Context, Counterexample, Finding, Verdict
from entropy_theory.claims.theory.over import within

ACTIONS = (2, 3, 10, 100)
RESTARTS, STEPS, RATE = 24, 100, 0.05


def curvature(logits: Tensor, change: Tensor) -> Tensor:
    """|E[(1 + c)(d - E d)^2]| / spread^2, [n]: what the remainder constant bounds."""
    quadratic = theorems.entropy_change_second_order(logits, change) - theorems.entropy_change_first_order(
        logits, change
    )
    return 2 * quadratic.abs() / remainder.spread(change, torch.isfinite(logits)).square()


def _starts(actions: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Half of them random, half one action of drawn mass against a flat rest, moved alone."""
    logits = torch.randn(RESTARTS, actions, generator=generator, dtype=torch.float64)
    change = torch.rand(RESTARTS, actions, generator=generator, dtype=torch.float64)
    half = RESTARTS // 2
    mass = torch.linspace(0.5, 0.99, half, dtype=torch.float64)
    logits[:half], change[:half] = 0.1 * logits[:half], 0.1 * change[:half]
    logits[:half, 0] = (mass * (actions - 1) / (1 - mass)).log()
    change[:half, 0] = 1.0
    return logits, change


def ascent(actions: int, seed: int) -> tuple[float, Tensor, Tensor]:
    """The largest curvature found, less its rounding bound, with its policy and change; Adam from many starts."""
    variables = list(_starts(actions, torch.Generator().manual_seed(seed)))
    first, second = ([torch.zeros_like(v) for v in variables] for _ in range(2))
    for step in range(1, STEPS + 1):
        leaves = [v.requires_grad_(True) for v in variables]
        gradients = torch.autograd.grad(curvature(*leaves).sum(), leaves)
        rate = RATE * (1 - step / (STEPS + 1))
        for i, g in enumerate(gradients):
            first[i] = 0.9 * first[i] + 0.1 * g
            second[i] = 0.99 * second[i] + 0.01 * g.square()
            direction = first[i] / (1 - 0.9**step) / ((second[i] / (1 - 0.99**step)).sqrt() + 1e-12)
            variables[i] = (variables[i] + rate * direction).detach()
        width = remainder.spread(variables[1], torch.ones_like(variables[1], dtype=torch.bool)).unsqueeze(-1)
        variables[1] = variables[1] / width  # the curvature does not depend on the scale of the change
    logits, change = (v.detach() for v in variables)
    rounding = remainder.second_order_rounding(logits, change) + remainder.first_order_rounding(logits, change)
    width = remainder.spread(change, torch.isfinite(logits))
    certain = (curvature(logits, change) - 2 * rounding / width.square()) * (1 - 1e-12)
    best = int(certain.argmax())
    return float(certain[best]), logits[best], change[best]


def judge_constant(context: Context) -> Finding:
    """The best ratio to the proved constant by number of actions."""
    parts, numbers, worst = [], {}, 0.0
    for actions in ACTIONS:
        found, _, _ = ascent(actions, context.seed)
        ratio = found / remainder.remainder_constant(actions)
        worst = max(worst, ratio)
        numbers |= {f"found_{actions}": found, f"ratio_{actions}": ratio}
        parts.append(f"K={actions}: {found:.4f} ({ratio:.3f} of the constant)")
    return within("remainder_constant", context, worst, f"Largest found by ascent: {'; '.join(parts)}.", numbers)


def two_valued(actions: int) -> float:
    """An upper bound on max_q q(1 - q)[1 + (1 - 2q) ln((K - 1) q/(1 - q))], above it by less than 2e-4.

    On [0.05, 0.95] the slope is at most 3 + 3 (ln(K - 1) + 3) in size, so a grid misses at most that times half its
    spacing; outside, the logarithm's term is not positive for K <= 20 and the value at most 0.05.
    """
    points = 40_000
    q = torch.linspace(0.05, 0.95, points + 1, dtype=torch.float64)
    values = q * (1 - q) * (1 + (1 - 2 * q) * ((actions - 1) * q / (1 - q)).log())
    return max(0.05, float(values.max()) + (12 + 3 * math.log(actions - 1)) * 0.9 / points / 2 + 1e-12)


def judge_two_valued(context: Context) -> Finding:
    """Three actions, where an ascent can leave the two-valued changes behind."""
    found, logits, change = ascent(3, context.seed)
    most = two_valued(3)
    numbers = {"found": found, "two_valued": most}
    if found <= most:
        return Finding(Verdict.HOLDS, f"Ascent reaches {found:.5f}, two-valued changes {most:.5f} at K = 3.", numbers)
    pi, d = torch.softmax(logits, -1), (change - change.min()) / (change.max() - change.min())
    instance = ", ".join(f"{name} = ({', '.join(f'{v:.4f}' for v in x)})" for name, x in (("pi", pi), ("d", d)))
    text = f"K = 3: {instance} reach {found:.5f}, two-valued changes at most {most:.5f}"
    snippet = (
        "import torch\n"
        f"from {__name__} import curvature, two_valued\n"
        f"logits = torch.tensor({logits.tolist()}, dtype=torch.float64)\n"
        f"change = torch.tensor({change.tolist()}, dtype=torch.float64)\n"
        "print(curvature(logits, change), two_valued(3))\n"
    )
    return Finding(Verdict.REFUTED, f"Found by ascent: {text}.", numbers, Counterexample(text, snippet))


CONSTANTS = (
    Claim(
        id="remainder_constant",
        statement="|E[(1 + c)(d - E d)^2]| <= C_K spread(d)^2 for every policy and change on K actions.",
        source="proved here (docs/theory.md, section 2.3)",
        recorded=Verdict.HOLDS,
        judge=judge_constant,
    ),
    Claim(
        id="two_valued_worst",
        statement="Changes with two values are the worst case of Lemma 1's remainder: the best constant is max over q "
        "of q(1-q)[1 + (1-2q) ln((K-1)q/(1-q))].",
        source="conjectured here (docs/theory.md, section 8.16)",
        recorded=Verdict.REFUTED,
        judge=judge_two_valued,
    ),
)
