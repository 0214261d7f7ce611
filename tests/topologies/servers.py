"""Real servers on loopback, in the shapes that Redis is run in: started, broken and stopped.

All of them run the binaries that `embedded://` finds. Everything here blocks, so that a fixture of
the whole session can start it outside any event loop; a test that does so inside one uses
`asyncio.to_thread`. Every start returns when the set-up answers, and every object is a context
manager that leaves no process behind; if this process is killed, a keeper ends the servers.
"""

from __future__ import annotations

import contextlib
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import redis as redis_py
import trustme
from redis.crc import key_slot
from redis.exceptions import RedisError

from llm_cache._redis.embedded import find_server

HOST = "127.0.0.1"
SERVICE = "answers"
NODE_TIMEOUT_MS = 2_000
_PATIENCE_S = 30.0
_POLL_S = 0.02
_SLOTS = 16_384
_USUAL = {
    "bind": HOST,
    "protected-mode": "no",
    "save": "",
    "appendonly": "no",
    "daemonize": "no",
    "enable-debug-command": "yes",
    "repl-diskless-sync-delay": "0",
}
# `read` returns when nobody holds the other end of the pipe any more, however this process ended.
_KEEPER = "trap '' HUP INT QUIT TERM; read -r line; kill -s KILL 0"


class Processes:
    """Processes that end with this one, and a directory for them."""

    def __init__(self) -> None:
        self.directory = Path(tempfile.mkdtemp(prefix="llm-cache-topology-"))
        self._keeper = subprocess.Popen(
            ["/bin/sh", "-c", _KEEPER], stdin=subprocess.PIPE, process_group=0
        )
        self._all: list[subprocess.Popen[bytes]] = []

    def run(self, arguments: Sequence[str], *, log: Path) -> subprocess.Popen[bytes]:
        """Start a process whose output goes to *log*."""
        with log.open("ab") as output:
            process = subprocess.Popen(
                arguments,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                process_group=self._keeper.pid,
            )
        self._all.append(process)
        return process

    def close(self) -> None:
        """Kill what still runs, and remove the directory."""
        for process in self._all:
            process.kill()
            process.wait()
        self._keeper.kill()
        self._keeper.communicate()
        shutil.rmtree(self.directory, ignore_errors=True)


