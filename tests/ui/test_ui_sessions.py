"""The table of sessions and the checks of a token, without a network: counted once, bound to a browser, ended at a moment."""

from __future__ import annotations

import base64
import json

import pytest
from cryptography.hazmat.primitives.asymmetric.ec import ECDSA
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from cryptography.hazmat.primitives.hashes import SHA256
from hypothesis import given
from hypothesis import strategies as st

from ui.roles import Role
from ui.sessions import (
    BEGUN_FOR_S,
    CLOSING_S,
    LONGEST_PLACE,
    MOST_BEGUN,
    MOST_OF_ONE,
    Person,
    Sessions,
    SignInRefused,
    key_of,
    local_path,
)
from ui.signin_settings import SignIn

id_token = pytest.importorskip("ui.id_token", reason="joserfc is absent: install the extra 'test'")

NOW_S = 1_800_000_000.0
KELLER = Person("https://login.example", "keller-1", "Dr K. Weber", frozenset({Role.OFFICER}))
SETTINGS = SignIn(
    issuer="https://login.example",
    client_id="secagg-ui",
    public_url="https://secagg.example",
    roles_claim="realm_access.roles",
    roles={Role.OFFICER: ("officers", "deputies"), Role.OPERATOR: ("operators",)},
)


def test_a_session_ends_at_its_moment_and_its_number_opens_nothing_by_name() -> None:
    table = Sessions()
    shown = table.open(KELLER, NOW_S, NOW_S + 100, NOW_S)
    key = key_of(shown)
    assert table.find(key, NOW_S + 99.9) is not None
    assert table.find(key, NOW_S + 100) is None
    assert table.find(shown, NOW_S) is None
    assert table.find(key_of(key), NOW_S) is None
    assert table.is_connected(key, NOW_S + 100 + CLOSING_S / 2)
    assert not table.is_connected(key, NOW_S + 100 + CLOSING_S)


def test_signing_out_ends_it_now_and_never_makes_it_longer() -> None:
    table = Sessions()
    key = key_of(table.open(KELLER, NOW_S, NOW_S + 100, NOW_S))
    table.end(key, NOW_S + 1)
    assert table.find(key, NOW_S + 1) is None
    table.end(key, NOW_S + 50)
    assert not table.is_connected(key, NOW_S + 1 + CLOSING_S)


def test_what_comes_back_counts_once_in_time_and_for_its_browser() -> None:
    table = Sessions()
    begun = table.begin("/rounds", NOW_S)
    for browser in ("", "another", begun.state):
        with pytest.raises(SignInRefused, match="another browser"):
            table.take(begun.state, browser, NOW_S)
    assert table.take(begun.state, begun.browser, NOW_S + BEGUN_FOR_S) == begun
    with pytest.raises(SignInRefused, match="used already"):
        table.take(begun.state, begun.browser, NOW_S)
    late = table.begin("/", NOW_S)
    with pytest.raises(SignInRefused, match="took too long"):
        table.take(late.state, late.browser, NOW_S + BEGUN_FOR_S + 1)


def test_beginning_without_end_costs_nobody_a_session() -> None:
    table = Sessions()
    key = key_of(table.open(KELLER, NOW_S, NOW_S + 100, NOW_S))
    first = table.begin("/", NOW_S)
    for _ in range(MOST_BEGUN):
        table.begin("/", NOW_S)
    assert len(table._begun) == MOST_BEGUN
    with pytest.raises(SignInRefused):
        table.take(first.state, first.browser, NOW_S)
    assert table.find(key, NOW_S) is not None
    table.begin("/", NOW_S + BEGUN_FOR_S + 1)
    assert len(table._begun) == 1


def test_signing_in_without_end_costs_only_ones_own_sessions() -> None:
    table = Sessions()
    lind = key_of(table.open(Person(KELLER.issuer, "lind-2", "Dr L. Lind", KELLER.roles), NOW_S, NOW_S + 100, NOW_S))
    own = [key_of(table.open(KELLER, NOW_S, NOW_S + 100, NOW_S)) for _ in range(3 * MOST_OF_ONE)]
    assert [key for key in own if table.find(key, NOW_S)] == own[-MOST_OF_ONE:]
    assert table.find(lind, NOW_S) is not None


