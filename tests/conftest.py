"""Settings every test runs under: hypothesis profiles, one thread, no display, no network."""

import ipaddress
import os
import sys

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TRANSFORMERS_OFFLINE", "1")
os.environ.setdefault("MPLBACKEND", "Agg")

import hypothesis
import pytest
import torch

torch.set_num_threads(1)

# quick: while editing. ci: what `make test` runs, the same examples every time. thorough: overnight, new examples.
_COMMON = {"deadline": None, "suppress_health_check": [hypothesis.HealthCheck.too_slow]}
hypothesis.settings.register_profile("quick", max_examples=10, derandomize=True, **_COMMON)
hypothesis.settings.register_profile("ci", max_examples=40, derandomize=True, **_COMMON)
hypothesis.settings.register_profile("thorough", max_examples=1000, print_blob=True, **_COMMON)
hypothesis.settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "ci"))

_outside: list[str] = []
"""Network addresses outside this machine that the running test tried to reach."""


def is_local(host: object) -> bool:
    """Whether `host` (a name, an address, None for any) is this machine."""
    if host in (None, "", "localhost", b"localhost"):
        return True
    try:
        return ipaddress.ip_address(host.decode() if isinstance(host, bytes) else str(host)).is_loopback
    except ValueError:
        return False


def _refuse_network(event: str, arguments: tuple) -> None:
    if event in ("socket.connect", "socket.sendto", "socket.sendmsg"):
        address = arguments[-1]
        host = address[0] if isinstance(address, tuple) else None  # AF_UNIX paths are str: local
    elif event in ("socket.getaddrinfo", "socket.gethostbyname"):
        host = arguments[0]
    else:
        return
    if not is_local(host):
        _outside.append(f"{event} {host}")
        raise ConnectionRefusedError(f"tests run offline, but {event} was asked for {host}")


# an audit hook sees every connection, also one made by a library that catches the exception
sys.addaudithook(_refuse_network)


@pytest.fixture(autouse=True)
def offline():
    """Fail the test if it tried to reach another machine, even if it survived the refusal."""
    _outside.clear()
    yield _outside
    if _outside:
        pytest.fail(f"the test tried to use the network: {', '.join(_outside)}")
