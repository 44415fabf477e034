"""What `hostler doctor` looks at: each check finds one fact, judges it, and says what to do.

A check never raises and never changes the machine. Not here: how findings are shown.
"""

import os
import platform
import resource
import shutil
import socket
import stat
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from enum import StrEnum
from pathlib import Path

import msgspec
import psutil

from hostler.app.environment import own_python
from hostler.app.paths import StatePaths
from hostler.app.record import StandbyRecord
from hostler.core.errors import ConfigError, HostlerError
from hostler.engines.base import ENGINES, engine_problems, engines
from hostler.storage.lease import leader_of
from hostler.storage.postgres import check_url, shown
from hostler.wire.tls import Certificates

GB = 1_000_000_000
DAY_S = 86_400
SOON_DAYS = 14  # a certificate that ends sooner should have been renewed
OWN_SOON_DAYS = 9  # a certificate of ours is renewed when ten of thirty are left
_SOCKET_PATH_BYTES = 107  # Linux's limit for a Unix socket, without the final zero
_LONGEST_SOCKET_NAME = 32


class Verdict(StrEnum):
    OK = "ok"
    WARN = "warn"  # it works, with less
    FAIL = "fail"  # it will not work


class Finding(msgspec.Struct, frozen=True, kw_only=True):
    """What one check saw. advice: what to do; empty when nothing is needed."""

    check: str
    verdict: Verdict
    seen: str
    advice: str = ""


def python_version() -> Finding:
    ok = sys.version_info >= (3, 11)
    return _judge(
        "python",
        ok,
        f"{platform.python_version()} at {sys.executable}",
        "install Python 3.11 or newer, then `make install PYTHON=/path/to/it`",
    )


def engine_wheel(module: str, serves: str) -> Finding:
    """Import an engine's library in a process of its own: a wrong CPU ends that one, not this."""
    ran, said = _run(own_python("-c", f"import {module}"), 60.0)
    if ran:
        return Finding(check=module, verdict=Verdict.OK, seen=f"importable ({serves})")
    return Finding(
        check=module,
        verdict=Verdict.WARN,
        seen=f"not importable: {said}",
        advice=f"without it no {serves}: install the `cpu` extra (`make install`, or "
        "`pip install 'hostler[cpu]'`)",
    )


def custom_engines() -> Finding:
    """Engines that other packages offer, and those among them that cannot be used."""
    names = sorted(set(engines()) - set(ENGINES))
    problems = engine_problems()
    return Finding(
        check="engines",
        verdict=Verdict.WARN if problems else Verdict.OK,
        seen="; ".join(problems) or f"of other packages: {', '.join(names) or 'none'}",
        advice="install that package anew, or remove it" if problems else "",
    )


def cpu_flags(cpuinfo: str, machine: str) -> Finding:
    """Judge the text of /proc/cpuinfo for that machine type."""
    if machine not in ("x86_64", "AMD64"):
        return Finding(check="cpu", verdict=Verdict.OK, seen=f"{machine}, {os.cpu_count()} CPUs")
    line = next((row for row in cpuinfo.splitlines() if row.startswith("flags")), "")
    flags = line.partition(":")[2].split()
    wide = [flag for flag in ("avx2", "avx512f", "amx_tile") if flag in flags]
    if "avx2" in flags:
        return Finding(
            check="cpu", verdict=Verdict.OK, seen=f"{os.cpu_count()} CPUs with {', '.join(wide)}"
        )
    return Finding(
        check="cpu",
        verdict=Verdict.WARN,
        seen="no AVX2",
        advice="the prebuilt engines may be slow or stop with an illegal instruction; use a newer "
        "CPU, or in a virtual machine pass the host's CPU model through",
    )


def memory(available_bytes: int, total_bytes: int) -> Finding:
    """Judge free memory; the default models need about 0.6 GB."""
    seen = f"{available_bytes / GB:.1f} GB of {total_bytes / GB:.1f} GB available"
    advice = "end other programs, or start fewer models with a config file"
    return _judge_amount("memory", available_bytes, 0.8 * GB, 2 * GB, seen, advice)


