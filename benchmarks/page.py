"""`python -m benchmarks page`: write the tables of the pages under docs/ from committed results.

Between `<!-- results: NAME -->` and `<!-- end of results -->` stands what was measured, with the
command that did it; everything else on the page is prose. No figure there is typed by hand.
"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from benchmarks.faults import command as faults
from benchmarks.faults import leaks
from benchmarks.micro import scale
from benchmarks.micro.command import REGISTRY
from benchmarks.micro.settings import table

ROOT = Path(__file__).parent.parent
PAGES = (ROOT / "docs" / "performance.md", ROOT / "docs" / "reliability.md")
RESULTS = Path(__file__).parent / "results"
_PLACE = re.compile(
    r"(<!-- results: (?P<name>[a-z-]+) -->\n).*?(<!-- end of results -->)", re.DOTALL
)
_BY_EF = {
    "growth": "mode",
    "entries": "entries:,",
    "EF_RUNTIME": "ef:,",
    "recall": "recall:.4f",
    "search in the server, µs": "server_us:.0f",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of the command."""
    parser.add_argument("--page", type=Path, action="append", help="default: all there are")
    parser.add_argument("--results", type=Path, default=RESULTS)


def run(arguments: argparse.Namespace) -> int:
    """Rewrite the pages; return the exit status."""
    for page in arguments.page or PAGES:
        text = page.read_text(encoding="utf-8")
        page.write_text(render(text, arguments.results), encoding="utf-8")
    return 0


def render(text: str, results: Path) -> str:
    """Return *text* with every table as *results* have it."""

    def fill(place: re.Match[str]) -> str:
        return f"{place[1]}{_section(place['name'], results)}{place[3]}"

    return _PLACE.sub(fill, text)


def _section(name: str, results: Path) -> str:
    source, view = _VIEWS.get(name, (name, _plain))
    path = results / f"{source}.json"
    if not path.is_file():
        command = f"micro {source}" if source in REGISTRY else source
        return f"\nNot measured yet: `python -m benchmarks {command} --write …`.\n\n"
    kept = json.loads(path.read_text(encoding="utf-8"))
    return f"\n{view(source, kept['rows'])}\n\n{_provenance(kept)}\n\n"


def _plain(name: str, rows: list[dict[str, Any]]) -> str:
    return table(REGISTRY[name].columns, rows)


def _by_ef(_name: str, rows: list[dict[str, Any]]) -> str:
    return table(_BY_EF, [{**row, **one} for row in rows for one in row.get("by_ef", ())])


def _scale(_name: str, rows: list[dict[str, Any]]) -> str:
    assumed = scale.Assumptions()
    given = (
        f"Assumed: {assumed.shard_gb:g} GB of data a shard, {assumed.headroom:g} times the data as"
        f" memory, {assumed.copies} copies, {assumed.usd_per_gb_month:g} USD a GB and month."
    )
    return f"{table(scale.COLUMNS, scale.rows(rows, assumed))}\n\n{given}"


def _scale_checks(_name: str, rows: list[dict[str, Any]]) -> str:
    return table(scale.CHECK_COLUMNS, scale.checks(rows))


def _faults(columns: Mapping[str, str]) -> Callable[[str, list[dict[str, Any]]], str]:
    def view(_name: str, rows: list[dict[str, Any]]) -> str:
        shown = [faults.told(row) for row in faults.of_kind(columns, rows)]
        return table(columns, shown)

    return view


def _provenance(kept: dict[str, Any]) -> str:
    machine, versions = kept["machine"], kept["versions"]
    named = ", ".join(f"{name} {version}" for name, version in versions.items())
    load = machine["load_before"][0]
    return (
        f"`{kept['command']}`, {kept['at'][:10]}, seed {kept['seed']}; {machine['cpu']},"
        f" {machine['cores']} cores (load {load:g} before), {machine['memory_gb']:g} GB; {named}."
    )


_VIEWS: dict[str, tuple[str, Callable[[str, list[dict[str, Any]]], str]]] = {
    "growth-ef": ("growth", _by_ef),
    "scale": ("growth", _scale),
    "scale-checks": ("growth", _scale_checks),
    "faults": ("faults", _faults(faults.COLUMNS)),
    "faults-ends": ("faults", _faults(faults.END_COLUMNS)),
    "faults-leader": ("faults", _faults(faults.LEADER_COLUMNS)),
    "faults-clients": ("faults", _faults(faults.CLIENT_COLUMNS)),
    "leaks": ("leaks", lambda _name, rows: table(leaks.COLUMNS, rows[3::4])),
}
