"""`hostler up`: everything on this machine in one command, until Ctrl-C."""

import asyncio
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from hostler.app.auth import check_bind
from hostler.app.config import Config, state_dir
from hostler.app.loading import Loaded, read_settings
from hostler.app.outlet import never_waiting
from hostler.app.paths import StatePaths
from hostler.app.tasks import first_of
from hostler.app.telemetry import configure_logging, logger
from hostler.catalog.catalog import Catalog
from hostler.cli.announce import announcer
from hostler.cli.arrival import Arrival, Shown
from hostler.cli.exits import CommandFailed, Exit
from hostler.cli.places import Places, check_certificate
from hostler.cli.supervisor import StateLock, Supervisor, take_over, write_record
from hostler.core.errors import ConfigError, HostlerError, StartupError
from hostler.gateway.spans import check_telemetry
from hostler.manager.ray_place import check_ray
from hostler.manager.resolve import request_of, resolve

log = logger(__name__)


def up(
    *,
    host: Annotated[str | None, Parameter(help="Address to bind. [default: 127.0.0.1]")] = None,
    port: Annotated[
        int | None, Parameter(help="Port to bind; 0: a free one. [default: 8100]")
    ] = None,
    state_dir: Annotated[
        Path | None, Parameter(help="Where everything is kept. [env: HOSTLER_STATE_DIR]")
    ] = None,
    config: Annotated[Path | None, Parameter(help="TOML file with settings and models.")] = None,
    allow_remote: Annotated[
        bool | None, Parameter(negative=(), help="Let --host be an address others can reach.")
    ] = None,
    tls: Annotated[
        bool | None,
        Parameter(negative=(), help="Speak TLS, with our own authority, and let machines join."),
    ] = None,
    control_host: Annotated[
        str | None, Parameter(help="Address other machines join at. [default: 0.0.0.0]")
    ] = None,
    control_port: Annotated[
        int | None, Parameter(help="Port other machines join at; 0: a free one. [default: 8101]")
    ] = None,
    ray: Annotated[
        str | None,
        Parameter(help="Let Ray find machines: `auto`, or HOST:PORT of its head. Implies --tls."),
    ] = None,
    gateways: Annotated[
        int | None, Parameter(help="Gateway processes on the port; about one a core. [default: 1]")
    ] = None,
    json: Annotated[bool | None, Parameter(negative=(), help="Log in JSON lines.")] = None,
) -> int:
    """Run the server here: one endpoint, and the models that the config (or the catalogue) names.

    Example: `hostler up --port 8100 --config hostler.toml`

    Example: `hostler up --tls --host 0.0.0.0`, for more than one machine
    """
    tls = True if ray else tls
    server = {"host": host, "port": port, "allow_remote": allow_remote, "tls": tls}
    told = str(state_dir) if state_dir else None
    control = {"host": control_host, "port": control_port}
    has_control = tls or any(value is not None for value in control.values())
    flags = {
        **({"control": control} if has_control else {}),
        "ray": {"address": ray},
        "state_dir": told,
        "log_json": json,
        "server": server,
        "gateway": {"processes": gateways},
    }

    options = {**_OPTIONS, "server.tls": "--ray" if ray else "--tls"}

    def load() -> Loaded:
        return read_settings(config, flags, options)

    loaded = _checked(load)
    settings = loaded.config
    # A terminal that is stopped, or a pipe that nobody reads, must not stop the supervisor.
    sys.stdout, sys.stderr = never_waiting(sys.stdout), never_waiting(sys.stderr)
    configure_logging(
        json_lines=settings.log_json, level="INFO" if settings.log_json else "WARNING"
    )
    return asyncio.run(_up(loaded, load))


# Private


_OPTIONS = {
    "state_dir": "--state-dir",
    "log_json": "--json",
    "server.host": "--host",
    "server.port": "--port",
    "server.allow_remote": "--allow-remote",
    "control.host": "--control-host",
    "control.port": "--control-port",
    "ray.address": "--ray",
    "gateway.processes": "--gateways",
}


def _checked(load: Callable[[], Loaded]) -> Loaded:
    """Read the settings, and try what can be tried before anything starts."""
    try:
        loaded = load()
        settings = loaded.config
        check_bind(settings.server, has_key=True)
        _check_models(settings)
        check_telemetry(settings.telemetry)
        if settings.store.url:
            from hostler.storage.postgres import check_url

            check_url(settings.store.url)
        check_certificate(settings)
        check_ray(settings)
    except (ConfigError, StartupError) as error:
        raise CommandFailed(error.message, Exit.CONFIG) from error
    return loaded


def _check_models(settings: Config) -> None:
    """Refuse a `[[models]]` table that can never run here, before anything is started for it.

    Raises:
        ConfigError
    """
    catalog = Catalog()
    for model in settings.models or ():
        try:
            resolve(request_of(model), catalog, origin="config")
        except HostlerError as error:
            raise ConfigError(f"[[models]] {model.name}: {error.message}") from error


async def _up(loaded: Loaded, load: Callable[[], Loaded]) -> int:
    began_s = time.monotonic()
    settings = loaded.config
    paths = StatePaths(state_dir(settings))
    paths.create()
    with StateLock(paths):
        take_over(paths)
        places = Places(settings)
        with places.bound():
            supervisor = Supervisor(paths, loaded, places.socks, load, places.control, places.relay)
            url = places.url
            write_record(paths, url, control_url=places.control_url, ca=places.ca)
            try:
                return await _serve(supervisor, settings, paths, url, began_s)
            finally:
                paths.up_record.unlink(missing_ok=True)


async def _serve(
    supervisor: Supervisor, settings: Config, paths: StatePaths, url: str, began_s: float
) -> int:
    stop, hasten = asyncio.Event(), asyncio.Event()
    loop = asyncio.get_running_loop()

    def asked() -> None:
        (hasten if stop.is_set() else stop).set()

    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, asked)
    loop.add_signal_handler(signal.SIGHUP, supervisor.begin_renewal)
    async with supervisor.running():
        voice = announcer(json_lines=settings.log_json)
        with voice:
            arrival = Arrival(paths, voice, supervisor.failing)
            await first_of(arrival.wait(), stop.wait())
        while arrival.standby and not stop.is_set():
            voice.standing_by(url, arrival.standby)
            await first_of(arrival.until_it_leads(), stop.wait())
            began_s, voice = time.monotonic(), announcer(json_lines=settings.log_json)
            with voice:
                await first_of(_arrive_late(arrival, voice), stop.wait())
        if not stop.is_set():
            # a link that signs somebody in is for a person, not for a journal
            if sys.stdout.isatty():
                await arrival.take_ticket()
            voice.ready(url, paths, arrival, time.monotonic() - began_s)
            await stop.wait()
        voice.stopping()
        await first_of(supervisor.stop(), hasten.wait())
        supervisor.kill()
    return Exit.INTERRUPTED if hasten.is_set() else Exit.OK


async def _arrive_late(arrival: Arrival, shown: Shown) -> None:
    """As `arrival.wait`, of a controller that stood by: what goes wrong then does not end the server."""
    try:
        await arrival.wait_again(shown)
    except StartupError as error:
        log.error("up.not_ready", why=error.message)
