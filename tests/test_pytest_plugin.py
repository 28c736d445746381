"""`pytest --entropy-theory-model DIR` and the fixture `entropy_theory_check`, in projects of their own."""

import importlib.metadata
import shutil
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import strategies
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from entropy_theory import claims
from entropy_theory.claims.statement import Comparison, Evidence
from entropy_theory.conformance import states
from entropy_theory.softmax import entropy
from llm.models import tiny_directory

pytest_plugins = ["pytester"]

NAMES = [*claims.STATEMENTS, "entropy_float32", "entropy_bfloat16"]
OPTION = f"--entropy-theory-model={tiny_directory()}"


def run(pytester, *arguments):
    """pytest in this process, in an empty project; hypothesis' and other plug-ins are loaded as usual."""
    return pytester.runpytest_inprocess("-p", "no:cacheprovider", *arguments)


@pytest.fixture
def false_lemma(monkeypatch):
    """Lemma 1 without its remainder: false wherever the change is not tiny."""
    lemma = claims.STATEMENTS["lemma_1"]

    def check(states):
        first = lemma.check(states).first
        return Evidence(Comparison(first.error, first.rounding, first.rounding))

    monkeypatch.setitem(claims.STATEMENTS, "lemma_1", replace(lemma, check=check))


# --- installed and asleep -------------------------------------------------------------------------------------------


def test_the_entry_point_is_registered():
    points = importlib.metadata.entry_points(group="pytest11")
    found = [p.value for p in points if p.name == "entropy_theory"]
    assert found == ["entropy_theory.pytest_plugin"], (
        "run `make setup` again: the installation is older than the plug-in"
    )


def test_without_the_option_nothing_is_added_and_nothing_heavy_is_imported():
    """Beside pytest itself the import takes under 10 ms, the quickest of five."""
    code = """
import sys, time, pytest, _pytest.config
start = time.perf_counter()
import entropy_theory.pytest_plugin
print(time.perf_counter() - start, [m for m in ("torch", "numpy", "transformers", "llm") if m in sys.modules])
"""
    seconds = []
    for _ in range(5):
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        time, heavy = done.stdout.split(" ", 1)
        assert heavy.strip() == "[]"
        seconds.append(float(time))
    assert min(seconds) < 0.01


def test_a_project_without_the_option_runs_as_before(pytester):
    pytester.makepyfile("def test_one(): pass")
    result = run(pytester)
    result.assert_outcomes(passed=1)


# --- a model's own logits -------------------------------------------------------------------------------------------


def test_a_model_adds_its_tests_beside_the_projects_own(pytester):
    pytester.makepyfile("def test_one(): pass")
    result = run(pytester, OPTION, "-v")
    result.assert_outcomes(passed=1 + len(NAMES))
    result.stdout.fnmatch_lines([f"*entropy-theory*{name} PASSED*" for name in NAMES])


def test_it_works_without_any_other_test_and_with_warnings_as_errors(pytester):
    run(pytester, OPTION, "-W", "error").assert_outcomes(passed=len(NAMES))


def test_k_chooses_among_them(pytester):
    pytester.makepyfile("def test_one(): pass")
    result = run(pytester, OPTION, "-k", "theorem_1")
    result.assert_outcomes(passed=1, deselected=len(NAMES))
    result.stdout.fnmatch_lines([f"collected {1 + len(NAMES)} items / {len(NAMES)} deselected / 1 selected"])


def test_two_models(pytester):
    other = shutil.copytree(tiny_directory(), pytester.path / "other")
    result = run(pytester, OPTION, f"--entropy-theory-model={other}", "-k", "bfloat16", "-v")
    result.assert_outcomes(passed=2, deselected=2 * (len(NAMES) - 1))


def test_under_xdist(pytester):
    pytester.makepyfile("def test_one(): pass")
    result = pytester.runpytest_subprocess("-n", "2", OPTION, "-k", "entropy_float32 or test_one")
    result.assert_outcomes(passed=2)


def test_a_directory_that_is_not_there_is_a_usage_error(pytester):
    result = run(pytester, "--entropy-theory-model=nowhere")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["*--entropy-theory-model: there is no directory 'nowhere'*"])


def test_a_directory_without_a_model_fails_with_one_sentence(pytester):
    result = run(pytester, f"--entropy-theory-model={pytester.mkdir('empty')}")
    result.assert_outcomes(failed=len(NAMES))
    result.stdout.fnmatch_lines(["*empty' has no config.json; point to a complete one"])
    assert "Traceback" not in result.stdout.str() and "pytest_plugin.py" not in result.stdout.str()


