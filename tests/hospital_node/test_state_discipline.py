"""Nothing uncharged survives, and nobody changes what another patient adds.

The first half runs a real node with real scans through rounds that come to nothing, however they end, and compares every byte
of its state with the bytes from before. The second half removes patients and finds what the others add the same to the bit.
"""

from __future__ import annotations

import hashlib
import random
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import node_world
import numpy as np
import pytest
import SimpleITK as sitk
import torch
import training_world
from hypothesis import given, settings
from hypothesis import strategies as st
from node_world import NOW_S, Counter, FakeLink, Folders, Rehearsal, approved_ledger, make_folders, until, words_of
from torch import nn
from training_world import URI, people, replayed

from hospital_node import architectures, network
from hospital_node.dp_optimizer import PatientOptimizer
from hospital_node.ledger import Charge, Ledger
from hospital_node.progress import read_progress
from hospital_node.runner import run_with
from hospital_node.train import TrainingError, train_round
from hospital_node.workshop import layout_of_plan, real_workshop
from proto import federation_pb2 as pb
from proto.layout import Vector, model_digest
from proto.plan import Plan

# what the hospital's own app shows, and the receipts: phases, steps, bytes and the ledger's figures, and nothing of a patient
SHOWN = {"progress.json", "leaves.json", "receipts.jsonl"}
SESSIONS = {"sessions.log", "attendance.json"}  # ids that are never answered again, and who was in the last one
LEDGER = {"ledger.db", "ledger.counter"}
PATIENCE_S = 240.0  # with a machine that does other things as well


def real_plan() -> Plan:
    fields = node_world.make_plan().model_dump(mode="json")
    fields["network"] = {"architecture": "UNet", "channels": [4, 8], "labels": ["nodule"], "norm": "instance"}
    fields["training"] = {"local_steps": 3, "patches_per_patient": 2, "momentum": 0.5, "optimizer": "sgd"}
    fields["privacy"] = {**fields["privacy"], "inverse_sampling_rate": 1}
    return Plan.model_validate(fields)


def write_scans(folder: Path, count: int = 3) -> None:
    for part in ("images", "labels"):
        (folder / part).mkdir(parents=True)
    names = [f"p{number}" for number in range(count)]
    (folder / "manifest.csv").write_text(
        "image,label,patient\n" + "".join(f"images/{name}.nii.gz,labels/{name}.nii.gz,{name}\n" for name in names)
    )
    rng = np.random.default_rng(5)
    for name in names:
        voxels = rng.integers(-1000, 400, (12, 12, 12)).astype(np.int16)
        label = np.zeros(voxels.shape, np.uint8)
        label[4:7, 4:7, 4:7] = 1
        sitk.WriteImage(sitk.GetImageFromArray(voxels), folder / "images" / f"{name}.nii.gz")
        sitk.WriteImage(sitk.GetImageFromArray(label), folder / "labels" / f"{name}.nii.gz")


@dataclass
class Bench:
    """A node with real scans and the real trainer, whose draws are replayed, so that equal states give equal updates."""

    folders: Folders
    plan: Plan
    base: Vector
    updates: list[Vector] = field(default_factory=list)
    cohorts: list[str] = field(default_factory=list)  # digest of all patients in memory, at the end of each training
    gate: threading.Event | None = None  # training waits here after its first step
    first_step: threading.Event = field(default_factory=threading.Event)
    breaks: bool = False

    def train(self, plan: Plan, uri: str, base: Vector, patients: Any, **options: Any) -> Any:
        on_step = options.pop("on_step")

        def watched(step: Any) -> None:
            self.first_step.set()
            while self.gate is not None and not self.gate.wait(0.01):
                on_step(step)
            on_step(step)

        try:
            draws = replayed(b"round %d" % options["round"])
            trained = train_round(plan, uri, base, patients, on_step=watched, rand=draws, **options)
        finally:
            self.cohorts.append(digest_of(patients))
        if self.breaks:
            raise TrainingError("the trained model is not finite")
        self.updates.append(trained.update)
        return trained

    def run(self, play: Callable[[FakeLink], None]) -> None:
        """Start the node, let `play` order it about, stop it."""
        link, stop = FakeLink(self.plan), threading.Event()
        link.models = {model_digest(self.base): self.base}
        workshop = real_workshop(self.folders.config, self.train)
        with ThreadPoolExecutor(1) as pool:
            running = pool.submit(
                run_with,
                self.folders.config,
                workshop,
                dial=lambda _config, _meter: link,
                clock=lambda: NOW_S,
                rand=Counter(),
                stop=stop,
            )
            try:
                play(link)
            finally:
                stop.set()
            running.result(PATIENCE_S)

    def order(self, number: int = 1) -> pb.Train:
        return pb.Train(round=number, base_digest=model_digest(self.base), base_bytes=4 * len(self.base))

    def coordinator(self, number: int = 1) -> Rehearsal:
        return Rehearsal(self.plan, self.folders, bytes([number]) * 16, number, model_digest(self.base))

    def files(self) -> dict[str, bytes]:
        root = self.folders.root
        return {
            str(path.relative_to(root / "state")): path.read_bytes() for path in (root / "state").rglob("*") if path.is_file()
        } | {str(path.relative_to(root)): path.read_bytes() for path in (root / "data").rglob("*") if path.is_file()}


