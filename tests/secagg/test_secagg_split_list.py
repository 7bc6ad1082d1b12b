"""The split-list attack: a coordinator with c colluding hospitals shows different survivor lists to different nodes.

Secrecy needs c < 2t - n. Below that bound no split of the honest members gets both lists signed; at it, the attack is
run to the end and reads one hospital's update. So the bound is exact, and the nodes' policy check of it matters.
"""

from itertools import product

import numpy as np
import pytest
from secagg_round import Federation, small_params

from secagg import RemoteError, ShareKind, TooFewSurvivors, collusion_bound, identity, keys, node
from secagg.identity import Purpose
from secagg.keystream import Door
from secagg.lanes import Decoder
from secagg.messages import Confirmation
from secagg.shamir import Combiner
from secagg.statements import adverts_digest, list_statement
from secagg.upload import SignedMask, apply_masks, open_streams

NAMES = ("anna", "bern", "chur", "davos")  # t = 3: the bound is 2t - n = 2
VICTIM = "anna"


class TooFewSharesError(Exception):
    """The attack has one list without enough shares."""


class Liar:
    """A coordinator that knows everything its colluders know, and asks each honest node about one of two lists."""

    def __init__(self, colluders):
        self.federation = Federation(small_params(NAMES, 3)).until("mask")
        self.colluders = colluders
        self.with_victim, self.without_victim = NAMES, tuple(p for p in NAMES if p != VICTIM)

    def confirmations(self, survivors, honest):
        """Signatures over one list: colluders sign both lists, honest nodes the one that they are shown."""
        f = self.federation
        statement = list_statement(adverts_digest(f.view.adverts), f.view.sharers, survivors)
        forged = [
            Confirmation(p, identity.sign(f.keys[p], Purpose.CONFIRM, f.params.context(), statement)) for p in self.colluders
        ]
        states, own = {}, []
        for p in honest:
            states[p], confirmation = node.confirm(f.states[p], survivors)
            own.append(confirmation)
        return states, forged + own

    def shares(self, survivors, honest, kind):
        """Shares of the victim's one secret by the honest nodes shown this list; the colluders hold theirs anyway."""
        states, told = self.confirmations(survivors, honest)
        found = {}
        for p, state in states.items():
            revealed = node.reveal(state, told)[1]
            item = next(item for item in revealed.shares if item.peer == VICTIM)
            assert item.kind is kind
            found[p] = item.share
        for p in self.colluders:
            held = self.federation.states[p].held[VICTIM]
            found[p] = held.seed if kind is ShareKind.SELF_MASK_SEED else held.mask_key
        return {self.federation.params.place(p) + 1: share for p, share in found.items()}

    def attack(self, shown_victim, shown_without):
        """The victim's update, from two lists and the colluders' shares."""
        seed = self.recover(self.shares(self.with_victim, shown_victim, ShareKind.SELF_MASK_SEED))
        private = self.recover(self.shares(self.without_victim, shown_without, ShareKind.MASK_KEY))
        f = self.federation
        adverts = f.view.adverts
        masks = [SignedMask(keys.self_key(f.params, seed, VICTIM), subtract=True)]
        for p in self.without_victim:
            secret = keys.agree(keys.private_key(private), adverts[p].mask_key, blame=p)
            masks.append(SignedMask(keys.pair_key(f.params, secret, adverts[VICTIM], adverts[p]), subtract=p > VICTIM))
        words = np.frombuffer(f.uploads[VICTIM], "<u8").astype(np.uint64)
        apply_masks(words, open_streams(masks, 0, Door.GCM), np.empty_like(words))
        update = np.empty(f.params.length, np.float32)
        Decoder(f.params, [VICTIM]).decode_into(update, words, 0)
        return update

    @staticmethod
    def recover(shares):
        if len(shares) < 3:
            raise TooFewSharesError
        return Combiner(tuple(shares)[:3]).combine(shares)


def test_at_the_bound_the_attack_reads_one_update():
    liar = Liar(colluders=("chur", "davos"))
    stolen = liar.attack(shown_victim=[VICTIM], shown_without=["bern"])
    truth = liar.federation.updates()[VICTIM]
    step = 4 / liar.federation.params.half_steps
    assert np.abs(stolen - truth).max() <= 2 * step


@pytest.mark.parametrize("shown", list(product(("both lists' members", "first", "second"), repeat=2)))
def test_below_the_bound_every_split_fails(shown):
    """One colluder: whichever honest nodes see which list, one of the two lists lacks signatures."""
    liar = Liar(colluders=("davos",))
    first = [VICTIM, *(p for p, where in zip(("bern", "chur"), shown, strict=True) if where != "second")]
    second = [p for p, where in zip(("bern", "chur"), shown, strict=True) if where != "first"]
    with pytest.raises((TooFewSurvivors, RemoteError, TooFewSharesError)) as caught:
        liar.attack(first, second)
    if isinstance(caught.value, RemoteError):
        assert caught.value.code == "second-question"  # a node shown both lists signs only the first
    elif isinstance(caught.value, TooFewSurvivors):
        assert caught.value.phase == "reveal"  # a list that lacks signatures
    else:
        assert second == []  # nobody was asked about the list without the victim


def test_the_victim_does_not_sign_its_own_death():
    liar = Liar(colluders=("chur", "davos"))
    with pytest.raises(RemoteError) as caught:
        liar.shares(liar.without_victim, [VICTIM, "bern"], ShareKind.MASK_KEY)
    assert caught.value.code == "not-on-list"


def test_nodes_whose_policy_fears_two_colluders_refuse_such_a_session():
    assert collusion_bound(4, 3) == 1
    federation = Federation(small_params(NAMES, 3, max_colluders=2, minimum_cohort=2))
    with pytest.raises(RemoteError, match="withstands 1 colluders"):
        federation.advertise()
