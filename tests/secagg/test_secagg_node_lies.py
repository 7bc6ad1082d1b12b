"""One test for each lie that a coordinator or a peer can tell a node; each ends in a refusal that names it.

Lies that need no key are named cases in tests/vectors/bad_cases.json; here are those that need a member's own key, other
parameters, or a question in another order. After each refusal the honest message still works.
"""

from dataclasses import replace

import numpy as np
import pytest
from secagg_round import Drbg, Federation, small_params

from secagg import (
    LocalError,
    Policy,
    RemoteError,
    Revealed,
    RevealedShare,
    SecaggError,
    ShareKind,
    TooFewSurvivors,
    boxes,
    identity,
    keys,
    node,
)
from secagg.boxes import HeldShares
from secagg.identity import Purpose
from secagg.messages import Advert, Box, Confirmation, ShareSet, UploadSeal, digests_of
from secagg.policy import policy_of
from secagg.statements import adverts_digest, list_statement, shares_statement

ME = "anna"


def refused(code, call, *args, party=None):
    with pytest.raises(RemoteError) as caught:
        call(*args)
    assert caught.value.code == code
    assert party is None or caught.value.party == party
    assert str(caught.value)


# --- advertise: the session itself --------------------------------------------------------------------------------


def advertise(params, federation, policy=None, **known):
    return node.advertise(params, ME, federation.keys[ME], policy or policy_of(params), Drbg("a"), **known)


def test_a_session_id_seen_before():
    federation = Federation(small_params())
    refused("session-repeated", lambda: advertise(federation.params, federation, seen={federation.params.session}))
    advertise(federation.params, federation, seen={bytes(16)})


def test_another_key_in_my_name():
    federation, stranger = Federation(small_params()), Federation(small_params(), seed="other")
    mixed = (stranger.params.public_keys[0], *federation.params.public_keys[1:])
    refused("policy", lambda: advertise(replace(federation.params, public_keys=mixed), federation))


def test_a_session_without_me():
    federation = Federation(small_params())
    without = Federation(small_params(("bern", "chur", "davos"))).params
    refused("policy", lambda: advertise(without, federation))


def test_a_peer_with_a_key_that_nobody_confirmed():
    """The coordinator runs a hospital of its own: its certificate may be valid, its key is not pinned."""
    honest, sybil = Federation(small_params()), Federation(small_params(), seed="sybil")
    mixed = replace(honest.params, public_keys=(*honest.params.public_keys[:3], sybil.params.public_keys[3]))
    refused("unpinned-key", lambda: advertise(mixed, honest, policy_of(honest.params)))


def test_a_base_model_that_i_did_not_train_on():
    federation = Federation(small_params(base_digests=(b"m" * 32,) * 4))
    advertise(federation.params, federation, base_digest=b"m" * 32)
    refused("policy", lambda: advertise(federation.params, federation, base_digest=b"n" * 32))


def test_a_threshold_below_my_policy():
    federation = Federation(small_params(threshold=3))
    strict = replace(policy_of(federation.params), max_colluders=2)
    refused("policy", lambda: advertise(federation.params, federation, strict))


def test_a_cohort_below_my_policy():
    federation = Federation(small_params())
    with pytest.raises(TooFewSurvivors):
        advertise(federation.params, federation, replace(policy_of(federation.params), minimum_cohort=5))


def test_weights_that_isolate_me():
    federation = Federation(small_params(weights=(90, 1, 1, 1)))
    with pytest.raises(TooFewSurvivors, match="equal members"):
        advertise(federation.params, federation)


# --- share: the adverts -------------------------------------------------------------------------------------------


@pytest.fixture
def advertised():
    return Federation(small_params()).advertise()


def share_with(federation, **changed):
    """Ask ME to share over the honest adverts with some replaced."""
    told = [changed.get(advert.party, advert) for advert in federation.adverts]
    return node.share(federation.states[ME], told, federation.rand)


def test_a_low_order_key_under_a_valid_signature(advertised):
    good = advertised.view.adverts["bern"]
    for seal, mask in ((bytes(32), good.mask_key), (good.seal_key, bytes(32))):
        bad = advertised.sign_advert("bern", seal, mask)
        refused("weak-key", lambda bad=bad: share_with(advertised, bern=bad), party="bern")
    share_with(advertised)


