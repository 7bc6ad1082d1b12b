"""What all pages share: reading the settings, the four figures, a chart with its sentence and table, and staying live.

Live means: a small fragment compares a cheap signature of the stored facts every three seconds and reruns the page only
where something visible changed. A paused page stays as it is.
"""

from __future__ import annotations

import html
import re
import sys
from collections.abc import Callable, Collection, Mapping, Sequence
from datetime import UTC, datetime, tzinfo
from functools import partial, wraps
from ipaddress import ip_address
from typing import Any
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

import streamlit as st

from coordinator.store import EventRow, StoreError
from hospital_node.progress import LocalProgress
from ui import overview, person, sources
from ui.figures import Figure, Headline
from ui.language import LANGUAGES, Language, preferred, translate, translated
from ui.layers import Chart
from ui.palette import Ink, ink
from ui.roles import Right, Role
from ui.settings import Settings, from_arguments
from ui.signin_links import sign_out_link, start_link
from ui.store_reading import Federation, RoundBytes, Totals
from ui.words import clock

POLL_S = 3.0
FRESH_S = 1.0  # what one tab has just read, another one need not read again
PAUSE = "pause"
LANGUAGE = "language"
SHOWN_IN_CHARTS = ("title", "text")  # names of what a reader sees in a chart's description
SEEN = "signature"
LONGEST_WORD = 24  # letters; a longer one is a digest or a path and may be broken anywhere
CLASS_LONG = ' class="long"'

TableRows = Sequence[Mapping[str, object]]


def settings() -> Settings:
    """Settings that `secagg-ui` handed over."""
    return from_arguments(sys.argv[1:])


def admit(right: Right) -> None:
    """Begin of every page: whoever may not see it gets a sentence, and the page ends."""
    signin = settings().signin
    if signin is None or person.allowed(settings(), right):
        return
    found = person.session()
    if found is None:
        signed_out()
    elif not found.person.roles:
        refused(f"you are signed in as {as_is(found.person.name)}, and have no role here: ask {signin.contact}")
    else:
        refused(f"this page is not for your role ({', '.join(_roles(found.person.roles))}): ask {signin.contact}")
    st.stop()


def may(right: Right) -> bool:
    """Whether a part of a page is for whoever looks at it."""
    return person.allowed(settings(), right)


def only_signed_in(draw: Callable[[], None]) -> Callable[[], None]:
    """A part of a page that is drawn anew by itself: no longer than the session lasts."""

    @wraps(draw)
    def drawn() -> None:
        if person.is_here(settings()):
            draw()
        else:
            st.rerun(scope="app")

    return drawn


def signed_out() -> None:
    """What is left of a page when its session is over: nothing of the study."""
    st.info(say("**You are not signed in**  \nYour session is over, or you signed out."))
    link("Sign in", start_link("/"))


def link(label: str, place: str) -> None:
    """A link within this window to a place of this app that is no page of it."""
    st.html(f'<a href="{html.escape(place, quote=True)}" target="_self">{html.escape(say(label))}</a>')


def who() -> None:
    """In the side bar: who is signed in, until when, and the way out."""
    found = person.session()
    if found is not None:
        roles = ", ".join(_roles(found.person.roles)) or "no role"
        st.markdown(f"**{as_is(found.person.name)}** · {say(roles)}")
        note(f"Signed in until {clock(datetime.fromtimestamp(found.ends_s, UTC), zone())}")
        link("Sign out", sign_out_link(found.key))


def _roles(held: Collection[Role]) -> list[str]:
    return sorted(role.value for role in held)


def as_is(name: str) -> str:
    """A name as it is, whatever it would mean in Markdown."""
    return re.sub(r"([\\`*_{}\[\]()#+\-.!|<>~$:])", r"\\\1", name)


def federation(age_s: float = 0.0) -> Federation | None:
    """The coordinator's store; None before it exists. A store that cannot be read now is said, and the page stops."""
    try:
        return sources.federation(settings().coordinator, age_s)
    except StoreError as error:
        refused(str(error))
        st.stop()


