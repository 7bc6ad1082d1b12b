"""Can a scan be drawn from what a hospital sends? One patient, one step, and an attacker who knows everything else.

The attacker has more than any coordinator has: the model, the plan, the patient's true label, and an update of this patient
alone. From the segmentation network it searches for the image whose gradient points where the update points, and prefers smooth
ones (Geiping et al. 2020, arXiv 2003.14053). From a dense layer it divides: the gradient of a weight is the voxel times the
gradient of the bias. A plain update, a masked one and a noised one show what masking and noise are for. A better attack may
exist: epsilon bounds every attack, a picture bounds none.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import torch
from cryptography.hazmat.primitives.asymmetric import ec
from torch import nn

from hospital_node import losses, patches
from hospital_node.accounting import Mechanism, epsilon
from hospital_node.noise import Rand, StepCoins
from proto.layout import Vector
from secagg import Quantizer, RoundParams, node
from secagg.identity import public_der
from secagg.policy import policy_of
from study.audit import victims
from study.audit.canaries import STUDY
from study.audit.victims import SIDE, UNITS, Image, Victim

STEPS = 300
LEARNING_RATE = 0.05
SMOOTHNESS = 3e-2  # weight of the total variation
FIRST_GUESS = 0.1  # deviation of the noise that the search starts from
NOISE = 1.0  # multiplier of the noised update
LANES, CLIP = 3, 1.0  # of the masked update


@dataclass(frozen=True, slots=True)
class Attempt:
    """One update and what was drawn from it. `likeness` is the correlation with the true scan; 1 is the scan itself."""

    network: str
    update: str
    likeness: float
    image: Image = field(repr=False)  # (z, y, x)


def attempts(rand: Rand, *, steps: int = STEPS, on_attempt: Callable[[], None] = lambda: None) -> tuple[Attempt, ...]:
    """Both networks, three updates each: plain, masked, noised."""
    found = []
    for name, whom, attack in (
        ("dense layer", victims.dense(), divide),
        ("segmentation network", victims.segmented(), lambda whom, update: search(whom, update, steps)),
    ):
        plain = whom.update(0.0, rand)
        updates = {"plain": plain, "masked": masked(plain, rand), "noised": whom.update(NOISE, rand)}
        for kind, update in updates.items():
            image = attack(whom, update)
            found.append(Attempt(name, kind, _likeness(image, whom.scan), image))
            on_attempt()
    return tuple(found)


def cost() -> float:
    """Epsilon of the noised update, at the victims' delta: one step that draws everybody."""
    return epsilon([Mechanism(NOISE, 1.0, 1)], victims.DELTA)


def divide(whom: Victim, update: Vector) -> Image:
    """The scan in the gradient of the first layer: each row of weights is the scan times the gradient of its bias."""
    weights = update[: UNITS * SIDE**3].reshape(UNITS, -1).astype(np.float64)
    biases = update[UNITS * SIDE**3 : UNITS * (SIDE**3 + 1)].astype(np.float64)
    surest = int(np.abs(biases).argmax())
    image: Image = (weights[surest] / biases[surest]).reshape(whom.scan.shape).astype(np.float32)
    return image


def search(whom: Victim, update: Vector, steps: int) -> Image:
    """The image whose gradient at the start of the round points against `update`."""
    module, target = whom.module(), torch.from_numpy(-update)
    _, labels = patches.draw(whom.patient, whom.plan.preparation, whom.plan.training, StepCoins(bytes(32)).generator("any"))
    image = FIRST_GUESS * torch.randn((1, 1, SIDE, SIDE, SIDE), generator=torch.Generator().manual_seed(1))
    image.requires_grad_()
    optimizer = torch.optim.Adam([image], lr=LEARNING_RATE)
    slower = torch.optim.lr_scheduler.MultiStepLR(optimizer, [steps // 2, 4 * steps // 5], 0.2)
    for _ in range(steps):
        optimizer.zero_grad()
        distance = 1 - torch.nn.functional.cosine_similarity(_gradient(module, image, labels), target, dim=0)
        torch.autograd.backward(distance + SMOOTHNESS * _variation(image))
        optimizer.step()
        slower.step()
        with torch.no_grad():
            image.clamp_(-1, 1)  # the range of a prepared scan is public
    found: Image = image.detach()[0, 0].numpy()
    return found


def masked(update: Vector, rand: Rand) -> Vector:
    """One member's upload of a real masking session of four, read as if no mask were on it."""
    keys = {f"secagg://{STUDY}/hospital/{name}": ec.generate_private_key(ec.SECP256R1()) for name in "abcd"}
    params = RoundParams(
        session=rand(16),
        participants=tuple(keys),
        threshold=3,
        length=len(update),
        quantizer=Quantizer(clip=CLIP, lanes=LANES),
        public_keys=tuple(public_der(key) for key in keys.values()),
    )
    me, policy = params.participants[0], policy_of(params)
    advertised = {party: node.advertise(params, party, key, policy, rand) for party, key in keys.items()}
    adverts = tuple(advert for _, advert in advertised.values())
    shared = {party: node.share(state, adverts, rand) for party, (state, _) in advertised.items()}
    boxes = tuple(share_set.for_receiver(me) for _, share_set in shared.values())
    _, upload = node.mask(node.ready_to_mask(shared[me][0], boxes), update)
    return _unpacked(b"".join(bytes(piece) for piece in upload.pieces()), params)


def _unpacked(words: bytes, params: RoundParams) -> Vector:
    bits, lane_max = params.quantizer.lane_bits, params.quantizer.lane_max
    places = np.arange(0, LANES * bits, bits, dtype=np.uint64)
    lanes = (np.frombuffer(words, "<u8")[:, None] >> places) & np.uint64(lane_max)
    read = CLIP * (2 * lanes.reshape(-1)[: params.length].astype(np.float64) / lane_max - 1)
    return read.astype(np.float32)


def _gradient(module: nn.Module, image: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    parts = torch.autograd.grad(losses.dice_ce(module(image), labels), list(module.parameters()), create_graph=True)
    return torch.cat([part.reshape(-1) for part in parts])


def _variation(image: torch.Tensor) -> torch.Tensor:
    return torch.stack([image.diff(dim=axis).abs().mean() for axis in (2, 3, 4)]).sum()


def _likeness(found: Image, truth: Image) -> float:
    if not found.std():
        return 0.0
    return float(np.corrcoef(found.reshape(-1), truth.reshape(-1))[0, 1])
