"""Where jobs run: processes of this machine, a Ray cluster, or Slurm. One protocol, one table."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

from entropy_theory.cli.engines.jobs import Engine, Job, Tell, carry_out, perform, read_note, write_note
from entropy_theory.cli.engines.local import LocalEngine
from entropy_theory.cli.engines.ray_cluster import RayEngine
from entropy_theory.cli.engines.slurm import SlurmEngine

__all__ = ["ENGINES", "Engine", "Job", "Place", "Tell", "carry_out", "perform", "read_note", "write_note"]


class Place(NamedTuple):
    """What an engine may be told: number of workers (0: as many as there is room for), a folder for its own files,
    the address of a Ray cluster, parameters of Slurm."""

    workers: int
    folder: Path
    address: str = ""
    slurm: Mapping[str, str] = {}


ENGINES: dict[str, Callable[[Place], Engine]] = {
    "local": lambda place: LocalEngine(place.workers),
    "ray": lambda place: RayEngine(place.address, place.workers),
    "slurm": lambda place: SlurmEngine(place.folder, place.slurm, place.workers),
}
"""Each raises ValueError, one sentence, if it cannot be had here."""
