"""A hospital's own session object in a sparse round, told over the wire's messages; the other members are the library's."""

import hashlib

import numpy as np
import pytest
from secagg_round import Federation, small_params

from hospital_node.session import Charged, MaskingSession, Member, SessionRefused
from proto import federation_pb2 as pb
from proto import wire
from secagg import Sparse, node
from secagg.coordinate import add_upload, open_sum

NAMES = tuple("abcdefg")
ME, OTHERS = "a", tuple("bcdefg")


class Round:
    """The session of one hospital among six members."""

    def __init__(self):
        self.federation = Federation(small_params(NAMES, 5, graph=Sparse(4, 3)))
        f = self.federation
        self.session = MaskingSession(Member(ME, f.keys[ME], f.policy(ME), f.rand), f.params)
        self.update = f.updates()[ME]

    def until_uploaded(self):
        f, session = self.federation, self.session
        f.advertise(OTHERS).view.add_advert(over_the_wire("advert", session.advertise((), bytes(32))))
        f.share(OTHERS).view.add_share_set(over_the_wire("share_set", session.share([*map(relayed_advert, f.adverts)])))
        session.check([over_the_wire("share_set", item) for item in f.view.sets_for(ME)])
        upload = session.mask(self.update, Charged(f.params.session, b"receipt"))
        data = b"".join(upload.pieces())
        f.view.add_seal(ME, hashlib.sha256(data).digest(), upload.finish())
        add_upload(f.total, data)
        f.ready(OTHERS).mask(f.updates(), OTHERS)
        f.view.close(NAMES)
        return self

    def seals(self):
        told = [wire.to_seal(party, seal) for party, seal in self.federation.view.seals_for(ME).items()]
        return wire.from_seals(pb.Confirm.FromString(pb.Confirm(seals=told).SerializeToString()).seals)


def over_the_wire(kind, message):
    data = getattr(wire, f"to_{kind}")(message)
    return getattr(wire, f"from_{kind}")(type(data).FromString(data.SerializeToString()))


def relayed_advert(advert):
    return over_the_wire("advert", advert)


def test_a_hospital_in_a_sparse_round():
    one = Round().until_uploaded()
    f, session, seals = one.federation, one.session, one.seals()
    assert seals
    confirmation = session.confirm(NAMES, seals)
    assert session.confirm(NAMES[::-1], seals) == confirmation
    f.view.add_confirmation(confirmation)
    for party in OTHERS:
        f.states[party], other = node.confirm(f.states[party], NAMES, f.view.seals_for(party))
        f.view.add_confirmation(other)
    f.view.add_revealed(ME, session.reveal(f.confirmations))
    f.reveal(OTHERS)
    opened = open_sum(f.view, f.total)
    mean = np.mean([f.updates()[p] for p in NAMES], axis=0)
    assert np.abs(opened.mean - mean).max() < 1e-4


def test_a_list_without_the_seals_ends_the_session():
    one = Round().until_uploaded()
    with pytest.raises(SessionRefused) as caught:
        one.session.confirm(NAMES)
    assert caught.value.code == "never-uploaded"
    with pytest.raises(SessionRefused, match="session ended"):
        one.session.confirm(NAMES, one.seals())
