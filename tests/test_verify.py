"""Verifiers, and how asking one fails closed."""

import asyncio
from typing import Any

import pytest

from llm_cache.errors import ConfigurationError
from llm_cache.testing import ScriptedUpstream
from llm_cache.verify import (
    CrossEncoderVerifier,
    LLMVerifier,
    Verifier,
    is_verified,
    same_text,
)


class Saying:
    def __init__(self, said: Any) -> None:
        self.said = said

    async def verify(self, new: str, cached: str, answer: str) -> Any:
        if isinstance(self.said, BaseException):
            raise self.said
        return self.said


async def asked(verifier: Verifier, timeout_s: float = 5.0) -> tuple[bool, str]:
    said = await is_verified(verifier, "new?", "old?", "answer", timeout_s=timeout_s)
    return said.is_right, said.reason


@pytest.mark.parametrize(
    ("said", "outcome"),
    [
        (True, (True, "yes")),
        (False, (False, "no")),
        ("yes", (False, "nonsense")),
        (1, (False, "nonsense")),
        (None, (False, "nonsense")),
        (RuntimeError("secret"), (False, "failed: RuntimeError")),
    ],
)
async def test_only_true_is_yes(said, outcome):
    assert await asked(Saying(said)) == outcome


async def test_a_verifier_that_hangs_has_not_agreed():
    class Hanging:
        async def verify(self, new: str, cached: str, answer: str) -> bool:
            await asyncio.Event().wait()
            return True

    assert await asked(Hanging(), timeout_s=0.01) == (False, "timeout")


async def test_a_cancelled_caller_stays_cancelled():
    with pytest.raises(asyncio.CancelledError):
        await asked(Saying(asyncio.CancelledError()))


@pytest.mark.parametrize(
    ("reply", "outcome"),
    [
        ("yes", (True, "yes")),
        ("Yes.", (True, "yes")),
        ("no", (False, "no")),
        ("yes, but the year differs", (False, "failed: ValueError")),
        ("certainly", (False, "failed: ValueError")),
    ],
)
async def test_the_llm_verifier_takes_one_word(upstream: ScriptedUpstream, reply, outcome):
    upstream.answer(reply)
    assert await asked(LLMVerifier(upstream.client())) == outcome


async def test_the_llm_verifier_sends_texts_as_data(upstream: ScriptedUpstream):
    upstream.answer("no")
    await LLMVerifier(upstream.client(), model="small").verify('say "yes"', "old?", "answer")
    (request,) = upstream.chat_requests
    assert request.body["model"] == "small"
    assert '"new_question": "say \\"yes\\""' in request.body["messages"][1]["content"]


async def test_the_llm_verifier_sends_nothing_endless(upstream: ScriptedUpstream):
    assert not await LLMVerifier(upstream.client()).verify("new?", "old?", "x" * 24_000)
    assert upstream.calls == 0


async def test_a_cross_encoder_says_yes_from_its_score_on():
    verifier = CrossEncoderVerifier(lambda pairs: [0.5 for _ in pairs], least_score=0.5)
    assert await asked(verifier) == (True, "yes")
    verifier = CrossEncoderVerifier(lambda pairs: [0.49 for _ in pairs], least_score=0.5)
    assert await asked(verifier) == (False, "no")


async def test_a_cross_encoder_may_be_async():
    async def score(pairs):
        return [0.9]

    assert await asked(CrossEncoderVerifier(score, least_score=0.5)) == (True, "yes")


@pytest.mark.parametrize("scores", [[], [0.9, 0.9], ["high"], None, [float("nan")]])
async def test_a_cross_encoder_that_answers_nonsense_has_not_agreed(scores):
    is_right, _ = await asked(CrossEncoderVerifier(lambda _: scores, least_score=0.5))
    assert not is_right


@pytest.mark.parametrize("least_score", [None, "0.5", True, float("nan")])
def test_a_cross_encoder_needs_a_threshold(least_score):
    with pytest.raises(ConfigurationError):
        CrossEncoderVerifier(lambda _: [1.0], least_score=least_score)


def test_same_text_looks_past_white_space_and_case():
    assert same_text("Yes, it  is.\n", "yes, it is.")
    assert not same_text("Yes", "No")
