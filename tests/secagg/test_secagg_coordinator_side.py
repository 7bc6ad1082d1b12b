"""The coordinator's checks: what a lying member sends is refused by its name, and wrong shares are corrected."""

from dataclasses import replace

import numpy as np
import pytest
from secagg_round import Federation, small_params

from secagg import LocalError, RemoteError, RevealedShare, ShareKind, TooFewSurvivors, node
from secagg.coordinate import SessionView, open_sum, verify_advert, verify_share_set
from secagg.messages import NO_DIGESTS, Box, Revealed
from secagg.shamir import P

SEVEN = tuple("abcdefg")


def refused(code, party, call, *args):
    with pytest.raises(RemoteError) as caught:
        call(*args)
    assert (caught.value.code, caught.value.party) == (code, party)


def flipped(data):
    return bytes([data[0] ^ 1]) + data[1:]


@pytest.fixture
def shared():
    return Federation(small_params()).advertise().share()


def test_adverts(shared):
    view, advert = SessionView(shared.params), shared.view.adverts["bern"]
    refused("bad-signature", "bern", view.add_advert, replace(advert, mask_key=flipped(advert.mask_key)))
    refused("unknown-party", "zug", view.add_advert, replace(advert, party="zug"))
    view.add_advert(advert)
    view.add_advert(advert)
    refused("second-question", "bern", view.add_advert, replace(advert, signature=flipped(advert.signature)))
    refused("repeated-key", "chur", view.add_advert, shared.sign_advert("chur", advert.seal_key, b"2" * 32))
    verify_advert(shared.params, advert)
    with pytest.raises(TooFewSurvivors) as caught:
        view.check_adverts()
    assert caught.value.phase == "share"
    late = Federation(small_params()).advertise(["anna", "bern", "chur"]).share()
    with pytest.raises(LocalError, match="closed"):
        late.view.add_advert(shared.view.adverts["davos"])


def test_share_sets(shared):
    view, good = SessionView(shared.params, adverts=dict(shared.view.adverts)), shared.view.share_sets["bern"]
    for boxes in (
        good.boxes[1:],
        (*good.boxes, Box("bern", b"x")),
        (Box("anna", flipped(good.boxes[0].sealed)), *good.boxes[1:]),
    ):
        refused("altered-box", "bern", view.add_share_set, replace(good, boxes=boxes))
    for boxes in (good.boxes[1:], (*good.boxes, Box("bern", b"x")), good.boxes[::-1]):
        refused("malformed", "bern", view.add_share_set, replace(good, boxes=boxes, digests=NO_DIGESTS))
    altered = (Box("anna", flipped(good.boxes[0].sealed)), *good.boxes[1:])
    refused("bad-signature", "bern", view.add_share_set, replace(good, boxes=altered, digests=NO_DIGESTS))
    refused("unknown-party", "zug", view.add_share_set, replace(good, party="zug"))
    assert view.share_sets == {}
    view.add_share_set(replace(good, digests=NO_DIGESTS))
    view.add_share_set(good)
    assert view.share_sets["bern"] == good
    verify_share_set(shared.params, view.adverts, good)
    forged = replace(good, boxes=altered, digests=NO_DIGESTS)
    refused("bad-signature", "bern", verify_share_set, shared.params, view.adverts, forged)
    refused("second-question", "bern", view.add_share_set, replace(good, signature=flipped(good.signature)))
    with pytest.raises(TooFewSurvivors):
        view.check_shares()


def test_what_is_relayed_is_one_box_and_all_digests(shared):
    relayed = shared.view.share_sets["bern"].for_receiver("chur")
    assert [box.receiver for box in relayed.boxes] == ["chur"]
    assert relayed.digests.receivers == ("anna", "chur", "davos")
    bare = replace(shared.view.share_sets["bern"], digests=NO_DIGESTS)
    assert bare.for_receiver("chur") == relayed


def test_the_list_is_fixed_once(shared):
    view = shared.view
    with pytest.raises(LocalError, match="not closed"):
        view.statement()
    for survivors in (("anna", "anna", "bern", "chur"), ("anna", "bern", "zug")):
        with pytest.raises(LocalError, match="distinct members that shared"):
            view.close(survivors)
    with pytest.raises(TooFewSurvivors, match="2 members are left"):
        view.close(("anna", "bern"))
    view.close(("chur", "bern", "anna"))
    assert (view.survivors, view.dropped) == (("anna", "bern", "chur"), ("davos",))
    late = view.share_sets.pop("davos")
    for change in (lambda: view.close(("anna", "bern", "chur", "davos")), lambda: view.add_share_set(late)):
        with pytest.raises(LocalError, match="already fixed"):
            change()


@pytest.fixture
def confirmed():
    return Federation(small_params()).until("confirm")


