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
