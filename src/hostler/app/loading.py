"""Loading: the settings tree, built once from defaults < TOML file < environment < options, and where each
value came from.

With app/environment.py this is the only reader of the environment.
"""

import difflib
import hashlib
import os
import re
import time
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_type_hints

import msgspec

from hostler.app.config import Config, tls_dir
from hostler.app.model_section import ModelConfig
from hostler.app.origins import Origin, OriginKind, Origins, leaves
from hostler.app.section import Section, section_in
from hostler.core.errors import ConfigError

# HOSTLER_URL, HOSTLER_API_KEY are the command line's; these are settings.
VARIABLES: Mapping[str, tuple[str, ...]] = {
    "HOSTLER_STATE_DIR": ("state_dir",),
    "HOSTLER_HOST": ("server", "host"),
    "HOSTLER_PORT": ("server", "port"),
    "HOSTLER_LOG_JSON": ("log_json",),
    "HOSTLER_STORE_URL": ("store", "url"),
}


@dataclass(frozen=True, kw_only=True)
class Loaded:
    """A settings tree, and where its values came from."""

    config: Config
    origins: Origins = field(default_factory=Origins)


def load_config(
    path: str | Path | None = None, overrides: Mapping[str, Any] | None = None
) -> Config:
    """Build the settings: defaults < file < `HOSTLER_*` < overrides (nested dicts, None left out).

    Raises:
        ConfigError: the file cannot be read or is not TOML; an unknown key (with the nearest known
            one); a value of the wrong type; an environment variable that is not set.
    """
    return read_settings(path, overrides).config


def read_settings(
    path: str | Path | None = None,
    overrides: Mapping[str, Any] | None = None,
    options: Mapping[str, str] | None = None,
) -> Loaded:
    """As `load_config`, with the origin of each value.

    options: which option of the command line an override is, by the setting's name: `server.port`.
    """
    given = overrides or {}
    origins = Origins(read_at_s=time.time())
    if path is not None and Path(path).suffix == ".json":
        data, origins = _read_record(Path(path))  # already whole: written by `write_settings`
        found = dict(origins.of)
    else:
        data, found = {}, {}
        if path is not None:
            data, found, digest = _read_toml(Path(path))
            file = str(Path(path).absolute())
            origins = msgspec.structs.replace(origins, file=file, digest=digest)
        _merge(data, _from_environment())
        for variable, keys in VARIABLES.items():
            if variable in os.environ:
                found[".".join(keys)] = Origin(kind=OriginKind.ENVIRONMENT, name=variable)
    _merge(data, given)
    for name, value in leaves(given):
        if value is not None:
            found[name] = _override(name, options or {})
    _check_keys(data, Config, "")
    try:
        plain = msgspec.convert(data, Config, strict=False)
    except msgspec.ValidationError as error:
        raise ConfigError(f"{path or 'settings'}: {error}") from error
    config = _with_own_certificate(plain)
    if config is not plain:
        own = Origin(kind=OriginKind.SETTING, name="server.tls")
        found |= {"server.tls_cert": own, "server.tls_key": own}
    return Loaded(config=config, origins=msgspec.structs.replace(origins, of=found))


def write_settings(loaded: Loaded, path: Path) -> None:
    """Write the effective settings for a child process of ours; `read_settings` reads them back."""
    for value, where in ((loaded.origins, _beside(path)), (loaded.config, path)):
        fresh = where.with_suffix(".new")
        fresh.touch(mode=0o600)
        fresh.write_bytes(msgspec.json.format(msgspec.json.encode(value)))
        fresh.replace(where)


def loaded_now(own: Loaded, path: Path | None) -> Loaded:
    """The settings in use: those that a supervisor has written there, perhaps anew; else one's own."""
    if path is None or path.suffix != ".json":
        return own
    try:
        return read_settings(path)
    except ConfigError:
        return own


def file_change(origins: Origins) -> str:
    """Say how the config file differs from what was read; "" where it does not, or there is none."""
    if not origins.digest:
        return ""
    try:
        now = _digest(Path(origins.file).read_bytes())
    except OSError as error:
        return f"config file {origins.file} cannot be read any more ({error.strerror})"
    if now == origins.digest:
        return ""
    return f"config file {origins.file} has changed since it was read"


# Private

