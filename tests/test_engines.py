"""Engines: every job is done once, errors are recorded, and the death of a worker costs only the job it was at."""

import json
import os
import subprocess
import sys

import pytest
import work

from entropy_theory import cli
from entropy_theory.cli.engines import Job, carry_out, read_note
from entropy_theory.cli.engines.local import LocalEngine
from entropy_theory.cli.engines.slurm import SlurmEngine


def jobs(folder, **parts):
    """name=(function, *arguments) as jobs."""
    return [Job(name, 1.0, folder / f"notes/{name}.json", part[0], part[1:]) for name, part in parts.items()]


def slurm(folder):
    """Slurm's engine on submitit's own executor for a single machine."""
    return SlurmEngine(folder / "slurm", {"timeout_min": "5"}, cluster="local")


@pytest.mark.parametrize("make", [lambda folder: LocalEngine(2), slurm], ids=["local", "slurm"])
def test_deaths_errors_and_successes(tmp_path, make, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", os.path.dirname(work.__file__))
    todo = jobs(
        tmp_path,
        dies_twice=(work.die_so_often, 2, tmp_path / "twice"),
        plain=(work.leave_a_line, tmp_path / "plain", "x"),
        wrong=(work.fail, "no good"),
        dies=(work.die_so_often, 9, tmp_path / "always"),
        last=(work.leave_a_line, tmp_path / "last", "y"),
    )
    with make(tmp_path) as engine:
        notes = dict(zip([job.name for job in todo], carry_out(engine, todo, "test"), strict=True))
    assert {name: note["status"] for name, note in notes.items()} == {
        "dies_twice": "done", "plain": "done", "wrong": "failed", "dies": "failed", "last": "done"
    }  # fmt: skip
    assert {name: note["attempts"] for name, note in notes.items()} == {
        "dies_twice": 3, "plain": 1, "wrong": 1, "dies": 3, "last": 1
    }  # fmt: skip
    assert (tmp_path / "always").read_text() == "here\n" * 3
    assert notes["wrong"]["reason"] == "RuntimeError: no good and so on"
    assert notes["dies"]["reason"] == "its worker died 3 times (killed, or out of memory)"
    assert (tmp_path / "plain").read_text() == "x\n" and notes["plain"]["share"] == 1


def test_what_is_done_is_not_done_again_and_what_failed_is(tmp_path):
    todo = jobs(tmp_path, good=(work.leave_a_line, tmp_path / "good", "x"), bad=(work.fail, "no"))
    for _ in range(2):
        with LocalEngine(1) as engine:
            carry_out(engine, todo, "test")
    assert (tmp_path / "good").read_text() == "x\n"
    assert [read_note(job.note)["attempts"] for job in todo] == [1, 2]


def test_workers_are_used_again(tmp_path):
    """Eight jobs, two processes."""
    todo = jobs(tmp_path, **{f"job{i}": (work.leave_a_line, tmp_path / "lines", str(i)) for i in range(8)})
    with LocalEngine(2) as engine:
        notes = carry_out(engine, todo, "test")
    assert len({note["pid"] for note in notes}) <= 2
    assert sorted((tmp_path / "lines").read_text().split()) == list("01234567")


def test_a_worker_does_not_outlive_a_killed_parent(tmp_path):
    code = f"""
import os, signal, sys, time
sys.path.insert(0, {os.path.dirname(work.__file__)!r})
from pathlib import Path
import work
from entropy_theory.cli.engines import Job, read_note
from entropy_theory.cli.engines.local import LocalEngine
if __name__ == "__main__":
    engine = LocalEngine(1)
    note = Path({str(tmp_path)!r}) / "note.json"
    engine.start([Job("sleep", 1.0, note, work.sleep, (600,))])
    while "pid" not in read_note(note):
        time.sleep(0.02)
    os.kill(os.getpid(), signal.SIGKILL)
"""
    (tmp_path / "main.py").write_text(code)
    subprocess.run([sys.executable, tmp_path / "main.py"], check=False)
    pid = json.loads((tmp_path / "note.json").read_text())["pid"]
    for _ in range(200):
        if not os.path.exists(f"/proc/{pid}"):
            return
        work.pause()
    pytest.fail(f"worker {pid} is still there")


# --- engines that are not there --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "missing", "message"),
    [
        (["--engine", "ray"], "ray", "pip install 'entropy-theory[ray]'"),
        (["--engine", "slurm"], "submitit", "pip install 'entropy-theory[slurm]'"),
        (["--tune", "2"], "optuna", "pip install 'entropy-theory[tune]'"),
    ],
)
def test_a_missing_extra_is_named_before_anything_is_written(tmp_path, capsys, monkeypatch, words, missing, message):
    monkeypatch.setitem(sys.modules, missing, None)
    out = tmp_path / "out"
    assert cli.main(["ablate", "deceptive_controls", "--out", str(out), *words]) == 2
    assert message in capsys.readouterr().err
    assert not out.exists()


def test_no_sbatch_is_named(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert cli.main(["ablate", "deceptive_controls", "--out", str(tmp_path / "out"), "--engine", "slurm"]) == 2
    assert "there is no sbatch here" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_what_slurm_refuses_is_told(tmp_path, capsys, monkeypatch):
    fake = tmp_path / "sbatch"
    fake.write_text("#!/bin/sh\necho 'sbatch: error: invalid partition specified: no_such' >&2\nexit 1\n")
    fake.chmod(0o755)
    (tmp_path / "srun").symlink_to(fake)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    words = ["ablate", "deceptive_controls", "--out", str(tmp_path / "out"), "--engine", "slurm"]
    assert cli.main([*words, "--slurm", "partition=no_such"]) == 2
    error = capsys.readouterr().err
    assert "Slurm refused the jobs" in error and "invalid partition specified" in error and "Traceback" not in error
    assert cli.main([*words, "--slurm", "partytion=x"]) == 2
    assert "partytion" in capsys.readouterr().err