def test_a_model_that_gives_no_policy_is_read_once_and_fails_with_one_sentence(pytester):
    model = shutil.copytree(tiny_directory(), pytester.path / "model")
    weights = load_file(model / "model.safetensors")
    weights["model.norm.weight"][:] = float("nan")
    save_file(weights, model / "model.safetensors", metadata={"format": "pt"})
    result = run(pytester, f"--entropy-theory-model={model}")
    result.assert_outcomes(failed=len(NAMES))
    result.stdout.fnmatch_lines(["*gives the logit nan at state 0, action 0; logits must be finite or -inf"])


def test_a_statement_that_fails_prints_a_snippet_that_shows_it(pytester, false_lemma):
    result = run(pytester, OPTION)
    result.assert_outcomes(passed=len(NAMES) - 1, failed=1)
    text = result.stdout.str()
    assert "Lemma 1 fails on" in text and "times its proved bound" in text
    assert "Traceback" not in text
    snippet = text[text.index("import torch") : text.index("print(form")] + "print(form, comparison.ratio().item())"
    done = []
    exec(snippet, {"print": lambda form, ratio: done.append((form, ratio))})
    assert done[0][0] == "first" and done[0][1] > 1


# --- the fixture ----------------------------------------------------------------------------------------------------


def test_the_fixture_judges_a_projects_own_logits(pytester):
    pytester.makepyfile(
        """
        import numpy, pytest, torch

        def test_good(entropy_theory_check):
            logits = torch.tensor([[0.0, 1.0, -float("inf")], [2.0, 2.0, 2.0]])
            entropy_theory_check(logits, entropy=torch.special.entr(torch.softmax(logits, -1)).sum(-1))
            entropy_theory_check(numpy.zeros((2, 3, 4)))
            entropy_theory_check([1.0, 2.0])

        def test_wrong_entropy(entropy_theory_check):
            entropy_theory_check([[0.0, 1.0]], entropy=[0.6])

        def test_no_policy(entropy_theory_check):
            with pytest.raises(ValueError, match="nan at state 1, action 0"):
                entropy_theory_check([[0.0, 1.0], [float("nan"), 1.0]])
        """
    )
    result = run(pytester)
    result.assert_outcomes(passed=2, failed=1)
    result.stdout.fnmatch_lines(["*the float64 entropy of logits is 0.6 nats at state 0*logits: [[]0.0, 1.0[]]*"])


def test_the_fixture_reports_the_smallest_instance(entropy_theory_check, false_lemma):
    with pytest.raises(AssertionError, match="Smallest failing instance") as error:
        entropy_theory_check(torch.zeros(3, 500).double(), change=torch.eye(3, 500).double())
    assert error.value.args[0].count(",") < 20  # not 500 numbers


@pytest.mark.parametrize("dtype", strategies.DTYPES)
@given(data=st.data())
def test_entropies_of_every_dtype_pass(dtype, data):
    """Logits in float64; the caller rounds them to its dtype and computes there."""
    logits = data.draw(strategies.logits(max_actions=200))
    states.check_entropy(logits[None], entropy(logits.to(dtype))[None])
    states.check_precision(logits[None], dtype)


@pytest.mark.parametrize("dtype", strategies.DTYPES)
def test_an_entropy_of_another_temperature_fails(dtype):
    logits = torch.linspace(-3, 3, 7, dtype=torch.float64)[None].to(dtype).double()
    with pytest.raises(AssertionError, match=r"off by .* while rounding explains"):
        states.check_entropy(logits, entropy(logits.to(dtype) / 2))


def test_the_effect_of_rounding_logits_is_what_lemma_1_says():
    """A thousandfold wrong rounding is not excused by it: a shift of one logit by 0.5 is seen."""
    logits = torch.linspace(-3, 3, 7, dtype=torch.float64)[None]
    predicted, left_out = states.cast_effect(logits, logits.bfloat16().double())
    exact = entropy(logits.bfloat16().double()) - entropy(logits)
    assert abs(exact - predicted) <= left_out
    with pytest.raises(AssertionError):
        states.check_entropy(logits, entropy(logits + 0.5 * torch.eye(7)[:1]))


@pytest.mark.parametrize(
    ("logits", "found", "words"),
    [
        ([[0.0, 1.0]], np.array([1]), "entropy must be float64, float32, bfloat16, got int64"),
        ([[0.0, 1.0]], [0.5, 0.6], "2 entropies for 1 states"),
    ],
)
def test_entropies_of_the_wrong_kind_are_one_sentence(logits, found, words):
    with pytest.raises(ValueError, match=words):
        states.check_logits(logits, entropy=found)


@pytest.mark.parametrize("logits", [[], [[]], [[1.0]], 3.0])
def test_logits_that_are_no_policies_are_one_sentence(logits):
    with pytest.raises(ValueError, match=r"logits: (logits must have shape|a policy needs at least 2)"):
        states.check_logits(logits)
