"""Glue between the theory check and the worlds: real states for it, progress while it runs."""

from entropy_theory.claims import WorldStates, check
from entropy_theory.cli.progress import bar
from entropy_theory.cli.worlds import probe_states

WORLDS = ("bandit", "cartpole", "llm")


def all_states() -> dict[str, WorldStates]:
    """States of short trainings in each of the three worlds."""
    return {world: WorldStates(*probe_states(world)) for world in WORLDS}


def run_check(instances: int, seed: int, states: dict[str, WorldStates], quiet: bool = False) -> list:
    """`claims.check` with a progress bar."""
    if quiet:
        return check(instances, seed, states)
    with bar(0, "check", unit="instance") as progress:

        def show(done: int, total: int):
            progress.total = total
            progress.update(done - progress.n)

        return check(instances, seed, states, show)
