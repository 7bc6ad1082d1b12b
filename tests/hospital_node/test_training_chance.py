"""Chance in a patient's loss: only from that patient's own generator; any other draw ends the round and leaves nothing."""

import threading

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional
from training_world import SILENT, URI, people, plan

from hospital_node import network
from hospital_node.chance import OwnChanceOnly
from hospital_node.network import NetworkError
from hospital_node.train import train_round
from hospital_node.work import WorkFailed
from study.bench.cells import Cell
from study.examples import digits, digits_model

WIDTH = 4
PIXELS = torch.zeros(1, 1, 8, 8)
HEADS = torch.zeros(1, 2, WIDTH, WIDTH)


class Linear:
    """Learns from the patient's generator; `chance` makes the module, or is called beside it."""

    def __init__(self, module=None, beside=lambda rng: None):
        self.module = module or (lambda: nn.Sequential(nn.Linear(WIDTH, 1)))
        self.beside = beside
        self.losses = 0

    def check(self, plan):
        pass

    def build(self, plan):
        return self.module()

    def loss(self, module, plan, patient, rng):
        self.losses += 1
        self.beside(rng)
        return module(torch.from_numpy(rng.standard_normal((2, WIDTH)).astype(np.float32))).sum()


def trained(objective, **privacy):
    one = plan(training={"local_steps": 2}, privacy={**SILENT, "inverse_sampling_rate": 1, **privacy})
    base = network.vector_of(objective.build(one))
    return train_round(one, URI, base, people(3), objective=objective)


@pytest.mark.parametrize(
    "beside",
    [
        lambda rng: functional.dropout(PIXELS, 0.5),
        lambda rng: functional.alpha_dropout(PIXELS, 0.5, training=True),
        lambda rng: functional.rrelu(PIXELS, training=True),
        lambda rng: functional.gumbel_softmax(PIXELS),
        lambda rng: nn.FractionalMaxPool2d(2, output_size=4)(PIXELS),
        lambda rng: functional.scaled_dot_product_attention(HEADS, HEADS, HEADS, dropout_p=0.1),
        lambda rng: nn.MultiheadAttention(WIDTH, 2, dropout=0.1)(HEADS[0], HEADS[0], HEADS[0]),
        lambda rng: torch.randn(3),
        lambda rng: torch.empty(3).normal_(),
        lambda rng: torch.rand_like(PIXELS),
        lambda rng: torch.randperm(3),
        lambda rng: torch.multinomial(torch.ones(4), 2),
    ],
)
def test_a_draw_from_the_global_generator_ends_the_round(beside):
    objective = Linear(beside=beside)
    with pytest.raises(NetworkError, match=r"draws from torch's own generator .* draw what chance the loss needs from the gen"):
        trained(objective)
    assert objective.losses == 1, "the first patient shows it"


def test_a_layer_that_drops_is_refused():
    with pytest.raises(NetworkError, match=r"torch's own generator"):
        trained(Linear(lambda: nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.Dropout(0.2), nn.Linear(WIDTH, 1))))


@pytest.mark.parametrize(
    "beside",
    [
        lambda rng: functional.dropout(PIXELS, 0.0),
        lambda rng: functional.dropout(PIXELS, 0.5, training=False),
        lambda rng: functional.scaled_dot_product_attention(HEADS, HEADS, HEADS),
        lambda rng: torch.randn(3, generator=torch.Generator().manual_seed(int(rng.integers(1 << 30)))),
        lambda rng: torch.empty(3).normal_(generator=torch.Generator().manual_seed(int(rng.integers(1 << 30)))),
        lambda rng: rng.permutation(5),
    ],
)
def test_chance_of_the_patient_and_none_at_all_are_left_alone(beside):
    objective = Linear(beside=beside)
    assert np.isfinite(trained(objective).update).all()
    assert objective.losses == 6


def test_why_one_sequence_for_all_patients_is_refused():
    """A patient who is added shifts what the next one draws, so more changes than that patient's clipped gradient."""

    def drawn(patients):
        torch.manual_seed(1)
        return {name: functional.dropout(torch.ones(16), 0.5).tolist() for name in patients}

    assert drawn(["anna", "bert"])["bert"] != drawn(["bert"])["bert"]


def test_the_watch_sees_its_own_thread_alone():
    """The evaluator may build a network while a hospital trains in the same process."""
    errors = []

    def build():
        try:
            nn.Linear(3, 3)
        except NetworkError as error:
            errors.append(error)

    with OwnChanceOnly():
        other = threading.Thread(target=build)
        other.start()
        other.join()
        with pytest.raises(NetworkError):
            nn.Linear(3, 3)
    nn.Linear(3, 3)
    assert errors == []


def test_the_update_is_that_of_an_unwatched_round_to_the_bit(monkeypatch):
    def round_of(watch):
        if not watch:
            monkeypatch.setattr("hospital_node.train.FirstLossWatched", lambda objective: objective)
        torch.manual_seed(2)
        stream = np.random.default_rng(5)
        objective = Linear()
        one = plan(training={"local_steps": 2}, privacy={**SILENT, "inverse_sampling_rate": 2})
        base = network.vector_of(objective.build(one))
        return train_round(one, URI, base, people(4), objective=objective, rand=stream.bytes).update

    assert np.array_equal(round_of(watch=True), round_of(watch=False))


def test_a_task_of_a_study_with_dropout_is_named_in_its_failure(tmp_path, monkeypatch):
    """The digits with a dropout in their loss, as a researcher might write them."""
    plain = digits_model.image_loss
    noisy = lambda module, *rest: plain(lambda image: functional.dropout(module(image), 0.3), *rest)  # noqa: E731
    monkeypatch.setattr(digits_model, "image_loss", noisy)
    fields = {"study": "t", "task": "digits", "method": "plain", "seed": 1, "data": {}, "partition": {}, "start": "random"}
    cell = Cell.model_validate({**fields, "plan": {}, "settings": {}})
    units = digits.TASK.patients(cell, tmp_path, lambda *_: None).training[:20]
    named = {"architecture": "task:digits", "labels": ["accuracy"], "channels": [4, 8]}
    one = plan(network=named, preparation={"modality": "none"})
    base = digits.TASK.start(cell, one, tmp_path)
    workshop = digits.TASK.workshop(units, lambda uri, number: np.random.default_rng(1).bytes)
    with pytest.raises(WorkFailed, match="take dropout and the like out of the network"):
        workshop.train(one, URI, base, [unit.patient for unit in units], threads=1, round=1, on_step=lambda _: None)
