"""Controllers against plain loops, and on toy plants whose entropy answers the value."""

import math

import pytest
import strategies
import torch
from hypothesis import given
from hypothesis import strategies as st

from entropy_theory.controller import (
    anchored,
    constant,
    gated,
    integral,
    kl_adaptive,
    proportional_integral,
    schedule,
    step_to_target,
    towards_range,
)
from entropy_theory.controls.entropy_bonus import bonus_by
from entropy_theory.records import Measurement

DOUBLE = torch.float64
TINY, ABOVE_1 = math.ulp(0.0), math.nextafter(1.0, 2.0)


def follow(controller, entropies, dtype=DOUBLE):
    """Values before each step and after the last; entropies is [steps][replicas]."""
    state = controller.init(torch.zeros(len(entropies[0]), dtype=dtype))
    values = [controller.value(state)]
    for entropy in entropies:
        state = controller.advance(state, Measurement(torch.tensor(entropy, dtype=dtype)))
        values.append(controller.value(state))
    return values


def steered(controller, plant, steps):
    """(value, entropy) of each of so many steps when entropy is `plant` of the value."""
    state = controller.init(torch.zeros((), dtype=DOUBLE))
    seen = []
    for _ in range(steps):
        value = controller.value(state)
        entropy = plant(value)
        seen.append((float(value), float(entropy)))
        state = controller.advance(state, Measurement(entropy))
    return seen


def clip(value, low, high):
    return min(max(value, low), high)


ALL = {
    "constant": lambda: constant(0.3),
    "schedule": lambda: schedule("cosine", 0.3, 0.0, 3),
    "step_to_target": lambda: step_to_target(0.3, 0.1),
    "gated": lambda: gated(step_to_target(0.3, 0.1), 0.3),
    "anchored": lambda: anchored(0.4, 0.1, start=0.2),
    "integral": lambda: integral(0.3, 0.1, 0.0, 1.0, 0.2, "sign"),
    "towards_range": lambda: towards_range(0.2, 0.4, 0.1, 0.0, 1.0, 0.2),
    "proportional_integral": lambda: proportional_integral(0.3, 1.0, 0.1),
    "kl_adaptive": lambda: kl_adaptive(0.2, 0.1, 10.0),
}
"""Made by the test that uses them: what is made on import is made once, whatever is changed later."""

# --- against plain loops ------------------------------------------------------------------------------------------


@given(strategies.entropy_traces(), st.sampled_from([1e-4, 0.005, 0.1]), st.sampled_from(["raise", "hold", "lower"]))
def test_step_to_target_equals_the_loop_in_every_replica(entropies, delta, at_target):
    """Skywork-OR1's rule with the clip of its code, and what three publications do at the target itself."""
    values = follow(step_to_target(0.3, delta, low=0.0, high=0.2, start=0.1, at_target=at_target), entropies)
    equal = {"raise": delta, "hold": 0.0, "lower": -delta}[at_target]
    expected = [0.1] * len(entropies[0])
    for step, measured in enumerate(entropies):
        assert values[step].tolist() == expected
        moves = [delta if h < 0.3 else equal if h == 0.3 else -delta for h in measured]
        expected = [clip(v + move, 0.0, 0.2) for v, move in zip(expected, moves, strict=True)]
    assert values[-1].tolist() == expected


@given(strategies.entropy_traces(), st.sampled_from(["raise", "hold", "lower"]))
def test_a_gate_is_open_after_an_entropy_at_or_below_the_target(entropies, at_target):
    values = follow(gated(constant(0.7), 0.3, at_target), entropies)
    assert values[0].tolist() == [0.0] * len(entropies[0])  # nothing is measured yet
    for measured, value in zip(entropies, values[1:], strict=True):
        opened = [h < 0.3 or (h == 0.3 and at_target != "lower") for h in measured]
        assert value.tolist() == [0.7 if o else 0.0 for o in opened]


