"""secagg-ui: starts the app with settings fit for a hospital's network.

This process is the server, so that a signal or Ctrl-C reaches it directly and nothing is left behind.
Loopback unless told otherwise; no usage statistics; errors are not shown to browsers.
"""

from __future__ import annotations

import errno
import json
import socket
import sys
from ipaddress import ip_address
from pathlib import Path
from typing import Annotated
from urllib.parse import urlsplit

import typer

from ui import preload
from ui.palette import theme_options
from ui.sessions import HEADER, USER_KEY
from ui.settings import DEFAULT_PORT, LOOPBACK, Settings, SettingsError, checked, load

APP = Path(__file__).parent / "app.py"
SERVER = Path(__file__).parent / "server.py"
MAX_UPLOAD_MB = 1  # the app takes no files

command = typer.Typer(add_completion=False, help="Show privacy budget, accuracy, bandwidth, rounds and studies in a browser.")


def server_options(settings: Settings) -> dict[str, str]:
    """Streamlit's options for production (officer-facing, offline, loopback)."""
    return {
        "server.address": settings.address,
        "server.port": str(settings.port),
        "server.headless": "true",
        "server.fileWatcherType": "none",
        "server.maxUploadSize": str(MAX_UPLOAD_MB),
        "server.enableAgentApi": "false",
        "server.showEmailPrompt": "false",
        "browser.gatherUsageStats": "false",
        "client.toolbarMode": "viewer",
        "client.showErrorDetails": "none",
        "client.showErrorLinks": "false",
        "runner.magicEnabled": "false",  # a line that is only a value shows nothing here
        "logger.level": "warning",
        "logger.hideWelcomeMessage": "true",  # the address is printed once, by this program
        **theme_options(),
        **({} if settings.signin is None else {"server.trustedUserHeaders": json.dumps({HEADER: USER_KEY})}),
    }


def arguments(settings: Settings) -> list[str]:
    """What Streamlit's command is told, with the app's own arguments after `--`."""
    options = [f"--{name}={value}" for name, value in server_options(settings).items()]
    options += [f"--server.allowedHosts={name}" for name in all_host_names(settings)]
    return ["run", str(SERVER), *options, "--", *settings.arguments()]


def serve(told: list[str]) -> None:
    """Be the server until a signal ends it."""
    preload.rest()
    from streamlit.web import cli as server  # a second of imports: after mistakes were said

    from ui import streamlit_start

    streamlit_start.prepare()
    sys.argv[1:] = told
    server.main(told, prog_name="streamlit")


def host_names(address: str) -> tuple[str, ...]:
    """Names under which browsers may open the live connection; none where a proxy with a name of its own may stand before it.

    On loopback this stops a web page elsewhere from reaching the app by rebinding its own name to this machine.
    """
    try:
        local = ip_address(address).is_loopback
    except ValueError:
        local = address == "localhost"
    return (address, "localhost") if local else ()


def all_host_names(settings: Settings) -> tuple[str, ...]:
    """Those of the address and, with sign-in, the public name, which a proxy on this machine passes on."""
    names = host_names(settings.address)
    public = None if settings.signin is None else urlsplit(settings.signin.public_url).hostname
    return names if public is None or not names else tuple(dict.fromkeys((*names, public)))


def check_address(address: str, port: int) -> None:
    """SettingsError where the address cannot be bound, in words that say what to do."""
    try:
        family, kind, number, _, place = socket.getaddrinfo(address, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind, number) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(place)
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise SettingsError(f"port {port} is in use: stop what listens there, or choose another with --port") from error
        if error.errno == errno.EACCES:
            raise SettingsError(f"port {port} needs administrator rights: choose one above 1023 with --port") from error
        raise SettingsError(f"cannot listen on {address}: it is not an address of this machine (--address)") from error


def resolve(
    config: Path | None,
    coordinator: Path | None,
    hospitals: list[Path],
    studies: list[Path],
    address: str | None,
    port: int | None,
    *,
    open_without_signin: bool = False,
) -> Settings:
    """Settings from the file, with command-line options in front. SettingsError in one sentence."""
    base = Settings() if config is None else load(config)
    folders = {"coordinator": coordinator, "hospitals": tuple(hospitals), "studies": tuple(studies)}
    given = {**folders, "address": address, "port": port, "open_without_signin": open_without_signin}
    return checked(Settings.model_validate(base.model_dump() | {name: value for name, value in given.items() if value}))


@command.command()
def start(
    config: Annotated[Path | None, typer.Option(help="TOML file with coordinator, hospitals, address and port.")] = None,
    coordinator: Annotated[Path | None, typer.Option(help="State folder of the coordinator.")] = None,
    hospital: Annotated[list[Path] | None, typer.Option(help="State folder of a hospital node; repeat for more.")] = None,
    study: Annotated[list[Path] | None, typer.Option(help="Folder of `secagg-study run`; repeat for more.")] = None,
    address: Annotated[str | None, typer.Option(help=f"Address to listen on.  [default: {LOOPBACK}]")] = None,
    port: Annotated[int | None, typer.Option(min=1, max=65535, help=f"Port to listen on.  [default: {DEFAULT_PORT}]")] = None,
    *,
    open_without_signin: Annotated[
        bool, typer.Option("--open-without-signin", help="Listen beyond this machine although nobody has to sign in.")
    ] = False,
) -> None:
    """Start the app and print its address. The folders may still be empty: the pages then wait for them."""
    try:
        settings = resolve(
            config, coordinator, hospital or [], study or [], address, port, open_without_signin=open_without_signin
        )
        check_address(settings.address, settings.port)
    except SettingsError as error:
        print(f"secagg-ui: {error}", file=sys.stderr)
        raise typer.Exit(2) from error
    host = f"[{settings.address}]" if ":" in settings.address else settings.address
    behind = "" if settings.signin is None else f"; people open it at {settings.signin.public_url}"
    print(f"The app is at http://{host}:{settings.port}{behind}  (Ctrl-C stops it)", flush=True)
    serve(arguments(settings))


def main() -> None:
    """Entry point of secagg-ui."""
    command()