class Server:
    """One server process at one port of loopback; it can be killed, stopped and started again."""

    def __init__(
        self,
        processes: Processes,
        port: int,
        *,
        options: Mapping[str, str] | None = None,
        file_lines: Iterable[str] = (),
        is_sentinel: bool = False,
    ) -> None:
        self._processes = processes
        self._command = find_server()
        self.port = port
        self.directory = processes.directory / str(port)
        self.directory.mkdir()
        self._options = {} if is_sentinel else {**_USUAL, **(options or {})}
        self._is_sentinel = is_sentinel
        self._file = self.directory / "server.conf"
        self._file.write_text("".join(f"{line}\n" for line in file_lines))
        self.process: subprocess.Popen[bytes] | None = None
        self.credentials: dict[str, Any] = {}
        """Given to every `command`."""

    @property
    def address(self) -> str:
        """Host and port, as in a URL."""
        return f"{HOST}:{self.port}"

    @property
    def pid(self) -> int:
        """The process id of the running server."""
        assert self.process is not None, "the server was never started"
        return self.process.pid

    @property
    def log(self) -> str:
        """What the server has written since it was first started."""
        return (self.directory / "server.log").read_text(errors="replace")

    def start(self) -> Self:
        """Start the process, with what it kept, and wait until it answers with its data loaded."""
        self.launch()
        self.wait_until_ready()
        return self

    def launch(self) -> None:
        """Start the process, and wait for nothing."""
        arguments = [str(self._command.executable), str(self._file)]
        if self._is_sentinel:
            arguments.append("--sentinel")
        else:
            arguments += ["--port", str(self.port), "--dir", str(self.directory)]
            for module in self._command.modules:
                arguments += ["--loadmodule", str(module)]
        for name, value in self._options.items():
            arguments += [f"--{name}", value]
        self.process = self._processes.run(arguments, log=self.directory / "server.log")

    def wait_until_ready(self) -> None:
        """Return when the server answers `PING`."""
        until(self._answers, f"{self.address} to answer", self._tail)

    def kill(self) -> None:
        """End the process as a crash does."""
        self.signal(signal.SIGKILL)
        assert self.process is not None
        self.process.wait()

    def pause(self) -> None:
        """Have the process stand still: connections stay, and nothing is answered."""
        self.signal(signal.SIGSTOP)

    def resume(self) -> None:
        """Have the process go on after `pause`."""
        self.signal(signal.SIGCONT)

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to the process."""
        assert self.process is not None, "the server was never started"
        self.process.send_signal(number)

    def command(self, *command: Any, timeout_s: float = 5.0) -> Any:
        """Run one command over a connection of its own, and return the answer."""
        with redis_py.Redis(
            host=HOST, port=self.port, socket_timeout=timeout_s, **self.credentials
        ) as client:
            return client.execute_command(*command)

    def info(self, section: str) -> dict[str, Any]:
        """Return a section of `INFO`."""
        found: dict[str, Any] = self.command("INFO", section)
        return found

    def _answers(self) -> bool:
        assert self.process is not None
        if self.process.poll() is not None:
            raise RuntimeError(f"{self.address} ended while it started. {self._tail()}")
        return bool(self.command("PING"))

    def _tail(self) -> str:
        return self.log[-2_000:]


class Topology:
    """A set-up of servers. Subclasses say which, and the URL by which a cache reaches them."""

    def __init__(self) -> None:
        self._held = ExitStack()
        self.processes = Processes()
        self._held.callback(self.processes.close)

    @property
    def url(self) -> str:
        """What a cache is given."""
        raise NotImplementedError

    def close(self) -> None:
        """Stop everything."""
        self._held.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _closed_on_error(self, build: Callable[[], object]) -> None:
        try:
            build()
        except BaseException:
            self.close()
            raise


class Standalone(Topology):
    """One server without any condition."""

    def __init__(self, options: Mapping[str, str] | None = None) -> None:
        super().__init__()
        (port,) = free_ports(1)
        self.server = Server(self.processes, port, options=options)
        self._closed_on_error(self.server.start)

    @property
    def url(self) -> str:
        return f"redis://{self.server.address}"


class Cluster(Topology):
    """Primaries that share the slots, each with so many replicas.

    Args:
        full_coverage: Whether a cluster that lacks the primary of some slots refuses all others,
            as Redis does by default.
    """

    def __init__(
        self,
        primaries: int = 3,
        *,
        replicas: int = 0,
        full_coverage: bool = False,
        options: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__()
        count = primaries * (1 + replicas)
        ports = free_ports(2 * count)
        settings = {
            "cluster-enabled": "yes",
            "cluster-config-file": "nodes.conf",
            "cluster-node-timeout": str(NODE_TIMEOUT_MS),
            "cluster-require-full-coverage": "yes" if full_coverage else "no",
            # A replica takes over however old its data is.
            "cluster-replica-validity-factor": "0",
            **(options or {}),
        }
        self.servers = [
            Server(self.processes, port, options={**settings, "cluster-port": str(bus)})
            for port, bus in zip(ports[:count], ports[count:], strict=True)
        ]
        self._buses = dict(zip(ports[:count], ports[count:], strict=True))
        self.first = self.servers[:primaries]
        """Those that began as primaries."""
        self._closed_on_error(lambda: self._build(primaries))

    @property
    def url(self) -> str:
        return f"redis+cluster://{','.join(server.address for server in self.servers)}"

    def primaries(self) -> list[Server]:
        """Return those that are primaries now, as a server that lives sees it."""
        return [self.at(port) for port, _ in self._map().values()]

    def at(self, port: int) -> Server:
        """Return the server of a port."""
        return next(server for server in self.servers if server.port == port)

    def primary_of(self, key: str | bytes) -> Server:
        """Return the primary that has the slot of *key* now."""
        slot = key_slot(key if isinstance(key, bytes) else key.encode())
        return next(self.at(port) for port, slots in self._map().values() if slot in slots)

    def replica_of(self, primary: Server) -> Server:
        """Return a replica of *primary* that lives."""
        name = primary.command("CLUSTER", "MYID").decode()
        found = primary.command("CLUSTER NODES")
        ports = [
            int(address.rpartition(":")[2])
            for address, node in found.items()
            if node["master_id"] == name
        ]
        return self.at(ports[0])

    def move_slot(self, slot: int, to: Server, *, finish: bool = True) -> None:
        """Give *slot* with its keys to the primary *to*, as resharding does.

        Unless it is to *finish*, it stays half moved: keys that were moved answer `ASK`.
        """
        source = next(self.at(port) for port, slots in self._map().values() if slot in slots)
        names = [server.command("CLUSTER", "MYID").decode() for server in (source, to)]
        to.command("CLUSTER", "SETSLOT", slot, "IMPORTING", names[0])
        source.command("CLUSTER", "SETSLOT", slot, "MIGRATING", names[1])
        while keys := source.command("CLUSTER", "GETKEYSINSLOT", slot, 100):
            source.command("MIGRATE", HOST, to.port, "", 0, 5000, "KEYS", *keys)
        if finish:
            self.finish_slot(slot, to)

    def finish_slot(self, slot: int, to: Server) -> None:
        """End a move that was begun without `finish`."""
        name = to.command("CLUSTER", "MYID").decode()
        others = [server for server in self.primaries() if server is not to]
        for server in (to, *others):
            server.command("CLUSTER", "SETSLOT", slot, "NODE", name)

    def wait_until_whole(self, *, slots: int = _SLOTS) -> None:
        """Return when all servers that run agree that all slots are served, and will be.

        A primary that one of them still takes for lost may lose its slots yet.
        """
        running = [
            server for server in self.servers if server.process and server.process.poll() is None
        ]

        def is_whole() -> bool:
            maps = [_slots_of(server) for server in running]
            covered = sum(len(span) for _, span in maps[0].values())
            return (
                covered == slots
                and all(found == maps[0] for found in maps)
                and all(
                    b"cluster_state:ok" in _raw(server, "CLUSTER", "INFO")
                    and b"fail" not in _raw(server, "CLUSTER", "NODES")
                    for server in running
                )
            )

        until(is_whole, "the cluster to be whole", lambda: running[0].log[-2_000:])

    def wait_for_fail_over(self, lost: Server) -> None:
        """Return when the slots of *lost*, which was killed or paused, have another primary."""
        others = [server for server in self.servers if server is not lost]

        def has_happened() -> bool:
            maps = [
                _slots_of(server)
                for server in others
                if server.process and server.process.poll() is None
            ]
            return all(
                lost.port not in [port for port, _ in found.values()] and found == maps[0]
                for found in maps
            )

        until(has_happened, f"a replica of {lost.address} to take over")

    def _map(self) -> dict[str, tuple[int, range]]:
        for server in self.servers:
            with contextlib.suppress(RedisError):
                return _slots_of(server)
        raise RuntimeError("no server of the cluster answers")

    def _build(self, primaries: int) -> None:
        for server in self.servers:
            server.launch()
        for server in self.servers:
            server.wait_until_ready()
        share = -(-_SLOTS // primaries)
        for i, server in enumerate(self.servers):
            # Without it, all begin with the same epoch and take seconds to agree.
            server.command("CLUSTER", "SET-CONFIG-EPOCH", i + 1)
            if i < primaries:
                last = min((i + 1) * share, _SLOTS) - 1
                server.command("CLUSTER", "ADDSLOTSRANGE", i * share, last)
        for server in self.servers[1:]:
            self.servers[0].command("CLUSTER", "MEET", HOST, server.port, self._buses[server.port])
        everybody = len(self.servers)
        for server in self.servers:
            until(
                lambda server=server: _known(server) == everybody,  # type: ignore[misc]
                f"{server.address} to know the others",
            )
        for i, server in enumerate(self.servers[primaries:]):
            master = self.servers[i % primaries].command("CLUSTER", "MYID")
            server.command("CLUSTER", "REPLICATE", master)
        self.wait_until_whole()
        for server in self.servers[primaries:]:
            until(
                lambda server=server: server.info("replication")["master_link_status"] == "up",  # type: ignore[misc]
                f"{server.address} to have the data of its primary",
            )


class Sentinels(Topology):
    """A master, its replicas, and sentinels that watch them and fail over within seconds."""

    def __init__(
        self,
        sentinels: int = 3,
        *,
        replicas: int = 1,
        down_after_ms: int = 500,
        options: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__()
        ports = free_ports(1 + replicas + sentinels)
        self.first = Server(self.processes, ports[0], options=options)
        """The one that began as master."""
        copying = {"replicaof": f"{HOST} {self.first.port}", **(options or {})}
        self.replicas = [
            Server(self.processes, port, options=copying) for port in ports[1 : 1 + replicas]
        ]
        self.servers = [self.first, *self.replicas]
        self.sentinels = [
            Server(
                self.processes,
                port,
                is_sentinel=True,
                file_lines=(
                    f"port {port}",
                    f"bind {HOST}",
                    f"dir {self.processes.directory / str(port)}",
                    f"sentinel monitor {SERVICE} {HOST} {self.first.port} {sentinels // 2 + 1}",
                    f"sentinel down-after-milliseconds {SERVICE} {down_after_ms}",
                    f"sentinel failover-timeout {SERVICE} 3000",
                    f"sentinel parallel-syncs {SERVICE} 1",
                ),
            )
            for port in ports[1 + replicas :]
        ]
        self._closed_on_error(self._build)

    @property
    def url(self) -> str:
        addresses = ",".join(sentinel.address for sentinel in self.sentinels)
        return f"redis+sentinel://{addresses}/{SERVICE}"

    def master(self) -> Server:
        """Return the master that the sentinels name."""
        for sentinel in self.sentinels:
            with contextlib.suppress(RedisError):
                _, port = sentinel.command("SENTINEL GET-MASTER-ADDR-BY-NAME", SERVICE)
                return next(server for server in self.servers if server.port == int(port))
        raise RuntimeError("no sentinel answers")

    def fail_over(self) -> None:
        """Have the sentinels make a replica the master, while the master is well."""
        old = self.master()
        self.sentinels[0].command("SENTINEL", "FAILOVER", SERVICE)
        self.wait_for_other_than(old)

    def wait_for_other_than(self, old: Server) -> Server:
        """Return the new master when the sentinels name one that takes writes."""

        def has_changed() -> bool:
            new = self.master()
            return new is not old and new.info("replication")["role"] == "master"

        until(has_changed, "another master", lambda: self.sentinels[0].log[-2_000:])
        return self.master()

    def _build(self) -> None:
        self.first.start()
        for replica in self.replicas:
            replica.start()
        for replica in self.replicas:
            until(
                lambda replica=replica: replica.info("replication")["master_link_status"] == "up",  # type: ignore[misc]
                f"{replica.address} to have the data of the master",
            )
        for sentinel in self.sentinels:
            sentinel.start()
        for sentinel in self.sentinels:
            until(lambda sentinel=sentinel: self._is_informed(sentinel), "sentinels to agree")  # type: ignore[misc]

    def _is_informed(self, sentinel: Server) -> bool:
        found = sentinel.command("SENTINEL MASTER", SERVICE)
        return (
            int(found["num-slaves"]) == len(self.replicas)
            and int(found["num-other-sentinels"]) == len(self.sentinels) - 1
        )


@dataclass(frozen=True, slots=True)
class Certificates:
    """Files of an authority, of a server at loopback, and of a client."""

    authority: Path
    server: Path
    client: Path

    @classmethod
    def make(cls, directory: Path) -> Certificates:
        """Write them to *directory*; a file of a certificate holds its private key, too."""
        authority = trustme.CA()
        made = cls(directory / "ca.pem", directory / "server.pem", directory / "client.pem")
        authority.cert_pem.write_to_path(str(made.authority))
        server = authority.issue_cert(HOST, "localhost")
        server.private_key_and_cert_chain_pem.write_to_path(str(made.server))
        client = authority.issue_cert("cache@localhost")
        client.private_key_and_cert_chain_pem.write_to_path(str(made.client))
        return made


class Tls(Topology):
    """A server behind TLS that asks for the certificate of the client.

    The embedded binary speaks no TLS, so that a process of its own ends it in front of the server,
    as stunnel does; the handshake, the certificates and the client are real.
    """

    def __init__(self, options: Mapping[str, str] | None = None) -> None:
        super().__init__()
        port, self.port = free_ports(2)
        self.server = Server(self.processes, port, options=options)
        self.certificates = Certificates.make(self.processes.directory)
        self._closed_on_error(self._build)

    @property
    def url(self) -> str:
        files = self.certificates
        return (
            f"rediss://{HOST}:{self.port}?ssl_ca_certs={files.authority}"
            f"&ssl_certfile={files.client}&ssl_keyfile={files.client}"
        )

    @property
    def url_without_certificate(self) -> str:
        """The URL of a client that has no certificate of its own."""
        return f"rediss://{HOST}:{self.port}?ssl_ca_certs={self.certificates.authority}"

    def _build(self) -> None:
        self.server.start()
        files = self.certificates
        arguments = [str(self.port), str(self.server.port), files.authority, files.server]
        log = self.processes.directory / "tls.log"
        self.processes.run(
            [sys.executable, str(Path(__file__).with_name("tls_front.py")), *map(str, arguments)],
            log=log,
        )
        context = ssl.create_default_context(cafile=files.authority)
        context.load_cert_chain(files.client)

        def answers() -> bool:
            with (
                socket.create_connection((HOST, self.port), timeout=5) as plain,
                context.wrap_socket(plain, server_hostname=HOST) as secure,
            ):
                secure.sendall(b"PING\r\n")
                return secure.recv(7) == b"+PONG\r\n"

        until(answers, "TLS to be spoken", log.read_text)


class Acl(Topology):
    """A server with a user that may do so much and no more; the default user is off."""

    ADMIN = "admin"
    USER = "cache"
    PASSWORD = "pass:word@1"  # has to be percent-encoded in a URL

    def __init__(self, rules: Sequence[str], *, options: Mapping[str, str] | None = None) -> None:
        super().__init__()
        (port,) = free_ports(1)
        self.server = Server(
            self.processes,
            port,
            options=options,
            file_lines=(
                f"user {self.ADMIN} on >{self.PASSWORD} ~* &* +@all",
                f"user {self.USER} on >{self.PASSWORD} {' '.join(rules)}",
                "user default off",
            ),
        )
        self.server.credentials = {"username": self.ADMIN, "password": self.PASSWORD}
        self._closed_on_error(self.server.start)

    @property
    def url(self) -> str:
        return self.url_as(self.USER)

    def url_as(self, user: str) -> str:
        """Return the URL of a user."""
        return f"redis://{user}:pass%3Aword%401@{self.server.address}"

    def set_rules(self, *rules: str) -> None:
        """Give the user other rights."""
        self.server.command(
            "ACL", "SETUSER", self.USER, "reset", "on", f">{self.PASSWORD}", *rules
        )


def free_ports(count: int) -> list[int]:
    """Return ports of loopback that nobody listens at."""
    with ExitStack() as held:
        sockets = [held.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind((HOST, 0))
        return [one.getsockname()[1] for one in sockets]


def until(holds: Callable[[], bool], what: str, detail: Callable[[], str] = lambda: "") -> None:
    """Return when *holds* does; errors of the connection count as not yet."""
    deadline = time.monotonic() + _PATIENCE_S
    while time.monotonic() < deadline:
        with contextlib.suppress(RedisError, OSError):
            if holds():
                return
        time.sleep(_POLL_S)
    raise TimeoutError(f"waited {_PATIENCE_S:g} s for {what}. {detail()}")


def _raw(server: Server, *command: str) -> bytes:
    with redis_py.Redis(host=HOST, port=server.port, socket_timeout=5) as client:
        client.response_callbacks.clear()
        answer: bytes = client.execute_command(*command)
        return answer


def _slots_of(server: Server) -> dict[str, tuple[int, range]]:
    """Return port and slots of each range of slots that has a primary."""
    with redis_py.Redis(host=HOST, port=server.port, socket_timeout=5) as client:
        client.response_callbacks.clear()
        found: Any = client.execute_command("CLUSTER", "SLOTS")
    return {
        f"{first}-{last}": (int(primary[1]), range(first, last + 1))
        for first, last, primary, *_ in found
    }


def _known(server: Server) -> int:
    lines = _raw(server, "CLUSTER", "NODES").decode().splitlines()
    return sum("handshake" not in line and " connected" in line for line in lines)
