"""What runs inside Ray, on the nodes: a place that is held, and the keeper of a host process.

The one file that imports ray: its import takes a second, so it is asked for in threads and actors alone.
"""

import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hostler.app.config import child_environment, default_state_dir
from hostler.app.environment import own_python
from hostler.app.orphan import STDIN_VARIABLE
from hostler.app.process import ProcessHandle, spawn
from hostler.core.runtime_env import RuntimeEnv

STOP_S = 40.0  # a host process may drain for so long


class Place:
    """Holds what was asked for, and does nothing. It runs in the environment that was asked for, so that
    Ray makes it, and keeps it as long as the place is held.
    """

    def __init__(self, has_python: bool, has_folder: bool, group: str) -> None:
        """Whether its interpreter and its working folder are its own, or Ray's. group: it is in, by id."""
        self._group = group
        self._python = sys.executable if has_python else ""
        self._folder = os.getcwd() if has_folder else ""

    def tell(self) -> dict[str, Any]:
        """The node it is on, which of the GPUs there Ray gave to it, and its environment."""
        context = ray_module().get_runtime_context()
        return {
            "node_id": str(context.get_node_id()),
            "gpus": tuple(map(str, context.get_accelerator_ids()["GPU"])),
            "python": self._python,
            "folder": self._folder,
            "group": self._group,
        }


class Keeper:
    """Keeps a host process running on its node. When this one ends, that process goes on as long as it is
    needed: its standard input ends, too, so it knows (host_process.py).
    """

    def __init__(self, folder: str) -> None:
        """folder: the name of its state folder, beside those of other servers of this user."""
        self._state = default_state_dir().with_name("hostler-ray") / folder
        # whoever may ask Ray for an actor runs code here as this user, so environments are none more
        allowed = (f"--environments={_environments()}", "--variables=*")
        self._own = (*allowed, f"--state-dir={self._state}")
        # for engines that lay themselves out over nodes
        address = str(ray_module().get_runtime_context().gcs_address)
        self._env = {STDIN_VARIABLE: "1", "RAY_ADDRESS": address}
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
                    own_python("-m", "hostler", *arguments, *self._own),
                    env=child_environment({**self._env, **env}),
                    stdout=output.fileno(),
                    stdin=reads,
                )
        finally:
            os.close(reads)


def ray_module() -> Any:
    """The ray module."""
    import ray

    return ray


def environment_of(env: RuntimeEnv, scratch: Path) -> dict[str, Any]:
    """Return the runtime environment as Ray takes it for an actor; a folder of ours is uploaded.

    scratch: where its archive is made. Its variables are not for Ray: the worker's host sets them.
    """
    found: dict[str, Any] = {}
    if env.pip:
        found["pip"] = list(env.pip)
    if env.working_dir:
        from ray._private.runtime_env.working_dir import upload_working_dir_if_needed

        found["working_dir"] = env.working_dir
        upload_working_dir_if_needed(found, True, str(scratch))
    return found


def _environments() -> str:
    """Where Ray makes environments on this node."""
    from ray._private import worker

    node: Any = worker._global_node
    return str(node.get_runtime_env_dir_path())


def only_on(node_id: str) -> Any:
    """Ray's word for: on this node and no other."""
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    return NodeAffinitySchedulingStrategy(node_id, soft=False)


def first_of_group(group: Any) -> Any:
    """Ray's word for: where the first bundle of this placement group is."""
    from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

    return PlacementGroupSchedulingStrategy(group, placement_group_bundle_index=0)
