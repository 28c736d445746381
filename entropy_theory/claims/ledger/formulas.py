"""Published formulas of methods that the notes describe, in plain Python, to test what is said of them.

Each stands as its paper or its released code has it. These are not the package's controls.
"""

import math
from collections.abc import Sequence

LOG_SQRT_2_PI_E = 0.5 * math.log(2 * math.pi * math.e)


def entropic_weight(
    error: float, errors: float, probability: float, advantage: float, gains: tuple[float, float], threshold: float
) -> float:
    r"""EntroPIC's factor on a token's loss: 1 + alpha if rewarded, 1 - alpha if punished, where pi > threshold.

        alpha = clip(K_P e + K_I sum e, -1, 1),    e = H - target

    arXiv 2511.15248, released code. `errors` is the sum of all e so far, this one included; `gains` is (K_P, K_I).
    """
    alpha = min(1.0, max(-1.0, gains[0] * error + gains[1] * errors))
    sign = (advantage > 0) - (advantage < 0)
    return 1 + sign * alpha if probability > threshold else 1.0


def egsw_weights(advantage: Sequence[float], entropy: Sequence[float], alpha: float, temperature: float) -> list[float]:
    """EGSW's weights softmax((A + alpha H) / P) over a group's responses. arXiv 2503.22456."""
    raw = [(a + alpha * h) / temperature for a, h in zip(advantage, entropy, strict=True)]
    powers = [math.exp(x - max(raw)) for x in raw]
    total = math.fsum(powers)
    return [p / total for p in powers]


def min_p_proxy(probability: Sequence[float], kappa: float) -> list[float]:
    """Lp-Reg's target: actions at most kappa * (largest probability) dropped as noise, the rest renormalised.

    arXiv 2510.03222, eq. 5 with its min-p threshold.
    """
    kept = [p if p > kappa * max(probability) else 0.0 for p in probability]
    total = math.fsum(kept)
    return [p / total for p in kept]


def era_discrete(logits: Sequence[float], floor: float, tau: float) -> list[float]:
    r"""ERA's discrete activation: logits z' <= -1 whose softmax has entropy at least `floor`.

        h_i = m + (C - n m)(1 - p_i)/(n - 1),  z'_i = W_{-1}(-h_i),    C = exp(floor - 1), m = ln(tau)/tau

    arXiv 2510.08549, released code, with the exact inverse. sum_i h_i = C, so with Z = sum_i exp(z'_i) the entropy is
    C/Z + ln Z >= 1 + ln C = floor for every Z.

    Raises: ValueError unless 1 + ln m < floor <= 1 + ln(n m), outside which some h_i has no inverse.
    """
    n, m, c = len(logits), math.log(tau) / tau, math.exp(floor - 1)
    if not m < c <= n * m:
        raise ValueError(f"floor must lie in ({1 + math.log(m):.3g}, {1 + math.log(n * m):.3g}] here, got {floor}")
    powers = [math.exp(z - max(logits)) for z in logits]
    total = math.fsum(powers)
    return [_inverse(m + (c - n * m) * (1 - p / total) / (n - 1)) for p in powers]


def _inverse(h: float) -> float:
    """The z <= -1 with -z exp(z) = h, for h in (0, 1/e): Newton's method on w - ln w = -ln h, w = -z.

    The left side is convex and increasing for w > 1, so from a start above the root every step comes closer.
    """
    y = -math.log(h)
    w = y + math.sqrt(2 * (y - 1)) + 1
    for _ in range(50):
        following = w - (w - math.log(w) - y) / (1 - 1 / w)
        if following >= w:
            break
        w = following
    return -w


def era_continuous(raw: Sequence[float], floor: float, largest: float, smallest: float) -> list[float]:
    r"""ERA's continuous activation: log sigma' of a Gaussian with independent components.

        log sigma'_i = max(log s_max + (floor - D ln sqrt(2 pi e) - D log s_max) softmax(raw)_i, log s_min)

    arXiv 2510.08549, released code. Without the max these sum to floor - D ln sqrt(2 pi e), so the entropy
    sum_i log sigma'_i + D ln sqrt(2 pi e) is at least `floor`. `largest`, `smallest`: log s_max and log s_min.
    """
    powers = [math.exp(x - max(raw)) for x in raw]
    total, free = math.fsum(powers), floor - len(raw) * (LOG_SQRT_2_PI_E + largest)
    return [max(largest + free * p / total, smallest) for p in powers]


def era_language_model(
    logits: Sequence[float], entropy: float, advantage: float, low: float, high: float, k: float
) -> tuple[list[float], list[float]]:
    """ERA's language-model form: (logits that are sampled from, logits of the update's loss).

    arXiv 2510.08549: in the update k z where A > 0 and the response's entropy is below `low`, z / k where it is above
    `high`; rollout and inference use z.
    """
    scale = 1.0 if advantage <= 0 else k if entropy < low else 1 / k if entropy > high else 1.0
    return list(logits), [scale * z for z in logits]
