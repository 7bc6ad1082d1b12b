"""The conversation with the sign-in provider: where it lives, its keys, a code for an ID token. Blocking; logs nothing.

Authlib writes the requests (authorization code with PKCE S256, RFC 6749 and 7636; client authentication). Redirects are not
followed, and addresses without TLS are refused but for this machine's own. No token is kept.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import urlencode, urlsplit

import requests
from authlib.common.errors import AuthlibBaseError
from authlib.integrations.requests_client import OAuth2Session
from joserfc.errors import JoseError
from joserfc.jwk import KeySet

from ui.id_token import Claims, Expected, UnknownKey, verified
from ui.sessions import Begun, SignInRefused
from ui.signin_settings import SignIn, client_secret, is_this_machine

METADATA: Final = "/.well-known/openid-configuration"
SCOPE: Final = "openid profile email"
WAIT_S: Final = 10.0
KEPT_FOR_S: Final = 3600.0  # where the provider lives and its keys
REST_S: Final = 3.0  # after it did not answer: many who ask at once wait for one answer, not one after another
LONGEST_ANSWER_BYTES: Final = 1024 * 1024


class ProviderDown(OSError):
    """The provider cannot be reached, or does not answer as one; one sentence."""


@dataclass(frozen=True, slots=True)
class Known:
    """What the provider publishes, and when it was read."""

    metadata: Mapping[str, Any]
    keys: KeySet
    at_s: float

    def address(self, name: str) -> str:
        """One of its addresses. Raises ProviderDown."""
        found = self.metadata.get(name)
        parts = urlsplit(found if isinstance(found, str) else "")
        if parts.scheme == "https" or (parts.scheme == "http" and is_this_machine(parts.hostname)):
            return str(found)
        raise ProviderDown(f"the sign-in provider names no usable address for '{name}': ask its people")


class Provider:
    """One provider. Construct cheaply; it is asked when somebody signs in."""

    def __init__(self, settings: SignIn) -> None:
        self._settings = settings
        self._lock = threading.Lock()
        self._known: Known | None = None
        self._failed: tuple[float, ProviderDown] | None = None

    @property
    def host(self) -> str:
        """Its name, for sentences."""
        return urlsplit(self._settings.issuer).netloc

    def authorization_url(self, begun: Begun) -> str:
        """Where the browser goes to prove who somebody is. Raises ProviderDown."""
        address = self._published().address("authorization_endpoint")
        fresh = {"prompt": "login", "max_age": "0"} if begun.fresh else {}
        with self._session() as session:
            url, _ = session.create_authorization_url(
                address, state=begun.state, nonce=begun.nonce, code_verifier=begun.verifier, **fresh
            )
        return str(url)

    def sign_out_url(self) -> str | None:
        """Where the browser ends its session at the provider; None where the provider has no such place or is not there."""
        try:
            known = self._published()
            if known.metadata.get("end_session_endpoint") is None:
                return None
            after = {"client_id": self._settings.client_id, "post_logout_redirect_uri": f"{self._settings.public_url}/signin"}
            return f"{known.address('end_session_endpoint')}?{urlencode(after)}"
        except ProviderDown:
            return None

    def claims(self, begun: Begun, answer: Mapping[str, str]) -> Claims:
        """Who came back, from the parameters the browser brought. Raises SignInRefused, ProviderDown."""
        known = self._published()
        if "error" in answer:
            raise SignInRefused("refused-there", "The provider let nobody in: try again, or ask its people.")
        issuer = answer.get("iss")  # RFC 9207: an answer of another provider is not taken for this one's
        if issuer != self._settings.issuer and (issuer or known.metadata.get("authorization_response_iss_parameter_supported")):
            raise SignInRefused("wrong-issuer", "The answer came from another provider than the configured one.")
        if not answer.get("code"):
            raise SignInRefused("no-code", "The provider's answer is not whole: begin anew.")
        token = self._exchanged(known, begun, answer["code"])
        expected = Expected(begun.nonce, time.time(), begun.at_s if begun.fresh else None)
        try:
            return verified(token, known.keys, self._settings, expected)
        except UnknownKey:  # it may have changed its keys since they were read
            return verified(token, self._published(at_most_s=0.0).keys, self._settings, expected)

    def _exchanged(self, known: Known, begun: Begun, code: str) -> str:
        try:
            with self._session() as session:
                token = session.fetch_token(
                    known.address("token_endpoint"), code=code, code_verifier=begun.verifier, allow_redirects=False
                )
        except AuthlibBaseError as error:
            raise SignInRefused("code-refused", "The provider did not accept its own code: begin anew.") from error
        except (requests.RequestException, ValueError) as error:
            raise ProviderDown(f"the sign-in provider {self.host} does not answer") from error
        found = token.get("id_token")
        if not isinstance(found, str):
            raise SignInRefused("no-token", "The provider did not say who you are: is this app registered for OpenID Connect?")
        return found

    def _published(self, at_most_s: float = KEPT_FOR_S) -> Known:
        """What the provider published up to `at_most_s` ago. Raises ProviderDown."""
        with self._lock:
            now_s = time.monotonic()
            if self._known is not None and now_s - self._known.at_s <= at_most_s:
                return self._known
            if self._failed is not None and now_s - self._failed[0] <= REST_S:
                raise ProviderDown(str(self._failed[1]))
            try:
                self._known, self._failed = self._read(now_s), None
            except ProviderDown as error:
                self._failed = (time.monotonic(), error)
                raise
            return self._known

    def _read(self, now_s: float) -> Known:
        metadata = self._get(self._settings.issuer.rstrip("/") + METADATA)
        if metadata.get("issuer") != self._settings.issuer:
            raise ProviderDown(f"the sign-in provider calls itself '{metadata.get('issuer')}', not '{self._settings.issuer}'")
        without_keys = Known(metadata, KeySet([]), now_s)
        try:
            keys = KeySet.import_key_set(self._get(without_keys.address("jwks_uri")))  # type: ignore[arg-type]
        except (JoseError, ValueError, KeyError, TypeError) as error:
            raise ProviderDown(f"the keys of the sign-in provider {self.host} cannot be read") from error
        return Known(metadata, keys, now_s)

    def _get(self, url: str) -> dict[str, Any]:
        try:
            with self._session() as session:
                answer = session.get(url, withhold_token=True, allow_redirects=False)
                answer.raise_for_status()
                found = answer.json() if len(answer.content) <= LONGEST_ANSWER_BYTES else None
        except (requests.RequestException, ValueError) as error:
            raise ProviderDown(f"the sign-in provider {self.host} does not answer") from error
        if not isinstance(found, dict) or answer.status_code != requests.codes.ok:
            raise ProviderDown(f"the sign-in provider {self.host} does not answer as one")
        return found

    def _session(self) -> OAuth2Session:
        try:
            secret = client_secret(self._settings)  # read anew, so that a new one needs no restart
        except ValueError as error:
            raise ProviderDown(str(error)) from error
        session = OAuth2Session(
            self._settings.client_id,
            secret,
            scope=SCOPE,
            redirect_uri=self._settings.redirect_uri,
            code_challenge_method="S256",
            default_timeout=WAIT_S,
        )
        if self._settings.ca_file is not None:
            session.verify = str(self._settings.ca_file)
        return session
