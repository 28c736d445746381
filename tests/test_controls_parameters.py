"""Defaults, ranges, needs and targets of every control, one table each.

Controls are made inside the tests: what a table makes while it is read is made once, whatever is tested later.
"""

import math
import re
from dataclasses import replace

import pytest
import torch
from contract import CONTRACT, NAMES, edited, fixed_batch, gradients, identical, start

from entropy_theory.control import Need, check_fits
from entropy_theory.controls import CONTROLS, parameters
from entropy_theory.records import Measurement, Objective, Sampling

DOUBLE = torch.float64

# --- defaults -----------------------------------------------------------------------------------------------------

DEFAULTS = {
    "none": {},
    # CleanRL's PPO, and as large as a bonus of Cui et al. 2025, Fig. 9
    "entropy_bonus": {"coef": 0.01, "schedule_kind": "constant", "end": 0.0, "steps": 1000},
    "kl_to_reference": {"form": "k3", "coef": 1e-3, "limit": math.inf, "target_kl": None, "horizon": 10.0},  # verl's
    "clip_higher": {"clip_high": 0.28},
    "clip_cov": {
        "fraction": 2e-4,
        "low": 1.0,
        "high": 5.0,
        "clip_low": None,
        "clip_high": None,
        "scope": "minibatch",
        "seed": 0,
    },
    "kl_cov": {"fraction": 2e-3, "coef": 1.0, "scope": "minibatch"},  # Qwen2.5-7B; .2 of the script is in percent
    # eq. 3.2 of Skywork-OR1; the largest coefficient is TRL's
    "adaptive_entropy": {"target": 0.2, "delta": 0.005, "high": 1.0, "start": 0.0, "at_target": "hold"},
    # unverified, all of them
    "aer": {"share": 0.4, "easy": 0.5, "gain": 0.005, "high": 0.02, "start": 0.0, "response": "proportional"},
    "entropic": {
        "target": 0.1,
        "threshold": 0.95,
        "proportional": 1.0,
        "integral": 0.01,
        "denominator": "all",
        "scope": "minibatch",
    },
    "lp_reg": {  # Qwen3-14B
        "fraction": 0.01,
        "kappa": 0.02,
        "tau": None,
        "coef": 1.0,
        "ratio_cap": 10.0,
        "among": "all",
        "condition": "kept",
        "scope": "minibatch",
    },
    "egsw": {"alpha": 0.1, "temperature": 1.0, "level": "step"},  # unverified
    "era": {
        "entropy_low": 0.45,
        "entropy_high": 3.0,
        "factor": 2.0,
        "fraction": 0.2,
        "scales": "logits_and_advantage",
        "praised": "positive",
        "clip": None,
    },
    "era_activation": {"target": 0.6, "tau": 4.0, "inverse": "exact"},
    "high_entropy_tokens": {"fraction": 0.2, "denominator": "selected", "scope": "minibatch"},
    "entropy_advantage": {"alpha": 0.4, "kappa": 2.0},  # with GRPO
    "weighted_reinforce": {"positive_weight": 0.1, "negative_weight": 1.0},
    "steer": {"lowest_weight": 0.7, "floor": 0.02, "effect": "published", "scope": "minibatch"},
    "quantile_advantage": {"quantile": 0.4, "eps": 1e-6},
    "aent": {
        "share": 0.3,
        "coef": 2e-4,
        "entropy_low": None,
        "entropy_high": None,
        "gain": 1e-3,
        "coef_low": 1e-5,
        "coef_high": 3e-3,
    },
    "temperature": {
        "target": 0.3,
        "gain": 0.05,
        "low": 0.5,
        "high": 2.0,
        "start": 1.0,
        "response": "proportional",
    },
    "cov_state": {"keep": 0.5, "rule": "reweight"},
    "budget": {
        "request": "share",
        "share": 0.5,
        "change": 0.0,
        "target_entropy": 0.5,
        "horizon": 100.0,
        "step_size": 1.0,
        "limit": 1.0,
    },
}
"""As published (docs/controls.md names the source), or ours where nothing is."""


@pytest.mark.parametrize("name", sorted(DEFAULTS.keys() | CONTRACT.keys()))
def test_defaults_are_the_documented_ones(name):
    assert parameters(name) == DEFAULTS[name]


