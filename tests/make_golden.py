"""Writes the golden batches of entropy_theory/conformance: inputs and exact outputs, in 60 digits, then rounded once.

    python tests/make_golden.py            # rewrites entropy_theory/conformance/data
    python tests/make_golden.py FOLDER     # writes them somewhere else

Nothing here imports the package or torch. Inputs come from Python's seeded generator and from lists written below;
every output is computed from the stored float64 inputs in mpmath and rounded to float64 at the end.
"""

import hashlib
import json
import math
import random
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import mpmath
import numpy as np
import oracles

FOLDER = Path(__file__).parent.parent / "entropy_theory" / "conformance" / "data"
FORMAT_VERSION = 1
EPS = 1e-6
"""Added to the standard deviation of a group's rewards."""

HYPER = {
    "ppo": {"clip_low": 0.2, "clip_high": 0.2},
    "clip_higher": {"clip_low": 0.2, "clip_high": 0.28},
    "clip_cov": {"clip_low": 0.2, "clip_high": 0.2, "fraction": 0.1, "low": 0.25, "high": 1.5},
    "kl_cov": {"fraction": 0.1, "coef": 1.0},
    "entropy_bonus": {"clip_low": 0.2, "clip_high": 0.2, "coef": 0.01},
    "grpo": {"eps": EPS},
    "draw": {"seed": 0, "step": 0},
}

UNITS = {
    "logits": "nats, [rows, steps, vocabulary]; -inf masks an action",
    "action": "index of the sampled action, [rows, steps]",
    "logp": "nats, log-probability of the action under softmax(logits), [rows, steps]; also what `log_prob` must give",
    "old_logp": "nats, the same under the policy that sampled, [rows, steps]",
    "advantage": "reward units, [rows, steps]",
    "mask": "the valid tokens, bool [rows, steps]; anything finite stands in the others",
    "reward": "reward units, [rows]",
    "group": "rows with one id are compared, [rows]",
    "grpo": "(reward - mean) / (std + eps) in the row's group, std with K - 1; 0 in a group of one, [rows]",
    "entropy": "nats, [rows, steps]",
    "score": "nats x reward units, (logp - mean)(advantage - mean), means over the valid tokens, [rows, steps]",
    "covariance": "nats x reward units, mean of the scores over the valid tokens",
    "token_surrogate": "reward units, -min(r A, clip(r, 1 - clip_low, 1 + clip_high) A) with ppo's parameters",
    "token_ratio": "reward units, -r A",
    "token_distance": "nats, |logp - old_logp|",
    "*_loss": "reward units, sum over the valid tokens divided by their number",
    "*_gradient": "d loss / d logp, [rows, steps]",
    "clip_cov_eligible": "valid, not clipped by PPO, low < score < high; bool [rows, steps]",
    "clip_cov_count": "min(max(1, floor(fraction x valid tokens)), eligible tokens)",
    "clip_cov_selected": "one admissible draw: the eligible tokens of lowest number in the stream (seed, step); bool",
    "kl_cov_selected": "max(1, floor(fraction x valid tokens)) highest scores, ties to the earlier token; bool",
    "entropy_bonus_loss": "reward units, loss of ppo minus coef x mean entropy of the valid tokens",
    "entropy_bonus_logit_gradient": "d loss / d logits, [rows, steps, vocabulary]",
}


class Inputs(NamedTuple):
    """What a trainer is given, as nested lists."""

    logits: list
    action: list
    old_logp: list
    advantage: list
    mask: list
    reward: list
    group: list


class Spec(NamedTuple):
    """One golden batch: what it is for, its inputs and where its hyper-parameters or micro-batches differ."""

    purpose: str
    build: Callable[[random.Random], Inputs]
    hyper: dict[str, dict[str, float]] | None = None
    micro_batches: list[list[int]] | None = None


# --- inputs -----------------------------------------------------------------------------------------------------


def number(x) -> mpmath.mpf:
    """An exact copy of a float."""
    return mpmath.mpf(float(x))


