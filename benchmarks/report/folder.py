"""Writes the folder of a report, and the page of the documentation."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from benchmarks.report.plots import draw
from benchmarks.report.render import markdown, page
from benchmarks.results import Results

Json = dict[str, Any]
_TITLE = "llm_cache: benchmark"
_INTRO = (
    "What was measured, how, and on what. All figures are in `results.json` beside this file;"
    " `python -m benchmarks compare A B` tells two such reports apart."
)
_DOCS_TITLE = "Benchmarks"
_DOCS_INTRO = (
    "This page is generated from [benchmarks/results.json](benchmarks/results.json) by"
    " `python -m benchmarks report --docs`; no figure in it was typed in. `make bench` measures"
    " the same on your machine in about three minutes, and `python -m benchmarks run` takes its"
    " time for it; `--peers all` installs those beside us, each into an environment of its own."
    " `--redis-url` takes the Redis of your choice, `--log` your own requests."
)


def write_report(results: Results) -> Path:
    """Write `results.json`, the plots, `report.md` and `report.html`; return the latter's path."""
    results.save()
    folder = results.folder
    plots = draw(results.data, folder)
    text = markdown(results.data, plots, title=_TITLE, intro=_INTRO, prefix="")
    (folder / "report.md").write_text(text, encoding="utf-8")
    path = folder / "report.html"
    path.write_text(page(text, folder, title=_TITLE), encoding="utf-8")
    return path


def write_docs(data: Json, docs: Path) -> Path:
    """Write `benchmarks.md` into the folder *docs*, its plots and figures beside it.

    What `results.json` needs for the page and for `compare` is kept; the seconds of long loads are
    thinned out no further than they are in the report.
    """
    folder = docs / "benchmarks"
    Results.of(data, folder).save()
    plots = draw(data, folder)
    path = docs / "benchmarks.md"
    path.write_text(docs_page(data, plots), encoding="utf-8")
    return path


def docs_page(data: Json, plots: dict[str, str]) -> str:
    """Return the page of the documentation."""
    return markdown(data, plots, title=_DOCS_TITLE, intro=_DOCS_INTRO, prefix="benchmarks/")
