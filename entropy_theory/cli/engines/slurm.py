"""Jobs as one Slurm job array, through submitit. Nodes must see the output directory under the same path."""

import shutil
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from entropy_theory.cli.engines.jobs import Job, perform

DEFAULTS = {"timeout_min": 24 * 60, "cpus_per_task": 1, "mem_gb": 4}
"""What is asked of Slurm for each job where --slurm does not say."""


class SlurmEngine:
    """One element of a job array a job; what submitit writes lies in `folder`."""

    def __init__(self, folder: Path, parameters: Mapping[str, str], workers: int = 0, cluster: str = "slurm"):
        """
        Args:
          parameters: of submitit (timeout_min, mem_gb, cpus_per_task, ...) or of sbatch (partition, account, ...).
          workers: elements that run at once; 0 for as many as Slurm lets.
          cluster: of submitit's; "local" runs the jobs as processes here.
        Raises: ValueError if submitit is not installed, there is no sbatch, or a parameter is not known.
        """
        try:
            import submitit
        except ModuleNotFoundError:
            raise ValueError(
                "--engine slurm needs submitit; install it with pip install 'entropy-theory[slurm]'"
            ) from None
        for program in ("sbatch", "srun") if cluster == "slurm" else ():
            if shutil.which(program) is None:
                raise ValueError(f"--engine slurm: there is no {program} here; run this on a login node of the cluster")
        self._refused = submitit.core.utils.FailedJobError
        self._executor = submitit.AutoExecutor(folder=folder, cluster=cluster)
        wanted = {key if key in _SHARED else f"slurm_{key}": _number(value) for key, value in parameters.items()}
        if workers:
            wanted["slurm_array_parallelism"] = workers
        try:
            self._executor.update_parameters(**DEFAULTS | wanted)
        except (NameError, TypeError, ValueError) as error:
            raise ValueError(f"--slurm: {' '.join(str(error).split())}") from None
        self._jobs: list = []

    def start(self, jobs: Sequence[Job]) -> list:
        """One array of all the jobs. ValueError if Slurm refuses it."""
        if not jobs:
            return []
        try:
            with self._executor.batch():
                started = [self._executor.submit(perform, job) for job in jobs]
        except (self._refused, subprocess.CalledProcessError) as error:
            raise ValueError(f"Slurm refused the jobs: {' '.join(str(error).split())}") from None
        self._jobs += started
        return started

    def wait(self, handles: Sequence, timeout: float) -> list:
        """See `Engine.wait`."""
        end = time.monotonic() + timeout
        while not (finished := [job for job in handles if job.done()]) and time.monotonic() < end:
            time.sleep(0.1)
        return finished

    def __enter__(self):
        return self

    def __exit__(self, *_) -> None:
        for job in self._jobs:
            if not job.done():
                job.cancel()


_SHARED = {
    "name",
    "timeout_min",
    "mem_gb",
    "nodes",
    "cpus_per_task",
    "gpus_per_node",
    "tasks_per_node",
    "stderr_to_stdout",
}


def _number(value: str) -> int | str:
    return int(value) if value.isdigit() else value
