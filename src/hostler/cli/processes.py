"""`hostler controller`, `hostler gateway`, `hostler worker`: the single processes, run alone."""

import asyncio
import signal
import socket
import sys
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AsyncExitStack
from functools import partial
from pathlib import Path
from typing import Annotated

import uvloop
from cyclopts import Parameter

from hostler.app.auth import check_bind
from hostler.app.config import Config, ServerConfig, environment
from hostler.app.config import state_dir as _state_dir
from hostler.app.loading import load_config, loaded_now, read_settings
from hostler.app.orphan import orphan_watch
from hostler.app.paths import StatePaths
from hostler.app.pulse import takes_connections, telling
from hostler.app.telemetry import configure_logging
from hostler.app.tokens import JOIN_VARIABLE
from hostler.cli.exits import CommandFailed, Exit
from hostler.core.errors import HostlerError, StartupError
from hostler.core.model import WorkerType
from hostler.core.worker import WorkerStartupRequest

ConfigFile = Annotated[Path | None, Parameter(name="--config", help="TOML file with settings.")]
StateDir = Annotated[str | None, Parameter(name="--state-dir", help="Where everything is kept.")]
Supervised = Annotated[
    bool,
    Parameter(name="--supervised", negative="", help="End some time after the parent process has."),
]


def controller(
    *,
    config: ConfigFile = None,
    state_dir: StateDir = None,
    inherit: Annotated[
        bool, Parameter(negative="", help="Standard input is the control port's listening socket.")
    ] = False,
    relay_port: Annotated[
        int, Parameter(help="Where the relay before the models here is, for other machines.")
    ] = 0,
    supervised: Supervised = False,
) -> int:
    """Run the control plane alone: wishes, workers and the admin API on a Unix socket.

    Example: `hostler controller --state-dir /var/lib/hostler`
    """
    from hostler.admin.process import run_controller
    from hostler.wire.listening import control_socket

    loaded = read_settings(config, {"state_dir": state_dir}, {"state_dir": "--state-dir"})
    settings = loaded.config
    paths = StatePaths(_state_dir(settings))
    sock = socket.socket(fileno=0) if inherit else None
    if settings.control is not None and sock is None:
        sock = control_socket(settings.control)

    async def main(stop: asyncio.Event, hasten: asyncio.Event) -> None:
        in_use = partial(loaded_now, loaded, config)
        await run_controller(settings, stop, hasten, sock, relay_port, in_use)

    return _run(
        settings,
        main,
        paths,
        lambda: takes_connections(paths.admin_socket),
        supervised=supervised,
    )


def gateway(
    *,
    config: ConfigFile = None,
    state_dir: StateDir = None,
    inherit: Annotated[
        bool, Parameter(negative="", help="Standard input is the listening socket.")
    ] = False,
    number: Annotated[int, Parameter(help="Which one of several it is, from 1.")] = 1,
    column: Annotated[
        int | None, Parameter(help="Its column on the board of this machine's gateways.")
    ] = None,
    successor: Annotated[
        bool, Parameter(negative="", help="Serve only once the controller has told everything.")
    ] = False,
    controller: Annotated[
        tuple[str, ...],
        Parameter(
            negative=(),
            help="Follow this controller on another machine, https://HOST:8101; again for a standby of it.",
        ),
    ] = (),
    token: Annotated[
        str | None, Parameter(help=f"To join it, the first time. [env: {JOIN_VARIABLE}]")
    ] = None,
    supervised: Supervised = False,
) -> int:
    """Run the data plane alone: the OpenAI-compatible endpoint. It needs a controller to follow.

    SIGTERM: finish what is under way and end. SIGHUP: the same, when another gateway has taken over.

    Example: `hostler gateway run --state-dir /var/lib/hostler`
    Example: `hostler gateway run --controller https://10.0.0.5:8101 --token hstj_...`
    """
    from hostler.gateway.process import Place, run_gateway
    from hostler.wire.listening import listening_socket

    settings = load_config(config, {"state_dir": state_dir})
    if controller:
        return _distant_gateway(settings, controller, token or environment(JOIN_VARIABLE))
    paths = StatePaths(_state_dir(settings))
    if supervised:
        paths.create()
    else:
        paths.claim_gateway(number)
    sock = socket.socket(fileno=0) if inherit else listening_socket(settings.server)

    place = Place(number=number, is_successor=successor, column=column)

    async def main(stop: asyncio.Event, hasten: asyncio.Event) -> None:
        asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, place.leave.set)
        await run_gateway(paths, settings, sock, stop, hasten, place)

    return _run(settings, main, paths, place.serves.is_set, supervised=supervised)


def relay(
    *,
    config: ConfigFile = None,
    state_dir: StateDir = None,
    inherit: Annotated[
        bool, Parameter(negative="", help="Standard input is the listening socket.")
    ] = False,
    host: Annotated[str, Parameter(help="Address to bind.")] = "127.0.0.1",
    port: Annotated[int, Parameter(help="Port to bind; 0: a free one.")] = 0,
    supervised: Supervised = False,
) -> int:
    """Run what stands before the engines of this machine for gateways on others, over TLS.
    `hostler up --tls` starts it.

    Example: `hostler relay --state-dir /var/lib/hostler --port 8102`
    """
    from hostler.wire.listening import listening_socket
    from hostler.worker.relaying import run_relay

    settings = load_config(config, {"state_dir": state_dir})
    paths = StatePaths(_state_dir(settings))
    bound = ServerConfig(host=host, port=port)
    sock = socket.socket(fileno=0) if inherit else listening_socket(bound)
    serves = asyncio.Event()

    async def main(stop: asyncio.Event, hasten: asyncio.Event) -> None:
        await run_relay(paths, settings, sock, stop, hasten, serves)

    return _run(settings, main, paths, serves.is_set, supervised=supervised)


