"""Write docs/reference/ from the code: settings, commands, errors, the admin API.

python scripts/reference.py            write the pages
python scripts/reference.py --check    say which ones are not current; exit code 1 if any is
"""

import inspect
import sys
from collections.abc import Iterator
from enum import StrEnum
from pathlib import Path
from time import monotonic
from typing import get_args, get_origin

import msgspec

import hostler.core.trust  # noqa: F401  its errors are listed
from hostler.admin.operations import OPERATIONS
from hostler.admin.sight import GATEWAY_OPERATIONS
from hostler.app import config, loading
from hostler.app.comments import comments_of
from hostler.app.section import section_in
from hostler.cli.exits import Exit
from hostler.cli.main import make_app
from hostler.core.errors import all_errors
from hostler.core.model import ParameterDescription, describe
from hostler.engines.base import ENGINES
from hostler.gateway.gateway import Gateway
from hostler.registry.mirror import SnapshotMirror

FOLDER = Path(__file__).parents[1] / "docs" / "reference"
NOTE = "<!-- Written by scripts/reference.py; change the code, then run it. -->\n"


def pages() -> dict[str, str]:
    """Every page: file name and text."""
    return {
        "settings.md": settings(),
        "commands.md": commands(),
        "errors.md": errors(),
        "admin-api.md": admin_api(),
        "parameters.md": parameters(),
        "metrics.md": metrics(),
    }


def settings() -> str:
    """Each section of the settings tree with its defaults and the reasons beside them."""
    parts = [
        NOTE,
        "# Settings\n",
        "A TOML file given with `hostler up --config FILE`. A later source wins: defaults, file,",
        "environment, options. `${env:NAME}` and `${env:NAME:-default}` in a text are replaced from",
        "the environment. An unknown key is refused, with the nearest known one.\n",
        "## Environment\n",
        "| variable | setting |",
        "|---|---|",
        *(f"| `{name}` | `{'.'.join(keys)}` |" for name, keys in loading.VARIABLES.items()),
        "\n`HOSTLER_URL` and `HOSTLER_API_KEY` are read by client commands only.\n",
    ]
    for name, kind in _sections():
        parts += [f"## {name}\n"]
        parts += [inspect.cleandoc(kind.__doc__), ""] if kind.__doc__ else []
        parts += ["| key | type | default | why |", "|---|---|---|---|"]
        why = comments_of(kind)
        for field in msgspec.structs.fields(kind):
            shown = _default(field)
            if shown is None or section_in(field.type) is not None:
                continue
            type_name = _cell(_type_name(field.type))
            parts.append(
                f"| `{field.name}` | {type_name} | {shown} | {_cell(why.get(field.name, ''))} |"
            )
        parts.append("")
    return "\n".join(parts).rstrip() + "\n"


def commands() -> str:
    """Exit codes, and the help of every command."""
    reasons = comments_of(Exit)
    text = make_app().generate_docs("markdown", heading_level=2)
    return "\n".join(
        [
            NOTE,
            "# Commands\n",
            "Every client command finds the server and a key by itself: options, then the",
            "environment, then the state folder (`up.json`, `admin.key`). The key of a state folder",
            "is shown only to the server of that state folder.\n",
            "## Exit codes\n",
            "| code | meaning |",
            "|---|---|",
            *(f"| {code.value} | {_cell(reasons[code.name])} |" for code in Exit),
            "",
            text.rstrip(),
            "",
        ]
    )


def errors() -> str:
    """The error tree."""
    rows = [
        f"| {error.http_status} | `{error.code}` | `{error.openai_type}` | "
        f"{'yes' if error.retryable else 'no'} | {_cell((error.__doc__ or '').splitlines()[0])} |"
        for error in all_errors()
        if error.__module__.startswith("hostler.core.")
    ]
    return "\n".join(
        [
            NOTE,
            "# Errors\n",
            "Every refusal, of the gateway and of the admin API, is one OpenAI error object:",
            '`{"error": {"message": ..., "type": ..., "param": ..., "code": ...}}`. `code` never',
            "changes; the message is for people.\n",
            "| status | code | type | worth a retry | when |",
            "|---|---|---|---|---|",
            *dict.fromkeys(rows),
            "",
        ]
    )


