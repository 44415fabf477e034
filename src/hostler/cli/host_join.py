"""`hostler host join`, and `hostler worker --controller`: a machine joins once, then serves."""

import asyncio
import ipaddress
import re
import socket
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated

import msgspec
from cyclopts import Parameter

from hostler.app.config import Config, environment
from hostler.app.config import state_dir as _state_dir
from hostler.app.paths import StatePaths
from hostler.app.telemetry import configure_logging
from hostler.app.tokens import JOIN_VARIABLE, parse_token
from hostler.cli.exits import CommandFailed, Exit
from hostler.cli.host import HostDir, JsonLog, host_settings, serve
from hostler.cli.processes import ConfigFile
from hostler.core.errors import ConfigError, ControllerUnavailable, HostlerError
from hostler.core.hosts import JoinAnswer, Role
from hostler.engines.base import find_engine
from hostler.manager.host_rules import HostRules, facts, missing, startable
from hostler.manager.membership import Membership, load_membership, pin, save_membership
from hostler.registry.joining import join
from hostler.wire.identity import CA_FILE, CERT_FILE, KEY_FILE
from hostler.wire.listening import relay_socket
from hostler.wire.tls import describe, fingerprint_of

RELAY_PORT = 8102
GIVEN_FILES = (CA_FILE, CERT_FILE, KEY_FILE)

Controllers = Annotated[
    list[str],
    Parameter(
        name="--controller",
        help="The control port of the controller, https://HOST:8101; again for a standby of it.",
        negative=(),
    ),
]
Token = Annotated[
    str | None,
    Parameter(help=f"Of `hostler token create` there; used once. [env: {JOIN_VARIABLE}]"),
]
Name = Annotated[str | None, Parameter(help="What it is called. [default: its host name]")]
Address = Annotated[
    str | None,
    Parameter(help="IP address that gateways reach it by. [default: where it joins from]"),
]
Port = Annotated[int | None, Parameter(help="Of its relay, for gateways; 0: a free one.")]


def join_host(
    *,
    controller: Controllers,
    token: Token = None,
    name: Name = None,
    address: Address = None,
    port: Port = None,
    engines: Annotated[
        str | None, Parameter(help="Engines that may be started: a,b. [default: all installed]")
    ] = None,
    labels: Annotated[str | None, Parameter(help="For placing models: k=v,k2=v2.")] = None,
    memory: Annotated[str | None, Parameter(help="For its models in all: 16GiB.")] = None,
    folders: Annotated[
        str | None,
        Parameter(help="Folders where files given by path may lie: /a,/b. [default: anywhere]"),
    ] = None,
    environments: Annotated[
        str | None,
        Parameter(
            help="Folders where models' own interpreters and working folders may lie. [default: nowhere]"
        ),
    ] = None,
    variables: Annotated[
        str | None,
        Parameter(help="Variables that models may set: HF_*,MY_NAME. [default: none]"),
    ] = None,
    tls_ca: Annotated[
        Path | None,
        Parameter(help="PEM file of your own authority, where the controller has a given one."),
    ] = None,
    tls_cert: Annotated[
        Path | None, Parameter(help="This host's certificate by it, for ID.host.hostler.internal.")
    ] = None,
    tls_key: Annotated[Path | None, Parameter(help="Its key, PEM, unencrypted.")] = None,
    state_dir: HostDir = None,
    config: ConfigFile = None,
    json: JsonLog = None,
) -> int:
    """Join a controller on another machine, and serve there: it may start models here. Ctrl-C leaves.

    What was joined is remembered: the same command again, or `hostler host run`, goes on with it.
    Another token of the same controller joins anew.

    Example: `hostler host join --controller https://10.0.0.1:8101 --token hstj_...`
    """
    settings = host_settings(config, state_dir, json)
    rules = HostRules(
        engines=_engines(engines),
        folders=_folders(folders),
        memory_bytes=_bytes(memory),
        labels=_labels(labels),
        environments=_folders(environments),
        variables=_words(variables),
    )
    wished = Membership(
        host_id="",
        name=name or socket.gethostname(),
        controllers=pinned(controller),
        address=own_address(address),
        port=RELAY_PORT if port is None else check_port(port),
        rules=rules,
    )
    given = tuple(path for path in (tls_ca, tls_cert, tls_key) if path is not None)
    if len(given) not in (0, len(GIVEN_FILES)):
        raise CommandFailed(
            "--tls-ca, --tls-cert and --tls-key belong together: give all three, or none",
            Exit.USAGE,
        )
    return join_and_serve(settings, wished, token, given)