@given(strategies.entropy_traces(), st.sampled_from(["proportional", "sign"]))
def test_anchored_equals_the_loop_in_every_replica(entropies, response):
    values = follow(anchored(0.4, 0.3, low=0.0, high=0.2, start=0.1, response=response), entropies)
    for replica, first in enumerate(entropies[0]):
        expected = 0.1
        for step, measured in enumerate(entropies):
            assert float(values[step][replica]) == expected
            error = 0.4 * first - measured[replica]
            expected = clip(expected + 0.3 * respond(error, response), 0.0, 0.2)
        assert float(values[-1][replica]) == expected


def respond(error, response):
    return error if response == "proportional" else (error > 0) - (error < 0)


@given(strategies.entropy_traces(), st.sampled_from(["proportional", "sign"]))
def test_integral_equals_the_loop_in_every_replica(entropies, response):
    values = follow(integral(0.3, 0.2, -0.5, 0.5, 0.1, response), entropies)
    for replica in range(len(entropies[0])):
        expected = 0.1
        for step, measured in enumerate(entropies):
            assert float(values[step][replica]) == expected
            expected = clip(expected + 0.2 * respond(0.3 - measured[replica], response), -0.5, 0.5)


@given(strategies.entropy_traces())
def test_towards_range_equals_the_loop_in_every_replica(entropies):
    """The authors' two lines: a step of lr times the distance outside the range, then the box."""
    values = follow(towards_range(0.2, 0.4, 0.1, 0.01, 0.2, 0.05), entropies)
    for replica in range(len(entropies[0])):
        coefficient = 0.05
        for step, measured in enumerate(entropies):
            assert float(values[step][replica]) == coefficient
            h = measured[replica]
            coefficient -= 0.1 * (min(0, h - 0.2) + max(0, h - 0.4))
            coefficient = min(max(coefficient, 0.01), 0.2)


@given(strategies.entropy_traces(), st.sampled_from([0.0, 0.5, 2.0]), st.sampled_from([0.0, 0.1, 1.0]))
def test_proportional_integral_equals_the_loop_in_every_replica(entropies, proportional, gain):
    values = follow(proportional_integral(0.3, proportional, gain, limit=0.8), entropies)
    for replica in range(len(entropies[0])):
        total = expected = 0.0
        for step, measured in enumerate(entropies):
            assert float(values[step][replica]) == expected
            error = measured[replica] - 0.3
            deeper = abs(proportional * error + gain * (total + error)) > 0.8 and error * (total + error) > 0
            total = total if deeper else total + error
            expected = clip(proportional * error + gain * total, -0.8, 0.8)


@pytest.mark.parametrize("kind", ["constant", "linear", "cosine"])
def test_schedule_goes_from_start_to_end_and_stays(kind):
    values = [float(v) for v in follow(schedule(kind, 0.8, 0.2, 4), [[1.0]] * 6)]
    shares = {
        "constant": [0.0] * 7,
        "linear": [0, 0.25, 0.5, 0.75, 1, 1, 1],
        # (1 - cos(pi t / 4)) / 2
        "cosine": [(1 - math.cos(math.pi * min(t, 4) / 4)) / 2 for t in range(7)],
    }[kind]
    # 1e-15: the rounding of a few operations on numbers below 1
    assert values == pytest.approx([0.8 - 0.6 * share for share in shares], abs=1e-15)


@given(st.lists(st.sampled_from([0.0, 0.01, 0.05, 0.09, 0.1, 0.11, 0.2, 5.0, math.inf]), min_size=1, max_size=12))
def test_kl_adaptive_equals_the_published_loop(measured):
    """verl counts samples: 256 of them per update and a horizon of 2,560 are a horizon of 10 updates."""
    controller = kl_adaptive(0.02, 0.1, horizon=10.0)
    state, published = controller.init(torch.zeros((), dtype=DOUBLE)), 0.02
    for kl in measured:
        state = controller.advance(state, Measurement(torch.tensor(1.0), torch.tensor(kl, dtype=DOUBLE)))
        published *= 1 + min(max(kl / 0.1 - 1, -0.2), 0.2) * 256 / 2560
        # 2.2e-16 relative for each of the four roundings of at most 12 steps
        assert float(controller.value(state)) == pytest.approx(published, rel=48 * 2.3e-16)
        assert float(controller.value(state)) > 0


