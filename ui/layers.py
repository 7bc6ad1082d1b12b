"""What every chart is made of: a layer of marks, a field of its rows, and the chart, all as Vega-Lite wants them.

Plain values and no library: Altair takes a third of a second to be loaded and, for a chart of hundreds of marks, longer than
the rest of a page to copy and check what it is given. Tests check every chart against the schema instead.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

SCHEMA = "https://vega.github.io/schema/vega-lite/v6.json"  # a name, which nobody asks for
TYPES = {"Q": "quantitative", "N": "nominal"}

Rows = list[dict[str, Any]]  # one object for each mark
Channel = dict[str, Any] | list[dict[str, Any]]
Chart = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Layer:
    """One kind of mark over its rows."""

    rows: Rows
    looks: dict[str, Any] = field(default_factory=dict)
    channels: dict[str, Channel] = field(default_factory=dict)

    def mark(self, kind: str, **looks: Any) -> Layer:
        """Draw each row as this mark. `looks`: the mark's properties in Vega-Lite's names."""
        return replace(self, looks={"type": kind, **looks})

    def encode(self, **channels: Channel) -> Layer:
        """Where each field of a row is seen; a channel named before is replaced."""
        return replace(self, channels=self.channels | channels)

    def description(self) -> dict[str, Any]:
        """The layer in Vega-Lite."""
        return {"data": {"values": self.rows}, "mark": self.looks, "encoding": self.channels}


def of(name: str, **settings: Any) -> dict[str, Any]:
    """A field of the rows on a channel: `of("x:Q", title="round")`, of type Q (a number) or N (a name)."""
    found, _, kind = name.partition(":")
    return {"field": found, "type": TYPES[kind], **settings}


def end(name: str) -> dict[str, Any]:
    """The field where a mark ends (x2, y2), which has the type of the one where it begins."""
    return {"field": name}


def chart(layers: Sequence[Layer], height: float) -> Chart:
    """Layers over each other, the last on top; `height` in pixels, the width is the page's."""
    return {"$schema": SCHEMA, "layer": [one.description() for one in layers], "height": height}
