"""Lets a model draw on a node's own prepared scans, for the page Scans of the hospital's own app. Nothing is sent.

What is seen here is not charged: no number of it leaves the hospital. Whoever chooses a plan, a model or a round by looking at
these pictures has used the patients' data for that choice, and no ledger knows of it; the page says so.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import datetime

import numpy as np

from hospital_node.config import NodeConfig
from hospital_node.prepared import PreparedCase
from hospital_node.scans import Drawn, Scan, ScanIndex, write_scans
from hospital_node.work import Count, Score
from hospital_node.workshop import configured_device, layout_of_plan, prepare_studies, real_scorer
from proto.modelfile import Model, ModelFileError
from proto.plan import Plan

ROUND_KEY = "round"  # as the coordinator writes it beside a model


def draw_on_scans(node: NodeConfig, plan: Plan, model: Model, most: int, count: Count, at: datetime) -> ScanIndex:
    """Draw on the first `most` scans in the order of their keys and replace the set of the node's state folder.

    Raises ModelFileError where the model is not of this plan's network, WorkFailed and ScansError.
    """
    if model.layout != layout_of_plan(plan):
        raise ModelFileError(f"the model does not fit the network of study '{plan.study}': name one of this study with --model")
    prepared = prepare_studies(node, plan, lambda _done, _total: None)
    cases = [case for patient in prepared.patients for case in patient.cases][:most]
    drawn = _drawn(cases, real_scorer(plan, model.vector, node.threads, configured_device(node)), count)
    number = model.provenance.get(ROUND_KEY, "")
    return write_scans(node.state, plan, model.digest.hex(), int(number) if number.isdigit() else None, at, drawn)


def _drawn(cases: Sequence[PreparedCase], score: Score, count: Count) -> Iterator[Drawn]:
    """One scan in memory at a time."""
    for done, case in enumerate(cases, start=1):
        found = score(case)
        scan = Scan(np.asarray(case.image), np.asarray(case.label, dtype=np.uint8), found.prediction)
        yield Drawn(scan, found.dice)
        count(done, len(cases))
