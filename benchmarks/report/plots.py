"""Plots of a report. Each is left out where there is nothing to show."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullFormatter

from benchmarks.histograms import Latencies

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Json = dict[str, Any]
# Okabe and Ito's colours, which people with any kind of colour vision can tell apart.
_BLUE, _ORANGE, _GREEN, _RED = "#0072B2", "#E69F00", "#009E73", "#D55E00"
_PURPLE, _SKY, _GREY = "#CC79A7", "#56B4E9", "#666666"
_COLOURS = (_BLUE, _ORANGE, _GREEN, _PURPLE, _SKY, _RED, _GREY, "#000000")
_WIDTH = 9.0
_DPI = 110


def draw(data: Json, folder: Path) -> dict[str, str]:
    """Draw every plot that *data* has figures for; return file names by plot."""
    drawn = {}
    for name, plot in _PLOTS.items():
        figure = plot(data["sections"])
        if figure is not None:
            figure.savefig(folder / f"{name}.png", dpi=_DPI, bbox_inches="tight")
            drawn[name] = f"{name}.png"
    return drawn


def _axes(count: int, *, height: float = 3.4, columns: int = 2) -> tuple[Figure, list[Axes]]:
    columns = min(columns, count)
    rows = -(-count // columns)
    figure = Figure(figsize=(_WIDTH, height * rows), layout="constrained")
    grid = [figure.add_subplot(rows, columns, i + 1) for i in range(count)]
    for axes in grid:
        axes.grid(visible=True, color="#dddddd", linewidth=0.6)
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
    return figure, grid


def _per_cent(axis: Any) -> None:
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:g} %"))


# --- hits -------------------------------------------------------------------------------------


def _default(workload: Json) -> Json | None:
    return next((f for f in workload["policies"] if f["policy"] == "default"), None)


def hits_over_time(sections: Json) -> Figure | None:
    """Hit rate over the stream, from an empty cache."""
    workloads = [w for w in sections.get("hitrate", {}).get("workloads", []) if not w["is_pairs"]]
    shown = [(w, f) for w in workloads if (f := _default(w)) and len(f["timeline"]) > 1]
    if not shown:
        return None
    figure, grid = _axes(len(shown))
    for axes, (workload, figures) in zip(grid, shown, strict=True):
        points = _smoothed(figures["timeline"])
        seen = [point["requests"] for point in points]
        exact = [point["exact"] for point in points]
        both = [point["exact"] + point["semantic"] for point in points]
        axes.fill_between(seen, 0, exact, color=_BLUE, alpha=0.85, linewidth=0, label="exact")
        axes.fill_between(
            seen, exact, both, color=_ORANGE, alpha=0.85, linewidth=0, label="semantic"
        )
        axes.plot(seen, [p["wrong"] for p in points], color=_RED, linewidth=1.5, label="wrong")
        axes.set(title=workload["name"], ylim=(0, 1), xlim=(0, seen[-1]), xlabel="requests")
        _per_cent(axes.yaxis)
    grid[0].set_ylabel("share of requests")
    grid[0].legend(frameon=False, loc="upper left", fontsize=8)
    return figure


def _smoothed(timeline: list[Json], stretches: int = 25) -> list[Json]:
    """Return the timeline in at most so many stretches."""
    size = max(1, -(-len(timeline) // stretches))
    smoothed, before = [], 0
    weights = [
        b["requests"] - a
        for a, b in zip([0, *(p["requests"] for p in timeline)], timeline, strict=False)
    ]
    for start in range(0, len(timeline), size):
        points, counts = timeline[start : start + size], weights[start : start + size]
        total = sum(counts)
        before += total
        smoothed.append(
            {
                "requests": before,
                **{
                    name: sum(p[name] * n for p, n in zip(points, counts, strict=True)) / total
                    for name in ("exact", "semantic", "wrong")
                },
            }
        )
    return smoothed


def hits_against_wrong_hits(sections: Json) -> Figure | None:
    """What lower thresholds give and cost, with and without guards."""
    workloads = [w for w in sections.get("hitrate", {}).get("workloads", []) if w["curve"]]
    shown = [w for w in workloads if any(point["hit_rate"] is not None for point in w["curve"])]
    if not shown:
        return None
    figure, grid = _axes(len(shown))
    for axes, workload in zip(grid, shown, strict=True):
        for guards, colour, label in ((True, _BLUE, "with guards"), (False, _RED, "cosine alone")):
            points = [p for p in workload["curve"] if p["guards"] is guards and p["requests"]]
            wrong = [p["wrong_hits"] / p["requests"] for p in points]
            hits = [p["hit_rate"] or 0.0 for p in points]
            axes.plot(wrong, hits, marker="o", markersize=4, color=colour, label=label)
            for point, x, y in zip(points, wrong, hits, strict=True):
                if guards and point not in (points[0], points[-1]):
                    continue  # with guards they lie close together
                axes.annotate(
                    f"{point['threshold']:g}",
                    (x, y),
                    xytext=(5, 3 if guards else -9),
                    textcoords="offset points",
                    fontsize=7,
                    color=colour,
                )
        most = max(p["wrong_hits"] / p["requests"] for p in workload["curve"] if p["requests"])
        axes.set(title=workload["name"], xlabel="wrong hits per request", ylabel="hit rate")
        # A hair of room on the left, or what never goes wrong would hide behind the axis.
        axes.set_xlim(-0.04 * max(most, 0.01), 1.12 * max(most, 0.01))
        axes.set_ylim(bottom=0)
        _per_cent(axes.xaxis)
        _per_cent(axes.yaxis)
    grid[0].legend(frameon=False, fontsize=8, loc="lower right")
    return figure


def traps_served(sections: Json) -> Figure | None:
    """Of pairs that vectors cannot tell apart, how many were served the other's answer."""
    workloads = sections.get("hitrate", {}).get("workloads", [])
    shown = next((w for w in workloads if w["name"] == "traps" and w["policies"]), None)
    if shown is None:
        return None
    kinds = sorted({k for f in shown["policies"] for k in f["kinds"]} - {"first"})
    policies = [f for f in shown["policies"] if f["semantic"]]
    if not kinds or not policies:
        return None
    figure, (axes,) = _axes(1, height=3.2)
    width = 0.8 / len(policies)
    for number, figures in enumerate(policies):
        shares = [_served(figures["kinds"].get(kind, {})) for kind in kinds]
        places = [i + (number - (len(policies) - 1) / 2) * width for i in range(len(kinds))]
        colour = _COLOURS[0] if figures["guards"] else _RED
        bars = axes.bar(places, shares, width, color=colour, label=figures["policy"])
        axes.bar_label(bars, [f"{100 * s:.0f} %" for s in shares], fontsize=7, padding=2)
    names = [f"{kind}\n(should be served)" if kind == "paraphrase" else kind for kind in kinds]
    axes.set_xticks(range(len(kinds)), names, fontsize=8)
    axes.set(ylim=(0, 1.1), ylabel="pairs served one answer")
    _per_cent(axes.yaxis)
    axes.legend(frameon=False, fontsize=8)
    return figure


