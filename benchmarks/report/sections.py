"""The text of a report, section by section. Every figure in it comes from `results.json`."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.quality.replay import ANSWER_TOKENS, HITS
from benchmarks.report.wording import (
    NONE,
    change,
    decimal,
    duration,
    hours,
    number,
    percent,
    rate,
    recall,
    seconds,
    served,
    size,
    table,
    usd,
)

Json = dict[str, Any]
CAPTIONS = {
    "hits_over_time": "Hit rate over the stream, from an empty cache",
    "hits_against_wrong_hits": "Hits against wrong hits over thresholds",
    "traps_served": "Traps and paraphrases served, with and without guards",
    "latency_by_percentile": "Latency by percentile, for every kind of call",
    "latency_stages": "Where the time goes",
    "throughput_against_latency": "Latency from the intended start against the offered rate",
    "soak_memory": "Memory and latency over a long steady load",
    "memory_per_entry": "Memory per entry",
    "peers_exact_hit": "Exact hit beside others",
    "peers_semantic_hit": "Semantic hit beside others",
    "peers_crowd": "Many callers at once, beside others",
}


class Page:
    """Collects the lines of a page.

    Args:
        plots: File names of the plots that were drawn.
        prefix: Of these names.
    """

    def __init__(self, plots: Mapping[str, str], prefix: str) -> None:
        self._plots = plots
        self._prefix = prefix
        self._lines: list[str] = []

    def say(self, *paragraphs: str) -> None:
        """Add paragraphs."""
        for paragraph in paragraphs:
            self._lines += ["", paragraph, ""]

    def table(self, header: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
        """Add a table, if it has rows."""
        self._lines += table(header, rows)

    def list(self, items: Sequence[str]) -> None:
        """Add a list."""
        self._lines += ["", *(f"- {item}" for item in items), ""]

    def plots(self, *names: str) -> None:
        """Add those of the plots that were drawn."""
        for name in names:
            if name in self._plots:
                self.say(f"![{CAPTIONS[name]}]({self._prefix}{self._plots[name]})")

    def text(self) -> str:
        """Return the page."""
        kept: list[str] = []
        for line in self._lines:
            if line or (kept and kept[-1]):
                kept.append(line)
        return "\n".join(kept).strip() + "\n"


def add_all(page: Page, data: Json) -> None:
    """Add every section that *data* has figures for."""
    _conditions(page, data)
    sections = data["sections"]
    for name, add in _SECTIONS.items():
        if sections.get(name):
            add(page, sections[name])


def _conditions(page: Page, data: Json) -> None:
    machine, redis = data["machine"], data.get("redis")
    begun = f"`{data['command']}`, begun {data['started_at']}, {seconds(data['duration_s'])}"
    cut = " **It was stopped before its end.**" if data["interrupted"] else ""
    page.say(f"{begun}, seed {data['seed']}.{cut}")
    versions = ", ".join(f"{name} {version}" for name, version in data["versions"].items())
    rows = [
        ("machine", f"{machine['processor']}, {machine['cores']} cores, {machine['system']}"),
        ("memory", size(machine["memory_bytes"])),
        (
            "its load",
            f"{machine['load_at_start']} at the start, {machine['load_at_end']} at the end",
        ),
    ]
    if "parts_s" in data:
        parts = (f"{name} {seconds(took_s)}" for name, took_s in data["parts_s"].items())
        rows.append(("its parts took", ", ".join(parts)))
    if redis:
        search = redis["search_version"] or "none"
        rows.append(("Redis", f"{redis['version']}, search {search}, `{redis['url']}`"))
    page.table(("", ""), [*rows, ("versions", versions)])
    if data["checks"]:
        page.say("## What must hold")
        verdicts = {True: "holds", False: "**does not hold**"}
        keys = ("name", "expected", "measured")
        page.table(
            ("", "expected", "measured", ""),
            [(*(check[key] for key in keys), verdicts[check["ok"]]) for check in data["checks"]],
        )
    if data["notes"]:
        page.say("## To know beforehand")
        page.list(data["notes"])


# --- hits -------------------------------------------------------------------------------------


def _hitrate(page: Page, section: Json) -> None:
    workloads = [w for w in section.get("workloads", []) if w["policies"]]
    if not workloads:
        return
    page.say(
        "## How many calls hit, and how many hits are wrong",
        "Streams are replayed one request after another, from an empty cache. The model is a"
        " scripted one that says in each answer which question it answers, so nothing the cache"
        " says is believed. *Default* is what `LLMCache` does unasked, with"
        f" `{section['embedder']}` at {section['default_threshold']}.",
    )
    page.plots("hits_over_time", "hits_against_wrong_hits", "traps_served")
    for workload in workloads:
        _workload(page, workload)
    page.say(
        "A hit is wrong when its answer was made for another question, or for another tenant."
        " *Precision* is the share of hits that are right, *recall* the share of requests whose"
        " answer had been given before that were hits. Intervals are of 95 %. The clustered one"
        " resamples whole cached answers, because one popular wrong entry makes many wrong hits;"
        " where nothing wrong was seen it has nothing to resample. The exact one (Clopper and"
        " Pearson) takes every hit for independent of the others, and is too narrow where they are"
        " not. *Recall of the search* compares the vector search with brute force; it is known"
        " only without guards.",
        "### What that saves",
    )
    defaults = [(w["name"], w["policies"][0]) for w in workloads]
    page.table(
        ("stream", "calls of the model", "embedded texts", "per look-up", "tokens saved", "USD"),
        [
            (
                name,
                number(figures["model_calls"]),
                number(figures["embedded_texts"]),
                decimal(figures["embeddings_per_lookup"]),
                number(figures["prompt_tokens_saved"] + figures["completion_tokens_saved"]),
                usd(figures["usd_saved"]),
            )
            for name, figures in defaults
        ],
    )
    page.say(
        f"By the default policy, at the prices of {defaults[0][1]['price_model']}. Where a stream"
        f" does not say how long its answers are, they are taken for {ANSWER_TOKENS} tokens."
    )


def _workload(page: Page, workload: Json) -> None:
    source = f"{workload['source']}."
    if workload["orders"] > 1:
        source = f"{workload['source']}; {workload['orders']} shuffles, taken together."
    page.say(f"### {workload['name']}", f"{source} {workload['note']}".strip())
    if workload["is_pairs"]:
        page.say(
            "Each pair has a cache of its own: the first text is stored, the second is asked."
        )
    policies = workload["policies"]
    page.table(
        ("policy", "requests", "hit rate", "exact", "semantic", "precision", "recall", "search"),
        [
            (
                f["policy"],
                number(f["requests"]),
                percent(f["hit_rate"]),
                percent(f["exact_hit_rate"]),
                percent(f["semantic_hit_rate"]),
                percent(f["precision"]),
                percent(f["recall"]),
                recall(f["search_recall"]),
            )
            for f in policies
        ],
    )
    page.table(
        ("policy", "wrong hits", "per hit (clustered; exact)", "per request (clustered; exact)"),
        [
            (f["policy"], number(f["wrong_hits"]), *map(rate, _wrong_rates(f)))
            for f in policies
            if f["labelled"]
        ],
    )
    _kinds(page, workload)
    _curve(page, workload["curve"])


def _wrong_rates(figures: Json) -> tuple[Json, Json]:
    return figures["wrong_per_hit"], figures["wrong_per_request"]


def _kinds(page: Page, workload: Json) -> None:
    policies = [f for f in workload["policies"] if f["semantic"]]
    kinds = [kind for kind in policies[0]["kinds"] if kind != "first"] if policies else []
    header = ["category" if workload["is_pairs"] else "kind of request"]
    for figures in policies:
        header += [f"{figures['policy']}: served", "of these wrong"]
    rows = []
    for kind in kinds:
        cells = [kind]
        for figures in policies:
            counts = figures["kinds"].get(kind, {})
            cells += [served(counts), number(counts.get("wrong", 0))]
        rows.append(cells)
    page.table(header, rows)


def _curve(page: Page, points: Sequence[Json]) -> None:
    if not points:
        return
    thresholds = sorted({point["threshold"] for point in points})
    rows = []
    for guards, name in ((True, "with guards"), (False, "cosine alone")):
        at = {point["threshold"]: point for point in points if point["guards"] is guards}
        told = [at.get(threshold) for threshold in thresholds]
        rows.append([f"hits, {name}", *(percent(p and p["hit_rate"]) for p in told)])
        rows.append([f"wrong, {name}", *(number(p and p["wrong_hits"]) for p in told)])
    page.table([f"of {points[0]['requests']:,} requests, at", *map(str, thresholds)], rows)


# --- latency ----------------------------------------------------------------------------------


def _latency(page: Page, section: Json) -> None:
    scenes = [scene for scene in section.get("scenes", []) if scene["count"]]
    if not scenes:
        return
    reference = section["reference_blocks_s"]
    page.say(
        "## How long a call takes",
        f"One call at a time, {len(reference)} rounds in which the kinds take turns, and a bare"
        " `GET` through redis-py beside every round. The model answers after"
        f" {section['upstream_delay_ms']:g} ms, from a process of its own; what is measured is"
        f" what the cache adds, or takes away. The embedder is `{section['embedder']}`.",
    )
    bare = section["reference"]
    names = ("p50_s", "p90_s", "p99_s", "p99.9_s")
    rows = [("bare `GET`", number(bare["count"]), *(duration(bare[n]) for n in names), "1")]
    rows += [
        (
            scene["name"],
            number(scene["count"]),
            *(duration(scene[name]) for name in names),
            _ratio(scene["blocks_s"], reference),
        )
        for scene in scenes
    ]
    page.table(("", "calls", "p50", "p90", "p99", "p99.9", "in bare `GET`s"), rows)
    page.say(
        "*In bare `GET`s*: the lower quartile of each round's calls over that of the `GET`s beside"
        " it, the median of the rounds. What else the machine does moves it least."
    )
    page.plots("latency_by_percentile")
    _stages(page, scenes)


_STAGES = {
    "key": "key",
    "redis": "Redis",
    "search": "search",
    "embedding": "embedding",
    "guards": "guards",
    "upstream": "model",
    "rest": "rest",
}


def _stages(page: Page, scenes: Sequence[Json]) -> None:
    page.say(
        "### Where the time goes",
        "Means, up to the first token where calls stream. *Key* is what it takes to tell which"
        " request it is, measured by itself. *Embedding* and *model* are timed around the embedder"
        " and the model's HTTP request. *Redis* is how long this process waited for it, the search"
        " left out: what the server says that `FT.SEARCH` took. *Guards* is the difference between"
        f" the two kinds of semantic hits, round by round: {_guards_cost(scenes)}. *Rest* is"
        " everything else that this process did.",
    )
    page.plots("latency_stages")
    page.table(
        ("", "whole", *_STAGES.values(), "commands in Redis"),
        [
            (
                scene["name"],
                duration(scene["stages"]["whole_s"]),
                *(duration(scene["stages"]["outside"].get(name)) for name in _STAGES),
                _commands(scene["stages"]["commands"]),
            )
            for scene in scenes
        ],
    )
    page.say("Commands inside scripts are counted, too; for streams, those after the first token.")


def _commands(commands: Mapping[str, Json]) -> str:
    often = {name: each["per_call"] for name, each in commands.items() if each["per_call"] >= 0.05}
    return ", ".join(f"{count:.3g} {name}" for name, count in often.items()) or NONE


def _guards_cost(scenes: Sequence[Json]) -> str:
    blocks = {scene["name"]: scene["blocks_s"] for scene in scenes}
    with_guards = blocks.get("semantic hit", [])
    without = blocks.get("semantic hit, no guards", [])
    added = sorted(a - b for a, b in zip(with_guards, without, strict=False))
    if len(added) < 3:
        return "too few rounds to tell"
    low, high = (added[round(q * (len(added) - 1))] * 1e6 for q in (0.25, 0.75))
    middle = 1e6 * statistics.median(added)
    return f"{middle:+.0f} µs (middle half of the rounds: {low:+.0f} to {high:+.0f} µs)"


def _ratio(blocks: Sequence[float], reference: Sequence[float]) -> str:
    ratios = [a / b for a, b in zip(blocks, reference, strict=False) if b > 0]
    return f"{statistics.median(ratios):.2f}" if ratios else NONE


# --- load -------------------------------------------------------------------------------------

_LOAD_HEADER = ("achieved/s", "p50", "p99", "p99.9", "hits", "errors", "unanswered", "wrong")
_WATCH_HEADER = (
    "begun late, p99",
    "loop lag, p99",
    "clients' CPU",
    "Redis' CPU",
    "commands/request",
    "connections",
    "clients' memory",
    "Redis' memory",
)


def _load(page: Page, section: Json) -> None:
    sweep = section.get("sweep", {})
    if not sweep.get("steps"):
        return
    mix = section["mix"]
    spread = section["upstream_p99_ms"]
    thinks = f"after {section['upstream_ms']:g} ms" + (f" (p99 {spread:g} ms)" if spread else "")
    page.say(
        "## What happens under load",
        f"Open loop: requests arrive ({section['arrivals']}) whether or not those before have been"
        " answered, and latency counts from the moment a request was due. Client processes:"
        f" {section['workers']}; {section['start']} start; {section['seconds']:g} s a step;"
        f" {percent(mix['exact'])} repeats of {mix['questions']:,} questions (Zipf, exponent"
        f" {mix['exponent']:g}), {percent(mix['semantic'])} other spellings of them,"
        f" {percent(mix['miss'])} new questions; embedder `{section['embedder']}`; model"
        f" `{section['upstream']}` {thinks}, answers of {section['answer_chars']} characters.",
        _knee(sweep),
    )
    page.plots("throughput_against_latency")
    steps = [(number(step["offered_per_s"]), step) for step in sweep["steps"]]
    if section.get("burst"):
        burst = section["burst"]
        steps.append((f"{number(burst['offered_per_s'])}, in bursts", burst))
    _load_tables(page, "offered/s", steps)
    page.say(
        "*Begun late* is by how much the generator itself was late; it is part of the latencies."
        " CPU is in cores. *Bursts*: every 5 s, five times as many requests for half a second."
    )
    if section.get("closed"):
        page.say(
            "Closed loop: so many callers, each asking again when answered. It shows throughput;"
            " its latencies leave out whoever would have come meanwhile."
        )
        _load_tables(page, "callers", [(number(s["callers"]), s) for s in section["closed"]])


def _knee(sweep: Json) -> str:
    knee, failed, why = sweep.get("knee_per_s"), sweep.get("too_much_per_s"), sweep.get("why")
    if not knee:
        return "No rate was kept up with" + (f": {why}." if why else ".")
    limit = duration(sweep.get("p99_limit_s"))
    above = f" {number(failed)}/s was too much: {why}." if failed else " Nothing was too much."
    return (
        f"**The knee is at {number(knee)} requests/s**: the highest rate that was kept up with, at"
        f" a p99 of at most {limit} and without an error.{above}"
    )


def _load_tables(page: Page, first: str, steps: Sequence[tuple[str, Json]]) -> None:
    page.table((first, *_LOAD_HEADER), [(name, *_load_row(step)) for name, step in steps])
    page.table((first, *_WATCH_HEADER), [(name, *_watch_row(step)) for name, step in steps])


def _load_row(step: Json) -> list[str]:
    hits = sum(step["statuses"].get(status, 0) for status in HITS)
    return [
        number(step["achieved_per_s"]),
        *(duration(step["latency"][name]) for name in ("p50_s", "p99_s", "p99.9_s")),
        percent(hits / step["finished"] if step["finished"] else None),
        number(sum(step["errors"].values())),
        number(step["unfinished"]),
        number(step["wrong"] + step["foreign"]),
    ]


def _watch_row(step: Json) -> list[str]:
    return [
        duration(step["late"]["p99_s"]),
        duration(step["lag"]["p99_s"]),
        decimal(step["client_cpu_share"]),
        decimal(step["redis_cpu_share"]),
        decimal(step["commands_per_request"]),
        number(step["redis_connections"]),
        size(step["client_rss_bytes"]),
        size(step["redis_memory_bytes"]),
    ]


def _soak(page: Page, section: Json) -> None:
    steady = section.get("steady")
    if not steady:
        return
    share = ", 70 % of the knee" if section.get("knee_per_s") else ""
    page.say(
        "## Hours of it",
        f"{section['minutes']:g} minutes at {number(section['rate_per_s'])} requests/s{share},"
        f" after {seconds(section['warm_up_s'])} of warming up. Answers live for"
        f" {seconds(section['ttl_s'])}, so that what is stored and what expires are in balance.",
    )
    if written := section.get("writes_before"):
        page.say(
            "An index of RediSearch keeps a few bytes for each of its first million writes"
            " (`MAXDOCTABLESIZE`), whatever was deleted since:"
            f" {number(written)} were made beforehand."
        )
    page.table(
        (
            "requests",
            "errors",
            "bypassed",
            "p50",
            "p99",
            "p99.9",
            "memory of clients",
            "memory of Redis",
            "most connections",
        ),
        [
            (
                number(steady["finished"]),
                number(sum(steady["errors"].values())),
                number(steady["statuses"].get("bypass", 0)),
                *(duration(steady["latency"][name]) for name in ("p50_s", "p99_s", "p99.9_s")),
                change(steady["client_growth"]),
                change(steady["redis_growth"]),
                number(steady["most_connections"]),
            )
        ],
    )
    page.plots("soak_memory")


# --- memory, peers, savings -------------------------------------------------------------------


def _memory(page: Page, section: Json) -> None:
    rows = [row for row in section.get("rows", []) if row["bytes_per_entry"]]
    if not rows:
        return
    page.say(
        "## What an entry weighs",
        f"{section['entries']:,} entries with answers of {section['answer_bytes']} bytes;"
        " everything Redis grew by, the index and its own copy of the vector included, divided by"
        " their number.",
    )
    page.table(
        ("", "bytes per entry", "a million entries"),
        [
            (row["name"], number(row["bytes_per_entry"]), size(1e6 * row["bytes_per_entry"]))
            for row in rows
        ],
    )
    page.plots("memory_per_entry")


def _peers(page: Page, section: Json) -> None:
    rows = section.get("rows", [])
    page.say(
        "## Beside others",
        "On this machine, in this run, on the same Redis, with the same vectors and answers; each"
        " as its own users call it, ours too, in a process of its own; others in a virtual"
        " environment of their own. Durations are taken inside that process, around the call."
        f" {number(section.get('entries'))} entries with answers of 500 characters,"
        f" {number(section.get('dimensions'))} dimensions. *Times ours*: the median over that of"
        " ours, which did the same in turn; ours beside itself shows how much of it is noise."
        " RedisVL, and langchain-redis and litellm-semantic that stand on it, search without a"
        " graph (FLAT), which is hard to beat in an index as small as this one, and takes time in"
        " proportion to it ([10,000 entries](performance.md#beside-others)).",
    )
    callers = number(section.get("callers"))
    for layer, title in (("exact", "### What was asked before"), ("semantic", "### By meaning")):
        measured = [row for row in rows if row[layer]]
        if measured:
            page.say(title)
            page.table(
                (
                    *("", "store, p50", "hit, p50", "p99", "times ours", "bytes per entry"),
                    *(f"{callers} callers: hits/s", "p99", "failed"),
                    *(f"{callers} callers store: per second", "failed"),
                ),
                [(_named(row), *_peer_speeds(row[layer])) for row in measured],
            )
            page.list([line for row in measured for line in _peer_failures(row, layer, callers)])
    page.plots("peers_exact_hit", "peers_semantic_hit", "peers_crowd")
    judged = [row for row in rows if row["faq"] and row["traps"]]
    if judged:
        page.say(
            "### Right and wrong",
            "The shipped questions, every wording once, and the shipped pairs, all at the same"
            " threshold. A wrong hit is the answer to another question; a trap is served when its"
            " answer is that of the other of the pair.",
        )
        page.table(
            ("", "FAQ: hits", "wrong", "paraphrases served", "traps served"),
            [(_named(row), *_peer_hits(row)) for row in judged],
        )
    page.list(
        [f"{row['name']} did not get to the end: {row['why_not']}" for row in _broken(rows)]
        + [f"{_named(row)} is called by {row['how']}" for row in rows if not row["why_not"]]
    )


def _named(row: Json) -> str:
    return f"{row['name']} {row['version']}"


def _broken(rows: Sequence[Json]) -> list[Json]:
    return [row for row in rows if row["why_not"]]


def _peer_speeds(figures: Json) -> list[str]:
    parts = ("store", "hit", "crowd", "crowd_store")
    store, hit, crowd, storing = (figures[part] or {} for part in parts)
    return [
        duration(store.get("p50_s")),
        duration(hit.get("p50_s")),
        duration(hit.get("p99_s")),
        decimal(hit.get("times_ours")),
        number(figures["bytes_per_entry"]),
        number(crowd.get("per_s")),
        duration(crowd.get("p99_s")),
        _failed(crowd),
        number(storing.get("per_s")),
        _failed(storing),
    ]


def _failed(figures: Json) -> str:
    if not figures:
        return NONE
    refused = sum(figures["failures"].values())
    return f"{number(refused + figures['missed'])} of {number(refused + figures['count'])}"


def _peer_failures(row: Json, layer: str, callers: str) -> list[str]:
    lines = []
    for part, what in (
        ("store", "stores"),
        ("hit", "look-ups"),
        ("crowd", f"look-ups by {callers} callers"),
        ("crowd_store", f"stores by {callers} callers"),
    ):
        figures = row[layer][part]
        if figures is None:
            continue
        reasons = [f"{number(n)} × `{why}`" for why, n in figures["failures"].items()]
        if figures["missed"]:
            reasons.append(f"{number(figures['missed'])} did not find what is there")
        if reasons:
            lines.append(f"{row['name']}, {what}: {'; '.join(reasons[:3])}")
    return lines


def _peer_hits(row: Json) -> list[str]:
    faq, traps = row["faq"], row["traps"]
    return [
        percent(faq["hit_rate"]),
        number(faq["wrong"]),
        f"{number(traps['paraphrases_served'])} of {number(traps['paraphrases'])}",
        f"{number(traps['traps_served'])} of {number(traps['traps'])}",
    ]


def _savings(page: Page, section: Json) -> None:
    rows = section.get("rows", [])
    if not rows:
        return
    page.say(
        "## What it would save",
        f"{section['requests']:,} requests of {section['workload']} ({section['source']}),"
        f" replayed for every cell; {number(section['daily_requests'])} requests a day,"
        f" {usd(section['input_usd_per_million'])} and {usd(section['output_usd_per_million'])}"
        f" per million input and output tokens, {usd(section['redis_usd_per_gb_month'])} a"
        " month for a gigabyte of Redis.",
    )
    page.table(
        (
            "threshold",
            "TTL",
            "hits",
            "exact",
            "semantic",
            "wrong hits",
            "per hit (clustered; exact)",
        ),
        [
            (
                row["threshold"],
                hours(row["ttl_h"]),
                percent(row["hit_rate"]),
                percent(row["exact_hit_rate"]),
                percent(row["semantic_hit_rate"]),
                number(row["wrong_hits"]) if row["labelled"] else "unknown",
                rate(row["wrong_per_hit"]) if row["labelled"] else NONE,
            )
            for row in rows
        ],
    )
    page.table(
        ("threshold", "TTL", "saved a month", "entries at a time", "memory", "its price a month"),
        [
            (
                row["threshold"],
                hours(row["ttl_h"]),
                usd(row["usd_a_month"]),
                number(row["entries_alive"]),
                size(row["memory_bytes"]),
                usd(row["redis_usd_a_month"]),
            )
            for row in rows
        ],
    )
    page.say(
        "Wrong hits are known only where the log has a column `answer_id`. Saved is 30 × requests"
        " a day × hit rate × tokens × price, with the tokens of the requests that hit. Entries at"
        " a time are those stored within one TTL at the mean rate of misses: for a TTL longer than"
        " the log, that is more than there will be."
    )


def _self_test(page: Page, section: Json) -> None:
    page.say(
        "## Can these comparisons be believed?",
        f"Of {section['pairs']} pairs of equal runs on this machine, `compare` called"
        f" {section['called_equal']} equal; of {section['pairs']} whose second run took"
        f" {percent(section['injected'])} longer, it called {section['detected']} changed.",
    )


_SECTIONS = {
    "hitrate": _hitrate,
    "latency": _latency,
    "load": _load,
    "soak": _soak,
    "memory": _memory,
    "peers": _peers,
    "savings": _savings,
    "self_test": _self_test,
}
