"""Self-contained HTML pages: the report of `reproduce` and that of `check`."""

import base64
import json
import tempfile
from pathlib import Path

import jinja2

from entropy_theory import claims
from entropy_theory.cli.data import Tables
from entropy_theory.runs import versions, write_atomic


def _template(name: str) -> jinja2.Template:
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, loader=jinja2.PackageLoader("entropy_theory.cli", ".")
    )
    return environment.get_template(name)


def write_check_report(judged: list[claims.Judged], file: Path) -> None:
    """Write the page of one check: bounded statements by place, every claim with its evidence, the figures cited.

    Args:
      file: where to; its folder must exist.
    """
    document = json.loads(claims.to_json(judged))
    text = _template("check.html").render(
        cells=claims.table_cells(document),
        claims=document["claims"],
        summary=document["summary"],
        agrees=document["agrees"],
        figures=_cited({c["figure"] for c in document["claims"] if c["figure"]}),
        versions=versions(),
    )
    write_atomic(file, text)


def _cited(names: set[str]) -> list[dict[str, str]]:
    """The named figures, drawn from the committed results."""
    from paper_figs.catalogue import FIGURES, STUDIES
    from paper_figs.style import DATA

    with tempfile.TemporaryDirectory() as folder:
        wanted = [f for f in FIGURES | STUDIES if f"{f.__name__.rpartition('.')[2]}.png" in names]
        return [_embedded(figure.draw(DATA, Path(folder)), figure.CAPTION) for figure in wanted]


def _embedded(png: Path, caption: str) -> dict[str, str]:
    return {"name": png.stem, "caption": caption, "png": base64.b64encode(png.read_bytes()).decode()}


def write_report(tables: Tables, out: Path) -> Path:
    """Draw the figures from out/data into out/figures and write out/report.html; returns its path."""
    from paper_figs.catalogue import draw_all

    figures = [_embedded(png, caption) for png, caption in draw_all(out / "data", out / "figures")]
    config = json.loads((out / "config.json").read_text())
    text = _template("report.html").render(
        cells=tables.cells,
        parameters=tables.parameters,
        figures=figures,
        claims=tables.checked["claims"],
        summary=tables.checked["summary"],
        agrees=tables.checked["agrees"],
        config=json.dumps(config, indent=2),
        versions=versions(),
    )
    write_atomic(out / "report.html", text)
    return out / "report.html"