def _served(counts: Json) -> float:
    total = sum(n for status, n in counts.items() if status != "wrong")
    hits = sum(counts.get(status, 0) for status in ("exact", "semantic", "stale"))
    return hits / total if total else 0.0


# --- latency ----------------------------------------------------------------------------------


def latency_by_percentile(sections: Json) -> Figure | None:
    """Every percentile of every kind of call."""
    scenes = [s for s in sections.get("latency", {}).get("scenes", []) if s["count"]]
    if not scenes:
        return None
    figure, (axes,) = _axes(1, height=4.4)
    for scene, colour in zip(scenes, _COLOURS * 2, strict=False):
        curve = Latencies.decoded(scene["histogram"]).curve()
        # No more nines than there were calls to tell them by.
        enough = [(s, p) for s, p in curve if (1 - p) * scene["count"] >= 1] or curve[:1]
        style = "--" if scene["name"].startswith("first token") else "-"
        axes.plot(
            [s * 1e3 for s, _ in enough],
            [-math.log10(1 - p) for _, p in enough],
            style,
            color=colour,
            linewidth=1.6,
            label=scene["name"],
        )
    ticks = {"0 %": 0.0, "50 %": 0.301, "90 %": 1.0, "99 %": 2.0, "99.9 %": 3.0}
    axes.set_yticks(list(ticks.values()), list(ticks))
    axes.set(xscale="log", xlabel="milliseconds", ylabel="share of calls at most so long")
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.legend(frameon=False, fontsize=8, loc="center left", bbox_to_anchor=(1.0, 0.5))
    return figure


