"""Every Redis key, digest and scope. No other module spells one."""

from __future__ import annotations

from dataclasses import dataclass
from hashlib import sha256

SCHEMA = b"llm_cache/1"
"""Version of the key schema; part of every digest."""

_ALPHABET = "abcdefghijklmnopqrstuvwxyz234567"
# `base64.b32encode` takes three times as long, which an exact hit would feel.
_PAIRS = [first + second for first in _ALPHABET for second in _ALPHABET]


def identify(
    frame: bytes,
    normalized: str,
    *,
    tenant: str | None,
    cache_version: str,
    normalization: str,
) -> tuple[str, str]:
    """Return the digest of a request, and the scope within which its answer may be shared.

    The request is given by its *frame* and its *normalized* text.

    The digest is over everything the model could see. The scope is over the same without the
    compared text; requests of one scope differ in nothing else.
    """
    scope = _sha256(
        b"scope",
        SCHEMA,
        # No tenant and a tenant of any name are told apart by the number of parts.
        *(() if tenant is None else (tenant.encode(),)),
        b"version",
        cache_version.encode(),
        frame,
    )
    digest = _sha256(b"key", scope, normalization.encode(), normalized.encode())
    return _text(digest), _text(scope)


def narrow(scope: str, blind_spots: str) -> str:
    """Return *scope* limited to prompts with the same *blind_spots*, which no vector shows."""
    return (
        _text(_sha256(b"narrow", scope.encode(), blind_spots.encode())) if blind_spots else scope
    )


def fingerprint(model_id: str, dimensions: int) -> str:
    """Return the name of a vector space: model, dimensions, stored type and normalisation."""
    return _text(_sha256(b"space", model_id.encode(), b"%d" % dimensions, b"float16", b"unit"))[
        :16
    ]


def text_digest(text: str) -> str:
    """Return the digest of a text to embed."""
    return _text(_sha256(b"text", text.encode()))


def _sha256(*parts: bytes) -> bytes:
    """Hash *parts*, each behind its length, so that no two lists of parts run together."""
    return sha256(b"".join([b"%d:%b" % (len(part), part) for part in parts])).digest()


def _text(digest: bytes) -> str:
    """Return the first 160 bits of *digest* in lower-case base32 (RFC 4648), ten at a time.

    160 bits are 32 characters; finding any collision takes 80 bits of work.
    """
    bits = int.from_bytes(digest[:20], "big")
    return "".join([_PAIRS[bits >> shift & 1023] for shift in range(150, -1, -10)])


@dataclass(frozen=True, slots=True)
class Keys:
    """The key names of one namespace."""

    namespace: str

    def answer(self, digest: str) -> str:
        """Key of an answer or alias (string)."""
        return f"{self.namespace}:x:{{{digest}}}"

    def entry(self, space: str, digest: str) -> str:
        """Key of the semantic entry that leads to the answer *digest* (hash)."""
        return f"{self.entry_prefix(space)}{{{digest}}}:0"

    def entry_prefix(self, space: str) -> str:
        """Return what all keys of semantic entries of one vector space begin with."""
        return f"{self.namespace}:s:{space}:"

    def refs(self, digest: str) -> str:
        """Key of the aliases and entries of an answer (set)."""
        return f"{self.namespace}:refs:{{{digest}}}"

    def lease(self, digest: str) -> str:
        """Key of who is making the answer of *digest* (string)."""
        return f"{self.namespace}:lease:{{{digest}}}"

    def landed(self, digest: str, *, database: int) -> str:
        """Name of the channel that tells of the end of a lease; channels know no databases."""
        return f"{self.namespace}:landed:{database}:{{{digest}}}"

    def index(self, space: str) -> str:
        """Name of the index of one vector space."""
        return f"{self.namespace}:idx:{space}"

    def embedding(self, space: str, digest: str) -> str:
        """Key of the kept vector of a text in one vector space (string)."""
        return f"{self.namespace}:emb:{space}:{{{digest}}}"

    def policy(self, space: str) -> str:
        """Key of the calibrated policies of one vector space (hash, by tenant)."""
        return f"{self.namespace}:policy:{space}"

    @property
    def epoch(self) -> str:
        """Key of the token that moves with every invalidation (string)."""
        return f"{self.namespace}:epoch"

    @property
    def purges(self) -> str:
        """Key of the table of what was invalidated when (hash)."""
        return f"{self.namespace}:purges"

    @property
    def counters(self) -> str:
        """Key of the counters of all workers (hash)."""
        return f"{self.namespace}:stats:calls"


def answer_digest(entry_key: str) -> str:
    """Return the digest of the answer that the semantic entry *entry_key* leads to."""
    return entry_key[entry_key.rindex("{") + 1 : entry_key.rindex("}")]
