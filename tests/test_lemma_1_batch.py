"""Lemma 1 in batch: every number within its stated bound of 60 digits, and each instance on its own."""

import importlib.util
import math
import subprocess
import sys
import tracemalloc

import mpmath
import numpy as np
import pytest
import strategies
import torch
from exact import LAST_DIGITS, Policy, number
from hypothesis import given
from hypothesis import strategies as st

from entropy_theory import lemma_1_batch, remainder, theorems
from entropy_theory.lemma_1_batch import check_lemma_1, engine_module, formulas
from entropy_theory.softmax import entropy

ENGINES = [
    "numpy",
    pytest.param(
        "numba", marks=pytest.mark.skipif(importlib.util.find_spec("numba") is None, reason="numba is not installed")
    ),
]
U = remainder.unit_roundoff(torch.float64)
NAMES = ("before", "after", "first", "second")


def float64(values) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


def rounding(engine, spread, actions) -> dict[str, torch.Tensor]:
    """The stated rounding bound of each of the four numbers at this spread."""
    of = formulas.rounding(actions, engine_module(engine).additions(actions))
    return {name: c[0] + spread * (c[1] + spread * c[2]) for name, c in zip(NAMES, of, strict=True)}


def four(checked) -> dict[str, torch.Tensor]:
    return dict(zip(NAMES, checked[:4], strict=True))


def rows_equal(one, other):
    return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


# --- against 60 digits --------------------------------------------------------------------------------------------


def exact(z, d) -> dict[str, mpmath.mpf]:
    top = max(z)  # shifted to 0, so that the 60 digits do not go into the size of the logits
    policy = Policy([mpmath.mpf(x) - mpmath.mpf(top) if x > -math.inf else x for x in z])
    return {
        "before": policy.h,
        "after": policy.moved(d).h,
        "first": policy.first_order(d),
        "second": policy.second_order(d),
    }


