"""`hostler settings`: the settings in use, and where each value came from."""

import time
from collections.abc import Iterable
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from hostler.admin.messages import Setting, SettingList
from hostler.admin.settings import Running, origin_text, setting_text, settings_in_use
from hostler.app.config import environment
from hostler.app.loading import read_settings
from hostler.app.origins import OriginKind
from hostler.app.process import ProcessHandle
from hostler.cli.client import Client
from hostler.cli.exits import CommandFailed, Exit
from hostler.cli.render import print_json, print_notes, print_table
from hostler.cli.target import NO_OPTIONS, Common, find_target, read_up_record


def settings(
    words: Annotated[tuple[str, ...], Parameter(negative=())] = (),
    /,
    *,
    changed: Annotated[bool, Parameter(negative=())] = False,
    config: Path | None = None,
    common: Common = NO_OPTIONS,
) -> int:
    """The settings of the server, and where each value came from: default, file, environment, option.

    Without a server: those that `hostler up` would start with. What is secret is never shown.

    Example: `hostler settings gateway --changed`

    Parameters
    ----------
    words: tuple[str, ...]
        Only settings with one of these words in their names: `port`, `gateway.`; they are explained, too.
    changed: bool
        Only those that are not as built in.
    config: Path
        Read this file as `hostler up --config` would, whatever runs.
    """
    known = _read(config, common) if config or not _has_server(common) else _ask(common)
    _check_words(words, known.settings)
    shown = [one for one in known.settings if _is_wanted(one, words, is_changed=changed)]
    if common.json:
        print_json(
            SettingList(
                settings=tuple(shown),
                file=known.file,
                read_at_s=known.read_at_s,
                notes=known.notes,
            )
        )
        return Exit.OK
    print_notes(known.notes)
    if known.file:
        print(
            f"config file {known.file}, read {time.strftime('%F %T', time.localtime(known.read_at_s))}"
        )
    _show(shown, is_explained=bool(words))
    return Exit.OK


# Private


def _has_server(common: Common) -> bool:
    """One is named, or runs here."""
    if common.url or environment("HOSTLER_URL"):
        return True
    record = read_up_record(common.paths)
    return record is not None and ProcessHandle.of(record.pid) is not None


def _ask(common: Common) -> SettingList:
    with Client(find_target(common)) as client:
        return client.get("/api/v1/settings", SettingList)


def _read(config: Path | None, common: Common) -> SettingList:
    """What a server that is started now would use."""
    told = str(common.state_dir) if common.state_dir else None
    loaded = read_settings(config, {"state_dir": told}, {"state_dir": "--state-dir"})
    would = f"hostler up --config {config}" if config else "hostler up"
    print_notes([f"of no running server: what `{would}` would use"])
    return settings_in_use(Running(loaded=loaded, own=loaded.config))


def _is_wanted(one: Setting, words: Iterable[str], *, is_changed: bool) -> bool:
    if is_changed and one.origin.kind is OriginKind.DEFAULT:
        return False
    wanted = [word.lower() for word in words]
    return not wanted or any(word in one.name.lower() for word in wanted)


def _check_words(words: Iterable[str], known: Iterable[Setting]) -> None:
    """A word that no name has is a mistake. Raises CommandFailed with the nearest name."""
    names = [one.name for one in known]
    for word in words:
        if not any(word.lower() in name.lower() for name in names):
            last = {name.rpartition(".")[2]: name for name in names}
            near = get_close_matches(word.lower(), [*last, *names], n=1, cutoff=0.5)
            hint = (
                f"did you mean {last.get(near[0], near[0])}?"
                if near
                else "`hostler settings` lists all"
            )
            raise CommandFailed(f"no setting has {word!r} in its name; {hint}", Exit.NOT_FOUND)


def _show(shown: Iterable[Setting], *, is_explained: bool) -> None:
    columns = ["SETTING", "VALUE", "FROM", *(["WHAT"] if is_explained else [])]
    rows = [
        (
            one.name,
            setting_text(one),
            origin_text(one.origin),
            *([one.about] if is_explained else []),
        )
        for one in shown
    ]
    print_table(columns, rows, empty="nothing: all is as built in")
