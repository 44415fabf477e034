"""The newcomer's path: `git clone`, `make up` until the first streamed token. `python -m bench.fresh`.

A new folder, a new environment, no pip cache, no models. What pip fetches comes from the index that pip is
set to here: the seconds depend on how near that is, and the table says so.
"""

import argparse
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from bench import machine
from bench.engines import CHAT_MODEL, first_token
from bench.figures import Figure, Part, as_json, table
from bench.serving import free_port
from bench.startup import started
from hostler.testing.cluster import Cluster

LIMIT_S = 540.0
REPOSITORY = Path(__file__).resolve().parents[1]


def measure(part: Part) -> None:
    """Add the figures of this part, and leave nothing behind."""
    folder = Path(tempfile.mkdtemp(prefix="hstf", dir="/tmp"))
    clone, state = folder / "c", folder / "s"
    steps: dict[str, float] = {}
    try:
        with machine.watch_noise() as noise:
            began_s = time.monotonic()
            subprocess.run(["git", "clone", "--quiet", str(REPOSITORY), str(clone)], check=True)
            steps["clone"] = time.monotonic() - began_s
            took_s, left = _up(clone, state, began_s, steps)
        venv_mb, models_mb = machine.folder_mb(clone / ".venv"), machine.folder_mb(state / "models")
        told = ", ".join(f"{name} {seconds:.1f}" for name, seconds in steps.items())
        part.add(
            "clone to first token", took_s, "s", at_most=90, noise=noise.others_cores, note=told
        )
        sizes = f".venv {venv_mb:.0f}, models {models_mb:.0f}"
        part.add(".venv and models", venv_mb + models_mb, "MB", at_most=450, note=sizes)
        part.add("processes left after Ctrl-C", left, "", at_most=0)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _up(clone: Path, state: Path, began_s: float, steps: dict[str, float]) -> tuple[float, int]:
    """`make up` until the first token, then Ctrl-C; return seconds and how many processes were left."""
    names = ("VIRTUAL_ENV", "PYTHONPATH", "MAKEFLAGS", "MAKELEVEL", "HOSTLER_STATE_DIR")
    env = {name: value for name, value in os.environ.items() if name not in names}
    env["PIP_NO_CACHE_DIR"] = "1"
    command = ["make", "up", f"PORT={free_port()}", f"STATE={state}"]
    cluster = Cluster()
    cluster.state_dir = state  # of somebody else's server: only asked, never started here
    with (clone / "up.log").open("wb") as log:
        process = subprocess.Popen(
            command, cwd=clone, env=env, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
            start_new_session=True,
        )  # fmt: skip
        try:
            _wait(process, lambda: started(cluster), clone / "up.log")
            steps["install"] = time.monotonic() - began_s - steps["clone"]
            _wait(process, lambda: first_token(cluster, CHAT_MODEL), clone / "up.log")
            took_s = time.monotonic() - began_s
            steps["start"] = took_s - steps["install"] - steps["clone"]
            os.killpg(process.pid, signal.SIGINT)  # as a terminal does
            process.wait(60.0)
            return took_s, len(cluster.clear())
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGTERM)
                process.wait(60.0)
            cluster.clear()
            shutil.rmtree(cluster.root, ignore_errors=True)


def _wait(process: subprocess.Popen[bytes], is_true: Callable[[], bool], log: Path) -> None:
    ends_at_s = time.monotonic() + LIMIT_S
    while not is_true():
        if process.poll() is not None or time.monotonic() > ends_at_s:
            raise RuntimeError(f"make up: {log.read_text(errors='replace')[-2000:]}")
        time.sleep(0.05)


def main() -> int:
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--json", action="store_true", help="a JSON array instead of the table")
    given = arguments.parse_args()
    figures: list[Figure] = []
    measure(Part("fresh", figures.append))
    print(as_json(figures) if given.json else table(figures))
    return 0


if __name__ == "__main__":
    sys.exit(main())
