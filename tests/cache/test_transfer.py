"""Answers go out of one Redis and into another, all of them, once, or not at all."""

import asyncio
import json
import resource
import stat
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
from redis import asyncio as redis_py

from llm_cache import transfer
from llm_cache._core.codec import decode_entry, encode_entry
from llm_cache._core.keys import answer_digest
from llm_cache._core.targets import Kind, target
from llm_cache._redis.bulk import BulkEntries
from llm_cache._redis.embedded import EmbeddedRedis
from llm_cache.errors import (
    ConfigurationError,
    FileUnwritable,
    InvalidFile,
    InvalidRequest,
    StoreUnavailable,
)
from llm_cache.testing import FakeEmbedder
from llm_cache.transfer import export_entries, import_entries, inspect_export

FRANCE = "What is the capital of France?"
REPHRASED = "Tell me the capital city of France."
OTHERS = [f"Question number {word}" for word in ("one", "two", "three", "four", "five")]


@pytest.fixture(scope="session")
def other_url() -> Iterator[str]:
    """A second Redis, which knows nothing of the first."""
    server = EmbeddedRedis()
    yield asyncio.run(server.start())
    asyncio.run(server.stop())


@pytest.fixture
async def other_redis(other_url: str) -> AsyncIterator[Any]:
    client = redis_py.Redis.from_url(other_url)
    yield client
    await client.aclose()


@pytest.fixture
async def other(make_cache, other_url):
    return await make_cache(other_url).open()


@pytest.fixture
async def filled(cache, embedder):
    """A cache with five answers, of which one has an alias, and one more of a tenant."""
    embedder.similar(FRANCE, REPHRASED, 0.99)
    for prompt in (FRANCE, *OTHERS[:3]):
        await cache.chat(prompt, tags=["geo"])
    await cache.chat(FRANCE, tenant="acme", system="Be brief.", ttl_s=60)
    assert (await cache.chat(REPHRASED)).status == "semantic"
    return cache


@pytest.fixture
def path(tmp_path):
    return tmp_path / "answers.jsonl"


def lines(path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_bytes().splitlines()]


@pytest.fixture
def here(redis, namespace):
    """Read all that the first Redis holds."""
    return lambda: everything(redis, namespace)


@pytest.fixture
def there(other_redis, namespace):
    """Read all that the second Redis holds."""
    return lambda: everything(other_redis, namespace)


async def everything(redis, namespace) -> dict[str, Any]:
    """Return what *redis* holds of answers, semantic entries and references, by key."""
    found = {}
    for kind in ("x", "s", "refs"):
        async for key in redis.scan_iter(f"{namespace}:{kind}:*"):
            read = {"x": redis.get, "s": redis.hgetall, "refs": redis.smembers}[kind]
            found[key] = (await read(key), await redis.pexpiretime(key))
    return found


# ------------------------------------------------------------------ there and back


async def test_import_without_an_embedder_makes_the_index_that_finds_its_entries(
    filled, make_cache, other_url, other_redis, path
):
    plain = make_cache(other_url, semantic=False)
    await export_entries(filled, path)
    await import_entries(plain, path)

    index = filled._semantic.vectors.index
    assert index.encode() in await other_redis.execute_command("FT._LIST")


async def test_an_empty_redis_answers_as_the_first_one_did(filled, other, path, upstream):
    exported = await export_entries(filled, path)
    imported = await import_entries(other, path)
    asked = upstream.calls

    assert (exported.answers, exported.aliases, exported.semantic) == (5, 1, 5)
    assert (imported.written, imported.semantic) == (6, 5)
    for prompt in (FRANCE, REPHRASED, *OTHERS[:3]):
        here, there = await filled.lookup_exact(prompt), await other.lookup_exact(prompt)
        assert json.dumps(here.data) == json.dumps(there.data)
        assert (here.similarity, here.origin, here.key) == (
            there.similarity,
            there.origin,
            there.key,
        )
        here, there = await filled.lookup_semantic(prompt), await other.lookup_semantic(prompt)
        assert (here.data, here.similarity, here.key) == (there.data, there.similarity, there.key)
    assert (await other.chat(FRANCE, tenant="acme", system="Be brief.")).status == "exact"
    assert upstream.calls == asked


