"""Presets: each names values its control takes, says so when printed, and wrong names or values are one sentence."""

import contextlib
import inspect
import io
import itertools
import types
import typing

import pytest
from contract import CONTRACT
from hypothesis import given
from hypothesis import strategies as st

from entropy_theory.cli import main
from entropy_theory.control import Control, Need, control
from entropy_theory.controls import CONTROLS, EXCLUSIVE, build, idle_parts, parameters, presets, resolve

NAMES = sorted(CONTROLS)
PAIRS = [(name, preset) for name in NAMES for preset in presets(name)]
WITHOUT = [name for name in NAMES if not presets(name)]


def one_sentence(error):
    """Whether the message is one line that does not trail off, and short enough to read."""
    text = str(error.value)
    return "\n" not in text and not text.endswith(".") and ". " not in text and 10 < len(text) < 400


@pytest.fixture(scope="module")
def listing():
    """What `entropy-theory controls` prints."""
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        assert main(["controls"]) == 0
    return out.getvalue()


# --- what a preset is -----------------------------------------------------------------------------------------------


def test_the_presets_of_the_papers_are_there():
    assert {"paper-7b", "paper-32b", "verl"} <= presets("clip_cov").keys() & presets("kl_cov").keys()
    assert "dapo" in presets("clip_higher")


@pytest.mark.parametrize(("name", "preset"), PAIRS)
def test_a_preset_names_parameters_of_its_control(name, preset):
    values = presets(name)[preset]
    assert values and not values.keys() - parameters(name).keys()
    assert "preset" not in parameters(name)  # the word that names a preset


@pytest.mark.parametrize(("name", "preset"), PAIRS)
def test_a_preset_resolves_to_its_values_and_the_other_defaults(name, preset):
    resolved = resolve(name, {f"{name}.preset": preset})
    assert resolved == {name: {**parameters(name), **presets(name)[preset]}}


@pytest.mark.parametrize(("name", "preset"), PAIRS)
def test_a_preset_builds_and_holds_what_the_command_line_would_take(name, preset):
    """Each value set by itself, as --set would, is accepted and stays what it is: of the annotated type, in range."""
    values = presets(name)[preset]
    assert isinstance(build(name, {f"{name}.preset": preset}), Control)
    settings = {f"{name}.{key}": value for key, value in values.items()}
    assert resolve(name, settings) == resolve(name, {f"{name}.preset": preset})
    assert isinstance(build(name, settings), Control)


@pytest.mark.parametrize(("name", "preset"), PAIRS)
def test_a_parameter_set_beside_a_preset_wins(name, preset):
    for key, value in CONTRACT[name].acting.items():
        for settings in ({f"{name}.preset": preset, f"{name}.{key}": value},):
            for order in (settings, dict(reversed(settings.items()))):
                assert resolve(name, order)[name][key] == value


@pytest.mark.parametrize(("name", "preset"), PAIRS)
def test_presets_and_parameters_are_not_changed_by_use(name, preset):
    before = {k: dict(v) for k, v in presets(name).items()}, parameters(name)
    key = next(iter(parameters(name)))
    resolved = resolve(name, {f"{name}.preset": preset})
    resolved[name][key] = "spoiled"
    assert (presets(name), parameters(name)) == before


@pytest.mark.parametrize(("name", "preset"), PAIRS)
def test_a_preset_in_a_chain_is_for_its_own_control(name, preset):
    other = "none" if name != "none" else "clip_higher"
    resolved = resolve(f"{other}+{name}", {f"{name}.preset": preset})
    assert resolved == resolve(other, {}) | resolve(name, {f"{name}.preset": preset})
    assert list(resolved) == [other, name]


@pytest.mark.parametrize("name", NAMES)
def test_no_two_presets_of_a_control_share_a_name_with_a_parameter(name):
    assert not presets(name).keys() & parameters(name).keys()


# --- what is printed ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "preset"), PAIRS)
def test_a_preset_is_printed_with_every_value(name, preset, listing):
    section = ("\n" + listing).split(f"\n{name}\n{'=' * len(name)}\n")[1].split("\nneeds:")[0]
    (line,) = [line for line in section.splitlines() if line.split()[:2] == ["preset", f"{preset}:"]]
    for key, value in presets(name)[preset].items():
        assert f"{key}={value}" in line


@pytest.mark.parametrize("name", NAMES)
def test_every_control_is_printed_with_its_defaults(name, listing):
    section = ("\n" + listing).split(f"\n{name}\n{'=' * len(name)}\n")[1].split("\nneeds:")[0]
    for key, value in parameters(name).items():
        assert f"{name}.{key}={value}" in section


# --- what is refused ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [n for n in NAMES if presets(n)])
def test_an_unknown_preset_is_refused_with_the_known_ones(name):
    with pytest.raises(ValueError, match=f"control {name} has no preset 'nobody'") as error:
        build(name, {f"{name}.preset": "nobody"})
    assert one_sentence(error) and all(preset in str(error.value) for preset in presets(name))


@pytest.mark.parametrize("value", [3.0, None, True, ("paper-7b",)])
def test_a_preset_is_a_name(value):
    with pytest.raises(ValueError, match="control clip_cov has no preset") as error:
        resolve("clip_cov", {"clip_cov.preset": value})
    assert one_sentence(error)


