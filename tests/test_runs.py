"""Run directories: they resume after a kill at any byte, refuse what is not theirs, and store no NaN."""

import json
import math
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest
import torch

from entropy_theory import runs
from entropy_theory.runs import Run, plain, read_metrics, write_atomic

CONFIG = {"control": "kl_cov", "seeds": 2, "settings": {"kl_cov": {"fraction": 0.02, "coef": 1.0}}, "note": None}
STEPS = 4


def begin():
    """State before the first step."""
    return {"step": 0, "weights": torch.tensor([0.1, -0.7], dtype=torch.float64)}


def advance(state):
    """One step of a chaotic recurrence: any lost bit shows."""
    weights = torch.sin(37.0 * state["weights"] + 0.1)
    return {"step": state["step"] + 1, "weights": weights}


def train(folder, steps=STEPS, config=CONFIG):
    """Run, or go on with the run, in `folder`; the final state."""
    with Run(folder, config) as run:
        state = run.load_state() or begin()
        while state["step"] < steps:
            state = advance(state)
            metrics = {"step": state["step"], "weights": state["weights"], "mean": state["weights"].mean()}
            run.record(metrics, state)
    return state


def same(one, two):
    return one["step"] == two["step"] and torch.equal(one["weights"], two["weights"])


@pytest.fixture(scope="module")
def reference(tmp_path_factory):
    """A finished run that nothing interrupted: (folder, final state)."""
    folder = tmp_path_factory.mktemp("reference") / "run"
    return folder, train(folder)


# --- new and resumed ----------------------------------------------------------------------------------------------


def test_a_new_run_writes_config_versions_metrics_and_state(reference):
    folder, state = reference
    assert json.loads((folder / "config.json").read_text()) == CONFIG
    assert json.loads((folder / "versions.json").read_text())["torch"] == torch.__version__
    assert [line["step"] for line in read_metrics(folder)] == [1, 2, 3, 4]
    # JSON keeps float64 to the last bit
    assert read_metrics(folder)[-1]["weights"] == state["weights"].tolist()


@pytest.mark.parametrize("stop", range(1, STEPS))
def test_stopping_and_resuming_gives_the_same_bits(reference, tmp_path, stop):
    folder, expected = reference
    train(tmp_path / "run", steps=stop)
    assert same(train(tmp_path / "run"), expected)
    assert (tmp_path / "run/metrics.jsonl").read_bytes() == (folder / "metrics.jsonl").read_bytes()


def test_a_finished_run_is_left_as_it_is(reference, tmp_path):
    shutil.copytree(reference[0], tmp_path / "run")
    before = (tmp_path / "run/metrics.jsonl").read_bytes()
    assert same(train(tmp_path / "run"), reference[1])
    assert (tmp_path / "run/metrics.jsonl").read_bytes() == before


# --- killed -------------------------------------------------------------------------------------------------------


def stages(folder):
    """Snapshots of a two-step-old run directory at every byte of what step 3 writes, in the order it writes them."""
    train(folder, steps=2)
    old = {p.name: p.read_bytes() for p in folder.iterdir()}
    train(folder, steps=3)
    new = {p.name: p.read_bytes() for p in folder.iterdir()}
    line = new["metrics.jsonl"][len(old["metrics.jsonl"]) :]
    for length in range(len(line) + 1):
        yield {**old, "metrics.jsonl": old["metrics.jsonl"] + line[:length]}
    written = {**old, "metrics.jsonl": new["metrics.jsonl"]}
    state = new["state.pt"]
    # the temporary state is some 2,000 bytes of zip file: every byte of its ends, every 97th between
    for length in sorted({*range(40), *range(len(state) - 40, len(state) + 1), *range(0, len(state), 97)}):
        yield {**written, "state.pt.tmp": state[:length]}
    yield new