def join_and_serve(
    settings: Config, wished: Membership, token: str | None, given: tuple[Path, ...] = ()
) -> int:
    """Join as wished, or go on with what was joined before, and serve until asked to stop.

    given: the files of a given certificate, as in GIVEN_FILES; none: it is made by joining.

    Raises:
        CommandFailed, HostlerError: why not.
    """
    paths = StatePaths(_state_dir(settings))
    known = load_membership(paths.host_membership)
    if known is None and paths.database.exists():
        raise CommandFailed(
            f"state folder {paths.state_dir}: it is the one of a server (`hostler up`); a host needs its "
            "own: choose another with --state-dir",
            Exit.CONFLICT,
        )
    token = token or environment(JOIN_VARIABLE) or ""
    if known is not None:
        _check_same(known, wished, paths, token)
    paths.claim()  # before the port: another process of this host has that as well
    port = known.port if known is not None and wished.port == RELAY_PORT else wished.port
    sock = relay_socket(wished.address, port)
    wished = msgspec.structs.replace(wished, port=sock.getsockname()[1])
    goes_on = known is not None and not _is_over(paths)
    membership = None
    is_over = known is not None and known.is_over and bool(token)  # it may ask to be known again
    if known is None or not goes_on or is_over or _is_new(known, wished, token):
        try:
            membership = _join(paths, wished, token, given)
        except ControllerUnavailable:
            if known is None or not goes_on or _is_elsewhere(known, wished):
                raise
    if membership is None:
        assert known is not None
        membership = msgspec.structs.replace(
            wished,
            host_id=known.host_id,
            joined_at_s=known.joined_at_s,
            token_id=known.token_id,
        )
        sys.stderr.write(f"goes on as {known.name} ({known.host_id}), joined before\n")
    elif known is not None and known.host_id != membership.host_id:
        paths.host_orders.unlink(missing_ok=True)  # they were another's
    save_membership(paths.host_membership, membership)
    return serve(settings, paths, membership, sock)


def pinned(urls: Iterable[str]) -> tuple[str, ...]:
    """Return the controllers' URLs with addresses for names."""
    found = tuple(dict.fromkeys(pin(url.strip()) for one in urls for url in one.split(",")))
    if not found:
        raise CommandFailed("--controller: need https://HOST:PORT", Exit.USAGE)
    return found


def own_address(given: str | None) -> str:
    """Return an address that was given, in its usual form."""
    if not given:
        return ""
    try:
        return str(ipaddress.ip_address(given))
    except ValueError:
        raise CommandFailed(
            f"--address {given!r}: need an IP address; names are not resolved between machines",
            Exit.USAGE,
        ) from None


def check_port(port: int) -> int:
    """Return a port that may be one."""
    if not 0 <= port <= 65535:
        raise CommandFailed(f"--port {port}: need 1 to 65535, or 0 for a free one", Exit.USAGE)
    return port


def not_installed(name: str, lacks: Iterable[str]) -> str:
    """Say what an engine lacks on this machine."""
    return (
        f"engine {name!r} is not installed on this machine: {', '.join(lacks)} missing; "
        "`pip install 'hostler[cpu]'` brings our own"
    )


# Private


def _join(paths: StatePaths, wished: Membership, token: str, given: tuple[Path, ...]) -> Membership:
    if not token:
        raise CommandFailed(
            f"a join token is needed: --token, or {JOIN_VARIABLE} in the environment; "
            "`hostler token create` at the controller makes one",
            Exit.USAGE,
        )
    configure_logging(level="WARNING")
    _link_given(paths.tls_dir, given)
    said = facts(
        wished.name,
        wished.rules,
        paths.models_dir,
        engines_here=startable(wished.rules),
        promised_bytes=0,
    )
    role = Role.WORKER if wished.offer else Role.HOST

    async def first() -> tuple[str, JoinAnswer]:
        """The first controller that serves; a standby does not."""
        *others, last = wished.controllers
        for url in (*others, last):
            try:
                answer = await join(
                    url, token, role, said, wished.address, wished.port, paths.tls_dir,
                    given=bool(given),
                )  # fmt: skip
            except ControllerUnavailable as error:
                if url == last:
                    raise
                sys.stderr.write(f"hostler: {error.message}\n")
            else:
                return url, answer
        raise ControllerUnavailable()

    url, answer = asyncio.run(first())
    sys.stderr.write(f"joined {url} as {wished.name} ({answer.host_id})\n")
    return msgspec.structs.replace(
        wished,
        role=role,
        host_id=answer.host_id,
        joined_at_s=time.time(),
        token_id=parse_token(token).token_id,
    )


