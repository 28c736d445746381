"""The outcome of a check as text and as JSON."""

import json
import math
import textwrap
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from typing import Any

from entropy_theory.claims.claim import Verdict
from entropy_theory.claims.verdict import Judged, agrees

HEADER = ["statement", "states from", "instances", "worst/bound", "2nd order", "slope", "2nd", "verdict"]


def to_document(judged: list[Judged]) -> dict[str, Any]:
    """Everything found, as data JSON can hold; numbers it lacks are strings that float() reads ("-inf")."""
    claims = []
    for j in judged:
        finding = asdict(j.finding)
        results = finding.pop("results")
        about = {"statement": j.claim.statement, "source": j.claim.source, "assumptions": list(j.claim.assumptions)}
        outcome = {"recorded": j.claim.recorded, "as_recorded": j.as_recorded, "seconds": round(j.seconds, 3)}
        claims.append({"id": j.claim.id, **about, **outcome, **finding, "results": results})
    return _finite({"agrees": agrees(judged), "summary": summary(judged), "claims": claims})


def to_json(judged: list[Judged]) -> str:
    """`to_document` as text."""
    return json.dumps(to_document(judged), indent=2, allow_nan=False)


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _finite(v) for key, v in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(v) for v in value]
    return value if not isinstance(value, float) or math.isfinite(value) else str(value)


def table_cells(document: Mapping[str, Any]) -> list[list[str]]:
    """The bounded statements as cells of text: a header, then one line per statement and place."""
    lines = [HEADER]
    for r in (result for claim in document["claims"] for result in claim["results"]):
        ratios = [_short(r["worst_ratio"]), _short(r["worst_ratio_second"])]
        slopes = [_slope(r["order"]), _slope(r["order_second"])]
        lines.append([r["statement"], r["where"], f"{r['instances']:,}", *ratios, *slopes, r["verdict"]])
    return lines


FULL = 12
"""Up to so many claims are printed with statement and evidence in full, more of them with one line each."""


def table(judged: list[Judged], width: int = 120) -> str:
    """The results as text: the bounded statements by place, every claim's verdict and evidence, what disagrees."""
    document = to_document(judged)
    parts = []
    cells = table_cells(document)
    if len(cells) > 1:
        parts += [_aligned(cells), ""]
    entry = _entry if len(judged) <= FULL else _line
    parts += [entry(claim, width) for claim in document["claims"]]
    parts += ["", summary(judged)]
    if len(judged) > FULL:
        parts.append("In full: --only ID for one of them, --report FILE.html or --json FILE for all.")
    for claim in document["claims"]:
        if not claim["as_recorded"]:
            parts.append(f"\n{claim['id']}: found '{claim['verdict']}', on record '{claim['recorded']}'.")
            if claim["counterexample"] is not None:
                parts.append(f"Paste this to see it:\n\n{claim['counterexample']['snippet']}")
    return "\n".join(parts)


def markdown(judged: list[Judged]) -> str:
    """Every claim with statement, source, verdict and evidence, as a Markdown page."""
    parts = ["# Every claim, with its verdict", "", summary(judged), ""]
    parts += ["Verdicts are computed by `entropy-theory check`; this page is its report (`--report FILE.md`).", ""]
    for claim in to_document(judged)["claims"]:
        parts += [f"### `{claim['id']}`: {claim['verdict']}", "", f"{claim['statement']} *{claim['source']}*", ""]
        if claim["assumptions"]:
            parts += [f"Assuming {', '.join(claim['assumptions'])}.", ""]
        parts += [claim["evidence"], ""]
        if claim["figure"]:
            parts += [f"![{claim['id']}](figures/{claim['figure']})", ""]
        if claim["counterexample"]:
            parts += ["```text", claim["counterexample"]["snippet"].rstrip(), "```", ""]
    return "\n".join(parts)


def _line(claim: Mapping[str, Any], width: int) -> str:
    """One claim in one line: id, verdict, the beginning of the evidence."""
    mark = "" if claim["as_recorded"] else "NOT AS RECORDED "
    start = f"{claim['id']:<28}{claim['verdict']:<24}{mark}"
    return start + textwrap.shorten(claim["evidence"], width - len(start), placeholder=" ...")


def _entry(claim: Mapping[str, Any], width: int) -> str:
    """One claim: id and verdict, then the statement and the evidence below them."""
    mark = "" if claim["as_recorded"] else "   <- not as recorded"
    lines = [f"{claim['id']:<28}{claim['verdict']}{mark}"]
    for text in (claim["statement"], claim["evidence"]):
        lines += textwrap.wrap(text, width, initial_indent="    ", subsequent_indent="    ")
    return "\n".join(lines)


def summary(judged: Iterable[Judged]) -> str:
    """How many claims came out how, in one line."""
    judged = list(judged)
    counts = Counter(j.finding.verdict for j in judged)
    parts = ", ".join(f"{counts[v]} {v}" for v in Verdict if counts[v])
    differ = sum(not j.as_recorded for j in judged)
    record = "all as recorded" if not differ else f"{differ} NOT as recorded"
    return f"{len(judged)} claims: {parts}; {record}."


def _aligned(rows: list[list[str]]) -> str:
    widths = [max(len(row[i]) for row in rows) for i in range(len(HEADER))]
    return "\n".join("  ".join(_align(cell, widths[i], i) for i, cell in enumerate(row)).rstrip() for row in rows)


def _align(cell: str, width: int, column: int) -> str:
    return cell.rjust(width) if 2 <= column <= 6 else cell.ljust(width)


def _short(value: float | str | None) -> str:
    if value is None:
        return "-"
    return f"{float(value):.3f}" if float(value) >= 0.01 else f"{float(value):.2g}"


def _slope(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"
