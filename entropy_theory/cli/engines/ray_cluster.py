"""Jobs as tasks of a Ray cluster. Results are files: every node must see the output directory under the same path."""

import os
import socket
from collections.abc import Sequence

from entropy_theory.cli.engines.jobs import Job, perform


class RayEngine:
    """One task a job, one core a task, on an existing cluster or on one that lives as long as the engine."""

    def __init__(self, address: str = "", workers: int = 0):
        """
        Args:
          address: of an existing cluster; RAY_ADDRESS if empty, and a cluster of this machine if that is unset too.
          workers: cores of the cluster of this machine; 0 for all.
        Raises: ValueError if Ray is not installed or the cluster cannot be reached.
        """
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # no word to anybody about what is run
        os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
        try:
            import ray
        except ModuleNotFoundError:
            raise ValueError("--engine ray needs Ray; install it with pip install 'entropy-theory[ray]'") from None
        self._ray = ray
        address = address or os.environ.get("RAY_ADDRESS", "")
        _knock(address)
        quiet = {"log_to_driver": False, "logging_level": "ERROR"}
        try:
            if address:
                ray.init(address=address, **quiet)
            else:
                ray.init(
                    num_cpus=workers or os.cpu_count(),
                    object_store_memory=OBJECT_STORE,
                    include_dashboard=False,
                    _node_ip_address="127.0.0.1",  # nobody else is to join it
                    **quiet,
                )
        except (ConnectionError, RuntimeError, ValueError) as error:
            text = " ".join(str(error).split())
            raise ValueError(f"no Ray cluster could be reached at {address or 'this machine'}: {text}") from None
        # retries are counted in `carry_out`, in the same way for every engine
        self._perform = ray.remote(num_cpus=1, max_retries=0)(perform)

    def start(self, jobs: Sequence[Job]) -> list:
        """One task for each job."""
        return [self._perform.remote(job) for job in jobs]

    def wait(self, handles: Sequence, timeout: float) -> list:
        """See `Engine.wait`."""
        return self._ray.wait(list(handles), num_returns=1, timeout=timeout)[0]

    def __enter__(self):
        return self

    def __exit__(self, *_) -> None:
        self._ray.shutdown()


def _knock(address: str) -> None:
    """Raise ValueError if nobody listens at HOST:PORT; Ray itself would try for minutes."""
    host, colon, port = address.removeprefix("ray://").rpartition(":")
    if not colon or not port.isdigit():
        return
    try:
        socket.create_connection((host, int(port)), timeout=5).close()
    except OSError as error:
        raise ValueError(f"no Ray cluster could be reached at {address}: {error.strerror or error}") from None


OBJECT_STORE = 100 * 2**20
"""Bytes for objects passed between tasks, of which there are none; Ray would take a third of the memory."""