def log_softmax(logits) -> list:
    """Exact log-probabilities of one state; -inf where the logit is."""
    top = number(max(logits))
    terms = [mpmath.exp(number(z) - top) for z in logits if z > -math.inf]
    log_total = top + mpmath.log(mpmath.fsum(terms))
    return [number(z) - log_total if z > -math.inf else -mpmath.inf for z in logits]


def grid(x: float) -> float:
    """The nearest multiple of 1/16, exact in bfloat16 up to 16: logits that lose nothing in any dtype."""
    return round(x * 16) / 16


def normal_logits(rng: random.Random, rows: int, steps: int, actions: int) -> list:
    """Gaussian logits of standard deviation 2 on the grid."""
    return [
        [[grid(max(-15.0, min(15.0, rng.gauss(0, 2)))) for _ in range(actions)] for _ in range(steps)]
        for _ in range(rows)
    ]


def sampled(rng: random.Random, logits) -> int:
    """One action drawn from softmax(logits)."""
    return rng.choices(range(len(logits)), [float(mpmath.exp(lp)) for lp in log_softmax(logits)])[0]


def grpo(reward, group) -> list:
    """Exact group-relative advantages."""
    result = []
    for r, g in zip(reward, group, strict=True):
        peers = [number(q) for q, h in zip(reward, group, strict=True) if h == g]
        mean = mpmath.fsum(peers) / len(peers)
        squares = mpmath.fsum((q - mean) ** 2 for q in peers)
        std = mpmath.sqrt(squares / max(1, len(peers) - 1))
        result.append((number(r) - mean) / (std + number(EPS)))
    return result


def behind(logits, action, ratio) -> list:
    """old_logp so that the ratio of each token is (nearly) the given one."""
    rows = zip(logits, action, ratio, strict=True)
    return [[float(float(log_softmax(z)[a]) - mpmath.log(r)) for z, a, r in zip(*row, strict=True)] for row in rows]


REWARD = [1.0, 0.0, 1.0, 1.0, 0.0, 0.0, 1.0, 0.0]
GROUP = [0, 0, 0, 0, 1, 1, 1, 1]


def responses(
    rng: random.Random, steps: int = 6, actions: int = 11, ratios=(1.0,), lengths=None, logits=None
) -> Inputs:
    """Two prompts with four responses each, GRPO advantages, ratios drawn from a list."""
    logits = logits or normal_logits(rng, 8, steps, actions)
    action = [[sampled(rng, z) for z in row] for row in logits]
    ratio = [[rng.choice(ratios) for _ in range(steps)] for _ in range(8)]
    advantage = [[float(a)] * steps for a in grpo(REWARD, GROUP)]
    mask = [[t < n for t in range(steps)] for n in lengths or [steps] * 8]
    return Inputs(logits, action, behind(logits, action, ratio), advantage, mask, REWARD, GROUP)


STALE = (0.3, 0.6, 0.75, 0.9, 0.97, 1.04, 1.1, 1.24, 1.4, 1.7, 4.0)
LENGTHS = [6, 1, 4, 0, 6, 3, 2, 5]


def with_garbage(inputs: Inputs, rng: random.Random, size: float, log_ratio: float) -> Inputs:
    """Large finite numbers wherever the mask is off."""

    def fill(kept, value):
        return [
            [k if m else value() for k, m in zip(*pair, strict=True)] for pair in zip(kept, inputs.mask, strict=True)
        ]

    actions = len(inputs.logits[0][0])
    logits = fill(inputs.logits, lambda: [float(round(rng.gauss(0, 4)) * 64) for _ in range(actions)])
    likely = [[z.index(max(z)) for z in row] for row in logits]
    kept = zip(inputs.action, likely, inputs.mask, strict=True)
    return inputs._replace(
        logits=logits,
        action=[[a if m else b for a, b, m in zip(*row, strict=True)] for row in kept],
        old_logp=fill(inputs.old_logp, lambda: -log_ratio * rng.choice((1.0, 0.5))),
        advantage=fill(inputs.advantage, lambda: rng.choice((-1, 1)) * size),
    )