async def test_what_is_imported_is_the_same_to_the_byte_but_for_its_stamp(
    filled, other, path, here, there
):
    await export_entries(filled, path)
    await import_entries(other, path)
    first, second = await here(), await there()

    assert first.keys() == second.keys()
    for key, (value, expires_ms) in first.items():
        is_answer = b":x:" in key
        as_stamped = restamped(key, value, second[key][0]) if is_answer else value
        assert as_stamped == second[key][0]
        # What leads to an answer was told the time it had left in a command of its own.
        assert abs(expires_ms - second[key][1]) <= (0 if is_answer else 100)


def restamped(key: bytes, blob: bytes, like: bytes) -> bytes:
    digest = answer_digest(key.decode())
    entry, other = decode_entry(blob, digest), decode_entry(like, digest)
    assert entry is not None
    assert other is not None
    return encode_entry(replace(entry, stamp=other.stamp), digest)


async def test_an_export_of_an_import_is_the_same_but_for_stamps(filled, other, path, tmp_path):
    def entries(path) -> list[dict[str, Any]]:
        rows = [line for line in lines(path) if line["kind"] == "answer"]
        for row in rows:
            del row["check"], row["entry"]["stamp"]
        return sorted(rows, key=lambda row: row["digest"])

    await export_entries(filled, path)
    await import_entries(other, path)
    await export_entries(other, tmp_path / "again.jsonl")

    assert entries(path) == entries(tmp_path / "again.jsonl")


async def test_another_namespace_takes_the_answers_too(filled, make_cache, other_url, path):
    await export_entries(filled, path)
    cache = make_cache(other_url, namespace="elsewhere")
    await import_entries(cache, path)

    assert (await cache.lookup_semantic(REPHRASED)).similarity > 0.98


async def test_packed_files_hold_the_same(filled, other, tmp_path):
    path = tmp_path / "answers.jsonl.gz"
    await export_entries(filled, path)

    assert path.read_bytes()[:2] == b"\x1f\x8b"
    assert list(tmp_path.iterdir()) == [path]
    assert (await import_entries(other, path)).written == 6


async def test_only_the_owner_may_read_the_file(filled, tmp_path):
    for name in ("plain.jsonl", "packed.jsonl.gz"):
        await export_entries(filled, tmp_path / name)
        assert stat.S_IMODE((tmp_path / name).stat().st_mode) == 0o600


async def test_an_alias_goes_with_its_origin(filled, other, path, other_redis):
    await export_entries(filled, path)
    await import_entries(other, path)
    alias = await other.lookup_exact(REPHRASED)
    own_key = (await other.explain(REPHRASED)).key

    refs = await other_redis.smembers(alias.origin.replace(":x:", ":refs:"))
    assert own_key.encode() in refs


async def test_one_tenant_leaves_without_the_others(filled, other, path, upstream):
    exported = await export_entries(filled, path, tenant="acme")
    await import_entries(other, path)

    assert (exported.answers, exported.aliases, exported.semantic) == (1, 0, 1)
    assert inspect_export(path).tenant == "acme"
    assert await other.lookup_exact(FRANCE) is None
    assert await other.lookup_exact(FRANCE, tenant="acme", system="Be brief.") is not None


async def test_those_of_no_tenant_leave_without_the_tenants(filled, path):
    assert (await export_entries(filled, path, tenant=None)).answers == 4
    assert "acme" not in path.read_text()


async def test_an_empty_namespace_is_a_whole_file(cache, other, path):
    await export_entries(cache, path)

    assert [line["kind"] for line in lines(path)] == ["header", "end"]
    assert (await import_entries(other, path)).written == 0