def digest_of(patients: Any) -> str:
    found = hashlib.sha256()
    for one in patients:
        found.update(one.key.encode())
        for case in one.cases:
            found.update(np.ascontiguousarray(case.image).tobytes() + np.ascontiguousarray(case.label).tobytes())
    return found.hexdigest()


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Bench]:
    folders, plan = make_folders(tmp_path), real_plan()
    write_scans(tmp_path / "data")
    approved_ledger(folders, plan, epsilon=100.0)
    layout = layout_of_plan(plan)
    monkeypatch.setattr(node_world, "LAYOUT", layout)
    torch.manual_seed(7)
    made = Bench(folders, plan, network.vector_of(network.build(plan.network)))
    made.run(lambda _: until(lambda: sentence(folders).startswith("studies prepared"), PATIENCE_S))
    return made


def sentence(folders: Folders) -> str:
    shown = read_progress(folders.state.progress)
    return "" if shown is None else shown.sentence


def stopped_in_training(bench: Bench, link: FakeLink) -> None:
    bench.gate = threading.Event()
    link.put(train=bench.order())
    link.wait_for(1, PATIENCE_S)
    assert bench.first_step.wait(PATIENCE_S)


def given_up_for_another_round(bench: Bench, link: FakeLink) -> None:
    stopped_in_training(bench, link)
    link.put(train=bench.order(2))
    link.wait_for(2, PATIENCE_S)


def failed(bench: Bench, link: FakeLink) -> None:
    bench.breaks = True
    link.put(train=bench.order())
    assert link.wait_for(2, PATIENCE_S).state == pb.NodeReport.FAILED


def trained_and_never_asked_for(bench: Bench, link: FakeLink) -> None:
    link.put(train=bench.order())
    assert link.wait_for(2, PATIENCE_S).state == pb.NodeReport.READY


def refused_before_the_charge(bench: Bench, link: FakeLink) -> None:
    trained_and_never_asked_for(bench, link)
    coordinator = bench.coordinator()
    link.put(open=coordinator.order)
    share = coordinator.take_advert(link.wait_for(3, PATIENCE_S))
    del share.adverts[1:]
    link.put(share=share)
    assert link.wait_for(4, PATIENCE_S).WhichOneof("answer") == "refusal"
    link.put(result=coordinator.result(opened=False))
    until(lambda: "is over" in sentence(bench.folders), PATIENCE_S)


def aborted_after_the_charge(bench: Bench, link: FakeLink) -> None:
    trained_and_never_asked_for(bench, link)
    coordinator = bench.coordinator()
    link.put(open=coordinator.order)
    link.put(share=coordinator.take_advert(link.wait_for(3, PATIENCE_S)))
    link.put(mask=coordinator.take_shares(link.wait_for(4, PATIENCE_S)))
    words_of(link.wait_for(5, PATIENCE_S))
    link.put(result=coordinator.result(opened=False))
    until(lambda: "is over" in sentence(bench.folders), PATIENCE_S)


@pytest.mark.parametrize(
    ("end", "may_change"),
    [
        (stopped_in_training, SHOWN),
        (given_up_for_another_round, SHOWN),
        (failed, SHOWN),
        (trained_and_never_asked_for, SHOWN),
        (refused_before_the_charge, SHOWN | SESSIONS),
        (aborted_after_the_charge, SHOWN | SESSIONS | LEDGER),
    ],
)
def test_after_a_discarded_round_every_local_state_has_its_bytes_from_before(
    bench: Bench, end: Callable[[Bench, FakeLink], None], may_change: set[str]
) -> None:
    before, generators = bench.files(), (repr(np.random.get_state()), repr(random.getstate()))  # noqa: NPY002
    assert {"ledger.db", "ledger.counter", "ledger.key", "plan.json", "node.json"} <= set(before)
    assert any(name.startswith("cache/") for name in before)
    bench.run(lambda link: end(bench, link))
    after = bench.files()
    assert set(after) - set(before) <= may_change
    assert {name for name in before if after.get(name) != before[name]} <= may_change
    assert (repr(np.random.get_state()), repr(random.getstate())) == generators  # noqa: NPY002
    charged = [event.entry for event in Ledger.open(bench.folders.state.ledger).events() if isinstance(event.entry, Charge)]
    assert len(charged) == (may_change >= LEDGER)


