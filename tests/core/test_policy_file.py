"""Calibrated policies as data."""

import json
from dataclasses import replace
from typing import Any

import pytest

from llm_cache._core import policy_file
from llm_cache._core.certify import Claim
from llm_cache._core.hit_policy import FEATURES, CalibratedPolicy
from llm_cache._core.policy_file import Certificate, StoredPolicy, decode, encode
from llm_cache.errors import UnusablePolicy

STORED = StoredPolicy(
    policy=CalibratedPolicy(
        intercept=-1.5,
        weights=tuple(0.1 * at for at in range(len(FEATURES))),
        least_score=2.5,
        weighed_guards=frozenset({"numbers", "relation"}),
        verify_score=0.0,
    ),
    certificate=Certificate(
        Claim(0.01, "requests", 0.95), 5000, "random", 3333, 1800, 12, bound=0.008
    ),
    space="spaceoftheembedder",
    model_id="model/1",
    created_s=1.75e9,
)


def altered(**fields: Any) -> bytes:
    return json.dumps({**json.loads(encode(STORED)), **fields}).encode()


def test_a_policy_survives_its_file():
    assert decode(encode(STORED)) == STORED


def test_a_policy_file_is_small():
    assert len(encode(STORED)) < 4096


def test_a_policy_of_a_newer_release_is_refused():
    with pytest.raises(UnusablePolicy, match="update llm-cache"):
        decode(altered(version=policy_file.VERSION + 1))


def test_a_policy_fitted_to_other_guards_is_void():
    with pytest.raises(UnusablePolicy, match="other guards"):
        decode(altered(guards=0))


def test_a_policy_of_another_embedder_is_void():
    STORED.check("spaceoftheembedder")
    with pytest.raises(UnusablePolicy, match="model/1"):
        STORED.check("another")


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"[]",
        b"\x80\x04",
        b"[" * 100_000,
        altered(format="something"),
        altered(version="1"),
        altered(weights={"unheard of": 1.0}),
        altered(weights={"similarity": "1"}),
        altered(weights=None),
        altered(weighed_guards=["unheard of"]),
        altered(least_score=None),
        altered(least_score=True),
        altered(certificate={}),
    ],
)
def test_what_is_no_policy_is_refused(data):
    with pytest.raises(UnusablePolicy):
        decode(data)


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity"])
def test_no_number_in_a_policy_is_without_bounds(number):
    with pytest.raises(UnusablePolicy):
        decode(encode(STORED).replace(b"2.5", number.encode()))


def test_a_certificate_says_what_was_shown():
    text = str(STORED.certificate)
    assert "at most 1.00% wrong hits per request with 95% confidence" in text
    per_hit = replace(STORED.certificate, claim=Claim(0.02, "hits", 0.9))
    assert "2.00% wrong hits per hit" in str(per_hit)