async def test_answers_of_any_kind_travel(cache, other, path):
    value = {"text": "naïve\u2028 \x00 🙂", "n": 2**70, "f": 0.1 + 0.2, "deep": [[[None, True]]]}
    await cache.get_or_create({"q": 1}, _give(value))
    await export_entries(cache, path)
    await import_entries(other, path)

    assert (await other.get_or_create({"q": 1}, _give(None))).value == value


def _give(value) -> Callable[[], Awaitable[Any]]:
    async def produce():
        return value

    return produce


# ------------------------------------------------------------------ what is alive


async def test_what_was_invalidated_is_not_exported(filled, path):
    await filled._epochs.purge([target(Kind.TAG, "geo")])

    exported = await export_entries(filled, path)

    assert (exported.answers, exported.aliases) == (1, 0)


async def test_what_is_invalidated_during_the_export_is_not_in_the_file(filled, path):
    purging: list[asyncio.Task[str]] = []

    def purge(_: int) -> None:
        purging.append(asyncio.ensure_future(filled._epochs.purge([target(Kind.TAG, "geo")])))

    exported = await export_entries(filled, path, on_progress=purge)

    assert exported.answers == 1
    assert FRANCE not in {s["fields"]["prompt"] for s in _semantic(path) if "acme" not in str(s)}
    assert inspect_export(path).lines == 1
    await asyncio.gather(*purging)


def _semantic(path) -> list[dict[str, Any]]:
    return [
        part
        for line in lines(path)
        if line["kind"] == "answer" and "tenant" not in line["entry"]
        for part in line["semantic"]
    ]


async def test_the_same_redis_does_not_get_back_what_was_invalidated_since(filled, path, redis):
    await export_entries(filled, path)
    await filled._epochs.purge([target(Kind.TAG, "geo")])
    imported = await import_entries(filled, path)

    assert (imported.invalidated, imported.present) == (5, 1)
    assert await filled.lookup_exact(FRANCE) is None


async def test_the_same_redis_gets_it_back_when_asked_to(filled, path):
    await export_entries(filled, path)
    await filled._epochs.purge([target(Kind.TAG, "geo")])
    imported = await import_entries(filled, path, revive=True)

    assert imported.written == 5
    assert await filled.lookup_exact(FRANCE) is not None


async def test_invalidation_at_the_destination_reaches_what_was_imported(filled, other, path):
    await export_entries(filled, path)
    await import_entries(other, path)
    await other._epochs.purge([target(Kind.TAG, "geo")])

    assert await other.lookup_exact(FRANCE) is None
    assert await other.lookup_semantic(REPHRASED) is None


async def test_invalidation_during_the_import_reaches_what_comes_after_it(
    filled, other, path, monkeypatch
):
    await export_entries(filled, path)
    monkeypatch.setattr(transfer, "_WRITE_TOGETHER", 1)
    purging: list[asyncio.Task[str]] = []

    def purge(count: int) -> None:
        if count == 1:
            purging.append(asyncio.ensure_future(other._epochs.purge([target(Kind.ALL)])))

    await import_entries(other, path, on_progress=purge)
    await asyncio.gather(*purging)

    for prompt in (FRANCE, *OTHERS[:3]):
        assert await other.lookup_exact(prompt) is None


async def test_what_has_expired_stays_away(filled, make_cache, other_url, path):
    await export_entries(filled, path)
    later = make_cache(other_url, clock=lambda: filled._clock() + 3600)

    imported = await import_entries(later, path)

    assert (imported.expired, imported.written) == (1, 5)


async def test_bytes_that_are_no_entry_are_left_out_and_counted(filled, path, redis):
    key = (await filled.lookup_exact(FRANCE)).key
    await redis.set(key, b"garbage of some length", px=60_000)

    await redis.set(filled._keys.answer("nobody's"), b"not ours", px=60_000)
    await redis.set(filled._keys.answer("0" * 32), b"not ours either" * 9, px=60_000)

    exported = await export_entries(filled, path)

    assert (exported.unreadable, exported.answers) == (3, 4)


