"""What runs inside Ray, on the nodes: a place that is held, and the keeper of a host process.

The one file that imports ray: its import takes a second, so it is asked for in threads and actors alone.
"""

import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hostler.app.config import child_environment, default_state_dir
from hostler.app.orphan import STDIN_VARIABLE
from hostler.app.process import ProcessHandle, spawn

STOP_S = 40.0  # a host process may drain for so long


class Place:
    """Holds what was asked for, and does nothing."""

    def tell(self) -> tuple[str, tuple[str, ...]]:
        """The node it is on, and which of the GPUs there Ray gave to it."""
        context = ray_module().get_runtime_context()
        return str(context.get_node_id()), tuple(map(str, context.get_accelerator_ids()["GPU"]))


class Keeper:
    """Keeps a host process running on its node. When this one ends, that process goes on as long as it is
    needed: its standard input ends, too, so it knows (host_process.py).
    """

    def __init__(self, folder: str) -> None:
        """folder: the name of its state folder, beside those of other servers of this user."""
        self._state = default_state_dir().with_name("hostler-ray") / folder
        self._handle: ProcessHandle | None = None
        self._stdin = -1
        self._is_stopped = False

    def look(self, arguments: Sequence[str], env: Mapping[str, str]) -> int:
        """Start the process if it does not run, as is said now; return its pid, 0 once stopped."""
        if self._is_stopped:
            return 0
        if self.has_ended():
            self._start(arguments, env)
        return self._handle.pid if self._handle is not None else 0

    def stop(self) -> int | None:
        """Ask the process to drain and leave. `has_ended` says when that is done."""
        self._is_stopped = True
        if self._handle is None or not self._handle.alive():
            return None
        self._handle.terminate()
        return self._handle.pid

    def has_ended(self) -> bool:
        return self._handle is None or self._handle.reap() is not None or not self._handle.alive()

    # Private

    def _start(self, arguments: Sequence[str], env: Mapping[str, str]) -> None:
        self._state.mkdir(mode=0o700, parents=True, exist_ok=True)
        if self._stdin >= 0:
            os.close(self._stdin)
        reads, self._stdin = os.pipe()
        try:
            with Path(self._state, "host.log").open("ab") as output:
                self._handle = spawn(
                    [sys.executable, "-m", "hostler", *arguments, f"--state-dir={self._state}"],
                    env=child_environment({**env, STDIN_VARIABLE: "1"}),
                    stdout=output.fileno(),
                    stdin=reads,
                )
        finally:
            os.close(reads)


def ray_module() -> Any:
    """The ray module."""
    import ray

    return ray


def only_on(node_id: str) -> Any:
    """Ray's word for: on this node and no other."""
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    return NodeAffinitySchedulingStrategy(node_id, soft=False)
