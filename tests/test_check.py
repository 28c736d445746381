"""Judging claims: verdicts follow from what the search finds, disagreement with the record fails, snippets run."""

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import strategies as st

from entropy_theory import claims, cli
from entropy_theory.claims import search, verdict
from entropy_theory.claims.claim import Counterexample
from entropy_theory.claims.small import problems
from entropy_theory.cli import check, judging
from entropy_theory.cli.arguments import parse

QUICK = claims.PROFILES["quick"]


def context(**settings):
    """A quick context without worlds."""
    return claims.Context(QUICK, **settings)


def described(n):
    """A counterexample that names the number."""
    return Counterexample(f"n = {n}", f"print({n})")


# --- verdicts come from the search --------------------------------------------------------------------------------


def judged_by(violates, assuming=None):
    """The finding on whole numbers from 0 to 1000."""
    return search.by_search(lambda: st.integers(0, 1000), violates, described, assuming, "n is small")(context())


def test_no_violation_means_it_holds():
    found = judged_by(lambda n: n > 1000)
    assert found.verdict == claims.Verdict.HOLDS and found.counterexample is None and found.numbers["tried"] >= 100


def test_a_violation_refutes_with_the_smallest_instance():
    found = judged_by(lambda n: n >= 37)
    assert found.verdict == claims.Verdict.REFUTED and found.counterexample.text == "n = 37"


def test_violations_outside_the_assumption_only():
    found = judged_by(lambda n: n >= 37, lambda: st.integers(0, 36))
    assert found.verdict == claims.Verdict.UNDER_ASSUMPTION and found.counterexample.text == "n = 37"
    assert "n is small" in found.evidence


def test_a_violation_inside_the_assumption_refutes():
    found = judged_by(lambda n: n >= 5, lambda: st.integers(0, 36).map(lambda n: n + 1))
    assert found.verdict == claims.Verdict.REFUTED and found.counterexample.text == "n = 5"


def test_the_search_is_a_function_of_the_seed():
    tried = []

    def looked_at(n):
        tried[-1].append(n)
        return False

    for seed in (3, 3, 4):
        tried.append([])
        search.smallest(st.integers(0, 10**6), looked_at, context(seed=seed))
    assert tried[0] == tried[1] != tried[2]


def test_the_search_depends_on_nothing_but_the_seed(tmp_path):
    # hypothesis would mix in the constants of local modules: here one full of them, in one of two processes
    (tmp_path / "constants.py").write_text("numbers = [" + ", ".join(str(n) for n in range(100_000, 100_400)) + "]")
    code = (
        "from hypothesis import strategies as st\n"
        "from entropy_theory import claims\n"
        "from entropy_theory.claims.search import smallest\n"
        "seen = []\n"
        "context = claims.Context(claims.PROFILES['thorough'])\n"
        "smallest(st.integers(0, 10**6), lambda n: seen.append(n) or False, context)\n"
        "print(seen)"
    )
    printed = [
        subprocess.run([sys.executable, "-c", prefix + code], cwd=tmp_path, capture_output=True, text=True, check=True)
        for prefix in ("", "import constants\n")
    ]
    assert printed[0].stdout == printed[1].stdout and len(printed[0].stdout) > 300


def test_small_problems_are_policies_with_readable_text_and_code():
    seen = []
    search.smallest(problems(), lambda p: seen.append(p) or False, context())
    for p in seen:
        assert torch.allclose(p.logits.softmax(-1), p.probability, rtol=1e-14)
        assert float((p.probability * p.advantage).sum()) == pytest.approx(0, abs=1e-15)
        assert str(sum(p.weights)) in p.text
    assert {len(p.weights) for p in seen} == {2, 3, 4}


# --- choosing claims ----------------------------------------------------------------------------------------------


def test_select_by_id_place_and_all():
    assert [c.id for c in claims.select(["claim_02", "lemma_1"], context())] == ["lemma_1", "claim_02"]
    everywhere = claims.select([], context())
    assert {c.id for c in everywhere} < set(claims.CLAIMS)
    assert all("random" in c.places for c in everywhere)
    model = claims.Context(QUICK, worlds={"model": claims.World()}, random=False)
    chosen = claims.select([], model)
    assert {c.id for c in chosen} >= set(claims.STATEMENTS) and all("model" in c.places for c in chosen)


def test_an_unknown_id_and_an_absent_place_are_refused():
    with pytest.raises(ValueError, match=r"unknown claim 'lemma_2'; `entropy-theory check --list`"):
        claims.select(["lemma_2"], context())
    with pytest.raises(ValueError, match=r"claim_02 cannot be judged at the chosen places; it takes --world random"):
        claims.select(["claim_02"], claims.Context(QUICK, worlds={"llm": claims.World()}, random=False))