# ------------------------------------------------------------------ once


async def test_a_second_import_writes_nothing(filled, other, path, there):
    await export_entries(filled, path)
    await import_entries(other, path)
    before = await there()
    imported = await import_entries(other, path)

    assert (imported.written, imported.present) == (0, 6)
    assert await there() == before


async def test_newer_answers_stay_unless_asked(filled, other, path):
    await export_entries(filled, path)
    await other.store_exact(FRANCE, "newer")

    assert (await import_entries(other, path)).present == 1
    assert (await other.lookup_exact(FRANCE)).text == "newer"
    await import_entries(other, path, replace_newer=True)
    assert (await other.lookup_exact(FRANCE)).text != "newer"


async def test_older_answers_are_replaced(filled, make_cache, other_url, path):
    old = make_cache(other_url, clock=lambda: filled._clock() - 3600)
    await old.store_exact(FRANCE, "older")
    await export_entries(filled, path)

    assert (await import_entries(old, path)).written == 6
    assert (await old.lookup_exact(FRANCE)).text != "older"


async def test_an_alias_does_not_replace_an_answer_of_ones_own(
    filled, make_cache, other_url, path
):
    old = make_cache(other_url, clock=lambda: filled._clock() - 3600)
    await old.store_exact(REPHRASED, "its own")
    await export_entries(filled, path)
    await import_entries(old, path)

    assert (await old.lookup_exact(REPHRASED)).text == "its own"


async def test_an_answer_stored_while_it_was_being_replaced_stays(
    filled, other, path, monkeypatch
):
    await export_entries(filled, path)

    class Slow(BulkEntries):
        async def write(self, answers, *, note):
            await other.store_exact(FRANCE, "stored meanwhile")
            return await super().write(answers, note=note)

    monkeypatch.setattr(transfer, "BulkEntries", Slow)
    imported = await import_entries(other, path)

    assert (imported.written, imported.present) == (5, 1)
    assert (await other.lookup_exact(FRANCE)).text == "stored meanwhile"


async def test_an_interrupted_import_goes_on_where_it_was(filled, other, path, monkeypatch):
    await export_entries(filled, path)
    monkeypatch.setattr(transfer, "_WRITE_TOGETHER", 2)

    def stop(count: int) -> None:
        if count == 4:
            raise KeyError("the plug is pulled")

    with pytest.raises(KeyError):
        await import_entries(other, path, on_progress=stop)
    seen: list[int] = []
    imported = await import_entries(other, path, on_progress=seen.append)

    assert seen == [6]
    assert (imported.written, imported.present, imported.resumed_after) == (6, 0, 4)


async def test_what_was_written_before_a_kill_and_not_noted_counts_as_written(
    filled, other, path, monkeypatch
):
    class Dying(BulkEntries):
        async def write(self, answers, *, note):
            await super().write(list(answers)[:4], note=("t.nowhere", b"", 1))
            raise KeyError("the plug is pulled")

    await export_entries(filled, path)
    monkeypatch.setattr(transfer, "BulkEntries", Dying)
    with pytest.raises(KeyError):
        await import_entries(other, path)
    monkeypatch.undo()
    imported = await import_entries(other, path)

    assert (imported.written, imported.present, imported.semantic) == (6, 0, 5)


async def test_an_import_that_redis_has_forgotten_begins_anew(
    filled, other, path, monkeypatch, other_redis
):
    await export_entries(filled, path)
    monkeypatch.setattr(transfer, "_WRITE_TOGETHER", 2)

    def stop(_: int) -> None:
        raise KeyError

    with pytest.raises(KeyError):
        await import_entries(other, path, on_progress=stop)
    await other_redis.delete(other._keys.purges, other._keys.epoch)
    imported = await import_entries(other, path)

    assert (imported.written, imported.resumed_after) == (6, 0)
    assert await other.lookup_exact(OTHERS[0]) is not None


