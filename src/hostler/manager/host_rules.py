"""HostRules: what the operator of a machine lets controllers start on it, and what the machine is like."""

import os
import shutil
from collections.abc import Iterable, Mapping
from fnmatch import fnmatchcase
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

import msgspec

from hostler.app.version import installed_version
from hostler.catalog.address import PathAddress, parse_source
from hostler.catalog.needs import free_memory_bytes
from hostler.core.deployment import Deployment
from hostler.core.errors import HostRefuses
from hostler.core.hosts import HostFacts, Order
from hostler.core.placing import Held
from hostler.engines.base import EngineKind, check_parameters, engines, find_engine

_NVIDIA = Path("/proc/driver/nvidia/gpus")


class HostRules(msgspec.Struct, frozen=True, kw_only=True):
    """What may be started here.

    engines: by name; none: all that are installed. folders: where files given by path may lie; none:
    anywhere. memory_bytes: what its models may take in all. labels: told to those who place models.
    environments: folders where interpreters and working folders of models' own may lie; none: none.
    variables: that a model may set, by name, `*` at the end of one for all that begin so; none: none.
    """

    engines: tuple[str, ...] = ()
    folders: tuple[str, ...] = ()
    memory_bytes: int | None = None
    labels: Mapping[str, str] = {}
    environments: tuple[str, ...] = ()
    variables: tuple[str, ...] = ()


def accept(order: Order, rules: HostRules) -> Deployment:
    """Return an order as a wish for one process here.

    Raises:
        HostRefuses: its engine or the place of its files is not allowed, the engine is not installed, or
            what was chosen for it cannot be.
        BadRequest: it has a name, a source or parameters that this Hostler does not take.
    """
    deployment = Deployment(
        name=order.model_name,
        worker_type=order.worker_type,
        engine=order.engine,
        source=order.source,
        concurrency=order.concurrency,
        params=order.params,
        upstream_model=order.upstream_model,
        generation=order.generation,
        process_generation=order.generation,
    )
    _check_engine(order, rules)
    _check_held(order.held, rules)
    kind = find_engine(order.engine)
    check_parameters(kind, order.params)
    if kind.needs_files:
        _check_place(order, rules)
    return deployment


def startable(rules: HostRules) -> tuple[str, ...]:
    """Return the engines that are installed and allowed here."""
    return tuple(
        kind.name
        for kind in sorted(engines().values(), key=lambda kind: kind.name)
        if kind.implementation and _allows(rules, kind.name) and not missing(kind)
    )


def missing(kind: EngineKind) -> tuple[str, ...]:
    """Return the distributions that an engine needs and that are not installed."""
    return tuple(name for name in kind.requires if not _is_installed(name))


def facts(
    name: str,
    rules: HostRules,
    models_dir: Path,
    *,
    engines_here: tuple[str, ...],
    promised_bytes: int,
) -> HostFacts:
    """Say what this machine is like now.

    engines_here: as `startable` says: what is installed changes with a new process alone.
    promised_bytes: what its models were promised.
    """
    free = free_memory_bytes()
    if rules.memory_bytes is not None:
        left = max(0, rules.memory_bytes - promised_bytes)
        free = left if free is None else min(free, left)
    return HostFacts(
        name=name,
        version=installed_version(),
        cpus=len(os.sched_getaffinity(0)),
        memory_bytes=_memory_bytes(rules),
        memory_free_bytes=free,
        disk_free_bytes=_disk_free_bytes(models_dir),
        load_1m=_load(),
        gpus=_gpus(),
        engines=engines_here,
        labels=rules.labels,
        folders=rules.folders,
    )


def has_changed(told: HostFacts | None, now: HostFacts) -> bool:
    """Whether facts are worth telling again: what is free moves all the time."""
    if told is None:
        return True
    quiet = {"memory_free_bytes": None, "disk_free_bytes": None, "load_1m": None}
    if msgspec.structs.replace(told, **quiet) != msgspec.structs.replace(now, **quiet):
        return True
    return any(
        _moved(getattr(told, field), getattr(now, field), least)
        for field, least in (
            ("memory_free_bytes", _WORTH_TELLING),
            ("disk_free_bytes", _WORTH_TELLING),
            ("load_1m", _LOAD_WORTH_TELLING),
        )
    )