# --- bounds -------------------------------------------------------------------------------------------------------


@given(strategies.entropy_traces(), st.data())
def test_values_keep_their_bounds(entropies, data):
    """In particular a coefficient is never negative: then it would lower entropy."""
    low, start, high = sorted(data.draw(st.tuples(*[st.sampled_from([0.0, 0.01, 0.05, 0.3])] * 3)))
    controller = data.draw(
        st.sampled_from(
            [
                step_to_target(0.3, 0.1, low, high, start),
                gated(step_to_target(0.3, 0.1, low, high, start), 0.3),
                anchored(0.5, 2.0, low, high, start),
                integral(0.3, 2.0, low, high, start),
                towards_range(0.2, 0.4, 2.0, low, high, start),
            ]
        )
    )
    assert all(((v >= 0) & (v <= high)).all() for v in follow(controller, entropies))


def test_step_to_target_does_not_go_below_zero_while_entropy_is_high():
    """Without the clip the value would be -1 after ten steps and need ten more to come back."""
    values = follow(step_to_target(0.3, 0.1), [[2.0]] * 10 + [[0.1]])
    assert values[-1].tolist() == [0.1]


@given(strategies.entropy_traces(longest=60), st.sampled_from([0.0, 0.5, 2.0]), st.sampled_from([0.05, 1.0]))
def test_the_sum_of_errors_does_not_wind_up(entropies, proportional, gain):
    """A sum is taken over only while it keeps the value inside the clip or shrinks, so K_I |sum| <= limit."""
    controller = proportional_integral(0.3, proportional, gain, limit=0.7)
    state = controller.init(torch.zeros(len(entropies[0]), dtype=DOUBLE))
    for measured in entropies:
        state = controller.advance(state, Measurement(torch.tensor(measured, dtype=DOUBLE)))
        # 1e-15: the comparison is made on a rounded sum of two numbers below 4
        assert (gain * state[1].abs() <= 0.7 + 1e-15).all()


def test_a_saturated_value_comes_back_within_two_steps_of_the_errors_sign():
    """100 steps at e = 0.9 fill the sum to 9 (K_I e = 0.09, so 10 times until 0.9 > 0.8 is refused: 8 kept).

    Then e = -0.1 takes K_I sum from 0.72 to 0.71 and the value follows at once; with the sum let run it would be 9.
    """
    controller = proportional_integral(0.1, 0.0, 0.1, limit=0.8)
    values = [float(v) for v in follow(controller, [[1.0]] * 100 + [[0.0]])]
    # 1e-14: a hundred roundings of numbers below 8, times K_I = 0.1
    assert values[100] == pytest.approx(0.72, abs=1e-14)
    assert values[101] == pytest.approx(0.71, abs=1e-14)


@pytest.mark.parametrize(
    ("controller", "entropies", "last"),
    [
        # .5 + .5: K_I sum stands at the limit itself, which is not beyond it, so the second error is kept
        (lambda: proportional_integral(1.0, 0.0, 1.0), [1.5, 1.5], 1.0),
        # the next one would lie beyond it, so the sum stays at 1 and falls to .5 with the next error
        (lambda: proportional_integral(1.0, 0.0, 1.0), [1.5, 1.5, 1.5, 0.5], 0.5),
        # e = -1/16 three times, then 3/16: a sum of 0 drives nothing deeper, although 8 e = 1.5 is clipped; then e = 0
        (lambda: proportional_integral(1.0, 8.0, 1.0), [0.9375] * 3 + [1.1875, 1.0], 0.0),
        # K_P e = -3 and +3, clipped to the default limit of 1
        (lambda: proportional_integral(4.0, 1.0, 0.0), [1.0], -1.0),
        (lambda: proportional_integral(4.0, 1.0, 0.0), [7.0], 1.0),
        # 30 steps of .1 from 0, up to the default highest value of 1
        (lambda: step_to_target(1.0, 0.1), [0.0] * 30, 1.0),
        (lambda: anchored(0.5, 1.0), [4.0, 0.0], 1.0),
    ],
)
def test_values_at_and_beyond_their_limits(controller, entropies, last):
    # 1e-15: a rounding or two of numbers below 1
    assert float(follow(controller(), [[h] for h in entropies])[-1]) == pytest.approx(last, abs=1e-15)


