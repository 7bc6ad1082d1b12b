"""Buffered rounds at a node: rounds end without it, and it goes on with what it has. Releasing is decided elsewhere."""

from __future__ import annotations

from hospital_node.local_training import LocalTraining
from hospital_node.release import ReleaseDesk
from proto import federation_pb2 as pb
from proto.plan import Plan


def older_report(plan: Plan, desk: ReleaseDesk, training: LocalTraining, order: pb.Train) -> pb.NodeReport | None:
    """What this node holds or trains of an older round and goes on with; None where it begins what is ordered."""
    if plan.buffer is None or order.anew:
        return None
    held, job = desk.kept_for(order.round), training.under_way
    if held is not None:
        return pb.NodeReport(round=held.round, state=pb.NodeReport.READY, base_digest=held.base_digest)
    if job is not None and 0 <= order.round - job[0] <= plan.buffer.max_staleness:
        return pb.NodeReport(round=job[0], state=pb.NodeReport.TRAINING)
    return None
