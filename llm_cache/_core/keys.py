"""Every Redis key, digest and scope. No other module spells one."""

from __future__ import annotations

import hmac
import re
from base64 import b32encode
from binascii import b2a_base64
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from hashlib import sha256
from typing import Any

SCHEMA = b"llm_cache/3"
"""Version of the key schema; part of every digest."""

_DIGEST_BYTES = 21
_URL_SAFE = bytes.maketrans(b"+/", b"-_")
_DIGEST = re.compile("[A-Za-z0-9_-]{28}")


class Scope:
    """Everything that must be equal before an answer may be shared, and the digests within it.

    Args:
        frame: Canonical bytes of all the model could see, without the compared text.
        tenant: What stands for whose request it is.
        shared_scope: Where tenants share answers, the name of what they share; then the tenant
            makes no difference.
        cache_version: The configured one.
        normalization: How the compared texts are normalised; it parts the digests, not the scope.
    """

    def __init__(
        self,
        frame: bytes,
        *,
        tenant: str | None,
        shared_scope: str | None = None,
        cache_version: str,
        normalization: str,
    ) -> None:
        whose: tuple[bytes, ...] = () if tenant is None else (tenant.encode(),)
        if shared_scope is not None:
            whose = (b"shared", shared_scope.encode())
        scope = _sha256(
            b"scope",
            SCHEMA,
            # None, a tenant of any name, and a shared scope differ in the number of parts.
            *whose,
            b"version",
            cache_version.encode(),
            frame,
        )
        self._scope = scope
        self._begun: Any = sha256(_framed(b"key", scope, normalization.encode()))

    @cached_property
    def name(self) -> str:
        """Its own digest; a TAG of every semantic entry."""
        return _text(self._scope)

    def digest(self, normalized: str) -> str:
        """Return the digest of the request with this *normalized* text: 168 bits, base64url.

        It is over everything the model could see. Finding any collision takes 84 bits of work.

        Raises:
            UnicodeEncodeError: the text holds a lone surrogate.
        """
        # What all requests of the scope begin with is hashed once.
        ended = self._begun.copy()
        encoded = normalized.encode()
        ended.update(b"%d:%b" % (len(encoded), encoded))
        plain = b2a_base64(ended.digest()[:_DIGEST_BYTES], newline=False)
        digest: str = plain.translate(_URL_SAFE).decode()
        return digest


def tenant_id(tenant: str | None, secret: str | None) -> str | None:
    """Return what stands for *tenant* in Redis: an HMAC where there is a *secret*."""
    if tenant is None or secret is None:
        return tenant
    return _text(hmac.digest(secret.encode(), tenant.encode(), "sha256"))


def prompt_version(instructions: str) -> str:
    """Return what names a system prompt: 80 bits of its digest."""
    return _text(_sha256(b"prompt", instructions.encode()))[:16]


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


def tenant_row(tenant_id: str) -> str:
    """Return what names a tenant in what is counted: a digest, whatever stands for the tenant."""
    return _text(_sha256(b"tenant", tenant_id.encode()))


def text_digest(text: str) -> str:
    """Return the digest of a text to embed."""
    return _text(_sha256(b"text", text.encode()))


def _sha256(*parts: bytes) -> bytes:
    return sha256(_framed(*parts)).digest()


def _framed(*parts: bytes) -> bytes:
    """Return *parts*, each behind its length, so that no two lists of parts run together."""
    return b"".join([b"%d:%b" % (len(part), part) for part in parts])


def _text(digest: bytes) -> str:
    """Return the first 160 bits of *digest* in lower-case base32 (RFC 4648): 32 characters.

    What is searched for in a query is spelled so, without a sign that would have to be escaped.
    """
    return b32encode(digest[:20]).decode().lower()


