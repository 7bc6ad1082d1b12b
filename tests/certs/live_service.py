"""A service that says who calls it, on real connections, and callers with any credentials."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator
from concurrent import futures
from contextlib import contextmanager
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path

import grpc
import grpc.aio
from cryptography import x509
from enrolled_study import Forged

from certs.party import CertificateError
from certs.tls import party_of

METHOD = "/test.Who/Calls"
REFUSED_BY_SERVICE = grpc.StatusCode.UNAUTHENTICATED
REFUSED_BY_TLS = grpc.StatusCode.UNAVAILABLE
PATIENCE_S = 120.0
SERVER_NAMES = (x509.DNSName("localhost"), x509.IPAddress(ip_address("127.0.0.1")))


def answer(context: grpc.ServicerContext) -> bytes:
    party = party_of(context)
    return f"{party.uri} {party.fingerprint.hex()}".encode()


def who_sync(_: bytes, context: grpc.ServicerContext) -> bytes:
    try:
        return answer(context)
    except CertificateError as error:
        return context.abort(REFUSED_BY_SERVICE, str(error))


async def who_aio(_: bytes, context: grpc.aio.ServicerContext) -> bytes:
    try:
        return answer(context)
    except CertificateError as error:
        return await context.abort(REFUSED_BY_SERVICE, str(error))


def handler(function: Callable) -> grpc.GenericRpcHandler:
    return grpc.method_handlers_generic_handler("test.Who", {"Calls": grpc.unary_unary_rpc_method_handler(function)})


@contextmanager
def sync_server(credentials: grpc.ServerCredentials, function: Callable = who_sync) -> Iterator[int]:
    server = grpc.server(futures.ThreadPoolExecutor(2))
    server.add_generic_rpc_handlers((handler(function),))
    port = server.add_secure_port("127.0.0.1:0", credentials)
    server.start()
    try:
        yield port
    finally:
        server.stop(0).wait()


@contextmanager
def aio_server(credentials: grpc.ServerCredentials) -> Iterator[int]:
    """The asyncio server in a loop of its own, so that clients and plain sockets can block."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()

    async def start() -> tuple[grpc.aio.Server, int]:
        server = grpc.aio.server()
        server.add_generic_rpc_handlers((handler(who_aio),))
        port = server.add_secure_port("127.0.0.1:0", credentials)
        await server.start()
        return server, port

    server, port = asyncio.run_coroutine_threadsafe(start(), loop).result(PATIENCE_S)
    try:
        yield port
    finally:
        asyncio.run_coroutine_threadsafe(server.stop(0), loop).result(PATIENCE_S)
        loop.call_soon_threadsafe(loop.stop)
        thread.join(PATIENCE_S)
        loop.close()


@dataclass(frozen=True)
class Reply:
    code: grpc.StatusCode
    text: str


def call(
    port: int, credentials: grpc.ChannelCredentials, message: bytes = b"", metadata: tuple = (), host: str = "localhost"
) -> Reply:
    with grpc.secure_channel(f"{host}:{port}", credentials) as channel:
        try:
            reply = channel.unary_unary(METHOD)(message, timeout=PATIENCE_S, metadata=metadata)
        except grpc.RpcError as error:
            return Reply(error.code(), error.details())
        return Reply(grpc.StatusCode.OK, reply.decode())


def raw_channel(root: bytes, shown: Forged | None) -> grpc.ChannelCredentials:
    """Credentials as a cheat makes them: without our own checks of the folder."""
    if shown is None:
        return grpc.ssl_channel_credentials(root_certificates=root)
    return grpc.ssl_channel_credentials(root_certificates=root, private_key=shown.key, certificate_chain=shown.certificate)


def raw_server(root: bytes, shown: Forged) -> grpc.ServerCredentials:
    return grpc.ssl_server_credentials([(shown.key, shown.certificate)], root_certificates=root, require_client_auth=True)


def files_of(folder: Path) -> Forged:
    return Forged((folder / "node.key").read_bytes(), (folder / "node.crt").read_bytes())