def tied(rng: random.Random) -> Inputs:
    """Rows whose steps repeat one state and action in threes: their log-probabilities are equal bit for bit."""
    three = normal_logits(rng, 8, 2, 11)
    logits = [[list(z) for z in row for _ in range(3)] for row in three]
    inputs = responses(rng, logits=logits, ratios=(0.9, 1.1))
    action = [[row[0]] * 3 + [row[3]] * 3 for row in inputs.action]
    return inputs._replace(action=action, old_logp=behind(logits, action, [[0.9, 1.1, 1.05] * 2] * 8))


def equal_advantages(rng: random.Random) -> Inputs:
    """Every token has the advantage 0.7: every score is 0."""
    inputs = responses(rng, ratios=(0.9, 0.95, 1.1), lengths=LENGTHS)
    return inputs._replace(advantage=[[0.7] * 6 for _ in range(8)])


def one_token(rng: random.Random) -> Inputs:
    """One row of one step, alone in its group."""
    logits = [[[0.5, -1.25, 2.0, 0.0, -3.0, 1.5, 0.25, -0.5, 0.75, -2.0, 1.0]]]
    action = [[5]]
    return Inputs(logits, action, behind(logits, action, [[1.1]]), [[1.5]], [[True]], [1.0], [0])


def masked_logits(rng: random.Random) -> Inputs:
    """From none to all but one of the actions are masked out."""
    logits = normal_logits(rng, 8, 6, 11)
    for row in logits:
        for state in row:
            gone = rng.sample(range(11), rng.choice((0, 1, 4, 9, 10)))
            for a in gone:
                state[a] = -math.inf
    return responses(rng, logits=logits, ratios=(0.9, 1.1), lengths=LENGTHS)


SPECS = {
    "fresh": Spec(
        "first update after a rollout: every ratio is 1, so PPO's clip and KL-Cov's penalty have no gradient",
        lambda rng: responses(rng, actions=32),
        {"clip_cov": {"low": 0.5}},
    ),
    "stale": Spec(
        "later update: tokens clipped by PPO on both sides, one between the two upper clips, ratios of 4 with A < 0",
        lambda rng: responses(rng, ratios=STALE),
    ),
    "ragged": Spec(
        "rows of different length, one of them empty; advantages of 1e6 and ratios of e^30 stand under the mask",
        lambda rng: with_garbage(responses(rng, ratios=STALE, lengths=LENGTHS), rng, 1e6, 30.0),
    ),
    "overflow": Spec(
        "finite garbage under the mask whose ratio overflows in every dtype",
        lambda rng: with_garbage(responses(rng, ratios=(0.9, 1.1), lengths=LENGTHS), rng, 1e30, 2000.0),
    ),
    "ties": Spec("three tokens each have equal scores, and KL-Cov's count falls inside such a triple", tied),
    "zero_covariance": Spec(
        "all advantages are equal: every score is 0, below Clip-Cov's lower bound however small that is",
        equal_advantages,
        {"clip_cov": {"low": 1e-10}},
    ),
    "one_token": Spec("a single token in a group of its own", one_token),
    "masked_logits": Spec("logits of -inf, down to a single possible action", masked_logits),
    "micro_batches": Spec(
        "one minibatch as eight micro-batches of one response of different length: nothing may depend on the split",
        lambda rng: responses(rng, steps=16, ratios=(0.85, 0.95, 1.05, 1.15), lengths=[16, 4, 16, 10, 16, 8, 16, 12]),
        {"clip_cov": {"fraction": 0.025}, "kl_cov": {"fraction": 0.012}},
        [[row, row + 1] for row in range(8)],
    ),
}


# --- outputs ----------------------------------------------------------------------------------------------------


class Token(NamedTuple):
    """One valid token in exact numbers; lp holds the log-probabilities of all actions."""

    place: tuple[int, int]
    lp: list
    action: int
    logp: Any
    x: Any  # logp - old_logp of the stored numbers
    a: Any
    score: Any

    @property
    def ratio(self):
        return mpmath.exp(self.x)

    @property
    def entropy(self):
        return -mpmath.fsum(mpmath.exp(v) * v for v in self.lp if v > -mpmath.inf)