SETTINGS = [
    *((name, {}) for name in NAMES),
    *((name, CONTRACT[name].acting) for name in NAMES if CONTRACT[name].acting),
    ("clip_cov", {"fraction": 1.0}),
    ("entropy_bonus", {"schedule_kind": "linear"}),
    ("kl_to_reference", {"target_kl": 0.1}),
    ("entropic", {"threshold": 0.3}),
    ("aent", {"entropy_low": 0.15, "entropy_high": 0.2}),
    ("budget", {"request": "change", "limit": 1e9}),
    ("budget", {"request": "target_entropy", "limit": 1e9}),
]
"""In which each default does something."""


def doings(control):
    """All a control does in four steps: edits of a batch, samples, states; and its maps of logits."""
    batch = fixed_batch(fresh=False)
    # the largest score of a token that PPO has not clipped is 5.7, above Clip-Cov's band
    batch = replace(batch, advantage=6.5 * batch.advantage)
    logits, found = batch.logp, []
    state = start(control, batch)
    for step in range(4):
        measured = torch.tensor(0.05 + 0.1 * step, dtype=DOUBLE)
        edit = control.edit(Objective.from_batch(batch), batch, state)
        found += [edit, control.sample(Sampling(torch.ones((), dtype=DOUBLE)), state), state]
        state = control.advance(state, Measurement(measured, 2 * measured))
    return found, (control.activate(logits), control.proxy(logits), control.entropy_support(logits))


@pytest.mark.parametrize(("name", "given"), SETTINGS)
def test_what_is_left_out_acts_as_its_default(name, given):
    (one, maps), (two, same) = doings(CONTROLS[name](**given)), doings(CONTROLS[name](**(DEFAULTS[name] | given)))
    assert all(identical(a, b) for a, b in zip(one, two, strict=True)) and identical(maps, same)


# --- ranges -------------------------------------------------------------------------------------------------------

TINY = math.ulp(0.0)
BELOW_1, ABOVE_1 = math.nextafter(1.0, 0.0), math.nextafter(1.0, 2.0)
SHARE = ((TINY, 1.0), (0.0, ABOVE_1, 20.0, math.nan))
COEF = ((0.0,), (-TINY, math.inf, math.nan))
POSITIVE = ((TINY, math.inf), (0.0, math.nan))
TARGET = ((TINY,), (0.0, math.inf, math.nan))
TEMPERATURE = "temperature needs 0 < low <= start <= high"

