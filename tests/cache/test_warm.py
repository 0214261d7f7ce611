"""A cache is filled from a file, and nothing is paid for twice."""

import asyncio
import json
import signal
import stat
import subprocess
import sys

import openai
import pytest

from llm_cache._core.targets import Kind, target
from llm_cache.errors import FileUnwritable, InvalidFile, InvalidRequest
from llm_cache.testing import Answer
from llm_cache.warm import WarmCall, estimate, read_prompts, warm

QUESTIONS = [f"Question {word}?" for word in ("alpha", "beta", "gamma", "delta")]


def calls(*prompts: str, **options: object) -> list[WarmCall]:
    return [WarmCall(line, prompt, options) for line, prompt in enumerate(prompts, start=1)]


@pytest.fixture
def notes(tmp_path):
    return tmp_path / "prompts.txt.warm"


# ------------------------------------------------------------------ files


def read(tmp_path, name: str, text: str) -> list[WarmCall]:
    path = tmp_path / name
    path.write_text(text, encoding="utf-8")
    return list(read_prompts(path))


def test_plain_lines_are_prompts(tmp_path):
    found = read(tmp_path, "p.txt", "\ufeffWhat?\n\n  Why, then?  \nlast")

    assert [(call.line, call.prompt) for call in found] == [
        (1, "What?"),
        (3, "Why, then?"),
        (4, "last"),
    ]


def test_json_lines_are_calls(tmp_path):
    rows = [
        {"prompt": "What?", "model": "m", "tags": ["a"], "params": {"temperature": 0}},
        {"messages": [{"role": "user", "content": "Hi"}], "tenant": "acme", "ttl_s": 60},
    ]
    found = read(tmp_path, "p.jsonl", "\n".join(map(json.dumps, rows)))

    assert found[0].options == {"model": "m", "tags": ["a"], "temperature": 0}
    assert found[1].prompt == [{"role": "user", "content": "Hi"}]
    assert found[1].options == {"tenant": "acme", "ttl_s": 60}


def test_rows_are_calls_and_know_the_lines_they_end_on(tmp_path):
    text = 'prompt,tenant,tags,ttl_s,params\n"two\nlines",acme,a|b,60,"{""seed"": 1}"\nx,,,,\n'
    found = read(tmp_path, "p.csv", text)

    assert [(call.line, call.prompt) for call in found] == [(3, "two\nlines"), (4, "x")]
    assert found[0].options == {"tenant": "acme", "tags": ["a", "b"], "ttl_s": 60, "seed": 1}
    assert found[1].options == {}


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("p.jsonl", '{"prompt": "a"}\nnot json\n', "line 2: not JSON"),
        ("p.jsonl", '["a"]\n', "line 1: not an object"),
        ("p.jsonl", '{"prompt": "a", "tennant": "b"}\n', "line 1: unknown 'tennant'"),
        ("p.jsonl", '{"model": "m"}\n', "line 1: one of prompt and messages"),
        ("p.jsonl", '{"prompt": "a", "messages": []}\n', "line 1: one of prompt and messages"),
        ("p.jsonl", '{"prompt": "a", "params": 1}\n', "line 1: params"),
        ("p.jsonl", '{"prompt": "a", "params": {"tenant": "b"}}\n', "line 1: params"),
        ("p.jsonl", '{"prompt": "a", "params": {"stream": true}}\n', "line 1: params"),
        ("p.csv", "question\nWhat?\n", "line 1: unknown 'question'"),
        ("p.csv", "model\nm\n", "line 1: the first row"),
        ("p.csv", "", "line 1: the first row"),
        ("p.csv", "prompt,model\na,m\nb\n", "line 3: not as many cells"),
        ("p.csv", "prompt,model\na,m,x\n", "line 2: not as many cells"),
        ("p.csv", "prompt,ttl_s\na,soon\n", "line 2: ttl_s is not JSON"),
        ("p.csv", 'prompt\n"a\n', "line 1: unexpected end"),
    ],
)
def test_what_cannot_be_read_is_named_with_its_line(tmp_path, name, text, message):
    with pytest.raises(InvalidFile, match=message):
        read(tmp_path, name, text)