_STAGE_COLOURS = {
    "key": _PURPLE,
    "redis": _BLUE,
    "search": _GREEN,
    "embedding": _ORANGE,
    "guards": _RED,
    "upstream": _SKY,
    "rest": _GREY,
}


def latency_stages(sections: Json) -> Figure | None:
    """Where the time of each kind of call goes, on average."""
    scenes = [s for s in sections.get("latency", {}).get("scenes", []) if s["count"]]
    if not scenes:
        return None
    figure, (axes,) = _axes(1, height=0.45 * len(scenes) + 1.2)
    names = [scene["name"] for scene in scenes]
    left = [0.0] * len(scenes)
    for stage, colour in _STAGE_COLOURS.items():
        parts = [1e3 * scene["stages"]["outside"].get(stage, 0.0) for scene in scenes]
        if any(parts):
            axes.barh(names, parts, left=left, color=colour, label=stage, height=0.6)
            left = [a + b for a, b in zip(left, parts, strict=True)]
    for name, total in zip(names, left, strict=True):
        axes.annotate(f" {total:.2f}", (total, name), va="center", fontsize=8)
    axes.invert_yaxis()
    axes.set(xlabel="milliseconds, mean")
    axes.legend(frameon=False, fontsize=8, ncols=4, loc="lower right", bbox_to_anchor=(1.0, 1.0))
    return figure


# --- load -------------------------------------------------------------------------------------


def throughput_against_latency(sections: Json) -> Figure | None:
    """Latency from the intended start over the rate that was reached."""
    load = sections.get("load", {})
    steps = [s for s in load.get("sweep", {}).get("steps", []) if s["latency"]["count"]]
    if not steps:
        return None
    figure, (axes,) = _axes(1, height=4.0)
    offered = [step["offered_per_s"] for step in steps]
    for name, colour in (("p50_s", _BLUE), ("p99_s", _ORANGE), ("p99.9_s", _RED)):
        values = [1e3 * step["latency"][name] for step in steps]
        axes.plot(offered, values, marker="o", markersize=4, color=colour, label=name[:-2])
    behind = [s for s in steps if s["achieved_per_s"] < 0.97 * s["offered"] / s["seconds"]]
    for step in behind:
        axes.annotate(
            f"{step['achieved_per_s']:,.0f}/s\nachieved",
            (step["offered_per_s"], 1e3 * step["latency"]["p50_s"]),
            xytext=(4, -20),
            textcoords="offset points",
            fontsize=7,
        )
    knee = load["sweep"].get("knee_per_s")
    if knee:
        axes.axvline(knee, color=_GREEN, linestyle="--", label=f"knee, {knee:,.0f}/s")
    axes.set(yscale="log", xlabel="requests per second offered", ylabel="milliseconds")
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.set_xlim(left=0)
    axes.legend(frameon=False, fontsize=8, loc="upper left")
    return figure


def soak_memory(sections: Json) -> Figure | None:
    """Memory of clients and Redis, and latencies, over a long steady load."""
    steady = sections.get("soak", {}).get("steady")
    if not steady or len(steady["seconds_seen"]) < 3:
        return None
    figure, (memory, latency) = _axes(2, columns=1, height=2.6)
    points = steady["seconds_seen"]
    minutes = [point["at_s"] / 60 for point in points]
    clients = [(point["at_s"], sum(point["rss_bytes"])) for point in points]
    redis = [(p["at_s"], p["redis_memory_bytes"]) for p in points if "redis_memory_bytes" in p]
    for name, series, colour in (("clients", clients, _BLUE), ("Redis", redis, _RED)):
        if series and series[0][1]:
            first = series[0][1]
            label = f"{name}, {first / 1e6:,.0f} MB at first"
            shares = [value / first - 1 for _, value in series]
            memory.plot([at_s / 60 for at_s, _ in series], shares, color=colour, label=label)
    memory.axhspan(-0.02, 0.02, color=_GREEN, alpha=0.12, linewidth=0, label="± 2 %")
    memory.set(ylabel="memory, change", xlim=(0, minutes[-1]))
    _per_cent(memory.yaxis)
    memory.legend(frameon=False, fontsize=8)
    blocks = steady["blocks"]
    for name, colour in (("p50_s", _BLUE), ("p99_s", _ORANGE)):
        latency.plot(
            [block["at_s"] / 60 for block in blocks],
            [1e3 * block[name] for block in blocks],
            ".",
            color=colour,
            label=name[:-2],
        )
    latency.set(ylabel="milliseconds", xlabel="minutes", yscale="log", xlim=(0, minutes[-1]))
    latency.legend(frameon=False, fontsize=8)
    return figure