def disk(folder: Path) -> Finding:
    """Judge free space where models will lie; the default models need about 0.3 GB."""
    there = _existing(folder)
    free = shutil.disk_usage(there).free
    advice = "free some space, or choose another folder with --state-dir"
    return _judge_amount(
        "disk", free, 0.4 * GB, 2 * GB, f"{free / GB:.1f} GB free at {there}", advice
    )


def port_free(host: str, port: int, ours: bool) -> Finding:
    """Judge whether `hostler up` could listen there. ours: a server of this state folder has it."""
    where = f"{host}:{port}"
    if not 0 <= port <= 65535:
        return Finding(
            check="port",
            verdict=Verdict.FAIL,
            seen=f"{port} is not a port",
            advice="choose one from 1 to 65535, or 0 for a free one",
        )
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            if ours:
                return Finding(
                    check="port", verdict=Verdict.OK, seen=f"{where} is our own server's"
                )
            return Finding(
                check="port",
                verdict=Verdict.FAIL,
                seen=f"{where} cannot be used ({error.strerror})",
                advice="end the program that has it, or choose another: `hostler up --port 8101`",
            )
    return Finding(check="port", verdict=Verdict.OK, seen=f"{where} is free")


def state_folder(paths: StatePaths) -> Finding:
    folder = paths.state_dir
    there = _existing(folder)
    if not os.access(there, os.W_OK | os.X_OK):
        return Finding(
            check="state folder",
            verdict=Verdict.FAIL,
            seen=f"{there} is not writable",
            advice="change its permissions, or choose another with --state-dir",
        )
    if there == folder and stat.S_IMODE(folder.stat().st_mode) & 0o077:
        return Finding(
            check="state folder",
            verdict=Verdict.WARN,
            seen=f"{folder} is open to other users",
            advice=f"chmod 700 {folder}",
        )
    return Finding(
        check="state folder",
        verdict=Verdict.OK,
        seen=f"{folder}{'' if there == folder else ' (will be made)'}",
    )


def run_folder(paths: StatePaths) -> Finding:
    """Judge whether a socket's path fits: the kernel allows 107 bytes."""
    longest = len(os.fsencode(paths.run_dir)) + 1 + _LONGEST_SOCKET_NAME
    return _judge(
        "sockets",
        longest <= _SOCKET_PATH_BYTES,
        f"in {paths.run_dir}, up to {longest} of {_SOCKET_PATH_BYTES} bytes a path",
        "choose a state folder with a shorter path, or set TMPDIR to a short one",
    )


def certificate(cert: str, key: str, now_at_s: float, *, is_own: bool = False) -> Finding:
    """Judge the certificate that the server of this state folder shows.

    is_own: of our own authority: the controller makes it anew when a third of its time is left.
    """
    try:
        facts = Certificates(cert, key).facts
    except ConfigError as error:
        return Finding(
            check="certificate",
            verdict=Verdict.FAIL,
            seen=error.message,
            advice="a running server goes on with the one before, a new one will not start",
        )
    days = ((facts.ends_at_s or now_at_s) - now_at_s) / DAY_S
    if facts.ends_at_s is None or days <= 0:
        return Finding(
            check="certificate",
            verdict=Verdict.FAIL,
            seen=f"{cert} has expired",
            advice="renew it: the server takes the new file by itself, without a restart",
        )
    names = ", ".join(facts.names) or "no name"
    seen = f"{cert} is good for {names}" + (f" and {days:.0f} days" if days < 1e6 else "")
    advice = "renew it: the server takes the new file by itself"
    if is_own:
        advice = "the controller should have renewed it: `hostler ps` and its log say how it is"
    soon = OWN_SOON_DAYS if is_own else SOON_DAYS
    return _judge("certificate", days > soon, seen, advice, worst=Verdict.WARN)


def database(url: str, standby: StandbyRecord | None) -> Finding:
    """Judge the PostgreSQL database that controllers share, and say who leads."""
    try:
        check_url(url)
        leader = leader_of(url)
    except HostlerError as error:
        return Finding(
            check="database",
            verdict=Verdict.FAIL,
            seen=error.message,
            advice="models that run serve on meanwhile; orders wait until it answers again",
        )
    who = "nobody leads" if leader is None else f"{leader} leads"
    ours = f"; {standby.text}" if standby is not None else ""
    return Finding(check="database", verdict=Verdict.OK, seen=f"{shown(url)} answers: {who}{ours}")