def test_a_hidden_window_which_looks_once_a_minute_still_hears_of_the_end() -> None:
    table = Sessions()
    key = key_of(table.open(KELLER, NOW_S, NOW_S + 100, NOW_S))
    assert table.is_connected(key, NOW_S + 100 + 60)
    assert not table.is_connected(key, NOW_S + 100 + 120)


def test_a_place_that_strangers_choose_is_short() -> None:
    assert local_path("/" + "a" * (LONGEST_PLACE - 1)) == "/" + "a" * (LONGEST_PLACE - 1)
    assert local_path("/" + "a" * LONGEST_PLACE) == "/"


@given(st.text(max_size=40) | st.from_regex(r"[/\\\\:a-z?.]{0,12}", fullmatch=True))
def test_no_wanted_page_leads_out_of_the_app(wanted: str) -> None:
    found = local_path(wanted)
    assert found.startswith("/")
    assert not found.startswith("//")
    assert "\\" not in found
    assert found.isprintable()


@pytest.mark.parametrize(
    ("claims", "roles"),
    [
        ({"realm_access": {"roles": ["officers", "other"]}}, {Role.OFFICER}),
        ({"realm_access": {"roles": ["deputies", "operators"]}}, {Role.OFFICER, Role.OPERATOR}),
        ({"realm_access.roles": "operators"}, {Role.OPERATOR}),
        ({"realm_access": {"roles": []}}, set()),
        ({"realm_access": {"roles": {"officers": True}}}, set()),
        ({"realm_access": {"roles": [["officers"], 7, None]}}, set()),
        ({"realm_access": "officers"}, set()),
        ({"roles": ["officers"]}, set()),
        ({"realm_access": {"roles": ["Officers", "officers "]}}, set()),
        ({}, set()),
    ],
)
def test_roles_come_from_the_named_claim_alone(claims: dict[str, object], roles: set[Role]) -> None:
    assert id_token.person_of({"sub": "a", **claims}, SETTINGS).roles == roles


@pytest.mark.parametrize(
    ("claims", "name"),
    [
        ({"name": " Dr K. Weber "}, "Dr K. Weber"),
        ({"name": "two\nlines", "preferred_username": "weber"}, "weber"),
        ({"email": "a@hospital.example", "email_verified": True}, "a@hospital.example"),
        ({"email": "chief@hospital.example", "email_verified": False}, "keller-1"),
        ({"email": "chief@hospital.example", "email_verified": "true"}, "keller-1"),
        ({"email": "chief@hospital.example"}, "keller-1"),
        ({"name": ["a"]}, "keller-1"),
        ({"name": "x" * 500}, "x" * 200),
    ],
)
def test_a_name_is_one_line_and_an_address_only_a_verified_one(claims: dict[str, object], name: str) -> None:
    assert id_token.person_of({"sub": "keller-1", **claims}, SETTINGS).name == name


@given(
    st.dictionaries(
        st.sampled_from(["iss", "aud", "azp", "iat", "exp", "nbf", "nonce", "sub"]),
        st.none() | st.text() | st.integers() | st.lists(st.text(), max_size=2),
    )
)
def test_claims_of_any_shape_are_refused_in_a_sentence(claims: dict[str, object]) -> None:
    from joserfc import jwt
    from joserfc.jwk import ECKey, KeySet

    token = jwt.encode({"alg": "ES256", "kid": KEY.kid}, claims, KEY, algorithms=["ES256"])
    assert isinstance(KEY, ECKey)
    with pytest.raises(SignInRefused):
        id_token.verified(token, KeySet([KEY]), SETTINGS, id_token.Expected("the nonce", NOW_S))


