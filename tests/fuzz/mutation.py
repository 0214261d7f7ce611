"""Damage, drawn at random from a seed, so that every case can be made again."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import Any

Draw = random.Random

# ------------------------------------------------------------------ bytes


def flip_bits(draw: Draw, value: bytes, _: Sequence[bytes]) -> bytes:
    changed = bytearray(value)
    for _flip in range(draw.choice((1, 1, 1, 2, 8))):
        if changed:
            changed[draw.randrange(len(changed))] ^= 1 << draw.randrange(8)
    return bytes(changed)


def truncate(draw: Draw, value: bytes, _: Sequence[bytes]) -> bytes:
    return value[: draw.randrange(len(value) + 1)]


def splice(draw: Draw, value: bytes, others: Sequence[bytes]) -> bytes:
    other = draw.choice(others)
    return value[: draw.randrange(len(value) + 1)] + other[draw.randrange(len(other) + 1) :]


def exchange(draw: Draw, _: bytes, others: Sequence[bytes]) -> bytes:
    return draw.choice(others)


def edit_header(draw: Draw, value: bytes, _: Sequence[bytes]) -> bytes:
    at, size = draw.randrange(52), draw.choice((1, 2, 4, 8, 16))
    extreme = draw.choice((bytes(size), b"\xff" * size, draw.randbytes(size)))
    return value[:at] + extreme + value[at + size :]


def insert(draw: Draw, value: bytes, _: Sequence[bytes]) -> bytes:
    at = draw.randrange(len(value) + 1)
    return value[:at] + draw.randbytes(draw.choice((1, 4, 100))) + value[at:]


def double(draw: Draw, value: bytes, _: Sequence[bytes]) -> bytes:
    at = draw.randrange(len(value) + 1)
    return value + value[at:]


BYTES: Sequence[Callable[[Draw, bytes, Sequence[bytes]], bytes]] = (
    *(flip_bits, truncate, splice, exchange, edit_header, insert, double),
)


def damaged(draw: Draw, value: bytes, others: Sequence[bytes]) -> bytes:
    """Return *value* changed in one or two ways."""
    for _ in range(draw.choice((1, 1, 2))):
        value = draw.choice(BYTES)(draw, value, others)
    return value


# ------------------------------------------------------------------ replies

JUNK: tuple[Any, ...] = (
    *(None, True, False, 0, -1, 2**63, 10**400, 0.5, float("nan"), float("inf"), -1e308),
    *(b"", b"nan", b"inf", b"-0.5", b"1e999", b"0x10", b"\xff\xfe", b"distance", b"x" * 70_000),
    *("", "text", [], [[]], [None] * 3, {}, {b"distance": b"0"}, {b"results": 3}, object()),
)


def broken(draw: Draw, reply: Any) -> Any:
    """Return *reply* with one to three of its parts replaced, left out, doubled or moved."""
    for _ in range(draw.choice((1, 1, 2, 3))):
        reply = _broken(draw, reply)
    return reply


def _broken(draw: Draw, part: Any) -> Any:
    if isinstance(part, list | dict) and part and draw.random() < 0.85:
        return _inside(draw, list(part) if isinstance(part, list) else dict(part))
    return draw.choice(JUNK)


def _inside(draw: Draw, part: Any) -> Any:
    names = list(range(len(part))) if isinstance(part, list) else list(part)
    name, what = draw.choice(names), draw.random()
    if what < 0.15:
        del part[name]
    elif what < 0.25 and isinstance(part, list):
        part.insert(name, part[draw.choice(names)])
    elif what < 0.35:
        other = draw.choice(names)
        part[name], part[other] = part[other], part[name]
    else:
        part[name] = _broken(draw, part[name])
    return part