@pytest.mark.parametrize("field", ["seal_key", "mask_key"])
def test_a_second_spelling_of_a_key(advertised, field):
    good = advertised.view.adverts["bern"]
    pair = {"seal_key": good.seal_key, "mask_key": good.mask_key}
    pair[field] = pair[field][:-1] + bytes([pair[field][-1] | 0x80])
    bad = advertised.sign_advert("bern", **pair)
    refused("weak-key", lambda: share_with(advertised, bern=bad), party="bern")


@pytest.mark.parametrize("field", ["seal_key", "mask_key", "seed_commitment"])
def test_a_key_or_commitment_copied_from_another_member(advertised, field):
    theirs, mine = advertised.view.adverts["chur"], advertised.view.adverts["bern"]
    fields = {name: getattr(theirs if name == field else mine, name) for name in ("seal_key", "mask_key", "seed_commitment")}
    copied = advertised.sign_advert("bern", *fields.values())
    refused("repeated-key", lambda: share_with(advertised, bern=copied), party="unknown")


def test_one_key_for_both_purposes(advertised):
    one = advertised.view.adverts["bern"].seal_key
    refused("repeated-key", lambda: share_with(advertised, bern=advertised.sign_advert("bern", one, one)), party="bern")


def test_an_advert_of_another_session(advertised):
    old = Federation(small_params(session=bytes(16))).advertise().view.adverts["bern"]
    refused("bad-signature", lambda: share_with(advertised, bern=old), party="unknown")


def test_an_advert_of_a_stranger(advertised):
    stranger = Advert("zug", b"1" * 32, b"2" * 32, b"3" * 32, b"s")
    refused("unknown-party", node.share, advertised.states[ME], [*advertised.adverts, stranger], advertised.rand)


def test_an_advert_twice(advertised):
    twice = [*advertised.adverts, advertised.adverts[1]]
    refused("duplicate-party", node.share, advertised.states[ME], twice, advertised.rand)


def test_a_source_of_randomness_that_runs_dry(advertised):
    with pytest.raises(LocalError, match="instead of 48"):
        node.share(advertised.states[ME], advertised.adverts, lambda size: bytes(size - 1))
    with pytest.raises(LocalError, match="instead of 32"):
        node.advertise(advertised.params, ME, advertised.keys[ME], policy_of(advertised.params), lambda _: b"")


def test_the_same_question_gets_the_same_boxes_and_another_one_none(advertised):
    state, answer = share_with(advertised)
    again = node.share(advertised.states[ME], advertised.adverts[::-1], Drbg("other randomness"))
    assert again == (state, answer)
    refused("second-question", node.share, advertised.states[ME], advertised.adverts[:3], advertised.rand)


# --- mask: the boxes ----------------------------------------------------------------------------------------------


@pytest.fixture
def shared(advertised):
    return advertised.share()


def bad_set(federation, sender, sealed):
    """The sender's set with another box for ME, under the sender's own valid signature."""
    good = federation.view.share_sets[sender]
    changed = tuple(Box(box.receiver, sealed if box.receiver == ME else box.sealed) for box in good.boxes)
    statement = shares_statement(sender, adverts_digest(federation.view.adverts), digests_of(changed))
    signature = identity.sign(federation.keys[sender], Purpose.SHARES, federation.params.context(), statement)
    return ShareSet(sender, changed, digests_of(changed), signature)


def ready_with(federation, changed):
    told = [changed if item.party == changed.party else item for item in federation.sets_for(ME)]
    return node.ready_to_mask(federation.states[ME], told)


def sealed_by(federation, sender, to, place_of_sender, place_of_receiver, shares):
    one, other = federation.view.adverts[sender], federation.view.adverts[to]
    secret = keys.agree(federation.states[sender].secrets.seal_key, other.seal_key, blame=to)
    key = keys.box_key(federation.params, secret, one, other)
    return boxes.seal(key, federation.params.context(), place_of_sender, place_of_receiver, shares)


GOOD = HeldShares(bytes(33), bytes(33))