def test_a_kill_at_any_byte_of_a_step_resumes_to_the_same_bits(reference, tmp_path):
    """Between the metrics line and the state, inside either, before the rename."""
    complete = (reference[0] / "metrics.jsonl").read_bytes()
    for number, files in enumerate(stages(tmp_path / "source")):
        folder = tmp_path / f"killed{number}"
        folder.mkdir()
        for name, content in files.items():
            (folder / name).write_bytes(content)
        assert same(train(folder), reference[1])
        assert (folder / "metrics.jsonl").read_bytes() == complete
        shutil.rmtree(folder)


@pytest.mark.parametrize("writing", ["versions.json", "config.json"])
@pytest.mark.parametrize("length", [0, 1, 20])
def test_a_kill_while_the_directory_is_made_does_not_spoil_it(reference, tmp_path, writing, length):
    """Order of creation: lock, versions.json, config.json, the last two through a temporary file."""
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "lock").touch()
    if writing == "config.json":
        shutil.copy(reference[0] / "versions.json", folder)
    (folder / f"{writing}.tmp").write_bytes((reference[0] / writing).read_bytes()[:length])
    assert same(train(folder), reference[1])


def test_a_kill_before_the_first_state_starts_afresh(reference, tmp_path):
    folder = tmp_path / "run"
    train(folder, steps=1)
    (folder / "state.pt").unlink()
    assert same(train(folder), reference[1])
    assert (folder / "metrics.jsonl").read_bytes() == (reference[0] / "metrics.jsonl").read_bytes()


KILLED = """
import sys
sys.path.insert(0, sys.argv[2])
import test_runs
test_runs.train(sys.argv[1], steps=10**9)
"""


def launch(folder):
    """A process that trains in `folder` until it is stopped."""
    tests = str(Path(__file__).parent)
    return subprocess.Popen([sys.executable, "-c", KILLED, str(folder), tests], stderr=subprocess.DEVNULL)


def wait_for(condition):
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline, "the other process did not get there within a minute"
        time.sleep(0.02)


def test_another_process_is_refused_until_this_one_is_killed(tmp_path):
    folder = tmp_path / "run"
    process = launch(folder)
    try:
        wait_for(lambda: (folder / "state.pt").exists())
        with pytest.raises(ValueError, match=f"{folder} is in use by another process"):
            Run(folder, CONFIG)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    with Run(folder, CONFIG) as run:
        state = run.load_state()
    metrics = read_metrics(folder)
    expected = begin()
    for line in metrics:  # whatever step it died in, its past is the undisturbed one
        expected = advance(expected)
        assert line["weights"] == expected["weights"].tolist()
    assert same(state, expected)


# --- refused ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"seeds": 3}, "seeds is 2 there and 3 here"),
        ({"control": "none"}, "control is 'kl_cov' there and 'none' here"),
        (
            {"settings": {"kl_cov": {"fraction": 0.03, "coef": 1.0}}},
            "settings.kl_cov.fraction is 0.02 there and 0.03 here",
        ),
        ({"settings": {}}, r"settings is missing there and \{\} here"),
        ({"lr": 0.1}, "lr is missing there and 0.1 here"),
        ({"lr": None}, "lr is missing there and None here"),
        ({"note": 1}, "note is None there and 1 here"),
    ],
)
def test_another_config_is_refused_and_the_difference_named(reference, tmp_path, change, message):
    folder = tmp_path / "run"
    shutil.copytree(reference[0], folder)
    before = {p.name: p.read_bytes() for p in folder.iterdir()}
    with pytest.raises(ValueError, match=message):
        Run(folder, {**CONFIG, **change})
    assert {p.name: p.read_bytes() for p in folder.iterdir()} == before


def test_a_missing_setting_is_named(reference):
    config = {k: v for k, v in CONFIG.items() if k != "note"}
    with pytest.raises(ValueError, match="note is None there and missing here"):
        Run(reference[0], config)


def test_the_order_of_settings_does_not_matter(reference, tmp_path):
    shutil.copytree(reference[0], tmp_path / "run")
    Run(tmp_path / "run", dict(reversed(CONFIG.items()))).close()