# --- memory, peers ----------------------------------------------------------------------------


def memory_per_entry(sections: Json) -> Figure | None:
    """What an entry takes in Redis, beside the peers' where they were measured."""
    ours = sections.get("memory", {}).get("rows", [])
    rows = [("llm_cache, " + row["name"], row["bytes_per_entry"]) for row in ours]
    rows += [
        (f"{peer['name']}, {layer}", peer[layer]["bytes_per_entry"])
        for layer in ("exact", "semantic")
        for peer in sections.get("peers", {}).get("rows", [])
        if peer[layer] and not (ours and _is_ours(peer["name"]))
    ]
    rows = [(name, value) for name, value in rows if value]
    return None if not rows else _bars(rows, "kilobytes per entry", scale=1e-3, digits=1)


def peers_exact_hit(sections: Json) -> Figure | None:
    """Median of an exact hit, ours and the peers'."""
    rows = _peers(sections, "exact", "hit", "p50_s")
    return _bars(rows, "exact hit, p50, microseconds", scale=1e6, digits=0) if rows else None


def peers_semantic_hit(sections: Json) -> Figure | None:
    """Median of a semantic hit with the vector given, ours and the peers'."""
    rows = _peers(sections, "semantic", "hit", "p50_s")
    label = "semantic hit, vector given, p50, ms"
    return _bars(rows, label, scale=1e3, digits=2) if rows else None


def peers_crowd(sections: Json) -> Figure | None:
    """What many callers at once get, ours and the peers'."""
    callers = sections.get("peers", {}).get("callers")
    shown = {
        layer: rows
        for layer in ("exact", "semantic")
        if (rows := _peers(sections, layer, "crowd", "per_s"))
    }
    if not shown:
        return None
    most = max(len(rows) for rows in shown.values())
    figure, grid = _axes(len(shown), height=0.4 * most + 1.2)
    for axes, (layer, rows) in zip(grid, shown.items(), strict=True):
        _draw_bars(axes, rows, f"{layer} hits per second, {callers} callers", digits=0)
    return figure


def _peers(sections: Json, layer: str, part: str, figure: str) -> list[tuple[str, float]]:
    """Return a figure of everybody, or nothing where nobody is beside ours."""
    rows = [
        (peer["name"], peer[layer][part][figure])
        for peer in sections.get("peers", {}).get("rows", [])
        if peer[layer] and peer[layer][part][figure]
    ]
    return rows if any(not _is_ours(name) for name, _ in rows) else []


def _is_ours(name: str) -> bool:
    return name.startswith("llm_cache")


def _bars(rows: list[tuple[str, float]], label: str, *, scale: float, digits: int) -> Figure:
    figure, (axes,) = _axes(1, height=0.4 * len(rows) + 0.9)
    scaled = [(name, value * scale) for name, value in rows]
    _draw_bars(axes, scaled, label, digits=digits)
    return figure


def _draw_bars(axes: Axes, rows: list[tuple[str, float]], label: str, *, digits: int) -> None:
    values = [value for _, value in rows]
    colours = [_BLUE if _is_ours(name) else _GREY for name, _ in rows]
    bars = axes.barh([name for name, _ in rows], values, color=colours, height=0.6)
    axes.bar_label(bars, [f" {value:,.{digits}f}" for value in values], fontsize=8)
    axes.invert_yaxis()
    axes.set(xlabel=label)
    axes.set_xlim(0, 1.2 * max(values))


_PLOTS: dict[str, Callable[[Json], Figure | None]] = {
    "hits_over_time": hits_over_time,
    "hits_against_wrong_hits": hits_against_wrong_hits,
    "traps_served": traps_served,
    "latency_by_percentile": latency_by_percentile,
    "latency_stages": latency_stages,
    "throughput_against_latency": throughput_against_latency,
    "soak_memory": soak_memory,
    "memory_per_entry": memory_per_entry,
    "peers_exact_hit": peers_exact_hit,
    "peers_semantic_hit": peers_semantic_hit,
    "peers_crowd": peers_crowd,
}
