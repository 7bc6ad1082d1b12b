"""What the mask phase tells each sharer, for all readers of one session: every set is taken apart once.

Rule: what a reader is told is `ShareSet.for_receiver(reader)` of every set, in the order in which the sets were given.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from types import MappingProxyType

from secagg.messages import Box, ShareSet

NO_BOXES: Mapping[int, Box] = MappingProxyType({})


class Relay:
    """The sets of all sharers, by reader. `signed` are the sets without boxes, `stubs` what those see who are sent no box."""

    __slots__ = ("_boxes", "_places", "signed", "stubs")

    def __init__(self, sets: Iterable[ShareSet]) -> None:
        full = [share_set.with_digests() for share_set in sets]
        self.signed = [ShareSet(item.party, (), item.digests, item.signature) for item in full]
        self.stubs = [item.stub() for item in full]
        self._places = {item.party: place for place, item in enumerate(full)}
        boxes: defaultdict[str, dict[int, Box]] = defaultdict(dict)
        for place, item in enumerate(full):
            for box in item.boxes:
                boxes[box.receiver][place] = box
        self._boxes = dict(boxes)

    def __len__(self) -> int:
        return len(self.stubs)

    def boxes_of(self, reader: str) -> Mapping[int, Box]:
        """Every box for `reader`, by the place of its set."""
        return self._boxes.get(reader, NO_BOXES)

    def place_of(self, reader: str) -> int | None:
        """The place of the reader's own set, None where it has none."""
        return self._places.get(reader)

    def for_reader(self, reader: str) -> list[ShareSet]:
        """Its box and all digests from those who drew it, its own digests, and summaries from everybody else."""
        told, own = self.stubs.copy(), self.place_of(reader)
        for place, box in self.boxes_of(reader).items():
            item = self.signed[place]
            told[place] = ShareSet(item.party, (box,), item.digests, item.signature)
        if own is not None:
            told[own] = self.signed[own]
        return told
