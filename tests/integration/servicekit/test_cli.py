"""Commands that need no running server."""

import stat
from pathlib import Path

import pytest
import yaml

from servicekit.cli.main import main


@pytest.fixture(autouse=True)
def in_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("ARBOR_CONFIG", raising=False)


def test_init_makes_a_configuration_that_is_found_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["init", "--server-name", "example.org"]) == 0
    assert stat.S_IMODE((tmp_path / "data" / "signing.key").stat().st_mode) == 0o600
    key = (tmp_path / "data" / "signing.key").read_text()
    capsys.readouterr()
    assert main(["config", "--check"]) == 0
    shown = yaml.safe_load(capsys.readouterr().out)
    assert shown["server_name"] == "example.org"
    assert main(["init"]) == 2
    assert "--force" in capsys.readouterr().err
    assert main(["init", "--force", "--server-name", "example.org"]) == 0
    assert (tmp_path / "data" / "signing.key").read_text() == key, "a key is never replaced by init"


def test_init_refuses_what_would_not_start(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["init", "--server-name", "not a name"]) == 2
    assert "server_name" in capsys.readouterr().err
    assert not (tmp_path / "arbor.yaml").exists()


def test_flags_override_and_errors_name_the_key(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["config", "--check", "--set", "rooms.default_version=11", "--data-dir", "elsewhere"]) == 0
    shown = yaml.safe_load(capsys.readouterr().out)
    assert shown["rooms"]["default_version"] == "11"
    assert shown["data_dir"].endswith("elsewhere")
    assert main(["config", "--check", "--set", "rooms.default=11"]) == 2
    assert "rooms.default: unknown key" in capsys.readouterr().err
    assert main(["config", "--check", "--set", "rooms"]) == 2
    assert "KEY=VALUE" in capsys.readouterr().err


def test_secrets_are_not_printed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["config", "--check", "--set", "registration.shared_secret=hunter2"]) == 0
    assert "hunter2" not in capsys.readouterr().out


def test_the_reference_needs_no_valid_configuration(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["config", "--reference", "--set", "nonsense=1"]) == 0
    assert "default_version" in yaml.safe_load(capsys.readouterr().out)["rooms"]


def test_keys_are_made_once_and_rotated_on_demand(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["key", "generate", "--set", "server_names=[a.org, b.org]"]
    assert main(arguments) == 0
    first = capsys.readouterr().out
    assert [line.partition(":")[0] for line in first.splitlines()] == ["a.org", "b.org"]
    assert main(arguments) == 0
    assert capsys.readouterr().out == first
    assert main([*arguments, "--rotate"]) == 0
    assert first.splitlines()[0] not in capsys.readouterr().out
    assert (tmp_path / "data" / "signing.key.old").exists()


def test_a_user_cannot_be_made_without_a_server(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["user", "create", "alice", "--password", "wonderland"]) == 2
    assert "start it with `arbor run`" in capsys.readouterr().err
    assert main(["user", "create", "alice", "--password", "short"]) == 2
    assert "too short" in capsys.readouterr().err


def test_the_doctor_works_on_an_empty_directory(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor"]) == 0
    output = capsys.readouterr().out
    assert "no process runs" in output
    assert "not made yet" in output


def test_the_log_of_a_server_that_never_ran(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["log", "dead"]) == 0
    assert capsys.readouterr().out == "none\n"
    assert main(["log", "show"]) == 2
    assert "no server has run" in capsys.readouterr().err