@dataclass(frozen=True, slots=True)
class Keys:
    """The key names of one namespace."""

    namespace: str

    def answer(self, digest: str) -> str:
        """Key of an answer or alias (string)."""
        return f"{self.namespace}:x:{{{digest}}}"

    @property
    def answer_prefix(self) -> str:
        """What the keys of all answers begin with, up to the digest; behind it they are closed."""
        return self.answer("").removesuffix("}")

    @property
    def answer_pattern(self) -> str:
        """Glob of the keys of all answers; nothing in a namespace has a meaning there."""
        return f"{self.namespace}:x:*"

    def digest(self, answer_key: str) -> str | None:
        """Return the digest in the key of an answer; `None` for any other key."""
        prefix = f"{self.namespace}:x:{{"
        digest = answer_key[len(prefix) : -1]
        is_ours = answer_key == self.answer(digest) and _DIGEST.fullmatch(digest)
        return digest if is_ours else None

    def entry(self, space: str, digest: str) -> str:
        """Key of the semantic entry that leads to the answer *digest* (hash)."""
        return f"{self.entry_prefix(space)}{{{digest}}}:0"

    def entry_prefix(self, space: str) -> str:
        """Return what all keys of semantic entries of one vector space begin with."""
        return f"{self.namespace}:s:{space}:"

    def entry_digest(self, space: str, entry_key: str) -> str | None:
        """Return the digest in the key of a semantic entry of *space*; `None` for any other."""
        start = f"{self.entry_prefix(space)}{{"
        if not entry_key.startswith(start) or not entry_key.endswith("}:0"):
            return None
        digest = entry_key[len(start) : -3]
        # As `answer_digest` reads it, there are no braces but those around it.
        return None if "{" in digest or "}" in digest else digest

    def entry_space(self, entry_key: str) -> str:
        """Return the vector space of the semantic entry *entry_key*, a key of this namespace."""
        return entry_key.removeprefix(self.entry_prefix("")[:-1]).partition(":")[0]

    @property
    def entry_pattern(self) -> str:
        """Glob of the keys of all semantic entries."""
        return f"{self.namespace}:s:*"

    def refs(self, digest: str) -> str:
        """Key of the aliases of an answer (set). Its semantic entry follows from its digest."""
        return f"{self.namespace}:refs:{{{digest}}}"

    def belongings(self, digest: str, spaces: Iterable[str]) -> list[str]:
        """Keys of an answer, of its list of aliases, and of its entries in the vector *spaces*.

        All in one slot, the answer first and the list of aliases second.
        """
        entries = [self.entry(space, digest) for space in spaces]
        return [self.answer(digest), self.refs(digest), *entries]

    def lease(self, digest: str) -> str:
        """Key of who is making the answer of *digest* (string)."""
        return f"{self.namespace}:lease:{{{digest}}}"

    def landed(self, digest: str, *, database: int) -> str:
        """Name of the channel that tells of the end of a lease; channels know no databases."""
        return f"{self.namespace}:landed:{database}:{{{digest}}}"

    def index(self, space: str, tag: str = "") -> str:
        """Name of the index of one vector space; on a cluster, of the primary with this *tag*.

        There a name has a slot as a key has, and is known only where that slot is served.
        """
        name = f"{self.namespace}:idx:{space}"
        return f"{name}:{{{tag}}}" if tag else name

    def space(self, index: str) -> str | None:
        """Return the vector space of an *index*; `None` where it is not one of ours."""
        start = f"{self.namespace}:idx:"
        return index[len(start) :].partition(":")[0] if index.startswith(start) else None

    def embedding(self, space: str, digest: str) -> str:
        """Key of the kept vector of a text in one vector space (string)."""
        return f"{self.namespace}:emb:{space}:{{{digest}}}"

    def imported(self, file_id: str) -> str:
        """Key of how far the import of a file has come (string)."""
        return f"{self.namespace}:import:{file_id}"

    @property
    def review(self) -> str:
        """Key of what is kept for people to look at (stream)."""
        return f"{self.namespace}:review"

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
    def rejected(self) -> str:
        """Key of the pairs of a request and an answer that people rejected (sorted set)."""
        return f"{self.namespace}:rejected"

    @property
    def sweep(self) -> str:
        """Key of who is removing what is dead (string)."""
        return f"{self.namespace}:sweep"

    def stats(self, part: str) -> str:
        """Key of one part of what all workers have counted. All parts share one slot."""
        return f"{self.namespace}:stats:{{counts}}:{part}"


def answer_digest(key: str) -> str:
    """Return the digest of an answer, from its own *key* or that of its semantic entry."""
    return key[key.rindex("{") + 1 : key.rindex("}")]
