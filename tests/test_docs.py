"""The documentation says what is there: its code runs, its links lead somewhere, its commands exist."""

import re
from pathlib import Path

import pytest

from entropy_theory import cli
from entropy_theory.controls import CONTROLS

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def test_readme_code_runs():
    (code,) = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.S)
    exec(compile(code, "README.md", "exec"), {})


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    prose = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.S | re.M)  # in code f[x](y) is a call
    for target in re.findall(r"\]\(([^)#]+)[^)]*\)", prose):
        if not target.startswith("http"):
            assert (page.parent / target).exists(), target


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_exist(page):
    for line in re.findall(r"`entropy-theory ([^`]*)`", page.read_text()):
        words = line.split()
        if words and words[0].islower() and words[0].isalpha():
            cli.split_command(words)


def test_every_control_has_a_row():
    text = (ROOT / "docs/controls.md").read_text()
    for name in CONTROLS:
        assert f"\n| `{name}` |" in text, name


def test_make_targets_named_in_the_docs_exist():
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.M))
    for page in PAGES:
        assert set(re.findall(r"`make ([a-z-]+)", page.read_text())) <= targets