@pytest.mark.parametrize(("length", "taken"), [(20_000, True), (60_000, False)])
def test_a_provider_may_show_its_certificates_in_the_header(length: int, taken: bool) -> None:
    from joserfc import jwt
    from joserfc.jwk import KeySet
    from joserfc.jws import JWSRegistry

    wide = JWSRegistry(algorithms=["ES256"])
    wide.max_header_length = 1 << 20
    header = {"alg": "ES256", "kid": KEY.kid, "x5c": ["A" * length]}
    claims = {
        "iss": SETTINGS.issuer,
        "aud": SETTINGS.client_id,
        "iat": NOW_S,
        "exp": NOW_S + 60,
        "nonce": "n",
        "sub": "keller-1",
    }
    token = jwt.encode(header, claims, KEY, registry=wide)
    expected = id_token.Expected("n", NOW_S)
    if taken:
        assert id_token.verified(token, KeySet([KEY]), SETTINGS, expected)["sub"] == "keller-1"
    else:
        with pytest.raises(SignInRefused, match="is longer than any provider's"):
            id_token.verified(token, KeySet([KEY]), SETTINGS, expected)


@given(st.text(max_size=60))
def test_text_of_any_shape_is_no_token(token: str) -> None:
    from joserfc.jwk import KeySet

    with pytest.raises(SignInRefused):
        id_token.verified(token, KeySet([KEY]), SETTINGS, id_token.Expected("the nonce", NOW_S))


def _key():
    from joserfc.jwk import ECKey

    return ECKey.generate_key("P-256", {"kid": "k", "use": "sig", "alg": "ES256"})


KEY = _key()


def test_a_provider_that_does_not_say_when_proves_nothing_recent() -> None:
    assert id_token.proved_at_s({"iat": NOW_S}) == 0.0
    assert id_token.proved_at_s({"iat": NOW_S, "auth_time": NOW_S - 5}) == NOW_S - 5


def signed(header: dict[str, object], **claims: object) -> str:
    """A token with any header at all, signed with the provider's key."""
    from joserfc.jwk import ECKey

    assert isinstance(KEY, ECKey)
    usual = {"iss": SETTINGS.issuer, "aud": "secagg-ui", "sub": "keller-1", "nonce": "n", "iat": NOW_S, "exp": NOW_S + 60}
    parts = ({"alg": "ES256", "kid": KEY.kid, **header}, {**usual, **claims})
    text = b".".join(base64.urlsafe_b64encode(json.dumps(part).encode()).rstrip(b"=") for part in parts)
    if header.get("alg") == "none":
        return text.decode() + "."
    r, s = decode_dss_signature(KEY.private_key.sign(text, ECDSA(SHA256())))
    signature = r.to_bytes(32, "big") + s.to_bytes(32, "big")
    return (text + b"." + base64.urlsafe_b64encode(signature).rstrip(b"=")).decode()


def verified(token: str) -> id_token.Claims:
    from joserfc.jwk import KeySet

    return id_token.verified(token, KeySet([KEY]), SETTINGS, id_token.Expected("n", NOW_S))


def test_what_a_header_says_besides_is_ignored() -> None:
    assert verified(signed({}))["sub"] == "keller-1"
    assert verified(signed({"ver": "1", "tnk": "core"}))["sub"] == "keller-1"


@pytest.mark.parametrize(
    "header",
    [{"alg": "none"}, {"alg": "HS256"}, {"crit": ["zzz"], "zzz": 1}, {"crit": ["b64"], "b64": False}, {"alg": "ES999"}],
    ids=str,
)
def test_what_a_header_says_is_critical_is_not(header: dict[str, object]) -> None:
    with pytest.raises(SignInRefused, match="not signed as it has to be"):
        verified(signed(header))


@pytest.mark.parametrize(
    "when", [float("inf"), float("nan"), 10**400, -(10**400), True, "1800000060"], ids=lambda when: str(when)[:9]
)
def test_a_time_that_is_no_finite_number_is_no_time(when: object) -> None:
    with pytest.raises(SignInRefused, match="from when until when"):
        verified(signed({}, exp=when))