_REFERENCE = re.compile(r"\$\{env:([A-Za-z_][A-Za-z0-9_]*)(?::-([^}]*))?\}")


def _with_own_certificate(config: Config) -> Config:
    """Say where the certificate of our own authority lies, if the server is to show it."""
    if not config.server.tls or config.server.tls_cert:
        return config
    folder = tls_dir(config)
    server = msgspec.structs.replace(
        config.server, tls_cert=str(folder / "cert.pem"), tls_key=str(folder / "key.pem")
    )
    return msgspec.structs.replace(config, server=server)


def _override(name: str, options: Mapping[str, str]) -> Origin:
    """Of a value that is neither in a file nor in the environment."""
    if name in options:
        return Origin(kind=OriginKind.OPTION, name=options[name])
    return Origin(kind=OriginKind.PROGRAM)


def _read_toml(path: Path) -> tuple[dict[str, Any], dict[str, Origin], str]:
    """Return what the file says, where that came from, and the file's digest."""
    try:
        content = path.read_bytes()
        data = tomllib.loads(content.decode())
    except OSError as error:
        raise ConfigError(f"config file {path}: cannot be read ({error.strerror})") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"config file {path}: not TOML: {error}") from error
    found = {
        name: Origin(kind=OriginKind.FILE, name=str(path.absolute()), variables=_named_in(value))
        for name, value in leaves(data)
    }
    expanded: dict[str, Any] = _expand(data, "")
    return expanded, found, _digest(content)


def _named_in(value: Any) -> tuple[str, ...]:
    """The variables that a value of the file names."""
    return tuple(dict.fromkeys(match[1] for match in _REFERENCE.finditer(repr(value))))


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _beside(path: Path) -> Path:
    return path.with_name("origins.json")


def _read_record(path: Path) -> tuple[dict[str, Any], Origins]:
    try:
        found: dict[str, Any] = msgspec.json.decode(path.read_bytes(), type=dict[str, Any])
        told = _beside(path)
        origins = (
            msgspec.json.decode(told.read_bytes(), type=Origins) if told.exists() else Origins()
        )
    except (OSError, msgspec.MsgspecError) as error:
        raise ConfigError(f"settings file {path}: cannot be read ({error})") from error
    return found, origins


def _expand(value: Any, where: str) -> Any:
    """Replace `${env:NAME:-default}` in every string."""
    if isinstance(value, dict):
        return {key: _expand(item, f"{where}.{key}".lstrip(".")) for key, item in value.items()}
    if isinstance(value, list):
        return [_expand(item, f"{where}[{n}]") for n, item in enumerate(value)]
    if not isinstance(value, str):
        return value

    def replace(match: re.Match[str]) -> str:
        name, default = match.groups()
        found = os.environ.get(name, default)
        if found is None:
            raise ConfigError(
                f"{where}: environment variable {name} is not set; set it, or write ${{env:{name}:-default}}"
            )
        return found

    return _REFERENCE.sub(replace, value)


def _from_environment() -> dict[str, Any]:
    data: dict[str, Any] = {}
    for variable, keys in VARIABLES.items():
        if (value := os.environ.get(variable)) is not None:
            place = data
            for key in keys[:-1]:
                place = place.setdefault(key, {})
            place[keys[-1]] = value
    return data


def _merge(into: dict[str, Any], over: Mapping[str, Any]) -> None:
    for key, value in over.items():
        if isinstance(value, Mapping) and isinstance(into.get(key, {}), dict):
            _merge(into.setdefault(key, {}), value)
        elif value is not None:
            into[key] = value


def _check_keys(data: Any, section: type[Section], where: str) -> None:
    """Refuse an unknown key and name the nearest known one."""
    if not isinstance(data, Mapping):
        return
    known = get_type_hints(section)
    for key, value in data.items():
        name = f"{where}{key}"
        if key not in known:
            near = difflib.get_close_matches(key, known, n=1, cutoff=0.5)
            hint = (
                f"did you mean {where}{near[0]}?" if near else f"known: {', '.join(sorted(known))}"
            )
            raise ConfigError(f"unknown setting {name}; {hint}")
        inner = section_in(known[key])
        if inner is not None:
            _check_keys(value, inner, f"{name}.")
        elif key == "models" and isinstance(value, list):
            for number, table in enumerate(value):
                _check_keys(table, ModelConfig, f"models[{number}].")
