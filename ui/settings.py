"""Where the app reads from and where it listens, from a TOML file or from command-line arguments.

The app writes nothing: every folder named here belongs to another process and is opened read-only.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path

from pydantic import Field

from proto.frozen import Frozen, from_toml
from ui.roles import Role
from ui.signin_settings import SignIn, client_secret, is_this_machine

LOOPBACK = "127.0.0.1"
DEFAULT_PORT = 8501  # Streamlit's own, so that people find it


class SettingsError(ValueError):
    """Settings that cannot be used; the text says what to change."""


class Settings(Frozen):
    """Folders to read, the address to listen on, who may look. Folders need not exist yet: pages then say that they wait."""

    coordinator: Path | None = None  # state folder of the coordinator, holds store.db
    hospitals: tuple[Path, ...] = ()  # state folders of hospital nodes, each holds ledger.db
    studies: tuple[Path, ...] = ()  # folders of `secagg-study run`, each holds results.db
    address: str = LOOPBACK
    port: int = Field(default=DEFAULT_PORT, ge=1, le=65535)
    signin: SignIn | None = None  # who may see and do what; without it, whoever reaches the address may
    open_without_signin: bool = False  # said aloud: listen beyond this machine although nobody has to sign in

    def arguments(self) -> list[str]:
        """The arguments from which `from_arguments` builds the same folders again, for the app's own process."""
        coordinator = [] if self.coordinator is None else ["--coordinator", str(self.coordinator.absolute())]
        several = [("--hospital", folder) for folder in self.hospitals] + [("--study", folder) for folder in self.studies]
        signin = [] if self.signin is None else ["--signin", self.signin.model_dump_json()]  # a file's name in it, no secret
        return coordinator + [part for option, folder in several for part in (option, str(folder.absolute()))] + signin


def load(path: Path) -> Settings:
    """Settings from TOML; relative folders are relative to the file. Raises SettingsError in one sentence."""
    settings = from_toml(Settings, path, "the settings", SettingsError)
    base = path.absolute().parent
    return _complete(
        settings.model_copy(
            update={
                "coordinator": None if settings.coordinator is None else base / settings.coordinator,
                "hospitals": tuple(base / folder for folder in settings.hospitals),
                "studies": tuple(base / folder for folder in settings.studies),
                "signin": None if settings.signin is None else settings.signin.beneath(base),
            }
        )
    )


def checked(settings: Settings) -> Settings:
    """`settings`, or SettingsError where there is nothing to show, sign-in is not whole, or anybody could look by oversight."""
    if settings.signin is None and not (is_this_machine(settings.address) or settings.open_without_signin):
        raise SettingsError(
            f"on {settings.address} anybody in the network could open this app: configure [signin], listen on {LOOPBACK}, "
            "or say that it is meant with --open-without-signin"
        )
    return _complete(settings)


def _complete(settings: Settings) -> Settings:
    if settings.coordinator is None and not settings.hospitals and not settings.studies:
        raise SettingsError(
            "nothing to show: name the coordinator's state folder, a hospital's state folder, a study, or several"
        )
    return settings if settings.signin is None else _checked_signin(settings, settings.signin)


def _checked_signin(settings: Settings, signin: SignIn) -> Settings:
    if not settings.hospitals and Role.OFFICER in signin.roles:
        raise SettingsError(
            "[signin.roles] names officers, and this app shows no hospital: there is nothing for them to decide"
        )
    if find_spec("authlib") is None:
        raise SettingsError("sign-in needs Authlib: install the extra 'signin' (pip install 'hospital-secagg[ui,signin]')")
    try:
        client_secret(signin)
    except ValueError as error:
        raise SettingsError(f"[signin]: {error}") from error
    return settings


def from_arguments(arguments: Sequence[str]) -> Settings:
    """Settings from pairs of an option and a folder, as `Settings.arguments` writes them."""
    found: dict[str, list[Path]] = {"--coordinator": [], "--hospital": [], "--study": []}
    signin: SignIn | None = None
    for option, value in zip(arguments[::2], arguments[1::2], strict=False):
        if option in found:
            found[option].append(Path(value))
        elif option == "--signin":
            signin = _signin_of(value)
    coordinator = found["--coordinator"][-1] if found["--coordinator"] else None
    hospitals, studies = tuple(found["--hospital"]), tuple(found["--study"])
    return Settings(coordinator=coordinator, hospitals=hospitals, studies=studies, signin=signin)


@lru_cache(maxsize=4)
def _signin_of(value: str) -> SignIn:
    return SignIn.model_validate_json(value)
