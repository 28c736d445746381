"""`entropy-theory check`: judge the claims, print every verdict with its evidence."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from entropy_theory.cli.arguments import parse

PLACES = ("random", "bandit", "cartpole", "llm")
PLACES_OF = {"quick": PLACES[:3], "ci": PLACES, "thorough": PLACES}
"""Where each profile judges when --world is not given; `quick` leaves out what has to load a language model."""


@dataclass(frozen=True)
class CheckOptions:
    """Options of `check`."""

    list: bool = False
    """Only list the claims: id, verdict on record, statement, source."""
    only: tuple[str, ...] = ()
    """Ids of the claims to judge; all if not given."""
    world: tuple[Literal["random", "bandit", "cartpole", "llm"], ...] = ()
    """Where to judge; if not given: everywhere, without llm for quick, and nowhere else if --model is given."""
    model: Path | None = None
    """Directory of a causal language model: its own logits become states."""
    profile: Literal["quick", "ci", "thorough"] = "ci"
    """How much: quick (under 20 s), ci (a minute), thorough (100,000,000 instances; resumes after a kill)."""
    certified: bool = False
    """Judge small instances in ball arithmetic too, which leaves no rounding to trust; needs python-flint."""
    instances: int = 0
    """Drawn instances per bounded statement; 0 for the profile's number."""
    seed: int = 0
    """Seed of everything drawn and searched."""
    workers: int = 0
    """Processes that judge side by side, one thread each; 0 for one per core."""
    json: Path | None = None
    """File to write the results to, as JSON."""
    report: Path | None = None
    """File to write the results to: one self-contained HTML page, or Markdown if its name ends in .md."""

    def __post_init__(self):
        if self.instances < 0:
            raise ValueError(f"instances must be at least 0, got {self.instances}")
        if self.workers < 0:
            raise ValueError(f"workers must be at least 0, got {self.workers}")


def check(name: str, text: str, arguments: list[str]) -> int:
    """Exit status 0 if every claim has the verdict on record, 1 if not."""
    options = parse(name, CheckOptions, arguments, text)
    if options.list:
        print(listing())
        return 0
    for flag, file in (("--json", options.json), ("--report", options.report)):
        if file is not None and not file.parent.is_dir():
            raise ValueError(f"{flag} {file}: the folder {file.parent} does not exist; create it first")
    from entropy_theory import claims
    from entropy_theory.cli.judging import judge

    if options.certified:
        _need_ball_arithmetic()
    chosen = claims.select(options.only, make_context(options))
    judged = judge(chosen, options)
    print(claims.table(judged))
    write(judged, options)
    return 0 if claims.agrees(judged) else 1


def _need_ball_arithmetic() -> None:
    from entropy_theory.balls import flint

    try:
        flint()
    except ModuleNotFoundError as error:
        raise ValueError(f"--certified: {error}") from None


def write(judged: list, options: CheckOptions) -> None:
    """The files asked for."""
    from entropy_theory import claims
    from entropy_theory.runs import write_atomic

    if options.json is not None:
        write_atomic(options.json, claims.to_json(judged))
    if options.report is None:
        return
    if options.report.suffix == ".md":
        write_atomic(options.report, claims.markdown(judged))
    else:
        from entropy_theory.cli.report import write_check_report

        write_check_report(judged, options.report)
    print(f"report: {options.report}")


def listing() -> str:
    """Every claim in two lines."""
    from entropy_theory.claims import CLAIMS

    lines = [f"{c.id:<28}{c.recorded:<24}{c.source}\n    {c.statement}" for c in CLAIMS.values()]
    return "\n".join([*lines, f"{len(CLAIMS)} claims, with the verdict on record; `--only ID` judges one."])


def make_context(options: CheckOptions):
    """What the options choose, as the judges take it. Nothing of a world loads before a claim asks for it."""
    from entropy_theory import claims
    from entropy_theory.cli import worlds

    profile = claims.PROFILES[options.profile]
    if options.instances:
        profile = replace(profile, instances=options.instances)
    places = options.world or (() if options.model is not None else PLACES_OF[options.profile])
    lent = {place: worlds.lend(place) for place in places if place != claims.RANDOM}
    if options.model is not None:
        lent["model"] = worlds.lend_model(options.model)
    return claims.Context(
        profile,
        options.seed,
        lent,
        random=claims.RANDOM in places,
        data=worlds.committed_data,
        certified=options.certified,
        folder=Path("runs") / f"check-seed-{options.seed}",
    )