def test_a_file_that_is_missing_or_no_text_is_told(tmp_path):
    with pytest.raises(InvalidFile, match="No such file"):
        list(read_prompts(tmp_path / "missing.txt"))
    (tmp_path / "p.txt").write_bytes(b"\xff\xfe")
    with pytest.raises(InvalidFile, match="UTF-8"):
        list(read_prompts(tmp_path / "p.txt"))


# ------------------------------------------------------------------ warming up


async def test_what_was_warmed_up_is_answered_without_the_model(cache, upstream, notes):
    report = await warm(cache, calls(*QUESTIONS, tenant="acme"), checkpoint=notes)

    assert (report.asked, report.done, report.stopped) == (4, 4, None)
    assert report.prompt_tokens > 0
    assert {(await cache.chat(q, tenant="acme")).status for q in QUESTIONS} == {"exact"}
    assert upstream.calls == 4
    assert not notes.exists()


async def test_calls_are_made_as_the_file_says(cache, upstream):
    messages = [{"role": "user", "content": "Hi"}]
    await warm(
        cache,
        [
            WarmCall(1, "What?", {"model": "m", "system": "Be brief.", "temperature": 0}),
            WarmCall(2, messages, {}),
        ],
        defaults={"model": "default", "system": "Be kind."},
        concurrency=1,
    )

    first, second = (request.body for request in upstream.requests)
    assert (first["model"], first["temperature"]) == ("m", 0)
    assert first["messages"][0]["content"] == "Be brief."
    assert (second["model"], second["messages"]) == ("default", messages)


async def test_no_more_calls_than_asked_for_are_under_way(make_cache, upstream):
    todo = calls(*(f"Question {n}" for n in range(30)))
    with upstream.hold():
        warming = asyncio.create_task(warm(make_cache(), todo, concurrency=3))
        await upstream.called(3)
        # Whatever else could start has had its turn many times over.
        for _ in range(100):
            await asyncio.sleep(0)
        assert upstream.calls == 3
    assert (await warming).asked == 30


async def test_a_line_that_is_there_twice_is_asked_once(cache, upstream):
    report = await warm(cache, calls("What?", "What?", "What?"))

    assert (report.asked, report.there, upstream.calls) == (1, 2, 1)


async def test_lines_that_fail_are_told_and_tried_again(cache, upstream, notes):
    def moody(body):
        is_bad = "beta" in body["messages"][-1]["content"]
        return Answer(status=400) if is_bad else "fine"

    upstream.default = moody
    todo = [*calls(*QUESTIONS), WarmCall(5, "What?", {"tenant": ""})]
    report = await warm(cache, todo, checkpoint=notes)

    assert (report.asked, report.failed, report.stopped) == (3, 2, None)
    assert [failure.line for failure in report.failures] == [2, 5]
    assert "BadRequestError" in report.failures[0].reason
    assert "tenant" in report.failures[1].reason
    assert stat.S_IMODE(notes.stat().st_mode) == 0o600
    assert "Question" not in notes.read_text()

    upstream.default = "fine"
    before = upstream.calls
    report = await warm(cache, calls(*QUESTIONS), checkpoint=notes)
    assert (report.asked, report.skipped, upstream.calls - before) == (1, 3, 1)
    assert not notes.exists()


async def test_an_answer_that_must_not_be_stored_is_paid_for_once(cache, upstream, notes):
    upstream.default = Answer(text="cut", finish_reason="length")
    first = await warm(cache, calls("What?"), checkpoint=notes)
    assert (first.not_stored, first.failures[0].reason) == (1, "answered, but not stored: length")

    for _ in range(2):
        again = await warm(cache, calls("What?"), checkpoint=notes)
        assert (again.skipped, upstream.calls) == (1, 1)


async def test_it_stops_when_the_service_fails_line_after_line(cache, upstream, notes):
    upstream.default = Answer(status=401)
    todo = calls(*(f"Question {n}" for n in range(100)))
    report = await warm(cache, todo, checkpoint=notes, concurrency=1, most_failures_in_a_row=5)

    assert report.failed == 5
    assert report.stopped == "5 lines in a row have failed"


