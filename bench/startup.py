"""How soon: the import, the command, the processes, the first token; and how much is installed."""

import importlib.metadata
import re
import subprocess
import sys
import threading
import time

from pip._vendor.packaging.requirements import Requirement

from bench import machine
from bench.engines import CHAT_MODEL, FirstToken, first_token
from bench.figures import Part, median, spread
from hostler.testing.cluster import Cluster

ROUNDS = 7
_SECONDS_OF_IMPORT = (
    "import time; t = time.perf_counter(); import hostler; print(time.perf_counter() - t)"
)


def measure_imports(part: Part) -> None:
    """Add seconds of the import and of the smallest command, and what is installed."""
    with machine.watch_noise() as noise:
        imports, versions = [], []
        for _ in range(ROUNDS):
            done = subprocess.run(
                [sys.executable, "-c", _SECONDS_OF_IMPORT], capture_output=True, check=True
            )
            imports.append(float(done.stdout))
            began_s = time.perf_counter()
            subprocess.run(
                [sys.executable, "-m", "hostler", "version"], capture_output=True, check=True
            )
            versions.append(time.perf_counter() - began_s)
    others = noise.others_cores
    part.add(
        "import hostler", median(imports), "s", at_most=0.3, noise=others, note=spread(imports)
    )
    part.add(
        "hostler version",
        median(versions),
        "s",
        noise=others,
        note=f"{spread(versions)}, whole process",
    )
    direct, core = dependencies(())
    part.add("direct core dependencies", len(direct), "", at_most=15)
    part.add("distributions, core", len(core), "", note="hostler itself not counted")
    part.add("distributions, with cpu", len(dependencies(("cpu",))[1]), "", at_most=45)


def measure_start(part: Part, cluster: Cluster, *, rounds: int = 3) -> None:
    """Start the default models of a cluster: once in a fresh folder, then again and again."""
    with machine.watch_noise() as noise:
        first = start_once(cluster)
    part.add(
        "first start to first token, download included",
        first.token_s,
        "s",
        noise=noise.others_cores,
    )
    part.add("models on disk", machine.folder_mb(cluster.state_dir), "MB", note="the state folder")
    with machine.watch_noise() as noise:
        found = []
        for _ in range(rounds):
            cluster.stop()
            found.append(start_once(cluster))
    others = noise.others_cores
    tokens, ready = [one.token_s for one in found], [one.ready_s for one in found]
    part.add(
        "second start to first token",
        median(tokens),
        "s",
        at_most=3.0,
        noise=others,
        note=spread(tokens),
    )
    part.add(
        "second start to /ready",
        median(ready),
        "s",
        noise=others,
        note=f"all default models; {spread(ready)}",
    )


def start_once(cluster: Cluster) -> FirstToken:
    """Start it, and wait for a chat token, asking as an impatient user would, and for /ready."""
    found = FirstToken()
    began_s = time.monotonic()
    cluster.launch()

    def watch_ready() -> None:
        cluster.wait_for(lambda: started(cluster) and cluster.answers("/ready"), 180.0, "/ready")
        found.ready_s = time.monotonic() - began_s

    watcher = threading.Thread(target=watch_ready, daemon=True)
    watcher.start()
    cluster.wait_for(lambda: started(cluster), 60.0, "up.json")
    cluster.wait_for(lambda: first_token(cluster, CHAT_MODEL), 180.0, "the first token")
    found.token_s = time.monotonic() - began_s
    watcher.join(180.0)
    return found


def started(cluster: Cluster) -> bool:
    return (cluster.state_dir / "up.json").exists() and (cluster.state_dir / "admin.key").exists()


def dependencies(extras: tuple[str, ...]) -> tuple[set[str], set[str]]:
    """Return what hostler asks for itself, and everything that comes with it, as installed here."""
    direct: set[str] = set()
    found: set[tuple[str, str]] = set()
    waiting = [("hostler", extra) for extra in ("", *extras)]
    while waiting:
        name, extra = waiting.pop()
        if (name, extra) in found:
            continue
        found.add((name, extra))
        for text in importlib.metadata.requires(name) or ():
            needed = Requirement(text)
            if needed.marker is not None and not needed.marker.evaluate({"extra": extra}):
                continue
            target = re.sub(r"[-_.]+", "-", needed.name).lower()
            if name == "hostler":
                direct.add(target)
            waiting += [(target, one) for one in ("", *needed.extras)]
    return direct, {name for name, _ in found} - {"hostler"}