def stored_logp(inputs: Inputs) -> list:
    """The exact log-probabilities of the actions, rounded to float64."""
    return [
        [float(log_softmax(z)[a]) for z, a in zip(*row, strict=True)]
        for row in zip(inputs.logits, inputs.action, strict=True)
    ]


def tokens_of(inputs: Inputs, logp: list) -> list[Token]:
    """The valid tokens, row after row."""
    places = [(i, t) for i, row in enumerate(inputs.mask) for t, m in enumerate(row) if m]
    mean_l = mpmath.fsum(number(logp[i][t]) for i, t in places) / len(places)
    mean_a = mpmath.fsum(number(inputs.advantage[i][t]) for i, t in places) / len(places)
    found = []
    for i, t in places:
        new, a = number(logp[i][t]), number(inputs.advantage[i][t])
        score = (new - mean_l) * (a - mean_a)
        x = new - number(inputs.old_logp[i][t])
        found.append(Token((i, t), log_softmax(inputs.logits[i][t]), inputs.action[i][t], new, x, a, score))
    return found


def surrogate(ratio, a, clip_low: float, clip_high: float, **_) -> tuple:
    """(-min(r A, clip(r) A), its derivative with respect to log r)."""
    clipped = min(max(ratio, 1 - number(clip_low)), 1 + number(clip_high))
    if clipped * a < ratio * a:
        return -clipped * a, mpmath.mpf(0)
    return -ratio * a, -ratio * a


def count(fraction: float, tokens: int) -> int:
    """max(1, floor(fraction tokens)); the product must not be near a whole number, where roundings disagree."""
    product = number(fraction) * tokens
    assert abs(product - mpmath.nint(product)) > 1e-3 or tokens == 1, product
    return max(1, int(mpmath.floor(product)))


def lowest_draws(tokens: list[Token], eligible: list[Token], n: int, seed: int, step: int) -> set:
    """Places of the n eligible tokens of lowest random number; the n-th valid token has the n-th number."""
    numbers = {token.place: oracles.uniform(seed, step, i) for i, token in enumerate(tokens)}
    return {t.place for t in sorted(eligible, key=lambda t: numbers[t.place])[:n]}


def losses(tokens: list[Token], hyper: dict, shape: tuple[int, int]) -> dict:
    """Loss and d loss / d logp of the plain losses and of the two covariance controls."""
    n, found = len(tokens), {}

    def add(name: str, values: dict):
        found[f"{name}_loss"] = mpmath.fsum(v for v, _ in values.values()) / n
        found[f"{name}_gradient"] = spread({p: g / n for p, (_, g) in values.items()}, shape)

    for name in ("ppo", "clip_higher"):
        add(name, {t.place: surrogate(t.ratio, t.a, **hyper[name]) for t in tokens})
    h = hyper["clip_cov"]
    clipped = {t.place: surrogate(t.ratio, t.a, **h) for t in tokens}
    silent = {t.place for t in tokens if clipped[t.place][1] == 0 and t.a != 0}
    eligible = [t for t in tokens if t.place not in silent and number(h["low"]) < t.score < number(h["high"])]
    assert all(t.a != 0 for t in eligible), "a token without gradient cannot be seen to be dropped"
    dropped = lowest_draws(tokens, eligible, min(count(h["fraction"], n), len(eligible)), **hyper["draw"])
    add("clip_cov", {p: (0, 0) if p in dropped else v for p, v in clipped.items()})
    h = hyper["kl_cov"]
    top = {t.place for t in sorted(tokens, key=lambda t: -t.score)[: count(h["fraction"], n)]}
    coef = {t.place: number(h["coef"]) * (t.place in top) for t in tokens}
    values = {
        t.place: (-t.ratio * t.a + coef[t.place] * abs(t.x), -t.ratio * t.a + coef[t.place] * mpmath.sign(t.x))
        for t in tokens
    }
    add("kl_cov", values)
    found |= {
        "clip_cov_eligible": places({t.place for t in eligible}, shape),
        "clip_cov_count": min(count(hyper["clip_cov"]["fraction"], n), len(eligible)),
        "clip_cov_selected": places(dropped, shape),
        "kl_cov_count": len(top),
        "kl_cov_selected": places(top, shape),
        "token_surrogate": spread({t.place: surrogate(t.ratio, t.a, **hyper["ppo"])[0] for t in tokens}, shape),
        "token_ratio": spread({t.place: -t.ratio * t.a for t in tokens}, shape),
        "token_distance": spread({t.place: abs(t.x) for t in tokens}, shape),
    }
    return found


