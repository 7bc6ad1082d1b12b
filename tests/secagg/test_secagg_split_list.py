"""The split-list attack: a coordinator with c colluding hospitals shows different survivor lists to different nodes.

Secrecy needs c < 2t - n. Below that bound no split of the honest members gets both lists signed; at it, the attack is
run to the end and reads one hospital's update. So the bound is exact, and the nodes' policy check of it matters. In a
sparse session no split helps, and the bound is the number of one member's neighbours that collude.
"""

from itertools import product

import numpy as np
import pytest
from secagg_round import Federation, small_params

from secagg import RemoteError, ShareKind, Sparse, TooFewSurvivors, collusion_bound, identity, keys, node
from secagg.identity import Purpose
from secagg.keystream import Door
from secagg.lanes import Decoder
from secagg.messages import Confirmation
from secagg.shamir import Combiner
from secagg.statements import adverts_digest, list_statement
from secagg.upload import Masks, SignedMask

NAMES = ("anna", "bern", "chur", "davos", "esch", "fully", "genf")
VICTIM = "anna"
SESSIONS = [(4, 3), (5, 4), (7, 5), (7, 6)]  # members and threshold


class TooFewSharesError(Exception):
    """The attack has one list without enough shares."""


class Liar:
    """A coordinator that knows everything its colluders know, and asks each honest node about one of two lists."""

    def __init__(self, members, threshold, colluders, **fields):
        self.federation = Federation(small_params(NAMES[:members], threshold, **fields)).until("mask")
        self.colluders = colluders
        self.names = self.with_victim = self.federation.params.participants
        self.without_victim = tuple(p for p in self.names if p != VICTIM)
        self.honest = tuple(p for p in self.names if p not in colluders)

    def confirmations(self, survivors, honest):
        """Signatures over one list: colluders sign both lists, honest nodes the one that they are shown."""
        f = self.federation
        statement = list_statement(adverts_digest(f.view.adverts), f.view.sharers, survivors)
        forged = [
            Confirmation(p, identity.sign(f.keys[p], Purpose.CONFIRM, f.params.context(), statement))
            for p in self.colluders
            if p in survivors
        ]
        states, own = {}, []
        for p in honest:
            states[p], confirmation = node.confirm(f.states[p], survivors, f.seals)
            own.append(confirmation)
        return states, forged + own

    def shares(self, survivors, honest, kind):
        """Shares of the victim's one secret by the honest nodes shown this list; the colluders hold theirs anyway."""
        states, told = self.confirmations(survivors, honest)
        found = self.known(kind)
        for p, state in states.items():
            revealed = node.reveal(state, told)[1]
            for item in revealed.shares:
                if item.peer == VICTIM:
                    assert item.kind is kind
                    found[self.federation.params.place(p) + 1] = item.share
        return found

    def known(self, kind):
        """What the colluders were sent in the share phase."""
        f, found = self.federation, {}
        for p in self.colluders:
            held = f.states[p].sharing.held.get(VICTIM)
            if held is not None:
                found[f.params.place(p) + 1] = held.seed if kind is ShareKind.SELF_MASK_SEED else held.mask_key
        return found

    def attack(self, shown_victim, shown_without):
        """The victim's update, from two lists and the colluders' shares."""
        seeds = self.shares(self.with_victim, shown_victim, ShareKind.SELF_MASK_SEED)
        mask_keys = self.shares(self.without_victim, shown_without, ShareKind.MASK_KEY)
        return self.unmasked(self.recover(seeds), self.recover(mask_keys))

    def unmasked(self, seed, private):
        """The victim's update from both of its secrets."""
        f = self.federation
        adverts = f.view.adverts
        masks = [SignedMask(keys.self_key(f.params, seed, VICTIM), subtract=True)]
        for p in f.view.graph.masked_with(VICTIM):
            secret = keys.agree(keys.private_key(private), adverts[p].mask_key, blame=p)
            masks.append(SignedMask(keys.pair_key(f.params, secret, adverts[VICTIM], adverts[p]), subtract=p > VICTIM))
        words = np.frombuffer(f.uploads[VICTIM], "<u8").astype(np.uint64)
        Masks(masks, Door.GCM).apply(words, 0)
        update = np.empty(f.params.length, np.float32)
        Decoder(f.params, [VICTIM]).decode_into(update, words, 0)
        return update

    def recover(self, shares):
        need = self.federation.params.share_threshold
        if len(shares) < need:
            raise TooFewSharesError
        return Combiner(tuple(shares)[:need]).combine(shares)

    def has_read(self, stolen):
        truth = self.federation.updates()[VICTIM]
        return np.abs(stolen - truth).max() <= 8 / self.federation.params.half_steps


