"""Where the app reads from and where it listens, from a TOML file or from command-line arguments.

The app writes nothing: every folder named here belongs to another process and is opened read-only.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from pydantic import Field

from proto.frozen import Frozen, from_toml

LOOPBACK = "127.0.0.1"
DEFAULT_PORT = 8501  # Streamlit's own, so that people find it


class SettingsError(ValueError):
    """Settings that cannot be used; the text says what to change."""


class Settings(Frozen):
    """Folders to read and the address to listen on. Folders need not exist yet: pages then say that they wait."""

    coordinator: Path | None = None  # state folder of the coordinator, holds store.db
    hospitals: tuple[Path, ...] = ()  # state folders of hospital nodes, each holds ledger.db
    studies: tuple[Path, ...] = ()  # folders of `secagg-study run`, each holds results.db
    address: str = LOOPBACK
    port: int = Field(default=DEFAULT_PORT, ge=1, le=65535)

    def arguments(self) -> list[str]:
        """The arguments from which `from_arguments` builds the same folders again, for the app's own process."""
        coordinator = [] if self.coordinator is None else ["--coordinator", str(self.coordinator.absolute())]
        several = [("--hospital", folder) for folder in self.hospitals] + [("--study", folder) for folder in self.studies]
        return coordinator + [part for option, folder in several for part in (option, str(folder.absolute()))]


def load(path: Path) -> Settings:
    """Settings from TOML; relative folders are relative to the file. Raises SettingsError in one sentence."""
    settings = from_toml(Settings, path, "the settings", SettingsError)
    base = path.absolute().parent
    return checked(
        settings.model_copy(
            update={
                "coordinator": None if settings.coordinator is None else base / settings.coordinator,
                "hospitals": tuple(base / folder for folder in settings.hospitals),
                "studies": tuple(base / folder for folder in settings.studies),
            }
        )
    )


def checked(settings: Settings) -> Settings:
    """`settings`, or SettingsError where there is nothing to show."""
    if settings.coordinator is None and not settings.hospitals and not settings.studies:
        raise SettingsError(
            "nothing to show: name the coordinator's state folder, a hospital's state folder, a study, or several"
        )
    return settings


def from_arguments(arguments: Sequence[str]) -> Settings:
    """Settings from pairs of an option and a folder, as `Settings.arguments` writes them."""
    found: dict[str, list[Path]] = {"--coordinator": [], "--hospital": [], "--study": []}
    for option, value in zip(arguments[::2], arguments[1::2], strict=False):
        if option in found:
            found[option].append(Path(value))
    coordinator = found["--coordinator"][-1] if found["--coordinator"] else None
    return Settings(coordinator=coordinator, hospitals=tuple(found["--hospital"]), studies=tuple(found["--study"]))