# Private

_WORTH_TELLING = 64 << 20
_LOAD_WORTH_TELLING = 0.25


def _check_engine(order: Order, rules: HostRules) -> None:
    if not _allows(rules, order.engine):
        raise HostRefuses(
            f"engine {order.engine!r} is not allowed on this host, which allows "
            f"{_listed(rules.engines)} (`--engines` of `hostler host join`)"
        )
    kind = engines().get(order.engine)
    if kind is None or not kind.implementation:
        raise HostRefuses(
            f"engine {order.engine!r} is not known on this host (Hostler {installed_version()}), which "
            f"has {_listed(startable(rules))}"
        )
    if (lacks := missing(kind)) and not order.held.python:
        raise HostRefuses(
            f"engine {order.engine!r} is not installed on this host: {_listed(lacks)} missing; "
            "install it there and start the host again"
        )


def _check_place(order: Order, rules: HostRules) -> None:
    """Links are followed first: what counts is where a file is, not how it is called."""
    for address in parse_source(order.source):
        if not isinstance(address, PathAddress):
            continue
        path = Path(os.path.realpath(address.path))
        inside = [Path(os.path.realpath(folder)) for folder in rules.folders]
        if inside and not any(path.is_relative_to(folder) for folder in inside):
            raise HostRefuses(
                f"source {order.source!r}: this host takes files in {_listed(rules.folders)} alone "
                "(`--folders` of `hostler host join`)"
            )


def _check_held(held: Held, rules: HostRules) -> None:
    if problem := held.problem():
        raise HostRefuses(f"what was chosen for it cannot be: {problem}")
    for name in held.env_vars:
        if not any(fnmatchcase(name, pattern) for pattern in rules.variables):
            raise HostRefuses(
                f"variable {name}: this host lets a model set {_listed(rules.variables)} "
                "(`--variables` of `hostler host join`)"
            )
    inside = [Path(os.path.realpath(folder)) for folder in rules.environments]
    # an interpreter may be a link out of there, as in every virtual environment; its folder may not
    for path, folder in ((held.python, os.path.dirname(held.python)), (held.folder, held.folder)):
        place = Path(os.path.realpath(folder))
        is_inside = any(place.is_relative_to(one) for one in inside)
        if path and not (is_inside and os.path.exists(path)):
            raise HostRefuses(
                f"{path}: this host takes environments in {_listed(rules.environments)} alone, and only "
                "those that are there (`--environments` of `hostler host join`)"
            )


def _allows(rules: HostRules, engine: str) -> bool:
    return not rules.engines or engine in rules.engines


def _is_installed(name: str) -> bool:
    try:
        distribution(name)
    except PackageNotFoundError:
        return False
    return True


def _memory_bytes(rules: HostRules) -> int | None:
    try:
        all_bytes = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (OSError, ValueError):
        return rules.memory_bytes
    return all_bytes if rules.memory_bytes is None else min(all_bytes, rules.memory_bytes)


def _disk_free_bytes(folder: Path) -> int | None:
    try:
        return shutil.disk_usage(folder).free
    except OSError:
        return None


def _gpus() -> tuple[str, ...]:
    """The names of NVIDIA's, as their driver tells them."""
    found = []
    for path in sorted(_NVIDIA.glob("*/information")):
        try:
            lines = path.read_text().splitlines()
        except OSError:
            continue
        found += [line.partition(":")[2].strip() for line in lines if line.startswith("Model:")]
    return tuple(found)


def _load() -> float | None:
    try:
        return round(os.getloadavg()[0], 2)
    except OSError:
        return None


def _moved(told: float | None, now: float | None, least: float) -> bool:
    if told is None or now is None:
        return told is not now
    return abs(told - now) > max(least, told / 20)


def _listed(words: Iterable[str]) -> str:
    return ", ".join(words) or "none"
