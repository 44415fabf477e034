"""The settings in use, one by one: value, meaning, origin. Read only; what is secret is never shown.

They are those of this machine's controller and gateways; hosts and gateways elsewhere have their own.
"""

import asyncio
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import msgspec

from hostler.admin.messages import Setting, SettingList
from hostler.admin.operation import Call
from hostler.app.comments import comments_of
from hostler.app.config import Config, ModelConfig, state_dir
from hostler.app.loading import Loaded, file_change
from hostler.app.origins import Origin
from hostler.app.section import Section, section_in
from hostler.catalog.catalog import Catalog
from hostler.core.errors import HostlerError
from hostler.engines.base import HIDDEN, hide_secrets
from hostler.manager.resolve import request_of, resolve


@dataclass(frozen=True, kw_only=True)
class Running:
    """What runs with which settings.

    loaded: what gateways use, and a controller that is started now. own: what this controller was started
    with.
    """

    loaded: Loaded
    own: Config


async def show_settings(call: Call) -> SettingList:
    return await asyncio.to_thread(lambda: settings_in_use(call.services.running()))


def default_settings() -> Running:
    """Of a controller that nobody gave any."""
    return Running(loaded=Loaded(config=Config()), own=Config())


def settings_in_use(running: Running) -> SettingList:
    """Return every setting, and what is not used yet."""
    origins = running.loaded.origins
    settings = tuple(_settings(running.loaded))
    mine = {one.name: one for one in _settings(Loaded(config=running.own))}
    notes = [*origins.not_taken]
    if changed := file_change(origins):
        notes.append(
            f"{changed}: `hostler gateway restart` takes [gateway], [limits] and most of [server], "
            "a new `hostler up` takes all"
        )
    for one in settings:
        before = mine.get(one.name)
        if before is not None and before.value != one.value:
            notes.append(
                f"{one.name}: gateways use it since they were renewed; the controller goes on with "
                f"{setting_text(before)}"
            )
    return SettingList(
        settings=settings, file=origins.file, read_at_s=origins.read_at_s, notes=tuple(notes)
    )


def setting_text(one: Setting) -> str:
    """A value as people read it: `8100`, `30.0 s`, `""`."""
    return f"{value_text(one.value)}{f' {one.unit}' if one.unit and one.value is not None else ''}"


def value_text(value: Any) -> str:
    """A value as JSON has it, but for a text, which needs no quotes; `not set` for nothing."""
    if value is None:
        return "not set"
    return value if isinstance(value, str) and value else msgspec.json.encode(value).decode()


def origin_text(origin: Origin) -> str:
    """Where a value came from, in words."""
    words = {
        "default": "default",
        "file": "config file",
        "environment": f"environment {origin.name}",
        "option": f"option {origin.name}",
        "setting": f"from {origin.name}",
        "program": "the program",
    }[origin.kind]
    through = f" (environment {', '.join(origin.variables)})" if origin.variables else ""
    return words + through


# Private

_UNITS = (("_bytes_per_s", "bytes/s"), ("_per_s", "per second"), ("_bytes", "bytes"), ("_s", "s"))
_USER = re.compile(r"(?<=://)[^/@\s]+(?=@)")
_MAY_HOLD_KEYS = (
    "models",
    "telemetry",
)  # what a text takes from the environment there is not shown


def _settings(loaded: Loaded) -> Iterator[Setting]:
    """Yield the settings section by section, in the order of the tree; models last."""
    config, of = loaded.config, loaded.origins.of
    top: list[Setting] = []
    sections: list[Setting] = []
    whole = msgspec.structs.replace(config, state_dir=str(state_dir(config)))
    for field in msgspec.structs.fields(Config):
        kind, value = section_in(field.type), getattr(whole, field.name)
        if isinstance(value, Section):
            sections += _of_section(field.name, value, of)
        elif kind is not None:
            told = (kind.__doc__ or "").splitlines()[0]
            top.append(
                Setting(name=field.name, section="", about=told, origin=_from(of, field.name))
            )
        elif field.name == "models":
            names = None if value is None else [one.name for one in value]
            top.append(_setting(Config, "", "models", names, of))
        else:
            top.append(_setting(Config, "", field.name, value, of))
    yield from top
    yield from sections
    for number, model in enumerate(config.models or ()):
        yield from _of_model(number, model, of)


def _of_section(section: str, value: Section, of: Mapping[str, Origin]) -> Iterator[Setting]:
    for name in value.__struct_fields__:
        yield _setting(type(value), section, name, getattr(value, name), of)


def _setting(
    kind: type[Section], section: str, name: str, value: Any, of: Mapping[str, Origin]
) -> Setting:
    full = f"{section}.{name}" if section else name
    defaults = {field.name: field.default for field in msgspec.structs.fields(kind)}
    origin = _from(of, full)
    is_hidden = name in kind.secret or (section in _MAY_HOLD_KEYS and bool(origin.variables))
    default = defaults[name]
    return Setting(
        name=full,
        section=section,
        value=_hidden(value) if is_hidden else _without_users(value),
        default=None if is_hidden or isinstance(default, msgspec.Struct) else default,
        unit=next((unit for end, unit in _UNITS if name.endswith(end)), ""),
        about=comments_of(kind).get(name, ""),
        secret=is_hidden,
        origin=origin,
    )


def _of_model(number: int, model: ModelConfig, of: Mapping[str, Origin]) -> Iterator[Setting]:
    """Yield what a `[[models]]` table says; the rest comes from the catalogue."""
    section = f"models.{model.name}"
    about = comments_of(ModelConfig)
    for field in model.__struct_fields__:
        value = getattr(model, field)
        if value is None or field == "name":
            continue
        given = value if isinstance(value, dict) else {"": value}
        shown = _params(model) if field == "params" else given
        for key, plain in given.items():
            name = f"{field}.{key}" if key else field
            origin = _from(of, f"models[{number}].{name}")
            is_hidden = (
                shown[key] == HIDDEN or bool(origin.variables) or name == "runtime_env.env_vars"
            )
            yield Setting(
                name=f"{section}.{name}",
                section=section,
                value=_hidden(plain) if is_hidden else _without_users(plain),
                about=about.get(field, ""),
                secret=is_hidden,
                origin=origin,
            )


def _params(model: ModelConfig) -> Mapping[str, Any]:
    """Its parameters, as they may be shown."""
    try:
        engine = resolve(request_of(model), Catalog(), origin="config").engine
    except HostlerError:
        engine = model.engine or ""
    return hide_secrets(engine, model.params or {})


def _from(of: Mapping[str, Origin], name: str) -> Origin:
    """The origin of a value; of a table or list, that of what is in it."""
    if name in of:
        return of[name]
    inner = (origin for key, origin in of.items() if key.startswith((f"{name}.", f"{name}[")))
    return next(inner, Origin())


def _hidden(value: Any) -> str:
    return "set" if value else "not set"


def _without_users(value: Any) -> Any:
    """The value without names and passwords that stand in addresses."""
    if isinstance(value, str):
        return _USER.sub(HIDDEN, value)
    if isinstance(value, Mapping):
        return {key: _without_users(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_without_users(one) for one in value]
    return value
