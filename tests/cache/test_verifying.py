"""In the grey band a verifier decides, and only a clear yes serves anybody."""

import asyncio
from typing import Any

import pytest

from llm_cache.errors import ConfigurationError
from llm_cache.events import CandidateVerified

QUESTION = "What is the capital of France?"
REPHRASED = "Tell me the capital city of France."
TRAP = "What is the capital of Spain?"


class Says:
    """A verifier that says what it is told to, once its gate is open."""

    def __init__(self, verdict: Any = True) -> None:
        self.verdict = verdict
        self.gate = asyncio.Event()
        self.gate.set()
        self.reached = asyncio.Event()
        self.asked: list[tuple[str, str, str]] = []

    async def verify(self, new: str, cached: str, answer: str) -> Any:
        self.asked.append((new, cached, answer))
        self.reached.set()
        await self.gate.wait()
        if isinstance(self.verdict, Exception):
            raise self.verdict
        return self.verdict


@pytest.fixture
def make_verified(make_cache, embedder):
    embedder.similar(QUESTION, REPHRASED, 0.85)
    return lambda says, **config: make_cache(verifier=says, **{"verify_from": 0.8, **config})


async def looked_again(cache) -> None:
    """Wait for what the cache does in the background."""
    await asyncio.gather(*cache._engine._background.tasks)


async def test_what_the_verifier_lets_pass_is_served(make_verified, upstream):
    says = Says(True)
    cache = make_verified(says)
    first = await cache.chat(QUESTION)
    reply = await cache.chat(REPHRASED)

    assert (reply.status, reply.text, reply.key) == ("semantic", first.text, first.key)
    assert says.asked == [(REPHRASED, QUESTION, first.text)]
    assert (await cache.chat(REPHRASED)).status == "exact"
    assert (upstream.calls, len(says.asked)) == (1, 1)
    assert cache.stats()["verified"] == {"yes": 1}


@pytest.mark.parametrize(
    ("verdict", "said"),
    [
        (False, "no"),
        (None, "nonsense"),
        ("yes", "nonsense"),
        (1, "nonsense"),
        (OSError(), "failed"),
    ],
)
async def test_anything_but_yes_is_a_miss(make_verified, events, verdict, said):
    cache = make_verified(Says(verdict))
    await cache.chat(QUESTION)

    assert (await cache.chat(REPHRASED)).status == "miss"
    assert events.of(CandidateVerified) == [CandidateVerified(said, "gpt-4o-mini")]
    assert (await cache.server_stats())["verified"] == {said: 1}


async def test_a_verifier_that_hangs_is_a_miss(make_verified):
    says = Says(True)
    says.gate.clear()
    cache = make_verified(says, verify_timeout_s=0.05)
    await cache.chat(QUESTION)

    assert (await cache.chat(REPHRASED)).status == "miss"
    assert cache.stats()["verified"] == {"timeout": 1}


@pytest.mark.parametrize(("similarity", "status"), [(0.79, "miss"), (0.91, "semantic")])
async def test_outside_the_band_nobody_is_asked(make_verified, embedder, similarity, status):
    embedder.similar(QUESTION, REPHRASED, similarity)
    says = Says(similarity < 0.9)
    cache = make_verified(says)
    await cache.chat(QUESTION)

    assert (await cache.chat(REPHRASED)).status == status
    assert says.asked == []


async def test_a_guard_is_not_overruled(make_verified, embedder):
    embedder.similar(QUESTION, TRAP, 0.85)
    says = Says(True)
    cache = make_verified(says)
    await cache.chat(QUESTION)

    assert (await cache.chat(TRAP)).status == "miss"
    assert says.asked == []


async def test_streams_are_verified_too(make_verified):
    cache = make_verified(Says(True))
    first = await cache.chat(QUESTION)
    stream = await cache.chat(REPHRASED, stream=True)

    assert "".join([piece async for piece in stream]) == first.text
    assert stream.status == "semantic"


