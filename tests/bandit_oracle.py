"""A bandit of one replica by going through its sequences one after the other, in plain Python; shares no code."""

import math
from typing import NamedTuple


class Walk(NamedTuple):
    """One sequence: its probability, its (state, arm) pairs and its expected reward."""

    probability: float
    path: tuple[tuple[int, int], ...]
    reward: float


def softmax(row):
    largest = max(row)
    weights = [math.exp(z - largest) for z in row]
    total = math.fsum(weights)
    return [w / total for w in weights]


def walks(policy, reward, child, start) -> list[Walk]:
    """All sequences; policy, reward, child: [state][arm], start: [state]."""
    found = []

    def extend(state, probability, path):
        for arm, pi in enumerate(policy[state]):
            longer = (*path, (state, arm))
            if child[state][arm] < 0:
                found.append(Walk(probability * pi, longer, reward[state][arm]))
            else:
                extend(child[state][arm], probability * pi, longer)

    for state, probability in enumerate(start):
        if probability > 0:
            extend(state, probability, ())
    return found


def state_entropy(row):
    return -math.fsum(p * math.log(p) for p in row if p > 0)


def expected_length(found):
    return math.fsum(w.probability * len(w.path) for w in found)


def occupancy(found, states):
    """Share of all tokens chosen in each state."""
    counts = [math.fsum(w.probability * sum(s == state for s, _ in w.path) for w in found) for state in range(states)]
    return [c / expected_length(found) for c in counts]


def value(found):
    return math.fsum(w.probability * w.reward for w in found)


def action_value(found, state, arm):
    """Mean reward of the sequences through one pair of state and arm."""
    through = [w for w in found if (state, arm) in w.path]
    return math.fsum(w.probability * w.reward for w in through) / math.fsum(w.probability for w in through)


def best_value(found, start):
    """Best expected reward: the best sequence from each first state."""
    firsts = [state for state, share in enumerate(start) if share > 0]
    return math.fsum(start[f] * max(w.reward for w in found if w.path[0][0] == f) for f in firsts)


def start_values(found, start):
    """Expected reward from each first state."""
    return {
        f: math.fsum(w.probability * w.reward for w in found if w.path[0][0] == f) / share
        for f, share in enumerate(start)
        if share > 0
    }


def token_mean_gradient(found, policy, advantage):
    """E[sum_t advantage(walk) grad log pi(a_t|s_t)] / E[length] by the logits, [state][arm]."""
    gradient = [[0.0] * len(row) for row in policy]
    length = expected_length(found)
    for walk in found:
        for state, arm in walk.path:
            for other, pi in enumerate(policy[state]):
                score = (other == arm) - pi
                gradient[state][other] += walk.probability * advantage(walk) * score / length
    return gradient


class Token(NamedTuple):
    """What a token adds to a loss: pull * log pi(arm) - bonus * H, of the policy with logits scale * z(state)."""

    state: int
    arm: int
    scale: float
    pull: float
    bonus: float


def loss_gradient(logits, tokens, support=lambda row: range(len(row))):
    """Derivative of the tokens' loss by the logits z, [state][arm]; H is that of softmax over the arms in support.

    d log pi(a) / dz_b = k ((b = a) - pi_b),    dH / dz_b = -k q_b (log q_b + H) for b in support(k z)
    """
    gradient = [[0.0] * len(row) for row in logits]
    for token in tokens:
        row = [token.scale * z for z in logits[token.state]]
        kept = list(support(row))
        within = softmax([row[b] for b in kept])
        slope = [token.pull * ((b == token.arm) - pi) for b, pi in enumerate(softmax(row))]
        for b, q in zip(kept, within, strict=True):
            slope[b] += token.bonus * q * (math.log(q) + state_entropy(within))
        for b, part in enumerate(slope):
            gradient[token.state][b] += token.scale * part
    return gradient


def log_softmax(row):
    largest = max(row)
    return [z - largest - math.log(math.fsum(math.exp(x - largest) for x in row)) for z in row]


def _unclipped(ratio, advantage, low, high):
    return ratio * advantage <= min(max(ratio, 1 - low), 1 + high) * advantage


def _gate(ratio, advantage):
    x = (1.0 if advantage > 0 else 1.05) * (ratio - 1)
    return 1 / (1 + math.exp(-x)) / (1 + math.exp(x))


SLOPES = {
    "ppo": lambda r, s, a, low, high: r * a * _unclipped(r, a, low, high),
    "dual_clip": lambda r, s, a, low, high: r * a * (_unclipped(r, a, low, high) and (a >= 0 or r <= 3)),
    "cispo": lambda r, s, a, low, high: min(r, 1 + high) * a,
    "gspo": lambda r, s, a, low, high: s * a * _unclipped(s, a, low, high),
    "sapo": lambda r, s, a, low, high: 4 * a * r * _gate(r, a),
    "reinforce": lambda r, s, a, low, high: a,
}
"""Derivative of each surrogate by log pi: of a token's ratio, its sequence's, the advantage, and the clip distances."""

TOKEN_SHARES = {
    "token-mean": lambda lengths, row, horizon: 1 / sum(lengths),
    "seq-mean-token-mean": lambda lengths, row, horizon: 1 / lengths[row] / sum(n > 0 for n in lengths),
    "seq-mean-token-sum": lambda lengths, row, horizon: 1 / sum(n > 0 for n in lengths),
    "constant": lambda lengths, row, horizon: 1 / horizon / sum(n > 0 for n in lengths),
}
"""What a valid token of a row counts for in the loss, from the valid tokens of every row."""
