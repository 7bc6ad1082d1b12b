"""Which plan a call is for: the one that its node names, or the only one that names its caller.

A node names its plan by digest in the call's metadata (`proto.wire.PLAN_KEY`), so that no message needs a field for it.
Identity comes from the TLS session, as everywhere; a plan that is not served is refused before anything else is looked at.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from typing import Any, Protocol

import grpc

from certs.party import CertificateError
from certs.tls import party_of
from coordinator.service import Federation
from proto import bulk
from proto import federation_pb2 as pb
from proto import federation_pb2_grpc as rpc
from proto.bulk import ModelChunk, UploadPart
from proto.plan import Plan
from proto.wire import PLAN_KEY, SERVICE

SHOWN = 12  # hexadecimal digits of a digest in a sentence


class Served(Protocol):
    """One plan that is served."""

    digest: bytes
    federation: Federation


class Dispatcher(rpc.FederationServicer):
    """The calls of federation.proto, each handed to its plan."""

    def __init__(self, served: Sequence[Served]) -> None:
        self._served = {one.digest.hex(): one for one in served}

    async def Join(self, request: pb.JoinRequest, context: Any) -> pb.JoinReply:  # noqa: N802
        """See Federation."""
        return await (await self._of(context)).Join(request, context)

    async def Poll(self, request: pb.PollRequest, context: Any) -> pb.Instruction:  # noqa: N802
        """See Federation."""
        return await (await self._of(context)).Poll(request, context)

    async def Report(self, request: pb.NodeReport, context: Any) -> pb.Ack:  # noqa: N802
        """See Federation."""
        return await (await self._of(context)).Report(request, context)

    async def Answer(self, request: pb.PhaseAnswer, context: Any) -> pb.Ack:  # noqa: N802
        """See Federation."""
        return await (await self._of(context)).Answer(request, context)

    async def Upload(self, request_iterator: AsyncIterator[UploadPart], context: Any) -> pb.Ack:  # noqa: N802
        """See Federation."""
        return await (await self._of(context)).Upload(request_iterator, context)

    async def Measure(self, request: pb.Measurement, context: Any) -> pb.Ack:  # noqa: N802
        """See Federation."""
        return await (await self._of(context)).Measure(request, context)

    async def Renew(self, request: pb.RenewRequest, context: Any) -> pb.RenewReply:  # noqa: N802
        """See Federation."""
        return await (await self._of(context)).Renew(request, context)

    async def Identify(self, request: pb.IdentifyRequest, context: Any) -> pb.IdentifyReply:  # noqa: N802
        """See Federation."""
        return await (await self._of(context)).Identify(request, context)

    async def ReadLog(self, request: pb.LogRequest, context: Any) -> pb.LogPage:  # noqa: N802
        """See Federation."""
        return await (await self._of(context)).ReadLog(request, context)

    async def FetchModel(self, request: pb.ModelRequest, context: Any) -> AsyncIterator[ModelChunk]:  # noqa: N802
        """See Federation."""
        async for chunk in (await self._of(context)).FetchModel(request, context):
            yield chunk

    async def admit(self, context: Any) -> None:
        """End a call that is no plan's business; for services beside this one."""
        await (await self._of(context)).admit(context)

    async def _of(self, context: Any) -> Federation:
        """The plan of a call; ends a call that has none."""
        names = [value for key, value in context.invocation_metadata() if key == PLAN_KEY]
        if names:
            found = self._served.get(str(names[-1]))
            if found is None:
                shown = str(names[-1])[:SHOWN]
                text = f"this coordinator does not serve plan {shown}: correct the key 'plan' of the node's configuration"
                await context.abort(grpc.StatusCode.PERMISSION_DENIED, text)
            assert found is not None
            return found.federation
        fitting = [one for one in self._served.values() if _names(one.federation.plan, context)]
        if len(fitting) > 1:
            text = f"{len(fitting)} plans of this coordinator name this party: set the key 'plan' of the node's configuration"
            await context.abort(grpc.StatusCode.PERMISSION_DENIED, text)
        return (fitting or list(self._served.values()))[0].federation


class Registering:
    """What the generated code takes for the server: hands on its handlers, in place of two those of proto/bulk.py."""

    def __init__(self, server: grpc.aio.Server, dispatcher: Dispatcher) -> None:
        self._server = server
        self._own: dict[str, grpc.RpcMethodHandler[Any, Any]] = {
            "FetchModel": grpc.unary_stream_rpc_method_handler(dispatcher.FetchModel, pb.ModelRequest.FromString, bulk.encoded),
            "Upload": grpc.stream_unary_rpc_method_handler(dispatcher.Upload, bulk.read_part, pb.Ack.SerializeToString),
        }

    def add_generic_rpc_handlers(self, handlers: Sequence[grpc.GenericRpcHandler]) -> None:
        """Ours first: the first that knows a call takes it."""
        own = grpc.method_handlers_generic_handler(SERVICE, self._own)
        self._server.add_generic_rpc_handlers((own, *handlers))

    def add_registered_method_handlers(self, service: str, handlers: dict[str, grpc.RpcMethodHandler[Any, Any]]) -> None:
        """The same by name, which grpc looks at first."""
        registered: Any = self._server  # grpc's types do not have this method
        registered.add_registered_method_handlers(service, {**handlers, **self._own})


def register(server: grpc.aio.Server, dispatcher: Dispatcher) -> None:
    """Every call of federation.proto on a server; the bulk messages of two go by proto/bulk.py."""
    rpc.add_FederationServicer_to_server(dispatcher, Registering(server, dispatcher))  # type: ignore[no-untyped-call]


def _names(plan: Plan, context: Any) -> bool:
    """Whether a plan names the caller. Nobody is admitted here: the plan's own service checks the key."""
    try:
        uri = party_of(context).uri
    except CertificateError:
        return False
    return uri in plan.evaluators or any(hospital.uri == uri for hospital in plan.hospitals)