def events_of(number: int) -> tuple[EventRow, ...]:
    """What happened in one round. A store that cannot be read now is said, and the page stops."""
    folder = settings().coordinator
    try:
        return () if folder is None else sources.events_of(folder, number)
    except StoreError as error:
        refused(str(error))
        st.stop()


def totals() -> Totals:
    """Bytes by party and direction over all rounds, with the same rule."""
    folder = settings().coordinator
    try:
        return {} if folder is None else sources.totals(folder)
    except StoreError as error:
        refused(str(error))
        st.stop()


def traffic_of(first: int, last: int) -> tuple[RoundBytes, ...]:
    """Bytes of older rounds, with the same rule."""
    folder = settings().coordinator
    try:
        return () if folder is None else sources.traffic_of(folder, first, last)
    except StoreError as error:
        refused(str(error))
        st.stop()


def paper() -> Ink:
    """Ink of the reader's theme."""
    return ink(st.context.theme.type)


def zone() -> tzinfo:
    """The reader's time zone, as the browser names it; UTC where it does not."""
    try:
        return ZoneInfo(st.context.timezone or "UTC")
    except (ZoneInfoNotFoundError, ValueError):
        return UTC


def paused() -> bool:
    """Whether the reader holds the page."""
    return bool(st.session_state.get(PAUSE, False))


def is_loopback() -> bool:
    """Whether this server's pages are seen on this machine only."""
    signin = settings().signin
    if signin is not None and not signin.is_local:
        return False  # a proxy takes them elsewhere
    address = str(st.get_option("server.address") or "")
    return address == "localhost" or (bool(address) and _loopback(address))


def _loopback(address: str) -> bool:
    try:
        return ip_address(address).is_loopback
    except ValueError:
        return False


def run_every() -> float | None:
    """Interval of a live fragment."""
    return None if paused() else POLL_S


def language() -> Language:
    """What the reader chose, or what the browser asks for first."""
    chosen = st.session_state.get(LANGUAGE) or st.query_params.get(LANGUAGE)  # the address, before its widget is there
    return next((one for one in LANGUAGES if one == chosen), preferred(st.context.locale))


def say(text: str) -> str:
    """A text in the reader's language. Everything that a page shows goes through here."""
    return translate(text, language())


def title(text: str) -> None:
    """The page's heading."""
    st.title(say(text))


def text(sentences: str) -> None:
    """A paragraph or a heading."""
    st.markdown(say(sentences))


def note(sentences: str) -> None:
    """Small print."""
    st.caption(say(sentences))


def banner(state: Headline) -> None:
    """State before numbers, and what people wrote as they wrote it. Colours judge the state against what was agreed."""
    box = {"good": st.success, "watch": st.warning, "stop": st.error, "plain": st.info}[state.tone]
    title = f"**{as_is(say(state.title))}**"
    box(f"{title}  \n{as_is(say(state.detail))}" if state.detail else title)


def figures(shown: Sequence[Figure]) -> None:
    """Figures side by side; each explains itself on hovering."""
    for column, figure in zip(st.columns(len(shown)), shown, strict=True):
        with column, st.container(border=True, height="stretch", gap=None):
            st.metric(say(figure.label), say(figure.value), help=say(figure.help))
            note(figure.note)


def chart(drawn: Chart, sentence: str, rows: TableRows, key: str, title: str) -> None:
    """A chart with its finding as a sentence and its figures as a table."""
    text(f"#### {title}")
    described = f"{say(title)}. {say(sentence)}"
    said = drawn if language() == "English" else translated(drawn, language(), SHOWN_IN_CHARTS)
    st.vega_lite_chart(said, key=key, alt=described, width="stretch")
    text(sentence)
    table(rows, f"{title}: the figures as a table", key=f"{key}-table")