# --- plants: entropy answers the value ----------------------------------------------------------------------------


@given(st.floats(0.5, 3.0), st.floats(0.05, 0.4), st.floats(0.3, 0.6))
def test_step_to_target_ends_within_one_step_of_the_target(slope, at_rest, target):
    """Entropy at_rest + slope v. From v = 0 the target is (target - at_rest) / (slope delta) <= 110 steps of 0.01 away.

    From then on the value steps across the target: it is never more than one step, slope delta, away.
    """
    seen = steered(step_to_target(target, 0.01, high=2.0), lambda v: at_rest + slope * v, 160)
    if at_rest < target:
        # 1e-12: rounding of 160 additions
        assert all(abs(h - target) <= slope * 0.01 + 1e-12 for _, h in seen[120:])
    else:  # nothing to add: the coefficient stays at 0
        assert all(v <= 0.01 for v, _ in seen)


@given(st.floats(0.5, 2.0), st.floats(0.05, 0.2), st.floats(0.3, 0.6))
def test_integral_control_reaches_the_target_geometrically(slope, at_rest, target):
    """Entropy at_rest + slope v: the error shrinks by |1 - gain slope| in each step, here to 0.5 to 0.875 of it."""
    seen = steered(integral(target, 0.25, 0.0, 10.0, 0.0), lambda v: at_rest + slope * v, 121)
    # 0.875^120 = 1.1e-7 of an error below 0.6 at first
    assert abs(seen[-1][1] - target) < 1e-7


@given(st.floats(0.5, 2.0), st.floats(0.05, 0.2), st.floats(0.3, 0.6))
def test_anchored_control_reaches_its_share_of_the_first_entropy(slope, at_rest, share):
    """As above, after a first step at 1 nat, which is above the target and leaves the value at 0."""
    first = iter([1.0])
    seen = steered(anchored(share, 0.25, 0.0, 10.0), lambda v: 0 * v + next(first, at_rest + slope * v), 122)
    assert abs(seen[-1][1] - share) < 1e-7


@given(st.floats(0.0, 0.5), st.floats(0.05, 0.25), st.floats(-0.4, 0.4))
def test_proportional_integral_control_reaches_the_target(proportional, gain, offset):
    """Entropy target + offset - v. The error's recursion z^2 - (1 - P - I) z - P has its roots inside the unit circle:

    at z = 1 it is I > 0, at z = -1 it is 2 - 2P - I > 0, and their product -P is below 1 in size. The larger root is at
    most that of P = 0.5, I = 0.05, which is (0.45 + sqrt(0.45^2 + 2)) / 2 = 0.967.
    """
    controller = proportional_integral(1.0, proportional, gain)
    seen = steered(controller, lambda v: 1.0 + offset - v, 500)
    # 0.967^500 = 5e-8, and 100 for the constants before the powers of the roots
    assert abs(seen[-1][1] - 1.0) < 5e-6


@given(st.floats(0.05, 0.15), st.floats(0.45, 0.8))
def test_towards_range_stops_at_its_edge(below, above):
    """Entropy at_rest + v: outside the range the distance to its edge shrinks by 1 - gain = 0.8, inside it stays."""
    raised = steered(towards_range(0.2, 0.4, 0.2, 0.0, 5.0, 0.0), lambda v: below + v, 100)
    lowered = steered(towards_range(0.2, 0.4, 0.2, 0.0, 5.0, 0.5), lambda v: above - 0.5 + v, 100)
    # 0.8^99 = 2.6e-10 of a distance of at most 0.4
    assert abs(raised[-1][1] - 0.2) < 1.1e-10
    assert abs(lowered[-1][1] - max(0.4, above - 0.5)) < 1.1e-10


