"""Mutation testing: changes one operator, number or name at a time in a copy of the package and runs the tests on it.

    python tests/mutate.py                    # every module of MODULES; hours
    python tests/mutate.py loss surrogate     # these
    python tests/mutate.py surrogate:x_sapo*  # the mutants of one function; those of a class: xǁClassǁmethod*
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
from pathlib import Path

ROOT = Path(__file__).parent.parent
COPIED = ("entropy_theory", "sims", "llm", "paper_figs", "tests", "docs", "pyproject.toml", "constraints.txt")
CONTROL = ("controls*", "presets")

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
    "control": ("controls", "presets"),
    "theorems": ("theorems",),
    "remainder": ("remainder",),
    "drift": ("drift",),
    "decomposition": ("kernel", "natural_gradient"),
    "measure": ("measure",),
    "controls/__init__": ("presets", "controls"),
    "controls/checks": CONTROL,
    "controls/clip_cov": CONTROL,
    "controls/clip_higher": CONTROL,
    "controls/entropy_bonus": CONTROL,
    "controls/kl_cov": CONTROL,
    "controls/adaptive_entropy": CONTROL,
    "controls/aent": CONTROL,
    "controls/aer": CONTROL,
    "controls/budget": CONTROL,
    "controls/cov_state": CONTROL,
    "controls/effect": CONTROL,
    "controls/egsw": CONTROL,
    "controls/entropic": CONTROL,
    "controls/entropy_advantage": CONTROL,
    "controls/era": CONTROL,
    "controls/era_activation": CONTROL,
    "controls/high_entropy_tokens": CONTROL,
    "controls/kl_to_reference": CONTROL,
    "controls/lp_reg": CONTROL,
    "controls/quantile_advantage": CONTROL,
    "controls/steer": CONTROL,
    "controls/temperature": CONTROL,
    "controls/weighted_reinforce": CONTROL,
}
"""Files of entropy_theory and the tests that are run on their mutants: tests/test_NAME.py, * for any ending."""


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
    (folder / "pyproject.toml").write_text(
        (folder / "pyproject.toml").read_text()
        + "\n[tool.mutmut]\n"
        + 'source_paths = ["entropy_theory"]\n'
        + f'only_mutate = ["entropy_theory/{module}.py"]\n'
        + 'also_copy = ["sims", "llm", "paper_figs", "docs", "constraints.txt"]\n'
        + f"pytest_add_cli_args_test_selection = [{tests}]\n"
        + "use_git_change_detection = false\n"
        + "track_dependencies = false\n"
    )


def mutmut(folder: Path, *arguments: str, profile: str = "quick") -> str:
    """Its output; its exit status says nothing."""
    settings = {"HYPOTHESIS_PROFILE": profile, "OMP_NUM_THREADS": "1"}
    command = [str(Path(sys.executable).parent / "mutmut"), *arguments]
    done = subprocess.run(command, cwd=folder, env=os.environ | settings, capture_output=True, text=True)
    return done.stdout + done.stderr


def verdicts(folder: Path) -> dict[str, str]:
    """{mutant: killed, survived, timeout, no tests, ...}."""
    lines = re.findall(r"^\s+(\S+): (.+)$", mutmut(folder, "results", "--all", "True"), re.MULTILINE)
    return dict(lines)


def measure(asked: str) -> bool:
    """Run one module and print what came of it; False if the tests fail without any mutant.

    asked: the module, or module:mutants with * for any ending.
    """
    module, _, pattern = asked.partition(":")
    chosen = [f"entropy_theory.{module.replace('/', '.')}.{pattern}"] if pattern else []
    with tempfile.TemporaryDirectory(prefix="mutants-") as name:
        folder = Path(name)
        prepare(folder, module)
        output = mutmut(folder, "run", "--max-children", "2", *chosen)
        found = {
            mutant: verdict for mutant, verdict in verdicts(folder).items() if not chosen or verdict != "not checked"
        }
        if set(found.values()) <= {"not checked"}:
            said = [line for line in output.splitlines() if not line.startswith(tuple("⠋⠙⠹⠸⠼⠴⠦⠧⠇⠏"))]
            print(f"{module}: nothing was measured\n" + "\n".join(said[-60:]))
            return False
        alive = [mutant for mutant, verdict in found.items() if verdict == "survived"]
        if alive:
            mutmut(folder, "run", "--max-children", "2", *alive, profile="ci")
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
