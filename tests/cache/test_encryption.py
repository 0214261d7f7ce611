"""Encryption at rest: nothing that users wrote or were told can be read in Redis."""

import os
from base64 import b64encode, urlsafe_b64encode
from dataclasses import replace

import pytest

from llm_cache import CacheConfig
from llm_cache.errors import ConfigurationError, CorruptEntry
from llm_cache.events import DependencyFailed
from llm_cache.inspection import inspect_stored
from llm_cache.transfer import export_entries, import_entries

KEY, NEWER = os.urandom(32), os.urandom(32)
QUESTION = "Where do penguins live?"
REPHRASED = "In which places do penguins live?"


@pytest.fixture
def encrypted(make_cache):
    return make_cache(encryption_keys=[KEY])


async def everything(redis, namespace: str) -> bytes:
    """Return all that Redis holds of a namespace, vectors apart."""
    found = b""
    async for name in redis.scan_iter(f"{namespace}:*"):
        kind = await redis.type(name)
        if kind == b"hash":
            found += b"".join(v for n, v in (await redis.hgetall(name)).items() if n != b"vector")
        elif kind == b"stream":
            found += repr(await redis.xrange(name)).encode()
        elif kind == b"string":
            found += await redis.get(name)
    return found


async def test_every_layer_hits_and_nothing_is_in_clear(
    encrypted, embedder, upstream, redis, namespace
):
    embedder.similar(QUESTION, REPHRASED, 0.99)
    upstream.answer("The Antarctic coast.")
    await encrypted.chat(QUESTION)

    assert tuple(await encrypted.chat(QUESTION)) == ("The Antarctic coast.", "exact")
    assert tuple(await encrypted.chat(REPHRASED)) == ("The Antarctic coast.", "semantic")
    assert tuple(await encrypted.chat(REPHRASED)) == ("The Antarctic coast.", "exact")
    stored = await everything(redis, namespace)
    assert not [word for word in (b"penguin", b"Antarctic") if word in stored]


async def test_what_is_kept_for_review_is_encrypted(
    make_cache, embedder, upstream, redis, namespace
):
    cache = make_cache(encryption_keys=[KEY], review_sample_rate=1, keep_embeddings_s=60)
    embedder.similar(QUESTION, REPHRASED, 0.99)
    await cache.chat(QUESTION)
    await cache.chat(REPHRASED)
    await cache._review.flush()

    (item,) = await cache._review.read()
    assert (item.new, item.cached) == (REPHRASED, QUESTION)
    assert b"penguin" not in await everything(redis, namespace)


async def test_kept_embeddings_are_read_again(make_cache, embedder):
    settings = {"encryption_keys": [KEY], "keep_embeddings_s": 60}
    await make_cache(**settings).chat(QUESTION)
    calls = embedder.calls
    await make_cache(**settings).chat(QUESTION, model="another")
    assert embedder.calls == calls


async def test_keys_rotate_without_losing_an_answer(make_cache, upstream):
    await make_cache(encryption_keys=[KEY]).chat(QUESTION)
    rotating = make_cache(encryption_keys=[NEWER, KEY])
    assert (await rotating.chat(QUESTION)).status == "exact"

    await rotating.chat("Another question")
    rotated = make_cache(encryption_keys=[NEWER])
    assert (await rotated.chat("Another question")).status == "exact"
    assert (await rotated.chat(QUESTION)).status == "miss"


@pytest.mark.parametrize(("first", "second"), [(None, [KEY]), ([KEY], None), ([KEY], [NEWER])])
async def test_workers_with_other_keys_miss_and_tell_no_failure(
    make_cache, embedder, events, first, second
):
    embedder.similar(QUESTION, REPHRASED, 0.99)
    await make_cache(encryption_keys=first).chat(QUESTION)
    other = make_cache(encryption_keys=second)

    assert await other.lookup_semantic(REPHRASED) is None
    assert await other.lookup_exact(QUESTION) is None
    assert (await other.chat(QUESTION)).status == "miss"
    assert (await other.chat(QUESTION)).status == "exact"
    assert events.of(DependencyFailed) == []


async def test_ciphertexts_that_change_places_are_misses_and_told(
    encrypted, redis, upstream, events
):
    one, two = [await encrypted.chat(text) for text in ("first", "second")]
    values = [await redis.get(reply.key) for reply in (one, two)]
    await redis.set(one.key, values[1])
    await redis.set(two.key, values[0])

    for text in ("first", "second"):
        reply = await encrypted.chat(text, cache_control="no-store")
        assert reply.status == "bypass"
        assert (await encrypted.lookup_semantic(text)) is None
    assert (await encrypted.chat("first")).reason == "corrupt"
    assert events.of(DependencyFailed)


