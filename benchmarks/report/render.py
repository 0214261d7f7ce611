"""From the figures to Markdown, and from Markdown to a page that needs no other file."""

from __future__ import annotations

import base64
import html
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks.report.sections import Page, add_all

Json = dict[str, Any]


def markdown(data: Json, plots: Mapping[str, str], *, title: str, intro: str, prefix: str) -> str:
    """Return the report as Markdown.

    Args:
        data: Of `results.json`.
        plots: File names of the plots that were drawn.
        title: First line.
        intro: What comes before everything.
        prefix: Of the plots' file names.
    """
    page = Page(plots, prefix)
    page.say(f"# {title}", intro)
    add_all(page, data)
    return page.text()


def page(text: str, folder: Path, *, title: str) -> str:
    """Return *text* as a page, with the images of *folder* in it."""
    from markdown_it import MarkdownIt

    # Without `html`, tags in names or notes stay text.
    body = MarkdownIt("commonmark", {"html": False}).enable("table").render(text)

    def embedded(match: re.Match[str]) -> str:
        image = base64.b64encode((folder / html.unescape(match[1])).read_bytes()).decode()
        return f'src="data:image/png;base64,{image}"'

    body = re.sub(r'src="([\w./-]+\.png)"', embedded, body)
    # A number and its unit belong on one line.
    body = re.sub(r"<td>([^<]{1,16})</td>", r'<td class="short">\1</td>', body)
    body = body.replace("<table>", '<div class="wide"><table>').replace(
        "</table>", "</table></div>"
    )
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{html.escape(title)}</title><style>{_CSS}</style></head>\n"
        f"<body><main>\n{body}</main></body></html>\n"
    )


_CSS = """
:root { color-scheme: light; }
body { font: 16px/1.55 system-ui, sans-serif; color: #1a1a1a; background: #fff; margin: 0; }
main { max-width: 62rem; margin: 0 auto; padding: 2rem 1.2rem 4rem; }
h1 { font-size: 1.7rem; } h2 { margin-top: 2.6rem; border-bottom: 1px solid #ddd; }
h3 { margin-top: 2rem; }
img { max-width: 100%; height: auto; display: block; margin: 1rem 0; }
code { background: #f3f3f3; padding: 0.1em 0.3em; border-radius: 3px; font-size: 0.92em; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-size: 0.82rem; margin: 1rem 0; }
th, td { border-bottom: 1px solid #e3e3e3; padding: 0.3rem 0.6rem; text-align: left;
  vertical-align: top; font-variant-numeric: tabular-nums; }
th { border-bottom: 2px solid #bbb; }
.short { white-space: nowrap; }
"""
