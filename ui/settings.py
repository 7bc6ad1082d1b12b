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
    address: str = LOOPBACK
    port: int = Field(default=DEFAULT_PORT, ge=1, le=65535)

    def arguments(self) -> list[str]:
        """The arguments from which `from_arguments` builds the same folders again, for the app's own process."""
        coordinator = [] if self.coordinator is None else ["--coordinator", str(self.coordinator.absolute())]
        return coordinator + [part for folder in self.hospitals for part in ("--hospital", str(folder.absolute()))]


def load(path: Path) -> Settings:
    """Settings from TOML; relative folders are relative to the file. Raises SettingsError in one sentence."""
    settings = from_toml(Settings, path, "the settings", SettingsError)
    base = path.absolute().parent
    return checked(
        settings.model_copy(
            update={
                "coordinator": None if settings.coordinator is None else base / settings.coordinator,
                "hospitals": tuple(base / folder for folder in settings.hospitals),
            }
        )
    )


def checked(settings: Settings) -> Settings:
    """`settings`, or SettingsError where there is nothing to show."""
    if settings.coordinator is None and not settings.hospitals:
        raise SettingsError("nothing to show: name the coordinator's state folder, a hospital's state folder, or both")
    return settings


def from_arguments(arguments: Sequence[str]) -> Settings:
    """Settings from `--coordinator FOLDER` and `--hospital FOLDER` pairs, as `Settings.arguments` writes them."""
    coordinator: Path | None = None
    hospitals: list[Path] = []
    for option, value in zip(arguments[::2], arguments[1::2], strict=False):
        if option == "--coordinator":
            coordinator = Path(value)
        elif option == "--hospital":
            hospitals.append(Path(value))
    return Settings(coordinator=coordinator, hospitals=tuple(hospitals))
