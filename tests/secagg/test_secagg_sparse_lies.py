"""Lies that only a sparse session offers: about neighbours, boxes, sharers and uploads; each ends in a refusal by name."""

from dataclasses import replace

import pytest
from secagg_round import Federation, small_params

from secagg import LocalError, RemoteError, RevealedShare, ShareKind, Sparse, TooFewSurvivors, identity, node
from secagg.coordinate import SessionView
from secagg.identity import Purpose
from secagg.messages import NO_DIGESTS, Advert, Box, Revealed, ShareSet
from secagg.statements import advert_statement, share_set_statement

NAMES = tuple("abcdefghi")
ME = "a"


def refused(code, party, call, *args):
    with pytest.raises(RemoteError) as caught:
        call(*args)
    assert (caught.value.code, caught.value.party) == (code, party)


@pytest.fixture
def federation():
    return Federation(small_params(NAMES, 7, graph=Sparse(5, 3)))


def drawn(federation, party):
    """Names of the neighbours that a member drew."""
    return [NAMES[place] for place in federation.view.adverts[party].neighbours]


def with_neighbours(federation, party, neighbours):
    """The member's advert with other neighbours, under its own valid signature."""
    good = federation.view.adverts[party]
    statement = advert_statement(party, *good.values, neighbours)
    signature = identity.sign(federation.keys[party], Purpose.ADVERT, federation.params.context(), statement)
    return Advert(party, *good.values, signature, neighbours)


@pytest.mark.parametrize("neighbours", [(), (0, 1, 2), (0, 1, 2, 3, 4), (2, 3, 4, 5, 99), (4, 3, 2, 0, 5), (2, 2, 3, 4, 5)])
def test_neighbours_against_the_rule_name_their_member(federation, neighbours):
    federation.advertise()
    bad = with_neighbours(federation, "b", neighbours)
    refused("bad-neighbours", "b", SessionView(federation.params).add_advert, bad)
    told = [bad if advert.party == "b" else advert for advert in federation.adverts]
    refused("bad-neighbours", "b", node.share, federation.states[ME], told, federation.rand)
    node.share(federation.states[ME], federation.adverts, federation.rand)


def test_neighbours_in_a_complete_session_name_their_member():
    federation = Federation(small_params(NAMES)).advertise()
    bad = with_neighbours(federation, "b", (0, 2, 3))
    refused("bad-neighbours", "b", SessionView(federation.params).add_advert, bad)


@pytest.mark.parametrize("change", ["another", "none"])
def test_neighbours_altered_on_the_way(federation, change):
    federation.advertise()
    good = federation.view.adverts["b"]
    other = () if change == "none" else federation.view.adverts["c"].neighbours
    told = [replace(good, neighbours=other) if advert.party == "b" else advert for advert in federation.adverts]
    refused("bad-signature", "unknown", node.share, federation.states[ME], told, federation.rand)
    own = replace(federation.view.adverts[ME], neighbours=other)
    mine = [own if advert.party == ME else advert for advert in federation.adverts]
    refused("own-message-altered", "unknown", node.share, federation.states[ME], mine, federation.rand)


# --- boxes --------------------------------------------------------------------------------------------------------


def signed_set(federation, party, boxes):
    """These boxes under their sender's valid signature."""
    bare = ShareSet(party, boxes, NO_DIGESTS, b"unsigned").with_digests()
    statement = share_set_statement(federation.params, federation.states[party].seen, bare)
    signature = identity.sign(federation.keys[party], Purpose.SHARES, federation.params.context(), statement)
    return replace(bare, digests=NO_DIGESTS, signature=signature)


def test_boxes_for_others_than_the_neighbours_name_their_sender(federation):
    federation.advertise().share()
    view = SessionView(federation.params, adverts=dict(federation.view.adverts))
    good = federation.view.share_sets["b"]
    stranger = next(p for p in NAMES if p != "b" and p not in drawn(federation, "b"))
    more = tuple(sorted((*good.boxes, Box(stranger, bytes(90))), key=lambda box: box.receiver))
    moved = tuple(sorted((*good.boxes[1:], Box(stranger, bytes(90))), key=lambda box: box.receiver))
    for boxes in (good.boxes[1:], more, moved, ()):
        refused("malformed", "b", view.add_share_set, signed_set(federation, "b", boxes))
    view.add_share_set(signed_set(federation, "b", good.boxes))