def test_what_is_left_in_torchs_own_generator_says_nothing_about_patients() -> None:
    """Fresh weights draw from it, before the released model replaces them: as often whoever is there."""
    states = []
    architectures._size_of.cache_clear()  # the first training of a process checks the network, which must not show either
    architectures.check_patch.cache_clear()
    for cohort in (people(4), people(9)[5:], []):
        torch.manual_seed(3)
        plan = training_world.plan()
        base = network.vector_of(network.build(plan.network))
        train_round(plan, URI, base, cohort)
        states.append(torch.get_rng_state())
    assert torch.equal(states[0], states[1])
    assert torch.equal(states[0], states[2])


def test_the_round_after_a_discarded_one_is_the_round_of_an_undisturbed_node(bench: Bench) -> None:
    bench.run(lambda link: trained_and_never_asked_for(bench, link))
    bench.first_step.clear()

    def disturbed(link: FakeLink) -> None:
        bench.gate = threading.Event()
        link.put(train=bench.order(2))
        link.wait_for(1, PATIENCE_S)
        assert bench.first_step.wait(PATIENCE_S)
        link.put(train=bench.order(1))
        link.wait_for(2, PATIENCE_S)
        bench.gate.set()
        assert link.wait_for(3, PATIENCE_S).state == pb.NodeReport.READY

    bench.run(disturbed)
    undisturbed, again = bench.updates
    assert np.linalg.norm(undisturbed) > 0
    assert np.array_equal(undisturbed, again)
    assert len(set(bench.cohorts)) == 1, "the patients in memory are the same after every training"


# ---- one patient and the others ----


class Noted:
    """A small network's loss, and each patient's clipped contribution under its key and step."""

    def __init__(self) -> None:
        self.key = ""
        self.found: dict[str, list[bytes]] = {}

    def check(self, plan: Plan) -> None:
        pass

    def build(self, plan: Plan) -> nn.Module:
        torch.manual_seed(11)
        return nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 1))

    def loss(self, module: nn.Module, plan: Plan, patient: Any, rng: np.random.Generator) -> torch.Tensor:
        self.key = patient.key
        shown = torch.from_numpy(patient.cases[0].image[0, 0, :4] + 0.1 * rng.standard_normal(4, dtype=np.float32))
        return (module(shown) ** 2).sum()

    def note(self, optimizer: PatientOptimizer, clip: Callable[[PatientOptimizer], None]) -> None:
        """Let the optimizer clip onto an empty sum, keep what it adds, and put the sum together again."""
        before = [None if p.summed_grad is None else p.summed_grad.clone() for p in optimizer.params]
        for p in optimizer.params:
            p.summed_grad = None
        clip(optimizer)
        added = [p.summed_grad.clone() for p in optimizer.params]
        self.found.setdefault(self.key, []).append(b"".join(one.numpy().tobytes() for one in added))
        for p, old, new in zip(optimizer.params, before, added, strict=True):
            p.summed_grad = new if old is None else old + new


COHORT = people(9)


def contributions(present: list[Any], optimizer: str, base: Vector | None = None) -> dict[str, list[bytes]]:
    """What each patient adds in each of four steps, under the same secret draws and a model that stays where it is."""
    noted = Noted()
    plan = training_world.plan(
        training={"local_steps": 4, "optimizer": optimizer, "learning_rate": 1e-30, "momentum": 0.0},
        privacy={"noise_multiplier": 1.0, "inverse_sampling_rate": 2, "clip_norm": 0.05},
    )
    clip = PatientOptimizer.clip_and_accumulate
    start = network.vector_of(noted.build(plan)) if base is None else base
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(PatientOptimizer, "clip_and_accumulate", lambda self: noted.note(self, clip))
        train_round(plan, URI, start, present, objective=noted, rand=replayed(b"the same draws"))
    return noted.found


@settings(max_examples=30)
@given(st.sets(st.integers(0, len(COHORT) - 1), max_size=len(COHORT)), st.sampled_from(["sgd", "adam"]), st.randoms())
def test_whoever_is_removed_the_others_add_the_same_to_the_bit(removed: set[int], optimizer: str, order: random.Random) -> None:
    everyone = contributions(COHORT, optimizer)
    assert len(everyone) > 5
    present = [one for place, one in enumerate(COHORT) if place not in removed]
    order.shuffle(present)
    gone = {COHORT[place].key for place in removed}
    assert contributions(present, optimizer) == {key: added for key, added in everyone.items() if key not in gone}


def test_the_comparison_sees_a_contribution_that_another_patient_changed() -> None:
    """A gradient left over from the patient before: the fault that the test above exists for."""
    everyone = contributions(COHORT, "sgd")
    clip = Noted.note

    def leaking(self: Noted, optimizer: PatientOptimizer, how: Any) -> None:
        left = [p.grad.clone() for p in optimizer.params]
        clip(self, optimizer, how)
        for p, old in zip(optimizer.params, left, strict=True):
            p.grad = old

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Noted, "note", leaking)
        one, fewer = contributions(COHORT, "sgd"), contributions(COHORT[1:], "sgd")
    assert one != everyone
    assert any(fewer[key] != one[key] for key in fewer)
