"""The driver's side of the protocol: JSON lines on standard input and output.

A request is `{"op": …, …}`, its answer `{"ok": true, …}` or `{"ok": false, "error": …}`:

* `open` {url, dimensions, threshold, namespace}: connect. Always the first; once more, it lets go
  of everything and begins anew. `offers` names the batches below that this peer has.
* `exact_set` {items: [[key, value], …], callers}
* `exact_get` {items: [[key], …], callers}: what was found are the values, or null.
* `semantic_store` {items: [[prompt, vector, answer], …], callers}
* `semantic_check` {items: [[prompt, vector], …], callers}: what was found are answers, or null.
* `close`: let go of everything, and end.

So many callers at once work through the items of a batch. Its answer has `total_s`, and for each
item what was `found`, its `times_us`, and in `errors` why it failed, or null: what the peer's own
call took and raised inside this process, so that the protocol costs nobody anything. This module
is imported by drivers only; it needs nothing but the standard library.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import time

BATCHES = ("exact_set", "exact_get", "semantic_store", "semantic_check")


class Driver:
    """What a driver may offer; what it does not override is not offered."""

    async def open(self, url, *, dimensions, threshold, namespace):
        """Connect to the Redis at *url*; every key and index is to be of *namespace*."""
        raise NotImplementedError

    async def exact_set(self, key, value):
        """Store *value* under *key*."""
        raise NotImplementedError

    async def exact_get(self, key):
        """Return the value of *key*, or `None`."""
        raise NotImplementedError

    async def semantic_store(self, prompt, vector, answer):
        """Store *answer* to *prompt*, whose vector is given."""
        raise NotImplementedError

    async def semantic_check(self, prompt, vector):
        """Return the answer to a prompt that is near enough, or `None`."""
        raise NotImplementedError

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
    is_open = False
    while True:
        line = await loop.run_in_executor(None, sys.stdin.readline)
        if not line:
            return
        request = json.loads(line)
        operation = request.pop("op")
        try:
            if operation == "open" and is_open:
                await driver.close()
            answer = {"ok": True, **await _answer(driver, operation, request)}
            is_open = True
        except Exception as error:  # noqa: BLE001 - whatever a peer raises is its answer
            answer = {"ok": False, "error": _described(error)}
        answers.write(json.dumps(answer) + "\n")
        answers.flush()
        if operation == "close":
            return


async def _answer(driver, operation, request):
    if operation == "open":
        await driver.open(request.pop("url"), **request)
        return {"offers": [name for name in BATCHES if _is_offered(driver, name)]}
    if operation == "close":
        await driver.close()
        return {}
    if operation not in BATCHES or not _is_offered(driver, operation):
        raise NotImplementedError(operation)
    return await _run(getattr(driver, operation), request["items"], request.get("callers", 1))


def _is_offered(driver, operation):
    return getattr(type(driver), operation) is not getattr(Driver, operation)


async def _run(call, items, callers):
    found, times_us, errors = [None] * len(items), [0.0] * len(items), [None] * len(items)
    queue = iter(range(len(items)))

    async def work():
        for i in queue:
            start = time.perf_counter()
            try:
                found[i] = await call(*items[i])
            except Exception as error:  # noqa: BLE001 - whatever it is, this caller got nothing
                errors[i] = _described(error)
            times_us[i] = round((time.perf_counter() - start) * 1e6, 1)

    start = time.perf_counter()
    await asyncio.gather(*(work() for _ in range(callers)))
    total_s = time.perf_counter() - start
    return {"found": found, "times_us": times_us, "errors": errors, "total_s": total_s}


def _described(error):
    return f"{type(error).__name__}: {error}"[:500]
