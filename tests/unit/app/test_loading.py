"""Where the value of each setting came from."""

from pathlib import Path

import pytest

from hostler.app.loading import file_change, load_config, loaded_now, read_settings, write_settings
from hostler.app.origins import Origin, OriginKind, leaves

FILE = """
[server]
port = 9000
cors_origins = ["http://localhost:3000"]

[gateway]
attempts = 5
processes = 2

[telemetry]
otlp_endpoint = "${env:COLLECTOR:-http://127.0.0.1:4318}"

[[models]]
name = "a"
params = { threads = 2 }
"""


def config_file(tmp_path: Path, text: str = FILE) -> Path:
    path = tmp_path / "hostler.toml"
    path.write_text(text)
    return path


def test_a_later_source_wins_and_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOSTLER_PORT", "9001")
    monkeypatch.setenv("HOSTLER_HOST", "::1")
    path = config_file(tmp_path)
    told = {"server": {"host": "127.0.0.2"}, "gateway": {"processes": None, "attempts": 7}}
    loaded = read_settings(path, told, {"server.host": "--host"})
    in_file = Origin(kind=OriginKind.FILE, name=str(path))
    assert loaded.config == load_config(path, told)
    assert loaded.origins.of == {
        "server.port": Origin(kind=OriginKind.ENVIRONMENT, name="HOSTLER_PORT"),
        "server.host": Origin(kind=OriginKind.OPTION, name="--host"),
        "server.cors_origins": in_file,
        "gateway.attempts": Origin(kind=OriginKind.PROGRAM),
        "gateway.processes": in_file,
        "telemetry.otlp_endpoint": Origin(
            kind=OriginKind.FILE, name=str(path), variables=("COLLECTOR",)
        ),
        "models[0].name": in_file,
        "models[0].params.threads": in_file,
    }


def test_what_follows_from_another_setting_says_so(tmp_path: Path) -> None:
    told = {"state_dir": str(tmp_path), "server": {"tls": True}}
    of = read_settings(None, told, {"server.tls": "--tls"}).origins.of
    assert of["server.tls_key"] == Origin(kind=OriginKind.SETTING, name="server.tls")
    assert of["server.tls"].name == "--tls"


def test_a_child_process_knows_the_origins_and_is_told_of_newer_ones(tmp_path: Path) -> None:
    path = config_file(tmp_path)
    record = tmp_path / "settings.json"
    write_settings(read_settings(path), record)
    own = read_settings(record)
    assert own == read_settings(record) == loaded_now(own, record)
    assert own.origins.of["server.port"].name == str(path)
    write_settings(read_settings(None), record)
    assert loaded_now(own, record).origins.of == {}
    record.unlink()
    assert loaded_now(own, record) == own
    assert {one.stat().st_mode & 0o777 for one in tmp_path.glob("*.json")} == {0o600}


def test_a_file_that_is_not_what_was_read_is_told(tmp_path: Path) -> None:
    path = config_file(tmp_path)
    origins = read_settings(path).origins
    path.touch()
    assert file_change(origins) == ""
    path.write_text("log_json = true")
    assert file_change(origins) == f"config file {path} has changed since it was read"
    path.unlink()
    assert "cannot be read any more (No such file" in file_change(origins)
    assert file_change(read_settings(None).origins) == ""


def test_the_leaves_of_tables() -> None:
    tables = {"a": {"b": 1, "c": {}}, "d": [], "e": [1, 2], "f": [{"g": None}, {"h": 3}]}
    assert dict(leaves(tables)) == {
        "a.b": 1,
        "a.c": {},
        "d": [],
        "e": [1, 2],
        "f[0].g": None,
        "f[1].h": 3,
    }
    assert list(leaves({})) == []
