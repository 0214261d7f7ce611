"""What the guards keep of a prompt where its text is not kept."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llm_cache._core.guards import analyse, compare, objection, pack, unpack
from llm_cache._core.signature import SIGNATURE_BYTES, translated

DATA = Path(__file__).parent.parent / "data"


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
def test_a_stored_signature_is_the_prompt_to_whoever_asks_the_same(prompt):
    signature = analyse(prompt)
    said = compare(signature, unpack(pack(prompt)))
    assert said == compare(signature, signature)


SIGNED_PAIRS = [
    *json.loads(f"[{','.join((DATA / 'trap_pairs.jsonl').read_text('utf-8').splitlines())}]"),
    *json.loads(f"[{','.join((DATA / 'guard_pairs.jsonl').read_text('utf-8').splitlines())}]"),
]


def test_guards_decide_by_signatures_as_they_do_by_prompts():
    apart = [
        pair
        for pair in SIGNED_PAIRS
        if compare(analyse(pair["a"]), unpack(pack(pair["b"]))).objection
        != objection(pair["a"], pair["b"])
    ]
    assert apart == []


@pytest.mark.parametrize(
    ("new", "cached", "reason"),
    [
        ("How do I frobnicate a widget?", "How do I unfrobnicate a widget?", "antonyms"),
        ("How do I unfrobnicate a widget?", "How do I frobnicate a widget?", "antonyms"),
        ("Is the frobless widget safe?", "Is the frobful widget safe?", "antonyms"),
        ("Where is order 48213?", "Where is order 48214?", "numbers"),
        ("Who is Arbuthnot Quill?", "Who is Peregrine Quill?", "names"),
        ("Who is Arbuthnot Quill?", "Who is arbuthnot quill?", None),
        ("Are they edible?", "Are they inedible?", "antonyms"),
        ("Does il work?", "Does zzyzx work?", "relation"),
    ],
)
def test_guards_know_words_by_their_hashes(new, cached, reason):
    assert compare(analyse(new), unpack(pack(cached))).objection == reason


def test_what_no_list_has_is_not_in_a_signature():
    packed = pack("Did Arbuthnot Quill of Zzyzx pay invoice 48213 in 1987, and why not?")
    shown = repr(unpack(packed)).lower()
    assert "why" in shown
    hidden = ("arbuthnot", "quill", "zzyzx", "48213", "1987")
    assert [word for word in hidden if word in shown] == []


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
    ("a", "b", "reason"),
    [
        ("Kann ich die Karte sperren?", "Kann ich die Karte nicht sperren?", "negation"),
        ("Wie öffne ich das Konto?", "Wie schließe ich das Konto?", "antonyms"),
        ("Der Zug von Berlin nach Bonn?", "Der Zug von Bonn nach Berlin?", "order"),
        ("Was kostet es für zwei Personen?", "Was kostet es für drei Personen?", "numbers"),
        ("Wie ändere ich mein Passwort?", "Wie kann ich mein Passwort ändern?", None),
        ("Comment ouvrir un compte ?", "Comment fermer un compte ?", "antonyms"),
        ("Je peux payer avec ma carte ?", "Je ne peux pas payer avec ma carte ?", "negation"),
        ("Où est la salle ouverte le lundi ?", "Où est la salle ouverte le mardi ?", "numbers"),
        ("¿Cómo puedo abrir una cuenta?", "¿Cómo puedo cerrar una cuenta?", "antonyms"),
        ("¿Qué puedo comer con mi perro?", "¿Qué no puedo comer con mi perro?", "negation"),
    ],
)  # fmt: skip
def test_guards_read_each_language_with_its_own_lists(a, b, reason):
    assert objection(a, b) == reason
    assert (objection(b, a) is None) == (reason is None)
    assert not compare(analyse(a), analyse(b)).is_listed
    assert compare(analyse(a), unpack(pack(b))).objection == reason


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


def test_all_fields_but_the_words_survive_a_translation():
    signature = analyse("Who isn't in `x` before 1990? → 5", most_tokens=6)
    assert signature.rest
    assert signature.code
    assert signature.symbols
    assert translated(signature, {}) == signature
    other = translated(signature, {"<1990": "<2", "x": "y"})
    assert (other.numbers, other.tokens[-2:]) == (("<2",), ("BEFORE", "#1990"))
    assert other == replace(
        signature,
        tokens=other.tokens,
        words=frozenset(other.tokens),
        numbers=other.numbers,
        roles=other.roles,
    )