async def test_prompt_of_another_entry_is_no_candidate_and_told(
    encrypted, embedder, redis, namespace, events
):
    embedder.similar(QUESTION, REPHRASED, 0.99)
    await encrypted.chat(QUESTION)
    await encrypted.chat("Another question")
    names = [name async for name in redis.scan_iter(f"{namespace}:s:*")]
    prompts = [await redis.hget(name, "prompt") for name in names]
    for name, prompt in zip(names, reversed(prompts), strict=True):
        await redis.hset(name, "prompt", prompt)

    assert (await encrypted.chat(REPHRASED)).status == "miss"
    assert {type(failed.error) for failed in events.of(DependencyFailed)} == {CorruptEntry}


async def test_invalidation_by_pattern_reaches_encrypted_prompts(encrypted):
    await encrypted.chat(QUESTION)
    assert (await encrypted.invalidate(pattern="*penguins*")).reached == 1
    assert (await encrypted.chat(QUESTION)).status == "miss"


async def test_inspection_shows_what_is_stored_to_those_who_have_the_key(encrypted, make_cache):
    reply = await encrypted.chat(QUESTION)
    seen = await inspect_stored(encrypted, reply.key)
    assert seen is not None
    assert (seen.status, [part.prompt for part in seen.semantic]) == ("alive", [QUESTION])
    stranger = await inspect_stored(make_cache(encryption_keys=[NEWER]), reply.key)
    assert stranger is not None
    assert (stranger.status, stranger.semantic, stranger.answer) == ("foreign", (), None)


async def test_export_and_import_encrypt_what_is_there_in_place(
    make_cache, encrypted, embedder, tmp_path
):
    embedder.similar(QUESTION, REPHRASED, 0.99)
    plain = make_cache()
    await plain.chat(QUESTION)
    await export_entries(plain, tmp_path / "file")
    assert (await import_entries(encrypted, tmp_path / "file", replace_newer=True)).written == 1

    assert (await encrypted.chat(QUESTION)).status == "exact"
    assert (await encrypted.chat(REPHRASED)).status == "semantic"
    assert await plain.lookup_exact(QUESTION) is None


async def test_export_holds_what_was_encrypted_in_clear(encrypted, make_cache, tmp_path):
    await encrypted.chat(QUESTION)
    await export_entries(encrypted, tmp_path / "file")
    assert QUESTION in (tmp_path / "file").read_text()
    plain = make_cache()
    imported = await import_entries(plain, tmp_path / "file", replace_newer=True)
    assert (imported.written, imported.semantic) == (1, 1)
    assert (await plain.chat(QUESTION)).status == "exact"
    assert (await plain.lookup_semantic(QUESTION)).similarity > 0.99


# ------------------------------------------------------------------ settings


@pytest.mark.parametrize(
    "key", [KEY, b64encode(KEY).decode(), urlsafe_b64encode(KEY).decode() + "\n"]
)
def test_key_may_be_given_as_bytes_or_as_base64(key):
    config = CacheConfig(encryption_keys=[key])
    assert config.encryption_keys == (KEY,)
    assert replace(config, ttl_s=1).encryption_keys == (KEY,)
    assert hash(config) == hash(replace(config))


@pytest.mark.parametrize(
    "keys",
    [[], "x" * 44, KEY, [KEY[:31]], [KEY + b"x"], ["no base64!"], [None], [KEY, KEY], [KEY, ""]],
    ids=repr,
)
def test_keys_that_are_none_are_refused_without_being_shown(keys):
    with pytest.raises(ConfigurationError, match="encryption_keys") as failed:
        CacheConfig(encryption_keys=keys)
    told = repr(failed.value)
    assert repr(KEY)[2:20] not in told
    assert "no base64" not in told


def test_keys_are_not_in_the_repr_of_settings_or_cache(make_cache):
    cache = make_cache(encryption_keys=[KEY])
    shown = repr(cache.config) + repr(cache) + repr(vars(cache))
    assert repr(KEY)[2:-1] not in shown


async def test_sweep_removes_what_was_invalidated_though_it_cannot_read_it(
    encrypted, redis, namespace
):
    await encrypted.chat(QUESTION, tags=["old"])
    await encrypted.chat("Another question", tags=["new"])
    await encrypted.invalidate(tag="old")
    await encrypted._sweeper.settle()
    assert len([name async for name in redis.scan_iter(f"{namespace}:x:*")]) == 1
    assert len([name async for name in redis.scan_iter(f"{namespace}:s:*")]) == 1


async def test_stream_is_replayed_from_what_is_encrypted(encrypted, upstream):
    upstream.answer("The Antarctic coast.")
    for status in ("miss", "exact"):
        stream = await encrypted.chat(QUESTION, stream=True)
        assert "".join([piece async for piece in stream]) == "The Antarctic coast."
        assert stream.status == status
