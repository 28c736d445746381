"""The runs of `reproduce` as data: a TOML file with a section per world and a table per control."""

import importlib.resources
import tomllib
from pathlib import Path
from typing import Any, NamedTuple

from entropy_theory.cli.worlds import WORLDS, config_class, run_folders
from entropy_theory.ranges import check_types


class TrainingRun(NamedTuple):
    """One run directory to be trained, and its share of the whole work (seconds on one core, measured once)."""

    world: str
    control: str
    config: Any
    folder: Path
    seed: int
    weight: float


WEIGHTS = {"bandit": 5.0, "cartpole": 35.0, "llm": 29.0}


def load(file: Path | None) -> dict[str, Any]:
    """The settings: those of the package, or of `file`. ValueError if the file is missing or malformed."""
    if file is None:
        text = importlib.resources.files("entropy_theory.cli").joinpath("reproduce.toml").read_text()
        return tomllib.loads(text)
    try:
        return tomllib.loads(file.read_text())
    except FileNotFoundError:
        raise ValueError(f"--settings {file}: there is no such file") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"--settings {file} is not valid TOML: {error}") from None


def training_runs(settings: dict[str, Any], out: Path) -> list[TrainingRun]:
    """Every run directory, the longest first. ValueError names an unknown world, key, control or parameter."""
    from entropy_theory.controls import build

    found = []
    for world, section in settings.items():
        if world not in WORLDS:
            raise ValueError(f"settings: unknown world {world!r}; the worlds are {', '.join(WORLDS)}")
        shared = {key: value for key, value in section.items() if key != "controls"}
        if "none" not in section.get("controls", {}):
            raise ValueError(f"settings: [{world}.controls.none] is missing; every control is compared with it")
        for control, parameters in section["controls"].items():
            values = shared | {"control": control, "set": parameter_names(control, parameters)}
            options = config_class(world)
            unknown = set(values) - set(options.__dataclass_fields__)
            if unknown:
                raise ValueError(f"settings: [{world}] has no key {sorted(unknown)[0]!r}")
            config = check_types(options, values, f"settings [{world}]")
            if world == "llm" and config.probe_every == 0:
                raise ValueError(
                    "settings [llm]: probe_every must be at least 1 here, the report needs the probe; got 0"
                )
            build(config.control, config.set)
            for folder, seed in run_folders(world, config, out / "runs" / world / control):
                found.append(TrainingRun(world, control, config, folder, seed, WEIGHTS[world]))
    return sorted(found, key=lambda run: -run.weight)


def parameter_names(control: str, parameters: dict[str, Any]) -> dict[str, float]:
    """{"fraction": 0.1} of control kl_cov as {"kl_cov.fraction": 0.1}; names with a dot stay (chained controls)."""
    return {key if "." in key else f"{control}.{key}": value for key, value in parameters.items()}
