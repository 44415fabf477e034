"""`hostler model update` and `restart`: change a running model, one instance after the other, or one."""

from typing import Any

from hostler.admin.messages import ModelStatus
from hostler.cli.api import Api
from hostler.cli.client import Client
from hostler.cli.exits import CommandFailed, Exit
from hostler.cli.follow import Follow
from hostler.cli.models import TypeOption
from hostler.cli.parameters import (
    NO_PARAMETERS,
    EngineOptions,
    Texts,
    known_parameters,
    read_parameters,
    takes_parameters,
)
from hostler.cli.placing import ANYWHERE, PlaceOptions
from hostler.cli.render import print_json, print_notes, print_table
from hostler.cli.routing import (
    AS_MANY_AS_SAID,
    USUAL_ROUTING,
    RoutingOptions,
    ScalingOptions,
)
from hostler.cli.target import NO_OPTIONS, Common, find_target
from hostler.core.worker import WorkerApplyRequest, WorkerApplyType


@takes_parameters
def update(
    name: str,
    /,
    *,
    worker_type: TypeOption = None,
    source: str | None = None,
    replicas: int | None = None,
    concurrency: int | None = None,
    param: Texts = (),
    timeout: float = 600.0,
    routing: RoutingOptions = USUAL_ROUTING,
    scaling: ScalingOptions = AS_MANY_AS_SAID,
    place: PlaceOptions = ANYWHERE,
    options: EngineOptions = NO_PARAMETERS,
    common: Common = NO_OPTIONS,
) -> int:
    """Change a running model; other replicas serve meanwhile.

    The parameters of its engine are options: `hostler model update NAME --help` lists them. One that
    the engine does not start with is refused, and the model goes on as it was.

    Example: `hostler model update smollm2-135m-instruct --replicas 2 --context-length 8192`

    Parameters
    ----------
    source: str
        Where its files come from: wheel:, https:, or a path.
    replicas: int
        How many copies.
    concurrency: int
        How many requests one copy works on at once.
    param: tuple[str, ...]
        A parameter of the engine, NAME=VALUE; repeat for several.
    timeout: float
        Seconds to wait.
    """
    wanted = bool(param or options.given())
    changes: dict[str, Any] = {
        "source": source,
        "replicas": replicas,
        "concurrency": concurrency,
        "routing": routing.given() or None,
        "scaling": scaling.given() or None,
        **place.given(),
    }
    if not wanted and all(value is None for value in changes.values()):
        raise CommandFailed(
            "nothing to change: give --source, --replicas, --concurrency, --host, --label, a rule of its "
            "routing or scaling, or a parameter of the engine",
            Exit.USAGE,
        )
    with Client(find_target(common)) as client:
        api = Api(client)
        status = api.model(name, worker_type)
        if wanted:
            known = known_parameters(api, name, status.worker_type)
            changes["params"] = read_parameters(options, param, known)
        return _apply(api, status, WorkerApplyType.UPDATE_PARAMS, timeout, common.json, changes)


def restart(
    name: str,
    /,
    *,
    worker_type: TypeOption = None,
    instance: str | None = None,
    timeout: float = 600.0,
    common: Common = NO_OPTIONS,
) -> int:
    """Replace every instance by a new process, or one; other replicas serve meanwhile.

    The new process starts first, where there is memory for both; the old one takes nothing new, finishes
    what it has and ends. One that does not start changes nothing.

    Example: `hostler model restart smollm2-135m-instruct`

    Example: `hostler model restart smollm2-135m-instruct --instance 3f9c`

    Parameters
    ----------
    instance: str
        Only this one: its id, or how that begins; `hostler ps` shows them.
    timeout: float
        Seconds to wait.
    """
    with Client(find_target(common)) as client:
        api = Api(client)
        status = api.model(name, worker_type)
        changes = {} if instance is None else {"instance_id": _instance_meant(status, instance)}
        return _apply(api, status, WorkerApplyType.RESTART, timeout, common.json, changes)


# Private


def _instance_meant(status: ModelStatus, begin: str) -> str:
    """The id that begins so. Raises CommandFailed: none of the model's does, or several do."""
    known = [one for one in status.instances if not one.stopped]
    found = [one for one in known if one.instance_id == begin] or [
        one for one in known if begin and one.instance_id.startswith(begin)
    ]
    if len(found) == 1:
        return found[0].instance_id
    some = found or known
    listed = ", ".join(f"{one.instance_id} ({one.state.value})" for one in some) or "none"
    if found:
        raise CommandFailed(
            f"instance {begin!r} could be any of {listed}: say more of it", Exit.USAGE
        )
    raise CommandFailed(
        f"model {status.name!r} has no instance {begin!r}; it has {listed}", Exit.NOT_FOUND
    )


def _apply(
    api: Api,
    status: ModelStatus,
    apply_type: WorkerApplyType,
    timeout_s: float,
    as_json: bool,
    changes: dict[str, Any],
) -> int:
    """Order it, show what comes of it, and tell how each instance stands."""
    order = WorkerApplyRequest(
        model=status.name,
        apply_type=apply_type,
        worker_type=status.worker_type,
        timeout_s=timeout_s,
        **changes,
    )
    done = Follow(api, status, quiet=as_json).while_ordered(lambda: api.apply(order))
    print_notes(done.notes)
    if as_json:
        print_json(done)
    else:
        print_table(
            ("INSTANCE", "STATE", "DONE", "REASON"),
            (
                (one.instance_id, one.state.value, "yes" if one.success else "no", one.message)
                for one in done.instances
            ),
            empty="no instances",
        )
    if not done.success:
        late = done.took_s >= timeout_s
        raise CommandFailed(
            f"{status.worker_key}: {done.message or 'not every instance changed'}",
            Exit.TRY_AGAIN if late else Exit.FAILED,
        )
    if not as_json:
        print(f"{status.worker_key}: done in {done.took_s:.1f} s")
    return Exit.OK