def open_files() -> Finding:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    return _judge(
        "open files",
        hard == resource.RLIM_INFINITY or hard >= 4096,
        f"up to {hard if hard != resource.RLIM_INFINITY else 'any number'} (now {soft})",
        "raise the limit (`ulimit -Hn`, or LimitNOFILE= in a systemd unit) to 4096 or more",
        worst=Verdict.WARN,
    )


def namespaces() -> Finding:
    """Try what isolates an engine's processes: a PID namespace."""
    tool = shutil.which("unshare")
    advice = (
        "engines that are processes of their own are then swept by an environment tag, which "
        "works but is slower; allow user namespaces (sysctl kernel.unprivileged_userns_clone=1, "
        "or an AppArmor profile), or accept it"
    )
    if tool is None:
        return Finding(
            check="namespaces",
            verdict=Verdict.WARN,
            seen="`unshare` is not installed",
            advice=advice,
        )
    user = [] if os.geteuid() == 0 else ["--user", "--map-root-user"]
    ran, said = _run([tool, *user, "--pid", "--fork", "--kill-child", "true"], 10.0)
    if ran:
        return Finding(check="namespaces", verdict=Verdict.OK, seen="process isolation works")
    return Finding(
        check="namespaces", verdict=Verdict.WARN, seen=f"not allowed here: {said}", advice=advice
    )


def package_client() -> Finding:
    ran, said = _run(own_python("-m", "pip", "--version"), 30.0)
    return _judge(
        "pip",
        ran,
        "usable" if ran else said,
        "models from the package index cannot be fetched: `python -m ensurepip`, or the "
        "distribution's python3-pip",
    )


def package_index(package: str) -> Finding:
    """Ask the index that this machine's pip is set to for one package, briefly."""
    command = own_python("-m", "pip", "--disable-pip-version-check", "index", "versions")
    ran, said = _run([*command, package, "--timeout", "5", "--retries", "0"], 20.0)
    return _judge(
        "package index",
        ran,
        f"answers for {package}" if ran else f"no answer for {package}: {said}",
        "models that are not on disk yet cannot be fetched; check the network, or set an index "
        "mirror (docs/how-to/offline.md)",
        worst=Verdict.WARN,
    )


# Private


def _judge(check: str, ok: bool, seen: str, advice: str, worst: Verdict = Verdict.FAIL) -> Finding:
    verdict = Verdict.OK if ok else worst
    return Finding(check=check, verdict=verdict, seen=seen, advice="" if ok else advice)


def _judge_amount(
    check: str, amount: float, needed: float, wanted: float, seen: str, advice: str
) -> Finding:
    if amount >= wanted:
        return Finding(check=check, verdict=Verdict.OK, seen=seen)
    verdict = Verdict.WARN if amount >= needed else Verdict.FAIL
    return Finding(check=check, verdict=verdict, seen=seen, advice=advice)


def _existing(folder: Path) -> Path:
    """The folder, or its nearest parent that exists."""
    return next((part for part in (folder, *folder.parents) if part.exists()), Path("/"))


def _run(command: Sequence[str], timeout_s: float) -> tuple[bool, str]:
    """Run a short command without a shell; return whether it succeeded, and its last line."""
    try:
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=timeout_s,
            cwd=tempfile.gettempdir(),
            check=False,
        )
    except subprocess.TimeoutExpired:
        return False, f"no answer in {timeout_s:.0f} s"
    except OSError as error:
        return False, error.strerror or "cannot be started"
    lines = (done.stderr or done.stdout).decode(errors="replace").strip().splitlines()
    if done.returncode < 0:
        return False, f"ended by signal {-done.returncode}"
    return done.returncode == 0, lines[-1] if lines else f"exit code {done.returncode}"


def machine_memory() -> tuple[int, int]:
    """Available and total bytes, by the container's limit where there is one."""
    host = psutil.virtual_memory()
    limit = _cgroup_number("memory.max")
    used = _cgroup_number("memory.current")
    if limit is None or used is None or limit >= host.total:
        return host.available, host.total
    return min(host.available, limit - used), limit


def _cgroup_number(name: str) -> int | None:
    try:
        return int((Path("/sys/fs/cgroup") / name).read_text())
    except (OSError, ValueError):
        return None
