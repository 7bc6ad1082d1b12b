"""Signing in over the wire: the app's own process, a provider's own process, and every way in which an answer can be wrong."""

from __future__ import annotations

import http.client
import re
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import parse_qs, urlencode, urlsplit

import pytest
from signin_world import SECRET, Browser, Deployment, deployment
from worlds import World, make_plan

pytest.importorskip("authlib", reason="Authlib is absent: install the extra 'test'")

pytestmark = pytest.mark.sockets
OFF = ""


@pytest.fixture(scope="module")
def there(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    world = World(tmp_path_factory.mktemp("signin"), make_plan(3, names=("lakeside", "nordklinik", "st-anna")))
    world.start()
    world.approve("lakeside")
    folders = {"coordinator": str(world.coordinator), "hospitals": [str(world.state("lakeside"))]}
    with deployment(world.folder, folders) as found:
        yield found


@pytest.fixture
def browser(there: Deployment) -> Iterator[Browser]:
    yield Browser()
    there.lie(OFF)


def is_in(browser: Browser, app: str) -> bool:
    return browser.get(app + "/_stcore/host-config", Accept="application/json").status == 200


def cookie_of(there: Deployment) -> str:
    return f"secagg-{urlsplit(there.app).port}"


def stream(there: Deployment, browser: Browser | None, **headers: str) -> int:
    """The status of a WebSocket handshake for the live connection."""
    place = urlsplit(there.app)
    jar = {} if browser is None else browser.jar.get(place.netloc, {})
    sent = {
        "Connection": "Upgrade",
        "Upgrade": "websocket",
        "Sec-WebSocket-Version": "13",
        "Sec-WebSocket-Key": "AQIDBAUGBwgJCgsMDQ4PEA==",
        "Sec-WebSocket-Protocol": "streamlit",
        "Origin": there.app,
        "Cookie": "; ".join(f"{name}={value}" for name, value in jar.items()),
        **headers,
    }
    caller = http.client.HTTPConnection(place.hostname or "", place.port, timeout=120)
    caller.request("GET", "/_stcore/stream", headers=sent)
    status = caller.getresponse().status
    caller.close()
    return status


def test_without_a_session_nothing_of_the_app_is_reached(there: Deployment, browser: Browser) -> None:
    for path in ("/", "/privacy", "/scans?hospital=lakeside", "/static/index.html", "/nowhere"):
        page = browser.get(there.app + path)
        assert page.status == 200
        assert "<h1>Sign in</h1>" in page.body
        assert "<script" not in page.body
        assert "Streamlit" not in page.body
    for path in ("/_stcore/host-config", "/_stcore/metrics", "/media/a.png", "/static/js/index.js", "/component/a/b.js"):
        assert browser.get(there.app + path, Accept="*/*").status in {401, 404}, path
    assert browser.get(there.app + "/_stcore/health", Accept="*/*").body == "ok"  # for whoever watches over the process
    assert stream(there, None) == 403
    assert stream(there, None, **{"X-Secagg-Session": "a" * 64}) == 403


def test_signing_in_and_out(there: Deployment, browser: Browser) -> None:
    arrived = browser.sign_in(there.app, "keller", "/privacy?hospital=lakeside")
    assert (arrived.status, arrived.to) == (303, f"{there.app}/privacy?hospital=lakeside")
    assert "httponly" in arrived.headers["set-cookie"].lower()
    assert is_in(browser, there.app)
    assert stream(there, browser) == 101
    assert stream(there, browser, Origin="https://elsewhere.example") == 403
    without = browser.get(f"{there.app}/signout")
    assert (without.status, is_in(browser, there.app)) == (403, True)  # a page elsewhere cannot sign anybody out
    from ui.sessions import key_of

    key = key_of(browser.jar[urlsplit(there.app).netloc][cookie_of(there)])
    kept = dict(browser.jar[urlsplit(there.app).netloc])
    out = browser.get(f"{there.app}/signout?" + urlencode({"session": key}))
    assert out.status == 303
    assert out.to.startswith(f"{there.issuer}/end?")
    browser.jar[urlsplit(there.app).netloc] = kept  # who has kept the cookie has kept nothing
    assert not is_in(browser, there.app)
    assert stream(there, browser) == 403
    assert browser.get(out.to).to == f"{there.app}/signin"
    assert "Log in" in browser.to_provider(there.app).body  # the provider's session is over, too


def test_what_is_asked_of_the_provider(there: Deployment, browser: Browser) -> None:
    begun = browser.get(f"{there.app}/signin/start?to=/rounds")
    asked = {name: values[0] for name, values in parse_qs(urlsplit(begun.to).query).items()}
    assert (asked["response_type"], asked["code_challenge_method"]) == ("code", "S256")
    assert asked["redirect_uri"] == f"{there.app}/signin/back"
    assert min(len(asked[name]) for name in ("state", "nonce", "code_challenge")) >= 43
    assert "prompt" not in asked
    fresh = parse_qs(urlsplit(browser.get(f"{there.app}/signin/start?fresh=1").to).query)
    assert (fresh["prompt"], fresh["max_age"]) == (["login"], ["0"])
    again = parse_qs(urlsplit(browser.get(f"{there.app}/signin/start").to).query)
    assert all(again[name][0] != asked[name] for name in ("state", "nonce", "code_challenge"))


@pytest.mark.parametrize(
    ("fault", "sentence"),
    [
        ("unsigned", "not signed as it has to be"),
        ("shared secret", "not signed as it has to be"),
        ("another key", "not signed as it has to be"),
        ("tampered", "not signed as it has to be"),
        ("unpublished key", "a key that it does not publish"),
        ("wrong audience", "meant for another application"),
        ("audience and party", "meant for another application"),
        ("other party", "asked for by another application"),
        ("wrong issuer", "somebody else than the configured provider"),
        ("expired", "has expired: the clocks"),
        ("future", "from the future: the clocks"),
        ("wrong nonce", "belongs to another sign-in"),
        ("no nonce", "belongs to another sign-in"),
        ("no token", "did not say who you are"),
        ("mixed up", "came from another provider"),
    ],
)
def test_a_wrong_answer_lets_nobody_in(there: Deployment, browser: Browser, fault: str, sentence: str) -> None:
    there.lie(fault)
    refused = browser.sign_in(there.app, "keller")
    assert refused.status == 403
    assert sentence in refused.body
    assert not is_in(browser, there.app)
    assert f"{cookie_of(there)}=" not in refused.headers.get("set-cookie", "")


def test_a_denial_at_the_provider_is_said(there: Deployment, browser: Browser) -> None:
    there.lie("denied")
    back = browser.to_provider(there.app)
    refused = browser.get(back.to)
    assert (refused.status, "let nobody in" in refused.body) == (403, True)


def test_clocks_may_differ_a_little_and_keys_may_change(there: Deployment, browser: Browser) -> None:
    there.lie("little early")
    assert browser.sign_in(there.app, "keller").status == 303
    assert Browser().sign_in(there.app, "sato").status == 303  # RS256
    there.lie("new keys")
    assert Browser().sign_in(there.app, "keller").status == 303


def test_a_callback_counts_once_and_for_its_own_browser(there: Deployment, browser: Browser) -> None:
    back = browser.log_in(browser.to_provider(there.app), "keller").to
    thief = Browser()
    stolen = thief.get(back)
    assert (stolen.status, "begun in another browser" in stolen.body) == (403, True)
    kept = dict(browser.jar[urlsplit(there.app).netloc])
    assert browser.get(back).status == 303
    browser.jar[urlsplit(there.app).netloc] = kept
    replayed = browser.get(back)
    assert (replayed.status, "was used already" in replayed.body) == (403, True)


def test_a_state_that_was_not_given_is_refused(there: Deployment, browser: Browser) -> None:
    back = browser.log_in(browser.to_provider(there.app), "keller").to
    other = re.sub(r"state=[^&]*", "state=another", back)
    assert browser.get(other).status == 403
    assert browser.get(f"{there.app}/signin/back").status == 403
    assert not is_in(browser, there.app)
    # a code of one sign-in does not fit the state, and so the verifier and the nonce, of another
    mine, theirs = browser.log_in(browser.to_provider(there.app), "keller").to, parse_qs(urlsplit(back).query)["code"][0]
    mixed = re.sub(r"code=[^&]*", f"code={theirs}", mine)
    refused = browser.get(mixed)
    assert (refused.status, "did not accept its own code" in refused.body) == (403, True)


@pytest.mark.parametrize(
    "then", ["https://elsewhere.example", "//elsewhere.example/a", "/\\elsewhere.example", "/signin/start", "a"]
)
def test_after_signing_in_nobody_is_led_elsewhere(there: Deployment, browser: Browser, then: str) -> None:
    assert browser.sign_in(there.app, "keller", then).to == f"{there.app}/"


def test_a_changed_cookie_is_nobodys(there: Deployment, browser: Browser) -> None:
    browser.sign_in(there.app, "keller")
    jar = browser.jar[urlsplit(there.app).netloc]
    name = cookie_of(there)
    good = jar[name]
    for changed in (good[:-1] + ("A" if good[-1] != "A" else "B"), good + "A", "", "a" * 64, "{}"):
        jar[name] = changed
        assert not is_in(browser, there.app)
    jar[name] = good
    assert is_in(browser, there.app)


def test_another_host_name_is_not_answered(there: Deployment, browser: Browser) -> None:
    browser.sign_in(there.app, "keller")
    rebound = browser.get(there.app, Host="elsewhere.example")
    assert (rebound.status, "under no other name" in rebound.body) == (421, True)
    assert stream(there, browser, Host="elsewhere.example", Origin="http://elsewhere.example") == 403


def test_streamlits_own_sign_in_and_the_uploads_are_closed(there: Deployment, browser: Browser) -> None:
    browser.sign_in(there.app, "keller")
    for path in ("/auth/login", "/auth/logout", "/oauth2callback", "/_stcore/upload_file/a/b", "/_stcore/metrics"):
        assert browser.get(there.app + path).status == 404, path


def test_a_proof_anew_has_to_be_new(there: Deployment, browser: Browser) -> None:
    browser.sign_in(there.app, "keller")
    assert "Log in" in browser.to_provider(there.app, fresh=True).body  # although the provider knows the browser
    assert browser.sign_in(there.app, "keller", "/decisions", fresh=True).to == f"{there.app}/decisions"
    there.lie("proved long ago")
    refused = browser.sign_in(there.app, "keller", fresh=True)
    assert (refused.status, "proved yourself just now" in refused.body) == (403, True)


def test_while_the_provider_is_down_nobody_gets_in_and_who_is_in_stays(there: Deployment, browser: Browser) -> None:
    browser.sign_in(there.app, "keller")
    waiting = Browser()
    back = waiting.log_in(waiting.to_provider(there.app), "lind").to
    there.stop_provider()
    try:
        down = waiting.get(back)
        assert (down.status, "nobody can sign in now" in down.body) == (503, True)
        assert not is_in(waiting, there.app)
        assert is_in(browser, there.app)
        assert stream(there, browser) == 101
    finally:
        there.start_provider()
    assert Browser().sign_in(there.app, "lind").status == 303  # with keys that the app has not seen before
    there.lie("broken")
    assert Browser().sign_in(there.app, "lind").status == 503


def test_pages_before_the_app_speak_the_browsers_language_and_keep_the_policy(there: Deployment, browser: Browser) -> None:
    page = browser.get(there.app, **{"Accept-Language": "zh-CN,zh;q=0.9"})
    assert "<h1>登录</h1>" in page.body
    rules = dict(rule.split(" ", 1) for rule in page.headers["content-security-policy"].split("; "))
    assert rules["form-action"] == "'none'"
    assert rules["default-src"] == "'self'"
    assert page.headers["cache-control"] == "no-store"


def test_nothing_secret_is_logged_or_on_the_command_line(there: Deployment, browser: Browser) -> None:
    there.lie("wrong nonce")
    back = browser.log_in(browser.to_provider(there.app), "keller").to
    browser.get(back)
    there.lie(OFF)
    browser.sign_in(there.app, "keller")
    log = there.log.read_text()
    brought = parse_qs(urlsplit(back).query)
    for secret in (SECRET, brought["code"][0], brought["state"][0], *browser.jar[urlsplit(there.app).netloc].values()):
        assert secret not in log
    assert "sign-in refused: wrong-nonce" in log
    for line in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = line.read_bytes()
        except OSError:
            continue
        assert SECRET.encode() not in words or b"oidc_provider" in words