async def test_it_stops_at_the_first_answer_that_the_embedder_kept_from_being_stored(
    make_cache, upstream
):
    async def broken(texts):
        raise OSError("no embeddings today")

    from llm_cache import CallableEmbedder

    embedder = CallableEmbedder(broken, model_id="broken", dimensions=8)
    report = await warm(make_cache(embedder=embedder), calls(*QUESTIONS), concurrency=1)

    assert (report.failed, report.stopped, upstream.calls) == (1, "embedder failed", 1)


async def test_requests_that_the_cache_leaves_out_are_not_paid_for(make_cache, upstream):
    cache = make_cache(bypass=lambda request: True)
    report = await warm(cache, calls("What?"))

    assert (report.failed, upstream.calls) == (1, 0)
    assert "policy" in report.failures[0].reason


# ------------------------------------------------------------------ the checkpoint


@pytest.fixture
async def half_done(cache, upstream, notes):
    """A run that a failing line has left a checkpoint of."""
    upstream.default = lambda body: (
        Answer(status=400) if "delta" in body["messages"][-1]["content"] else "fine"
    )
    await warm(cache, calls(*QUESTIONS), checkpoint=notes)
    upstream.default = "fine"
    return cache


async def test_finished_lines_are_not_even_looked_up(half_done, notes, redis):
    # Gone without a word to anybody: only who does not look does not notice.
    await redis.delete((await half_done.lookup_exact(QUESTIONS[0])).key)

    assert (await warm(half_done, calls(*QUESTIONS), checkpoint=notes)).skipped == 3


async def test_what_was_invalidated_since_is_asked_again(half_done, notes):
    await half_done._epochs.purge([target(Kind.ALL)])
    report = await warm(half_done, calls(*QUESTIONS), checkpoint=notes)

    assert (report.asked, report.skipped) == (4, 0)


async def test_what_has_expired_since_is_looked_up_again(half_done, notes, make_cache):
    later = make_cache(clock=lambda: half_done._clock() + 100_000)
    report = await warm(later, calls(*QUESTIONS), checkpoint=notes)

    assert report.skipped == 0


async def test_another_redis_namespace_is_filled_on_its_own(half_done, notes, make_cache):
    elsewhere = make_cache(namespace="t.warm.elsewhere")
    report = await warm(elsewhere, calls(*QUESTIONS), checkpoint=notes)

    assert (report.asked, report.skipped) == (4, 0)


async def test_half_a_line_of_a_checkpoint_is_passed_over(half_done, notes):
    with notes.open("ab") as output:
        output.write(b"abcdef 99999")
    await warm(half_done, calls(QUESTIONS[3], ""), checkpoint=notes)
    report = await warm(half_done, calls(*QUESTIONS), checkpoint=notes)

    assert report.skipped == 4


async def test_a_file_that_is_no_checkpoint_stays_as_it_is(cache, notes, upstream):
    notes.write_text("precious\n")
    with pytest.raises(InvalidFile, match="no checkpoint"):
        await warm(cache, calls("What?"), checkpoint=notes)
    with pytest.raises(FileUnwritable, match="checkpoint"):
        await warm(cache, calls("What?"), checkpoint=notes.with_name("missing") / "x")

    assert notes.read_text() == "precious\n"
    assert upstream.calls == 0


async def test_a_mistake_further_down_the_file_ends_it_with_that_mistake(cache, tmp_path):
    path = tmp_path / "p.jsonl"
    path.write_text('{"prompt": "a"}\noops\n')
    with pytest.raises(InvalidFile, match="line 2"):
        await warm(cache, read_prompts(path))


async def test_a_hundred_at_a_time_but_not_none(cache):
    with pytest.raises(InvalidRequest, match="concurrency"):
        await warm(cache, [], concurrency=0)