async def test_what_was_invalidated_meanwhile_is_not_served(make_verified):
    says = Says(True)
    says.gate.clear()
    cache = make_verified(says)
    first = await cache.chat(QUESTION)
    asking = asyncio.create_task(cache.chat(REPHRASED))
    await says.reached.wait()
    await cache.invalidate(key=first.key)
    says.gate.set()

    assert (await asking).status == "miss"


async def test_explain_says_what_would_be_verified(make_verified):
    cache = make_verified(Says(True))
    await cache.chat(QUESTION)
    told = await cache.explain(REPHRASED)

    assert told.status == "miss"
    assert [n.verdict for n in told.neighbours] == ["to be verified: similarity below 0.9"]
    assert told.policy == (
        "uncertified: similarity at least 0.9, 0.8 where the verifier agrees, guards"
    )


# -- in the background


async def test_in_the_background_the_pair_is_promoted_for_the_next_time(make_verified, upstream):
    says = Says(True)
    says.gate.clear()
    cache = make_verified(says, verify_in_background=True)
    first = await cache.chat(QUESTION)
    now = await cache.chat(REPHRASED)
    says.gate.set()
    await looked_again(cache)
    later = await cache.chat(REPHRASED)

    assert (now.status, upstream.calls) == ("miss", 2)
    assert (later.status, later.origin, later.text) == ("exact", first.key, first.text)
    assert later.similarity == pytest.approx(0.85, abs=0.001)


async def test_in_the_background_the_promoted_one_has_no_entry_of_its_own(make_verified):
    cache = make_verified(Says(True), verify_in_background=True)
    await cache.chat(QUESTION)
    await cache.chat(REPHRASED)
    await looked_again(cache)

    assert [n.prompt for n in (await cache.explain(REPHRASED)).neighbours] == [QUESTION]


async def test_in_the_background_a_no_leaves_the_fresh_answer(make_verified):
    cache = make_verified(Says(False), verify_in_background=True)
    await cache.chat(QUESTION)
    now = await cache.chat(REPHRASED)
    await looked_again(cache)
    later = await cache.chat(REPHRASED)

    assert (later.status, later.origin, later.text) == ("exact", None, now.text)


async def test_closing_ends_what_is_being_verified(make_verified):
    says = Says(True)
    says.gate.clear()
    cache = make_verified(says, verify_in_background=True, verify_timeout_s=0.2)
    await cache.chat(QUESTION)
    await cache.chat(REPHRASED)
    await says.reached.wait()
    await cache.aclose()

    assert not cache._engine._background.tasks


async def test_a_verifier_that_hangs_does_not_pile_up_tasks(make_verified, embedder, monkeypatch):
    monkeypatch.setattr("llm_cache._steps.MOST_IN_BACKGROUND", 1)
    other = "Name France's capital, please."
    embedder.similar(QUESTION, other, 0.85)
    says = Says(True)
    says.gate.clear()
    cache = make_verified(says, verify_in_background=True)
    for prompt in (QUESTION, REPHRASED, other):
        await cache.chat(prompt)
    says.gate.set()
    await looked_again(cache)

    assert len(says.asked) == 1


# -- settings


@pytest.mark.parametrize(
    ("settings", "names"),
    [
        ({"verify_from": 0.8}, "verifier="),
        ({"verify_from": 0.9, "verifier": Says}, "verify_from=0.9"),
        ({"verify_from": 0.8, "verifier": "gpt-4o-mini"}, "async verify"),
        ({"verify_from": 1.2}, "verify_from"),
        ({"verify_from": 0.8, "store_prompts": False, "guards": False}, "store_prompts"),
        ({"verify_timeout_s": 0}, "verify_timeout_s"),
    ],
)
async def test_settings_that_cannot_work_are_refused(make_cache, settings, names):
    verifier = settings.pop("verifier", None)
    given = {"verifier": verifier() if verifier is Says else verifier} if verifier else {}
    with pytest.raises(ConfigurationError, match=names):
        make_cache(**given, **settings)
