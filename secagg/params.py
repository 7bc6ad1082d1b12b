"""Public parameters of one masking session, and the proof that its sum cannot overflow.

Rule: whatever two parties must agree on is a field here and is therefore in `context()`, which every signature, derived
key and sealed share is bound to. A value of RoundParams that exists has passed the overflow proof (README, step 0.2).
"""

from __future__ import annotations

import hashlib
import math
import struct
from dataclasses import dataclass, field
from functools import partial
from typing import TypeAlias, TypeVar

import numpy as np
from numpy.typing import NDArray

from secagg.encoding import Field, digest, encode, encode_list
from secagg.errors import LocalError
from secagg.graph import Complete, GraphRule
from secagg.noise_shares import SharedNoise

Vector: TypeAlias = NDArray[np.float32]
Words: TypeAlias = NDArray[np.uint64]
Integers: TypeAlias = NDArray[np.int64]

NO_WORDS: Words = np.empty(0, dtype=np.uint64)

PROTOCOL_VERSION = 1
SESSION_BYTES = 16  # 128 random bits: two sessions never share an id by accident
DIGEST_BYTES = 32
WORD_BITS = 64
WORD_BYTES = 8
MAX_LANES = 16  # four bits a lane; below that no cohort of three has a step each
MAX_PARTIES = 1 << 14
MAX_LENGTH = 1 << 33  # 32 GiB of float32: larger is a mistake
MAX_WEIGHT = 1 << 32  # keeps every product in the planner below 2**62
MAX_EXTRAS = 1 << 12  # evaluation sums, not a second vector
EXTRA_LANES = 2  # numbers to a word: 32 bits each
MIN_KEEP = 2.0**-10  # below one coordinate in a thousand a round carries nothing
MIN_CLIP, MAX_CLIP = 2.0**-64, 2.0**64  # keeps every scale inside float32's normal range

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Quantizer:
    """How a coordinate becomes an integer: clipped to [-clip, clip], then packed with `lanes` integers to a 64-bit word.

    Before that, `rotate` spreads every value over many, and of all coordinates a random share `keep` is sent (coding.py).
    """

    clip: float
    lanes: int
    rotate: bool = False
    keep: float = 1.0

    def __post_init__(self) -> None:
        if not MIN_CLIP <= self.clip <= MAX_CLIP:
            raise LocalError(f"the clip {self.clip!r} must lie between 2**-64 and 2**64")
        if not 2 <= self.lanes <= MAX_LANES:
            raise LocalError(f"{self.lanes} lanes: a 64-bit word holds 2 to {MAX_LANES}")
        if not MIN_KEEP <= self.keep <= 1:
            raise LocalError(f"the share of kept coordinates {self.keep!r} must lie between 2**-10 and 1")

    @property
    def lane_bits(self) -> int:
        """Width of one lane; bits left over stay at the top of the word."""
        return WORD_BITS // self.lanes

    @property
    def lane_max(self) -> int:
        """Largest integer that a lane can hold: the bound for the whole cohort's sum."""
        return (1 << self.lane_bits) - 1

    def coded_length(self, length: int) -> int:
        """Coordinates that are sent of a vector of `length` values."""
        whole = math.prod(rotation_shape(length)) if self.rotate else length
        return whole if self.keep == 1 else math.ceil(self.keep * whole)

    def words(self, length: int) -> int:
        """Words needed for a vector of `length` values."""
        return -(-self.coded_length(length) // self.lanes)


@dataclass(frozen=True, slots=True)
class RoundParams:
    """One session. Members are put in the order of their names, and all fields aligned with them follow.

    `public_keys` are SubjectPublicKeyInfo DER of P-256 keys; empty only in rehearsals, which then make keys. `weights`
    are positive integers, () for equal ones. `base_digests` name the model each member trained on, () for all the
    same. `max_colluders` and `minimum_cohort` are the plan's; each node checks its own policy besides. `graph` is
    the complete one or `Sparse`, whose degree and threshold `bounds.choose` finds. `tensor_clips` are (values, clip) of
    consecutive tensors, () for quantizer.clip everywhere; `extra_clips` those of the extra coordinates (extras.py). `shared`
    is there where noise_mode is "shared": members then send integer sums with their shares of the noise (noised.py).
    Raises LocalError on anything that cannot work, possible overflow included.
    """

    session: bytes
    participants: tuple[str, ...]
    threshold: int
    length: int
    quantizer: Quantizer
    public_keys: tuple[bytes, ...] = ()
    weights: tuple[int, ...] = ()
    base_digests: tuple[bytes, ...] = ()
    plan_digest: bytes = bytes(DIGEST_BYTES)
    round: int = 0
    noise_mode: str = "local"
    layout_digest: bytes = bytes(DIGEST_BYTES)
    protocol_version: int = PROTOCOL_VERSION
    max_colluders: int = 0
    minimum_cohort: int = 3  # with two members each learns the other's update from the sum
    graph: GraphRule = Complete()  # noqa: RUF009  (frozen)
    tensor_clips: tuple[tuple[int, float], ...] = ()
    extra_clips: tuple[float, ...] = ()
    shared: SharedNoise | None = None
    log_head: bytes = b""  # of a history that all members share, where they agreed to bind one
    half_steps: int = field(init=False, repr=False)
    _places: dict[str, int] = field(init=False, repr=False, compare=False, hash=False)
    _fingerprints: tuple[bytes, ...] = field(init=False, repr=False, compare=False)
    _context: bytes | None = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        put = partial(object.__setattr__, self)
        _check_scalars(self)
        order = sorted(range(len(self.participants)), key=self.participants.__getitem__)
        put("weights", _aligned("weights", self.weights or (1,) * len(order), order))
        put("base_digests", _aligned("base_digests", self.base_digests or (bytes(DIGEST_BYTES),) * len(order), order))
        put("public_keys", _aligned("public_keys", self.public_keys, order) if self.public_keys else ())
        put("participants", _aligned("participants", self.participants, order))
        put("_places", {party: place for place, party in enumerate(self.participants)})
        _check_members(self)
        _check_clips(self)
        _check_shared(self)
        put(
            "half_steps",
            _shared_half_steps(self, self.shared) if self.shared else plan_half_steps(self.quantizer, self.weights),
        )
        put("_fingerprints", tuple(hashlib.sha256(key).digest() for key in self.public_keys))
        put("_context", _context(self) if self.public_keys else None)

    def context(self) -> bytes:
        """32 bytes over every field; LocalError before the members' keys are known."""
        if self._context is None:
            raise LocalError("the session context needs public_keys: give one key for each participant")
        return self._context

    @property
    def coded_length(self) -> int:
        """Quantized values of one upload."""
        return self.quantizer.coded_length(self.length)

    @property
    def vector_words(self) -> int:
        """Words of one upload that hold the update."""
        return self.quantizer.words(self.length)

    @property
    def extra_words(self) -> int:
        """Words behind them that hold the extra coordinates."""
        return -(-len(self.extra_clips) // EXTRA_LANES)

    @property
    def words(self) -> int:
        """Words of one upload."""
        return self.vector_words + self.extra_words

    @property
    def upload_bytes(self) -> int:
        """Bytes of one masked vector."""
        return WORD_BYTES * self.words

    @property
    def total_weight(self) -> int:
        """W: weight of the whole roster."""
        return sum(self.weights)

    def place(self, party: str) -> int:
        """Index of `party` in the roster; LocalError for a stranger."""
        if party not in self._places:
            raise LocalError(f"{party} is not a member of this session")
        return self._places[party]

    def is_member(self, party: str) -> bool:
        """Whether `party` is in the roster."""
        return party in self._places

    def weight(self, party: str) -> int:
        """Weight of one member."""
        return self.weights[self.place(party)]

    def public_key(self, party: str) -> bytes:
        """Signing key of one member, DER."""
        self.context()  # refuses where no keys were given
        return self.public_keys[self.place(party)]

    def fingerprint(self, party: str) -> bytes:
        """SHA-256 of a member's public key: what people confirm out of band."""
        self.context()  # refuses where no keys were given
        return self._fingerprints[self.place(party)]

    @property
    def share_threshold(self) -> int:
        """Shares that recover one secret: of the whole roster, or of one member's neighbours."""
        return self.threshold if isinstance(self.graph, Complete) else self.graph.neighbour_threshold

    @property
    def shared_secrets(self) -> int:
        """Secrets of noise that each member shares besides its own two: one for each component that may be taken out."""
        return self.shared.may_drop if self.shared else 0

    def surplus_from(self, survivors: int) -> int | None:
        """The first component that is taken out of the survivors' sum, None where all stay; LocalError with too few of them."""
        if self.shared is None:
            return None
        kept = self.shared.shares(len(self.participants)).kept(len(self.participants) - survivors)
        return kept if kept <= self.shared.may_drop else None

    def offset(self, party: str) -> int:
        """o_i: the integer that stands for zero in this member's upload; its integers are at most 2 * o_i (step 0.2)."""
        return half_range(self.half_steps, self.weight(party), self.total_weight)


def rotation_shape(length: int) -> tuple[int, int]:
    """(rows, columns) that `rotation` pads to: the smallest power of two whose square holds the vector, and what is needed."""
    rows = 1 << ((length - 1).bit_length() + 1) // 2
    return rows, -(-length // rows)


def half_range(half_steps: int, weight: int, total_weight: int) -> int:
    """ceil(half_steps * weight / total_weight) in exact integers."""
    return -(-half_steps * weight // total_weight)


def plan_half_steps(quantizer: Quantizer, weights: tuple[int, ...]) -> int:
    """Largest H with sum_i 2 * ceil(H * w_i / W) <= 2**lane_bits - 1; LocalError if there is none above zero.

    Member i sends integers in [0, 2 * ceil(H * w_i / W)] and nothing else, so this inequality is the whole proof that a
    lane never overflows, whoever drops out. The sum grows with H, so bisection finds the largest.
    """
    total = sum(weights)

    def fits(half_steps: int) -> bool:
        return 2 * sum(half_range(half_steps, weight, total) for weight in weights) <= quantizer.lane_max

    low, high = 0, quantizer.lane_max  # fits(low) holds; fits(high) does not: its sum is at least 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    if low < 1:
        raise LocalError(
            f"a lane of {quantizer.lane_bits} bits cannot hold the sum of {len(weights)} members, each of which needs at least "
            "the numbers 0, 1 and 2: use fewer lanes, or a smaller cohort"
        )
    return low


def _shared_half_steps(params: RoundParams, shared: SharedNoise) -> int:
    """N * offset: members send integers in [0, 2 * offset], and 2 * n * offset in a lane is the whole proof (step 0.2)."""
    members = len(params.participants)
    offset = shared.offset(members)
    if 2 * members * offset > params.quantizer.lane_max:
        raise LocalError(
            f"a lane of {params.quantizer.lane_bits} bits cannot hold {members} members' integers of up to {offset} with their "
            "shares of the noise: use fewer lanes, a coarser step or a smaller largest sum"
        )
    return members * offset


def rounding_error(half_steps: int, members: int) -> float:
    """Largest root mean square error that rounding leaves in a coordinate of the mean, as a share of the clip.

    Rounding at random moves an integer by at most half a step (root mean square), independently for each member, and the
    clip is `half_steps` steps of the mean.
    """
    return math.sqrt(members) / (2 * half_steps)


def collusion_bound(members: int, threshold: int) -> int:
    """Largest number of colluders that a threshold withstands: c < 2t - n and t - c >= 2; negative if none at all."""
    return min(2 * threshold - members - 1, threshold - 2)


def _check_scalars(params: RoundParams) -> None:
    if len(params.session) != SESSION_BYTES:
        raise LocalError(f"the session id has {len(params.session)} bytes, expected {SESSION_BYTES}")
    if not 2 <= len(params.participants) <= MAX_PARTIES:
        raise LocalError(f"a session of {len(params.participants)} members: expected 2 to {MAX_PARTIES}")
    if not 1 <= params.threshold <= len(params.participants):
        raise LocalError(f"the threshold {params.threshold} is not between 1 and the {len(params.participants)} members")
    if not 1 <= params.length <= MAX_LENGTH:
        raise LocalError(f"a vector of {params.length} values: expected 1 to {MAX_LENGTH}")
    if len(params.plan_digest) != DIGEST_BYTES or len(params.layout_digest) != DIGEST_BYTES:
        raise LocalError(f"the digests of plan and layout have {DIGEST_BYTES} bytes each")
    if min(params.round, params.protocol_version, params.max_colluders) < 0 or max(params.round, params.protocol_version) >> 32:
        raise LocalError("round, protocol version and number of colluders are small non-negative integers")
    if len(params.log_head) not in (0, DIGEST_BYTES):
        raise LocalError(f"the head of a log has {DIGEST_BYTES} bytes")
    if params.minimum_cohort < 2:
        raise LocalError("a cohort below two members has nothing to hide in: minimum_cohort is at least 2")
    if not isinstance(params.graph, Complete) and params.graph.degree >= len(params.participants):
        raise LocalError(f"{params.graph.degree} neighbours cannot be drawn from {len(params.participants) - 1} other members")


def _check_members(params: RoundParams) -> None:
    names = params.participants
    if len(set(names)) != len(names):
        raise LocalError("a participant is listed twice")
    if not all(0 < len(name) <= 512 and name.isprintable() for name in names):
        raise LocalError("a participant's name is empty, longer than 512 characters or not printable")
    if not all(1 <= weight < MAX_WEIGHT for weight in params.weights):
        raise LocalError(f"weights are integers from 1 to {MAX_WEIGHT - 1}")
    if not all(len(item) == DIGEST_BYTES for item in params.base_digests):
        raise LocalError(f"each base model digest has {DIGEST_BYTES} bytes")
    if len(set(params.public_keys)) != len(params.public_keys):
        raise LocalError("two participants have the same public key")


def _check_clips(params: RoundParams) -> None:
    if not all(MIN_CLIP <= clip <= MAX_CLIP for clip in (*params.extra_clips, *(clip for _, clip in params.tensor_clips))):
        raise LocalError("every clip of a tensor or an extra coordinate must lie between 2**-64 and 2**64")
    counts = [count for count, _ in params.tensor_clips]
    if counts and (min(counts) < 1 or sum(counts) != params.length):
        raise LocalError(f"tensor_clips cover {sum(counts)} values, the vector has {params.length}")
    if len(params.extra_clips) > MAX_EXTRAS:
        raise LocalError(f"{len(params.extra_clips)} extra coordinates: a session carries at most {MAX_EXTRAS}")
    if params.extra_clips and len(set(params.base_digests)) > 1:
        raise LocalError("extra coordinates need one base model: with several, a sum over few members would be opened")


def _check_shared(params: RoundParams) -> None:
    """What shared noise does not go together with: each would break its accounting or its proof against overflow."""
    if (params.noise_mode == "shared") != (params.shared is not None):
        raise LocalError("noise_mode 'shared' and the figures of the shares go together")
    if params.shared is None:
        return
    plain = not params.quantizer.rotate and params.quantizer.keep == 1 and not params.tensor_clips
    if len(set(params.weights)) > 1 or len(set(params.base_digests)) > 1 or not plain:
        raise LocalError("shared noise needs equal weights, one base model, and whole vectors without rotation or tensor clips")
    if len(params.participants) - params.shared.may_drop < params.threshold:
        raise LocalError(
            f"shared noise allows {params.shared.may_drop} of {len(params.participants)} members to drop, the threshold of "
            f"{params.threshold} does not: lower one of them"
        )
    params.shared.shares(len(params.participants)).check_drawable()
    if params.shared.may_collude > params.max_colluders:
        raise LocalError(
            f"shared noise allows {params.shared.may_collude} colluders and the masks {params.max_colluders}: raise the latter"
        )


def _aligned(name: str, values: tuple[T, ...], order: list[int]) -> tuple[T, ...]:
    if len(values) != len(order):
        raise LocalError(f"{name} has {len(values)} entries for {len(order)} participants")
    return tuple(values[place] for place in order)


def _context(params: RoundParams) -> bytes:
    """README, step 0.3. The order of the fields is the format."""
    return digest(
        "hospital-secagg context v1",
        params.protocol_version,
        params.plan_digest,
        params.round,
        params.noise_mode,
        params.layout_digest,
        params.session,
        encode_list(params.participants),
        encode_list(params._fingerprints),  # noqa: SLF001  (the same module)
        encode_list(params.weights),
        params.threshold,
        params.max_colluders,
        params.minimum_cohort,
        params.length,
        encode_list([struct.pack(">d", params.quantizer.clip)]),
        params.quantizer.lanes,
        params.half_steps,
        _graph_field(params.graph),
        encode_list(params.base_digests),
        _coding_field(params),
        *([params.shared.field()] if params.shared else []),
        *([encode("log", params.log_head)] if params.log_head else []),
    )


def _coding_field(params: RoundParams) -> Field:
    quantizer = params.quantizer
    tensors = [struct.pack(">Qd", count, clip) for count, clip in params.tensor_clips]
    extras = [struct.pack(">d", clip) for clip in params.extra_clips]
    return encode(int(quantizer.rotate), params.coded_length, encode_list(tensors), encode_list(extras))


def _graph_field(rule: GraphRule) -> Field:
    return "complete" if isinstance(rule, Complete) else encode("sparse", rule.degree, rule.neighbour_threshold)