async def test_an_import_leaves_nothing_but_answers_behind(
    filled, other, path, other_redis, namespace
):
    await export_entries(filled, path)
    await import_entries(other, path)

    assert not [key async for key in other_redis.scan_iter(f"{namespace}:import:*")]
    async for key in other_redis.scan_iter(f"{namespace}:[xsr]*"):
        assert await other_redis.pttl(key) > 0, key


# ------------------------------------------------------------------ vectors


async def test_without_vectors_they_are_made_anew(filled, other, path, embedder):
    await export_entries(filled, path, vectors=False)
    with pytest.raises(ConfigurationError, match="embed"):
        await import_entries(other, path)
    imported = await import_entries(other, path, vectors="embed")

    assert (imported.written, imported.semantic, imported.embedded) == (6, 5, 5)
    here, there = await filled.lookup_semantic(REPHRASED), await other.lookup_semantic(REPHRASED)
    assert (here.key, here.similarity) == (there.key, there.similarity)


async def test_vectors_of_another_embedder_are_refused_before_anything_is_written(
    filled, make_cache, other_url, path, there
):
    await export_entries(filled, path)
    cache = make_cache(other_url, embedder=FakeEmbedder(dimensions=16, model_id="another"))

    with pytest.raises(ConfigurationError, match="5 semantic entries"):
        await import_entries(cache, path)
    assert await there() == {}
    imported = await import_entries(cache, path, vectors="embed")
    assert (imported.written, imported.embedded) == (6, 5)
    assert (await cache.lookup_semantic(FRANCE)).similarity > 0.99


async def test_exact_answers_may_go_alone(filled, other, path):
    await export_entries(filled, path)
    imported = await import_entries(other, path, vectors="none")

    assert (imported.written, imported.semantic) == (6, 0)
    assert await other.lookup_semantic(FRANCE) is None
    assert await other.lookup_exact(FRANCE) is not None


async def test_a_cache_without_the_semantic_layer_passes_the_entries_on(
    filled, make_cache, other, other_url, path
):
    plain = make_cache(other_url, semantic=False)
    await export_entries(make_cache(semantic=False), path)
    assert (await import_entries(plain, path)).semantic == 5

    assert (await other.lookup_semantic(REPHRASED)).similarity > 0.98


async def test_prompts_that_were_not_kept_have_no_place_without_vectors(make_cache, other, path):
    cache = make_cache(store_prompts=False, guards=False)
    await cache.chat(FRANCE)
    await export_entries(cache, path, vectors=False)
    imported = await import_entries(other, path, vectors="embed")

    assert (imported.written, imported.semantic, imported.unplaced) == (1, 0, 1)
    assert FRANCE not in path.read_text()


# ------------------------------------------------------------------ damage


def _changed(rows: list[bytes]) -> list[bytes]:
    return [*rows[:2], rows[2].replace(b'"model":"g', b'"model":"h'), *rows[3:]]


Damage = Callable[[list[bytes]], list[bytes]]
DAMAGES: dict[str, tuple[Damage, int]] = {
    "a letter changed": (
        lambda rows: [*rows[:2], rows[2].replace(b'"model":"g', b'"model":"h'), *rows[3:]],
        3,
    ),
    "a line missing": (lambda rows: [*rows[:2], *rows[3:]], 3),
    "two lines exchanged": (lambda rows: [rows[0], rows[2], rows[1], *rows[3:]], 2),
    "a line doubled": (lambda rows: [*rows[:2], rows[1], *rows[2:]], 3),
    "the end missing": (lambda rows: rows[:-1], 7),
    "cut within a line": (lambda rows: [*rows[:3], rows[3][:40]], 4),
    "more after the end": (lambda rows: [*rows, rows[-1]], 9),
    "not JSON": (lambda rows: [*rows[:4], b"{}}\n"], 5),
    "not ours": (lambda rows: [b'{"a": 1}\n'], 1),
    "a binary file": (lambda rows: [b"\x89PNG\x00\x01"], 1),
}


