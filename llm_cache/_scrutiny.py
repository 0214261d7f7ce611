"""Second looks at what the semantic layer decided: verifiers, shadow mode, and review by people.

None of them can fail a call, and none lets anything be served that was not decided, or verified.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING

from llm_cache._call import Call
from llm_cache._core.types import Json, answer_text
from llm_cache._redis.review import SERVED, Review, ReviewItem
from llm_cache._semantic import Accepts, Finding, Place, SemanticHit, SemanticLayer
from llm_cache.config import CacheConfig
from llm_cache.errors import ConfigurationError
from llm_cache.events import CandidateVerified, DecisionCompared, Event

if TYPE_CHECKING:
    from llm_cache._core.hit_policy import Judged
    from llm_cache.verify import Verifier

MOST_IN_BACKGROUND = 100
"""Verifications that wait for their verifier at a time; further candidates are not verified."""


class Scrutiny:
    """What looks at decisions again.

    Args:
        semantic: Made the decisions, and has the answers.
        verifier: Decides in the grey band; `None` where nobody does.
        review: Takes what people are to look at.
        config: Settings.
        tell: Hears what came of it.

    Raises:
        ConfigurationError: the *verifier* is none, or settings need one that is not there.
    """

    def __init__(
        self,
        semantic: SemanticLayer,
        verifier: Verifier | None,
        review: Review,
        config: CacheConfig,
        *,
        tell: Callable[[Event], None],
    ) -> None:
        if verifier is not None:
            _check(verifier)
        if verifier is None and config.verify_from is not None:
            raise ConfigurationError("verify_from needs somebody to ask: LLMCache(…, verifier=…)")
        self._semantic = semantic
        self._verifier = verifier
        self._review = review
        self._config = config
        self._tell = tell

    # ------------------------------------------------------------------ the grey band

    def may_verify(self, finding: Finding) -> bool:
        """Tell whether there is a candidate that may be served if the verifier agrees."""
        return self._verifier is not None and finding.decision.to_verify is not None

    async def verified(
        self,
        call: Call,
        place: Place,
        finding: Finding,
        accepts: Accepts,
        *,
        thinking: Callable[[], AbstractContextManager[None]] = nullcontext,
    ) -> SemanticHit | None:
        """Return the candidate in the grey band, if the verifier lets it pass.

        Two round trips, and at most `verify_timeout_s` between them, during which a context of
        *thinking* is open. Raises as `fetch`.
        """
        candidate = finding.decision.to_verify
        if self._verifier is None or candidate is None:
            return None
        hit = await self._semantic.fetch(candidate, call.digest, accepts)
        if hit is None:
            return None
        with thinking():
            agrees = await self._agrees(self._verifier, call, place, hit)
        if not agrees:
            return None
        # It may have expired, or have been invalidated, while the verifier thought.
        return await self._semantic.fetch(candidate, call.digest, accepts)

    async def _agrees(
        self, verifier: Verifier, call: Call, place: Place, hit: SemanticHit
    ) -> bool:
        from llm_cache.verify import is_verified

        said = await is_verified(
            verifier,
            place.prompt,
            hit.candidate.prompt,
            answer_text(hit.entry.answer),
            timeout_s=self._config.verify_timeout_s,
        )
        verdict = said.reason.partition(":")[0]
        self._tell(CandidateVerified(verdict, call.terms.model))
        return said.is_right

    # ------------------------------------------------------------------ shadow mode

    async def compare(
        self, call: Call, place: Place, finding: Finding, fresh: Json, accepts: Accepts
    ) -> None:
        """Count what was worth what was decided, now that the model has answered.

        The answers are compared as texts, or by the verifier where there is one. One round trip,
        none for a hit. Raises as `fetch`.
        """
        from llm_cache._core import shadow
        from llm_cache.verify import same_text

        candidate = shadow.compared(finding.decision)
        hit = finding.hit
        if hit is None and candidate is not None and finding.decision.first_served is None:
            hit = await self._semantic.fetch(candidate, call.digest, accepts)
        if hit is None:
            return
        if self._verifier is None:
            agrees = same_text(answer_text(fresh), answer_text(hit.entry.answer))
        else:
            agrees = await self._agrees(self._verifier, call, place, hit)
        outcome = shadow.outcome(finding.decision, agrees=agrees)
        self._tell(DecisionCompared(outcome, call.terms.model))
        label = "same" if agrees else "different"
        judged = next(j for j in finding.decision if j.candidate == hit.candidate)
        self._offer(call, place, judged, finding.hit, label=label)

    # ------------------------------------------------------------------ review

    def note(self, call: Call, place: Place, finding: Finding, hit: SemanticHit | None) -> None:
        """Offer for review the *hit* that is served; without one, the nearest near miss."""
        if not self._config.review_sample_rate:
            return
        for judged in finding.decision:
            if judged.candidate == hit.candidate if hit else judged.is_near_miss:
                self._offer(call, place, judged, hit)
                return

    def _offer(
        self,
        call: Call,
        place: Place,
        judged: Judged,
        hit: SemanticHit | None,
        *,
        label: str | None = None,
    ) -> None:
        candidate = judged.candidate
        self._review.offer(
            ReviewItem(
                new=place.prompt,
                cached=candidate.prompt,
                similarity=candidate.similarity,
                verdict=judged.reason if hit is None else SERVED,
                digest=candidate.digest,
                asked=call.digest,
                label=label,
                tenant=call.terms.tenant_id,
                space=self._semantic.vectors.space,
            )
        )


def _check(verifier: object) -> None:
    from llm_cache.verify import Verifier

    if not isinstance(verifier, Verifier):
        raise ConfigurationError(
            "verifier must have `async verify(new, cached, answer)`;"
            f" got {type(verifier).__name__}"
        )