def test_every_claim_is_complete():
    numbers = [id for id in claims.CLAIMS if id.startswith("claim_")]
    assert numbers == [f"claim_{n:02d}" for n in range(1, 68)]
    for id, claim in claims.CLAIMS.items():
        assert claim.id == id and claim.statement and claim.source and claim.places
        assert isinstance(claim.recorded, claims.Verdict)


# --- every claim once, as `check --profile quick` does ------------------------------------------------------------


@pytest.fixture(scope="module")
def judged():
    """Every claim of the quick profile; a module-wide fixture because it takes seconds."""
    context = check.make_context(check.CheckOptions(profile="quick"))
    return claims.judge(claims.select([], context), context)


def test_every_verdict_is_the_one_on_record(judged):
    differ = {j.claim.id: (str(j.finding.verdict), j.finding.evidence) for j in judged if not j.as_recorded}
    assert differ == {} and claims.agrees(judged)
    assert "all as recorded" in claims.summary(judged)


def test_refuted_claims_show_a_counterexample_and_others_evidence(judged):
    for j in judged:
        assert j.finding.evidence, j.claim.id
        if j.finding.verdict in (claims.Verdict.REFUTED, claims.Verdict.UNDER_ASSUMPTION):
            assert j.finding.counterexample is not None, j.claim.id
    assert {j.finding.verdict for j in judged} == set(claims.Verdict)


def test_every_snippet_runs_as_it_is(judged):
    snippets = {j.claim.id: j.finding.counterexample.snippet for j in judged if j.finding.counterexample}
    code = (
        "import contextlib, io, json, sys\n"
        "printed = {}\n"
        "for id, snippet in json.load(sys.stdin).items():\n"
        "    out = io.StringIO()\n"
        "    with contextlib.redirect_stdout(out):\n"
        "        exec(snippet, {})\n"
        "    printed[id] = out.getvalue()\n"
        "json.dump(printed, sys.stdout)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], input=json.dumps(snippets), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    assert [id for id, text in json.loads(done.stdout).items() if not text.strip()] == []


def test_the_document_holds_everything_that_was_found(judged):
    document = json.loads(claims.to_json(judged))
    assert document["agrees"] is True and document["summary"] == claims.summary(judged)
    assert [c["id"] for c in document["claims"]] == [j.claim.id for j in judged]
    assert [c["evidence"] for c in document["claims"]] == [j.finding.evidence for j in judged]
    cells = claims.table_cells(document)
    assert [line[0] for line in cells[1:4]] == ["Lemma 1"] * 3 and {line[-1] for line in cells[1:]} == {"holds"}
    text = claims.table(judged)
    assert all(j.claim.id in text for j in judged) and max(len(line) for line in text.splitlines()) <= 120


# --- a verdict that is not the one on record ----------------------------------------------------------------------


def test_a_wrong_theory_exits_1_and_prints_what_to_paste(monkeypatch, capsys):
    from entropy_theory import theorems

    right = theorems.entropy_change_first_order
    monkeypatch.setattr(theorems, "entropy_change_first_order", lambda z, d: -right(z, d))
    assert cli.main(["check", "--only", "lemma_1", "--world", "random", "--instances", "50"]) == 1
    text = capsys.readouterr().out
    assert "lemma_1: found 'refuted', on record 'holds'" in text and "states = States(" in text
    assert "1 NOT as recorded" in text


def test_a_claim_that_comes_out_better_than_recorded_fails_too(monkeypatch, capsys):
    wrong = replace(claims.CLAIMS["sign_rule"], recorded=claims.Verdict.REFUTED)
    monkeypatch.setitem(claims.CLAIMS, "sign_rule", wrong)
    assert cli.main(["check", "--only", "sign_rule", "--world", "random", "--profile", "quick"]) == 1
    assert "found 'holds', on record 'refuted'" in capsys.readouterr().out


def test_progress_grows_to_the_number_of_claims():
    seen = []
    here = claims.Context(replace(QUICK, instances=40))
    chosen = claims.select(["lemma_1", "sign_rule"], here)
    verdict.judge(chosen, here, lambda id, done: seen.append((id, done)))
    shares = [done for _, done in seen]
    assert shares == sorted(shares) and shares[0] == 0 and seen[-1] == ("sign_rule", 2)


# --- the command --------------------------------------------------------------------------------------------------


def test_list_shows_every_claim_with_its_verdict(capsys):
    assert cli.main(["check", "--list"]) == 0
    text = capsys.readouterr().out
    for claim in claims.CLAIMS.values():
        assert claim.id in text and claim.source in text


def test_report_and_json_are_written(tmp_path, capsys):
    words = ["check", "--only", "sign_rule", "claim_02", "--world", "random", "--profile", "quick"]
    assert cli.main([*words, "--json", f"{tmp_path}/c.json", "--report", f"{tmp_path}/c.html"]) == 0
    assert json.loads((tmp_path / "c.json").read_text())["agrees"] is True
    page = (tmp_path / "c.html").read_text()
    assert "claim_02" in page and "Smallest counterexample" in page and "policy_gradient_step" in page
    assert f"report: {tmp_path}/c.html" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--only", "nope"], "unknown claim 'nope'"),
        (["--only", "claim_02", "--world", "llm"], "claim_02 cannot be judged at the chosen places"),
        (["--report", "no/folder/x.html"], "the folder no/folder does not exist"),
        (["--instances", "-1"], "instances must be at least 0, got -1"),
    ],
)
def test_a_users_mistake_is_one_sentence(words, message, capsys):
    with contextlib.suppress(SystemExit):
        assert cli.main(["check", *words]) == 2
    assert message in capsys.readouterr().err


