"""Calibrated policies as data: versioned JSON of a few kilobytes, numbers only. Pure."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Final

from llm_cache._core import guards
from llm_cache._core.certify import Claim
from llm_cache._core.hit_policy import FEATURES, CalibratedPolicy
from llm_cache.errors import UnusablePolicy

FORMAT: Final = "llm_cache hit policy"
VERSION: Final = 1
MOST_BYTES: Final = 65_536
_AGAIN = "calibrate again"


@dataclass(frozen=True, slots=True)
class Certificate:
    """What was shown of a policy, and on what."""

    claim: Claim
    labels: int
    """Distinct labelled requests or pairs, those that fitted the weights included."""
    split: str
    """Which of the two ways to cut the labels was the stricter: `random` or `chronological`."""
    tested: int
    """Requests that had no part in the fit."""
    hits: int
    wrong: int
    bound: float
    """Upper bound on the rate of wrong hits, on the basis of the claim."""

    def __str__(self) -> str:
        """Return it as a sentence."""
        per = "hit" if self.claim.basis == "hits" else "request"
        return (
            f"at most {self.claim.max_wrong:.2%} wrong hits per {per} with"
            f" {self.claim.confidence:.0%} confidence ({self.hits:,} hits, {self.wrong:,} wrong,"
            f" in {self.tested:,} requests; bound {self.bound:.2%})"
        )


@dataclass(frozen=True, slots=True)
class StoredPolicy:
    """A calibrated policy, and the vector space that it is for."""

    policy: CalibratedPolicy
    certificate: Certificate
    space: str
    """Fingerprint of the embedder; with any other the policy means nothing."""
    model_id: str
    created_s: float
    """Unix time of the calibration."""

    def check(self, space: str) -> None:
        """Refuse to be used in another vector space.

        Raises:
            UnusablePolicy: *space* is not the one of the calibration.
        """
        if space != self.space:
            raise UnusablePolicy(
                f"this policy was calibrated with the embedder {self.model_id!r}, and similarities"
                f" of another mean something else: {_AGAIN}"
            )


def encode(stored: StoredPolicy) -> bytes:
    """Return *stored* as JSON."""
    policy = stored.policy
    weights = zip(FEATURES, policy.weights, strict=True)
    fields = {
        "format": FORMAT,
        "version": VERSION,
        "guards": guards.VERSION,
        "space": stored.space,
        "model_id": stored.model_id,
        "created_s": stored.created_s,
        "intercept": policy.intercept,
        "weights": {name: weight for name, weight in weights if weight},
        "least_score": policy.least_score,
        "verify_score": policy.verify_score,
        "weighed_guards": sorted(policy.weighed_guards),
        "certificate": asdict(stored.certificate),
    }
    return json.dumps(fields, indent=1, allow_nan=False).encode()


def decode(data: bytes) -> StoredPolicy:
    """Return the policy that `encode` wrote.

    Raises:
        UnusablePolicy: it is of a newer release, was fitted to other guards, or is damaged.
    """
    fields = _fields(data)
    version = fields.get("version")
    if isinstance(version, int) and version > VERSION:
        raise UnusablePolicy(
            f"this policy has version {version} and this release reads {VERSION}: update llm-cache"
        )
    if fields.get("format") != FORMAT or version != VERSION:
        raise UnusablePolicy(f"not a calibrated policy of llm-cache: {_AGAIN}")
    if fields.get("guards") != guards.VERSION:
        raise UnusablePolicy(
            f"this policy was fitted to other guards than this release's: {_AGAIN}"
        )
    try:
        return _stored(fields)
    except (KeyError, TypeError, ValueError, AttributeError) as exc:
        raise UnusablePolicy(f"this policy is damaged: {_AGAIN}") from exc


def _fields(data: bytes) -> Mapping[str, Any]:
    try:
        fields = json.loads(data[:MOST_BYTES])
    except (ValueError, RecursionError) as exc:
        raise UnusablePolicy(f"not a calibrated policy of llm-cache: {_AGAIN}") from exc
    if not isinstance(fields, dict):
        raise UnusablePolicy(f"not a calibrated policy of llm-cache: {_AGAIN}")
    return fields


def _stored(fields: Mapping[str, Any]) -> StoredPolicy:
    weights, weighed = dict(fields["weights"]), frozenset(fields["weighed_guards"])
    if not weights.keys() <= set(FEATURES) or not weighed <= set(guards.REASONS):
        raise ValueError("unknown features or guards")
    verify_score = fields["verify_score"]
    shown = fields["certificate"]
    claim = shown["claim"]
    if claim["basis"] not in ("hits", "requests"):
        raise ValueError("unknown basis")
    return StoredPolicy(
        policy=CalibratedPolicy(
            intercept=_finite(fields["intercept"]),
            weights=tuple([_finite(weights.get(name, 0.0)) for name in FEATURES]),
            least_score=_finite(fields["least_score"]),
            weighed_guards=weighed,
            verify_score=None if verify_score is None else _finite(verify_score),
        ),
        certificate=Certificate(
            claim=Claim(_finite(claim["max_wrong"]), claim["basis"], _finite(claim["confidence"])),
            labels=int(shown["labels"]),
            split=str(shown["split"]),
            tested=int(shown["tested"]),
            hits=int(shown["hits"]),
            wrong=int(shown["wrong"]),
            bound=_finite(shown["bound"]),
        ),
        space=str(fields["space"]),
        model_id=str(fields["model_id"]),
        created_s=_finite(fields["created_s"]),
    )


def _finite(value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise ValueError("not a finite number")
    return float(value)
