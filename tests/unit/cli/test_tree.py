"""The command tree as a whole."""

import re
from collections.abc import Callable, Iterator

import pytest
from cyclopts import App

from hostler.cli import main as tree
from hostler.cli.exits import Exit
from hostler.cli.main import main, make_app
from hostler.core.errors import ConfigError


def commands(app: App, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], App]]:
    """Every command that does something, with the words that reach it."""
    for name in app:
        if name.startswith("-"):
            continue
        child = app[name]
        if child.default_command is None:
            yield from commands(child, (*path, name))
        else:
            yield (*path, name), child


PATHS = [path for path, _ in commands(make_app())]
LOCAL = {"up", "controller", "gateway", "worker", "relay", "completion"}  # they talk to no server
LOCAL_PATHS = {("host", "join"), ("host", "run"), ("host", "status")}  # nor do these


@pytest.mark.parametrize("path", PATHS, ids=" ".join)
def test_every_command_has_help_with_an_example(
    path: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*path, "--help"]) == 0
    shown = re.sub(r"\s+", " ", capsys.readouterr().out)
    examples = [one.removeprefix("source <(") for one in shown.split("Example: ")[1:]]
    assert any(one.startswith(f"hostler {' '.join(path)}") for one in examples), shown


@pytest.mark.parametrize(
    "path",
    [path for path in PATHS if path[0] not in LOCAL and path not in LOCAL_PATHS],
    ids=" ".join,
)
def test_every_client_command_takes_json_url_key_and_state_dir(path: tuple[str, ...]) -> None:
    app = make_app()
    for word in path:
        app = app[word]
    arguments = app.assemble_argument_collection()
    names = {name for argument in arguments for name in argument.names}
    assert {"--json", "--url", "--key", "--state-dir"} <= names


def test_a_list_of_commands_says_what_each_is_for(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 0
    shown = capsys.readouterr().out
    for path in PATHS:
        line = next(row for row in shown.splitlines() if re.search(rf"│ {path[0]}\s", row))
        assert len(line.strip("│ ").split()) > 2, line


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_knows_every_command(shell: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["completion", "print", "--shell", shell]) == 0
    script = capsys.readouterr().out
    for path in PATHS:
        assert path[-1] in script


def test_logs_is_one_command_by_two_names(capsys: pytest.CaptureFixture[str]) -> None:
    app = make_app()
    assert app["logs"].default_command is app["model"]["logs"].default_command
    shown = []
    for path in (["logs"], ["model", "logs"]):
        assert main([*path, "--help"]) == 0
        shown.append(capsys.readouterr().out.partition("\n")[2])  # but for the line of usage
    assert shown[0] == shown[1]


def test_completion_knows_what_can_be_followed(capsys: pytest.CaptureFixture[str]) -> None:
    followers = {
        path
        for path, app in commands(make_app())
        if "-f" in {name for one in app.assemble_argument_collection() for name in one.names}
    }
    assert {("logs",), ("model", "logs"), ("events",)} <= followers
    assert main(["completion", "print", "--shell", "bash"]) == 0
    offered = re.findall(r"_c=\((.*)\)", capsys.readouterr().out)
    assert sum('"-f"' in one and '"--json"' in one for one in offered) == len(followers)


def test_an_error_of_ours_inside_a_group_is_one_line_and_a_fault_is_shown_whole(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def app_that_raises(*errors: Exception) -> Callable[[], App]:
        def failing() -> None:
            raise ExceptionGroup("tasks", [ExceptionGroup("inner", list(errors))])

        app = App(result_action="return_value")
        app.command(failing, name="fail")
        return lambda: app

    monkeypatch.setattr(tree, "make_app", app_that_raises(ConfigError("port: no")))
    assert main(["fail"]) == Exit.CONFIG
    assert capsys.readouterr().err == "hostler: port: no\n"
    monkeypatch.setattr(tree, "make_app", app_that_raises(ConfigError("x"), ValueError("y")))
    with pytest.raises(ExceptionGroup):
        main(["fail"])
