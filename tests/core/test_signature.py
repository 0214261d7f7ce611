"""What the guards keep of a prompt where its text is not kept."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llm_cache._core.guards import analyse, compare, objection, pack, unpack
from llm_cache._core.signature import SIGNATURE_BYTES


@pytest.mark.parametrize(
    "prompt",
    [
        "How do I reset my password?",
        "Book a table for 7 pm on May 3rd, 2024, for two people",
        "¿Cómo cambio mi contraseña?",
        "Fix this: ```if a == b: return 1```",
        "Is 2 ≠ 3? 😀",
        "",
    ],
)
def test_a_stored_signature_holds_all_that_is_looked_at(prompt):
    assert unpack(pack(prompt)) == analyse(prompt)


@given(st.text(max_size=3000))
def test_no_signature_is_larger_than_256_bytes(prompt):
    packed = pack(prompt)
    assert len(packed) <= SIGNATURE_BYTES
    unpack(packed)


def test_a_prompt_too_long_for_its_signature_has_a_digest_of_the_rest():
    prompt = " ".join(f"unheard{number:x}of" for number in range(200))
    cached = unpack(pack(prompt))
    assert compare(analyse(prompt), cached).objection == "length"


@pytest.mark.parametrize(
    "packed", [b"", b"\x02abc", b"\x01", b"\x01\x00\xff", b"\x01" + b"a" * 300]
)
def test_what_is_no_signature_is_refused(packed):
    with pytest.raises(ValueError, match="not a signature"):
        unpack(packed)


@pytest.mark.parametrize(
    ("a", "b", "reason"),
    [
        ("Fix ```x == y```", "Fix ```x != y```", "code"),
        ("What does `a*b` do?", "What does `a/b` do?", "code"),
        ("Is A ∪ B empty?", "Is A ∩ B empty?", "symbols"),
        ("How do I cancel my order?", "Wie kann ich meine Bestellung stornieren?", "language"),
        (
            "How should I start preparing for it?",
            "When should I start preparing for it?",
            "relation",
        ),
    ],
)
def test_what_the_words_do_not_show(a, b, reason):
    assert objection(a, b) == reason
    assert objection(b, a) == reason


@pytest.mark.parametrize(
    ("prompt", "language"),
    [
        ("How do I reset my password?", "en"),
        ("redis cluster failover timeouts", "en"),
        ("El Paso weather", "en"),
        ("What is the value of β?", "en"),
        ("Wie ändere ich meine Adresse?", "de"),
        ("Comment changer mon mot de passe ?", "fr"),
        ("¿Cómo puedo cambiar mi contraseña?", "es"),
        ("как сменить пароль", "cyrillic"),
        ("パスワードを変更するには", "cjk"),
    ],
)
def test_languages_are_told_by_their_commonest_words(prompt, language):
    assert analyse(prompt).language == language
    assert analyse(prompt).is_listed == (language == "en")
