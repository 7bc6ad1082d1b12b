"""Scans: this hospital's own scans in three planes, with what a model drew on them. Shown on this machine only."""

from __future__ import annotations

from pathlib import Path

import streamlit as st

from hospital_node.scans import ScanIndex, ScansError, read_index
from ui import scans, scans_chart, screen, sources
from ui.roles import Page
from ui.scans import PLANES, Plane
from ui.words import moment

LOCAL_ONLY = (
    "Scans and pictures stay on this machine: the app reads them from this hospital's own disk, serves them on this machine's "
    "own address only, and sends nothing to anybody. Choosing a plan or a model by what is seen here uses the patients' data; "
    "no ledger counts that."
)
SEEN = "scan-seen"
HOW = "Make them once a model is there: `secagg-node data draw --config node.toml --model latest.safetensors`."


def page() -> None:
    """Arrange the page."""
    screen.admit(Page.SCANS)
    screen.title("Scans")
    if not screen.is_loopback():
        screen.refused("Scans are shown on this machine's own address only. Start the app with --address 127.0.0.1.")
        return
    folders = {sources.name_of(folder): folder for folder in screen.settings().hospitals}
    names = list(folders)
    name = screen.choose("Hospital", names, "hospital") if len(names) > 1 else names[0]
    screen.note(LOCAL_ONLY)
    index = index_of(folders[name])
    if index is None or not index.scans:
        screen.waiting(f"Nothing yet: no model has drawn on the scans of {name}.")
        screen.text(HOW)
        return
    numbers = [str(entry.number) for entry in index.scans]
    number = int(screen.choose("Scan", numbers, "scan", fallback=str(scans.rows(index)[0]["scan"])))
    screen.figures(scans.figures(index, next(entry for entry in index.scans if entry.number == number)))
    screen.note(f"Study {index.study} · drawn {moment(index.made_at, screen.zone())}")
    viewer(folders[name], index, number)
    screen.text("#### All scans")
    screen.text(scans.scans_sentence(index))
    screen.grid(scans.rows(index), f"All scans. {scans.scans_sentence(index)}")


def index_of(folder: Path) -> ScanIndex | None:
    """The set of this hospital; one that cannot be read is said, and the page stops."""
    try:
        return read_index(folder)
    except ScansError as error:
        screen.refused(str(error))
        st.stop()


def viewer(folder: Path, index: ScanIndex, number: int) -> None:
    """Three planes and the strip; moving through slices redraws this part only."""

    @st.fragment
    @screen.only_signed_in
    def look() -> None:
        try:
            scan = sources.scan(folder, index.folder, number)
        except ScansError as error:
            screen.refused(str(error))
            return
        left, middle, right = st.columns([2, 1, 1], vertical_alignment="bottom")
        with left:
            window = screen.choose("Window", list(scans.windows(index)), "window")
        with middle:
            explained = screen.say("Missed voxels are filled green, added ones vermillion.")
            errors = st.toggle(screen.say("Errors only"), key="errors", bind="query-params", help=explained)
        with right:
            at_worst = {plane: scans.worst(scans.by_slice(scan, plane)) for plane in PLANES}
            explained = screen.say("In each plane, where most voxels are wrong.")
            st.button(screen.say("Worst slices"), on_click=go_to, args=(at_worst,), help=explained)
        if st.session_state.get(SEEN, number) != number:  # slices of another scan say nothing of this one
            go_to(at_worst)
        st.session_state[SEEN] = number
        low, high = scans.limits(window, index, scan.image)
        for column, plane in zip(st.columns(len(PLANES)), PLANES, strict=True):
            with column:
                last = scan.truth.shape[PLANES[plane]]
                chosen = place(plane, last, at_worst[plane])
                shown = scans.cut(scan, plane, chosen - 1, index.spacing_xyz_mm)
                side, top = scans.EDGES[plane]
                said = f"{plane} slice {chosen} of {last}; at its left the patient's {side}, at its top the {top}"
                st.image(
                    scans.draw(shown, low, high, errors=errors), caption=screen.say(said), width="stretch", output_format="PNG"
                )
        screen.note(scans.drawn_words(index, low, high, errors=errors))
        strip(scans.by_slice(scan, "axial"), st.session_state["z"] - 1)

    look()


def place(plane: Plane, last: int, start: int) -> int:
    """The slice of the address, counted from 1; one that this scan does not have falls back to the worst."""
    key = "zyx"[PLANES[plane]]
    value = st.session_state.get(key)
    if value is not None and not 1 <= value <= last:
        del st.session_state[key]
    if last == 1:
        st.session_state[key] = 1
        return 1
    label = f"{plane} slice (arrow keys)"
    return st.slider(screen.say(label), 1, last, None if key in st.session_state else start + 1, key=key, bind="query-params")


def go_to(at_worst: dict[Plane, int]) -> None:
    """Move all three planes."""
    for plane, index in at_worst.items():
        st.session_state["zyx"[PLANES[plane]]] = index + 1


def strip(scan_scores: tuple[scans.SliceScore, ...], shown: int) -> None:
    """Dice of every axial slice under the pictures."""
    sentence = scans.strip_sentence(scan_scores, "axial")
    table = [
        {"slice": score.index + 1, "Dice": "–" if score.dice is None else f"{score.dice:.3f}", "wrong voxels": score.wrong}
        for score in scan_scores
    ]
    screen.chart(scans_chart.strip(scan_scores, shown, screen.paper()), sentence, table, "strip", "Dice by axial slice")


page()
