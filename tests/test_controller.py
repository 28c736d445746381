"""Controllers against plain loops."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from entropy_theory.controller import constant, step_to_target
from entropy_theory.controls.entropy_bonus import bonus_by
from entropy_theory.records import Measurement

DOUBLE = torch.float64


def follow(controller, entropies, dtype=DOUBLE):
    """Values before each step and after the last; entropies is [steps][replicas]."""
    state = controller.init(torch.zeros(len(entropies[0]), dtype=dtype))
    values = [controller.value(state)]
    for entropy in entropies:
        state = controller.advance(state, Measurement(torch.tensor(entropy, dtype=dtype)))
        values.append(controller.value(state))
    return values


@given(
    st.lists(st.lists(st.sampled_from([0.1, 0.3, 0.5, 2.0]), min_size=3, max_size=3), min_size=1, max_size=12),
    st.sampled_from([1e-4, 0.005, 0.1]),
)
def test_step_to_target_equals_the_loop_in_every_replica(entropies, delta):
    """Skywork-OR1's rule with the clip of its code; entropy equal to the target lowers the value."""
    values = follow(step_to_target(0.3, delta, low=0.0, high=0.2, start=0.1), entropies)
    expected = [0.1, 0.1, 0.1]
    for step, measured in enumerate(entropies):
        assert values[step].tolist() == expected
        expected = [
            min(max(v + (delta if h < 0.3 else -delta), 0.0), 0.2) for v, h in zip(expected, measured, strict=True)
        ]
    assert values[-1].tolist() == expected


def test_step_to_target_does_not_go_below_zero_while_entropy_is_high():
    """Without the clip the value would be -1 after ten steps and need ten more to come back."""
    values = follow(step_to_target(0.3, 0.1), [[2.0]] * 10 + [[0.1]])
    assert values[-1].tolist() == [0.1]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_controllers_keep_the_dtype(dtype):
    for controller in (constant(0.3), step_to_target(0.3, 0.1)):
        values = follow(controller, [[0.1], [2.0]], dtype)
        assert all(v.dtype == dtype for v in values)


def test_constant_stays():
    assert [v.tolist() for v in follow(constant(0.3), [[0.1, 5.0]] * 3)] == [[0.3, 0.3]] * 4


def test_advance_does_not_write_into_its_state():
    controller = step_to_target(0.3, 0.1)
    state = controller.init(torch.zeros(2, dtype=DOUBLE))
    controller.advance(state, Measurement(torch.tensor([0.1, 0.1], dtype=DOUBLE)))
    assert state.tolist() == [0.0, 0.0]


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ({"target_entropy": 0.0, "delta": 0.1}, "target_entropy"),
        ({"target_entropy": 0.3, "delta": -0.1}, "-0.1"),
        ({"target_entropy": 0.3, "delta": 0.1, "low": 2.0, "high": 1.0}, "start must lie between low and high, got 2.0, 0.0 and 1.0"),
    ],
)
def test_bad_parameters_are_named(arguments, named):
    with pytest.raises(ValueError, match=named):
        step_to_target(**arguments)


def test_a_controller_drives_the_entropy_bonus():
    control = bonus_by(step_to_target(0.3, 0.1))
    state = control.init(torch.zeros(2, dtype=DOUBLE))
    state = control.advance(state, Measurement(torch.tensor([0.1, 2.0], dtype=DOUBLE)))
    assert state.tolist() == [0.1, 0.0]
