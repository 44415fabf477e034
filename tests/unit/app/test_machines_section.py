"""The settings for more than one machine: `[control]`, and TLS with our own authority."""

from pathlib import Path
from typing import Any

import pytest

from hostler.app.config import Config, tls_dir
from hostler.app.loading import load_config, read_settings, write_settings
from hostler.app.machines_section import ControlConfig
from hostler.app.section import section_in
from hostler.core.errors import ConfigError
from hostler.registry.own_authority import control_url


def test_without_the_section_there_is_no_control_port() -> None:
    assert load_config().control is None
    assert load_config(None, {"control": {}}).control == ControlConfig()


def test_the_settings_of_a_child_process_are_those_of_its_parent(tmp_path: Path) -> None:
    told = {"state_dir": str(tmp_path), "server": {"tls": True}, "control": {"port": 0}}
    for settings in (read_settings(None, told), read_settings(None, {"state_dir": str(tmp_path)})):
        write_settings(settings, tmp_path / "settings.json")
        assert read_settings(tmp_path / "settings.json") == settings


def test_tls_of_our_own_names_its_files_and_a_given_certificate_goes_before(
    tmp_path: Path,
) -> None:
    own = load_config(None, {"state_dir": str(tmp_path), "server": {"tls": True}})
    assert own.server.is_tls
    assert own.server.tls_cert == str(tls_dir(own) / "cert.pem")
    given = {"tls": True, "tls_cert": "/a.pem", "tls_key": "/a.key"}
    assert load_config(None, {"server": given}).server.tls_cert == "/a.pem"


@pytest.mark.parametrize(
    ("control", "text"),
    [
        ({"prot": 1}, "unknown setting control.prot; did you mean control.port"),
        ({"tls_ca": "a"}, "tls_ca needs tls_ca_key"),
        ({"tls_cert": "a"}, "belong together"),
        ({"tls_cert": "a", "tls_key": "b"}, "need tls_ca, the authority"),
        ({"tls_ca_key": "a"}, "need tls_ca, the authority"),
        ({"names": ["https://a"]}, "is no DNS name"),
        ({"names": [""]}, "is no DNS name"),
    ],
)
def test_a_section_that_cannot_be_is_refused(control: dict[str, Any], text: str) -> None:
    with pytest.raises(ConfigError, match=text):
        load_config(None, {"control": control})


@pytest.mark.parametrize(
    ("control", "url"),
    [
        ({"names": ["ai.example.org", "10.0.0.1"]}, "https://ai.example.org:9"),
        ({"host": "10.0.0.7"}, "https://10.0.0.7:9"),
        ({"host": "::1"}, "https://[::1]:9"),
    ],
)
def test_other_machines_are_told_the_name_that_the_operator_gave(
    control: dict[str, Any], url: str
) -> None:
    assert control_url(load_config(None, {"control": control}), 9) == url


def test_without_a_name_they_are_told_an_address() -> None:
    config = load_config(None, {"control": {}})
    assert control_url(config, 9).startswith("https://")
    assert "0.0.0.0" not in control_url(config, 9)


def test_a_field_holds_a_section_or_none() -> None:
    kinds = {name: section_in(kind) for name, kind in Config.__annotations__.items()}
    assert kinds["control"] is ControlConfig
    assert [name for name in ("state_dir", "log_json", "models") if kinds[name]] == []