# control, parameter, beside it, (taken, refused), how the message begins where not with control.parameter
RANGES = [
    ("entropy_bonus", "coef", {}, COEF, None),
    ("entropy_bonus", "end", {}, COEF, None),
    ("entropy_bonus", "steps", {}, ((1,), (0,)), "steps of a schedule"),
    ("kl_to_reference", "coef", {}, COEF, None),
    ("kl_to_reference", "coef", {"target_kl": 0.1}, ((TINY,), (0.0,)), "start and target must be positive"),
    ("kl_to_reference", "limit", {}, POSITIVE, None),
    ("kl_to_reference", "target_kl", {}, ((TINY,), (0.0,)), "start and target must be positive"),
    ("kl_to_reference", "horizon", {"target_kl": 0.1}, ((math.nextafter(0.2, 1),), (0.2,)), "start and target"),
    ("clip_higher", "clip_high", {}, POSITIVE, None),
    ("clip_cov", "fraction", {}, SHARE, None),
    ("clip_cov", "low", {}, ((math.nextafter(5.0, 0.0), -math.inf), (5.0, 6.0, math.nan)), None),
    ("clip_cov", "high", {}, ((ABOVE_1, math.inf), (1.0, 0.0, math.nan)), "clip_cov.low must be below clip_cov.high"),
    ("clip_cov", "clip_low", {}, POSITIVE, None),
    ("clip_cov", "clip_high", {}, POSITIVE, None),
    ("clip_cov", "seed", {}, ((-(2**63), 2**63 - 1), (-(2**63) - 1, 2**63)), None),
    ("kl_cov", "fraction", {}, SHARE, None),
    ("kl_cov", "coef", {}, COEF, None),
    ("adaptive_entropy", "target", {}, TARGET, None),
    ("adaptive_entropy", "delta", {}, ((TINY,), (0.0,)), "target_entropy and delta must be positive"),
    ("adaptive_entropy", "high", {}, ((0.0,), (-TINY,)), "start must lie between low and high"),
    ("adaptive_entropy", "start", {}, ((0.0, 1.0), (-TINY, ABOVE_1)), "start must lie between low and high"),
    ("aer", "share", {}, ((TINY, BELOW_1), (0.0, 1.0)), "share must lie in"),
    ("aer", "easy", {}, ((TINY, 1.0, None), (0.0, ABOVE_1, math.nan)), None),
    ("aer", "gain", {}, ((TINY,), (0.0,)), "share must lie in (0, 1) and gain be positive"),
    ("aer", "start", {}, ((0.0, 0.02), (-TINY, math.nextafter(0.02, 1))), "start must lie between low and high"),
    ("entropic", "target", {}, TARGET, None),
    ("entropic", "threshold", {}, ((TINY, BELOW_1), (0.0, 1.0, math.nan)), None),
    ("entropic", "proportional", {}, COEF, None),
    ("entropic", "integral", {}, COEF, None),
    ("lp_reg", "fraction", {}, SHARE, None),
    ("lp_reg", "kappa", {}, SHARE, None),
    ("lp_reg", "tau", {}, ((0.0, BELOW_1), (-TINY, 1.0, math.nan)), None),
    ("lp_reg", "coef", {}, COEF, None),
    ("lp_reg", "ratio_cap", {}, ((ABOVE_1, math.inf), (1.0, math.nan)), None),
    ("egsw", "alpha", {}, COEF, None),
    ("egsw", "temperature", {}, ((1e-300, math.inf), (0.0, -1.0, math.nan)), None),
    ("era", "entropy_low", {}, ((0.0, 3.0), (-TINY, math.nextafter(3.0, 4.0))), "era needs 0 <= entropy_low"),
    ("era", "factor", {}, ((1e-300,), (0.0, math.inf, math.nan)), None),
    ("era", "fraction", {}, SHARE, None),
    ("era", "clip", {}, POSITIVE, None),
    ("era_activation", "target", {}, TARGET, None),
    ("era_activation", "tau", {}, ((math.e,), (math.nextafter(math.e, 0), math.inf, math.nan)), None),
    ("high_entropy_tokens", "fraction", {}, SHARE, None),
    ("entropy_advantage", "alpha", {}, COEF, None),
    ("entropy_advantage", "kappa", {}, ((ABOVE_1, math.inf), (1.0, math.nan)), None),
    ("weighted_reinforce", "positive_weight", {}, COEF, None),
    ("weighted_reinforce", "negative_weight", {}, COEF, None),
    ("weighted_reinforce", "positive_weight", {"negative_weight": 0.0}, ((TINY,), (0,)), "weighted_reinforce needs"),
    ("steer", "lowest_weight", {}, ((TINY, 1.0), (0.0, ABOVE_1, math.nan)), None),
    ("steer", "floor", {}, TARGET, None),
    ("quantile_advantage", "quantile", {}, ((TINY, BELOW_1), (0.0, 1.0, math.nan)), None),
    ("quantile_advantage", "eps", {}, TARGET, None),
    ("aent", "share", {}, ((0.0, BELOW_1), (-TINY, 1.0, math.nan)), None),
    ("aent", "coef", {}, COEF, None),
    ("aent", "entropy_low", {"entropy_high": 0.2}, ((0.0, 0.2), (-TINY, math.nextafter(0.2, 1))), "entropy_low must"),
    ("aent", "entropy_low", {}, ((None,), (0.2,)), "aent.entropy_low and aent.entropy_high belong together"),
    ("aent", "entropy_high", {}, ((None,), (0.2,)), "aent.entropy_low and aent.entropy_high belong together"),
    ("aent", "gain", {"entropy_low": 0.1, "entropy_high": 0.2}, ((TINY,), (0.0,)), "gain must be positive"),
    ("temperature", "target", {}, TARGET, None),
    ("temperature", "gain", {}, ((TINY,), (0.0,)), "target and gain must be positive"),
    ("temperature", "low", {}, ((TINY, 1.0), (0.0, ABOVE_1)), TEMPERATURE),
    ("temperature", "high", {}, ((1.0, 1e300), (BELOW_1, math.inf)), TEMPERATURE),
    ("temperature", "start", {}, ((0.5, 2.0), (math.nextafter(0.5, 0), math.nextafter(2, 3))), TEMPERATURE),
    ("cov_state", "keep", {}, ((0.0, 1.0), (-TINY, ABOVE_1, math.nan)), None),
    ("budget", "share", {}, ((0.0, 1.0), (-TINY, ABOVE_1, math.nan)), None),
    ("budget", "change", {"request": "change"}, ((-1e300, 1e300), (-math.inf, math.inf, math.nan)), None),
    ("budget", "target_entropy", {}, TARGET, None),
    ("budget", "horizon", {"request": "target_entropy"}, TARGET, None),
    ("budget", "step_size", {"request": "change"}, TARGET, None),
    ("budget", "limit", {}, ((0.0, TINY), (-TINY, math.inf, math.nan)), None),
]


