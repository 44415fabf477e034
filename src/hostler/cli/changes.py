"""`hostler model update` and `restart`: change a running model, one instance after the other."""

from typing import Any

from hostler.cli.api import Api
from hostler.cli.client import Client
from hostler.cli.exits import CommandFailed, Exit
from hostler.cli.models import Texts, TypeOption, parse_params
from hostler.cli.render import print_json
from hostler.cli.target import NO_OPTIONS, Common, find_target
from hostler.core.worker import WorkerApplyRequest, WorkerApplyType


def update(
    name: str,
    /,
    *,
    worker_type: TypeOption = None,
    replicas: int | None = None,
    concurrency: int | None = None,
    param: Texts = (),
    timeout: float = 600.0,
    common: Common = NO_OPTIONS,
) -> int:
    """Change a running model; other replicas serve meanwhile.

    Example: `hostler model update smollm2-135m-instruct --replicas 2`

    Parameters
    ----------
    replicas: int
        How many copies.
    concurrency: int
        How many requests one copy works on at once.
    param: tuple[str, ...]
        A parameter of the engine, NAME=VALUE; repeat for several.
    timeout: float
        Seconds to wait.
    """
    changes: dict[str, Any] = {
        "params": parse_params(param) if param else None,
        "replicas": replicas,
        "concurrency": concurrency,
    }
    if all(change is None for change in changes.values()):
        raise CommandFailed(
            "nothing to change: give --replicas, --concurrency or --param", Exit.USAGE
        )
    return _apply(common, name, worker_type, WorkerApplyType.UPDATE_PARAMS, timeout, changes)


def restart(
    name: str,
    /,
    *,
    worker_type: TypeOption = None,
    timeout: float = 600.0,
    common: Common = NO_OPTIONS,
) -> int:
    """Replace every instance by a new process; other replicas serve meanwhile.

    Example: `hostler model restart smollm2-135m-instruct`

    Parameters
    ----------
    timeout: float
        Seconds to wait.
    """
    return _apply(common, name, worker_type, WorkerApplyType.RESTART, timeout, {})


# Private


def _apply(
    common: Common,
    name: str,
    worker_type: TypeOption,
    apply_type: WorkerApplyType,
    timeout_s: float,
    changes: dict[str, Any],
) -> int:
    """Order it, wait, and tell what became of each instance."""
    with Client(find_target(common)) as client:
        api = Api(client)
        status = api.model(name, worker_type)
        done = api.apply(
            WorkerApplyRequest(
                model=name,
                apply_type=apply_type,
                worker_type=status.worker_type,
                timeout_s=timeout_s,
                **changes,
            )
        )
    if common.json:
        print_json(done)
    else:
        for one in done.instances:
            note = f": {one.message}" if one.message else ""
            print(f"{one.instance_id}: {one.state.value}{note}")
    if not done.success:
        raise CommandFailed(f"{status.worker_key}: {done.message or 'not every instance changed'}")
    if not common.json:
        print(f"{status.worker_key}: done in {done.took_s:.1f} s")
    return Exit.OK