def table(rows: TableRows, label: str, *, key: str) -> None:
    """A folded table."""
    with st.expander(say(label), key=key):
        grid(rows, label)


def grid(rows: TableRows, label: str, columns: Mapping[str, Any] | None = None) -> None:
    """A table of many rows, which scrolls. `columns`: how Streamlit shows some of them."""
    config = {say(name): shown for name, shown in (columns or {}).items()}
    st.dataframe(_said(rows), hide_index=True, column_config=config, alt=say(label))


def reading(rows: TableRows, label: str) -> None:
    """A table of sentences: wrapped, all of it on the page and in print, and each cell as it is: people wrote some of them.

    Plain HTML, because Streamlit's own table is made by way of pandas and Arrow, on the server and again in the browser.
    """
    said = _said(rows)
    head = "".join(f'<th scope="col">{html.escape(name)}</th>' for name in said[0])
    lines = ("".join(_cell(str(cell)) for cell in row.values()) for row in said)
    body = "".join(f"<tr>{line}</tr>" for line in lines)
    name = html.escape(say(label), quote=True)
    st.html(f'<table class="reading" aria-label="{name}"><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>')


def _cell(told: str) -> str:
    long = any(len(word) > LONGEST_WORD for word in told.split())
    return f"<td{CLASS_LONG if long else ''}>{html.escape(told)}</td>"


def _said(rows: TableRows) -> list[dict[str, object]]:
    """Names and texts of a table in the reader's language."""
    if language() == "English":
        return [dict(row) for row in rows]
    names = {name: say(name) for row in rows[:1] for name in row}
    return [{names[name]: say(value) if isinstance(value, str) else value for name, value in row.items()} for row in rows]


def doing(who: str, found: LocalProgress) -> None:
    """What one node does at this moment, with a bar where its length is known."""
    now, share = overview.progress_line(found, datetime.now(UTC))
    shown = f"**{say(who)}** · {say(now)}"
    if share is None:
        st.markdown(shown)
    else:
        st.progress(share, text=shown)


def refused(sentence: str) -> None:
    """Something that is not shown, and why, in one sentence."""
    st.warning(say(f"{sentence[:1].upper()}{sentence[1:].rstrip('.')}."))


def waiting(sentence: str) -> None:
    """There is nothing to show yet, and why; the page fills by itself."""
    st.info(say(f"**{sentence}**  \nThis page fills by itself as soon as there is something to show."))


def choose(label: str, options: Sequence[str], key: str, fallback: str | None = None) -> str:
    """A choice that is part of the address. A value in a link that no longer exists falls back."""
    value = st.session_state.get(key)
    if value is not None and value not in options:
        del st.session_state[key]
    start = options.index(fallback) if fallback in options else 0
    spoken = partial(translate, language=language())  # one question for all options of a long run
    chosen = st.selectbox(say(label), list(options), index=start, key=key, format_func=spoken, bind="query-params")
    return chosen if chosen is not None and chosen in options else options[start]


def remember() -> None:
    """Keep what this run shows, so that the watcher notices the next change."""
    st.session_state[SEEN] = sources.signature(settings())


def watch() -> None:
    """The live control of the side bar and the fragment that reruns the page when something changed."""
    explained = say("A paused page stays as it is until it is let go on.")
    st.toggle(say("Pause"), key=PAUSE, bind="query-params", help=explained)
    start = LANGUAGES.index(language())
    st.selectbox("Language · 语言", LANGUAGES, index=start, key=LANGUAGE, bind="query-params")

    @st.fragment(
        run_every=run_every() if settings().signin is None else POLL_S
    )  # a session's end is seen on a paused page, too
    @only_signed_in
    def watcher() -> None:
        if not paused() and sources.signature(settings(), FRESH_S) != st.session_state.get(SEEN):
            st.rerun(scope="app")
        note("Paused" if paused() else f"Live · looked at {clock(datetime.now(UTC), zone())}")
        note(f"Times: {zone()}")

    watcher()