@pytest.mark.parametrize("damage", DAMAGES)
async def test_a_damaged_file_is_named_with_its_line_and_nothing_is_written(
    filled, other, path, there, damage
):
    await export_entries(filled, path)
    change, line = DAMAGES[damage]
    rows = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(change(rows)))

    with pytest.raises(InvalidFile, match=f"line {line}:"):
        await import_entries(other, path)
    assert await there() == {}


async def test_an_empty_and_a_missing_file_are_errors(other, path):
    with pytest.raises(InvalidFile, match="No such file"):
        await import_entries(other, path)
    path.touch()
    with pytest.raises(InvalidFile, match="empty"):
        await import_entries(other, path)


async def test_a_damaged_packed_file_is_an_error(filled, other, tmp_path):
    path = tmp_path / "answers.jsonl.gz"
    await export_entries(filled, path)
    whole = path.read_bytes()

    for damaged in (whole[:-20], whole[:60] + b"\x00\x01" + whole[62:], b"plain text"):
        path.write_bytes(damaged)
        with pytest.raises(InvalidFile, match="line"):
            await import_entries(other, path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"entry": {"model": "m"}}, "without answer, created_s, stamp"),
        ({"digest": "../etc/passwd"}, "digest"),
        ({"digest": 3}, "digest"),
        ({"expires_ms": -1}, "expires_ms"),
        ({"expires_ms": 10**18}, "expires_ms"),
        ({"expires_ms": True}, "expires_ms"),
        ({"semantic": [{"space": "}:{", "fields": {}, "binary": {}}]}, "space"),
        ({"semantic": [{"space": "a" * 16, "fields": {}, "binary": {}}]}, "scope"),
        ({"semantic": [{"space": "a" * 16, "fields": {"scope": 1}, "binary": {}}]}, "Attribute"),
    ],
    ids=str,
)
async def test_a_line_that_no_release_wrote_is_refused(filled, other, path, change, message):
    from llm_cache._exports import seal

    await export_entries(filled, path)
    check, sealed = "", []
    for number, row in enumerate(lines(path)):
        del row["check"]
        line, check = seal({**row, **change} if number == 2 else row, check)
        sealed.append(line)
    path.write_bytes(b"".join(sealed))

    with pytest.raises(InvalidFile, match=f"line 3: .*{message}"):
        await import_entries(other, path)


async def test_fields_of_a_later_release_are_refused(filled, other, path):
    from llm_cache._exports import seal

    await export_entries(filled, path)
    check, sealed = "", []
    for number, row in enumerate(lines(path)):
        del row["check"]
        if number == 2:
            row["entry"]["colour"] = "green"
        line, check = seal(row, check)
        sealed.append(line)
    path.write_bytes(b"".join(sealed))

    with pytest.raises(InvalidFile, match=r"line 3: .*later release: colour"):
        await import_entries(other, path)


# ------------------------------------------------------------------ writing the file


async def test_a_file_that_is_there_stays_unless_asked(filled, path):
    path.write_text("precious")
    with pytest.raises(InvalidRequest, match="is there"):
        await export_entries(filled, path)
    assert path.read_text() == "precious"

    await export_entries(filled, path, overwrite=True)
    assert inspect_export(path).answers == 5


@pytest.mark.parametrize("name", ["missing/a.jsonl", "a.zst", "a.zip"])
async def test_a_name_that_cannot_be_is_refused(filled, tmp_path, name):
    with pytest.raises(InvalidRequest):
        await export_entries(filled, tmp_path / name)
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def small_steps(monkeypatch):
    """Let an export write, and note where it is, after every few keys."""
    monkeypatch.setattr(transfer, "_STEP_KEYS", 1)
    monkeypatch.setattr(transfer, "_FLUSH_BYTES", 1)


async def stopped(cache, path, *, after: int) -> None:
    def stop(count: int) -> None:
        if count >= after:
            raise KeyError("the plug is pulled")

    with pytest.raises(KeyError):
        await export_entries(cache, path, on_progress=stop)


