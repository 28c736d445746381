"""Runs of other trainers' own functions: collected only where that trainer is installed (make test-trl, test-verl)."""

import importlib.util

from known import FOUND

collect_ignore_glob = [f"test_{peer}*.py" for peer in ("trl", "verl") if importlib.util.find_spec(peer) is None]


def pytest_terminal_summary(terminalreporter):
    """The differences found, by how much and why."""
    if FOUND:
        terminalreporter.section("differences from the golden batches (all known)")
        for line in FOUND:
            terminalreporter.write_line(line)