@pytest.mark.parametrize(("name", "parameter", "others", "ends", "says"), RANGES)
def test_ranges_end_where_they_say(name, parameter, others, ends, says):
    """The last value that is taken makes a control that works; the next one is refused by name and value."""
    taken, refused = ends
    batch = fixed_batch(fresh=False)
    for value in taken:
        control = CONTROLS[name](**others, **{parameter: value})
        assert all(t.isfinite().all() for t in gradients(batch, edited(control, batch)))
        assert control.activate(batch.logp).isfinite().all()
    for value in refused:
        with pytest.raises(ValueError, match=rf"^{re.escape(says or f'{name}.{parameter} ')}.*{re.escape(str(value))}"):
            CONTROLS[name](**others, **{parameter: value})


def test_every_number_has_a_range():
    """In the table above; the bounds of AEnt's and AER's coefficients stand there as bounds of the first one."""
    numbers = {(name, key) for name in NAMES for key, value in DEFAULTS[name].items() if not isinstance(value, str)}
    assert numbers - {row[:2] for row in RANGES} == {
        ("aent", "coef_low"),
        ("aent", "coef_high"),
        ("aer", "high"),
        ("era", "entropy_high"),
    }


WORDS = [
    ("entropy_bonus", "schedule_kind", "schedule must be one of constant, linear, cosine"),
    ("kl_to_reference", "form", "kl_to_reference.form must be one of k1, k2, k3"),
    ("adaptive_entropy", "at_target", "at_target must be one of raise, hold, lower"),
    ("aer", "response", "response must be one of proportional, sign"),
    ("temperature", "response", "response must be one of proportional, sign"),
    ("entropic", "denominator", "entropic.denominator must be one of all, high"),
    ("lp_reg", "among", "lp_reg.among must be one of all, negative"),
    ("lp_reg", "condition", "lp_reg.condition must be one of kept, below_proxy"),
    ("egsw", "level", "egsw.level must be one of step, trajectory"),
    ("era", "scales", "era.scales must be one of logits_and_advantage, logits"),
    ("era", "praised", "era.praised must be one of positive, integer"),
    ("era_activation", "inverse", "era_activation.inverse must be one of exact, published"),
    ("high_entropy_tokens", "denominator", "high_entropy_tokens.denominator must be one of selected, all"),
    ("steer", "effect", "steer.effect must be one of published, exact"),
    ("cov_state", "rule", "cov_state.rule must be one of drop, reweight"),
    ("budget", "request", "budget.request must be one of share, change, target_entropy"),
    *(
        (name, "scope", f"{name}.scope must be one of minibatch, microbatch")
        for name in ("clip_cov", "kl_cov", "lp_reg", "high_entropy_tokens", "steer", "entropic")
    ),
]


@pytest.mark.parametrize(("name", "parameter", "says"), WORDS)
def test_words_that_are_no_choice_are_refused_with_the_choices(name, parameter, says):
    with pytest.raises(ValueError, match=f"^{re.escape(says)}, got 'nothing'"):
        CONTROLS[name](**{parameter: "nothing"})


def test_every_word_is_in_the_table():
    words = {(name, key) for name in NAMES for key, value in DEFAULTS[name].items() if isinstance(value, str)}
    assert words == {row[:2] for row in WORDS}


# --- what a control asks of a world -------------------------------------------------------------------------------