def test_a_config_written_while_waiting_for_the_lock_is_not_trusted(reference, tmp_path, monkeypatch):
    """Another process may create the run, and finish, between our look at the folder and our lock."""
    folder = tmp_path / "run"

    def slow_lock(*arguments):
        if not (folder / "config.json").exists():
            write_atomic(folder / "config.json", json.dumps({**CONFIG, "seeds": 9}))

    monkeypatch.setattr(runs.fcntl, "flock", slow_lock)
    with pytest.raises(ValueError, match="seeds is 9 there and 2 here"):
        Run(folder, CONFIG)


@pytest.mark.parametrize("name", ["thesis.tex", "metrics.jsonl", ".git"])
def test_a_folder_of_something_else_is_refused_untouched(tmp_path, name):
    (tmp_path / name).write_text("mine")
    with pytest.raises(ValueError, match=f"{tmp_path} exists and is not a run directory; choose another --out"):
        Run(tmp_path, CONFIG)
    assert [p.name for p in tmp_path.iterdir()] == [name]
    assert (tmp_path / name).read_text() == "mine"


def test_an_empty_folder_is_taken(tmp_path, reference):
    assert same(train(tmp_path), reference[1])


def test_a_file_in_place_of_the_folder_is_an_os_error(tmp_path):
    (tmp_path / "run").write_text("")
    with pytest.raises(OSError, match="run"):
        Run(tmp_path / "run", CONFIG)


def test_a_read_only_folder_is_an_os_error_that_names_it():
    root = os.geteuid() == 0  # root ignores permissions, so give them up for the test
    with tempfile.TemporaryDirectory() as closed:
        os.chmod(closed, 0o555)
        if root:
            os.seteuid(65534)  # nobody
        try:
            with pytest.raises(PermissionError, match=f"{closed}/new"):
                Run(f"{closed}/new", CONFIG)
        finally:
            if root:
                os.seteuid(0)


def test_a_full_disk_is_an_os_error_and_loses_nothing(reference, tmp_path):
    folder = tmp_path / "run"
    train(folder, steps=2)
    kept = folder / "metrics.jsonl"
    content = kept.read_bytes()
    with Run(folder, CONFIG) as run:
        state = run.load_state()
        kept.unlink()
        kept.symlink_to("/dev/full")  # accepts no byte
        with pytest.raises(OSError, match="No space left"):
            run.record({"step": 3}, advance(state))
    kept.unlink()
    kept.write_bytes(content)
    assert same(train(folder), reference[1])


# --- damaged ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("length", [0, 10, -1])
def test_a_truncated_state_is_named(reference, tmp_path, length):
    shutil.copytree(reference[0], tmp_path / "run")
    path = tmp_path / "run/state.pt"
    path.write_bytes(path.read_bytes()[:length])
    with Run(tmp_path / "run", CONFIG) as run, pytest.raises(ValueError, match=r"state\.pt.*damaged"):
        run.load_state()


@pytest.mark.parametrize("left", [0, 50, None])
def test_metrics_shorter_than_the_state_says_are_named(reference, tmp_path, left):
    """After a power cut the newer file may have reached the disk and the older not; zeros must not fill the gap."""
    shutil.copytree(reference[0], tmp_path / "run")
    path = tmp_path / "run/metrics.jsonl"
    if left is None:
        path.unlink()
    else:
        path.write_bytes(path.read_bytes()[:left])
    with Run(tmp_path / "run", CONFIG) as run, pytest.raises(ValueError, match=r"metrics\.jsonl.*shorter"):
        run.load_state()


def test_a_config_that_is_not_json_is_named(tmp_path):
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ValueError, match=r"config\.json.*not a run's config"):
        Run(tmp_path, CONFIG)


class Malicious:
    """Unpickling this would run a command."""

    def __reduce__(self):
        return (os.system, ("touch executed",))