@given(st.floats(0.02, 0.3), st.floats(0.02, 0.05))
def test_kl_adaptive_reaches_its_target(scale, target):
    """KL = scale / (1 + 10 v): below the value that gives the target KL is too high and v grows, above it v shrinks.

    The answer v* = (scale / target - 1) / 10 is 0.02 to 1.4, within 3 of v = 0.1 in log v, which moves by up to
    log(1 + 0.2 / 5) = 0.039 a step: 80 steps. Then the error shrinks by 1 - 10 v* / (1 + 10 v*) / 5 <= 0.967 a step.
    """
    seen = steered_by_kl(kl_adaptive(0.1, target, horizon=5.0), lambda v: scale / (1 + 10 * v), 2000)
    if scale > 1.2 * target:
        assert abs(seen[-1][1] - target) < 0.01 * target
    if scale < target:  # even without a coefficient the policy stays closer than asked: it fades
        assert seen[-1][0] < 0.1


def steered_by_kl(controller, plant, steps):
    state = controller.init(torch.zeros((), dtype=DOUBLE))
    seen = []
    for _ in range(steps):
        value = controller.value(state)
        seen.append((float(value), float(plant(value))))
        state = controller.advance(state, Measurement(torch.ones((), dtype=DOUBLE), plant(value)))
    return seen


# --- what every controller keeps ----------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("measured", [torch.float64, torch.float32])
@pytest.mark.parametrize("name", ALL)
def test_controllers_keep_their_dtype_whatever_is_measured(name, measured, dtype):
    """Of the value and of all of the state, which a resumed run reads back."""
    controller = ALL[name]()
    state = controller.init(torch.zeros(2, dtype=dtype))
    for entropies in ([0.1, 2.0], [2.0, 0.1]):
        entropy = torch.tensor(entropies, dtype=measured)
        state = controller.advance(state, Measurement(entropy, 0.1 * entropy))
        parts = state if isinstance(state, tuple) else (state,)
        assert {t.dtype for t in (controller.value(state), *parts)} == {dtype}


def test_constant_stays():
    assert [v.tolist() for v in follow(constant(0.3), [[0.1, 5.0]] * 3)] == [[0.3, 0.3]] * 4


def test_advance_does_not_write_into_its_state():
    controller = step_to_target(0.3, 0.1)
    state = controller.init(torch.zeros(2, dtype=DOUBLE))
    controller.advance(state, Measurement(torch.tensor([0.1, 0.1], dtype=DOUBLE)))
    assert state.tolist() == [0.0, 0.0]


