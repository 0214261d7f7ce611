"""What is written: whole, self-contained, and never empty where there is nothing to show."""

import asyncio
import json
import re
from pathlib import Path
from typing import Any

import pytest

from benchmarks import results as results_module
from benchmarks.__main__ import COMMANDS, main
from benchmarks.command import measured
from benchmarks.errors import BadInput
from benchmarks.quality.hitrate import HitRates, Plan, Stream
from benchmarks.quality.intervals import clopper_pearson, clustered_rate
from benchmarks.quality.savings import DAYS_A_MONTH, Prices
from benchmarks.report.folder import docs_page, write_report
from benchmarks.report.plots import _PLOTS
from benchmarks.report.sections import CAPTIONS
from benchmarks.results import Results
from benchmarks.workloads import shipped
from benchmarks.workloads.zipf import zipf

DOCS = Path(__file__).parent.parent.parent / "docs"
PLAN = Plan(shuffles=1, other_shuffles=1, curve_shuffles=1, thresholds=(0.8, 0.9))


async def test_a_report_stands_on_its_own(around, metered, results):
    streams = [Stream([shipped.traps()]), Stream([zipf(requests=60, seed=0)])]
    await HitRates(around, metered, results, PLAN).measure(streams)

    page = write_report(results).read_text("utf-8")

    assert len(re.findall(r'src="data:image/png;base64,', page)) == 3
    assert not re.search(r'(src|href)="(?!data:)', page)
    assert ">direction</td>" in page
    images = sorted(path.name for path in results.folder.glob("*.png"))
    assert images == ["hits_against_wrong_hits.png", "hits_over_time.png", "traps_served.png"]
    assert json.loads((results.folder / "results.json").read_text("utf-8"))["seed"] == 0


def test_a_report_of_nothing_is_a_page_without_plots(results):
    write_report(results)

    assert list(results.folder.glob("*.png")) == []
    assert "What must hold" not in (results.folder / "report.md").read_text("utf-8")


def test_sections_that_were_broken_off_are_left_out(results):
    results.section("hitrate").update(embedder="x", default_threshold=0.85, workloads=[])
    results.section("latency").update(scenes=[], reference_blocks_s=[])
    results.section("load").update(sweep={"steps": []})
    results.section("memory").update(rows=[])
    results.section("savings").update(rows=[])

    page = write_report(results).read_text("utf-8")

    assert "<h2>" not in page


async def test_a_stream_of_nothing_divides_by_nothing(around, metered, results):
    empty = zipf(requests=0, seed=0)
    await HitRates(around, metered, results, PLAN).measure([Stream([empty])])

    figures = results.section("hitrate")["workloads"][0]["policies"][0]

    assert figures["hit_rate"] is figures["precision"] is figures["wrong_per_hit"]["rate"] is None
    assert "– |" in write_report(results).with_suffix(".md").read_text("utf-8")


def test_notes_and_names_cannot_smuggle_html_into_the_page(results):
    results.note("<script>alert(1)</script>")

    assert "<script>" not in write_report(results).read_text("utf-8")


def test_every_plot_has_a_caption():
    assert _PLOTS.keys() == CAPTIONS.keys()


def test_the_page_of_the_documentation_is_that_of_its_figures():
    data = results_module.read(DOCS / "benchmarks")
    plots = {path.stem: path.name for path in (DOCS / "benchmarks").glob("*.png")}

    assert (DOCS / "benchmarks.md").read_text("utf-8") == docs_page(data, plots)


@pytest.mark.parametrize("text", ["", "{", "[]", '{"schema": 99}'])
def test_a_file_that_holds_no_results_is_refused(tmp_path, text):
    (tmp_path / "results.json").write_text(text)

    with pytest.raises(BadInput, match="results"):
        results_module.read(tmp_path)


def test_results_are_written_whole_or_not_at_all(results):
    results.save()
    results.data["broken"] = float("nan")

    with pytest.raises(ValueError, match="JSON"):
        results.save()
    assert "broken" not in results_module.read(results.folder)


def test_no_password_is_written(monkeypatch):
    monkeypatch.setattr("sys.argv", ["x", "run", "--redis-url", "redis://me:secret@host:1/0"])

    assert results_module.command_line() == "python -m benchmarks run --redis-url redis://host:1/0"