def test_confirmations(confirmed):
    view, good = confirmed.view, confirmed.view.confirmations["bern"]
    refused("second-question", "bern", view.add_confirmation, replace(good, signature=flipped(good.signature)))
    del view.confirmations["bern"]
    refused("bad-signature", "bern", view.add_confirmation, replace(good, signature=view.confirmations["anna"].signature))
    refused("unknown-party", "zug", view.add_confirmation, replace(good, party="zug"))
    del view.confirmations["anna"]
    with pytest.raises(TooFewSurvivors) as caught:
        view.check_confirmed()
    assert caught.value.phase == "reveal"


def test_revealed_shares(confirmed):
    view, good = confirmed.view, node.reveal(confirmed.states["bern"], confirmed.confirmations)[1]
    key = replace(good.shares[0], kind=ShareKind.MASK_KEY)
    for shares in (
        good.shares[1:],
        (key, *good.shares[1:]),
        (*good.shares, RevealedShare("zug", ShareKind.MASK_KEY, bytes(33))),
    ):
        refused("wrong-shares", "bern", view.add_revealed, "bern", Revealed(shares))
    for value in (P.to_bytes(33, "big"), bytes(32)):
        shares = (replace(good.shares[0], share=value), *good.shares[1:])
        refused("malformed", "bern", view.add_revealed, "bern", Revealed(shares))
    refused("unknown-party", "zug", view.add_revealed, "zug", good)
    view.add_revealed("bern", good)
    view.add_revealed("bern", good)
    shares = (replace(good.shares[0], share=bytes(33)), *good.shares[1:])
    refused("second-question", "bern", view.add_revealed, "bern", Revealed(shares))
    with pytest.raises(TooFewSurvivors) as caught:
        open_sum(view, confirmed.total)
    assert caught.value.phase == "open"


# --- wrong shares -------------------------------------------------------------------------------------------------


def spoiled(revealed, shift):
    def wrong(share):
        return ((int.from_bytes(share, "big") + shift) % P).to_bytes(33, "big")

    return Revealed(tuple(replace(item, share=wrong(item.share)) for item in revealed.shares))


@pytest.fixture(scope="module")
def seven():
    """Seven members, five needed, one lost before its upload: two surplus shares of every secret, then one."""
    federation = Federation(small_params(SEVEN, 4)).advertise().share().ready()
    federation.mask(federation.updates(), list("abcdef")).confirm()
    federation.reveal()
    return federation, open_sum(federation.view, federation.total)


def with_liars(federation, liars):
    view = replace(federation.view)
    view.revealed = {p: spoiled(r, 1 + ord(p) ** 9) if p in liars else r for p, r in federation.view.revealed.items()}
    return view


def test_honest_shares_open_the_mean_of_the_survivors(seven):
    federation, opened = seven
    updates = federation.updates()
    expected = np.mean([updates[p] for p in "abcdef"], axis=0)
    assert np.abs(opened.mean - expected).max() < 8 / federation.params.half_steps * 7
    assert (opened.weight, opened.wrong_shares) == (6, ())


@pytest.mark.parametrize("liars", ["a", "f", "ab", "de"])
def test_wrong_shares_are_corrected_and_their_senders_named(seven, liars):
    federation, honest = seven
    opened = open_sum(with_liars(federation, liars), federation.total)
    assert opened.mean.tobytes() == honest.mean.tobytes()
    assert opened.sum_digest == honest.sum_digest
    assert set(opened.wrong_shares) <= set(liars)
    assert opened.wrong_shares or not set(liars) & set("abcd")  # surplus shares are not needed while the first four fit


def test_too_many_wrong_shares_are_said_to_be(seven):
    federation, _ = seven
    with pytest.raises(RemoteError) as caught:
        open_sum(with_liars(federation, "abc"), federation.total)
    assert caught.value.code == "unrecoverable"


def test_a_seed_that_was_not_committed_is_not_used(seven):
    federation, _ = seven
    view = replace(federation.view)
    advert = view.adverts["b"]
    view.adverts = {**view.adverts, "b": replace(advert, seed_commitment=flipped(advert.seed_commitment))}
    with pytest.raises(RemoteError, match="secret that b advertised"):
        open_sum(view, federation.total)


def test_a_mask_key_that_was_not_advertised_is_not_used(seven):
    federation, _ = seven
    view = replace(federation.view)
    view.adverts = {**view.adverts, "g": replace(view.adverts["g"], mask_key=view.adverts["a"].mask_key)}
    with pytest.raises(RemoteError, match="secret that g advertised"):
        open_sum(view, federation.total)


def test_threads_and_doors_open_the_same_sum(seven):
    federation, honest = seven
    opened = open_sum(federation.view, federation.total, threads=2)
    assert opened.mean.tobytes() == honest.mean.tobytes()


def test_a_total_of_another_shape_or_type_is_our_own_mistake(seven):
    federation, _ = seven
    for total in (federation.total[:-1], federation.total.astype(np.int64)):
        with pytest.raises(LocalError):
            open_sum(federation.view, total)
