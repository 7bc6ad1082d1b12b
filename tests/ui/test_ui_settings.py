"""Where the app reads and listens: settings from a file or the command line, and one sentence for every mistake."""

import socket
from pathlib import Path

import pytest
from typer.testing import CliRunner

from ui import cli
from ui.server import INDEX, policy, script_digests
from ui.settings import Settings, SettingsError, from_arguments, load


def write(folder: Path, text: str) -> Path:
    path = folder / "ui.toml"
    path.write_text(text)
    return path


@pytest.fixture
def executed(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    calls: list[list[str]] = []
    monkeypatch.setattr(cli, "serve", calls.append)
    return calls


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def test_folders_are_relative_to_the_file(tmp_path):
    settings = load(write(tmp_path, 'coordinator = "c/state"\nhospitals = ["a/state", "b/state"]\nport = 9000\n'))
    assert settings.coordinator == tmp_path / "c" / "state"
    assert settings.hospitals == (tmp_path / "a" / "state", tmp_path / "b" / "state")
    assert settings.port == 9000
    assert settings.address == "127.0.0.1"


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("colour = 'red'\n", "unknown key 'colour'"),
        ("port = 0\n", "'port'"),
        ("not toml", "not valid TOML"),
        ("port = 9000\n", "nothing to show"),
    ],
)
def test_a_mistake_in_the_file_is_one_sentence(tmp_path, text, sentence):
    with pytest.raises(SettingsError, match=sentence):
        load(write(tmp_path, text))


def test_a_missing_file_is_one_sentence(tmp_path):
    with pytest.raises(SettingsError, match="cannot read"):
        load(tmp_path / "ui.toml")


def test_what_the_command_hands_over_the_app_reads_back(tmp_path):
    given = Settings(coordinator=tmp_path / "c", hospitals=(tmp_path / "a", tmp_path / "b"))
    back = from_arguments(given.arguments())
    assert (back.coordinator, back.hospitals) == (given.coordinator, given.hospitals)


def test_the_server_is_private_quiet_and_local(executed, tmp_path):
    port = free_port()
    done = CliRunner().invoke(cli.command, ["--coordinator", str(tmp_path), "--port", str(port)])
    assert done.exit_code == 0
    assert done.output.startswith(f"The app is at http://127.0.0.1:{port}")
    (call,) = executed
    assert call[:2] == ["run", str(cli.SERVER)]
    for option in (
        "--browser.gatherUsageStats=false",
        "--server.headless=true",
        "--server.address=127.0.0.1",
        "--server.fileWatcherType=none",
        "--client.toolbarMode=viewer",
        "--client.showErrorDetails=none",
        "--client.showErrorLinks=false",
    ):
        assert option in call
    assert [option for option in call if "allowedHosts" in option] == [
        "--server.allowedHosts=127.0.0.1",
        "--server.allowedHosts=localhost",
    ]
    assert call[call.index("--") + 1 :] == ["--coordinator", str(tmp_path)]


def test_command_line_options_go_before_the_file(executed, tmp_path):
    path = write(tmp_path, f'coordinator = "c"\nport = {free_port()}\n')
    port = free_port()
    done = CliRunner().invoke(cli.command, ["--config", str(path), "--port", str(port), "--hospital", str(tmp_path / "h")])
    assert done.exit_code == 0
    assert f"--server.port={port}" in executed[0]
    assert executed[0][executed[0].index("--") + 1 :] == [
        "--coordinator",
        str(tmp_path / "c"),
        "--hospital",
        str(tmp_path / "h"),
    ]


def test_a_busy_port_is_one_sentence(executed, tmp_path):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        done = CliRunner().invoke(cli.command, ["--coordinator", str(tmp_path), "--port", str(taken.getsockname()[1])])
    assert done.exit_code == 2
    assert "is in use" in done.output
    assert "--port" in done.output
    assert done.output.strip().count("\n") == 0
    assert executed == []


def test_an_address_of_another_machine_is_one_sentence(executed, tmp_path):
    done = CliRunner().invoke(cli.command, ["--coordinator", str(tmp_path), "--address", "192.0.2.1", "--open-without-signin"])
    assert done.exit_code == 2
    assert "not an address of this machine" in done.output


def test_nothing_to_show_is_one_sentence(executed):
    done = CliRunner().invoke(cli.command, [])
    assert done.exit_code == 2
    assert "nothing to show" in done.output
    assert executed == []


def test_behind_another_address_the_names_are_the_proxys():
    assert cli.host_names("0.0.0.0") == ()
    assert cli.host_names("ui.clinic.example") == ()
    assert cli.host_names("::1") == ("::1", "localhost")


def test_the_policy_allows_the_pages_own_inline_script_and_no_other():
    # the digest of an empty script is a known answer
    empty = "'sha256-47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU='"
    page = "<script></script><script src='a.js'></script>"
    assert script_digests(page) == (empty,)
    rules = policy(page, ("ws://127.0.0.1:8501",)).split("; ")
    assert f"script-src 'self' {empty}" in rules
    assert "connect-src 'self' ws://127.0.0.1:8501" in rules


def test_the_installed_streamlit_has_exactly_one_inline_script():
    assert len(script_digests(INDEX.read_text(encoding="utf-8"))) == 1


def test_the_command_line_gives_back_studies(tmp_path):
    given = Settings(studies=(tmp_path / "s", tmp_path / "t"))
    assert from_arguments(given.arguments()) == given
    assert load(write(tmp_path, 'studies = ["studies/a"]\n')).studies == (tmp_path / "studies" / "a",)