@pytest.mark.parametrize(("members", "threshold"), SESSIONS)
def test_at_the_bound_the_attack_reads_one_update(members, threshold):
    count = 2 * threshold - members
    liar = Liar(members, threshold, colluders=NAMES[members - count : members])
    rest = liar.honest[1:]
    for_first = threshold - count - 1  # with the victim and the colluders: t signatures
    assert liar.has_read(liar.attack([VICTIM, *rest[:for_first]], rest[for_first:]))


@pytest.mark.parametrize(("members", "threshold"), SESSIONS)
def test_below_the_bound_every_split_fails(members, threshold):
    """Whichever honest nodes see which list, one of the two lists lacks signatures."""
    count = 2 * threshold - members - 1
    liar_of = lambda: Liar(members, threshold, colluders=NAMES[members - count : members])  # noqa: E731
    honest = liar_of().honest[1:]
    for shown in product(("first", "second"), repeat=len(honest)):
        first = [VICTIM, *(p for p, where in zip(honest, shown, strict=True) if where == "first")]
        second = [p for p, where in zip(honest, shown, strict=True) if where == "second"]
        with pytest.raises((TooFewSurvivors, TooFewSharesError)) as caught:
            liar_of().attack(first, second)
        if isinstance(caught.value, TooFewSurvivors):
            assert caught.value.phase == "reveal"  # a list that lacks signatures
        else:
            assert second == []  # nobody was asked about the list without the victim


@pytest.mark.parametrize("shown", ["bern", "chur"])
def test_a_node_that_is_shown_both_lists_signs_only_the_first(shown):
    liar = Liar(4, 3, colluders=("davos",))
    with pytest.raises(RemoteError) as caught:
        liar.attack([VICTIM, "bern", "chur"], [shown])
    assert caught.value.code == "second-question"


def test_the_victim_does_not_sign_its_own_death():
    liar = Liar(4, 3, colluders=("chur", "davos"))
    with pytest.raises(RemoteError) as caught:
        liar.shares(liar.without_victim, [VICTIM, "bern"], ShareKind.MASK_KEY)
    assert caught.value.code == "not-on-list"


def test_nodes_whose_policy_fears_two_colluders_refuse_such_a_session():
    assert collusion_bound(4, 3) == 1
    federation = Federation(small_params(NAMES[:4], 3, max_colluders=2, minimum_cohort=2))
    with pytest.raises(RemoteError, match="withstands 1 colluders"):
        federation.advertise()


# --- sparse: the neighbours of one member -------------------------------------------------------------------------

NEED = 3


def sparse_liar(count):
    """`count` of the victim's five neighbours collude; the policy, which would refuse this, has been told otherwise."""
    graph = Sparse(5, NEED)
    neighbours = Liar(7, 6, (), graph=graph).federation.view.adverts[VICTIM].neighbours
    return Liar(7, 6, tuple(NAMES[place] for place in neighbours[:count]), graph=graph)


def test_as_many_colluding_neighbours_as_the_threshold_read_one_update():
    liar = sparse_liar(NEED)
    both = (liar.recover(liar.known(kind)) for kind in (ShareKind.SELF_MASK_SEED, ShareKind.MASK_KEY))
    assert liar.has_read(liar.unmasked(*both))


@pytest.mark.parametrize("split", list(product(("first", "second"), repeat=4)))
def test_one_colluding_neighbour_less_needs_two_lists_and_gets_none(split):
    """Two colluders, whom a threshold of 6 of 7 withstands: the list is signed by the whole roster, not by neighbours."""
    liar = sparse_liar(NEED - 1)
    assert len(liar.known(ShareKind.MASK_KEY)) == NEED - 1
    honest = liar.honest[1:]
    first = [VICTIM, *(p for p, where in zip(honest, split, strict=True) if where == "first")]
    second = [p for p, where in zip(honest, split, strict=True) if where == "second"]
    with pytest.raises((TooFewSurvivors, TooFewSharesError)):
        liar.attack(first, second)


def test_nodes_refuse_neighbourhoods_that_their_colluders_may_fill():
    federation = Federation(small_params(NAMES, 6, graph=Sparse(5, NEED), max_colluders=NEED, minimum_cohort=5))
    with pytest.raises(RemoteError, match="sparse graph of 7 members"):
        federation.advertise()
    federation = Federation(small_params(NAMES, 6, graph=Sparse(5, NEED), max_colluders=NEED - 1, minimum_cohort=5))
    federation.advertise()
