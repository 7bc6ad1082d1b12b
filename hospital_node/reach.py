"""Why the coordinator cannot be reached, step by step: name, proxy, connection, its certificate, our certificate.

gRPC says "unavailable" to all of them. This probe makes one TLS connection of its own, the way and with the credentials of the
node, and reads the first failure; it sends nothing but the handshake. Where a certificate of somebody else is shown, it is
looked at once more without any trust, to say who issued it: that is how a proxy that breaks TLS is known by name.
"""

from __future__ import annotations

import os
import socket
import ssl
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from cryptography import x509
from cryptography.x509.oid import NameOID

from certs.identity import CERTIFICATE_FILE, KEY_FILE, ROOT_FILE
from certs.party import CertificateError, parse_certificate
from hospital_node.config import NodeConfig
from hospital_node.link import LOOPBACK, LinkRefused
from hospital_node.proxy import Proxy, ProxyRefused, open_way, proxy_for

PROBE_S = 5.0
SETTLE_S = 2.0  # TLS 1.3 tells a client after its handshake that its certificate was refused
EXPIRED, NOT_YET_VALID, OTHER_NAME, OTHER_ADDRESS = 10, 9, 62, 64  # X509_V_ERR_* of OpenSSL

Step = Literal["name", "connection", "certificate"]


@dataclass(frozen=True, slots=True)
class Obstacle:
    """What is in the way, in one sentence. `permanent`: waiting does not help, a person has to act."""

    step: Step
    sentence: str
    permanent: bool


@dataclass(frozen=True, slots=True)
class Way:
    """How far a probe came: a sentence for each step that stands, and the obstacle, if there was one."""

    passed: tuple[tuple[Step, str], ...]
    obstacle: Obstacle | None = None


def find_obstacle(config: NodeConfig) -> Obstacle | None:
    """The first thing that prevents a connection, or None where TLS and both certificates are accepted."""
    return walk(config).obstacle


def reason_of_loss(config: NodeConfig, reported: str) -> str:
    """A sentence for people about a connection that never stood. Raises LinkRefused where waiting cannot help."""
    obstacle = find_obstacle(config)
    if obstacle is None:
        return reported
    if obstacle.permanent:
        raise LinkRefused(obstacle.sentence)
    return obstacle.sentence


def walk(config: NodeConfig, environment: Mapping[str, str] = os.environ) -> Way:
    """Go the way of the node, step by step."""
    host, port = _host_and_port(config)
    try:
        proxy = None if config.coordinator.startswith(LOOPBACK) else proxy_for(host, environment)
    except ProxyRefused as error:
        return Way((), Obstacle("name", str(error), permanent=False))
    resolved = _resolve(proxy.host if proxy else host)
    if resolved is None:
        whose, key = (f"{proxy.host} of the proxy", proxy.variable) if proxy else (host, "'coordinator'")
        sentence = f"the name {whose} cannot be resolved: correct {key} or ask your network people"
        return Way((), Obstacle("name", sentence, permanent=False))
    named: tuple[Step, str] = ("name", f"the proxy {proxy} resolves {host}" if proxy else f"{host} is {resolved}")
    try:
        raw = _connect(proxy, host, port)
    except ProxyRefused as error:
        return Way((named,), Obstacle("connection", str(error), permanent=False))
    except OSError as error:
        return Way((named,), _nothing_answers(config, proxy, error))
    through = f" through the proxy {proxy}" if proxy else ""
    connected: tuple[Step, str] = ("connection", f"{config.coordinator} answers{through}")
    with raw:
        obstacle = _tls_obstacle(config, proxy, raw, host)
    if obstacle is not None:
        return Way((named, connected), obstacle)
    tls: tuple[Step, str] = ("certificate", f"TLS 1.3; issued by {_root_name(config)}, the root of this study")
    return Way((named, connected, tls))


def _host_and_port(config: NodeConfig) -> tuple[str, int]:
    host, _, port = config.coordinator.rpartition(":")
    return host.strip("[]"), int(port)


def _resolve(host: str) -> str | None:
    try:
        return str(socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)[0][4][0])
    except (socket.gaierror, UnicodeError):
        return None


def _connect(proxy: Proxy | None, host: str, port: int) -> socket.socket:
    if proxy is not None:
        return open_way(proxy, host, port, PROBE_S)
    return socket.create_connection((host, port), timeout=PROBE_S)


