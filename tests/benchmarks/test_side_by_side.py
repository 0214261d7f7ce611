"""Ours beside others: one stream, one Redis, a process each, and a row for whoever cannot run."""

import sys
from typing import Any

import pytest

from benchmarks.peers import environments
from benchmarks.peers.environments import OURS, Batch, Peer, PeerUnavailable, running
from benchmarks.peers.turns import Turns, per_s
from benchmarks.report.folder import write_report
from benchmarks.run import _beside
from benchmarks.side_by_side import Plan, measure

PLAN = Plan(entries=40, reads=20, blocks=2, callers=20)
CARELESS = """
import asyncio
from protocol import Driver, serve

class Careless(Driver):
    '''Answers anybody with whatever was stored last, and bears three callers.'''

    callers = 0

    async def open(self, url, *, dimensions, threshold, namespace):
        self.answer = None

    async def semantic_store(self, prompt, vector, answer):
        self.answer = answer

    async def semantic_check(self, prompt, vector):
        self.callers += 1
        try:
            if self.callers > 3:
                raise ConnectionError("Too many connections")
            await asyncio.sleep(0)
            return self.answer
        finally:
            self.callers -= 1

serve(Careless())
"""
REFUSING = """
from protocol import Driver, serve

class Refusing(Driver):
    async def open(self, url, **_):
        raise ConnectionError("no such server")

serve(Refusing())
"""
HANGING = """
import asyncio
from protocol import Driver, serve

class Hanging(Driver):
    async def open(self, url, **_):
        pass

    async def exact_set(self, key, value):
        pass

    async def exact_get(self, key):
        await asyncio.Event().wait()

serve(Hanging())
"""


@pytest.fixture
def make_peer(tmp_path):
    def make(name: str, source: str) -> Peer:
        path = tmp_path / f"{name}.py"
        path.write_text(source)
        return Peer(name, (), str(path), "its calls")

    return make


@pytest.fixture
async def rows(around, results, metered, make_peer, tmp_path):
    peers = [
        OURS,
        make_peer("careless", CARELESS),
        make_peer("refusing", REFUSING),
        Peer("missing", ("no-such-package==1.0",), "", "its calls"),
    ]
    await measure(around, results, PLAN, metered, peers, environments=tmp_path)
    return {row["name"]: row for row in results.section("peers")["rows"]}


async def test_ours_is_measured_like_the_others(rows):
    ours = rows["llm_cache"]

    assert ours["why_not"] is None
    for layer in ("exact", "semantic"):
        assert (ours[layer]["hit"]["count"], ours[layer]["hit"]["missed"]) == (40, 0)
        assert (ours[layer]["crowd"]["count"], ours[layer]["crowd"]["failures"]) == (180, {})
        assert ours[layer]["crowd_store"]["count"] == ours[layer]["store"]["count"] == 40
        assert ours[layer]["bytes_per_entry"] > 500
        assert ours[layer]["hit"]["times_ours"] > 0
    assert (ours["faq"]["requests"], ours["traps"]["traps"]) == (200, 71)


async def test_others_are_rows_with_what_they_do_wrong_or_why_they_cannot_run(rows):
    careless = rows["careless"]

    assert careless["exact"] is None
    assert careless["faq"]["wrong"] == 195
    assert careless["faq"]["hit_rate"] == 199 / 200
    crowd = careless["semantic"]["crowd"]
    refused = crowd["failures"]["ConnectionError: Too many connections"]
    assert refused > 0
    assert crowd["count"] + refused == 180
    assert "not installed" in rows["missing"]["why_not"]
    assert "ConnectionError: no such server" in rows["refusing"]["why_not"]


@pytest.fixture
def last_row(around, results, metered, make_peer, tmp_path):
    async def of_a_peer_that_hangs(**bounds: Any) -> dict[str, Any]:
        plan = Plan(entries=10, reads=5, blocks=1, callers=2, **bounds)
        hanging = make_peer("hanging", HANGING)
        await measure(around, results, plan, metered, [hanging], environments=tmp_path)
        row: dict[str, Any] = results.section("peers")["rows"][-1]
        return row

    return of_a_peer_that_hangs


async def test_a_peer_that_hangs_is_left_behind_with_the_figures_it_left(last_row, results):
    row = await last_row(seconds_each=5)

    assert row["why_not"] == "it took more than 5 s"
    assert row["exact"]["store"]["count"] == 10
    assert row["exact"]["hit"] is None
    assert "hanging" in write_report(results).with_suffix(".md").read_text("utf-8")


async def test_ctrl_c_ends_a_peer_that_hangs(last_row, around):
    around.progress.say = lambda text: around.stop.set() if "hanging" in text else None

    assert (await last_row())["why_not"] == "it was stopped"


async def test_a_process_that_dies_says_where_its_last_words_are(make_peer, tmp_path):
    with pytest.raises(PeerUnavailable, match=r"the driver ended .*dying\.log"):
        async with running(make_peer("dying", "raise SystemExit('ouch')"), tmp_path) as peer:
            await peer.open(url="", dimensions=1, threshold=0.9, namespace="x")

    assert (tmp_path / "dying.log").read_text().strip() == "ouch"


async def test_a_peer_that_installs_something_by_itself_does_so_where_it_lives(
    make_peer, tmp_path, monkeypatch
):
    """GPTCache runs `python -m pip install` when it misses something."""
    own = tmp_path / "own" / "bin" / "python"
    own.parent.mkdir(parents=True)
    own.symlink_to(sys.executable)

    async def made(*_: object, **__: object) -> str:
        return str(own)

    monkeypatch.setattr(environments, "environment", made)
    looking = make_peer("looking", "import shutil; raise SystemExit(shutil.which('python'))")
    with pytest.raises(PeerUnavailable):
        async with running(looking, tmp_path) as peer:
            await peer.open(url="", dimensions=1, threshold=0.9, namespace="x")

    assert (tmp_path / "looking.log").read_text().strip() == str(own)


def batch(*times_us: float, errors: Any = None, total_s: float = 1.0) -> Batch:
    return Batch([None] * len(times_us), times_us, errors or [None] * len(times_us), total_s)


def test_calls_that_failed_have_no_part_in_what_is_compared():
    refused = batch(1.0, 1.0, 600.0, errors=["refused", "refused", None])

    assert Turns([batch(200.0)], [refused]).times_ours == 3.0
    assert Turns([batch(200.0)], [batch(1.0, errors=["refused"])]).times_ours is None
    assert per_s([refused]) == 1.0


def test_peers_are_chosen_by_name():
    none, _ = _beside("none")
    every, installs = _beside("installed")
    named, installs_named = _beside("redisvl, cashews")

    assert none == []
    assert len(every) >= 8
    assert (installs, installs_named) == (False, True)
    assert [peer.name for peer in named] == ["redisvl", "cashews"]
    with pytest.raises(Exception, match="there is no 'memcached'"):
        _beside("memcached")
