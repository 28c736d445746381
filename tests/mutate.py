"""Mutation testing: changes one operator, number or name at a time in a copy of the package and runs the tests on it.

    python tests/mutate.py                    # every module of MODULES; hours
    python tests/mutate.py loss surrogate     # these
    python tests/mutate.py surrogate:x_sapo*  # the mutants of one function; those of a class: xǁClassǁmethod*
    python tests/mutate.py controls:kl_cov.*  # those of one file of a folder
    python tests/mutate.py --list             # the modules and their tests

mutmut makes the mutants (of functions; what stands at the level of a module it leaves alone) and runs for each the
tests that reach the changed function: first with the few examples of the quick profile, then, on what survived, with
those of `make test`. Prints for each module how many mutants the tests caught and the text of those they did not.
docs/mutants.md has the counts and why the rest survives. Exit status 1 if the tests fail without any mutant.
"""

import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path

ROOT = Path(__file__).parent.parent
COPIED = ("entropy_theory", "sims", "llm", "paper_figs", "tests", "docs", "pyproject.toml", "constraints.txt")
MODULES: dict[str, tuple[str, ...]] = {
    "surrogate": ("surrogate",),
    "aggregation": ("aggregation",),
    "advantage": ("advantage",),
    "loss": ("loss", "surrogate", "aggregation"),
    "records": ("loss", "scope"),
    "reduce": ("reduce", "advantage"),
    "covariances": ("covariances",),
    "softmax": ("softmax",),
    "scope": ("scope",),
    "draw": ("draw",),
    "controller": ("controller",),
    "control": ("controls*", "presets", "aent", "every_control"),
    "theorems": ("theorems", "natural_gradient", "measure"),
    "remainder": ("remainder", "remainder_formulas", "theorems"),
    "drift": ("drift", "traps"),
    "decomposition": ("selection",),
    "measure": ("measure", "selection", "scope", "kl_to_reference"),
    "controls": ("controls*", "presets", "aent", "effect", "era", "kl_to_reference", "every_control"),
}
"""Files of entropy_theory, or a folder with all of its files, and the tests that are run on their mutants:
tests/test_NAME.py, * for any ending."""


def files_of(tests: tuple[str, ...]) -> list[str]:
    """The test files, as paths in the repository; a name without a file has none."""
    found = [path for name in tests for path in sorted((ROOT / "tests").glob(f"test_{name}.py"))]
    return [str(path.relative_to(ROOT)) for path in dict.fromkeys(found)]


def prepare(folder: Path, module: str) -> None:
    """A copy of the repository whose pyproject.toml tells mutmut what to do."""
    for name in COPIED:
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, folder / name, ignore=shutil.ignore_patterns("__pycache__", "peers"))
        else:
            shutil.copy(source, folder / name)
    tests = ", ".join(f'"{path}"' for path in files_of(MODULES[module]))
    mutated = f"{module}/*.py" if (ROOT / "entropy_theory" / module).is_dir() else f"{module}.py"
    (folder / "pyproject.toml").write_text(
        (folder / "pyproject.toml").read_text()
        + "\n[tool.mutmut]\n"
        + 'source_paths = ["entropy_theory"]\n'
        + f'only_mutate = ["entropy_theory/{mutated}"]\n'
        + 'also_copy = ["sims", "llm", "paper_figs", "docs", "constraints.txt"]\n'
        + f"pytest_add_cli_args_test_selection = [{tests}]\n"
        + "use_git_change_detection = false\n"
        + "track_dependencies = false\n"
    )


MUTMUT = Path(sys.executable).parent / "mutmut"


def run_tests(folder: Path, profile: str, mutants: Iterable[str]) -> None:
    """Run the tests on these mutants, or on all if none is named; mutmut's progress goes to the standard error."""
    settings = {"HYPOTHESIS_PROFILE": profile, "OMP_NUM_THREADS": "1"}
    command = [MUTMUT, "run", "--max-children", str(os.cpu_count()), *mutants]
    subprocess.run(command, cwd=folder, env=os.environ | settings, stdout=sys.stderr)


def mutmut(folder: Path, *arguments: str) -> str:
    """What it says of a run that is over."""
    return subprocess.run([MUTMUT, *arguments], cwd=folder, capture_output=True, text=True).stdout


def verdicts(folder: Path) -> dict[str, str]:
    """{mutant: killed, survived, timeout, no tests, ...}."""
    lines = re.findall(r"^\s+(\S+): (.+)$", mutmut(folder, "results", "--all", "True"), re.MULTILINE)
    return dict(lines)


def measure(asked: str) -> bool:
    """Run one module and print what came of it; False if the tests fail without any mutant.

    asked: the module, or module:mutants with * for any ending.
    """
    module, _, pattern = asked.partition(":")
    chosen = [f"entropy_theory.{module}.{pattern}"] if pattern else []
    with tempfile.TemporaryDirectory(prefix="mutants-") as name:
        folder = Path(name)
        prepare(folder, module)
        run_tests(folder, "quick", chosen)
        found = {
            mutant: verdict for mutant, verdict in verdicts(folder).items() if not chosen or verdict != "not checked"
        }
        if set(found.values()) <= {"not checked"}:
            print(f"{module}: nothing was measured: the tests fail without any mutant, see above")
            return False
        alive = [mutant for mutant, verdict in found.items() if verdict == "survived"]
        if alive:
            run_tests(folder, "ci", alive)
            found |= {mutant: verdict for mutant, verdict in verdicts(folder).items() if mutant in alive}
        counts = {verdict: list(found.values()).count(verdict) for verdict in sorted(set(found.values()))}
        print(f"{module}: {len(found)} mutants, " + ", ".join(f"{n} {verdict}" for verdict, n in counts.items()))
        for mutant, verdict in found.items():
            if verdict != "killed":
                print(f"--- {verdict}: {mutant}\n{mutmut(folder, 'show', mutant).strip()}")
        sys.stdout.flush()
    return True


def main(arguments: list[str]) -> int:
    """Status of the whole run."""
    if "--list" in arguments:
        for module, tests in MODULES.items():
            print(f"{module:<32}{' '.join(files_of(tests))}")
        return 0
    unknown = sorted({asked.partition(":")[0] for asked in arguments} - set(MODULES))
    if unknown:
        raise SystemExit(f"no such module: {', '.join(unknown)}; choose from {', '.join(MODULES)}")
    return 0 if all([measure(module) for module in arguments or MODULES]) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
