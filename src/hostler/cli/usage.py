"""`hostler usage`: who used how much of which model."""

import time
from datetime import UTC, datetime

from hostler.admin.messages import UsageList
from hostler.cli.api import Api
from hostler.cli.client import Client
from hostler.cli.exits import Exit
from hostler.cli.moments import moment_of
from hostler.cli.render import print_json, print_table
from hostler.cli.target import NO_OPTIONS, Common, find_target
from hostler.core.usage import Tokens, UsageBy, UsageRow


def usage(
    *,
    since: str | None = None,
    until: str | None = None,
    key_id: str | None = None,
    model: str | None = None,
    by: UsageBy | None = None,
    common: Common = NO_OPTIONS,
) -> int:
    """Requests and tokens, by key and model, or by hour or day.

    Example: `hostler usage --since 7d --by day`

    Parameters
    ----------
    since: str
        From this hour on: how long ago (`90m`, `24h`, `7d`), a date in UTC (`2026-11-01`), or Unix time.
    until: str
        Up to this hour, in the same forms. Left out: now.
    key_id: str
        Only this key.
    model: str
        Only this model.
    by: UsageBy
        What a line stands for. Left out: one key and one model.
    """
    now_s = time.time()
    query: dict[str, str | int] = {}
    for name, text in (("since", since), ("until", until)):
        if text:
            query[name] = moment_of(text, now_s, f"--{name}")
    given = {"key": key_id, "model": model, "by": by.value if by is not None else None}
    query.update((name, text) for name, text in given.items() if text)
    with Client(find_target(common)) as client:
        found = client.get("/api/v1/usage", UsageList, **query)
        keys = Api(client).all_keys() if not common.json else ()
    names = {one.key_id: one.name for one in keys}
    if common.json:
        print_json(found)
        return Exit.OK
    columns = [name for name in ("at", "key", "model") if _has(found.usage, name)]
    rows = [
        [*(_told(row, name, by, names) for name in columns), *_numbers(row)] for row in found.usage
    ]
    if len(rows) > 1:
        rows.append(["all", *([""] * (len(columns) - 1)), *_numbers(found.total)])
    heads = {
        "at": "DAY (UTC)" if by is UsageBy.DAY else "HOUR (UTC)",
        "key": "KEY",
        "model": "MODEL",
    }
    print_table(
        (*(heads[name] for name in columns), *_NUMBERS), rows, empty="nothing was used in that time"
    )
    return Exit.OK


# Private

_NUMBERS = ("REQUESTS", "FAILED", "PROMPT", "CACHED", "COMPLETION", "ESTIMATED")


def _has(rows: tuple[UsageRow, ...], name: str) -> bool:
    fields = {"at": "at_s", "key": "key_id", "model": "model"}
    return bool(rows) and getattr(rows[0], fields[name]) is not None


def _told(row: UsageRow, name: str, by: UsageBy | None, names: dict[str, str]) -> str:
    if name == "at":
        form = "%Y-%m-%d" if by is UsageBy.DAY else "%Y-%m-%d %H:%M"
        return datetime.fromtimestamp(row.at_s or 0, UTC).strftime(form)
    if name == "key":
        key_id = row.key_id or ""
        return f"{key_id} ({names[key_id]})" if names.get(key_id) else key_id
    return row.model or ""


def _numbers(tokens: Tokens) -> list[str]:
    values = (
        tokens.requests,
        tokens.failed,
        tokens.prompt_tokens,
        tokens.cached_tokens,
        tokens.completion_tokens,
        tokens.estimated,
    )
    return [f"{value:,}" for value in values]
