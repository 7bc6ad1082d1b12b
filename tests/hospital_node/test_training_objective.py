"""The one path of private training under every objective: what an objective may decide, and that it decides nothing else."""

import hashlib

import numpy as np
import pytest
import torch
from torch import nn
from torch.optim import Adam
from training_world import DECLARED, SILENT, URI, people, person, plan, replayed

from hospital_node import economy, network, patches
from hospital_node.dp_optimizer import PatientOptimizer
from hospital_node.losses import dice_ce
from hospital_node.network import NetworkError
from hospital_node.noise import NormalStream, StepCoins
from hospital_node.train import SEGMENTATION, TrainingError, train_round
from hospital_node.workshop import layout_of_plan
from proto.plan import PlanError

RECORDED = "a7b44e57"  # first bytes of the update's SHA-256
SLOPE = 4  # values of the model that `Drawn` learns


class Drawn:
    """A loss whose gradient is a small whole vector drawn from the patient's generator: exact on every machine."""

    def __init__(self, module=None):
        self.module = module or (lambda: nn.Linear(SLOPE, 1, bias=False))
        self.seen = {}

    def check(self, plan):
        if plan.training.patches_per_patient > 9:
            raise TrainingError("patches_per_patient is at most 9 here")

    def build(self, plan):
        return self.module()

    def loss(self, module, plan, patient, rng):
        vector = rng.bit_generator.random_raw(SLOPE) % 64
        self.seen.setdefault(patient.key, []).append(tuple(vector))
        return (next(module.parameters()) * torch.from_numpy(vector.astype(np.float32))).sum()


def loose(**training):
    """A plan of one step in which nothing is clipped and nothing added."""
    return plan(
        training={"optimizer": "sgd", "learning_rate": 0.5, "local_steps": 1, **training},
        privacy={**SILENT, "clip_norm": 1e6, "inverse_sampling_rate": 2},
    )


def round_by_hand(one, base, cohort, rand):
    """A segmentation round with every draw and every product in its order, without hospital_node.train's loop."""
    module = economy.economical(network.build(one.network), one.training)
    network.load_vector(module, network.layout_of(module), base)
    optimizer = PatientOptimizer(
        Adam(module.parameters(), lr=one.training.learning_rate),
        noise_multiplier=one.privacy.noise_multiplier,
        max_grad_norm=one.privacy.clip_norm,
        expected_batch_size=DECLARED / one.privacy.inverse_sampling_rate,
        normals=NormalStream(rand),
    )
    for _ in range(one.training.local_steps):
        coins = StepCoins.fresh(rand)
        optimizer.zero_grad(set_to_none=True)
        for patient in cohort:
            if coins.drawn(patient.key, one.privacy.inverse_sampling_rate):
                images, labels = patches.draw(patient, one.preparation, one.training, coins.generator(patient.key))
                dice_ce(module(images), labels).backward()
                optimizer.clip_and_accumulate()
        optimizer.step()
    return network.vector_of(module) - base


@pytest.mark.parametrize("privacy", [{}, {**SILENT, "inverse_sampling_rate": 1}])
def test_a_segmentation_round_is_the_one_written_out_by_hand_to_the_bit(privacy):
    one, cohort = plan(privacy=privacy), people(5)
    torch.manual_seed(3)
    base = network.vector_of(network.build(one.network))
    torch.set_num_threads(1)
    wanted = round_by_hand(one, base, cohort, replayed(b"fixed"))
    default = train_round(one, URI, base, cohort, rand=replayed(b"fixed"))
    named = train_round(one, URI, base, cohort, rand=replayed(b"fixed"), objective=SEGMENTATION)
    assert np.array_equal(default.update, wanted)
    assert np.array_equal(named.update, wanted)
    assert np.linalg.norm(wanted) > 0


def test_coins_generators_and_divisor_give_the_recorded_update():
    update = train_round(
        loose(), URI, np.zeros(SLOPE, np.float32), people(7), objective=Drawn(), rand=replayed(b"fixed")
    ).update
    assert hashlib.sha256(update.tobytes()).hexdigest()[:8] == RECORDED


def test_the_update_follows_from_the_objectives_gradients_by_hand():
    objective = Drawn()
    trained = train_round(loose(), URI, np.zeros(SLOPE, np.float32), people(7), objective=objective, rand=replayed(b"fixed"))
    drawn = np.sum([vector for vectors in objective.seen.values() for vector in vectors], axis=0)
    assert trained.update == pytest.approx(-0.5 * drawn / (DECLARED / 2), rel=1e-6)
    assert trained.history == ((0.0, 0.5, 1),)


def test_an_objective_hands_each_patient_chance_of_its_own():
    everyone, fewer = Drawn(), Drawn()
    cohort = people(9)
    for objective, present in ((everyone, cohort), (fewer, cohort[:3] + cohort[5:])):
        train_round(loose(), URI, np.zeros(SLOPE, np.float32), present, objective=objective, rand=replayed(b"same"))
    kept = {one.key for one in cohort[:3] + cohort[5:]}
    assert fewer.seen == {key: vectors for key, vectors in everyone.seen.items() if key in kept}
    assert len(set(map(tuple, everyone.seen.values()))) == len(everyone.seen) > 3


def test_what_an_objective_refuses_is_not_trained():
    objective = Drawn()
    with pytest.raises(TrainingError, match="at most 9"):
        train_round(loose(patches_per_patient=10), URI, np.zeros(SLOPE, np.float32), people(3), objective=objective)
    assert objective.seen == {}


def test_an_objectives_network_that_mixes_patients_is_refused():
    mixing = Drawn(lambda: nn.Sequential(nn.Linear(SLOPE, 4), nn.BatchNorm1d(4)))
    with pytest.raises(NetworkError, match="layer '1' is BatchNorm1d"):
        train_round(loose(), URI, np.zeros(28, np.float32), people(3), objective=mixing)
    assert mixing.seen == {}


def test_no_node_builds_the_network_of_another_task():
    one = plan(network={"architecture": "task:digits"})
    with pytest.raises(NetworkError, match=r"'task:digits' belongs to a task of a study.*use AttentionUnet, .* VNet"):
        network.build(one.network)
    with pytest.raises(PlanError, match="segmentation networks only"):
        layout_of_plan(one)
    with pytest.raises(NetworkError, match="segmentation networks only"):
        train_round(one, URI, np.zeros(1, np.float32), [person("a")])
