"""The driver's side of the protocol: JSON lines on standard input and output.

A request is `{"op": …, …}`, its answer `{"ok": true, …}` or `{"ok": false, "error": …}`:

* `open` {url, dimensions, threshold, namespace}: connect. Always the first.
* `exact_set` {items: [[key, value], …], callers}
* `exact_get` {keys: […], callers}: `found` has the values or null.
* `semantic_store` {items: [[prompt, vector, answer], …], callers}
* `semantic_check` {items: [[prompt, vector], …], callers}: `found` has the answers or null.
* `close`: let go of everything, and end.

Each operation runs over its items by so many callers at once. The answer has `total_s`, and
`times_us`, one for each item: what the peer's own call took inside this process, so that the
protocol costs nobody anything. This module is imported by drivers only; it needs nothing but the
standard library.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import time


class Unsupported(Exception):
    """This peer has no such operation."""


class Driver:
    """What a driver may offer; what it does not override is not supported."""

    async def open(self, url, *, dimensions, threshold, namespace):
        """Connect to the Redis at *url*."""
        raise Unsupported("open")

    async def exact_set(self, key, value):
        """Store *value* under *key*."""
        raise Unsupported("exact_set")

    async def exact_get(self, key):
        """Return the value of *key*, or `None`."""
        raise Unsupported("exact_get")

    async def semantic_store(self, prompt, vector, answer):
        """Store *answer* to *prompt*, whose vector is given."""
        raise Unsupported("semantic_store")

    async def semantic_check(self, prompt, vector):
        """Return the answer to a prompt that is near enough, or `None`."""
        raise Unsupported("semantic_check")

    async def close(self):
        """Let go of everything."""


def serve(driver):
    """Answer requests until `close` or the end of the input."""
    # What the peer or a library prints must not come between the answers.
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    asyncio.run(_serve(driver, answers))


async def _serve(driver, answers):
    loop = asyncio.get_running_loop()
    while True:
        line = await loop.run_in_executor(None, sys.stdin.readline)
        if not line:
            return
        request = json.loads(line)
        operation = request.pop("op")
        try:
            answer = {"ok": True, **await _answer(driver, operation, request)}
        except Exception as error:  # noqa: BLE001 - whatever a peer raises is its answer
            answer = {"ok": False, "error": f"{type(error).__name__}: {error}"[:500]}
        answers.write(json.dumps(answer) + "\n")
        answers.flush()
        if operation == "close":
            return


async def _answer(driver, operation, request):
    if operation == "open":
        await driver.open(request.pop("url"), **request)
        return {}
    if operation == "close":
        await driver.close()
        return {}
    calls = {
        "exact_set": (driver.exact_set, "items"),
        "exact_get": (driver.exact_get, "keys"),
        "semantic_store": (driver.semantic_store, "items"),
        "semantic_check": (driver.semantic_check, "items"),
    }
    if operation not in calls:
        raise Unsupported(operation)
    call, name = calls[operation]
    return await _run(call, request[name], request.get("callers", 1))


async def _run(call, items, callers):
    found, times_us = [None] * len(items), [0.0] * len(items)
    queue = iter(range(len(items)))

    async def work():
        for i in queue:
            item = items[i]
            arguments = item if isinstance(item, list) else [item]
            start = time.perf_counter()
            found[i] = await call(*arguments)
            times_us[i] = round((time.perf_counter() - start) * 1e6, 1)

    start = time.perf_counter()
    await asyncio.gather(*(work() for _ in range(callers)))
    return {"found": found, "times_us": times_us, "total_s": time.perf_counter() - start}
