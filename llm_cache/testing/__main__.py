"""`python -m llm_cache.testing`: a scripted upstream in a process of its own, for load tests.

Prints its base URL on one line and serves until stdin ends, or SIGTERM or SIGINT arrives, so that
it does not outlive whoever started it. `GET /stats` beside the API tells how many requests came.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import math
import os
import random
import signal
import sys
import threading
from dataclasses import replace
from statistics import NormalDist
from typing import TYPE_CHECKING, Any

from llm_cache.testing import Answer, ScriptedUpstream, expected_answer

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence


def main(argv: Sequence[str] | None = None) -> None:
    """Serve as *argv* says."""
    parser = argparse.ArgumentParser(prog="python -m llm_cache.testing", description=__doc__)
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=0, help="0 lets the system choose")
    parser.add_argument("--delay-ms", type=float, default=0.0, help="how long the model thinks")
    parser.add_argument("--jitter-ms", type=float, default=0.0, help="± around each delay")
    parser.add_argument(
        "--p99-ms",
        type=float,
        help="lognormal delays instead: --delay-ms is the median, 1 in 100 takes longer than this",
    )
    parser.add_argument("--seed", type=int, default=0, help="of the delays")
    parser.add_argument("--first-token-ms", type=float, default=0.0, help="head to first event")
    parser.add_argument("--chunk-ms", type=float, default=0.0, help="between events of a stream")
    parser.add_argument("--embedding-ms", type=float, default=0.0, help="delay of embeddings")
    parser.add_argument("--dimensions", type=int, default=1536, help="of embeddings")
    parser.add_argument(
        "--echo", action="store_true", help="answer with the last turn, so that mix-ups show"
    )
    parser.add_argument("--answer-chars", type=int, default=0, help="pad answers to this length")
    options = parser.parse_args(argv)
    if options.p99_ms is not None and not options.p99_ms > options.delay_ms > 0:
        parser.error("--p99-ms must be above --delay-ms, which is the median and above 0")
    asyncio.run(serve(options))


async def serve(options: argparse.Namespace) -> None:
    """Serve until told to stop."""
    delays = random.Random(options.seed)  # noqa: S311 - latencies, not secrets
    upstream = ScriptedUpstream(
        host=options.host,
        port=options.port,
        embedding_dimensions=options.dimensions,
        record=False,
    )
    answer = Answer(
        delay_s=_model_delay_s(options, delays),
        first_token_delay_s=options.first_token_ms / 1000,
        chunk_delay_s=options.chunk_ms / 1000,
    )
    upstream.default = answer
    if options.echo or options.answer_chars:
        upstream.default = lambda body: replace(answer, text=_text(body, options))
    if options.embedding_ms:
        slow = Answer(delay_s=_delay_s(options.embedding_ms, options.jitter_ms, delays))
        upstream.embeddings = lambda _texts, _body: slow
    upstream.route("/stats", lambda _body: _stats(upstream), method="GET")

    stop = asyncio.Event()
    _stop_on_signals(stop)
    _stop_on_end_of_stdin(stop)
    async with upstream:
        sys.stdout.write(f"{upstream.base_url}\n")
        sys.stdout.flush()
        await stop.wait()


def _text(body: dict[str, Any], options: argparse.Namespace) -> str:
    turn = body["messages"][-1] if body["messages"] else {}
    text = str(turn.get("content")) if options.echo else expected_answer(body)
    return text.ljust(options.answer_chars)


def _model_delay_s(options: argparse.Namespace, source: random.Random) -> Callable[[], float]:
    if options.p99_ms is None:
        return _delay_s(options.delay_ms, options.jitter_ms, source)
    # The 99th percentile of the normal distribution is 2.326 standard deviations from its middle.
    sigma = math.log(options.p99_ms / options.delay_ms) / NormalDist().inv_cdf(0.99)
    mu = math.log(options.delay_ms / 1000)
    return lambda: source.lognormvariate(mu, sigma)


def _delay_s(mean_ms: float, jitter_ms: float, source: random.Random) -> Callable[[], float]:
    return lambda: (mean_ms + source.uniform(-jitter_ms, jitter_ms)) / 1000


def _stats(upstream: ScriptedUpstream) -> dict[str, Any]:
    return {
        "calls": upstream.calls,
        "embedding_calls": upstream.embedding_calls,
        "disconnects": upstream.disconnects,
    }


def _stop_on_signals(stop: asyncio.Event) -> None:
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        with contextlib.suppress(NotImplementedError):  # Windows
            loop.add_signal_handler(number, stop.set)


def _stop_on_end_of_stdin(stop: asyncio.Event) -> None:
    loop = asyncio.get_running_loop()

    def wait() -> None:
        # A descriptor rather than `sys.stdin`, whose lock a thread that still reads would hold at
        # the interpreter's end; a thread rather than the loop, which cannot wait for files.
        with contextlib.suppress(OSError):
            while os.read(0, 4096):
                pass
        with contextlib.suppress(RuntimeError):  # the loop is closed already
            loop.call_soon_threadsafe(stop.set)

    threading.Thread(target=wait, name="wait-for-stdin", daemon=True).start()


if __name__ == "__main__":
    main()