@pytest.mark.parametrize("engine", ENGINES)
@given(pair=strategies.small_pairs(dtypes=(torch.float64,)))
def test_every_number_is_within_its_rounding_bound_of_sixty_digits(engine, pair):
    z, d = pair
    checked = check_lemma_1(z, d, engine=engine)
    true, policy = exact(z.tolist(), d.tolist()), Policy(z.tolist())
    spread = policy.spread(d.tolist())
    assert abs(number(checked.spread) - spread) <= U * spread
    for name, allowed in rounding(engine, checked.spread * (1 + 2 * U), len(z)).items():
        assert abs(number(four(checked)[name]) - true[name]) <= number(allowed) + LAST_DIGITS, name
    for predicted, bound in (("first", checked.first_bound), ("second", checked.second_bound)):
        assert abs(true["after"] - true["before"] - true[predicted]) <= number(bound) + LAST_DIGITS


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("actions", [129, 1000, 2003])
def test_many_actions_are_within_the_bounds_too(engine, actions):
    rng = np.random.default_rng(actions)
    z = torch.from_numpy(3 * rng.normal(size=(4, actions)))
    z[1, 1:] = -torch.inf
    z[2, rng.permutation(actions)[: actions // 2]] = -torch.inf
    d = torch.from_numpy(rng.normal(size=(4, actions)) * np.array([[1e-3], [1.0], [5.0], [700.0]]))
    checked = check_lemma_1(z, d, engine=engine)
    allowed = rounding(engine, checked.spread * (1 + 2 * U), actions)
    for row in range(len(z)):
        for name, value in exact(z[row].tolist(), d[row].tolist()).items():
            assert abs(number(four(checked)[name][row]) - value) <= number(allowed[name][row]), (row, name)


# a tail that underflows, a change that brings it back, logits at both ends of float64, everything tied
HARD = [
    ([0.0, -800.0, -math.inf], [0.0, 900.0, 5.0]),
    ([0.0, -1e300, 3.0], [0.0, 1.0, -1.0]),
    ([1.7e308, -1.7e308, 1.7e308], [0.1, 1.0, -0.1]),
    ([1e308, 1e308, -math.inf], [1e6, 0.0, math.nan]),
    ([0.0, 0.0, 0.0], [400.0, -400.0, 0.0]),
    ([5.0, -400.0, -700.0], [-299.0, 0.0, 0.5]),
    ([5.0, -400.0, -708.5], [-500.0, 0.0, 500.0]),
    ([-math.inf, -math.inf, 2.0], [math.inf, math.nan, 3.0]),
    ([0.0, 1.0, 2.0], [1e15, 1e15 + 1, 1e15 - 1]),
    ([0.0, 1.0, 2.0], [1e-170, 0.0, -1e-170]),
    ([0.0, 1.0, 2.0], [5e-324, 0.0, 0.0]),
]


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize(("z", "d"), HARD)
def test_hard_instances(engine, z, d):
    checked = check_lemma_1(float64(z), float64(d), engine=engine)
    clean = [x if logit > -math.inf else 0.0 for logit, x in zip(z, d, strict=True)]
    allowed = rounding(engine, checked.spread * (1 + 2 * U), 3)
    for name, value in exact(z, clean).items():
        assert abs(number(four(checked)[name]) - value) <= number(allowed[name]), name


@pytest.mark.parametrize("engine", ENGINES)
def test_the_largest_spread_allowed_is_within_its_bounds(engine):
    z, d = [0.0, 1.0, 2.0], [formulas.LARGEST_SPREAD, 0.0, 1.0]
    checked = check_lemma_1(float64(z), float64(d), engine=engine)
    for name, value in exact(z, d).items():
        assert abs(number(four(checked)[name]) - value) <= number(rounding(engine, checked.spread, 3)[name]), name


def test_exp_and_log_of_the_compiled_engine_are_as_accurate_as_the_bounds_take_them():
    engine = pytest.importorskip("entropy_theory.lemma_1_batch.numba_engine", exc_type=ImportError)
    rng = np.random.default_rng(0)
    exponents = [formulas.SMALLEST_EXPONENT, *rng.uniform(-708, 308, 1000), *rng.uniform(-1, 1, 1000), 0.0, -1e-300]
    for x in map(float, exponents):
        assert abs(mpmath.log(mpmath.mpf(engine.exp(x))) - mpmath.mpf(x)) <= 8 * U
    # near 1 from both sides, where a logarithm loses digits if it loses them at all
    near = [1 + 2.0**-k for k in range(1, 53)] + [1 - 2.0**-k for k in range(1, 54)]
    for x in map(float, [*np.exp(rng.uniform(-300, 312, 1000)), *rng.uniform(0.5, 2, 1000), 1.0, *near]):
        true = mpmath.log(mpmath.mpf(x))
        assert abs(mpmath.mpf(engine.log(x)) - true) <= 4 * U * abs(true)


# --- against the rest of the package ------------------------------------------------------------------------------


@pytest.mark.parametrize("engine", ENGINES)
@given(pair=strategies.logits_and_changes(leading=None))
def test_agrees_with_the_theorems_within_both_rounding_bounds(engine, pair):
    z, d = pair
    checked, actions = check_lemma_1(z, d, engine=engine), z.shape[-1]
    assert checked.spread.shape == z.shape[:-1]
    assert torch.equal(checked.spread, remainder.spread(d, torch.isfinite(z)))
    own = rounding(engine, checked.spread, actions)
    # z + d is stored rounded here and exact there
    moved = torch.where(torch.isfinite(z), z + d, -torch.inf)
    stored = remainder.first_order_effect(U * moved.masked_fill(torch.isinf(z), 0.0).abs().amax(-1), actions)
    expected = {
        "before": (entropy(z), remainder.entropy_rounding(z)),
        "after": (entropy(moved), remainder.entropy_rounding(moved) + stored),
        "first": (theorems.entropy_change_first_order(z, d), remainder.first_order_rounding(z, d)),
        "second": (theorems.entropy_change_second_order(z, d), remainder.second_order_rounding(z, d)),
    }
    for name, (value, allowed) in expected.items():
        assert ((four(checked)[name] - value).abs() <= own[name] + allowed).all(), name


@pytest.mark.parametrize("engine", ENGINES)
@given(pair=strategies.logits_and_changes(leading=None, max_actions=50))
def test_the_bounds_are_remainder_plus_rounding(engine, pair):
    z, d = pair
    checked, actions = check_lemma_1(z, d, engine=engine), z.shape[-1]
    own = rounding(engine, checked.spread, actions)
    entropies = own["before"] + own["after"]
    first = remainder.remainder_bound(checked.spread, actions) + entropies + own["first"]
    second = remainder.second_order_remainder_bound(checked.spread, actions) + entropies + own["second"]
    for bound, sum_of_parts in ((checked.first_bound, first), (checked.second_bound, second)):
        assert (bound >= sum_of_parts).all()
        assert (bound <= sum_of_parts * (1 + 64 * U)).all()  # the outward factor, and this sum's own rounding


@pytest.mark.parametrize("engine", ENGINES)
@given(pair=strategies.logits_and_changes(leading=(5,)))
def test_no_instance_violates_the_lemma(engine, pair):
    checked = check_lemma_1(*pair, engine=engine)
    assert (checked.first_ratio() <= 1).all()
    assert (checked.second_ratio() <= 1).all()
    error = (checked.entropy_after - checked.entropy_before - checked.second_order).abs()
    assert torch.equal(checked.second_ratio(), error / checked.second_bound)


@pytest.mark.parametrize("engine", ENGINES)
def test_a_bound_that_is_too_small_would_be_noticed(engine, monkeypatch):
    """The two-valued change on three equal logits comes near the proved constant; a tenth of it is violated."""
    z, d = torch.zeros(3, dtype=torch.float64), float64([0.01, 0.0, 0.0])
    assert check_lemma_1(z, d, engine=engine).first_ratio() > 0.5
    monkeypatch.setattr(remainder, "remainder_constant", lambda actions: 0.025)
    assert check_lemma_1(z, d, engine=engine).first_ratio() > 1


# --- each instance on its own -------------------------------------------------------------------------------------


@pytest.mark.parametrize("engine", ENGINES)
@given(
    pair=st.integers(1, 70).flatmap(lambda n: strategies.logits_and_changes(leading=(n,), max_actions=200)),
    rng=strategies.generators(),
)
def test_an_instance_does_not_depend_on_its_neighbours(engine, pair, rng):
    z, d = pair
    whole = check_lemma_1(z, d, engine=engine)
    chosen = torch.from_numpy(rng.permutation(len(z))[: rng.integers(1, len(z) + 1)])
    assert rows_equal(check_lemma_1(z[chosen], d[chosen], engine=engine), [x[chosen] for x in whole])
    assert rows_equal(check_lemma_1(z, d, engine=engine, threads=3), whole)
    row = int(chosen[0])
    assert rows_equal(check_lemma_1(z[row], d[row], engine=engine), [x[row] for x in whole])


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("actions", [2, 10, 127, 128, 129, 1000])
def test_the_size_of_the_chunks_does_not_matter(engine, actions, monkeypatch):
    rng = np.random.default_rng(actions)
    z, d = (torch.from_numpy(rng.normal(size=(97, actions))) for _ in range(2))
    whole = check_lemma_1(z, d, engine=engine)
    for size in (1, 3 * actions, 64 * actions):
        monkeypatch.setattr(lemma_1_batch, "_CHUNK", size)
        monkeypatch.setattr(engine_module("numpy"), "CHUNK", size)
        shuffled = [x.t().contiguous().t() for x in (z, d)]  # not in C order, so it is copied in pieces
        assert rows_equal(check_lemma_1(z, d, engine=engine), whole)
        assert rows_equal(check_lemma_1(*shuffled, engine=engine), whole)


@pytest.mark.parametrize("engine", ENGINES)
@given(pair=strategies.logits_and_changes(leading=(4,), kinds=("masked", "one_hot"), max_actions=200))
def test_what_stands_at_a_masked_action_does_not_count(engine, pair):
    z, d = pair
    clean = check_lemma_1(z, d.masked_fill(torch.isinf(z), 0.0), engine=engine)
    for garbage in strategies.GARBAGE:
        assert rows_equal(check_lemma_1(z, d.masked_fill(torch.isinf(z), garbage), engine=engine), clean)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_other_dtypes_are_converted_exactly(engine, dtype):
    generator = torch.Generator().manual_seed(0)
    z, d = (torch.randn(3, 5, 7, generator=generator).to(dtype) for _ in range(2))
    assert rows_equal(check_lemma_1(z, d, engine=engine), check_lemma_1(z.double(), d.double(), engine=engine))


@pytest.mark.parametrize("engine", ENGINES)
def test_inputs_are_left_alone_and_results_go_where_they_are_wanted(engine):
    generator = torch.Generator().manual_seed(0)
    z, d = (torch.randn(40, 6, generator=generator, dtype=torch.float64) for _ in range(2))
    kept = z.clone(), d.clone()
    out = torch.empty(7, 40, dtype=torch.float64)
    checked = check_lemma_1(z, d, engine=engine, out=out)
    assert rows_equal((z, d), kept)
    assert rows_equal(checked, out)
    assert checked.spread.data_ptr() == out[4].data_ptr()
    assert rows_equal(check_lemma_1(z.requires_grad_(), d, engine=engine), checked)


def test_the_engine_is_numba_where_it_is_installed_and_numpy_elsewhere():
    installed = importlib.util.find_spec("numba") is not None
    assert engine_module().__name__.endswith("numba_engine" if installed else "numpy_engine")
    # an entry of None in sys.modules makes an import fail as if the package were missing
    code = (
        "import sys; sys.modules['numba'] = None; from entropy_theory.lemma_1_batch import engine_module as e\n"
        "print(e().__name__)\n"
        "try: e('numba')\nexcept ValueError as error: print(error)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split("\n")[:2] == [
        "entropy_theory.lemma_1_batch.numpy_engine",
        "engine 'numba' needs the package numba; install it, or use engine 'numpy'",
    ]


def test_work_space_of_the_numpy_engine_is_small():
    """NumPy reports its arrays to tracemalloc; benchmarks/lemma_1.py measures both engines from outside."""
    z, d = (torch.zeros(100_000, 10, dtype=torch.float64) for _ in range(2))
    out = torch.empty(7, 100_000, dtype=torch.float64)
    tracemalloc.start()
    check_lemma_1(z, d, engine="numpy", out=out)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 3e6 < 0.2 * 2 * z.numel() * 8


# --- bad input ----------------------------------------------------------------------------------------------------

GOOD = [0.0, 1.0, 2.0]


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize(
    ("logits", "change", "message"),
    [
        ([GOOD, [0.0, math.nan, 1.0]], [GOOD, GOOD], "instance 1: logits must be finite or -inf, got nan"),
        ([GOOD, [0.0, math.inf, 1.0]], [GOOD, GOOD], "instance 1: logits must be finite or -inf, got inf"),
        ([[-math.inf] * 3, GOOD], [GOOD, GOOD], "instance 0: no action has a finite logit"),
        ([GOOD, GOOD], [GOOD, [0.0, math.nan, 0.0]], "instance 1: change must be finite where .*, got nan"),
        ([GOOD, GOOD], [GOOD, [0.0, 0.0, -math.inf]], "instance 1: change must be finite where .*, got -inf"),
        ([GOOD, GOOD], [GOOD, [0.0, 0.0, 2e12]], "instance 1: change must span at most 1e[+]12 nats, got 2e[+]12"),
        ([GOOD, GOOD], [GOOD, [0.0, -1e308, 1e308]], "instance 1: change must span at most 1e[+]12 nats, got inf"),
        ([[1.0], [1.0]], [[1.0], [1.0]], r"at least 2 actions and not be empty, got \[2, 1\]"),
        ([[], []], [[], []], r"not be empty, got \[2, 0\]"),
        ([GOOD], [GOOD, GOOD], r"change must have the shape of logits, \[1, 3\], got \[2, 3\]"),
    ],
)
def test_bad_input_is_one_sentence(engine, logits, change, message):
    with pytest.raises(ValueError, match=message):
        check_lemma_1(float64(logits), float64(change), engine=engine)


def test_bad_settings_are_one_sentence():
    z = torch.zeros(2, 3, dtype=torch.float64)
    with pytest.raises(ValueError, match="engine must be one of numba, numpy, got 'cuda'"):
        check_lemma_1(z, z, engine="cuda")
    with pytest.raises(ValueError, match="threads must be at least 1, got 0"):
        check_lemma_1(z, z, threads=0)
    with pytest.raises(ValueError, match=r"out must be float64 in C order with shape \[7, 2\]"):
        check_lemma_1(z, z, out=torch.empty(7, 3, dtype=torch.float64))
