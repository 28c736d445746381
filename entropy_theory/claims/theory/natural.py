"""The natural policy gradient: the pseudo-inverse of the Fisher matrix, and the factor 1/(1 - gamma) of a process."""

from fractions import Fraction
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from entropy_theory import theorems
from entropy_theory.claims.claim import ANYWHERE, Claim, Counterexample, Verdict
from entropy_theory.claims.search import by_search
from entropy_theory.claims.small import Problem, problems
from entropy_theory.claims.statement import Comparison, States
from entropy_theory.claims.theory.mdp import Chain, chains, shares, solve, table
from entropy_theory.claims.theory.over import agree, entrywise, everywhere, worst
from entropy_theory.enclosure import Enclosed, mean, policy

if TYPE_CHECKING:
    from hypothesis.strategies import SearchStrategy

Matrix = list[list[Fraction]]
LEAST = 1e-8
"""Smallest probability of the policies on which the natural step is compared; 1/pi multiplies all rounding."""


def _product(a: Matrix, b: Matrix) -> Matrix:
    columns = list(zip(*b, strict=True))
    return [[sum((x * y for x, y in zip(row, c, strict=True)), Fraction(0)) for c in columns] for row in a]


def fisher_and_inverse(problem: Problem) -> tuple[Matrix, Matrix]:
    """F = diag(pi) - pi pi^T and P diag(1/pi) P with P = I - 1 1^T / K, exactly."""
    pi = shares(problem.weights)
    n = range(len(pi))
    fisher = [[pi[i] * ((i == j) - pi[j]) for j in n] for i in n]
    centring = [[(i == j) - Fraction(1, len(pi)) for j in n] for i in n]
    inner = [[centring[i][j] / pi[i] for j in n] for i in n]
    return fisher, _product(centring, inner)


def _no_inverse(problem: Problem) -> bool:
    """One of the four conditions of Moore and Penrose fails."""
    f, x = fisher_and_inverse(problem)
    fx, xf = _product(f, x), _product(x, f)
    transposed = [[list(column) for column in zip(*m, strict=True)] for m in (fx, xf)]
    return _product(fx, f) != f or _product(xf, x) != x or transposed != [fx, xf]


def _describe_inverse(problem: Problem) -> Counterexample:
    f, x = fisher_and_inverse(problem)
    code = f"from {__name__} import fisher_and_inverse\nfrom entropy_theory.claims.small import Problem\n"
    return Counterexample(f"{problem.text}: F = {f}, X = {x}", f"{code}print(fisher_and_inverse({problem!r}))\n")


def full_support(states: States) -> Tensor:
    """Policies without a probability below LEAST."""
    return torch.softmax(states.logits, -1).amin(-1) > LEAST


def check_step(states: States) -> Comparison:
    """F^+ (pi A) by the package against A - mean_a A, and the policy after it against pi exp(eta A), normalised."""
    z, eta = states.logits, states.step_size
    logp, pi = policy(z)
    advantage = states.advantage - mean(states.advantage, pi, keepdim=True)
    gradient, actions = pi * advantage, float(z.shape[-1])
    scaled = (gradient - gradient.sum(keepdim=True) / actions) / pi  # the package's operations, for their rounding
    scaled = scaled - scaled.sum(keepdim=True) / actions
    step = Enclosed(theorems.fisher_pseudo_inverse_product(z, gradient.value), scaled.error)
    moved = step * eta + z
    after, _ = policy(moved.value, moved.error.amax(-1))
    exponent = (advantage - advantage.value.amax(-1, keepdim=True)) * eta  # the constant keeps exp in range
    multiplied = logp + exponent - (pi * exponent.exp()).sum(keepdim=True).log()
    same = agree(step, advantage - advantage.sum(keepdim=True) / actions)
    return worst([entrywise(same), entrywise(agree(after, multiplied))])


class Game(NamedTuple):
    """A process, a policy as whole weights and a reward in tenths, by state and action."""

    chain: Chain
    weights: tuple[tuple[int, ...], ...]
    tenths: tuple[tuple[int, ...], ...]


