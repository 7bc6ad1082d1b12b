"""The hospital's HTTP proxy as gRPC takes it from the environment, and a way through it by CONNECT.

The probe of `check` must go the way that the node goes. gRPC reads `grpc_proxy`, `https_proxy`, `http_proxy`, the first that is
set, all in lower case; `no_grpc_proxy`, else `no_proxy`, names suffixes of hosts and networks that are reached directly. Only
http:// proxies exist for it. A proxy forwards bytes and cannot read them, unless it breaks TLS, which shows in the certificate.
"""

from __future__ import annotations

import base64
import ipaddress
import socket
from collections.abc import Mapping
from dataclasses import dataclass, field
from urllib.parse import unquote, urlsplit

PROXY_VARIABLES = ("grpc_proxy", "https_proxy", "http_proxy")
EXCEPT_VARIABLES = ("no_grpc_proxy", "no_proxy")
MAX_ANSWER_BYTES = 16_384


class ProxyRefused(RuntimeError):
    """The proxy opens no way; one sentence with the remedy."""


@dataclass(frozen=True, slots=True)
class Proxy:
    """Where a proxy listens. `variable`: which setting of the environment names it."""

    host: str
    port: int
    variable: str
    credentials: str = field(default="", repr=False)  # user:password, as they are sent

    def __str__(self) -> str:
        return f"{self.host}:{self.port} ({self.variable})"


def proxy_for(host: str, environment: Mapping[str, str]) -> Proxy | None:
    """The proxy through which gRPC reaches `host`; None for a direct way. ProxyRefused where the setting is no proxy."""
    variable = next((name for name in PROXY_VARIABLES if environment.get(name)), None)
    if variable is None or _excepted(host, environment):
        return None
    parts = urlsplit(environment[variable])
    if parts.scheme != "http" or not parts.hostname:
        raise ProxyRefused(
            f"{variable} names no http:// proxy: write it like http://proxy.example.org:3128, or add to no_proxy"
        )
    user = "" if parts.username is None else f"{unquote(parts.username)}:{unquote(parts.password or '')}"
    return Proxy(parts.hostname, parts.port or 80, variable, user)


def open_way(proxy: Proxy, host: str, port: int, timeout_s: float) -> socket.socket:
    """A connection to `host:port` through the proxy (RFC 9110, CONNECT). Raises OSError, ProxyRefused."""
    raw = socket.create_connection((proxy.host, proxy.port), timeout=timeout_s)
    try:
        lines = [f"CONNECT {host}:{port} HTTP/1.1", f"Host: {host}:{port}"]
        if proxy.credentials:
            lines.append("Proxy-Authorization: Basic " + base64.b64encode(proxy.credentials.encode()).decode())
        raw.sendall("\r\n".join([*lines, "", ""]).encode())
        status = _answer(raw).split(b"\r\n", 1)[0].decode("ascii", "replace")
    except OSError:
        raw.close()
        raise
    words = status.split(" ", 2)
    if len(words) < 2 or words[1] != "200":
        raw.close()
        said = " ".join(words[1:]) or "nothing"
        raise ProxyRefused(
            f"the proxy {proxy} answers '{said}' to CONNECT {host}:{port}: ask your network people to allow this host and port"
        )
    return raw


def _answer(raw: socket.socket) -> bytes:
    """Up to the end of the proxy's header; byte by byte, since what follows belongs to TLS."""
    answer = b""
    while not answer.endswith(b"\r\n\r\n") and len(answer) < MAX_ANSWER_BYTES:
        byte = raw.recv(1)
        if not byte:
            break
        answer += byte
    return answer


def _excepted(host: str, environment: Mapping[str, str]) -> bool:
    listed = next((environment[name] for name in EXCEPT_VARIABLES if environment.get(name)), "")
    return any(_matches(host, entry.strip()) for entry in listed.split(",") if entry.strip())


def _matches(host: str, entry: str) -> bool:
    if host.endswith(entry):
        return True
    try:
        return ipaddress.ip_address(host) in ipaddress.ip_network(entry, strict=False)
    except ValueError:
        return False