@pytest.mark.parametrize("lie", ["noise", "other sender", "other receiver", "no share", "short"])
def test_a_bad_box_names_its_sender(shared, lie):
    sealed = {
        "noise": bytes(90),
        "other sender": sealed_by(shared, "bern", ME, 2, 0, GOOD),
        "other receiver": sealed_by(shared, "bern", ME, 1, 2, GOOD),
        "no share": sealed_by(shared, "bern", ME, 1, 0, HeldShares(b"\xff" * 33, bytes(33))),
        "short": sealed_by(shared, "bern", ME, 1, 0, HeldShares(bytes(33), bytes(32))),
    }[lie]
    refused("bad-box", ready_with, shared, bad_set(shared, "bern", sealed), party="bern")
    ready_with(shared, bad_set(shared, "bern", sealed_by(shared, "bern", ME, 1, 0, GOOD)))


def test_a_box_of_another_session_does_not_open(shared):
    other = Federation(small_params(session=bytes(16))).advertise().share()
    foreign = next(box.sealed for box in other.view.share_sets["bern"].boxes if box.receiver == ME)
    refused("bad-box", ready_with, shared, bad_set(shared, "bern", foreign), party="bern")


def test_members_that_were_shown_other_adverts(advertised):
    """The coordinator shows bern only three adverts; its boxes then fit nobody's view but its own."""
    state, split = node.share(advertised.states["bern"], advertised.adverts[:3], advertised.rand)
    advertised.share(["anna", "chur", "davos"])
    assert state is not None
    told = [*advertised.sets_for(ME), split.with_digests()]
    refused("malformed", node.ready_to_mask, advertised.states[ME], told)


def test_members_that_were_shown_another_key(advertised):
    """A member signs two adverts; the sets of those who saw the other one do not verify here."""
    keys_of_twin = (keys.public_of(keys.private_key(seed * 32)) for seed in (b"1", b"2"))
    twin = advertised.sign_advert("davos", *keys_of_twin)
    _, split = node.share(advertised.states["bern"], [*advertised.adverts[:3], twin], advertised.rand)
    advertised.share(["anna", "chur", "davos"])
    told = [*advertised.sets_for(ME), split.with_digests()]
    refused("bad-signature", node.ready_to_mask, advertised.states[ME], told, party="unknown")


def test_a_share_set_twice(shared):
    told = shared.sets_for(ME)
    refused("duplicate-party", node.ready_to_mask, shared.states[ME], [*told, told[1]])


def test_a_share_set_of_somebody_who_never_advertised():
    federation = (
        Federation(small_params(("anna", "bern", "chur", "davos", "esch"), 4))
        .advertise(["anna", "bern", "chur", "davos"])
        .share()
    )
    stranger = replace(federation.sets_for(ME)[1], party="esch")
    refused("unknown-party", node.ready_to_mask, federation.states[ME], [*federation.sets_for(ME), stranger])


def test_another_set_of_my_own_name(shared):
    """My key signed something else in this session: impossible unless it was stolen, and refused all the same."""
    other = digests_of(tuple(Box(name, b"x" * 90) for name in ("bern", "chur", "davos")))
    statement = shares_statement(ME, adverts_digest(shared.view.adverts), other)
    signature = identity.sign(shared.keys[ME], Purpose.SHARES, shared.params.context(), statement)
    refused("own-message-altered", ready_with, shared, ShareSet(ME, (), other, signature))


def test_my_own_set_need_not_come_back(shared):
    ready = node.ready_to_mask(shared.states[ME], [item for item in shared.sets_for(ME) if item.party != ME])
    assert sorted(ready.sharing.held) == list(shared.params.participants)


def test_the_boxes_are_asked_about_once(shared):
    ready = node.ready_to_mask(shared.states[ME], shared.sets_for(ME))
    assert node.ready_to_mask(shared.states[ME], shared.sets_for(ME)[::-1]) is ready
    refused("second-question", node.ready_to_mask, shared.states[ME], shared.sets_for(ME)[:3])


# --- confirm: the list --------------------------------------------------------------------------------------------


@pytest.fixture
def masked():
    names = ("anna", "bern", "chur", "davos", "esch")
    federation = Federation(small_params(names, 3)).advertise().share(names[:4])
    return federation.ready().mask(federation.updates())