@pytest.mark.parametrize("name", WITHOUT)
def test_a_control_without_presets_says_so(name):
    with pytest.raises(ValueError, match=f"control {name} has no presets, got 'paper'") as error:
        resolve(name, {f"{name}.preset": "paper"})
    assert one_sentence(error)


def test_a_preset_of_a_control_that_is_not_used_is_refused():
    with pytest.raises(ValueError, match=r"clip_cov.preset=verl is for control 'clip_cov', but this run uses 'kl_cov'"):
        resolve("kl_cov", {"clip_cov.preset": "verl"})


@pytest.mark.parametrize("name", NAMES)
def test_an_unknown_parameter_is_refused_with_the_known_ones(name):
    with pytest.raises(ValueError, match=f"control {name} has no parameter 'nothing'") as error:
        build(name, {f"{name}.nothing": 1.0})
    assert one_sentence(error) and all(key in str(error.value) for key in parameters(name))


def kinds(name, key):
    """What a parameter may be: its annotation without None."""
    hint = typing.get_type_hints(CONTROLS[name])[key]
    parts = typing.get_args(hint) if typing.get_origin(hint) in (types.UnionType, typing.Union) else (hint,)
    return [part for part in parts if part is not type(None)], type(None) in parts


PARAMETERS = [(name, key) for name in NAMES for key in parameters(name)]


@pytest.mark.parametrize(("name", "key"), PARAMETERS)
def test_every_parameter_has_one_kind_and_a_default_of_that_kind(name, key):
    (kind,), may_be_none = kinds(name, key)
    default = parameters(name)[key]
    assert default is not inspect.Parameter.empty
    if default is None:
        assert may_be_none
    elif typing.get_origin(kind) is typing.Literal:
        assert default in typing.get_args(kind)
    else:
        assert type(default) is kind and kind in (int, float)


@pytest.mark.parametrize(("name", "key"), PARAMETERS)
def test_a_value_of_the_wrong_kind_is_refused(name, key):
    (kind,), may_be_none = kinds(name, key)
    wrong = [True, "never"] + ([] if may_be_none else [None]) + ([1.5] if kind is int else [])
    for value in wrong:
        with pytest.raises(ValueError, match=rf"^{name}\.{key} must be") as error:
            resolve(name, {f"{name}.{key}": value})
        assert one_sentence(error)
    if kind is int:
        assert type(resolve(name, {f"{name}.{key}": 2.0})[name][key]) is int


@pytest.mark.parametrize(("name", "key"), PARAMETERS)
def test_no_number_is_taken_that_is_none(name, key):
    """NaN is outside every range."""
    (kind,), _ = kinds(name, key)
    if kind is float:
        with pytest.raises(ValueError, match=f"{name}|{key}") as error:
            build(name, {f"{name}.{key}": float("nan")})
        assert one_sentence(error)


# --- chains ---------------------------------------------------------------------------------------------------------


def rivalry(one, two):
    """What only one control can do and both of these do."""
    needs = [CONTROLS[name]().needs for name in (one, two)]
    return [what for need, what in EXCLUSIVE.items() if all(need in part for part in needs)]


@pytest.mark.parametrize(("one", "two"), list(itertools.permutations(NAMES, 2)))
def test_a_chain_is_refused_exactly_when_two_of_it_do_what_only_one_can(one, two):
    rivals = rivalry(one, two)
    if not rivals:
        assert isinstance(build(f"{one}+{two}", {}), Control)
        return
    with pytest.raises(ValueError, match=f"controls {one} and {two} both {rivals[0]}; keep one of them") as error:
        build(f"{one}+{two}", {})
    assert one_sentence(error)


@pytest.mark.parametrize("need", EXCLUSIVE)
def test_whatever_only_one_can_do_is_refused_from_two(need, monkeypatch):
    """Two made-up controls with nothing but the need in common, also with others around them."""
    for name in ("first", "second"):
        monkeypatch.setitem(CONTROLS, name, lambda: control(needs={need, Need.SAMPLES}))
    with pytest.raises(ValueError, match=f"controls first and second both {EXCLUSIVE[need]}; keep one") as error:
        build("first+none+second+clip_higher", {})
    assert one_sentence(error)
    assert need in build("first+none+clip_higher", {}).needs


def test_a_control_named_twice_is_refused():
    with pytest.raises(ValueError, match="names one control twice") as error:
        build("kl_cov+none+kl_cov", {})
    assert one_sentence(error)


@given(st.text(max_size=12))
def test_a_name_that_is_no_control_is_refused_in_one_sentence(name):
    if any(part not in CONTROLS for part in name.split("+")):
        with pytest.raises(ValueError):
            build(name, {})


def test_a_chain_keeps_the_order_of_its_names():
    """clip_higher after kl_cov brings the upper clip back; before it, the clip is lifted."""
    import torch
    from contract import edited, fixed_batch

    batch = fixed_batch(fresh=False)
    last = edited(build("kl_cov+clip_higher", {}), batch)
    first = edited(build("clip_higher+kl_cov", {}), batch)
    assert torch.equal(last.clip_high, torch.full_like(last.clip_high, 0.28))
    assert torch.isinf(first.clip_high).all() and torch.isinf(last.clip_low).all()


def test_what_is_idle_is_said_for_the_part_and_not_for_the_chain():
    assert idle_parts("none+kl_cov", {}, frozenset()).keys() == {"kl_cov"}
    assert build("none+kl_cov", {}).idle_without == frozenset()
