"""What an ID token has to be before anybody is let in: the checks of OpenID Connect Core, section 3.1.3.7, in order.

Pure: the token, the provider's keys and the time are arguments. joserfc checks the signature, with a closed list of algorithms;
every other check is here, because none of them is left to a default.
"""

from __future__ import annotations

import hmac
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from joserfc import jwt
from joserfc.errors import InvalidKeyIdError, JoseError
from joserfc.jwk import KeySet
from joserfc.jws import JWSRegistry

from ui.roles import Role
from ui.sessions import Person, SignInRefused
from ui.signin_settings import SignIn

ALGORITHMS: Final = ("ES256", "ES384", "PS256", "RS256", "RS384", "RS512")  # never "none", never a shared secret
LONGEST_TOKEN: Final = 64 * 1024


class _Registry(JWSRegistry):
    """Some providers put their certificates into the header: no part has a bound of its own below that of the whole token."""

    max_header_length = LONGEST_TOKEN
    max_payload_length = LONGEST_TOKEN


# What a header says besides is ignored (RFC 7515, section 4), unless it is named as critical.
HEADERS: Final = _Registry(algorithms=list(ALGORITHMS), strict_check_header=False)
LONGEST_NAME: Final = 200
LONGEST_SUBJECT: Final = 255  # OpenID Connect Core, section 2

Claims = Mapping[str, Any]


class UnknownKey(SignInRefused):
    """The token names a key that the provider's list, as known here, does not have."""


@dataclass(frozen=True, slots=True)
class Expected:
    """What this sign-in asked for."""

    nonce: str
    now_s: float
    proved_since_s: float | None = None  # where the person was asked to prove themselves anew


def verified(token: str, keys: KeySet, settings: SignIn, expected: Expected) -> Claims:
    """The claims of a token that is meant for this app, this sign-in and this moment. Raises SignInRefused, UnknownKey."""
    claims = _signed(token, keys)  # 1
    if claims.get("iss") != settings.issuer:  # 2
        raise _refused("wrong-issuer", "was issued by somebody else than the configured provider")
    _check_audience(claims, settings.client_id)  # 3
    _check_times(claims, expected.now_s, settings.clock_skew_s)  # 4
    nonce = claims.get("nonce")
    if not isinstance(nonce, str) or not hmac.compare_digest(nonce.encode(), expected.nonce.encode()):  # 5
        raise _refused("wrong-nonce", "belongs to another sign-in")
    subject = claims.get("sub")
    if not (isinstance(subject, str) and subject and len(subject) <= LONGEST_SUBJECT and subject.isprintable()):  # 6
        raise _refused("no-subject", "names nobody")
    if expected.proved_since_s is not None:  # 7
        proved = _moment(claims, "auth_time")
        if proved is None or proved < expected.proved_since_s - settings.clock_skew_s:
            raise _refused("not-fresh", "does not say that you proved yourself just now, which a decision needs")
    return claims


def _signed(token: str, keys: KeySet) -> Claims:
    if len(token) > LONGEST_TOKEN:
        raise _refused("too-long", "is longer than any provider's")
    try:
        return jwt.decode(token, keys, registry=HEADERS).claims
    except InvalidKeyIdError as error:
        raise UnknownKey("unknown-key", "The provider signed with a key that it does not publish: ask its people.") from error
    except (JoseError, ValueError) as error:  # unsigned, another algorithm, another key, another byte, not a token
        raise _refused("bad-signature", "is not signed as it has to be") from error


def _check_audience(claims: Claims, client_id: str) -> None:
    audience = claims.get("aud")
    meant = [audience] if isinstance(audience, str) else audience
    if not isinstance(meant, list) or client_id not in meant:
        raise _refused("wrong-audience", "is meant for another application")
    party = claims.get("azp")
    if (len(meant) > 1 or party is not None) and party != client_id:
        raise _refused("wrong-audience", "was asked for by another application")


def _check_times(claims: Claims, now_s: float, skew_s: float) -> None:
    issued, expires, begins = (_moment(claims, name) for name in ("iat", "exp", "nbf"))
    if issued is None or expires is None:
        raise _refused("no-time", "does not say from when until when it holds")
    if expires <= now_s - skew_s:
        raise _refused("expired", "has expired: the clocks of the provider and of this machine may differ")
    if max(issued, begins or issued) > now_s + skew_s:
        raise _refused("not-yet", "is from the future: the clocks of the provider and of this machine differ")


def _moment(claims: Claims, name: str) -> float | None:
    """A time of the token, in seconds since 1970; what is no finite number is no time."""
    value = claims.get(name)
    if not isinstance(value, int | float) or isinstance(value, bool):
        return None
    try:
        found = float(value)
    except OverflowError:
        return None
    return found if math.isfinite(found) else None


def proved_at_s(claims: Claims) -> float:
    """When the person last proved who they are; long ago where the provider does not say, since it may have remembered them."""
    return _moment(claims, "auth_time") or 0.0


def person_of(claims: Claims, settings: SignIn) -> Person:
    """Who that is here. Somebody without a role is somebody, who sees nothing."""
    return Person(settings.issuer, str(claims["sub"]), _name(claims, settings.name_claim), _roles(claims, settings))


def _name(claims: Claims, name_claim: str) -> str:
    """A name to show and to record beside the account; an e-mail address only where the provider has verified it."""
    address = claims.get("email") if claims.get("email_verified") is True else None
    for said in (claims.get(name_claim), claims.get("preferred_username"), address, claims["sub"]):
        if isinstance(said, str) and said.strip() and said.isprintable():
            return said.strip()[:LONGEST_NAME]
    raise _refused("no-subject", "names nobody")


def _roles(claims: Claims, settings: SignIn) -> frozenset[Role]:
    """The roles of the person's groups; groups that nobody mapped mean nothing here."""
    found: object = claims.get(settings.roles_claim)
    if found is None:
        found = claims
        for step in settings.roles_claim.split("."):
            found = found.get(step) if isinstance(found, Mapping) else None
    groups = [found] if isinstance(found, str) else found
    held = {group for group in groups if isinstance(group, str)} if isinstance(groups, list) else set()
    return frozenset(role for role, named in settings.roles.items() if not held.isdisjoint(named))


def _refused(code: str, what: str) -> SignInRefused:
    return SignInRefused(code, f"The provider's answer {what}.")
