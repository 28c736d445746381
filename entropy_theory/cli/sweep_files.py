"""Sweeps on disk: their TOML files, the packages' own or any other, and the run directories of one."""

import functools
import importlib.resources
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from entropy_theory.cli.engines import Job
from entropy_theory.cli.worlds import WORLDS, config_class, estimated_seconds, run_folders, train_run
from entropy_theory.sweeps import Point, Sweep, parse

PACKAGES = ("sims", "llm")


def committed() -> dict[str, Any]:
    """The files of the sweeps that come with the packages, by name."""
    return {name: file for name, file in _files().items() if "sweeps" not in tomllib.loads(file.read_text())}


@functools.cache
def _files() -> dict[str, Any]:
    """The TOML files of the packages, sweeps and suites, by name."""
    folders = [importlib.resources.files(package).joinpath("sweeps") for package in PACKAGES]
    files = [file for folder in folders if folder.is_dir() for file in folder.iterdir() if file.name.endswith(".toml")]
    return {file.name.removesuffix(".toml"): file for file in sorted(files, key=lambda file: file.name)}


def load(name: str, overrides: Mapping[str, Any]) -> Sweep:
    """The sweep `name`, one of the packages' or the path of a TOML file, with parts of its base config overridden.

    Raises: ValueError, one sentence, if there is no such sweep or something in it is wrong.
    """
    known = committed()
    file = known.get(name, Path(name))
    try:
        table = tomllib.loads(file.read_text())
    except (FileNotFoundError, IsADirectoryError):
        raise ValueError(
            f"there is no sweep {name!r}; give the path of a TOML file or one of {', '.join(known)}"
        ) from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"sweep {name} is not valid TOML: {error}") from None
    worlds = {world: functools.partial(config_class, world) for world in WORLDS}
    return parse(file.name.removesuffix(".toml"), table, worlds, overrides)


SUITE_KEYS = {"description", "sweeps"}
"""What the file of a suite holds: sweeps to run one after the other, and to compare control by control."""


def suite(name: str) -> list[str] | None:
    """The sweeps of the suite `name`; None if it is a sweep, or nothing."""
    file = _files().get(name, Path(name))
    try:
        table = tomllib.loads(file.read_text())
    except (OSError, ValueError):  # `load` says what is wrong
        return None
    if "sweeps" not in table:
        return None
    unknown = set(table) - SUITE_KEYS
    if unknown or not isinstance(table["sweeps"], list):
        raise ValueError(f"suite {name}: its keys are description and sweeps, a list of names, got {', '.join(table)}")
    return table["sweeps"]


def listing() -> str:
    """Name, size, time and description of every sweep of the packages."""
    lines = []
    for name, file in _files().items():
        if parts := suite(name):
            lines.append(f"{name} (compares {', '.join(parts)})\n    {tomllib.loads(file.read_text())['description']}")
            continue
        sweep = load(name, {})
        seconds = sum(estimated_seconds(sweep.world, point.config) for point in sweep.points)
        runs = f"{len(sweep.points)} run{'s' * (len(sweep.points) != 1)} of {sweep.seeds} seeds"
        minutes = f"about {max(1, round(seconds / 60))} min of one core"
        lines.append(f"{name} ({sweep.world}; {runs}; {minutes})\n    {sweep.description}")
    return "\n".join(lines)


def jobs_of(world: str, point: Point, out: Path) -> list[Job]:
    """The jobs of one run: one for a vectorised sim, one per seed for the LLM."""
    folders = run_folders(world, point.config, out / point.folder)
    weight = estimated_seconds(world, point.config) / len(folders)
    return [
        Job(
            f"{point.folder} seed {seed}" if len(folders) > 1 else point.folder,
            weight,
            note_path(out, folder),
            train_run,
            (world, point.config, folder, seed),
        )
        for folder, seed in folders
    ]


def note_path(out: Path, folder: Path) -> Path:
    """The file of a run directory's note."""
    return out / "progress" / ("-".join(folder.relative_to(out).parts) + ".json")
