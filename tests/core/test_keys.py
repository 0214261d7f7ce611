import base64
import itertools
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llm_cache._core.keys import Keys, Scope, _text, answer_digest, fingerprint, narrow
from llm_cache._core.normalize import read_messages


def names(prompt: str = "Hi", *, tenant: str | None = None, version: str = "") -> tuple[str, str]:
    turns = read_messages(prompt, system=None)
    scope = Scope(turns.frame, tenant=tenant, cache_version=version, normalization="whitespace")
    return scope.digest(turns.normalized), scope.name


def test_scopes_are_160_bits_of_base32():
    assert re.fullmatch("[a-z2-7]{32}", names()[1])


@given(st.text(st.characters(exclude_categories=["Cs"]), min_size=1))
def test_digests_are_168_bits_of_base64url(text):
    digest = Scope(b"", tenant=None, cache_version="", normalization="verbatim").digest(text)
    assert re.fullmatch("[A-Za-z0-9_-]{28}", digest)
    assert len(base64.urlsafe_b64decode(digest)) == 21


@given(st.binary(min_size=32, max_size=32))
def test_scopes_are_written_as_the_standard_has_it(digest):
    assert _text(digest) == base64.b32encode(digest[:20]).decode().lower()


def test_prompts_of_one_frame_share_the_scope_and_not_the_digest():
    a, b = names("one"), names("two")
    assert a[1] == b[1]
    assert a[0] != b[0]


@pytest.mark.parametrize("other", [{"tenant": "a"}, {"tenant": "b"}, {"version": "2"}])
def test_tenant_and_version_part_both(other):
    assert not set(names()) & set(names(**other))


def test_tenants_and_versions_do_not_run_together():
    tenants = [None, "a", "ab", "version", "\x00", "a\x00"]
    made = [names(tenant=t, version=v) for t, v in itertools.product(tenants, ["", "a", "b"])]
    assert len({scope for _, scope in made}) == len(made)


def test_key_of_an_entry_tells_the_digest_of_its_answer():
    assert answer_digest(Keys("n").entry("space", names()[0])) == names()[0]


def test_keys_of_one_answer_share_a_slot():
    keys, (digest, _) = Keys("n"), names()
    tags = {
        re.search(r"\{(.*?)\}", key)[1]  # type: ignore[index]
        for key in (
            *(keys.answer(digest), keys.lease(digest)),
            *(keys.entry("s", digest), keys.refs(digest)),
        )
    }
    assert tags == {digest}


def test_channel_belongs_to_one_database_and_one_digest():
    keys = Keys("n")
    digests = [names("one")[0], names("two")[0]]
    channels = {keys.landed(d, database=n) for d in digests for n in (0, 1)}
    assert keys.landed("d", database=0) == "n:landed:0:{d}"
    assert len(channels) == 4


def test_vector_spaces_of_equal_size_have_different_names():
    assert fingerprint("a", 384) != fingerprint("b", 384)
    assert fingerprint("a", 384) != fingerprint("a", 385)
    assert fingerprint("a1", 2) != fingerprint("a", 12)


def test_prefix_of_a_namespace_reaches_no_other():
    assert not Keys("a.b").entry_prefix("s").startswith(Keys("a").entry_prefix("s"))


def test_blind_spots_narrow_the_scope():
    scope = names()[1]
    assert narrow(scope, "") == scope
    assert len({scope, narrow(scope, "🙂"), narrow(scope, "🙃")}) == 3


@pytest.mark.parametrize("strange", ["n:s:space:{a}:1", "n:s:other:{a}:0", "n:s:space:{a}:0{b}:0"])
def test_digest_is_read_from_keys_of_entries_of_the_space_alone(strange):
    keys = Keys("n")
    assert keys.entry_digest("space", keys.entry("space", "a")) == "a"
    assert keys.entry_digest("space", strange) is None