def natural_and_advantage(game: Game) -> tuple[Matrix, Matrix]:
    """(F^+ grad J, A), each by state and action with its mean over actions taken off; exact.

    J is the discounted return from state 0, differentiated through (I - gamma P) V = r by solving
    (I - gamma P) dV = dr + gamma dP V; F = sum_s d(s) (diag(pi_s) - pi_s pi_s^T) over the normalised visits.
    States that are never visited are left out (0 in both).
    """
    chain, states = game.chain, range(len(game.weights))
    pi = [shares(w) for w in game.weights]
    reward = [[Fraction(t, 10) for t in row] for row in game.tenths]
    value, visits = chain.values(pi, reward), chain.visits(pi)
    q = [[reward[s][a] + chain.gamma * value[chain.following[s][a]] for a in range(len(pi[s]))] for s in states]
    natural, advantage = [], []
    for s in states:
        slopes = [_slope(chain, pi, q, s, a) / visits[s] if visits[s] else Fraction(0) for a in range(len(pi[s]))]
        natural.append(_centred([g / p for g, p in zip(_centred(slopes), pi[s], strict=True)]))
        advantage.append(_centred([x - value[s] for x in q[s]]) if visits[s] else [Fraction(0)] * len(pi[s]))
    return natural, advantage


def _slope(chain: Chain, pi: Matrix, q: Matrix, state: int, action: int) -> Fraction:
    """d V(0) / d z(state, action); the right side is dr + gamma dP V = sum_b dpi_b q_b at that state."""
    moved = [p * ((b == action) - pi[state][action]) for b, p in enumerate(pi[state])]
    change = sum((m * x for m, x in zip(moved, q[state], strict=True)), Fraction(0))
    right = [change if s == state else Fraction(0) for s in range(len(pi))]
    return solve(chain.resolvent(pi), right)[0]


def _centred(x: list[Fraction]) -> list[Fraction]:
    return [v - sum(x, Fraction(0)) / len(x) for v in x]


def _scaled(game: Game, factor: Fraction) -> bool:
    natural, advantage = natural_and_advantage(game)
    return natural != [[factor * v for v in row] for row in advantage]


def _describe_game(game: Game) -> Counterexample:
    natural, advantage = ([[float(f"{float(v):.4g}") for v in row] for row in m] for m in natural_and_advantage(game))
    code = f"from {__name__} import Game, natural_and_advantage\n"
    code += f"from entropy_theory.claims.theory.mdp import Chain\nprint(natural_and_advantage({game!r}))\n"
    text = f"{game.chain.text}, weights {game.weights}, rewards {game.tenths} tenths"
    return Counterexample(f"{text}: natural step {natural}, A minus its mean {advantage}", code)


def _games(discount: int) -> "SearchStrategy[Game]":
    from hypothesis import strategies as st

    return st.builds(Game, chains(discount=discount), table(2, st.integers(1, 9)), table(2, st.integers(0, 10)))


KAKADE = "Kakade 2001; Agarwal et al. 2021 (arXiv 1908.00261), Lemma 15"
NATURAL = (
    Claim(
        id="fisher_pseudo_inverse",
        statement="F = diag(pi) - pi pi^T has the pseudo-inverse P diag(1/pi) P, P = I - 1 1^T / K.",
        source="derived here (docs/theory.md, section 5)",
        recorded=Verdict.HOLDS,
        judge=by_search(problems, _no_inverse, _describe_inverse),
    ),
    Claim(
        id="natural_gradient",
        statement="F^+ (pi A) = A - mean_a A, and the step eta F^+ grad J makes the policy pi exp(eta A), normalised.",
        source="Cui et al. 2025 (arXiv 2505.22617), Theorem 2, after Kakade 2001; proof in docs/theory.md, section 5",
        recorded=Verdict.HOLDS,
        judge=everywhere(check_step, applies=full_support),
        assumptions=("tabular softmax", "full support"),
        places=ANYWHERE,
    ),
    Claim(
        id="natural_gradient_discounted",
        statement="In a discounted process the natural step is eta A / (1 - gamma), up to a constant per state.",
        source=KAKADE,
        recorded=Verdict.HOLDS,
        judge=by_search(lambda: _games(5), lambda g: _scaled(g, 1 / (1 - g.chain.gamma)), _describe_game),
        assumptions=("tabular softmax", "F over the normalised visits d(s)"),
    ),
    Claim(
        id="natural_gradient_factor",
        statement="The natural step of any process is eta A, up to a constant per state.",
        source="Cui et al. 2025 (arXiv 2505.22617), Theorem 2 read without its bandit setting",
        recorded=Verdict.UNDER_ASSUMPTION,
        judge=by_search(
            lambda: _games(5),
            lambda g: _scaled(g, Fraction(1)),
            _describe_game,
            lambda: _games(0),
            "gamma = 0, a bandit",
        ),
        assumptions=("gamma = 0",),
    ),
)
