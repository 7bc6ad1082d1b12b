"""Every decoder gives a value or its own error, whatever the bytes: the kept corpus, changed entries of it, and any bytes."""

import json

import pytest
from decoders import CORPUS, DECODERS, corpus_of, feed
from hypothesis import given, settings
from hypothesis import strategies as st

from proto.layout import MAX_TENSORS, Layout, LayoutError
from proto.plan import Masking
from proto.wire import WireError, tensor_clips_of

NAMES = sorted(DECODERS)


@st.composite
def changed(draw, name):
    """A kept input with some bytes replaced, taken out, doubled or cut off, or any bytes."""
    kept = corpus_of(name)
    data = bytearray(draw(st.sampled_from(kept)))
    for _ in range(draw(st.integers(0, 4))):
        at = draw(st.integers(0, len(data)))
        match draw(st.sampled_from(("replace", "remove", "repeat", "cut", "splice"))):
            case "replace":
                data[at : at + 4] = draw(st.binary(max_size=4))
            case "remove":
                del data[at : at + draw(st.integers(1, 40))]
            case "repeat":
                data[at:at] = data[at : at + 40] * draw(st.integers(1, 30))
            case "cut":
                del data[at:]
            case "splice":
                data[at:] = draw(st.sampled_from(kept))[at:]
    return bytes(data)


@pytest.mark.parametrize("name", NAMES)
def test_the_kept_corpus_is_decoded_or_refused(name):
    kept = corpus_of(name)
    assert kept, f"{CORPUS / name} holds nothing"
    accepted = 0
    for data in kept:
        feed(name, data)
        try:
            DECODERS[name].decode(data)
        except DECODERS[name].errors:
            continue
        accepted += 1
    assert accepted, "no kept input is a whole message: what is fuzzed is the refusal alone"


@pytest.mark.parametrize("name", NAMES)
def test_changed_inputs_are_decoded_or_refused(name):
    @settings(max_examples=60)
    @given(changed(name))
    def fuzz(data):
        feed(name, data)

    fuzz()


@pytest.mark.parametrize("name", NAMES)
def test_any_bytes_are_decoded_or_refused(name):
    @settings(max_examples=60)
    @given(st.binary(max_size=300))
    def fuzz(data):
        feed(name, data)

    fuzz()


def test_every_folder_of_the_corpus_has_its_decoder():
    assert sorted(path.name for path in CORPUS.iterdir()) == NAMES


def test_a_hundred_thousand_tiny_tensors_are_refused_and_as_many_as_are_allowed_are_not_slow():
    with pytest.raises(LayoutError, match="1 to 65536 tensors"):
        Layout.from_json(json.dumps([[f"t{number}", [1]] for number in range(10**5)]))
    most = Layout.from_json(json.dumps([[f"t{number}", [1]] for number in range(MAX_TENSORS)]))
    assert most.length == MAX_TENSORS
    clips = Masking(tensor_clips=({"prefix": "t1", "clip": 0.5},))
    assert len(tensor_clips_of(clips, 1, most)) == MAX_TENSORS
    with pytest.raises(WireError, match="no tensor"):
        tensor_clips_of(Masking(tensor_clips=({"prefix": "u", "clip": 0.5},)), 1, most)
