"""Entry point of the app: which pages there are, and what stands around them. Started by `secagg-ui`."""

from __future__ import annotations

from pathlib import Path

import streamlit as st
from streamlit.navigation.page import StreamlitPage

from ui import person, screen
from ui.roles import Page
from ui.settings import Settings

HERE = Path(__file__).parent
PAGES = HERE / "app_pages"


def pages_of(settings: Settings) -> list[StreamlitPage]:
    """Pages with a source. What a role does not open is not listed; its address leads to a page that says so."""
    found = {Page.OVERVIEW: "Overview"}
    if settings.hospitals:
        found |= {Page.PRIVACY: "Privacy budget", Page.SCANS: "Scans"}
    if settings.coordinator is not None:
        found |= {Page.ACCURACY: "Accuracy", Page.BANDWIDTH: "Bandwidth", Page.ROUNDS: "Rounds"}
    if settings.hospitals or settings.coordinator is not None:
        found[Page.DECISIONS] = "Decisions"
    if settings.studies:
        found[Page.STUDY] = "Study"
    return [
        st.Page(
            PAGES / f"{page}.py",
            title=screen.say(title),
            url_path=None if page is Page.OVERVIEW else page.value,
            default=page is Page.OVERVIEW,
            visibility="visible" if person.allowed(settings, page) else "hidden",
        )
        for page, title in found.items()
    ]


def main() -> None:
    """Lay out the frame and run the chosen page."""
    icon = str(HERE / "static" / "icon.png")
    st.set_page_config(page_title="Hospital SecAgg", page_icon=icon, layout="wide")
    st.logo(icon)
    st.html(HERE / "static" / "page.css")
    screen.remember()
    settings = screen.settings()
    if not person.is_here(settings):
        screen.signed_out()
        return
    chosen = st.navigation(pages_of(settings))
    with st.sidebar:
        screen.watch()
        screen.who()
    chosen.run()


main()