@pytest.mark.parametrize(
    ("survivors", "code"),
    [
        (("bern", "chur", "davos"), "not-on-list"),
        (("anna", "bern", "chur", "zug"), "unknown-party"),
        (("anna", "bern", "chur", "esch"), "never-shared"),
        (("anna", "bern", "chur", "bern"), "duplicate-party"),
    ],
)
def test_lists_that_are_lies(masked, survivors, code):
    refused(code, node.confirm, masked.states[ME], survivors)
    node.confirm(masked.states[ME], ("anna", "bern", "chur"))


@pytest.mark.parametrize(
    ("policy", "match"),
    [({"minimum_cohort": 4}, "3 members are left"), ({"max_colluders": 1, "minimum_effective": 2.5}, "equal members")],
)
def test_lists_below_my_own_policy(policy, match):
    federation = Federation(small_params(threshold=3))
    federation.policies[ME] = replace(policy_of(federation.params), **policy)
    federation.until("mask")
    with pytest.raises(TooFewSurvivors, match=match) as caught:
        node.confirm(federation.states[ME], ("anna", "bern", "chur"))
    assert caught.value.phase == "confirm"
    node.confirm(federation.states[ME], federation.params.participants)


def test_lists_that_leave_me_with_the_other_base_model():
    bases = (b"x" * 32,) * 4 + (b"y" * 32,) * 3
    federation = Federation(small_params(tuple("abcdefg"), 4, base_digests=bases))
    federation.policies |= {p: Policy(policy_of(federation.params).pinned, 3, 0) for p in "abcdefg"}
    with pytest.raises(TooFewSurvivors, match=r"3 members are left with this member's own model, .* policy need 4"):
        federation.advertise(["e"])
    federation.advertise(list("abcd"))


def test_a_second_list_is_never_signed(masked):
    state, confirmation = node.confirm(masked.states[ME], ("anna", "bern", "chur", "davos"))
    assert node.confirm(masked.states[ME], ("davos", "chur", "bern", "anna")) == (state, confirmation)
    refused("second-question", node.confirm, masked.states[ME], ("anna", "bern", "chur"))


# --- reveal: the signatures ---------------------------------------------------------------------------------------


@pytest.fixture
def confirmed(masked):
    return masked.confirm()


def test_confirmations_of_another_list(confirmed):
    statement = list_statement(adverts_digest(confirmed.view.adverts), confirmed.view.sharers, ("anna", "bern", "chur"))
    context = confirmed.params.context()
    other = [Confirmation(p, identity.sign(confirmed.keys[p], Purpose.CONFIRM, context, statement)) for p in ("bern", "chur")]
    refused("bad-signature", node.reveal, confirmed.states[ME], other, party="unknown")


def test_confirmations_of_another_session(confirmed):
    other = Federation(small_params(("anna", "bern", "chur", "davos", "esch"), 3, session=bytes(16))).until("confirm")
    refused("bad-signature", node.reveal, confirmed.states[ME], other.confirmations)


def test_one_signature_under_two_names(confirmed):
    bern = confirmed.view.confirmations["bern"]
    refused("duplicate-party", node.reveal, confirmed.states[ME], [bern, bern, bern])
    refused("bad-signature", node.reveal, confirmed.states[ME], [bern, replace(bern, party="chur")])


def test_a_confirmation_by_somebody_off_the_list(confirmed):
    outsider = Confirmation("esch", confirmed.view.confirmations["bern"].signature)
    refused("unknown-party", node.reveal, confirmed.states[ME], [*confirmed.confirmations, outsider])


def test_too_few_confirmations_reveal_nothing(confirmed):
    mine, bern = (confirmed.view.confirmations[p] for p in (ME, "bern"))
    for told in ([], [mine], [bern], [mine, bern]):
        with pytest.raises(TooFewSurvivors, match="3 are needed"):
            node.reveal(confirmed.states[ME], told)
    node.reveal(confirmed.states[ME], [bern, confirmed.view.confirmations["chur"]])  # with mine: three


