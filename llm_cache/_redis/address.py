"""Where Redis is, as a URL says it: one server, a cluster, or what sentinels watch."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any
from urllib.parse import parse_qsl, urlsplit

from redis.asyncio.connection import parse_url
from redis.exceptions import RedisError

from llm_cache.errors import ConfigurationError

_SENTINEL_OPTIONS = frozenset({"sentinel_username", "sentinel_password"})
# Of what redis-py takes, what can be said in text. `decode_responses` is taken and does nothing.
_OPTIONS = frozenset(
    {"client_name", "db", "decode_responses", "health_check_interval", "lib_name", "lib_version"}
    | {"max_connections", "password", "protocol", "retry_on_timeout", "socket_connect_timeout"}
    | {"socket_keepalive", "socket_read_size", "socket_timeout", "timeout", "username"}
)
_TLS_OPTION = "ssl_"
# What is said elsewhere, and what redis-py's own clients for many servers do not take.
_LEFT_OUT = ("host", "port", "max_connections", "timeout", "decode_responses", "retry_on_timeout")
_PORT, _SENTINEL_PORT = 6379, 26379


class Kind(StrEnum):
    """What stands behind a URL."""

    SINGLE = "single"
    CLUSTER = "cluster"
    SENTINEL = "sentinel"
    EMBEDDED = "embedded"


_SCHEMES = {
    "redis": Kind.SINGLE,
    "rediss": Kind.SINGLE,
    "unix": Kind.SINGLE,
    "redis+cluster": Kind.CLUSTER,
    "rediss+cluster": Kind.CLUSTER,
    "redis+sentinel": Kind.SENTINEL,
    "rediss+sentinel": Kind.SENTINEL,
    "embedded": Kind.EMBEDDED,
}


@dataclass(frozen=True, slots=True)
class Address:
    """A checked URL. Of a single server, redis-py reads the rest itself."""

    url: str = field(repr=False)
    kind: Kind
    hosts: tuple[tuple[str, int], ...] = ()
    """Nodes of a cluster, or sentinels."""
    service: str = ""
    """What the sentinels call the master."""
    options: Mapping[str, Any] = field(default_factory=dict, repr=False)
    """What every connection is made with, the user and TLS included, as redis-py names it."""
    sentinel_options: Mapping[str, Any] = field(default_factory=dict, repr=False)
    """The same of connections to the sentinels themselves."""

    @property
    def is_secure(self) -> bool:
        """Whether TLS is spoken."""
        return self.url.startswith("rediss")


def read_address(url: object) -> Address:
    """Return what *url* says.

    Raises:
        ConfigurationError: it is not one of ours, or has an option that cannot work.
    """
    if not isinstance(url, str):
        raise ConfigurationError(f"the Redis URL must be text; got {type(url).__name__}")
    scheme = url.partition("://")[0] if "://" in url else ""
    kind = _SCHEMES.get(scheme)
    if kind is None:
        raise ConfigurationError(
            f"the Redis URL must begin with {', '.join(f'{name}://' for name in _SCHEMES)};"
            f" got {mask(url)!r}"
        )
    if kind is Kind.EMBEDDED:
        return Address(url, kind)
    if scheme in {"redis", "rediss"}:
        _check_address(url)
    _check_query(url, _OPTIONS | (_SENTINEL_OPTIONS if kind is Kind.SENTINEL else frozenset()))
    return Address(url, kind) if kind is Kind.SINGLE else _many(url, kind)


def mask(url: str) -> str:
    """Return *url* as it may be shown: without its user, its password and its query.

    A password that should have been percent-encoded may hold any sign, so nothing before the last
    `@` is shown, and nothing at all where that may be within the query.
    """
    before, at, after = url.rpartition("@")
    shown = re.split(r"[?#]", after)[0]
    if not at:
        return shown
    scheme = re.match(r"[a-z]+(\+[a-z]+)?://", before)
    rest = "" if "?" in before else f"@{shown}"
    return f"{scheme.group() if scheme else ''}***{rest}"


def _many(url: str, kind: Kind) -> Address:
    """Return what the URL of several servers says."""
    parts = urlsplit(url)
    user, at, addresses = parts.netloc.rpartition("@")
    secure = parts.scheme.partition("+")[0]
    port = _PORT if kind is Kind.CLUSTER else _SENTINEL_PORT
    hosts = tuple(_host(text, port, url) for text in addresses.split(","))
    service, database = _path(parts.path, kind, url)
    # What redis-py would make of one of them, so that every option means the same everywhere.
    single = f"{secure}://{user}{at}host/{database}?{parts.query}"
    try:
        options: dict[str, Any] = dict(parse_url(single))
    except (ValueError, RedisError) as error:
        raise ConfigurationError(f"the Redis URL cannot work: {error}") from error
    for name in (*_LEFT_OUT, "connection_class"):
        options.pop(name, None)
    own = {name: options.pop(name) for name in _SENTINEL_OPTIONS & options.keys()}
    if kind is Kind.CLUSTER and options.pop("db", 0):
        raise ConfigurationError(
            f"a cluster has one database, 0; the Redis URL names another: {mask(url)!r}"
        )
    tls = {name: value for name, value in options.items() if name.startswith(_TLS_OPTION)}
    if tls and secure != "rediss":
        raise ConfigurationError(
            f"options for TLS ({', '.join(sorted(tls))}) need a URL that begins with rediss+"
        )
    return Address(
        url,
        kind,
        hosts,
        service,
        options,
        {**tls, **{name.removeprefix("sentinel_"): value for name, value in own.items()}},
    )


def _host(text: str, port: int, url: str) -> tuple[str, int]:
    try:
        parts = urlsplit(f"//{text}")
        found = parts.hostname, parts.port or port
    except ValueError:
        found = None, port
    if not found[0]:
        raise ConfigurationError(
            f"the Redis URL needs hosts as h1:p1,h2:p2; one of them is none: {mask(url)!r}"
        )
    return found[0], found[1]


def _path(path: str, kind: Kind, url: str) -> tuple[str, str]:
    """Return the service and the number of the database."""
    service, _, database = path.strip("/").partition("/")
    if kind is Kind.CLUSTER:
        service, database = "", service if not database else f"{service}/{database}"
    elif not service:
        raise ConfigurationError(
            "the Redis URL must name what the sentinels watch, as in"
            f" redis+sentinel://h1:26379,h2:26379/mymaster; got {mask(url)!r}"
        )
    if not re.fullmatch(r"\d*", database):
        raise ConfigurationError(
            f"the path of the Redis URL ends with the number of a database; got {mask(url)!r}"
        )
    return service, database


def _check_address(url: str) -> None:
    try:
        parts = urlsplit(url)
        port_is_fine = parts.port is None or parts.port > 0
    except ValueError:
        port_is_fine = False
    if not port_is_fine:
        raise ConfigurationError(f"the Redis URL has no valid port: {mask(url)!r}")
    if not re.fullmatch(r"/?\d*", parts.path):
        raise ConfigurationError(
            f"the path of the Redis URL is the number of a database; got {mask(url)!r}"
        )


def _check_query(url: str, known: frozenset[str]) -> None:
    try:
        query, fragment = urlsplit(url)[3:]
        options = parse_qsl(query, keep_blank_values=True, strict_parsing=bool(query))
    except ValueError:
        options, fragment = [], "unreadable"
    # Where a password has one of these signs, redis-py would ask another host without telling.
    if fragment:
        raise ConfigurationError(
            "the Redis URL has a `?` that begins no `name=value`, or a `#`; in a password they are"
            f" written %3F and %23: {mask(url)!r}"
        )
    for name, _ in options:
        if name not in known and not name.startswith(_TLS_OPTION):
            raise ConfigurationError(
                f"the Redis URL has an option that is not known: {name!r}; known are"
                f" {', '.join(sorted(known))} and those for TLS, which begin with ssl_"
            )
