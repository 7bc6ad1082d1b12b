"""Entry point of the app: which pages there are, and what stands around them. Started by `secagg-ui`."""

from __future__ import annotations

from pathlib import Path

import streamlit as st

from ui import screen

HERE = Path(__file__).parent
PAGES = HERE / "app_pages"


def main() -> None:
    """Lay out the frame and run the chosen page."""
    icon = str(HERE / "static" / "icon.png")
    st.set_page_config(page_title="Hospital SecAgg", page_icon=icon, layout="wide")
    st.logo(icon)
    st.html(HERE / "static" / "page.css")
    screen.remember()
    settings = screen.settings()
    pages = [st.Page(PAGES / "overview.py", title=screen.say("Overview"), default=True)]
    if settings.hospitals:
        pages.append(st.Page(PAGES / "privacy.py", title=screen.say("Privacy budget"), url_path="privacy"))
        pages.append(st.Page(PAGES / "scans.py", title=screen.say("Scans"), url_path="scans"))
    if settings.coordinator is not None:
        pages.append(st.Page(PAGES / "accuracy.py", title=screen.say("Accuracy"), url_path="accuracy"))
        pages.append(st.Page(PAGES / "bandwidth.py", title=screen.say("Bandwidth"), url_path="bandwidth"))
        pages.append(st.Page(PAGES / "rounds.py", title=screen.say("Rounds"), url_path="rounds"))
    if settings.hospitals or settings.coordinator is not None:
        pages.append(st.Page(PAGES / "decisions.py", title=screen.say("Decisions"), url_path="decisions"))
    if settings.studies:
        pages.append(st.Page(PAGES / "study.py", title=screen.say("Study"), url_path="study"))
    chosen = st.navigation(pages)
    with st.sidebar:
        screen.watch()
    chosen.run()


main()
