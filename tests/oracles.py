"""What the package should compute, written a second time: plain loops, `math.fsum`, Python integers.

Nothing here imports the package or torch. Arguments are nested lists, NumPy arrays or plain numbers; an argument
of shape [rows][steps] belongs to one replica.
"""

import math

MASK_64 = (1 << 64) - 1


# --- one softmax policy -----------------------------------------------------------------------------------------


def probabilities(logits) -> list[float]:
    """softmax(logits); -inf gives 0."""
    top = max(logits)
    terms = [math.exp(z - top) for z in logits]
    total = math.fsum(terms)
    return [t / total for t in terms]


def log_probabilities(logits) -> list[float]:
    """log softmax(logits), -inf where the logit is -inf."""
    top = max(logits)
    log_total = math.log(math.fsum(math.exp(z - top) for z in logits))
    return [z - top - log_total for z in logits]


def entropy(logits) -> float:
    """-sum pi log pi, nats."""
    logs = log_probabilities(logits)
    return -math.fsum(math.exp(lp) * lp for lp in logs if lp > -math.inf)


def entropy_gradient(logits) -> list[float]:
    """dH/dz_a = -pi_a (log pi_a + H)."""
    h, logs = entropy(logits), log_probabilities(logits)
    return [-math.exp(lp) * (lp + h) if lp > -math.inf else 0.0 for lp in logs]


def collision(logits) -> float:
    """sum pi^2 (log pi + H)."""
    h, logs = entropy(logits), log_probabilities(logits)
    return math.fsum(math.exp(2 * lp) * (lp + h) for lp in logs if lp > -math.inf)


def mean(values, weights) -> float:
    """Weighted mean over entries of positive weight; 0 when there is none."""
    kept = [(float(w), float(v)) for v, w in zip(values, weights, strict=True) if w > 0]
    total = math.fsum(w for w, _ in kept)
    return math.fsum(w * v for w, v in kept) / total if kept else 0.0


def centred_product(x, y, weights) -> list[float]:
    """(x_i - mean x)(y_i - mean y), 0 where the weight is 0; flat lists."""
    mean_x, mean_y = mean(x, weights), mean(y, weights)
    return [(float(a) - mean_x) * (float(b) - mean_y) if w > 0 else 0.0 for a, b, w in zip(x, y, weights, strict=True)]


def covariance(x, y, weights) -> float:
    """Weighted mean of the centred products; flat lists."""
    return mean(centred_product(x, y, weights), weights)


def entropy_change_first_order(logits, change) -> float:
    """Lemma 1: -Cov_pi(log pi, change)."""
    return -covariance(log_probabilities(logits), change, probabilities(logits))


def entropy_change_second_order(logits, change) -> float:
    """Lemma 1 plus half the quadratic form of the entropy's Hessian, entry by entry.

    d2H/dz_i dz_j = -delta_ij pi_i (1 + c_i) + pi_i pi_j (1 + c_i + c_j)
    """
    h = entropy(logits)
    support = [i for i, p in enumerate(probabilities(logits)) if p > 0]
    p = {i: probabilities(logits)[i] for i in support}
    c = {i: log_probabilities(logits)[i] + h for i in support}
    terms = []
    for i in support:
        terms.append(-p[i] * (1 + c[i]) * change[i] ** 2)
        terms.extend(p[i] * p[j] * (1 + c[i] + c[j]) * change[i] * change[j] for j in support)
    return entropy_change_first_order(logits, change) + math.fsum(terms) / 2


# --- groups of rows ---------------------------------------------------------------------------------------------


def grpo(reward, group, eps: float = 1e-6) -> list[float]:
    """(r - mean) / (std + eps) within each group, std with K - 1."""
    result = []
    for r, g in zip(reward, group, strict=True):
        peers = [float(q) for q, h in zip(reward, group, strict=True) if h == g]
        centre = math.fsum(peers) / len(peers)
        squares = math.fsum((q - centre) ** 2 for q in peers)
        std = math.sqrt(squares / (len(peers) - 1)) if len(peers) > 1 else 0.0
        equal = all(q == peers[0] for q in peers)
        result.append(0.0 if equal else (float(r) - centre) / (std + eps))
    return result


def rloo(reward, group) -> list[float]:
    """r_i minus the mean of the others in its group; 0 when there is no other."""
    result = []
    for i, (r, g) in enumerate(zip(reward, group, strict=True)):
        others = [float(q) for j, (q, h) in enumerate(zip(reward, group, strict=True)) if h == g and j != i]
        result.append(float(r) - math.fsum(others) / len(others) if others else 0.0)
    return result


# --- the loss of one token --------------------------------------------------------------------------------------


def divergence(kind: str, x: float) -> float:
    """Per-token divergence of x = logp - target."""
    if kind == "abs":
        return abs(x)
    if kind == "k1":
        return x
    if kind == "k2":
        return x * x / 2
    if kind == "k3":
        return math.exp(-x) + x - 1
    raise ValueError(kind)