def test_shares_are_revealed_once(confirmed):
    state, revealed = node.reveal(confirmed.states[ME], confirmed.confirmations)
    assert node.reveal(confirmed.states[ME], confirmed.confirmations[::-1]) == (state, revealed)
    refused("second-question", node.reveal, confirmed.states[ME], confirmed.confirmations[:3])


def test_survivors_lose_their_seed_and_the_dropped_their_key_and_nobody_both():
    federation = Federation(small_params()).advertise().share().ready()
    federation.mask(federation.updates(), ["anna", "bern", "chur"]).confirm()
    _, revealed = node.reveal(federation.states[ME], federation.confirmations)
    kinds = {item.peer: item.kind for item in revealed.shares}
    assert kinds == dict.fromkeys(("anna", "bern", "chur"), ShareKind.SELF_MASK_SEED) | {"davos": ShareKind.MASK_KEY}
    held = federation.states[ME].held
    assert all(
        item.share == (held[item.peer].seed if item.peer != "davos" else held["davos"].mask_key) for item in revealed.shares
    )


def test_both_shares_of_one_peer_cannot_even_be_written_down():
    both = (RevealedShare("bern", ShareKind.SELF_MASK_SEED, bytes(33)), RevealedShare("bern", ShareKind.MASK_KEY, bytes(33)))
    refused("duplicate-party", Revealed, both)


def test_a_result_about_another_list(confirmed):
    finished, _ = node.reveal(confirmed.states[ME], confirmed.confirmations)
    node.verify_result(finished, ("davos", "chur", "bern", "anna"))
    refused("result-altered", node.verify_result, finished, ("anna", "bern", "chur"))


# --- phases and forms ---------------------------------------------------------------------------------------------


def test_no_phase_can_be_skipped_repeated_or_replayed(confirmed):
    states = {"confirmed": confirmed.states[ME]}
    start = Federation(small_params()).advertise()
    states["advertised"] = start.states[ME]
    states["shared"] = start.share().states[ME]
    states["ready"] = start.ready().states[ME]
    states["masked"] = start.mask(start.updates()).states[ME]
    states["finished"] = node.reveal(confirmed.states[ME], confirmed.confirmations)[0]
    steps = {
        "advertised": lambda state: node.share(state, start.adverts, Drbg("x")),
        "shared": lambda state: node.ready_to_mask(state, start.sets_for(ME)),
        "ready": lambda state: node.mask(state, np.zeros(10, np.float32)),
        "masked": lambda state: node.confirm(state, start.params.participants),
        "confirmed": lambda state: node.reveal(state, confirmed.confirmations),
        "finished": lambda state: node.verify_result(state, ()),
    }
    for expected, step in steps.items():
        for name, state in states.items():
            if name != expected:
                with pytest.raises(LocalError, match="out of order"):
                    step(state)


@pytest.mark.parametrize(
    "make",
    [
        lambda: Advert("a", b"1" * 31, b"2" * 32, b"3" * 32, b"s"),
        lambda: Advert("a", b"1" * 32, b"2" * 33, b"3" * 32, b"s"),
        lambda: Advert("a", b"1" * 32, b"2" * 32, b"", b"s"),
        lambda: Advert("a", b"1" * 32, b"2" * 32, b"3" * 32, b""),
        lambda: Advert("a", b"1" * 32, b"2" * 32, b"3" * 32, bytes(73)),
        lambda: Box("a", b""),
        lambda: Box("a", bytes(5000)),
        lambda: ShareSet("a", (), (), b""),
        lambda: Confirmation("a", bytes(73)),
        lambda: UploadSeal(bytes(31), b"s"),
        lambda: digests_of((Box("a", b"x"),)) and UploadSeal(bytes(32), b""),
    ],
)
def test_messages_of_impossible_form_do_not_exist(make):
    refused("malformed", make)


def test_secrets_do_not_show_in_tracebacks(confirmed):
    for state in (confirmed.states[ME], Federation(small_params()).advertise().states[ME].secrets, GOOD):
        assert "seed=" not in repr(state)
        assert "object at" in repr(state)


def test_errors_say_whose_fault_they_are():
    assert issubclass(LocalError, SecaggError)
    with pytest.raises(RemoteError, match=r"culprit: bern, bad-box"):
        raise RemoteError("bern", "bad-box", "the box does not open")
