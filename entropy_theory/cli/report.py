"""report.html: one self-contained page with the verdicts, results, findings and figures."""

import base64
import importlib.resources
import json
from pathlib import Path

import jinja2

from entropy_theory.cli.data import Tables
from entropy_theory.runs import versions, write_atomic


def write_report(tables: Tables, out: Path) -> Path:
    """Draw the figures from out/data into out/figures and write out/report.html; returns its path."""
    from paper_figs.catalogue import draw_all

    figures = [
        {"name": png.stem, "caption": caption, "png": base64.b64encode(png.read_bytes()).decode()}
        for png, caption in draw_all(out / "data", out / "figures")
    ]
    source = importlib.resources.files("entropy_theory.cli").joinpath("report.html").read_text()
    page = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined).from_string(source)
    config = json.loads((out / "config.json").read_text())
    text = page.render(
        cells=tables.cells,
        parameters=tables.parameters,
        figures=figures,
        holds=tables.holds,
        config=json.dumps(config, indent=2),
        versions=versions(),
    )
    write_atomic(out / "report.html", text)
    return out / "report.html"