def relayed(federation, reader, **changed):
    return [changed.get(item.party, item) for item in federation.view.sets_for(reader)]


def test_what_is_relayed_is_a_box_or_the_summary(federation):
    federation.advertise().share()
    for item in relayed(federation, ME):
        full = federation.view.share_sets[item.party]
        assert item == full.for_receiver(ME)
        if item.party == ME or ME in drawn(federation, item.party):
            assert item.digests == full.digests
            assert [box.receiver for box in item.boxes] == [ME] * (item.party != ME)
        else:
            assert (item.boxes, item.digests, len(item.summary)) == ((), NO_DIGESTS, 32)


def test_lies_about_the_boxes(federation):
    federation.advertise().share()
    state, sets = federation.states[ME], federation.view.share_sets
    sender = next(p for p in NAMES if p != ME and ME in drawn(federation, p))
    other = next(p for p in NAMES if p != ME and ME not in drawn(federation, p))
    stub, box = sets[other].for_receiver(ME), sets[sender].for_receiver(ME)
    reader = drawn(federation, other)[0]
    for code, lie in (
        ("altered-box", replace(box, boxes=())),  # withheld
        ("malformed", sets[sender].for_receiver("")),  # a summary where a box is due
        ("malformed", sets[other].for_receiver(reader)),  # what another reader is due
        ("altered-box", replace(stub, boxes=(Box(ME, box.boxes[0].sealed),))),  # a box that was never sent
        ("bad-signature", replace(stub, summary=bytes(32))),
        ("bad-signature", replace(stub, signature=box.signature)),
        ("malformed", replace(stub, summary=b"")),
    ):
        refused(code, "unknown", node.ready_to_mask, state, relayed(federation, ME, **{lie.party: lie}))
    node.ready_to_mask(state, relayed(federation, ME))


def test_a_sharer_that_is_no_neighbour_cannot_be_invented(federation):
    """Its share set is checked although nothing in it is for this node: it counts among the sharers that are signed."""
    federation.advertise().share([p for p in NAMES if p != "c"])
    twin = Federation(federation.params, seed="other").advertise().share()
    invented = twin.view.share_sets["c"].for_receiver("")
    for reader in (p for p in NAMES if p != "c" and p not in drawn(federation, "c")):
        told = [*relayed(federation, reader), invented]
        refused("bad-signature", "unknown", node.ready_to_mask, federation.states[reader], told)


def test_summaries_and_digests_of_impossible_form_do_not_exist(federation):
    federation.advertise().share()
    full = federation.view.share_sets["b"]
    for form in ({"summary": b"short", "digests": NO_DIGESTS}, {"summary": bytes(32)}):
        refused("malformed", "b", lambda form=form: replace(full, **form))


# --- the list -----------------------------------------------------------------------------------------------------


def holder_of(federation, party):
    return drawn(federation, party)[0]


def test_a_survivor_that_never_uploaded_is_not_believed(federation):
    federation.until("ready").mask(federation.updates(), [p for p in NAMES if p != "b"])
    holder, state = holder_of(federation, "b"), federation.states[holder_of(federation, "b")]
    federation.view.close([p for p in NAMES if p != "b"])
    seals = federation.view.seals_for(holder)
    refused("never-uploaded", "unknown", node.confirm, state, NAMES, seals)
    refused("bad-signature", "unknown", node.confirm, state, NAMES, seals | {"b": federation.seals["c"]})
    node.confirm(state, federation.view.survivors, seals)


def test_an_upload_over_other_sharers_counts_for_nobody(federation):
    """The victim is told of fewer sharers, masks with fewer, and would be left alone where the others drop out.

    Its seal is over the sharers that it saw; those who hold its shares saw others and do not sign its survival.
    """
    federation.advertise().share()
    victim = "a"
    hidden = drawn(federation, victim)[:2]
    told = [item for item in federation.view.sets_for(victim) if item.party not in hidden]
    ready = node.ready_to_mask(federation.states[victim], told)
    assert len(ready.masks) < 1 + len(federation.view.graph.masked_with(victim))
    state, upload = node.mask(ready, federation.updates()[victim])
    seal = upload.finish()
    refused("bad-signature", victim, federation.view.add_seal, victim, seal.digest, seal)
    others = [p for p in NAMES if p != victim]
    federation.ready(others).mask(federation.updates(), others)
    federation.view.close(others)
    holders = [p for p in drawn(federation, victim) if p in others]
    for holder in holders:
        seals = federation.view.seals_for(holder) | {victim: seal}
        refused("bad-signature", "unknown", node.confirm, federation.states[holder], NAMES, seals)
    with pytest.raises(RemoteError, match="which shared nothing"):
        node.confirm(state, NAMES, {})
    assert len(holders) >= federation.params.share_threshold