def _link_given(folder: Path, given: tuple[Path, ...]) -> None:
    """Let the tls folder name the operator's files, which are theirs to renew: links are never written."""
    if not given:
        return
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    for name, path in zip(GIVEN_FILES, given, strict=True):
        place = folder / name
        place.unlink(missing_ok=True)
        place.symlink_to(path.expanduser().absolute())


def _is_elsewhere(known: Membership, wished: Membership) -> bool:
    """Is the controller to be found at none of the places that were joined?"""
    return not set(known.controllers) & set(wished.controllers)


def _is_new(known: Membership, wished: Membership, token: str) -> bool:
    """Is this another token than it joined with, or another place of its controller?"""
    if _is_elsewhere(known, wished):
        return True
    return bool(token and known.token_id) and parse_token(token).token_id != known.token_id


def _is_of_its_authority(paths: StatePaths, token: str) -> bool:
    """Is the token one of the controller that this folder has joined, wherever that is found now?"""
    try:
        return parse_token(token).fingerprint == fingerprint_of(
            (paths.tls_dir / CA_FILE).read_text()
        )
    except (OSError, ValueError, HostlerError):
        return False


def _check_same(known: Membership, wished: Membership, paths: StatePaths, token: str) -> None:
    """A folder belongs to one controller, and to one kind of work."""
    if (known.offer is None) != (wished.offer is None) or (
        known.offer is not None
        and wished.offer is not None
        and known.offer.model_name != wished.offer.model_name
    ):
        what = f"brings model {known.offer.model_name!r}" if known.offer else "takes orders"
        raise CommandFailed(
            f"state folder {paths.state_dir}: this machine {what} from there as {known.name} "
            f"({known.host_id}); choose another with --state-dir",
            Exit.CONFLICT,
        )
    if _is_elsewhere(known, wished) and not _is_of_its_authority(paths, token):
        raise CommandFailed(
            f"state folder {paths.state_dir}: it has joined {known.controllers[0]} as {known.name} "
            f"({known.host_id}), not {wished.controllers[0]}; to join another controller choose another "
            "folder with --state-dir, or remove this one",
            Exit.CONFLICT,
        )


def _is_over(paths: StatePaths) -> bool:
    """Is there no good certificate any more, so that only joining anew helps?"""
    try:
        ends_at_s = describe(paths.tls_dir / CERT_FILE, paths.tls_dir / KEY_FILE).ends_at_s
        return ends_at_s is None or ends_at_s < time.time()
    except (OSError, ConfigError):
        return True


def _engines(given: str | None) -> tuple[str, ...]:
    names = _words(given)
    for name in names:
        try:
            kind = find_engine(name)
        except HostlerError as error:
            raise CommandFailed(f"--engines: {error.message}", Exit.USAGE) from error
        if not kind.implementation:
            raise CommandFailed(
                f"--engines: {name!r} runs in no process; servers given by URL need no host",
                Exit.USAGE,
            )
        if lacks := missing(kind):
            raise CommandFailed(not_installed(name, lacks), Exit.CONFIG)
    return names


def _labels(given: str | None) -> dict[str, str]:
    found = {}
    for word in _words(given):
        key, is_pair, value = word.partition("=")
        if not is_pair or not key.strip():
            raise CommandFailed(f"--labels {word!r}: need key=value", Exit.USAGE)
        found[key.strip()] = value.strip()
    return found


def _bytes(given: str | None) -> int | None:
    if given is None:
        return None
    match = _SIZE.fullmatch(given.strip())
    if match is None:
        raise CommandFailed(f"--memory {given!r}: need a size like 16GiB or 800MiB", Exit.USAGE)
    return int(float(match[1]) * _UNITS[(match[2] or "").lower()])


def _folders(given: str | None) -> tuple[str, ...]:
    return tuple(str(Path(one).expanduser().absolute()) for one in _words(given))


def _words(given: str | None) -> tuple[str, ...]:
    return tuple(word.strip() for word in (given or "").split(",") if word.strip())


_SIZE = re.compile(r"([0-9]+(?:\.[0-9]+)?)\s*([KMGT]i?B?|B)?", re.IGNORECASE)
_UNITS = {"": 1, "b": 1}
for _power, _letter in enumerate("kmgt", start=1):
    _UNITS |= {_letter: 1024**_power, f"{_letter}ib": 1024**_power, f"{_letter}i": 1024**_power}
    _UNITS[f"{_letter}b"] = 1000**_power
