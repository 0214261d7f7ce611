"""What is kept for people to look at: near misses and semantic hits, with both prompts.

`<ns>:review` is a stream, written in batches beside the path of calls. It is capped in length and
in age, and gone when nothing was added for as long as an item may live. Nothing is kept unless a
sample rate is set: the texts are those of users.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from llm_cache._core.encryption import Cipher
from llm_cache._core.kept import Kept, read_kept
from llm_cache._core.keys import Keys
from llm_cache._redis.connection import Connection
from llm_cache._redis.replies import text

SERVED = "served"
"""The verdict of a semantic hit; anything else says why a candidate was not served."""
MOST_CHARS = 4_000
"""Pairs with a longer prompt are not kept: cut, they could not be judged."""
_MOST_PENDING = 1_000
_AT_ONCE = 100


@dataclass(frozen=True, slots=True, kw_only=True)
class ReviewItem:
    """A prompt, the stored one it was compared with, and what the cache made of the two."""

    new: str = field(repr=False)
    cached: str = field(repr=False)
    similarity: float
    verdict: str
    """`served`, or why not: `guard: numbers`, `similarity below 0.97`."""
    digest: str
    """Names the stored answer."""
    asked: str | None = None
    """Digest of the request that `new` belongs to."""
    label: str | None = None
    """What a comparison of the two answers says, in shadow mode: `same` or `different`."""
    tenant: str | None = None
    space: str | None = None
    """Fingerprint of the embedder that the similarity is from."""
    id: str = ""
    """Where it stands in the stream, once it does; begins with the server's clock in ms."""

    @property
    def at_s(self) -> float:
        """Unix time at which it was kept."""
        return int(self.id.partition("-")[0] or 0) / 1000


class Review:
    """The items of a namespace that wait for somebody to look at them.

    Args:
        connection: Where they are kept.
        keys: Of the namespace.
        sample_rate: Share of what is offered that is kept, 0 to 1; 0 keeps nothing.
        max_items: About how many are kept; the oldest go first.
        ttl_s: How long each is kept, in seconds.
        cipher: Encrypts the prompts; what is not encrypted is then not read.
        chance: Draws a number from 0 to 1.
    """

    def __init__(
        self,
        connection: Connection,
        keys: Keys,
        *,
        sample_rate: float = 0.0,
        max_items: int = 10_000,
        ttl_s: float = 7 * 86_400.0,
        cipher: Cipher | None = None,
        chance: Callable[[], float] = random.random,
    ) -> None:
        self._connection = connection
        self._key = keys.review
        self._sample_rate = sample_rate
        self._max_items = max_items
        self._ttl_ms = max(1, round(1000 * ttl_s))
        self._cipher = cipher
        self._chance = chance
        self._pending = _pending()

    def offer(self, item: ReviewItem) -> bool:
        """Keep *item* for the next `flush`, if the sample takes it. No round trip, never raises.

        Of what is offered between two flushes, the last 1,000 that are taken stay.
        """
        if self._sample_rate <= 0 or self._chance() >= self._sample_rate:
            return False
        if max(len(item.new), len(item.cached)) > MOST_CHARS or not (item.new and item.cached):
            return False
        self._pending.append(item)
        return True

    async def flush(self) -> None:
        """Add what is pending to the stream, and drop what is too old. Two round trips, or none.

        Raises:
            StoreError: Redis did not take it; it stays pending, as it does when cancelled.
        """
        if not self._pending:
            return
        items, self._pending = self._pending, _pending()
        try:
            await self.add(items)
        except BaseException:
            # Those that came meanwhile are newer, and stay if there are too many.
            self._pending = _pending((*items, *self._pending))
            raise

    async def add(self, items: Collection[ReviewItem]) -> None:
        """Add *items* to the stream, and drop what is too old. Two round trips.

        Raises:
            StoreUnavailable: Redis did not answer.
        """
        add = ("XADD", self._key, "MAXLEN", "~", self._max_items, "*")
        expire = ("PEXPIRE", self._key, self._ttl_ms)
        *ids, _ = await self._connection.transact(
            [*((*add, *_fields(item, self._cipher)) for item in items), expire]
        )
        oldest_ms = max(0, _milliseconds(ids[-1]) - self._ttl_ms)
        # To the item, not about: texts are not kept for longer than was said.
        await self._connection.execute("XTRIM", self._key, "MINID", oldest_ms)

    async def read(self, *, after: str = "", limit: int = _AT_ONCE) -> list[ReviewItem]:
        """Return at most *limit* items, the oldest first, *after* the item with this id.

        One round trip.

        Raises:
            StoreUnavailable: Redis did not answer.
        """
        start = f"({after}" if after else "-"
        rows = await self._connection.execute("XRANGE", self._key, start, "+", "COUNT", limit)
        items = (_item(row, self._cipher) for row in rows)
        return [item for item in items if item is not None]

    async def count(self) -> int:
        """Return how many items wait. One round trip."""
        return int(await self._connection.execute("XLEN", self._key))

    async def done(self, ids: Sequence[str]) -> None:
        """Forget items that have been looked at. One round trip, none for no items."""
        if ids:
            await self._connection.execute("XDEL", self._key, *ids)


def _pending(items: Iterable[ReviewItem] = ()) -> deque[ReviewItem]:
    return deque(items, maxlen=_MOST_PENDING)


def _fields(item: ReviewItem, cipher: Cipher | None) -> list[bytes]:
    fields: dict[str, str | None] = {
        "similarity": repr(item.similarity),
        "verdict": item.verdict,
        "digest": item.digest,
        "asked": item.asked,
        "label": item.label,
        "tenant": item.tenant,
        "space": item.space,
    }
    texts = {
        "new": Kept(item.new).field(cipher, *_place("new", item.digest, item.asked)),
        "cached": Kept(item.cached).field(cipher, *_place("cached", item.digest, item.asked)),
        **{name: value.encode() for name, value in fields.items() if value is not None},
    }
    return [part for name, text in texts.items() for part in (name.encode(), text)]


def _place(name: str, digest: str, asked: str | None) -> tuple[str, str, str, str]:
    """Return what an encrypted text of an item belongs to."""
    return "review", name, digest, asked or ""


def _item(row: Any, cipher: Cipher | None) -> ReviewItem | None:
    """Return the item in *row*; `None` for what another release, or another key, has put there."""
    name, raw = row
    if raw is None:
        return None
    values: Mapping[Any, Any] = (
        raw if isinstance(raw, Mapping) else dict(zip(raw[::2], raw[1::2], strict=True))
    )
    stored = {text(key, "replace"): value for key, value in values.items()}
    fields = {key: text(value, "replace") for key, value in stored.items()}
    try:
        places = {
            key: _place(key, fields["digest"], fields.get("asked")) for key in ("new", "cached")
        }
        kept = {key: read_kept(stored[key], cipher, *place) for key, place in places.items()}
        new, cached = kept["new"], kept["cached"]
        if new is None or cached is None:
            return None
        return ReviewItem(
            new=new.prompt,
            cached=cached.prompt,
            similarity=float(fields["similarity"]),
            verdict=fields["verdict"],
            digest=fields["digest"],
            asked=fields.get("asked"),
            label=fields.get("label"),
            tenant=fields.get("tenant"),
            space=fields.get("space"),
            id=text(name, "replace"),
        )
    except (KeyError, ValueError):
        return None


def _milliseconds(name: Any) -> int:
    return int(text(name, "replace").partition("-")[0])