def parameters() -> str:
    """What can be set for each engine of our own."""
    parts = [
        NOTE,
        "# Parameters of engines\n",
        "What can be set for a model. On the command line each is an option with dashes:",
        "`hostler model start NAME --context-length 8192`, also of `hostler model update`; in a",
        "configuration a key of `[models.params]`; in the API a field of `params`. The same descriptions",
        "make the options, the schema in `/api/v1/openapi.json` and this page.\n",
    ]
    for kind in ENGINES.values():
        parts += [f"## {kind.name}\n", kind.description, ""]
        described = describe(kind.parameters)
        if not described:
            parts += ["Nothing can be set.\n"]
            continue
        parts += [
            "| parameter | type | default | allowed | what it does |",
            "|---|---|---|---|---|",
        ]
        for one in described:
            default = "needed" if one.required else f"`{msgspec.json.encode(one.default).decode()}`"
            parts.append(
                f"| `{one.name}` | {one.type} | {default} | {_allowed(one)} "
                f"| {_cell(f'{one.label}. {one.help}')}{' Never shown.' if one.secret else ''} |"
            )
        parts.append("")
    return "\n".join(parts).rstrip() + "\n"


def metrics() -> str:
    """Every family of `GET /metrics`."""
    gateway = Gateway(config.Config(), SnapshotMirror("", monotonic), Path())
    rows = []
    for family in gateway.metrics.collect():
        name = f"{family.name}_total" if family.type == "counter" else family.name
        labels = ", ".join(f"`{label}`" for label in getattr(family, "_labelnames", ()))
        rows.append(f"| `{name}` | {family.type} | {labels} | {_cell(family.documentation)} |")
    return "\n".join(
        [
            NOTE,
            "# Metrics\n",
            "What `GET /metrics` says, in Prometheus's text format, to a key of scope `metrics`. Counters",
            "begin at 0 with the gateway's process; of several gateways each tells its own. `model` is a",
            "model of this server, or `other`; `route` is one of a fixed list; keys and clients are no",
            "labels. A histogram has `_bucket`, `_sum` and `_count`.\n",
            "| metric | type | labels | what |",
            "|---|---|---|---|",
            *sorted(rows),
            "",
        ]
    )


def admin_api() -> str:
    """The operations of the control plane."""
    return "\n".join(
        [
            NOTE,
            "# Admin API\n",
            "On the same port as the data plane. The OpenAPI document is at",
            "`/api/v1/openapi.json`.\n",
            "| method | address | scope of the key | what it does |",
            "|---|---|---|---|",
            *(
                f"| {one.method} | `{one.path.replace(':path', '')}` | `{one.scope}` | "
                f"{_cell(one.summary)} |"
                for one in (*OPERATIONS, *GATEWAY_OPERATIONS)
            ),
            "",
        ]
    )


def main() -> int:
    """Write the pages, or compare them."""
    stale = []
    for name, text in pages().items():
        path = FOLDER / name
        if "--check" not in sys.argv[1:]:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        elif not path.exists() or path.read_text() != text:
            stale.append(name)
    for name in stale:
        print(f"docs/reference/{name} is not current: run scripts/reference.py", file=sys.stderr)
    return 1 if stale else 0


# Private

_TOML_TYPES = {str: "string", int: "integer", float: "number", bool: "boolean"}


def _sections() -> Iterator[tuple[str, type[config.Section]]]:
    yield "At the top", config.Config
    for field in msgspec.structs.fields(config.Config):
        if (kind := section_in(field.type)) is not None:
            yield f"[{field.name}]", kind
    yield "[[models]]", config.ModelConfig


def _default(field: msgspec.structs.FieldInfo) -> str | None:
    """The default as TOML would write it; None for a section."""
    if field.required:
        return "needed"
    value = field.default if field.default is not msgspec.NODEFAULT else field.default_factory()
    if isinstance(value, msgspec.Struct):
        return None
    if value is None:
        return "the catalogue's"
    return f"`{msgspec.json.encode(value).decode()}`"


def _type_name(kind: object) -> str:
    """The type in TOML's words."""
    if isinstance(kind, type) and kind in _TOML_TYPES:
        return _TOML_TYPES[kind]
    some = [part for part in get_args(kind) if part is not type(None)]
    if get_origin(kind) is tuple:
        return (
            "array of tables"
            if some[0] is config.ModelConfig
            else f"array of {_type_name(some[0])}s"
        )
    if get_origin(kind) is dict:
        return "table"
    if isinstance(kind, type) and issubclass(kind, StrEnum):
        return "one of " + ", ".join(f"`{one.value}`" for one in kind)
    return _type_name(some[0])


def _allowed(one: ParameterDescription) -> str:
    """The range with its unit, or the choices."""
    if one.valid_values:
        return ", ".join(f"`{value}`" for value in one.valid_values)
    if one.minimum is None or one.maximum is None:
        return ""
    return f"{one.minimum} to {one.maximum}{f' {one.unit}' if one.unit else ''}"


def _cell(text: str) -> str:
    return text.replace("|", "\\|").strip()


if __name__ == "__main__":
    sys.exit(main())