async def test_an_interrupted_export_goes_on_where_it_was(filled, other, path, small_steps):
    await stopped(filled, path, after=4)
    part = path.with_name("answers.jsonl.part")
    begun = part.read_bytes()
    assert not path.exists()

    exported = await export_entries(filled, path, resume=True)

    assert exported.resumed
    assert not part.exists()
    assert path.read_bytes().startswith(begun)
    assert begun.count(b'"kind":"answer"') > 0
    assert (await import_entries(other, path)).written == 6


async def test_what_was_written_in_half_is_cut_away(filled, other, path, small_steps):
    await stopped(filled, path, after=4)
    with path.with_name("answers.jsonl.part").open("ab") as part:
        part.write(b'{"kind":"answer","digest":"abc')

    await export_entries(filled, path, resume=True)
    assert (await import_entries(other, path)).written == 6


async def test_what_was_invalidated_before_the_export_went_on_is_not_in_the_file(
    filled, path, small_steps
):
    await stopped(filled, path, after=4)
    await filled._epochs.purge([target(Kind.TAG, "geo")])

    assert (await export_entries(filled, path, resume=True)).answers == 1
    assert inspect_export(path).lines == 1


async def test_an_unfinished_export_is_neither_lost_nor_mistaken(filled, other, path, small_steps):
    await stopped(filled, path, after=4)
    part = path.with_name("answers.jsonl.part")

    with pytest.raises(InvalidRequest, match="unfinished"):
        await export_entries(filled, path)
    with pytest.raises(InvalidRequest, match="begun otherwise \\(tenant"):
        await export_entries(filled, path, resume=True, tenant="acme")
    with pytest.raises(InvalidFile, match="unfinished export"):
        await import_entries(other, part)
    assert part.exists()
    assert (await export_entries(filled, path, overwrite=True)).answers == 5
    assert not part.exists()


@pytest.mark.parametrize("resume", [False, True])
async def test_an_export_that_was_stopped_before_its_first_line_begins_anew(filled, path, resume):
    path.with_name("answers.jsonl.part").touch()

    exported = await export_entries(filled, path, resume=resume)
    assert (exported.answers, exported.resumed) == (5, False)


async def test_there_must_be_something_to_resume(filled, path):
    with pytest.raises(InvalidRequest, match="to resume"):
        await export_entries(filled, path, resume=True)
    path.with_name("answers.jsonl.part").write_text("somebody's notes\n")
    with pytest.raises(InvalidFile, match="no export of llm-cache"):
        await export_entries(filled, path, resume=True)


@pytest.fixture
def full_disk():
    """Let no file of this process grow over so many bytes, as a full disk would."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)

    def limit(size_bytes: int) -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (size_bytes, before[1]))

    yield limit
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.usefixtures("small_steps")
@pytest.mark.parametrize("name", ["answers.jsonl", "answers.jsonl.gz"])
async def test_a_full_disk_costs_neither_the_old_file_nor_what_was_written(
    filled, other, path, full_disk, name
):
    path = path.with_name(name)
    path.write_text("the old one")
    full_disk(3_000)
    with pytest.raises(FileUnwritable, match="--resume"):
        await export_entries(filled, path, overwrite=True)

    assert path.read_text() == "the old one"
    assert path.with_name(f"{name}.part").stat().st_size > 0
    full_disk(resource.getrlimit(resource.RLIMIT_FSIZE)[1])
    exported = await export_entries(filled, path, resume=True, overwrite=True)
    assert (exported.answers, exported.resumed) == (5, True)
    assert (await import_entries(other, path)).written == 6


async def test_an_outage_leaves_a_file_that_can_be_resumed(filled, path, small_steps, redis_url):
    def fail(count: int) -> None:
        if count == 2:
            raise StoreUnavailable("gone")

    with pytest.raises(StoreUnavailable):
        await export_entries(filled, path, on_progress=fail)
    assert (await export_entries(filled, path, resume=True)).answers == 5