def test_only_and_world_take_several_words_and_list_stands_alone():
    options = check.CheckOptions
    words = ["--only", "a", "b", "--list", "--world", "random", "llm", "--only", "c", "--seed", "3"]
    parsed = parse("check", options, words, "")
    assert parsed == options(list=True, only=("a", "b", "c"), world=("random", "llm"), seed=3)
    assert parse("check", options, ["--certified", "True"], "").certified
    with pytest.raises(SystemExit):
        parse("check", options, ["--only"], "")


def test_a_models_own_logits_are_judged(capsys):
    model = Path(__file__).parent.parent / "llm/assets/tiny-qwen2"
    assert cli.main(["check", "--model", str(model), "--only", "lemma_1", "theorem_2", "--profile", "quick"]) == 0
    text = capsys.readouterr().out
    assert text.count(" model ") == 2 and "all as recorded" in text and "random" not in text


def test_a_model_that_is_none_is_refused_in_one_sentence(tmp_path, capsys):
    assert cli.main(["check", "--model", str(tmp_path / "absent"), "--only", "lemma_1"]) == 2
    error = capsys.readouterr().err
    assert "absent" in error and "Traceback" not in error and error.count("\n") <= 2


def test_certified_says_on_how_many_instances(capsys):
    assert cli.main(["check", "--only", "theorem_1", "--world", "random", "--profile", "quick", "--certified"]) == 0
    found = re.search(
        r"Certified in ball arithmetic on (\d+) of (\d+) drawn", " ".join(capsys.readouterr().out.split())
    )
    assert found and found[1] == found[2] and int(found[1]) >= QUICK.examples


def test_certified_without_flint_names_what_to_install(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "flint", None)
    assert cli.main(["check", "--only", "theorem_1", "--certified"]) == 2
    assert "pip install 'entropy-theory[certified]'" in capsys.readouterr().err


def test_the_number_of_workers_changes_nothing():
    # more claims than one process would take, all of them quick; the workers are real processes
    ids = [id for id in claims.CLAIMS if claims.CLAIMS[id].places == ("random",)][: judging.ALONE + 1]
    options = check.CheckOptions(profile="quick", world=("random",), only=tuple(ids))
    chosen = claims.select(ids, check.make_context(options))
    alone, shared = (judging.judge(chosen, replace(options, workers=n)) for n in (1, 2))
    assert [j.claim.id for j in shared] == ids
    assert [j.finding for j in alone] == [j.finding for j in shared]


def test_the_committed_page_lists_every_claim_with_its_verdict():
    page = (Path(__file__).parent.parent / "docs/claims.md").read_text()
    assert re.findall(r"^### `(\w+)`: (.*)$", page, re.M) == [(c.id, str(c.recorded)) for c in claims.CLAIMS.values()]


def test_an_interrupted_check_ends_at_once_and_in_one_line():
    command = [sys.executable, "-m", "entropy_theory.cli", "check", "--profile", "quick", "--workers", "2"]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(timeout=6)
    assert process.poll() is None  # the workers are at work, or on their way
    os.killpg(process.pid, signal.SIGINT)
    _, error = process.communicate(timeout=30)
    assert process.returncode == 130 and "interrupted" in error and "Traceback" not in error