GROUPS, SAMPLES, COLLISION, BONUS = Need.WHOLE_GROUPS, Need.SAMPLES, Need.COLLISION, Need.ENTROPY_GRAD
# what it needs, and without what it changes nothing
ASKED = {
    "none": (set(), set()),
    "entropy_bonus": ({BONUS}, set()),
    "kl_to_reference": ({Need.REF_LOGP}, set()),
    "clip_higher": (set(), {Need.STALE}),
    "clip_cov": ({SAMPLES}, set()),
    "kl_cov": ({SAMPLES}, {Need.STALE}),
    "adaptive_entropy": ({BONUS}, set()),
    "aer": ({BONUS, GROUPS}, set()),
    "entropic": (set(), set()),
    "lp_reg": ({SAMPLES, Need.PROXY_LOGP}, set()),
    "egsw": ({GROUPS}, set()),
    "era": ({Need.LOGIT_SCALE}, set()),
    "era_activation": ({Need.ACTIVATION}, set()),
    "high_entropy_tokens": ({SAMPLES}, {Need.SEVERAL_STATES}),
    "entropy_advantage": (set(), set()),
    "weighted_reinforce": (set(), set()),
    "steer": ({SAMPLES}, set()),
    "quantile_advantage": ({GROUPS}, set()),
    "aent": ({BONUS, Need.ENTROPY_SUPPORT}, set()),
    "temperature": ({Need.SAMPLING}, set()),
    "cov_state": ({SAMPLES, COLLISION}, set()),
    "budget": ({SAMPLES, COLLISION}, set()),
}


@pytest.mark.parametrize("name", sorted(ASKED.keys() | CONTRACT.keys()))
def test_what_a_control_asks_of_a_world(name):
    control = CONTROLS[name]()
    assert (control.needs, control.idle_without) == ASKED[name]


# --- targets that so many actions can have ------------------------------------------------------------------------

LN_2 = math.log(2)
ABOVE_LN_2 = math.nextafter(LN_2, 1)
WIDE = {"entropy_high": 5.0}
# control, parameters that 2 actions take and parameters that they do not, what is named
TARGETS = [
    ("adaptive_entropy", {"target": LN_2}, {"target": ABOVE_LN_2}, "adaptive_entropy.target is 0.693147 nats"),
    ("entropic", {"target": LN_2}, {"target": ABOVE_LN_2}, "entropic.target is 0.693147 nats"),
    ("temperature", {"target": LN_2}, {"target": ABOVE_LN_2}, "temperature.target is 0.693147 nats"),
    (
        "budget",
        {"request": "target_entropy", "target_entropy": LN_2},
        {"request": "target_entropy", "target_entropy": ABOVE_LN_2},
        "budget.target_entropy is 0.693147 nats",
    ),
    ("aent", {"entropy_low": LN_2, **WIDE}, {"entropy_low": ABOVE_LN_2, **WIDE}, "aent.entropy_low is 0.693147 nats"),
    ("aent", {"share": math.nextafter(0.5, 0)}, {"share": 0.5}, "aent.share 0.5 keeps one of 2 actions"),
    ("era_activation", {"target": 0.633}, {"target": 0.634}, "era_activation.target is 0.634 nats"),
]


@pytest.mark.parametrize(("name", "taken", "refused", "says"), TARGETS)
def test_targets_that_two_actions_can_have(name, taken, refused, says):
    """ln 2 itself is the entropy of a fair coin."""
    CONTROLS[name](**taken).check_actions(2)
    with pytest.raises(ValueError, match=f"^{re.escape(says)}(, but 2 actions allow at most 0.6|, whose entropy)"):
        check_fits("it", CONTROLS[name](**refused), "CartPole", frozenset(Need), 2)


@pytest.mark.parametrize(("share", "actions", "kept"), [(0.66, 3, 2), (0.67, 3, 1), (0.3, 1, 1), (0.99, 100, 1)])
def test_aent_says_when_one_action_is_left_of_several(share, actions, kept):
    """floor(share n) are left out. A state with one action has no entropy to lose."""
    control = CONTROLS["aent"](share=share)
    assert int(control.entropy_support(torch.arange(float(actions))).isfinite().sum()) == kept
    if 1 == kept < actions:
        with pytest.raises(ValueError, match=rf"^aent.share {share} keeps one of {actions} actions"):
            control.check_actions(actions)
    else:
        control.check_actions(actions)


@pytest.mark.parametrize("name", [n for n in NAMES if n not in {row[0] for row in TARGETS} - {"budget", "aent"}])
def test_a_control_without_a_target_takes_any_number_of_actions(name):
    for actions in (1, 2, 151_936):
        CONTROLS[name]().check_actions(actions)
