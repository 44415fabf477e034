"""`hostler worker --controller`: bring one worker of one's own choice to a controller elsewhere."""

import hashlib
import re
from pathlib import Path

import msgspec

from hostler.app.config import default_host_dir
from hostler.catalog.catalog import Catalog
from hostler.cli.exits import CommandFailed, Exit
from hostler.cli.host import host_settings
from hostler.cli.host_join import check_port, join_and_serve, not_installed, own_address, pinned
from hostler.cli.parameters import NO_PARAMETERS, read_parameters
from hostler.core.hosts import Offer, Role
from hostler.core.model import describe
from hostler.core.worker import WorkerStartupRequest
from hostler.engines.base import find_engine
from hostler.manager.host_rules import missing
from hostler.manager.membership import Membership
from hostler.manager.resolve import resolve


def bring(
    request: WorkerStartupRequest,
    params: tuple[str, ...],
    *,
    controllers: list[str],
    token: str | None,
    address: str | None,
    port: int,
    state_dir: Path | None,
    config: Path | None,
    json: bool | None,
) -> int:
    """Join, load the model, offer it, and serve until it is drained or Ctrl-C."""
    if request.engine is not None and params:
        known = describe(find_engine(request.engine).parameters)
        read = read_parameters(NO_PARAMETERS, params, known)
        request = msgspec.structs.replace(request, params=read)
    elif params:
        read = read_parameters(NO_PARAMETERS, params, None)
        request = msgspec.structs.replace(request, params=read)
    model = resolve(request, Catalog(), origin="joined")
    kind = find_engine(model.engine)
    if not kind.implementation:
        raise CommandFailed(
            f"engine {model.engine!r} runs in no process: give the URL of its server to "
            "`hostler model start --server` at the controller",
            Exit.USAGE,
        )
    if lacks := missing(kind):
        raise CommandFailed(not_installed(model.engine, lacks), Exit.CONFIG)
    settings = host_settings(config, state_dir or worker_dir(model.name), json)
    offer = Offer(
        model_name=model.name,
        worker_type=model.worker_type,
        engine=model.engine,
        source=model.source,
        params=model.params,
        concurrency=model.concurrency,
        aliases=model.aliases,
    )
    wished = Membership(
        host_id="",
        name=model.name,
        role=Role.WORKER,
        controllers=pinned(controllers),
        address=own_address(address),
        port=check_port(port),
        offer=offer,
    )
    return join_and_serve(settings, wished, token)


def worker_dir(model: str) -> Path:
    """Where a worker that was brought by hand keeps its state when nobody says: one folder a model."""
    plain = re.sub(r"[^a-z0-9.-]", "-", model)[:32]
    digest = hashlib.sha256(model.encode()).hexdigest()[:8]
    return default_host_dir().with_name("hostler-workers") / f"{plain}-{digest}"
