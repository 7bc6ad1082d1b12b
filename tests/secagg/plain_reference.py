"""A second implementation of the masking protocol, written from secagg/README.md in plain Python integers.

It shares no line with `secagg`, computes on lists of integers, keeps everything and is in no hurry. Both must agree
bit for bit on every byte a member sends and on the mean (test_secagg_agreement.py). Comments name the README's steps.
"""

from __future__ import annotations

import hashlib
import math
import struct
from dataclasses import dataclass, field

from plain_primitives import N, counter_stream, gcm_seal, hkdf, p256_public_der, p256_sign, x25519, x25519_public

SHAMIR_PRIME = 2**256 + 297
SEGMENT_WORDS = 2**18


def enc(*fields):
    out = b""
    for item in fields:
        data = item.to_bytes(8, "big") if isinstance(item, int) else item.encode() if isinstance(item, str) else item
        out += len(data).to_bytes(4, "big") + data
    return out


def enc_list(items):
    items = list(items)
    return enc(len(items), *items)


def sha(*fields):
    return hashlib.sha256(enc(*fields)).digest()


def f32(value):
    return struct.unpack("<f", struct.pack("<f", value))[0]


def f32_down(value):
    """The next smaller positive float32."""
    (bits,) = struct.unpack("<I", struct.pack("<f", value))
    return struct.unpack("<f", struct.pack("<I", bits - 1))[0]


def f64_down(value):
    (bits,) = struct.unpack("<Q", struct.pack("<d", value))
    return struct.unpack("<d", struct.pack("<Q", bits - 1))[0]