def test_a_state_that_would_execute_code_is_refused(reference, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(reference[0], tmp_path / "run")
    torch.save({"metrics_bytes": 0, "state": Malicious()}, tmp_path / "run/state.pt")
    with Run(tmp_path / "run", CONFIG) as run, pytest.raises(ValueError, match=r"state\.pt"):
        run.load_state()
    assert not (tmp_path / "executed").exists()


# --- what is written ----------------------------------------------------------------------------------------------


def test_json_holds_null_in_place_of_nan_and_infinity(tmp_path):
    values = {
        "nan": math.nan,
        "rows": torch.tensor([[1.0, math.inf], [-math.inf, 0.5]]),
        "nested": {"x": (math.nan, 1)},
    }
    with Run(tmp_path, {"limit": math.inf}) as run:
        run.load_state()
        run.record({"step": 0, **values}, {})
    text = (tmp_path / "metrics.jsonl").read_text()
    assert "NaN" not in text and "Infinity" not in text
    assert read_metrics(tmp_path) == [
        {"step": 0, "nan": None, "rows": [[1, None], [None, 0.5]], "nested": {"x": [None, 1]}}
    ]
    Run(tmp_path, {"limit": math.inf}).close()  # an infinite setting is the same setting when the run goes on


def test_plain_turns_tensors_into_numbers():
    assert plain({1: torch.tensor(2), "f": torch.tensor(0.5), "b": torch.tensor(True)}) == {"1": 2, "f": 0.5, "b": True}


def test_atomic_writing_replaces_the_whole_file_or_nothing(tmp_path, monkeypatch):
    path = tmp_path / "file"
    write_atomic(path, "old")

    def fail(*arguments):
        raise OSError("killed")

    monkeypatch.setattr(runs.os, "replace", fail)
    with pytest.raises(OSError, match="killed"):
        write_atomic(path, "new")
    assert path.read_text() == "old"


def test_a_run_lets_go_of_its_folder_when_it_closes_or_fails(tmp_path):
    with pytest.raises(RuntimeError), Run(tmp_path, CONFIG):
        raise RuntimeError
    Run(tmp_path, CONFIG).close()


def test_a_new_run_that_fails_before_its_first_step_leaves_nothing(tmp_path):
    with pytest.raises(RuntimeError), Run(tmp_path / "a/b", {"lr": 1}) as run:
        run.load_state()
        raise RuntimeError
    assert list(tmp_path.iterdir()) == []


def test_a_run_that_fails_later_keeps_its_steps(tmp_path):
    with pytest.raises(RuntimeError), Run(tmp_path / "a", {"lr": 1}) as run:
        run.load_state()
        run.record({"step": 1}, {})
        raise RuntimeError
    with pytest.raises(RuntimeError), Run(tmp_path / "a", {"lr": 1}):
        raise RuntimeError
    assert [line["step"] for line in read_metrics(tmp_path / "a")] == [1]


def test_a_folder_with_other_results_in_it_keeps_its_config(tmp_path):
    with pytest.raises(RuntimeError), Run(tmp_path / "a", {"lr": 1}):
        (tmp_path / "a/runs").mkdir()
        raise RuntimeError
    assert (tmp_path / "a/config.json").exists()


def test_a_folder_that_was_there_before_stays(tmp_path):
    with pytest.raises(RuntimeError), Run(tmp_path, {"lr": 1}):
        raise RuntimeError
    assert tmp_path.is_dir()


def test_lines_without_a_state_are_written_again(tmp_path):
    with Run(tmp_path / "a", {"lr": 1}) as run:
        run.load_state()
        run.record({"step": 1}, {"step": 1})
        run.record({"step": 2}, None)
        assert [line["step"] for line in read_metrics(tmp_path / "a")] == [1, 2]
    with Run(tmp_path / "a", {"lr": 1}) as run:
        assert run.load_state() == {"step": 1}
    assert [line["step"] for line in read_metrics(tmp_path / "a")] == [1]