def test_nobody_signs_a_list_that_leaves_a_survivor_without_neighbours():
    federation = Federation(small_params(NAMES, 7, graph=Sparse(5, 4))).until("mask")
    gone = drawn(federation, "b")[:2]
    left = [p for p in NAMES if p not in gone]
    for party in left:
        with pytest.raises(TooFewSurvivors, match="b has 3 of its neighbours left where 4 are needed") as caught:
            node.confirm(federation.states[party], left, federation.seals)
        assert caught.value.phase == "confirm"
    with pytest.raises(TooFewSurvivors, match="b has 3 of its neighbours left"):
        federation.view.close(left)
    federation.view.close(NAMES)


@pytest.mark.parametrize("phase", ["share", "mask"])
def test_the_coordinator_counts_neighbours_before_it_asks_further(phase):
    federation = Federation(small_params(NAMES, 7, graph=Sparse(5, 4))).advertise().share()
    gone = drawn(federation, "b")[:2]
    adverts = {p: a for p, a in federation.view.adverts.items() if phase == "mask" or p not in gone}
    view = SessionView(federation.params, adverts=adverts)
    if phase == "mask":
        for party in NAMES:
            if party not in gone:
                view.add_share_set(federation.view.share_sets[party])
    with pytest.raises(TooFewSurvivors, match="b has 3 of its neighbours left") as caught:
        view.check_adverts() if phase == "share" else view.check_shares()
    assert caught.value.phase == phase


def test_the_seals_are_checked_where_shares_are_held_and_nowhere_else(federation):
    federation.until("mask")
    federation.view.close(NAMES)
    for party in NAMES:
        seals = federation.view.seals_for(party)
        assert set(seals) == {p for p in NAMES if party in drawn(federation, p)}
        first = next(iter(seals))
        refused("never-uploaded", "unknown", node.confirm, federation.states[party], NAMES, {first: seals[first]})
        node.confirm(federation.states[party], NAMES, seals)


def test_seals_close_with_the_list_and_share_sets_with_the_first_seal(federation):
    federation.until("ready").mask(federation.updates())
    view, seal = federation.view, federation.seals["b"]
    view.add_seal("b", seal.digest, seal)
    refused("second-question", "b", view.add_seal, "b", seal.digest, federation.seals["c"])
    before = SessionView(view.params, adverts=dict(view.adverts))
    for party in NAMES[:8]:
        before.add_share_set(view.share_sets[party])
    refused("unknown-party", "i", before.add_seal, "i", federation.seals["i"].digest, federation.seals["i"])
    refused("bad-upload", "b", before.add_seal, "b", bytes(32), seal)
    refused("bad-signature", "b", before.add_seal, "b", seal.digest, seal)  # it is over nine sharers
    before.add_share_set(view.share_sets["i"])
    before.add_seal("b", seal.digest, seal)
    del before.share_sets["i"]
    with pytest.raises(LocalError, match="share sets are closed"):
        before.add_share_set(view.share_sets["i"])
    with pytest.raises(LocalError, match="upload was sealed"):
        view.close([*NAMES[:7], view.seals.popitem()[0]])
    view.close(view.seals)
    with pytest.raises(LocalError, match="already fixed"):
        view.add_seal("i", federation.seals["i"].digest, federation.seals["i"])


# --- reveal -------------------------------------------------------------------------------------------------------


def test_each_reveals_what_it_holds_and_no_more(federation):
    federation.until("confirm")
    view = federation.view
    for party in NAMES:
        _, revealed = node.reveal(federation.states[party], federation.confirmations)
        assert {item.peer for item in revealed.shares} == {party} | {p for p in NAMES if party in drawn(federation, p)}
        stranger = next(p for p in NAMES if p not in {item.peer for item in revealed.shares})
        more = RevealedShare(stranger, ShareKind.SELF_MASK_SEED, bytes(33))
        for shares in (revealed.shares[1:], (*revealed.shares, more)):
            refused("wrong-shares", party, view.add_revealed, party, Revealed(shares))
        view.add_revealed(party, revealed)