def token_loss(
    logp: float,
    entropy: float,
    old_logp: float,
    advantage: float,
    mask: bool,
    weight: float = 1.0,
    clip_low: float = 0.2,
    clip_high: float = 0.2,
    entropy_coef: float = 0.0,
    penalties=(),
) -> float:
    """Loss of one token; penalties are (coef, target, kind)."""
    if not mask:
        return 0.0
    ratio = math.exp(logp - old_logp)
    clipped = min(max(ratio, 1 - clip_low), 1 + clip_high)
    loss = -weight * min(ratio * advantage, clipped * advantage) - entropy_coef * entropy
    for coef, target, kind in penalties:
        if coef != 0:
            loss += coef * divergence(kind, logp - target)
    return loss


def divergence_slope(kind: str, x: float) -> float:
    """d divergence / dx, 0 at the kink of "abs"."""
    slopes = {"abs": (x > 0) - (x < 0), "k1": 1.0, "k2": x, "k3": 1 - math.exp(-x)}
    return float(slopes[kind])


def score_coefficient(
    logp: float,
    old_logp: float,
    advantage: float,
    mask: bool,
    weight: float = 1.0,
    clip_low: float = 0.2,
    clip_high: float = 0.2,
    penalties=(),
) -> float:
    """-d loss / d logp of one token, away from the edges of the clip range."""
    if not mask:
        return 0.0
    ratio = math.exp(logp - old_logp)
    clipped = ratio > 1 + clip_high if advantage > 0 else ratio < 1 - clip_low
    total = 0.0 if clipped else weight * ratio * advantage
    return total - math.fsum(coef * divergence_slope(kind, logp - target) for coef, target, kind in penalties)


# --- re-implementations of the published selection procedures (Cui et al. 2025, their released code) --------------


def published_scores(logp, advantage, mask) -> list[float]:
    """Eq. 10 over the valid tokens of one minibatch, row after row."""
    return centred_product(flat(logp), flat(advantage), [float(m) for m in flat(mask)])


def published_clip_cov_eligible(logp, old_logp, advantage, mask, low, high, clip_low, clip_high) -> list[bool]:
    """Valid tokens that PPO has not clipped and whose score lies strictly between low and high."""
    scores = published_scores(logp, advantage, mask)
    eligible = []
    rows = zip(flat(logp), flat(old_logp), flat(advantage), flat(mask), scores, strict=True)
    for new, old, a, m, score in rows:
        if not m:
            eligible.append(False)
            continue
        ratio = math.exp(float(new) - float(old))
        clipped = min(max(ratio, 1 - clip_low), 1 + clip_high)
        silenced = -float(a) * clipped > -float(a) * ratio
        eligible.append(not silenced and low < score < high)
    return eligible


def published_count(fraction: float, tokens: int) -> int:
    """max(int(fraction * tokens), 1)."""
    return max(int(fraction * tokens), 1)


def published_kl_cov_selection(logp, advantage, mask, fraction) -> set[int]:
    """Flat positions of the top scores; unique only when no two valid scores are equal."""
    scores = published_scores(logp, advantage, mask)
    valid = [i for i, m in enumerate(flat(mask)) if m]
    ranked = sorted(valid, key=lambda i: -scores[i])
    return set(ranked[: published_count(fraction, len(valid))])


def flat(nested) -> list:
    """The rows of one replica as one list."""
    return [value for row in nested for value in row]


# --- random numbers ---------------------------------------------------------------------------------------------


def _mix(x: int) -> int:
    """The finaliser of splitmix64 on an unsigned 64-bit integer."""
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & MASK_64
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & MASK_64
    return x ^ (x >> 31)


def uniform(seed: int, step: int, position: int) -> float:
    """Number `position` (from 0) of the stream of (seed, step), in [0, 1), with 53 random bits."""
    gamma = 0x9E3779B97F4A7C15
    key = _mix((_mix(seed * gamma & MASK_64) + step * gamma) & MASK_64)
    return (_mix((key + (position + 1) * gamma) & MASK_64) >> 11) / 2**53


# --- bounds on rounding, for comparing with the above -------------------------------------------------------------


def centred_product_rounding(x, y, weights, eps: float) -> float:
    """Bound on the error of one centred product of n weighted entries, ours and the oracle's together.

    With |x| <= X, |y| <= Y and unit roundoff u = eps/2: a weighted mean errs by at most (2n + 4)u X (n products,
    2n additions, one division; weights rounded once), a deviation of size <= 2X by (2n + 6)u X, the product by
    2 * 2 * (2n + 6)u XY + 4u XY <= (8n + 28)u XY. The oracle errs by no more: (8n + 28) eps XY for both.
    """
    kept = [(abs(float(a)), abs(float(b))) for a, b, w in zip(x, y, weights, strict=True) if w > 0]
    if not kept:
        return 0.0
    return (8 * len(kept) + 28) * eps * max(a for a, _ in kept) * max(b for _, b in kept)
