"""The standard gRPC health service (grpc.health.v1.Health) over the coordinator's own port: for the parties of the study only.

Its two messages have one field each, so they are read and written here: generated stubs of the same names would clash with
those of other packages in one process. `serving` says whether the last tick could be stored.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import grpc

NAME = "grpc.health.v1.Health"
SERVICES = ("", "hospital.federation.v1.Federation")
SERVING, NOT_SERVING, SERVICE_UNKNOWN = 1, 2, 3
LOOK_EVERY_S = 0.5
MAX_NAME_BYTES = 127  # so that its length is one byte

Admit = Callable[[Any], Awaitable[None]]


def service_of(request: bytes) -> str:
    """The service that a HealthCheckRequest names. ValueError where it is none."""
    if not request:
        return ""
    if request[:1] != b"\x0a" or len(request) < 2 or request[1] > MAX_NAME_BYTES or len(request) != 2 + request[1]:
        raise ValueError("not a HealthCheckRequest")
    return request[2:].decode()


def status_message(status: int) -> bytes:
    """A HealthCheckResponse."""
    return bytes((0x08, status))


def handler_of(serving: Callable[[], bool], admit: Admit) -> grpc.GenericRpcHandler:
    """Handler of both calls; `admit` ends a call of whoever has no part in the study."""

    def status_now(service: str) -> int:
        if service not in SERVICES:
            return SERVICE_UNKNOWN
        return SERVING if serving() else NOT_SERVING

    async def check(request: bytes, context: Any) -> bytes:
        await admit(context)
        status = await _known(request, context, status_now)
        if status == SERVICE_UNKNOWN:
            await context.abort(grpc.StatusCode.NOT_FOUND, "this coordinator has no such service")
        return status_message(status)

    async def watch(request: bytes, context: Any) -> AsyncIterator[bytes]:
        await admit(context)
        said = 0
        while True:
            status = await _known(request, context, status_now)
            if status != said:
                yield status_message(status)
                said = status
            await asyncio.sleep(LOOK_EVERY_S)

    return grpc.method_handlers_generic_handler(
        NAME,
        {
            "Check": grpc.unary_unary_rpc_method_handler(check),
            "Watch": grpc.unary_stream_rpc_method_handler(watch),
        },
    )


async def _known(request: bytes, context: Any, status_now: Callable[[str], int]) -> int:
    try:
        return status_now(service_of(request))
    except ValueError:
        await context.abort(grpc.StatusCode.INVALID_ARGUMENT, "a health check names a service or nothing")
        raise
