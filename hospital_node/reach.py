"""Why the coordinator cannot be reached, step by step: name, connection, its certificate, our certificate.

gRPC says "unavailable" to all of them. This probe makes one TLS connection of its own with the same credentials and reads the
first failure; it sends nothing but the handshake.
"""

from __future__ import annotations

import socket
import ssl
from dataclasses import dataclass

from certs.identity import CERTIFICATE_FILE, KEY_FILE, ROOT_FILE
from hospital_node.config import NodeConfig
from hospital_node.link import LinkRefused

PROBE_S = 5.0
SETTLE_S = 2.0  # TLS 1.3 tells a client after its handshake that its certificate was refused


@dataclass(frozen=True, slots=True)
class Obstacle:
    """What is in the way, in one sentence. `permanent`: waiting does not help, a person has to act."""

    step: str  # "name", "connection" or "certificate"
    sentence: str
    permanent: bool


def find_obstacle(config: NodeConfig) -> Obstacle | None:
    """The first thing that prevents a connection, or None where TLS and both certificates are accepted."""
    host, _, port = config.coordinator.rpartition(":")
    host = host.strip("[]")
    try:
        with socket.create_connection((host, int(port)), timeout=PROBE_S) as raw:
            return _tls_obstacle(config, raw, host)
    except socket.gaierror:
        return Obstacle(
            "name", f"the name {host} cannot be resolved: correct 'coordinator' or ask your network people", permanent=False
        )
    except OSError as error:
        reason = error.strerror or "no answer"
        return Obstacle(
            "connection",
            f"nothing answers at {config.coordinator} ({reason.lower()}): is it running, and is the port open outwards?",
            permanent=False,
        )


def reason_of_loss(config: NodeConfig, reported: str) -> str:
    """A sentence for people about a connection that never stood. Raises LinkRefused where waiting cannot help."""
    obstacle = find_obstacle(config)
    if obstacle is None:
        return reported
    if obstacle.permanent:
        raise LinkRefused(obstacle.sentence)
    return obstacle.sentence


def _tls_obstacle(config: NodeConfig, raw: socket.socket, host: str) -> Obstacle | None:
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
        return Obstacle(
            "certificate",
            f"the certificate shown at {config.coordinator} is not the coordinator's of this study"
            f" ({error.verify_message.rstrip('.').lower()}): correct 'coordinator', or install the study's root again",
            permanent=True,
        )
    except ssl.SSLError as error:
        return _refused(config, (error.reason or "TLS failed").lower().replace("_", " "))
    except ConnectionResetError:
        return _refused(config, "connection reset")
    return None if first else _refused(config, "connection closed")


def _refused(config: NodeConfig, reason: str) -> Obstacle:
    return Obstacle(
        "certificate",
        f"{config.coordinator} does not accept the certificate in {config.identity} ({reason}):"
        " ask the coordinator to issue one for this study",
        permanent=True,
    )
