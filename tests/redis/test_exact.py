"""What a look-up by digest finds, dead or alive."""

import pytest

from llm_cache._core.codec import HEADER_BYTES
from llm_cache._core.targets import Kind, target
from llm_cache._redis.exact import Lookup
from llm_cache._redis.line import Lines
from tests.redis.conftest import digest_of

ANSWER, ANOTHER = digest_of(1), digest_of(2)


@pytest.fixture
def damage(redis, keys):
    """Change the byte of the answer at a place, where 0 is the version."""

    async def damage(at: int) -> None:
        blob = bytearray(await redis.get(keys.answer(ANSWER)))
        blob[at] ^= 0x40
        await redis.set(keys.answer(ANSWER), bytes(blob), keepttl=True)

    return damage


@pytest.fixture
def looked_up(connection, exact):
    """Look the answer up in all ways; they find the same."""

    async def looked_up() -> Lookup:
        line = Lines(connection)
        found: Lookup = await exact.lookup(ANSWER)
        (of_many,) = await exact.lookup_many([ANSWER])
        for_another, _ = await exact.lookup_for(ANOTHER, ANSWER, None, line)
        await line.aclose()
        for other in (of_many, for_another):
            assert told(other) == told(found)
        return found

    return looked_up


@pytest.fixture
def start_and_epoch(redis, keys, epochs):
    """Return the first bytes under the key, and the epoch."""

    async def start_and_epoch() -> tuple[bytes, str]:
        blob = await redis.get(keys.answer(ANSWER)) or b""
        return blob[:HEADER_BYTES], (await epochs.current(None)).epoch

    return start_and_epoch


def told(found: Lookup) -> tuple[object, ...]:
    entry = None if found.entry is None else found.entry.header
    corrupt = None if found.corrupt is None else str(found.corrupt)
    return entry, found.epoch, corrupt, found.is_foreign, found.was_taken, found.start


async def test_nothing(looked_up, start_and_epoch):
    start, epoch = await start_and_epoch()
    assert told(await looked_up()) == (None, epoch, None, False, False, start)
    assert start == b""


@pytest.mark.parametrize("origin", [None, ANOTHER])
async def test_living_answer(looked_up, put, start_and_epoch, origin):
    await put(ANSWER, origin=origin)
    found = await looked_up()
    start, epoch = await start_and_epoch()
    assert told(found) == (start, epoch, None, False, True, start)
    assert found.entry.is_alias == (origin is not None)


async def test_answer_that_was_invalidated(looked_up, put, start_and_epoch, epochs):
    await put(ANSWER, tags=("geo",))
    start, _ = await start_and_epoch()
    epoch = await epochs.purge([target(Kind.TAG, "geo")])
    assert told(await looked_up()) == (None, epoch, None, False, True, start)


async def test_answer_of_another_version(looked_up, put, start_and_epoch, damage):
    await put(ANSWER)
    await damage(0)
    start, epoch = await start_and_epoch()
    assert told(await looked_up()) == (None, epoch, None, True, True, start)


@pytest.mark.parametrize("at", [5, 10, HEADER_BYTES])
async def test_answer_that_is_damaged(looked_up, put, start_and_epoch, damage, at):
    await put(ANSWER)
    await damage(at)
    start, epoch = await start_and_epoch()
    why = "a stored answer was changed, or belongs to another key"
    assert told(await looked_up()) == (None, epoch, why, False, True, start)