def entropy_bonus(tokens: list[Token], inputs: Inputs, hyper: dict, shape: tuple) -> dict:
    """Loss from the logits and its gradient with respect to them: ppo - coef mean H."""
    h, n = hyper["entropy_bonus"], len(tokens)
    coef, terms = number(h["coef"]), []
    gradient = np.zeros(shape)
    for t in tokens:
        i, j = t.place
        x = t.lp[t.action] - number(inputs.old_logp[i][j])  # of the exact, not of the stored, log-probability
        value, slope = surrogate(mpmath.exp(x), t.a, **h)
        terms.append(value - coef * t.entropy)
        for b, lp in enumerate(t.lp):
            if lp > -mpmath.inf:
                p = mpmath.exp(lp)
                gradient[i, j, b] = float((slope * ((b == t.action) - p) + coef * p * (lp + t.entropy)) / n)
    return {"entropy_bonus_loss": mpmath.fsum(terms) / n, "entropy_bonus_logit_gradient": gradient}


def spread(values: dict, shape: tuple[int, int]) -> np.ndarray:
    """Numbers at their places, 0 elsewhere, rounded to float64."""
    result = np.zeros(shape)
    for place, value in values.items():
        result[place] = float(value)
    return result


def places(chosen: set, shape: tuple[int, int]) -> np.ndarray:
    """True at the chosen places."""
    result = np.zeros(shape, dtype=bool)
    for place in chosen:
        result[place] = True
    return result


def hyper_of(spec: Spec) -> dict[str, dict[str, float]]:
    """The hyper-parameters of a batch."""
    return {name: {**values, **(spec.hyper or {}).get(name, {})} for name, values in HYPER.items()}


def make(name: str) -> dict[str, np.ndarray]:
    """Every array of one batch."""
    spec, hyper = SPECS[name], hyper_of(SPECS[name])
    with mpmath.workdps(60):
        inputs = spec.build(random.Random(f"golden {name}"))
        logp = stored_logp(inputs)
        tokens = tokens_of(inputs, logp)
        shape = (len(inputs.mask), len(inputs.mask[0]))
        outputs = {
            "entropy": spread({t.place: t.entropy for t in tokens}, shape),
            "score": spread({t.place: t.score for t in tokens}, shape),
            "covariance": mpmath.fsum(t.score for t in tokens) / len(tokens),
            "grpo": [float(a) for a in grpo(inputs.reward, inputs.group)],
            **losses(tokens, hyper, shape),
            **entropy_bonus(tokens, inputs, hyper, np.shape(inputs.logits)),
        }
        scalars = {k: float(v) if isinstance(v, mpmath.mpf) else v for k, v in outputs.items()}
    return {k: np.asarray(v) for k, v in {**inputs._asdict(), "logp": logp, **scalars}.items()}


def write(folder: Path) -> None:
    """Write every batch and the index."""
    folder.mkdir(parents=True, exist_ok=True)
    entries = []
    for name, spec in SPECS.items():
        arrays = make(name)
        path = folder / f"{name}.npz"
        np.savez_compressed(path, **arrays)
        entries.append(
            {
                "name": name,
                "purpose": spec.purpose,
                "file": path.name,
                "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
                "rows": arrays["mask"].shape[0],
                "steps": arrays["mask"].shape[1],
                "vocabulary": arrays["logits"].shape[2],
                "valid_tokens": int(arrays["mask"].sum()),
                "hyper": hyper_of(spec),
                "micro_batches": spec.micro_batches or [[0, arrays["mask"].shape[0]]],
            }
        )
    index = {"format_version": FORMAT_VERSION, "units": UNITS, "batches": entries}
    (folder / "index.json").write_text(json.dumps(index, indent=1) + "\n")


if __name__ == "__main__":
    write(Path(sys.argv[1]) if len(sys.argv) > 1 else FOLDER)
