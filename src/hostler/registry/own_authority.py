"""The authority of one controller, as its settings name it; and where its control port is found."""

import time
from collections.abc import Callable
from pathlib import Path

from hostler.app.config import Config, tls_dir
from hostler.wire.authority import Authority, Given
from hostler.wire.names import machine_names, outside_address

_now_at_s = time.time  # Unix time: what certificates are about


def open_authority(config: Config, clock: Callable[[], float] = _now_at_s) -> Authority:
    """Return it, made when there is none; this machine's certificate is good afterwards.

    Raises:
        ConfigError, StartupError: as `Authority.open`.
    """
    control, given = config.control, None
    if control is not None and control.tls_ca:
        given = Given(
            ca=Path(control.tls_ca).expanduser(),
            ca_key=_path(control.tls_ca_key),
            cert=_path(control.tls_cert),
            key=_path(control.tls_key),
        )
    return Authority.open(tls_dir(config), own_names(config), given=given, clock=clock)


def own_names(config: Config) -> tuple[str, ...]:
    """What others may call this machine now, by the operator's word first."""
    return machine_names(_told_names(config))


def control_url(config: Config, port: int) -> str:
    """Where other machines find the control port: by the name that the operator gave, or an address."""
    control = config.control
    told = [*control.names, control.host] if control is not None else []
    host = next((name for name in told if name not in _ANY), "") or outside_address(machine_names())
    return f"https://{f'[{host}]' if ':' in host else host}:{port}"


# Private

_ANY = ("0.0.0.0", "::", "")


def _told_names(config: Config) -> list[str]:
    """What the operator calls this machine."""
    control = config.control
    given = [*control.names, control.host] if control is not None else []
    return [name for name in (*given, config.server.host) if name not in _ANY]


def _path(text: str) -> Path | None:
    return Path(text).expanduser() if text else None
