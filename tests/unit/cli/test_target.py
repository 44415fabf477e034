"""Which server and key a command uses."""

from pathlib import Path

import pytest

from hostler.cli.exits import CommandFailed, Exit
from hostler.cli.target import Common, find_target

KEY = "hst_test_key"


@pytest.fixture
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("HOSTLER_URL", "HOSTLER_API_KEY", "HOSTLER_STATE_DIR"):
        monkeypatch.delenv(name, raising=False)
    (tmp_path / "up.json").write_text('{"url":"http://127.0.0.1:8101","pid":1,"started_at_s":2.0}')
    (tmp_path / "admin.key").write_text(f"{KEY}\n")
    return tmp_path


def test_url_and_key_come_from_the_state_folder(state: Path) -> None:
    target = find_target(Common(state_dir=state))
    assert (target.url, target.key) == ("http://127.0.0.1:8101", KEY)


def test_the_environment_names_the_state_folder(
    state: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOSTLER_STATE_DIR", str(state))
    assert find_target(Common()).key == KEY


def test_an_option_beats_the_environment_and_that_the_state_folder(
    state: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOSTLER_URL", "http://127.0.0.1:1111")
    monkeypatch.setenv("HOSTLER_API_KEY", "from-environment")
    from_environment = find_target(Common(state_dir=state))
    assert (from_environment.url, from_environment.key) == (
        "http://127.0.0.1:1111",
        "from-environment",
    )
    given = find_target(Common(state_dir=state, url="http://127.0.0.1:2222", key="given"))
    assert (given.url, given.key) == ("http://127.0.0.1:2222", "given")


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("http://localhost:8101", True),
        ("http://127.0.0.1:8101/v1/", True),
        ("http://127.0.0.1:9999", False),
        ("http://example.org:8101", False),
        ("https://127.0.0.1:8101", False),
    ],
)
def test_the_admin_key_is_shown_only_to_the_server_of_its_state_folder(
    state: Path, url: str, shown: bool
) -> None:
    target = find_target(Common(state_dir=state, url=url))
    assert target.key == (KEY if shown else None)


def test_a_pasted_base_url_may_end_in_v1(state: Path) -> None:
    assert find_target(Common(url="http://127.0.0.1:8101/v1")).url == "http://127.0.0.1:8101"


@pytest.mark.parametrize("url", ["127.0.0.1:8100", "ftp://a", "http://", "http://a:99999"])
def test_what_is_no_url_is_a_usage_error(state: Path, url: str) -> None:
    with pytest.raises(CommandFailed) as failed:
        find_target(Common(url=url))
    assert failed.value.exit_code is Exit.USAGE


def test_without_any_server_the_message_says_how_to_get_one(state: Path, tmp_path: Path) -> None:
    with pytest.raises(CommandFailed) as failed:
        find_target(Common(state_dir=tmp_path / "empty"))
    assert failed.value.exit_code is Exit.UNREACHABLE
    assert "hostler up" in failed.value.message


def test_a_damaged_record_counts_as_none(state: Path) -> None:
    (state / "up.json").write_text("{")
    with pytest.raises(CommandFailed):
        find_target(Common(state_dir=state))