@dataclass
class Session:
    """Parameters by their README names; members are already in order."""

    session: bytes
    members: list[str]
    threshold: int
    length: int
    clip: float
    lanes: int
    weights: list[int]
    plan_digest: bytes = bytes(32)
    round: int = 0
    noise_mode: str = "local"
    layout_digest: bytes = bytes(32)
    base_digests: list[bytes] = field(default_factory=list)
    max_colluders: int = 0
    minimum_cohort: int = 3
    keys: list[bytes] = field(default_factory=list)
    degree: int = 0  # of a sparse graph; 0 is the complete one
    neighbour_threshold: int = 0
    rotate: bool = False
    keep: float = 1.0
    tensor_clips: list[tuple[int, float]] = field(default_factory=list)
    extra_clips: list[float] = field(default_factory=list)

    @property
    def bits(self):
        return 64 // self.lanes

    def rows_columns(self):
        rows = 1
        while rows * rows < self.length:
            rows *= 2
        return rows, -(-self.length // rows)

    @property
    def coordinates(self):
        rows, columns = self.rows_columns()
        return rows * columns if self.rotate else self.length

    @property
    def coded_length(self):
        return math.ceil(self.keep * self.coordinates)

    @property
    def vector_words(self):
        return -(-self.coded_length // self.lanes)

    @property
    def words(self):
        return self.vector_words + -(-len(self.extra_clips) // 2)

    def half_steps(self):
        """Step 0.2, by walking down from the widest range."""
        total = sum(self.weights)
        top = 2**self.bits - 1
        steps = top // 2  # the answer lies within n below this, so the walk is short
        while 2 * sum(-(-steps * w // total) for w in self.weights) > top:
            steps -= 1
        return steps

    def offset(self, place):
        return -(-self.half_steps() * self.weights[place] // sum(self.weights))

    def fingerprint(self, place):
        return hashlib.sha256(self.keys[place]).digest()

    def context(self):
        """Step 0.3."""
        return sha(
            "hospital-secagg context v1",
            1,
            self.plan_digest,
            self.round,
            self.noise_mode,
            self.layout_digest,
            self.session,
            enc_list(self.members),
            enc_list(hashlib.sha256(k).digest() for k in self.keys),
            enc_list(self.weights),
            self.threshold,
            self.max_colluders,
            self.minimum_cohort,
            self.length,
            enc_list([struct.pack(">d", self.clip)]),
            self.lanes,
            self.half_steps(),
            enc("sparse", self.degree, self.neighbour_threshold) if self.degree else "complete",
            enc_list(self.base_digests or [bytes(32)] * len(self.members)),
            enc(
                1 if self.rotate else 0,
                self.coded_length,
                enc_list(struct.pack(">Qd", count, clip) for count, clip in self.tensor_clips),
                enc_list(struct.pack(">d", clip) for clip in self.extra_clips),
            ),
        )

    def public_bytes(self, use, lane, size):
        key = sha("hospital-secagg public stream v1", self.context(), use)[:16]
        return stream(key, lane, 0, size)

    def signs(self, lane):
        data = self.public_bytes("rotation", lane, 8 * -(-self.coordinates // 64))
        return [-1.0 if data[i // 8] >> (i % 8) & 1 else 1.0 for i in range(self.coordinates)]

    def chosen(self):
        data = self.public_bytes("subset", 0, 8 * self.coordinates)
        tickets = [(int.from_bytes(data[8 * i : 8 * i + 8], "little"), i) for i in range(self.coordinates)]
        return sorted(i for _, i in sorted(tickets)[: self.coded_length])


def transform(s, values):
    """Walsh-Hadamard transform of every column of rows x columns values; binary32 butterflies at distance 1, 2, 4, ..."""
    rows, columns = s.rows_columns()
    values, distance = list(values), 1
    while distance < rows:
        for row in range(rows):
            if row // distance % 2 == 0:
                for column in range(columns):
                    i, j = row * columns + column, (row + distance) * columns + column
                    values[i], values[j] = f32(values[i] + values[j]), f32(values[i] - values[j])
        distance *= 2
    return values


def code(s, values):
    """Step 0.4 on an update."""
    ends, rows, columns = [0], *s.rows_columns()
    for count, clip in s.tensor_clips:
        start = ends[-1]
        ends.append(start + count)
        values = values[:start] + [f32(v * f32(s.clip / clip)) for v in values[start : start + count]] + values[start + count :]
    if s.rotate:
        padded = list(values) + [0.0] * (s.coordinates - s.length)
        turned = transform(s, [v * sign for v, sign in zip(padded, s.signs(0), strict=True)])
        turned = [turned[j * rows + i] for i in range(rows) for j in range(columns)]
        turned = transform(s, [v * sign for v, sign in zip(turned, s.signs(1), strict=True)])
        values = [v / rows for v in turned]
    return [values[i] for i in s.chosen()] if s.keep < 1 else list(values)


def decode_vector(s, values):
    """Step 6.4, from the mean of what `code` gave to the mean of the updates."""
    rows, columns = s.rows_columns()
    if s.keep < 1:
        whole = [0.0] * s.coordinates
        for place, value in zip(s.chosen(), values, strict=True):
            whole[place] = f32(value * f32(s.coordinates / s.coded_length))
        values = whole
    if s.rotate:
        turned = [v * sign for v, sign in zip(transform(s, values), s.signs(1), strict=True)]
        back = [0.0] * s.coordinates
        for i in range(rows):
            for j in range(columns):
                back[j * rows + i] = turned[i * columns + j]
        values = [v * sign / rows for v, sign in zip(transform(s, back), s.signs(0), strict=True)][: s.length]
    start = 0
    for count, clip in s.tensor_clips:
        values = values[:start] + [f32(v * f32(clip / s.clip)) for v in values[start : start + count]] + values[start + count :]
        start += count
    return values


def extra_offset(s):
    return (2**32 - 1) // (2 * len(s.members))


def extra_integers(s, values, key):
    """Step 0.5: the integers of one member's extra coordinates, padded to whole words."""
    o = extra_offset(s)
    random = stream(key, s.lanes, 0, 8 * -(-len(values) // 4)) if values else b""
    out = []
    for j, (value, clip) in enumerate(zip(values, s.extra_clips, strict=True)):
        fixed = round(max(-1.0, min(1.0, value / clip)) * (o * 2**16))
        out.append((fixed + int.from_bytes(random[2 * j : 2 * j + 2], "little") >> 16) + o)
    return out + [o] * (len(out) % 2)


def quantize(s, place, values, rounding):
    """Lanes, steps 1 to 4: the integers of one member. `rounding(lane, word)` gives 16 random bits."""
    offset = s.offset(place)
    room = 31 - (2 * offset + 1).bit_length()
    narrow = room >= 8
    bits = min(16, room) if narrow else 16
    single = f32 if narrow else float
    down = f32_down if narrow else f64_down
    clip = f32(s.clip)
    if clip > s.clip:
        clip = f32_down(clip)
    factor = single(s.half_steps() * s.weights[place] * 2**bits / sum(s.weights) / s.clip)
    while single(clip * factor) > offset * 2**bits:
        factor = down(factor)
    integers = []
    for index, value in enumerate(values):
        lane, word = divmod(index, s.vector_words)
        clipped = max(-clip, min(clip, value))
        fixed = round(single(clipped * factor))  # ties to even, as IEEE 754
        integers.append(((fixed + rounding(lane, word) % 2**bits) >> bits) + offset)
    return integers


def pack(s, integers, padding):
    """Lanes, step 5: lane l of word w holds value l * words + w; values past the end are zero."""
    words = []
    for word in range(s.vector_words):
        packed = 0
        for lane in range(s.lanes):
            index = lane * s.vector_words + word
            packed |= (integers[index] if index < s.coded_length else padding) << (lane * s.bits)
        words.append(packed)
    return words


def unpack(s, words):
    mask = 2**s.bits - 1
    count = s.vector_words
    return [words[i % count] >> (i // count * s.bits) & mask for i in range(s.coded_length)]


def decode(s, sums, survivors):
    """Step 6.4."""
    places = [s.members.index(p) for p in survivors]
    offset = sum(s.offset(p) for p in places)
    factor = s.clip * (sum(s.weights) / (s.half_steps() * sum(s.weights[p] for p in places)))
    return [f32((value - offset) * factor) for value in sums]


def stream(key, lane, segment, size):
    return counter_stream(key, lane.to_bytes(4, "big") + segment.to_bytes(8, "big"), 2, size)


def mask_words(key, count):
    words = []
    for segment in range(-(-count // SEGMENT_WORDS)):
        here = min(SEGMENT_WORDS, count - segment * SEGMENT_WORDS)
        data = stream(key, 0, segment, 8 * here)
        words += [int.from_bytes(data[8 * i : 8 * i + 8], "little") for i in range(here)]
    return words


def rounding_bits(key, words):
    """A function (lane, word) -> 16 bits; lanes are expanded when first asked for."""
    cache = {}

    def at(lane, word):
        segment, index = divmod(word, SEGMENT_WORDS)
        if (lane, segment) not in cache:
            cache[lane, segment] = stream(key, lane, segment, 2 * min(SEGMENT_WORDS, words - segment * SEGMENT_WORDS))
        return int.from_bytes(cache[lane, segment][2 * index : 2 * index + 2], "little")

    return at


def shamir_split(secret, threshold, points, rand):
    coefficients = [int.from_bytes(secret, "big")]
    coefficients += [int.from_bytes(rand(48), "big") % SHAMIR_PRIME for _ in range(threshold - 1)]
    return {x: sum(c * x**k for k, c in enumerate(coefficients)) % SHAMIR_PRIME for x in points}


PHASES = ("advertise", "share", "mask", "confirm", "reveal")


class PlainRound:
    """One whole round; `sent` holds everything that members sent, `rand` is read in the README's order."""

    def __init__(self, s, updates, drop, rand, extras=None):
        self.s, self.updates, self.drop, self.rand = s, updates, drop, rand
        self.extras, self.extra_integers, self.extra_sums = extras or {}, {}, []
        self.place = {m: i for i, m in enumerate(s.members)}
        self.scalars = {m: int.from_bytes(rand(48), "big") % (N - 1) + 1 for m in s.members}
        s.keys = [p256_public_der(self.scalars[m]) for m in s.members]
        self.context = s.context()
        self.seal, self.mask_key, self.seed, self.rounding, self.drawn = {}, {}, {}, {}, {}
        self.adverts, self.boxes, self.held, self.share_signature = {}, {}, {}, {}
        self.integers, self.upload, self.upload_signature = {}, {}, {}
        self.confirmation, self.revealed = {}, {}

    def alive(self, phase):
        return [m for m in self.s.members if m not in self.drop or PHASES.index(self.drop[m]) > PHASES.index(phase)]

    def sign(self, member, purpose, statement, context=None):
        stands_for = enc("hospital-secagg signature v1", purpose, context or self.context, statement)
        return p256_sign(self.scalars[member], stands_for)

    def draw(self, member):
        """Step 1.2: the others with the smallest tickets."""
        others = [m for m in self.s.members if m != member]
        if not self.s.degree:
            return others
        tickets = self.rand(16 * len(others))
        ranked = sorted(range(len(others)), key=lambda i: tickets[16 * i : 16 * i + 16])
        return sorted(others[i] for i in ranked[: self.s.degree])

    def drawn_bytes(self, member):
        places = b"".join(self.place[m].to_bytes(4, "big") for m in self.drawn[member])
        return enc(places) if self.s.degree else b""

    def receivers(self, member):
        return [p for p in self.drawn[member] if p in self.adverts]

    def edge(self, a, b):
        return a != b and (b in self.drawn[a] or a in self.drawn[b])

    def key(self, secret, use, *names):
        return hkdf(secret, self.context, enc("hospital-secagg key v1", use, *names), 16)

    def advertise(self):  # step 1
        for m in self.alive("advertise"):
            self.seal[m], self.mask_key[m], self.seed[m], self.rounding[m] = (self.rand(32) for _ in range(4))
            public = (x25519_public(self.seal[m]), x25519_public(self.mask_key[m]))
            commitment = sha("hospital-secagg seed commitment v1", self.context, m, self.seed[m])
            self.drawn[m] = self.draw(m)
            signature = self.sign(m, "advert", enc(m, *public, commitment) + self.drawn_bytes(m))
            self.adverts[m] = (*public, commitment, signature)
        bodies = (enc(m, *self.adverts[m][:3]) + self.drawn_bytes(m) for m in sorted(self.adverts))
        self.seen = sha("hospital-secagg adverts v1", enc_list(bodies))

    def share(self):  # step 2
        for m in self.alive("share"):
            threshold = self.s.neighbour_threshold or self.s.threshold
            points = [self.place[p] + 1 for p in (m, *self.receivers(m))]
            seed_shares = shamir_split(self.seed[m], threshold, points, self.rand)
            key_shares = shamir_split(self.mask_key[m], threshold, points, self.rand)
            for p in (m, *self.receivers(m)):
                at = self.place[p] + 1
                self.held[m, p] = (seed_shares[at].to_bytes(33, "big"), key_shares[at].to_bytes(33, "big"))
            self.boxes[m] = {p: self.box(m, p) for p in self.receivers(m)}
            digests = b"".join(hashlib.sha256(box).digest() for box in self.boxes[m].values())
            if self.s.degree:
                digests = hashlib.sha256(digests).digest()
            self.share_signature[m] = self.sign(m, "shares", enc(m, self.seen, digests))

    def box(self, sender, receiver):
        theirs = self.adverts[receiver][0]
        secret = x25519(self.seal[sender], theirs)
        key = self.key(secret, "box", sender, receiver, self.adverts[sender][0], theirs)
        header = self.place[sender].to_bytes(4, "big") + self.place[receiver].to_bytes(4, "big")
        return gcm_seal(key, bytes(12), header + b"".join(self.held[sender, receiver]), self.context)

    def pair_words(self, a, b):
        """Signed words of the mask that `a` adds because of `b`."""
        pairs = sorted((self.s.fingerprint(self.place[p]), self.adverts[p][1]) for p in (a, b))
        secret = x25519(self.mask_key[a], self.adverts[b][1])
        words = mask_words(self.key(secret, "pair", *pairs[0], *pairs[1]), self.s.words)
        return words if a < b else [-word for word in words]

    def self_words(self, m):
        return mask_words(self.key(self.seed[m], "self", m), self.s.words)

    def mask(self):  # step 3
        for m in self.alive("mask"):
            rounding_key = self.key(self.rounding[m], "rounding", m)
            bits = rounding_bits(rounding_key, self.s.vector_words)
            self.integers[m] = quantize(self.s, self.place[m], code(self.s, self.updates[m]), bits)
            self.extra_integers[m] = extra_integers(self.s, self.extras.get(m, []), rounding_key)
            extra = [low | high << 32 for low, high in zip(*[iter(self.extra_integers[m])] * 2, strict=True)]
            columns = [pack(self.s, self.integers[m], self.s.offset(self.place[m])) + extra, self.self_words(m)]
            columns += [self.pair_words(m, p) for p in self.boxes if self.edge(m, p)]
            data = b"".join((sum(parts) % 2**64).to_bytes(8, "little") for parts in zip(*columns, strict=True))
            self.upload[m] = data
            statement = enc(m, len(data), hashlib.sha256(data).digest())
            sharers = enc_list(sorted(self.boxes))
            under = sha("hospital-secagg uploads v1", self.context, self.seen, sharers) if self.s.degree else self.context
            self.upload_signature[m] = self.sign(m, "upload", statement, under)
        self.survivors = sorted(self.upload)

    def confirm(self):  # step 4
        statement = enc(self.seen, enc_list(sorted(self.boxes)), enc_list(self.survivors))
        self.confirmation = {m: self.sign(m, "confirm", statement) for m in self.alive("confirm")}

    def reveal(self):  # step 5
        for m in self.alive("reveal"):
            held = [p for p in sorted(self.boxes) if (p, m) in self.held]
            self.revealed[m] = {p: self.held[p, m][0 if p in self.survivors else 1] for p in held}

    def open(self):
        """Step 6 with the secrets themselves; their recovery from shares is tested elsewhere. Returns the mean."""
        columns = [[int.from_bytes(data[i : i + 8], "little") for i in range(0, len(data), 8)] for data in self.upload.values()]
        columns += [[-word for word in self.self_words(m)] for m in self.survivors]
        gone = [p for p in self.boxes if p not in self.survivors]
        columns += [[-word for word in self.pair_words(m, p)] for m in self.survivors for p in gone if self.edge(m, p)]
        opened = [sum(parts) % 2**64 for parts in zip(*columns, strict=True)]
        plain = [sum(self.integers[m][i] for m in self.survivors) for i in range(self.s.coded_length)]
        assert unpack(self.s, opened) == plain, "the second implementation contradicts itself"
        middle = extra_offset(self.s) * len(self.survivors)
        for j, clip in enumerate(self.s.extra_clips):
            steps = sum(self.extra_integers[m][j] for m in self.survivors) - middle
            self.extra_sums.append(steps * (clip / extra_offset(self.s)))
        return decode_vector(self.s, decode(self.s, plain, self.survivors))

    def run(self):
        for phase in PHASES:
            getattr(self, phase)()
        return self.open()
