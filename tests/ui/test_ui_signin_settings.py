"""The table [signin] of the settings, the file of the secret, and where the app does not listen without anybody signing in."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from signin_world import CLIENT, GROUPS, SECRET, free_port, write_settings
from typer.testing import CliRunner

from ui import cli
from ui.roles import ALLOWED, Role
from ui.settings import Settings, SettingsError, checked, from_arguments, load
from ui.signin_settings import client_secret

ISSUER = "https://login.hospital.example/realms/staff"
ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def executed(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    calls: list[list[str]] = []
    monkeypatch.setattr(cli, "serve", calls.append)
    return calls


def written(folder: Path, **further: object) -> Path:
    return write_settings(folder, ISSUER, free_port(), {"hospitals": ["st-anna/state"]}, **further)


def test_the_table_is_read_and_handed_over_without_the_secret(tmp_path: Path, executed: list[list[str]]) -> None:
    path = written(tmp_path, public_url="https://SecAgg.hospital.example/")
    settings = load(path)
    assert settings.signin is not None
    assert settings.signin.public_url == "https://secagg.hospital.example"
    assert settings.signin.redirect_uri == "https://secagg.hospital.example/signin/back"
    assert client_secret(settings.signin) == SECRET
    assert from_arguments(settings.arguments()).signin == settings.signin
    done = CliRunner().invoke(cli.command, ["--config", str(path)])
    assert done.exit_code == 0, done.output
    assert "people open it at https://secagg.hospital.example" in done.output
    (call,) = executed
    assert not [word for word in call if SECRET in word]
    assert "--server.allowedHosts=secagg.hospital.example" in call
    headers = next(word for word in call if "trustedUserHeaders" in word).partition("=")[2]
    assert json.loads(headers) == {"x-secagg-session": "session"}


@pytest.mark.parametrize(
    ("further", "sentence"),
    [
        ({"issuer": "http://login.hospital.example"}, "has to begin with https://"),
        ({"public_url": "http://secagg.hospital.example"}, "has to begin with https://"),
        ({"public_url": "https://secagg.hospital.example/app"}, "without a path"),
        ({"public_url": "https://röntgen.example"}, "in its form xn--"),
        ({"roles": {"officer": []}}, "nobody could see anything"),
        ({"roles": {"officer": ["staff"], "operator": ["staff"]}}, "a group has two roles"),
        ({"roles": {"king": ["staff"]}}, "roles.king"),
        ({"session_hours": 200}, "session_hours"),
        ({"client_secret": "typed into the file"}, "unknown key 'signin.client_secret'"),
    ],
)
def test_a_mistake_is_one_sentence(tmp_path: Path, further: dict[str, object], sentence: str) -> None:
    with pytest.raises(SettingsError, match=sentence.replace("/", ".")):
        load(written(tmp_path, **further))


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660])
def test_a_secret_that_others_may_read_is_refused(tmp_path: Path, mode: int) -> None:
    path = written(tmp_path)
    (tmp_path / "client-secret").chmod(mode)
    with pytest.raises(SettingsError, match="is open to other users") as refused:
        load(path)
    assert SECRET not in str(refused.value)


@pytest.mark.parametrize("content", ["", "  \n", "one\ntwo", "x" * 5000])
def test_a_file_that_holds_no_secret_is_refused(tmp_path: Path, content: str) -> None:
    path = written(tmp_path)
    (tmp_path / "client-secret").write_text(content)
    with pytest.raises(SettingsError, match="is not one line of text"):
        load(path)


def test_a_missing_secret_is_refused_and_none_is_a_public_client(tmp_path: Path) -> None:
    path = written(tmp_path)
    (tmp_path / "client-secret").unlink()
    with pytest.raises(SettingsError, match="client-secret"):
        load(path)
    text = path.read_text().replace('client_secret_file = "client-secret"\n', "")
    path.write_text(text)
    settings = load(path)
    assert settings.signin is not None
    assert client_secret(settings.signin) is None


def test_officers_are_refused_where_there_is_no_hospital(tmp_path: Path) -> None:
    path = write_settings(tmp_path, ISSUER, free_port(), {"coordinator": "state"})
    with pytest.raises(SettingsError, match="names officers, and this app shows no hospital"):
        load(path)
    without = {role: groups for role, groups in GROUPS.items() if role != "officer"}
    path = write_settings(tmp_path, ISSUER, free_port(), {"coordinator": "state"}, roles=without)
    assert load(path).signin is not None


@pytest.mark.parametrize("address", ["0.0.0.0", "::", "192.0.2.7", "secagg.hospital.example"])
def test_nobody_listens_in_a_network_without_sign_in_by_oversight(tmp_path: Path, address: str) -> None:
    with pytest.raises(SettingsError, match="anybody in the network could open this app") as refused:
        checked(Settings(coordinator=tmp_path, address=address))
    assert "--open-without-signin" in str(refused.value)
    assert checked(Settings(coordinator=tmp_path, address=address, open_without_signin=True)).address == address
    for local in ("127.0.0.1", "::1", "localhost", "127.0.0.2"):
        assert checked(Settings(coordinator=tmp_path, address=local)).address == local


def test_an_address_of_the_file_may_be_said_to_be_meant_on_the_command_line(tmp_path: Path, executed: list[list[str]]) -> None:
    path = tmp_path / "open.toml"
    path.write_text(f'coordinator = "state"\naddress = "0.0.0.0"\nport = {free_port()}\n')
    refused = CliRunner().invoke(cli.command, ["--config", str(path)])
    assert (refused.exit_code, executed) == (2, [])
    assert CliRunner().invoke(cli.command, ["--config", str(path), "--open-without-signin"]).exit_code == 0
    assert CliRunner().invoke(cli.command, ["--config", str(path), "--address", "127.0.0.1"]).exit_code == 0
    assert len(executed) == 2


@pytest.mark.parametrize(
    ("url", "host"),
    [
        ("https://secagg.example:443", "secagg.example"),
        ("https://secagg.example:8443/", "secagg.example:8443"),
        ("http://[::1]:80", "[::1]"),
        ("http://localhost:8501", "localhost:8501"),
    ],
)
def test_the_public_name_is_what_browsers_send(tmp_path: Path, url: str, host: str) -> None:
    settings = load(written(tmp_path, public_url=url))
    assert settings.signin is not None
    assert settings.signin.host == host


def test_with_sign_in_any_address_will_do(tmp_path: Path) -> None:
    settings = load(written(tmp_path, public_url="https://secagg.hospital.example"))
    assert checked(settings.model_copy(update={"address": "0.0.0.0"})).signin is not None


def test_the_readmes_table_of_roles_is_the_codes() -> None:
    shown = (ROOT / "ui" / "README.md").read_text(encoding="utf-8")
    for right, roles in ALLOWED.items():
        cells = " | ".join("yes" if role in roles else "–" for role in Role)
        assert f"| {right.value} | {cells} |" in shown, right


def test_the_readmes_example_is_read(tmp_path: Path) -> None:
    shown = (ROOT / "ui" / "README.md").read_text(encoding="utf-8")
    start = shown.index("[signin]\n")
    path = tmp_path / "ui.toml"
    path.write_text('hospitals = ["st-anna/state"]\n' + shown[start : shown.index("```", start)])
    secret = tmp_path / "client-secret"
    secret.touch(mode=0o600)
    secret.write_text(SECRET)
    settings = load(path)
    assert settings.signin is not None
    assert settings.signin.client_id == CLIENT
    assert set(settings.signin.roles) == set(Role)
