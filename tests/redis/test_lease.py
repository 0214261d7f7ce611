"""One process makes the answer, the others are told. Real processes, a real Redis."""

import asyncio
import inspect
import itertools
import signal
import sys
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest

from llm_cache._core.keys import Keys
from llm_cache._redis import landings as landings_module
from llm_cache._redis.connection import Connection
from llm_cache._redis.embedded import EmbeddedRedis
from llm_cache._redis.lease import Landing, Lease, Leases
from llm_cache.errors import StoreTimeout, StoreUnavailable

DIGEST = "a" * 32
OTHER = "b" * 32
NEVER_S = 600.0
"""A lease that outlives the test: whoever wakes up was told."""
PATIENCE_S = 60.0

MakeLeases = Callable[..., Leases]

WORKER = """
import asyncio, sys
from llm_cache._core.keys import Keys
from llm_cache._redis.connection import Connection
from llm_cache._redis.lease import Lease, Leases

async def main(url, namespace, lease_s):
    connection = Connection(url, max_connections=2, timeout_s=60)
    await connection.open()
    keys = Keys(namespace)
    leases = Leases(connection, keys, lease_s=float(lease_s), renew_s=float(lease_s) / 4)
    say("ready")

    while line := await asyncio.to_thread(sys.stdin.readline):
        word, digest, *rest = line.split()
        if word == "claim":
            claimed = await claim(connection, keys, leases, digest)
            lease = claimed if isinstance(claimed, Lease) else None
            say("leads" if lease else "nothing" if claimed is None else claimed.decode())
        elif word == "store":
            say(await leases.store(digest, rest[0].encode(), ttl_ms=60_000, lease=lease))
        elif word == "fail":
            await lease.abandon()
        elif word == "race":
            claimed = await claim(connection, keys, leases, digest)
            if isinstance(claimed, Lease):
                await leases.store(digest, b"answer", ttl_ms=60_000, lease=claimed)
            say("led" if isinstance(claimed, Lease) else "followed")
    await leases.aclose()
    await connection.aclose()

async def claim(connection, keys, leases, digest):
    def lookup():
        return connection.execute("GET", keys.answer(digest))

    found = await lookup()
    return found or await leases.claim(digest, lookup)

def say(what):
    print(what, flush=True)

asyncio.run(main(*sys.argv[1:]))
"""


