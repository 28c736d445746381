"""What a run says of its controls: every parameter with its meaning, and when a control does nothing."""

import pytest
from contract import CONTRACT

from entropy_theory.cli.announce import QUIET_STEPS, QuietWatch, announcement, idle_notes, meanings
from entropy_theory.control import Need
from entropy_theory.controls import CONTROLS, parameters, presets, resolve

EVERYTHING = frozenset(Need)


@pytest.mark.parametrize("name", CONTROLS)
def test_every_parameter_has_its_meaning_in_the_docstring(name):
    missing = set(parameters(name)) - set(meanings(CONTROLS[name]))
    assert not missing, f"docstring of {name} says nothing of {missing}"


@pytest.mark.parametrize("name", CONTROLS)
def test_the_announcement_shows_each_resolved_value(name):
    for preset in (None, *presets(name)):
        settings = {} if preset is None else {f"{name}.preset": preset}
        lines = announcement(name, settings).splitlines()
        assert (f"preset {preset}" in lines[0]) == (preset is not None)
        for parameter, value in resolve(name, settings)[name].items():
            assert any(line.split()[:3] == [parameter, "=", str(value)] for line in lines)


@pytest.mark.parametrize("name", CONTROLS)
def test_a_control_that_cannot_act_is_named_with_what_is_missing(name):
    settings = {f"{name}.{key}": value for key, value in CONTRACT[name].acting.items()}
    without = CONTROLS[name](**CONTRACT[name].acting).idle_without
    assert idle_notes(name, settings, EVERYTHING) == []
    for need in without:
        (note,) = idle_notes(f"none+{name}", settings, EVERYTHING - {need})
        assert name in note and need.value in note
    for need in EVERYTHING - without:
        assert idle_notes(name, settings, EVERYTHING - {need}) == []


def test_an_empty_band_is_reported_once_with_the_largest_score():
    watch = QuietWatch("clip_cov", {"clip_cov.low": 3.0})
    lines = [{"selected_tokens": [0, 0], "cov_token_max": [0.1 * i, 0.5]} for i in range(QUIET_STEPS + 5)]
    said = [watch(line) for line in lines]
    assert [text is not None for text in said] == [i == QUIET_STEPS - 1 for i in range(QUIET_STEPS + 5)]
    assert "between 3 and 5" in said[QUIET_STEPS - 1] and "1.9" in said[QUIET_STEPS - 1]


def test_a_band_that_holds_tokens_is_not_reported():
    watch = QuietWatch("clip_cov", {})
    lines = [{"selected_tokens": int(i == 3), "cov_token_max": 9.0} for i in range(3 * QUIET_STEPS)]
    assert [watch(line) for line in lines] == [None] * len(lines)
    quiet = QuietWatch("none", {})
    assert [quiet({"selected_tokens": 0}) for _ in range(3 * QUIET_STEPS)] == [None] * (3 * QUIET_STEPS)
