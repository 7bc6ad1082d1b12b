"""What somebody sees who is not signed in: a plain page with a sentence and a link, without scripts, in the browser's language.

It shows nothing of the study and nothing that came from outside but names of hosts, escaped.
"""

from __future__ import annotations

import base64
import html
from pathlib import Path
from typing import Final

from starlette.responses import HTMLResponse

from ui.language import Language, preferred, translate
from ui.signin_links import start_link

NAME: Final = "Hospital SecAgg"
ICON: Final = Path(__file__).parent / "static" / "icon.png"
MARK: Final = f"data:image/png;base64,{base64.b64encode(ICON.read_bytes()).decode()}"  # nothing else is open before a sign-in
STYLE: Final = (
    "body{font:16px/1.5 system-ui,sans-serif;max-width:36rem;margin:12vh auto;padding:0 1.5rem;color:#1a1a1a;background:#fff}"
    ".name{display:flex;align-items:center;gap:.6rem;font-weight:600}.name img{width:28px;height:28px}"
    "h1{font-size:1.5rem;margin:1.5rem 0 .75rem}p{margin:.75rem 0;text-wrap:pretty;overflow-wrap:anywhere}"
    "a.button{display:inline-block;margin-top:1rem;padding:.6rem 1.2rem;background:#0072b2;color:#fff;"
    "text-decoration:none;border-radius:.4rem}a.button:focus-visible{outline:3px solid #000;outline-offset:2px}"
    "@media(prefers-color-scheme:dark){body{color:#eee;background:#16181d}a.button:focus-visible{outline-color:#fff}}"
)
CODES: Final[dict[Language, str]] = {"English": "en", "中文": "zh-CN"}


def page(title: str, sentences: tuple[str, ...], link: tuple[str, str] | None, wants: str, status: int = 200) -> HTMLResponse:
    """A page; `link` is a place of this app and its label, `wants` the browser's Accept-Language."""
    language = preferred(wants)
    said = [f"<p>{html.escape(translate(sentence, language))}</p>" for sentence in sentences]
    shown = ""
    if link is not None:
        shown = f'<a class="button" href="{html.escape(link[0], quote=True)}">{html.escape(translate(link[1], language))}</a>'
    head = html.escape(translate(title, language))
    body = (
        f'<!doctype html><html lang="{CODES[language]}"><head><meta charset="utf-8"><title>{head} · {NAME}</title>'
        f'<link rel="icon" href="{MARK}">'
        f'<meta name="viewport" content="width=device-width"><style>{STYLE}</style></head>'
        f'<body><header class="name"><img src="{MARK}" alt="">{NAME}</header>'
        f"<main><h1>{head}</h1>{''.join(said)}{shown}</main></body></html>"
    )
    return HTMLResponse(body, status_code=status)


def sign_in(provider: str, then: str, wants: str) -> HTMLResponse:
    """Before anything."""
    sentences = (
        "Here the hospitals of a study see what of their patients' privacy budget is spent, and what leaves each hospital.",
        "Only people of this study's hospitals and coordinator see anything here.",
        f"You prove who you are at {provider}. This app does not see your password.",
    )
    return page("Sign in", sentences, (start_link(then), "Sign in"), wants)


def refused(sentence: str, wants: str) -> HTMLResponse:
    """A sign-in that did not count."""
    return page("You are not signed in", (sentence,), (start_link("/"), "Try again"), wants, status=403)


def provider_down(provider: str, wants: str) -> HTMLResponse:
    """Nobody gets in."""
    sentences = (
        f"The sign-in provider {provider} does not answer as it should, so nobody can sign in now.",
        "Whoever is signed in goes on until their session ends.",
    )
    return page("The sign-in provider cannot be reached", sentences, (start_link("/"), "Try again"), wants, status=503)


def wrong_host(public_url: str, wants: str) -> HTMLResponse:
    """Under a name that is not the app's: what a page elsewhere, or a proxy that changes the name, would use."""
    sentences = (
        f"This app is opened at {public_url} and under no other name.",
        "A proxy before it has to pass the Host header on.",
    )
    return page("Another address", sentences, None, wants, status=421)


def not_found(wants: str) -> HTMLResponse:
    """Nothing is here."""
    return page("Nothing is here", ("This address is no page of the app.",), ("/", "Overview"), wants, status=404)
