"""One DP-SGD step, one patient at a time, on Opacus' DPOptimizer.

Forward and backward all patches of one patient: `p.grad` then is that patient's gradient. `clip_and_accumulate` clips it
over all parameters together and adds it to `p.summed_grad`; no per-sample tensor is ever made. `step` adds the noise to
the sum, divides by a public number and steps. Opacus keeps the order of the step and the accountant's hook.

Stock Opacus takes the number of backward passes since the last step for a number of batches: fed unit by unit it would divide
by the secret draw, record q times the draw, and fail on an empty one. Hence `accumulated_iterations`, `pre_step` and
`scale_grad` are overridden. Algorithm: Abadi et al. 2016 (arXiv 1607.00133), algorithm 1, with Poisson sampling.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from opacus.optimizers import DPOptimizer
from torch.optim import Optimizer

from hospital_node.noise import NormalStream

# Clip a hair below the norm: rounding the scaled gradient to float32 moves its norm by less than 2**-22 of itself.
ROUNDING_MARGIN = 1 - 2.0**-20
NORM_VALUES = 1 << 16  # widened to float64 at a time: 512 KiB, stays in the second-level cache


def _norm(gradients: list[torch.Tensor]) -> float:
    """Euclidean, over all tensors together, in float64 without a second copy of any; no square overflows."""
    parts = (part.double() for gradient in gradients for part in gradient.reshape(-1).split(NORM_VALUES))
    return float(torch.stack([torch.dot(part, part) for part in parts]).sum().sqrt())


class PatientOptimizer(DPOptimizer):
    """DPOptimizer fed one patient at a time.

    `expected_batch_size` is public: the declared size of the hospital over k, whole or not. `noise_multiplier` is the
    standard deviation of the noise over `max_grad_norm`; 0 clips but adds nothing and guarantees nothing.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        *,
        noise_multiplier: float,
        max_grad_norm: float,
        expected_batch_size: float,
        normals: NormalStream,
    ) -> None:
        super().__init__(
            optimizer,
            noise_multiplier=noise_multiplier,
            max_grad_norm=max_grad_norm,
            expected_batch_size=expected_batch_size,
        )
        self.nonfinite = 0  # patients whose gradient was not finite and counted as zero; stays inside the hospital
        self._normals = normals
        self._noised_means: list[torch.Tensor | None] = [None] * len(self.params)  # of the last step, as left in `p.grad`

    @property
    def accumulated_iterations(self) -> int:
        """Always one batch a step, however many patients were drawn."""
        return 1

    def clip_and_accumulate(self) -> None:
        """Take `p.grad` as one patient's gradient: clip it, add it to the sum, clear it.

        RuntimeError where `p.grad` was not cleared since the last step: backward adds to what lies there, and the noised mean
        would count as the first patient's, so that removing one patient changed what two contribute.
        """
        if any(mean is not None and p.grad is mean for p, mean in zip(self.params, self._noised_means, strict=True)):
            raise RuntimeError("gradients of the step before were not cleared: call zero_grad before the next patient")
        gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in self.params]
        norm = _norm(gradients)
        self._zero_sums()
        if norm < float("inf"):  # false for NaN as well
            factor = min(1.0, self.max_grad_norm * ROUNDING_MARGIN / max(norm, 1e-300))
            for p, gradient in zip(self.params, gradients, strict=True):
                p.summed_grad.add_(gradient, alpha=factor)
        else:
            self.nonfinite += 1
        for p in self.params:
            p.grad = None

    def add_noise(self) -> None:
        """Noise on the sum into `p.grad`; the sum is spent, so that it cannot be noised twice."""
        if self.noise_multiplier > 0:
            self._add_noise_to([p.summed_grad for p in self.params])
        for p in self.params:
            p.grad, p.summed_grad = p.summed_grad, None

    def scale_grad(self) -> None:
        """Divide by the public expected number of patients, never by how many were drawn."""
        for p in self.params:
            p.grad /= self.expected_batch_size
        self._noised_means = [p.grad for p in self.params]

    def pre_step(self, closure: Callable[[], float] | None = None) -> bool:  # noqa: ARG002  Opacus' signature
        """Noise, scale, record. A draw of nobody is a real step: the sum is zero and only noise remains."""
        self._zero_sums()
        self.add_noise()
        self.scale_grad()
        if self.step_hook:
            self.step_hook(self)
        return True

    def _add_noise_to(self, sums: list[torch.Tensor]) -> None:
        """In place, a block at a time; added in float64, so that a sum is rounded once."""
        deviation = self.noise_multiplier * self.max_grad_norm
        noise = self._normals.blocks(sum(one.numel() for one in sums))
        block = torch.empty(0, dtype=torch.float64)
        for one in sums:
            left = one.view(-1)
            while len(left):
                if not len(block):
                    block = torch.from_numpy(next(noise)).mul_(deviation)
                count = min(len(block), len(left))
                left[:count] = block[:count].to(left.device).add_(left[:count])
                block, left = block[count:], left[count:]

    def _zero_sums(self) -> None:
        for p in self.params:
            if p.summed_grad is None:
                p.summed_grad = torch.zeros_like(p, memory_format=torch.contiguous_format)