# --- commands ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", ["run", "hitrate", "latency", "load", "soak", "savings", "compare"]
)
def test_every_command_explains_itself(name, capsys):
    with pytest.raises(SystemExit) as ended:
        main([name, "--help"])

    assert ended.value.code == 0
    assert name in COMMANDS
    assert f"python -m benchmarks {name}" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["hitrate", "--log", "/nowhere.jsonl"], "there is no file"),
        (["hitrate", "--data", "/nowhere"], "there is no folder"),
        (["load", "--workers", "9"], "from 1 to 8"),
        (["load", "--arrivals", "trace"], "needs --trace"),
        (["load", "--upstream", "nonsense"], "--upstream"),
        (["load", "--upstream-p99-ms", "5", "--upstream-ms", "9"], "must be above"),
        (["savings", "--price-model", "no-such-model"], "no price is known"),
        (["hitrate", "--redis-url", "redis://127.0.0.1:1"], "--redis-url"),
    ],
)
def test_bad_input_is_told_before_anything_is_measured(arguments, says, tmp_path, capsys):
    status = main([*arguments, "--quiet", "--out", str(tmp_path / "out")])

    assert status == 2
    assert says in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["load", "--seconds", "0"], "a number above 0"),
        (["soak", "--minutes", "-1"], "a number above 0"),
        (["soak", "--rate", "nan"], "a number above 0"),
        (["load", "--rates", "10,x"], "numbers above 0"),
        (["load", "--mix", "exact=0,semantic=0,miss=0"], "not all 0"),
        (["run", "--only", "speed"], "there is no 'speed'"),
        (["run", "--peers", "memcached"], "there is no 'memcached'"),
    ],
)
def test_options_that_mean_nothing_are_refused(arguments, says, capsys):
    with pytest.raises(SystemExit) as ended:
        main(arguments)

    assert ended.value.code == 2
    assert says in capsys.readouterr().err


def test_when_redis_goes_away_the_report_says_so(tmp_path, capsys):
    import argparse

    from redis.exceptions import ConnectionError as RedisConnectionError

    async def cut_off(_: Any, results: Results) -> None:
        results.section("memory").update(rows=[], entries=0, answer_bytes=0)
        raise RedisConnectionError

    arguments = argparse.Namespace(
        out=tmp_path, seed=0, redis_url="embedded://", quiet=True, embedder="instant"
    )

    assert measured(arguments, cut_off) == 1
    assert "Redis stopped answering" in capsys.readouterr().err
    assert "Redis stopped answering" in (tmp_path / "report.md").read_text("utf-8")


def test_a_folder_without_reports_cannot_be_compared(tmp_path, capsys):
    assert main(["compare", str(tmp_path), str(tmp_path)]) == 2
    assert "holds no results" in capsys.readouterr().out


def test_what_was_measured_before_a_ctrl_c_is_written(tmp_path):
    import argparse

    async def interrupted(around: Any, results: Results) -> None:
        results.section("memory").update(rows=[], entries=0, answer_bytes=0)
        around.stop.set()
        await asyncio.sleep(0)

    arguments = argparse.Namespace(
        out=tmp_path, seed=0, redis_url="embedded://", quiet=True, embedder="instant"
    )

    assert measured(arguments, interrupted) == 130
    assert results_module.read(tmp_path)["interrupted"] is True
    assert "stopped before its end" in (tmp_path / "report.md").read_text("utf-8")


async def test_a_replay_that_is_stopped_keeps_its_figures(around, metered, results):
    def asks() -> Any:
        for number, ask in enumerate(zipf(requests=1_000, seed=0).asks()):
            if number == 30:
                around.stop.set()
            yield ask

    from benchmarks.workloads import Workload

    await HitRates(around, metered, results, PLAN).measure([Stream([Workload("w", asks, "s")])])

    (figures,) = results.section("hitrate")["workloads"][0]["policies"]
    assert figures["requests"] == 31
    assert figures["stopped"] == ["stopped after 31 requests"]


# --- figures ----------------------------------------------------------------------------------


def test_savings_reproduce_the_worked_example():
    # 10,000 requests a day, half of them hits, 500 + 300 tokens at 5 and 15 USD a million.
    daily_usd = Prices(5.0, 15.0).daily_usd(10_000, 0.5, 500, 300)

    assert daily_usd == pytest.approx(35.0)
    assert DAYS_A_MONTH * daily_usd == pytest.approx(1_050.0)


@pytest.mark.parametrize(
    ("events", "of", "interval"),
    [(0, 10, (0.0, 0.3085)), (10, 10, (0.6915, 1.0)), (1, 20, (0.0013, 0.2487))],
)
def test_the_exact_interval_is_that_of_the_tables(events, of, interval):
    assert clopper_pearson(events, of) == pytest.approx(interval, abs=0.0001)
    assert clopper_pearson(0, 0) is None


def test_one_popular_wrong_answer_makes_the_clustered_interval_the_wider_one():
    # 50 answers served 10 times each; all 10 hits of one of them are wrong.
    rate = clustered_rate([(10, 10)] + [(0, 10)] * 49, seed=0)

    assert rate.rate == 0.02
    assert rate.clustered_interval
    assert rate.exact_interval
    assert rate.clustered_interval[1] > rate.exact_interval[1]


def test_a_rate_of_nothing_is_none():
    assert clustered_rate([], seed=0).rate is None
    assert clustered_rate([(0, 0)], seed=0).rate is None