class Worker:
    """Another process with leases of its own, that does as it is told."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.process = process

    def tell(self, order: str) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(f"{order}\n".encode())

    async def says(self) -> str:
        assert self.process.stdout is not None
        return (await self.process.stdout.readline()).decode().strip()

    async def ask(self, order: str) -> str:
        self.tell(order)
        return await self.says()


@pytest.fixture
async def start_worker(redis_url, namespace) -> AsyncIterator[Callable[..., Any]]:
    workers = []

    async def start(lease_s: float = NEVER_S) -> Worker:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-c", WORKER, redis_url, namespace, str(lease_s)),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
        )
        workers.append(process)
        worker = Worker(process)
        assert await worker.says() == "ready"
        return worker

    yield start
    for process in workers:
        if process.returncode is None:
            process.kill()
        await process.wait()


@pytest.fixture
def keys(namespace):
    return Keys(namespace)


@pytest.fixture(params=[2, 3], ids=["RESP2", "RESP3"])
async def connection(request, redis_url):
    connection = Connection(
        f"{redis_url}?protocol={request.param}", max_connections=5, timeout_s=PATIENCE_S
    )
    await connection.open()
    yield connection
    await connection.aclose()


@pytest.fixture
async def make_leases(connection, keys) -> AsyncIterator[MakeLeases]:
    made: list[Leases] = []

    def make(lease_s: float = NEVER_S, renew_s: float = 200.0) -> Leases:
        leases = Leases(connection, keys, lease_s=lease_s, renew_s=renew_s)
        made.append(leases)
        return leases

    yield make
    for leases in made:
        await leases.aclose()


@pytest.fixture
def leases(make_leases: MakeLeases) -> Leases:
    return make_leases()


@pytest.fixture
def others(make_leases: MakeLeases) -> Leases:
    """What another process has: other tokens, another subscription."""
    return make_leases()


async def held(leases: Leases, digest: str = DIGEST) -> Lease:
    lease = await leases.acquire(digest)
    assert lease is not None
    return lease


async def subscribers(redis, keys, digest: str = DIGEST) -> int:
    ((_, count),) = await redis.pubsub_numsub(keys.landed(digest, database=0))
    return int(count)


async def waiting(redis, keys, leases: Leases, digest: str = DIGEST) -> "asyncio.Task[Landing]":
    """Start to wait, and return when the wait has come to rest."""
    asked = await count(redis, "pttl")
    task = asyncio.create_task(asyncio.wait_for(leases.wait(digest), PATIENCE_S))
    await until_run(redis, "pttl", asked + 1)
    return task


async def until(condition: Callable[[], bool | Awaitable[bool]]) -> None:
    """Return when *condition* holds. What it looks at, here or in Redis, tells nobody itself."""
    async with asyncio.timeout(PATIENCE_S):
        while True:
            holds = condition()
            if await holds if inspect.isawaitable(holds) else holds:
                return
            await asyncio.sleep(0)


async def until_run(redis, command: str, times: int) -> None:
    """Return when the server has run *command* that many times since its start."""

    async def has_run() -> bool:
        return await count(redis, command) >= times

    await until(has_run)


async def until_subscribed(redis, keys) -> None:
    async def is_subscribed() -> bool:
        return await subscribers(redis, keys) >= 1

    await until(is_subscribed)


async def renewed(redis, keys) -> int:
    """Return when the lease ends, as soon as that is another moment than it was."""
    ends = first = await redis.pexpiretime(keys.lease(DIGEST))

    async def is_renewed() -> bool:
        nonlocal ends
        ends = await redis.pexpiretime(keys.lease(DIGEST))
        return bool(ends != first)

    await until(is_renewed)
    assert ends > first
    return int(ends)


async def count(redis, command: str) -> int:
    return (await calls(redis))[command]


async def calls(redis) -> Counter[str]:
    """Return how often the server has run each command, those within scripts included."""
    stats = await redis.info("commandstats")
    return Counter(
        {
            name.removeprefix("cmdstat_").partition("|")[0]: int(stat["calls"])
            for name, stat in stats.items()
        }
    )


@asynccontextmanager
async def counted(redis) -> AsyncIterator[Counter[str]]:
    """Count the commands of the block, but for those of the counting, and the end of each turn."""
    before, made = await calls(redis), Counter[str]()
    yield made
    made.update(await calls(redis) - before)
    for own in ("info", "pubsub", "ping"):
        del made[own]


async def nothing_found() -> None:
    """Look up, and miss."""


# ---------------------------------------------------------------- taking and keeping


async def test_only_one_of_many_gets_the_lease(leases, others, redis, keys):
    taken = await asyncio.gather(*(side.acquire(DIGEST) for side in [leases, others] * 25))

    (lease,) = [lease for lease in taken if lease]
    assert (await redis.get(keys.lease(DIGEST))).decode() == lease.token
    assert 0 < await redis.pttl(keys.lease(DIGEST)) <= NEVER_S * 1000


async def test_leases_of_other_digests_are_apart(leases, others):
    await held(leases)
    await held(others, OTHER)


async def test_lease_is_taken_by_one_plain_command(leases, redis):
    async with counted(redis) as made:
        await held(leases)
    assert made == {"set": 1}


async def test_lease_whose_reply_was_lost_is_ours_when_the_command_is_sent_again(
    leases, redis, keys, monkeypatch
):
    monkeypatch.setattr("secrets.token_hex", lambda _: "token")
    await redis.set(keys.lease(DIGEST), "token", px=60_000)

    assert (await held(leases)).token == "token"


async def test_lease_is_renewed_while_it_is_held(make_leases, redis, keys):
    leases = make_leases(lease_s=30, renew_s=0.02)
    lease = await held(leases)
    for _ in range(3):
        await renewed(redis, keys)
    assert not lease.is_lost


async def test_many_leases_are_renewed_in_one_round_trip(make_leases, redis, keys):
    leases = make_leases(lease_s=30, renew_s=1)
    digests = [f"{n:032d}" for n in range(20)]
    kept = await asyncio.gather(*(held(leases, digest) for digest in digests))
    sent = []
    original = leases._extend

    async def extend(due):
        sent.extend([len(due)] if due else [])
        await original(due)

    leases._extend = extend
    await until(lambda: sum(sent) == len(kept))
    assert len(sent) <= 3


async def test_lease_that_ends_before_its_first_renewal_costs_none(make_leases, redis):
    leases = make_leases(lease_s=30, renew_s=0.3)
    async with counted(redis) as made:
        for _ in range(3):
            await (await held(leases)).release(Landing.FAILED)
        # Nothing is held, so it ends with its next look.
        await until(lambda: leases._renewing is None)
    assert made["getex"] == 0


async def test_lease_taken_after_a_rest_is_renewed_too(make_leases, redis, keys):
    leases = make_leases(lease_s=30, renew_s=0.02)
    await (await held(leases)).release(Landing.FAILED)
    await until(lambda: leases._renewing is None)
    lease = await held(leases)
    await renewed(redis, keys)
    await lease.release(Landing.FAILED)


async def test_lease_that_is_lost_is_remembered_and_no_longer_renewed(make_leases, redis, keys):
    leases = make_leases(lease_s=30, renew_s=0.02)
    lease = await held(leases)
    await redis.set(keys.lease(DIGEST), "another", px=60_000)

    await until(lambda: lease.is_lost)

    assert await redis.get(keys.lease(DIGEST)) == b"another"
    await until(lambda: leases._renewing is None)
    async with counted(redis) as made:
        assert not await lease.release(Landing.FAILED)
    assert made["getex"] == 0


async def test_lease_that_its_holder_forgot_runs_out(make_leases, redis, keys):
    leases = make_leases(lease_s=0.2, renew_s=0.02)
    lease = await held(leases)
    await renewed(redis, keys)
    del lease

    assert await leases.wait(DIGEST) is Landing.LANDED
    await until(lambda: leases._renewing is None)


# ---------------------------------------------------------------- giving back


async def test_released_lease_can_be_taken_at_once(leases, others):
    assert await (await held(leases)).release(Landing.FAILED)
    await held(others)


async def test_lease_is_released_once(leases, others):
    lease = await held(leases)
    assert await lease.release(Landing.FAILED)
    await held(others)

    assert not await lease.release(Landing.LANDED)
    assert await leases.acquire(DIGEST) is None


async def test_release_by_who_lost_the_lease_leaves_the_next_one_alone(
    leases, others, redis, keys
):
    late = await held(leases)
    await redis.delete(keys.lease(DIGEST))
    current = await held(others)
    waiter = await waiting(redis, keys, leases)

    assert not await late.release(Landing.FAILED)
    assert (await redis.get(keys.lease(DIGEST))).decode() == current.token
    # Its failure is none of the new leader's.
    await current.release(Landing.LANDED)
    assert await waiter is Landing.LANDED


async def test_leaving_the_block_by_an_error_tells_the_waiters(leases, others, redis, keys):
    async def lead() -> None:
        async with lease:
            raise RuntimeError("the model is down")

    lease = await held(leases)
    waiter = await waiting(redis, keys, others)
    with pytest.raises(RuntimeError, match="the model is down"):
        await lead()

    assert await waiter is Landing.FAILED


async def test_leaving_the_block_after_a_store_says_no_more(leases, others, redis, keys):
    lease = await held(leases)
    waiter = await waiting(redis, keys, others)
    async with lease:
        assert await leases.store(DIGEST, b"answer", ttl_ms=60_000, lease=lease)

    assert await waiter is Landing.LANDED
    assert not await redis.exists(keys.lease(DIGEST))


async def test_cancelled_leader_tells_the_waiters(leases, others, redis, keys):
    async def lead() -> None:
        async with lease:
            await asyncio.Event().wait()

    lease = await held(leases)
    waiter = await waiting(redis, keys, others)
    leader = asyncio.create_task(lead())
    await asyncio.sleep(0)
    leader.cancel()

    assert await waiter is Landing.FAILED


async def test_scripts_are_sent_again_to_a_server_that_forgot_them(leases, redis, keys):
    for _ in range(2):
        await redis.script_flush()
        assert await leases.store(DIGEST, b"1", ttl_ms=60_000, lease=await held(leases))
        await redis.script_flush()
        assert await (await held(leases)).release(Landing.FAILED)


# ---------------------------------------------------------------- waiting


@pytest.mark.parametrize("outcome", list(Landing))
async def test_everybody_is_woken(leases, others, redis, keys, outcome):
    lease = await held(leases)
    waiters = [await waiting(redis, keys, side) for side in (leases, others, others)]

    await lease.release(outcome)

    assert await asyncio.gather(*waiters) == [outcome] * 3


async def test_others_are_not_woken(leases, others, redis, keys):
    one, two = await held(leases), await held(leases, OTHER)
    waiter = await waiting(redis, keys, others)
    await two.release(Landing.FAILED)
    await one.release(Landing.LANDED)

    assert await waiter is Landing.LANDED


async def test_wake_up_between_acquire_and_subscription_is_not_missed(leases, others):
    lease = await held(leases)
    assert await others.acquire(DIGEST) is None
    await lease.release(Landing.LANDED)

    assert await others.wait(DIGEST) is Landing.LANDED


async def test_wake_up_at_any_moment_is_not_missed(leases, others):
    for pauses in range(60):
        lease = await held(leases)
        waiter = asyncio.create_task(others.wait(DIGEST))
        for _ in range(pauses):
            await asyncio.sleep(0)
        await lease.release(Landing.LANDED)
        assert await waiter is Landing.LANDED


async def test_second_wait_for_a_digest_needs_no_second_subscription(leases, others, redis, keys):
    for expected in (1, 0):
        lease = await held(leases)
        async with counted(redis) as made:
            waiter = await waiting(redis, keys, others)
            await lease.release(Landing.LANDED)
            await waiter
        assert made["subscribe"] == expected


async def test_first_subscription_costs_one_command(leases, others, redis, keys):
    lease = await held(leases)
    async with counted(redis) as made:
        waiter = await waiting(redis, keys, others)
    assert made == {"subscribe": 1, "pttl": 1}
    await lease.release(Landing.LANDED)
    await waiter


async def test_channels_that_nobody_listens_to_are_left(leases, others, redis, keys, monkeypatch):
    monkeypatch.setattr(landings_module, "_MOST_STALE", 3)
    digests = [f"{n:032d}" for n in range(6)]
    for digest in digests:
        lease = await held(leases, digest)
        waiter = await waiting(redis, keys, others, digest)
        await lease.release(Landing.LANDED)
        await waiter
    assert [await subscribers(redis, keys, digest) for digest in digests] == [0, 0, 0, 0, 0, 1]

    lease = await held(leases, digests[0])
    waiter = await waiting(redis, keys, others, digests[0])
    await lease.release(Landing.FAILED)
    assert await waiter is Landing.FAILED


async def test_lease_that_runs_out_ends_the_wait_without_any_message(leases, redis, keys):
    await redis.set(keys.lease(DIGEST), "dead", px=50)

    assert await leases.wait(DIGEST) is Landing.LANDED
    assert await leases.acquire(DIGEST) is not None


async def test_live_leader_is_asked_about_once_a_lease(leases, others, connection, monkeypatch):
    await held(leases)
    left_ms = [30, 30, 30, -2]
    asked_s = []

    async def execute(*_command):
        asked_s.append(asyncio.get_running_loop().time())
        return left_ms.pop(0)

    monkeypatch.setattr(connection, "execute", execute)

    assert await others.wait(DIGEST) is Landing.LANDED
    assert left_ms == []
    assert all(b - a >= 0.03 for a, b in itertools.pairwise(asked_s))


async def test_lease_that_never_expires_is_not_waited_for(leases, redis, keys):
    await redis.set(keys.lease(DIGEST), "nobody's")

    assert await leases.wait(DIGEST) is Landing.FAILED


async def test_killed_subscription_is_made_again(leases, others, redis, keys):
    lease = await held(leases)
    waiter = await waiting(redis, keys, others)
    asked = await count(redis, "pttl")
    assert await redis.client_kill_filter(_type="pubsub")
    # Subscribed again, it makes sure that nothing was missed.
    await until_run(redis, "pttl", asked + 1)
    await lease.release(Landing.LANDED)

    assert await waiter is Landing.LANDED


async def test_message_that_is_lost_with_its_connection_costs_nothing(leases, others, redis, keys):
    lease = await held(leases)
    waiter = await waiting(redis, keys, others)
    async with redis.pipeline(transaction=True) as pipeline:
        pipeline.delete(keys.lease(DIGEST))
        pipeline.client_kill_filter(_type="pubsub")
        await pipeline.execute()

    assert await waiter is Landing.LANDED
    assert not lease.is_lost


async def test_subscription_that_died_while_nobody_listened_is_made_again(
    leases, others, redis, keys
):
    for _ in range(3):
        lease = await held(leases)
        waiter = await waiting(redis, keys, others)
        await lease.release(Landing.LANDED)
        await waiter
        await redis.client_kill_filter(_type="pubsub")


async def test_connection_that_is_lost_while_it_is_subscribed_to_gets_a_second_try(
    leases, others, redis, keys
):
    lease = await held(leases)
    asked = await count(redis, "pttl")
    waiter = asyncio.create_task(others.wait(DIGEST))
    await until(lambda: others._landings._line is not None)
    others._landings.hang_up(ConnectionResetError("by the peer"))

    await until_run(redis, "pttl", asked + 1)
    await lease.release(Landing.LANDED)
    assert await waiter is Landing.LANDED


async def test_databases_do_not_hear_each_other(leases, redis_url, keys, redis):
    connection = Connection(f"{redis_url}?db=1", max_connections=2, timeout_s=PATIENCE_S)
    await connection.open()
    elsewhere = Leases(connection, keys, lease_s=NEVER_S)
    here, there = await held(leases), await held(elsewhere)
    async with counted(redis) as made:
        far_waiter = await waiting(redis, keys, elsewhere)
    assert made == {"subscribe": 1, "pttl": 1}
    waiter = await waiting(redis, keys, leases)
    await there.release(Landing.FAILED)
    await here.release(Landing.LANDED)

    assert await waiter is Landing.LANDED
    assert await far_waiter is Landing.FAILED
    await elsewhere.aclose()
    await connection.aclose()


@pytest.mark.parametrize("pauses", [0, 1, 2, 3, 5, 8, 13, 1000])
async def test_cancelled_waiter_leaves_nothing(leases, others, redis, keys, pauses):
    lease = await held(leases)
    waiter = asyncio.create_task(others.wait(DIGEST))
    for _ in range(pauses):
        await asyncio.sleep(0)
    waiter.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiter
    assert others._landings._ears == {}

    waiter = await waiting(redis, keys, others)
    await lease.release(Landing.LANDED)
    assert await waiter is Landing.LANDED


async def test_cancelled_waiter_does_not_disturb_the_others(leases, others, redis, keys):
    lease = await held(leases)
    tasks = [asyncio.create_task(others.wait(DIGEST)) for _ in range(4)]
    await asyncio.sleep(0)
    tasks[0].cancel()
    await until_subscribed(redis, keys)
    tasks[1].cancel()
    await lease.release(Landing.LANDED)

    ended = await asyncio.gather(*tasks, return_exceptions=True)
    assert [type(end) for end in ended[:2]] == [asyncio.CancelledError] * 2
    assert ended[2:] == [Landing.LANDED] * 2


# ---------------------------------------------------------------- storing


ENTRY_FIELDS: list[str | bytes] = ["vector", bytes(range(256)), "scope", "s", "prompt", "né\0"]


async def test_store_writes_everything_with_its_expiry_and_ends_the_lease(leases, redis, keys):
    entry = keys.entry("space", DIGEST)
    blob = bytes(range(256)) * 3
    lease = await held(leases)

    assert await leases.store(
        DIGEST, blob, ttl_ms=50_000, entry=(entry, ENTRY_FIELDS), lease=lease
    )

    assert await redis.get(keys.answer(DIGEST)) == blob
    assert await redis.hgetall(entry) == {
        b"vector": bytes(range(256)),
        b"scope": b"s",
        b"prompt": "né\0".encode(),
    }
    for key in (keys.answer(DIGEST), entry):
        assert 0 < await redis.pttl(key) <= 50_000
    assert not await redis.exists(keys.lease(DIGEST))
    assert lease.is_ended


async def test_store_without_an_entry_writes_the_answer_alone(leases, redis, keys, namespace):
    assert await leases.store(DIGEST, b"answer", ttl_ms=50_000, lease=await held(leases))

    assert await redis.keys(f"{namespace}:*") == [keys.answer(DIGEST).encode()]


async def test_store_is_one_command_on_the_wire(leases, redis):
    lease = await held(leases)
    await leases.store(OTHER, b"so that the server knows the script", ttl_ms=50_000)
    async with counted(redis) as made:
        await leases.store(DIGEST, b"answer", ttl_ms=50_000, lease=lease)
    assert made == {"evalsha": 1, "get": 1, "set": 1, "del": 1, "publish": 1}


async def test_store_without_a_lease_replaces_what_is_there(leases, others, redis, keys):
    await held(others)
    assert await leases.store(DIGEST, b"old", ttl_ms=50_000)
    assert await leases.store(DIGEST, b"new", ttl_ms=50_000)

    assert await redis.get(keys.answer(DIGEST)) == b"new"
    assert await leases.acquire(DIGEST) is None


async def test_leader_replaces_what_is_there(leases, redis, keys):
    await redis.set(keys.answer(DIGEST), b"invalidated", px=50_000)

    assert await leases.store(DIGEST, b"new", ttl_ms=50_000, lease=await held(leases))
    assert await redis.get(keys.answer(DIGEST)) == b"new"


async def test_late_leader_overwrites_nothing(leases, others, redis, keys):
    entry = keys.entry("space", DIGEST)
    late = await held(leases)
    await redis.delete(keys.lease(DIGEST))
    await others.store(DIGEST, b"newer", ttl_ms=50_000, lease=await held(others))

    assert not await leases.store(
        DIGEST, b"late", ttl_ms=90_000, entry=(entry, ENTRY_FIELDS), lease=late
    )
    assert await redis.get(keys.answer(DIGEST)) == b"newer"
    assert await redis.pttl(keys.answer(DIGEST)) <= 50_000
    assert not await redis.exists(entry, keys.refs(DIGEST))


async def test_late_leader_that_is_first_all_the_same_serves_those_who_wait_for_the_next(
    leases, others, redis, keys
):
    late = await held(leases)
    await redis.delete(keys.lease(DIGEST))
    current = await held(others)
    waiter = await waiting(redis, keys, leases)

    assert await leases.store(DIGEST, b"late", ttl_ms=50_000, lease=late)
    assert await waiter is Landing.LANDED
    assert await leases.acquire(DIGEST) is None
    assert await others.store(DIGEST, b"newer", ttl_ms=50_000, lease=current)
    assert await redis.get(keys.answer(DIGEST)) == b"newer"


# ---------------------------------------------------------------- claiming


async def test_who_claims_first_leads(leases):
    assert isinstance(await leases.claim(DIGEST, nothing_found), Lease)


async def test_answer_that_landed_between_look_up_and_lease_is_found(leases, others, redis, keys):
    async def lookup() -> bytes | None:
        found: bytes | None = await redis.get(keys.answer(DIGEST))
        return found

    assert await lookup() is None
    await others.store(DIGEST, b"answer", ttl_ms=50_000, lease=await held(others))

    assert await leases.claim(DIGEST, lookup) == b"answer"
    assert not await redis.exists(keys.lease(DIGEST))


async def test_claim_goes_on_when_nothing_is_found_after_a_landing(leases, others, redis, keys):
    lease = await held(leases)
    claim = asyncio.create_task(others.claim(DIGEST, nothing_found))
    await until_subscribed(redis, keys)
    await lease.release(Landing.LANDED)

    assert isinstance(await claim, Lease)


async def test_look_up_that_fails_gives_the_lease_back(leases, redis, keys):
    async def lookup() -> None:
        raise StoreTimeout("too slow")

    with pytest.raises(StoreTimeout):
        await leases.claim(DIGEST, lookup)
    assert not await redis.exists(keys.lease(DIGEST))


# ---------------------------------------------------------------- processes


async def test_waiting_processes_are_told_and_take_five_commands_each(start_worker, redis, keys):
    workers = await asyncio.gather(*(start_worker() for _ in range(5)))
    leader, *waiters = workers
    assert await leader.ask(f"claim {DIGEST}") == "leads"

    asked = await count(redis, "pttl")
    async with counted(redis) as before:
        for waiter in waiters:
            waiter.tell(f"claim {DIGEST}")
        await until_run(redis, "pttl", asked + 4)
    async with counted(redis) as after:
        assert await leader.ask(f"store {DIGEST} answer") == "True"
        assert [await waiter.says() for waiter in waiters] == ["answer"] * 4

    # Each has looked up, tried to lead, subscribed, and asked how long the lease lasts …
    assert before == {"get": 4, "set": 4, "subscribe": 4, "pttl": 4}
    # … and has looked up again. The rest is the leader's script.
    script = Counter({"get": 1, "set": 1, "del": 1, "publish": 1})
    assert Counter(after) - Counter({"evalsha": 1, "eval": 1}) == Counter({"get": 4}) + script


async def test_exactly_one_of_racing_processes_leads(start_worker):
    workers = await asyncio.gather(*(start_worker() for _ in range(6)))
    for n in range(20):
        for worker in workers:
            worker.tell(f"race {n:032d}")
        ends = [await worker.says() for worker in workers]
        assert sorted(ends) == ["followed"] * 5 + ["led"]


async def test_failure_of_the_leader_sends_every_process_on_its_own_way(start_worker, redis):
    leader, *waiters = await asyncio.gather(*(start_worker() for _ in range(4)))
    assert await leader.ask(f"claim {DIGEST}") == "leads"
    asked = await count(redis, "pttl")
    for waiter in waiters:
        waiter.tell(f"claim {DIGEST}")
    # Subscribed is not enough: one that asks how long the lease lasts after it has ended leads
    # the next time, and others that were as late then wait for that one.
    await until_run(redis, "pttl", asked + 3)

    leader.tell(f"fail {DIGEST}")

    assert [await waiter.says() for waiter in waiters] == ["nothing"] * 3


async def test_killed_leader_is_replaced_when_its_lease_runs_out(
    start_worker, make_leases, redis, keys
):
    worker = await start_worker(lease_s=1.0)
    assert await worker.ask(f"claim {DIGEST}") == "leads"
    leases = make_leases()
    claim = asyncio.create_task(leases.claim(DIGEST, nothing_found))
    await renewed(redis, keys)

    worker.process.send_signal(signal.SIGKILL)
    await worker.process.wait()
    killed_ms = await now_ms(redis)
    ends = await redis.pexpiretime(keys.lease(DIGEST))
    assert ends <= killed_ms + 1000

    assert isinstance(await claim, Lease)
    # A second for the load of the machine; the wait itself is exact.
    assert await now_ms(redis) <= killed_ms + 1000 + 1000


async def test_leader_that_stood_still_overwrites_nothing(start_worker, make_leases, redis, keys):
    worker = await start_worker(lease_s=0.4)
    assert await worker.ask(f"claim {DIGEST}") == "leads"
    worker.process.send_signal(signal.SIGSTOP)

    leases = make_leases()
    lease = await leases.claim(DIGEST, nothing_found)
    assert isinstance(lease, Lease)
    await leases.store(DIGEST, b"newer", ttl_ms=50_000, lease=lease)
    worker.process.send_signal(signal.SIGCONT)

    assert await worker.ask(f"store {DIGEST} late") == "False"
    assert await redis.get(keys.answer(DIGEST)) == b"newer"


# ---------------------------------------------------------------- trouble


async def test_nothing_waits_for_a_redis_that_is_away(keys):
    server = EmbeddedRedis()
    connection = Connection(await server.start(), max_connections=5, timeout_s=PATIENCE_S)
    await connection.open()
    leases = Leases(connection, keys, lease_s=30, renew_s=0.02)
    lease, kept = await held(leases), await held(leases, OTHER)
    waiter = asyncio.create_task(leases.wait(DIGEST))
    await until_subscribed(connection.client, keys)

    await server.stop()

    with pytest.raises(StoreUnavailable):
        await waiter
    with pytest.raises(StoreUnavailable):
        await leases.acquire("c" * 32)
    with pytest.raises(StoreUnavailable):
        await leases.wait(DIGEST)
    with pytest.raises(StoreUnavailable):
        await leases.store(DIGEST, b"answer", ttl_ms=1000, lease=lease)
    with pytest.raises(StoreUnavailable):
        await lease.release(Landing.LANDED)
    async with kept:
        # Renewals fail meanwhile, and nobody hears of it.
        due_s = kept.due_s
        await until(lambda: kept.due_s > due_s)
    await leases.aclose()
    await connection.aclose()


async def test_failed_renewal_is_tried_again(make_leases, redis, keys, connection):
    leases = make_leases(lease_s=30, renew_s=0.02)
    lease = await held(leases)
    pipeline = connection.client.pipeline
    failures: list[dict[str, Any]] = []

    def failing(**options):
        failures.append(options)
        raise StoreUnavailable("away")

    connection.client.pipeline = failing
    await until(lambda: len(failures) == 2)
    connection.client.pipeline = pipeline
    await renewed(redis, keys)
    assert not lease.is_lost


async def test_subscription_without_an_answer_is_given_up_and_made_again(
    leases, others, redis, keys, connection
):
    lease = await held(leases)
    connection._timeout_s = 0.05
    await redis.client_pause(500)
    with pytest.raises(StoreTimeout):
        await others.wait(DIGEST)
    connection._timeout_s = PATIENCE_S
    assert others._landings._line is None

    waiter = await waiting(redis, keys, others)
    await lease.release(Landing.LANDED)
    assert await waiter is Landing.LANDED


async def test_user_without_the_right_to_the_channel_is_told(redis_url, redis, keys, leases):
    await redis.execute_command(
        *("ACL", "SETUSER", "mute", "on", ">pw", "~*", "+@all", "resetchannels")
    )
    connection = Connection(
        f"{redis_url}?username=mute&password=pw", max_connections=2, timeout_s=PATIENCE_S
    )
    await connection.open()
    mute = Leases(connection, keys, lease_s=NEVER_S)
    lease = await held(mute)
    with pytest.raises(StoreUnavailable, match=r"(?i)channel"):
        await mute.wait(DIGEST)

    assert await mute.store(DIGEST, b"answer", ttl_ms=50_000, lease=lease)
    assert await redis.get(keys.answer(DIGEST)) == b"answer"
    await mute.aclose()
    await connection.aclose()
    await redis.execute_command("ACL", "DELUSER", "mute")


async def test_closing_gives_leases_back_and_leaves_nothing_running(
    connection, keys, leases, redis
):
    lease = await held(leases)
    running = asyncio.all_tasks()
    closing = Leases(connection, keys, lease_s=NEVER_S)
    kept = await held(closing, OTHER)
    waiter = await waiting(redis, keys, closing)
    listening = len(await redis.client_list(_type="pubsub"))

    await closing.aclose()

    with pytest.raises(StoreUnavailable, match="closed"):
        await waiter
    with pytest.raises(StoreUnavailable, match="closed"):
        await closing.acquire(DIGEST)
    assert asyncio.all_tasks() == running

    async def is_hung_up() -> bool:
        return len(await redis.client_list(_type="pubsub")) < listening

    await until(is_hung_up)
    assert kept.is_ended
    await held(leases, OTHER)
    await lease.release(Landing.FAILED)


async def test_nothing_is_sent_and_nothing_runs_without_a_lease(connection, keys, redis):
    running = asyncio.all_tasks()
    async with counted(redis) as made:
        await Leases(connection, keys).aclose()
    assert made == {}
    assert asyncio.all_tasks() == running


async def now_ms(redis) -> int:
    seconds, microseconds = await redis.time()
    return int(seconds * 1000 + microseconds // 1000)