def worker(
    *,
    spec: Annotated[Path | None, Parameter(help="JSON file written by a controller.")] = None,
    controller: Annotated[
        tuple[str, ...],
        Parameter(
            negative=(),
            help="Bring this worker to the controller with this control port, https://HOST:8101.",
        ),
    ] = (),
    token: Annotated[
        str | None,
        Parameter(help=f"To join with, once; of role worker. [env: {JOIN_VARIABLE}]"),
    ] = None,
    name: Annotated[str | None, Parameter(help="The model's name, as requests name it.")] = None,
    worker_type: Annotated[
        WorkerType | None, Parameter(name="--type", help="What it does. [default: llm]")
    ] = None,
    engine: Annotated[str | None, Parameter(help="Who runs it.")] = None,
    source: Annotated[str | None, Parameter(help="wheel:, hf:, https: or a path here.")] = None,
    param: Annotated[
        tuple[str, ...], Parameter(negative=(), help="A parameter of the engine, NAME=VALUE.")
    ] = (),
    concurrency: Annotated[int | None, Parameter(help="Requests at once.")] = None,
    alias: Annotated[tuple[str, ...], Parameter(negative=(), help="Another name.")] = (),
    address: Annotated[
        str | None, Parameter(help="IP address that gateways reach this machine by.")
    ] = None,
    port: Annotated[int, Parameter(help="Of its relay, for gateways; 0: a free one.")] = 0,
    state_dir: StateDir = None,
    config: ConfigFile = None,
    json: Annotated[bool | None, Parameter(negative=(), help="Log in JSON lines.")] = None,
) -> int:
    """Load one model here and bring it to a controller on another machine. Ctrl-C drains and leaves.

    It joins, loads, offers the model, and serves until it is drained. `--spec` is for controllers alone.

    Example: `hostler worker --controller https://10.0.0.1:8101 --token hstj_... --name qwen --source /m.gguf`
    """
    if spec is not None:
        from hostler.cli.specified import run_spec

        run_spec(spec)
    if not controller or name is None:
        raise CommandFailed("need --controller and --name, and a --token", Exit.USAGE)
    from hostler.cli.bring import bring

    request = WorkerStartupRequest(
        model=name,
        worker_type=worker_type,
        engine=engine,
        source=source,
        concurrency=concurrency,
        aliases=alias or None,
    )
    return bring(
        request,
        param,
        controllers=list(controller),
        token=token,
        address=address,
        port=port,
        state_dir=Path(state_dir) if state_dir else None,
        config=config,
        json=json,
    )


Main = Callable[[asyncio.Event, asyncio.Event], Awaitable[None]]


def until_asked(main: Main) -> int:
    """Run `main` in a loop of its own; SIGTERM and SIGINT set its first event, the next one the second."""

    async def body() -> None:
        stop, hasten = asyncio.Event(), asyncio.Event()
        loop = asyncio.get_running_loop()

        def asked() -> None:
            (hasten if stop.is_set() else stop).set()

        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, asked)
        await main(stop, hasten)

    try:
        uvloop.run(body())
    except BaseExceptionGroup as group:
        sys.stderr.write(f"hostler: {_first(group)}\n")
        raise
    return Exit.OK


# Private


def _distant_gateway(settings: Config, urls: Sequence[str], token: str | None) -> int:
    """Follow a controller on another machine, with a folder and a certificate of one's own."""
    from hostler.cli.distant import belong, distant_paths
    from hostler.gateway.joining import forget, renewing
    from hostler.gateway.process import Place, run_gateway
    from hostler.manager.membership import endpoint_of
    from hostler.wire.listening import listening_socket

    paths = distant_paths(settings)
    paths.claim_gateway(1)
    joined = belong(paths, urls, token)
    check_bind(settings.server, has_key=True)
    sock, place = listening_socket(settings.server), Place()

    async def main(stop: asyncio.Event, hasten: asyncio.Event) -> None:
        async with renewing(joined, paths.tls_dir):
            where = [endpoint_of(url) for url in joined.controllers]
            try:
                await run_gateway(paths, settings, sock, stop, hasten, place, where)
            except StartupError:  # it was removed: the next start may join again
                forget(paths)
                raise

    try:
        return _run(settings, main, paths, place.serves.is_set, supervised=False)
    finally:
        paths.leave()


def _run(
    settings: Config,
    main: Main,
    paths: StatePaths,
    serves: Callable[[], bool],
    *,
    supervised: bool,
) -> int:
    """Run a server until SIGTERM or SIGINT; a second one hastens the end.

    serves: whether it has started to.
    """
    configure_logging(json_lines=settings.log_json)

    async def supervised_main(stop: asyncio.Event, hasten: asyncio.Event) -> None:
        async with AsyncExitStack() as stack:
            if supervised:
                await stack.enter_async_context(orphan_watch(stop, settings.life.orphan_grace_s))
                await stack.enter_async_context(telling(paths.pulse_socket, serves))
            await main(stop, hasten)

    return until_asked(supervised_main)


def _first(group: BaseExceptionGroup[BaseException]) -> str:
    error: BaseException = group
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return str(error) if isinstance(error, HostlerError) else f"{type(error).__name__}: {error}"
