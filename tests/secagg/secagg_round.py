"""A federation in memory that can be stopped at any phase, for tests that lie to it or listen in."""

from __future__ import annotations

import hashlib
from dataclasses import replace

import numpy as np

from secagg import Quantizer, RoundParams, node
from secagg.coordinate import SessionView, add_upload, open_sum
from secagg.identity import Purpose, public_der, sign
from secagg.messages import Advert
from secagg.policy import policy_of
from secagg.rehearse import PHASES, _draw_signing_key
from secagg.statements import advert_statement


class Drbg:
    """Reproducible `rand`: SHA-256 of a label and a counter. For tests and vectors only."""

    def __init__(self, label):
        self.label, self.count = str(label).encode(), 0

    def __call__(self, size):
        out = b""
        while len(out) < size:
            out += hashlib.sha256(self.label + b"/" + self.count.to_bytes(8, "big")).digest()
            self.count += 1
        return out[:size]


NAMES = ("anna", "bern", "chur", "davos")


def small_params(names=NAMES, threshold=None, **fields):
    defaults = {"session": bytes(range(16)), "length": 10, "quantizer": Quantizer(clip=1.0, lanes=3)}
    threshold = threshold or 2 * len(names) // 3 + 1
    return RoundParams(participants=tuple(names), threshold=threshold, **(defaults | fields))


class Federation:
    """All members and an honest coordinator. Each method runs one phase for the members that are given."""

    def __init__(self, params, seed="federation", policies=None):
        self.rand = Drbg(seed)
        self.keys = {p: _draw_signing_key(self.rand) for p in params.participants}
        self.params = replace(params, public_keys=tuple(public_der(self.keys[p]) for p in params.participants))
        self.policies = policies or {}
        self.view, self.rounding = SessionView(self.params), {}
        self.states, self.uploads, self.seals, self.total = {}, {}, {}, np.zeros(params.words, np.uint64)

    def policy(self, party):
        return self.policies.get(party, policy_of(self.params))

    def advertise(self, parties=None):
        for p in self.params.participants if parties is None else parties:
            state, advert = node.advertise(self.params, p, self.keys[p], self.policy(p), self.rand)
            self.states[p] = state
            self.view.add_advert(advert)
        return self

    def share(self, parties=None):
        for p in sorted(self.view.adverts) if parties is None else parties:
            self.states[p], share_set = node.share(self.states[p], self.adverts, self.rand)
            self.view.add_share_set(share_set)
        return self

    def ready(self, parties=None):
        for p in self.view.sharers if parties is None else parties:
            self.states[p] = node.ready_to_mask(self.states[p], self.sets_for(p))
            self.rounding[p] = self.states[p].rounding_key
        return self

    def mask(self, updates, parties=None, extras=None):
        for p in self.view.sharers if parties is None else parties:
            self.states[p], upload = node.mask(self.states[p], updates[p], extras=(extras or {}).get(p, ()))
            data = b"".join(upload.pieces())
            self.seals[p] = upload.finish()
            self.view.add_seal(p, hashlib.sha256(data).digest(), self.seals[p])
            add_upload(self.total, data)
            self.uploads[p] = data
        return self

    def confirm(self, parties=None):
        self.view.close(tuple(self.uploads))
        for p in self.view.survivors if parties is None else parties:
            self.states[p], confirmation = node.confirm(self.states[p], self.view.survivors, self.view.seals_for(p))
            self.view.add_confirmation(confirmation)
        return self

    def reveal(self, parties=None):
        for p in sorted(self.view.confirmations) if parties is None else parties:
            self.states[p], revealed = node.reveal(self.states[p], self.confirmations)
            self.view.add_revealed(p, revealed)
        return self

    def until(self, phase, updates=None):
        """All members through `phase` (advertise, share, ready, mask, confirm)."""
        for step in ("advertise", "share", "ready", "mask", "confirm", "reveal"):
            self.mask(updates or self.updates()) if step == "mask" else getattr(self, step)()
            if step == phase:
                return self
        raise AssertionError(phase)

    def updates(self, seed=0):
        rng = np.random.default_rng(seed)
        return {p: rng.uniform(-1, 1, self.params.length).astype(np.float32) for p in self.params.participants}

    def play(self, updates, drop, extras=None):
        """The whole round with these dropouts, as `rehearse.run_round` runs it."""

        def alive(phase):
            return [p for p in self.params.participants if p not in drop or PHASES.index(drop[p]) > PHASES.index(phase)]

        self.advertise(alive("advertise")).share(alive("share")).ready(alive("mask")).mask(updates, alive("mask"), extras)
        self.confirm(alive("confirm")).reveal(alive("reveal"))
        return open_sum(self.view, self.total)

    def sign_advert(self, party, seal_key, mask_key, commitment=b"c" * 32):
        """What a malicious member can sign: anything, under its own name and key."""
        statement = advert_statement(party, seal_key, mask_key, commitment)
        signature = sign(self.keys[party], Purpose.ADVERT, self.params.context(), statement)
        return Advert(party, seal_key, mask_key, commitment, signature)

    @property
    def adverts(self):
        return tuple(self.view.adverts.values())

    @property
    def confirmations(self):
        return tuple(self.view.confirmations.values())

    def sets_for(self, party):
        return [self.view.share_sets[p].for_receiver(party) for p in self.view.sharers]