@pytest.mark.parametrize(
    ("make", "named"),
    [
        (lambda: step_to_target(0.0, 0.1), "target_entropy"),
        (lambda: step_to_target(0.3, -0.1), "-0.1"),
        (lambda: step_to_target(0.3, 0.0), "target_entropy and delta must be positive, got 0.3 and 0.0"),
        (lambda: step_to_target(0.3, 0.1, low=2.0, high=1.0), "low and high, got 2.0, 0.0 and 1.0"),
        (lambda: step_to_target(0.3, 0.1, at_target="stay"), "at_target must be one of raise, hold, lower, got 'stay'"),
        (lambda: gated(constant(1.0), 0.3, at_target="stay"), "at_target must be one of"),
        (lambda: anchored(1.0, 0.1), "share must lie in"),
        (lambda: anchored(0.0, 0.1), r"share must lie in \(0, 1\) and gain be positive, got 0.0 and 0.1"),
        (lambda: anchored(0.4, 0.0), "gain be positive"),
        (lambda: anchored(0.4, 0.1, start=2.0), "got 0.0, 2.0 and 1.0"),
        (lambda: anchored(0.4, 0.1, response="cubic"), "response must be one of proportional, sign"),
        (lambda: integral(0.0, 0.1, 0.0, 1.0, 0.0), "target and gain must be positive"),
        (lambda: integral(0.3, 0.0, 0.0, 1.0, 0.0), "target and gain must be positive, got 0.3 and 0.0"),
        (lambda: integral(0.3, 0.1, 0.0, 1.0, -1.0), "got 0.0, -1.0 and 1.0"),
        (lambda: towards_range(-TINY, 0.2, 0.1, 0.0, 1.0, 0.0), "between 0 and entropy_high, got -5e-324 and 0.2"),
        (lambda: towards_range(0.5, 0.2, 0.1, 0.0, 1.0, 0.0), "between 0 and entropy_high, got 0.5 and 0.2"),
        (lambda: towards_range(0.2, 0.5, 0.0, 0.0, 1.0, 0.0), "gain must be positive"),
        (lambda: kl_adaptive(0.0, 0.1, 10.0), "got 0.0, 0.1, 0.2 and 10.0"),
        (lambda: kl_adaptive(0.1, 0.1, 0.1), "horizon above it"),
        (lambda: kl_adaptive(0.1, 0.1, 0.2), "horizon above it, got 0.1, 0.1, 0.2 and 0.2"),
        (lambda: kl_adaptive(0.1, 0.0, 10.0), "got 0.1, 0.0, 0.2 and 10.0"),
        (lambda: kl_adaptive(0.1, 0.1, 10.0, most=0.0), "got 0.1, 0.1, 0.0 and 10.0"),
        (lambda: kl_adaptive(0.1, 0.1, 10.0, most=ABOVE_1), f"got 0.1, 0.1, {ABOVE_1} and 10.0"),
        (lambda: proportional_integral(0.0, 1.0, 1.0), "target and limit must be positive"),
        (lambda: proportional_integral(0.3, 1.0, 1.0, limit=0.0), "got 0.3, 0.0, 1.0 and 1.0"),
        (lambda: proportional_integral(0.3, -0.1, 1.0), "got 0.3, 1.0, -0.1 and 1.0"),
        (lambda: proportional_integral(0.3, 1.0, -0.1), "got 0.3, 1.0, 1.0 and -0.1"),
        (lambda: schedule("linear", 1.0, 0.0, 0), "at least 1, got 0"),
        (lambda: schedule("square", 1.0, 0.0, 5), "constant, linear, cosine, got 'square'"),
    ],
)
def test_bad_parameters_are_named(make, named):
    with pytest.raises(ValueError, match=named):
        make()


@pytest.mark.parametrize(
    ("make", "value"),
    [
        (lambda: schedule("linear", 0.8, 0.2, 1), 0.8),
        (lambda: anchored(TINY, TINY), 0.0),
        (lambda: anchored(math.nextafter(1.0, 0.0), 0.1, start=1.0), 1.0),
        (lambda: integral(TINY, TINY, 0.0, 1.0, 1.0), 1.0),
        (lambda: towards_range(0.0, 0.0, TINY, 0.5, 0.5, 0.5), 0.5),
        (lambda: kl_adaptive(TINY, TINY, ABOVE_1, most=1.0), TINY),
        (lambda: kl_adaptive(0.1, 0.1, math.nextafter(0.2, 1)), 0.1),
        (lambda: proportional_integral(TINY, 0.0, 0.0, limit=TINY), 0.0),
        (lambda: step_to_target(TINY, TINY, 0.0, 0.0), 0.0),
    ],
)
def test_the_last_number_of_a_range_is_taken(make, value):
    controller = make()
    assert float(controller.value(controller.init(torch.zeros((), dtype=DOUBLE)))) == value


def test_a_coefficient_that_follows_the_kl_says_so_when_none_is_measured():
    controller = kl_adaptive(0.1, 0.1, 10.0)
    with pytest.raises(ValueError, match="the world measured none"):
        controller.advance(controller.init(torch.zeros(())), Measurement(torch.tensor(1.0)))


def test_a_controller_drives_the_entropy_bonus():
    control = bonus_by(step_to_target(0.3, 0.1))
    state = control.init(torch.zeros(2, dtype=DOUBLE))
    state = control.advance(state, Measurement(torch.tensor([0.1, 2.0], dtype=DOUBLE)))
    assert state.tolist() == [0.1, 0.0]
