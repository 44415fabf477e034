"""The command tree. A command's module is imported only when it runs, so that starting is quick."""

import os
import sys

from cyclopts import App, CycloptsError

from hostler.app.version import installed_version
from hostler.cli.exits import CommandFailed, Exit, exit_of_error
from hostler.core.errors import HostlerError

_HELP = """One endpoint for many AI models.

Start a server with `hostler up`; the other commands talk to it.
"""


def make_app() -> App:
    """Return the whole command tree."""
    app = App(
        name="hostler",
        help=_HELP,
        version_flags=["--version"],
        version=installed_version,
        help_format="markdown",
        result_action="return_value",
    )
    for group, commands in _COMMANDS.items():
        for name, where in commands.items():
            app.command(where, name=name, group=group)
    for about, parts in _FAMILIES:
        family = App(name=about[0], help=about[1], group=about[2])
        for name, where in parts.items():
            family.command(where, name=name)
        app.command(family)
    return app


def spell_out(given: list[str]) -> list[str]:
    """Return the words with what may be left out: `hostler gateway --inherit` runs one."""
    meant = {"gateway": "run", "requests": "list"}.get(given[0]) if given else None
    rest = given[1:]
    if meant and (not rest or rest[0].startswith("-")) and _HELP_FLAGS.isdisjoint(rest[:1]):
        return [given[0], meant, *rest]
    return given


def load_listed(app: App, given: list[str]) -> None:
    """Import the commands that a help page lists: it shows the first line of each one's docstring."""
    for word in given:
        if not word.startswith("-") and word in app:
            app = app[word]
    for name in app:
        if not name.startswith("-"):
            app[name]


def narrow_help(app: App, given: list[str]) -> None:
    """Let the help of a start or an update show the parameters of the one engine it is about."""
    if given[:1] != ["model"] or given[1:2] not in (["start"], ["update"]):
        return
    from hostler.cli.parameters import engine_meant, takes_parameters

    if (kind := engine_meant(given[2:])) is not None:
        family, name = app["model"], given[1]
        command = family[name].default_command
        assert command is not None
        del family[name]
        family.command(takes_parameters(command, (kind,)), name=name)


def main(arguments: list[str] | None = None) -> int:
    """Run one command and return its exit code; what went wrong is one message on stderr."""
    given = sys.argv[1:] if arguments is None else arguments
    given = spell_out(given)
    app = make_app()
    try:
        if not given or not _HELP_FLAGS.isdisjoint(given):
            load_listed(app, given)
            narrow_help(app, given)
        result = app(given, exit_on_error=False)
    except (CommandFailed, HostlerError) as error:
        return _explain(error)
    except BaseExceptionGroup as group:
        ours = group.subgroup((CommandFailed, HostlerError))
        if ours is None or len(_leaves(ours)) < len(_leaves(group)):
            raise  # a fault of ours: shown whole
        return _explain(_leaves(ours)[0])
    except KeyboardInterrupt:
        return Exit.INTERRUPTED
    except BrokenPipeError:
        # The reader of our output has left; what is still buffered must not fail once more at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return Exit.FAILED
    except CycloptsError:
        return Exit.USAGE  # it has said what is wrong
    return result if isinstance(result, int) else Exit.OK


# Private

_HELP_FLAGS = frozenset({"--help", "-h"})

# Group, then name: where it lives. The first line of its docstring is its line in `hostler --help`.
_COMMANDS = {
    "Server": {
        "up": "hostler.cli.up:up",
        "ps": "hostler.cli.ps:ps",
        "top": "hostler.cli.top:top",
        "events": "hostler.cli.events:events",
        "usage": "hostler.cli.usage:usage",
        "settings": "hostler.cli.settings:settings",
        "console": "hostler.cli.console:console",
    },
    "Models": {
        "logs": "hostler.cli.models:logs",  # as `model logs`, which stays
        "chat": "hostler.cli.chat:chat",
        "embed": "hostler.cli.ask:embed",
        "rerank": "hostler.cli.ask:rerank",
        "tokens": "hostler.cli.ask:tokens",
        "bench": "hostler.cli.bench:bench",
    },
    "This machine": {
        "doctor": "hostler.cli.doctor:doctor",
        "version": "hostler.cli.version:version",
    },
    "Single processes": {
        "controller": "hostler.cli.processes:controller",
        "relay": "hostler.cli.processes:relay",
        "worker": "hostler.cli.processes:worker",
    },
}
_FAMILIES = (
    (
        ("model", "Start, stop and look at models.", "Models"),
        {
            "start": "hostler.cli.start:start",
            "stop": "hostler.cli.models:stop",
            "update": "hostler.cli.changes:update",
            "restart": "hostler.cli.changes:restart",
            "list": "hostler.cli.models:list_models",
            "show": "hostler.cli.models:show",
            "logs": "hostler.cli.models:logs",
        },
    ),
    (
        ("requests", "Requests of the data plane: where they went, how they ended.", "Server"),
        {
            "list": "hostler.cli.requests:list_requests",
            "show": "hostler.cli.requests:show",
        },
    ),
    (
        ("key", "API keys.", "Server"),
        {
            "create": "hostler.cli.keys:create",
            "list": "hostler.cli.keys:list_keys",
            "revoke": "hostler.cli.keys:revoke",
        },
    ),
    (
        ("token", "Join tokens: how other machines are let in.", "Server"),
        {
            "create": "hostler.cli.join_tokens:create",
            "list": "hostler.cli.join_tokens:list_tokens",
            "revoke": "hostler.cli.join_tokens:revoke",
        },
    ),
    (
        ("gateway", "The data plane: run one alone, renew those of a server.", "Single processes"),
        {
            "run": "hostler.cli.processes:gateway",
            "list": "hostler.cli.gateways:list_gateways",
            "restart": "hostler.cli.gateways:restart",
        },
    ),
    (
        ("host", "Machines that work for a controller on another one.", "Server"),
        {
            "join": "hostler.cli.host_join:join_host",
            "run": "hostler.cli.host:run",
            "status": "hostler.cli.host:status",
            "list": "hostler.cli.hosts:list_hosts",
            "show": "hostler.cli.hosts:show",
            "drain": "hostler.cli.hosts:drain",
            "undrain": "hostler.cli.hosts:undrain",
            "remove": "hostler.cli.hosts:remove",
        },
    ),
    (
        ("completion", "Completion of commands in your shell.", "This machine"),
        {
            "install": "hostler.cli.completion:install",
            "print": "hostler.cli.completion:print_script",
        },
    ),
)


def _explain(error: BaseException) -> int:
    """Write an error of ours to stderr; return the exit code."""
    sys.stderr.write(f"hostler: {error}\n")
    if isinstance(error, CommandFailed):
        return error.exit_code
    return exit_of_error(error) if isinstance(error, HostlerError) else Exit.FAILED


def _leaves(group: BaseExceptionGroup[BaseException]) -> list[BaseException]:
    found: list[BaseException] = []
    for error in group.exceptions:
        found += _leaves(error) if isinstance(error, BaseExceptionGroup) else [error]
    return found
