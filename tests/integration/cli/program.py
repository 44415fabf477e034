"""The program as a user starts it, against a server."""

import os
import subprocess
import sys

from hostler.testing.cluster import Cluster


def run(
    cluster: Cluster, *arguments: str, text: str | None = None
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "hostler", *arguments],
        input=text or "",
        capture_output=True,
        text=True,
        timeout=60,
        env=environment(cluster),
        check=False,
    )


def begun(cluster: Cluster, *arguments: str) -> subprocess.Popen[str]:
    """A command that goes on until it is told to end. Use it in a `with`."""
    return subprocess.Popen(
        [sys.executable, "-m", "hostler", *arguments],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=environment(cluster),
        text=True,
    )


def environment(cluster: Cluster) -> dict[str, str]:
    ours = ("HOSTLER_URL", "HOSTLER_API_KEY")
    kept = {name: value for name, value in os.environ.items() if name not in ours}
    return {**kept, "HOSTLER_STATE_DIR": str(cluster.state_dir)}