KILLED = """
import asyncio, sys
from pathlib import Path
from openai import AsyncOpenAI
from llm_cache import CacheConfig, LLMCache
from llm_cache.testing import FakeEmbedder
from llm_cache.warm import read_prompts, warm

async def main(redis_url, base_url, namespace, path):
    client = AsyncOpenAI(base_url=base_url, api_key="x", max_retries=0)
    config = CacheConfig(namespace=namespace)
    async with LLMCache(redis_url, client=client, embedder=FakeEmbedder(), config=config) as cache:
        report = await warm(
            cache, read_prompts(path), checkpoint=f"{path}.warm", concurrency=2,
            on_done=lambda status: print(status, flush=True),
        )
        print(report.asked, report.there, report.skipped, flush=True)

asyncio.run(main(*sys.argv[1:]))
"""


async def test_killed_halfway_it_goes_on_and_pays_for_nothing_twice(
    redis_url, upstream, namespace, tmp_path, redis
):
    path = tmp_path / "prompts.txt"
    path.write_text("".join(f"Question number {n}\n" for n in range(40)))
    command = [sys.executable, "-c", KILLED, redis_url, upstream.base_url, namespace, str(path)]
    # The model takes so long over what comes after the twentieth that the end comes first.
    upstream.default = lambda body: (
        Answer(text="late", delay_s=60.0) if upstream.calls > 20 else "in time"
    )
    process = await _start(command)
    await upstream.called(22, timeout_s=60)
    await _lines(process, 20)
    process.send_signal(signal.SIGKILL)
    await process.wait()
    paid = upstream.calls

    upstream.default = "in time"
    process = await _start(command)
    output, _ = await process.communicate()
    asked, there, skipped = map(int, output.decode().splitlines()[-1].split())
    # What was under way at the kill, two calls, was never answered.
    assert (paid, upstream.calls) == (22, 42)
    assert asked == 20
    assert (there, skipped) == (0, 20)
    assert len([k async for k in redis.scan_iter(f"{namespace}:x:*")]) == 40


async def _start(command: list[str]) -> asyncio.subprocess.Process:

    return await asyncio.create_subprocess_exec(*command, stdout=subprocess.PIPE)


async def _lines(process: asyncio.subprocess.Process, count: int) -> None:
    assert process.stdout is not None
    for _ in range(count):
        await process.stdout.readline()


# ------------------------------------------------------------------ what it would take


async def test_the_estimate_knows_what_is_there(cache, upstream):
    await cache.chat(QUESTIONS[0])
    todo = [
        *calls(*QUESTIONS, QUESTIONS[1]),
        WarmCall(6, "Why?", {"model": "other", "max_tokens": 10}),
        WarmCall(7, "Why?", {"tenant": ""}),
    ]
    found = await estimate(cache, todo, answer_tokens=100, count_tokens=lambda text, model: 7)

    assert (found.lines, found.there, found.repeated) == (7, 1, 1)
    assert [told.line for told in found.invalid] == [7]
    # Of each, the system message and the prompt, and what goes around a message.
    assert found.by_model == {"gpt-4o-mini": (3, 3 * 2 * 11, 300), "other": (1, 22, 10)}
    assert upstream.calls == 1


async def test_without_a_tokenizer_the_estimate_is_rough(cache):
    found = await estimate(cache, calls("x" * 400, system=None))

    assert found.by_model == {"gpt-4o-mini": (1, 104, 300)}


async def test_the_model_is_not_asked_for_an_estimate(make_cache):
    nobody = openai.AsyncOpenAI(base_url="http://127.0.0.1:1", api_key="x")
    found = await estimate(make_cache(client=nobody, semantic=False), calls("What?"))

    assert found.by_model["gpt-4o-mini"][0] == 1


async def test_answer_that_is_stored_late_is_not_a_failure(make_cache, embedder):
    cache = await make_cache(added_latency_budget_s=0.2).open()
    embedder.gate = asyncio.Event()

    report = await warm(cache, [WarmCall(1, "late", {})])

    assert (report.asked, report.stopped, report.failures) == (1, None, [])
    assert (await cache.chat("late")).status == "exact"
    embedder.gate.set()