def _nothing_answers(config: NodeConfig, proxy: Proxy | None, error: OSError) -> Obstacle:
    reason = (error.strerror or "no answer").lower()
    if proxy is not None:
        sentence = f"the proxy {proxy} does not answer ({reason}): correct {proxy.variable} or ask your network people"
    else:
        sentence = f"nothing answers at {config.coordinator} ({reason}): is it running, and is the port open outwards?"
    return Obstacle("connection", sentence, permanent=False)


def _tls_obstacle(config: NodeConfig, proxy: Proxy | None, raw: socket.socket, host: str) -> Obstacle | None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.set_alpn_protocols(["h2"])
    context.load_verify_locations(cafile=config.identity / ROOT_FILE)
    context.load_cert_chain(config.identity / CERTIFICATE_FILE, config.identity / KEY_FILE)
    try:
        with context.wrap_socket(raw, server_hostname=host) as secured:
            secured.settimeout(SETTLE_S)
            first = secured.recv(1)
    except TimeoutError:
        return None
    except ssl.SSLCertVerificationError as error:
        return _wrong_certificate(config, proxy, error)
    except ssl.SSLError as error:
        return _breaking_proxy(config, proxy) or _refused(config, (error.reason or "TLS failed").lower().replace("_", " "))
    except ConnectionResetError:
        return _refused(config, "connection reset")
    return None if first else _refused(config, "connection closed")


def _wrong_certificate(config: NodeConfig, proxy: Proxy | None, error: ssl.SSLCertVerificationError) -> Obstacle:
    if error.verify_code in {EXPIRED, NOT_YET_VALID}:
        when = "has expired" if error.verify_code == EXPIRED else "is not valid yet"
        sentence = f"the coordinator's certificate at {config.coordinator} {when} by this machine's clock"
        remedy = "compare the clocks; if they agree, ask its operator to renew it"
        return Obstacle("certificate", f"{sentence}: {remedy}", permanent=False)
    if error.verify_code in {OTHER_NAME, OTHER_ADDRESS}:
        host, _ = _host_and_port(config)
        sentence = f"the coordinator's certificate at {config.coordinator} is not for the name {host}"
        remedy = "write the name that its operator gave you into 'coordinator', or ask for a certificate with this one"
        return Obstacle("certificate", f"{sentence}: {remedy}", permanent=True)
    return _breaking_proxy(config, proxy) or Obstacle(
        "certificate",
        f"the certificate shown at {config.coordinator} is not the coordinator's of this study"
        f" ({error.verify_message.rstrip('.').lower()}): correct 'coordinator', or install the study's root again",
        permanent=True,
    )


def _breaking_proxy(config: NodeConfig, proxy: Proxy | None) -> Obstacle | None:
    """Somebody else's certificate, looked at without trust; None where its issuer bears the name of the study's root."""
    issuer = _issuer_seen(config, proxy)
    if issuer is None or issuer == _root_name(config):
        return None
    return Obstacle(
        "certificate",
        f"the certificate shown at {config.coordinator} was issued by '{issuer}', not by the root '{_root_name(config)}':"
        " a proxy or firewall breaks TLS on the way; ask your network people to let this host and port through unopened",
        permanent=True,
    )


def _issuer_seen(config: NodeConfig, proxy: Proxy | None) -> str | None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE  # nothing is sent; only who signed is read
    host, port = _host_and_port(config)
    try:
        with _connect(proxy, host, port) as raw, context.wrap_socket(raw, server_hostname=host) as secured:
            shown = secured.getpeercert(binary_form=True)
        return None if shown is None else _short(x509.load_der_x509_certificate(shown).issuer)
    except (OSError, ValueError, ProxyRefused):
        return None


def _root_name(config: NodeConfig) -> str:
    path = config.identity / ROOT_FILE
    try:
        return _short(parse_certificate(path.read_bytes(), str(path)).subject)
    except (OSError, CertificateError):
        return "unknown"


def _short(name: x509.Name) -> str:
    """Organisation and common name, as people know them."""
    parts = [
        str(one.value) for oid in (NameOID.ORGANIZATION_NAME, NameOID.COMMON_NAME) for one in name.get_attributes_for_oid(oid)
    ]
    return ", ".join(parts) or name.rfc4514_string() or "nobody"


def _refused(config: NodeConfig, reason: str) -> Obstacle:
    return Obstacle(
        "certificate",
        f"{config.coordinator} does not accept the certificate in {config.identity} ({reason}):"
        " ask the coordinator to issue one for this study",
        permanent=True,
    )
