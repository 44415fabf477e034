"""Deployment: what an operator asked for, and the names it may carry."""

import re
import unicodedata
from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from enum import StrEnum
from typing import Any

import msgspec

from hostler.core.errors import BadRequest
from hostler.core.model import WorkerType, worker_key
from hostler.core.placing import Needs
from hostler.core.runtime_env import RuntimeEnv
from hostler.core.scaling import ScalingRules
from hostler.core.serving import RoutingRules

HERE = "localhost"  # as a host: the controller's own machine
NAME_PATTERN = re.compile(r"[a-z0-9][a-z0-9._/-]{0,95}\Z")


class Wish(StrEnum):
    """What should be true of a deployment."""

    RUNNING = "running"
    STOPPED = "stopped"


class Deployment(msgspec.Struct, frozen=True, kw_only=True):
    """A wish written down: this model, so many copies, started like this.

    engine: the name of an engine (`hostler.engines.base.ENGINES`).
    source: where the files come from (`wheel:`, `hf:`, `https:`, a path), "" for engines without files.
    urls: for engine `openai`: one instance each, no process of ours.
    concurrency: slots of one instance (`limit_model_concurrency`).
    params: the engine's own parameters, validated by its parameter class.
    open_fields: request fields beyond the engine's allow-list that the operator lets through.
    api_key_env: the environment variable that holds the key of `urls`; never the key itself.
    routing: how its requests find their way.
    scaling: between which numbers the load decides how many copies there are. scaled: what it decided
        last; None: nothing yet, `replicas` counts.
    host: the one machine it may run on, by name or id; "" for any. HERE: the controller's own.
    labels: that a machine must have to run it. resources: what Ray holds for each instance.
    runtime_env: an environment of its own, which Ray makes.
    generation: +1 for each accepted change.
    process_generation: the generation of the last change that needs new processes; instances carry the
        one they were started from, so a change that is taken back finds its old processes still right.
    origin: who wished it: `config`, `default` or `api`; `joined`: a worker that was brought by hand.
    fallback: while a change is being carried out: the deployment to go back to when it does not work.
    """

    name: str
    worker_type: WorkerType
    engine: str
    source: str = ""
    replicas: int = 1
    concurrency: int = 4
    params: Mapping[str, Any] = {}
    urls: tuple[str, ...] = ()
    aliases: tuple[str, ...] = ()
    open_fields: tuple[str, ...] = ()
    upstream_model: str = ""
    api_key_env: str = ""
    routing: RoutingRules = RoutingRules()
    scaling: ScalingRules = ScalingRules()
    scaled: int | None = None
    host: str = ""
    labels: Mapping[str, str] = {}
    resources: Needs = Needs()
    runtime_env: RuntimeEnv = RuntimeEnv()
    wish: Wish = Wish.RUNNING
    generation: int = 1
    process_generation: int = 1
    origin: str = "api"
    fallback: "Deployment | None" = None

    def __post_init__(self) -> None:
        check_name(self.name)
        for alias in self.aliases:
            check_name(alias)
        if self.replicas < 0:
            raise BadRequest(f"replicas: need 0 or more, got {self.replicas}", param="replicas")
        if self.concurrency < 1:
            raise BadRequest(
                f"concurrency: need 1 or more, got {self.concurrency}", param="concurrency"
            )
        if self.urls and self.scaling.is_on:
            raise BadRequest(
                "scaling: servers given by urls are not ours to start; it needs models that are",
                param="scaling",
            )
        if self.urls and (self.host or self.labels):
            raise BadRequest("host, labels: a server given by urls runs where it is", param="host")
        if self.runtime_env and (self.urls or self.host):
            raise BadRequest(
                "runtime_env: Ray makes it on a node of its choice; not with host or urls",
                param="runtime_env",
            )
        if self.urls and len(self.routing.weights) > len(self.urls):
            raise BadRequest(
                f"routing.weights: {len(self.routing.weights)} given for {len(self.urls)} urls",
                param="routing",
            )
        if itself := sorted(self.routing.others & {self.name, *self.aliases}):
            raise BadRequest(
                f"routing: {itself[0]!r} is this model itself; split and fallbacks name others",
                param="routing",
            )

    @property
    def worker_key(self) -> str:
        return worker_key(self.name, self.worker_type)

    @property
    def wanted_instances(self) -> int:
        """How many instances should live now: one a URL, else `replicas` or what the load asks for; none
        when stopped.
        """
        if self.wish is Wish.STOPPED:
            return 0
        if self.scaling.is_on:
            return self.scaling.clamp(self.replicas if self.scaled is None else self.scaled)
        return len(self.urls) if self.urls else self.replicas

    @property
    def shown_instances(self) -> int:
        """What people are told is wanted: of a model that others bring workers for, one at least."""
        is_brought = self.origin == "joined" and self.wish is Wish.RUNNING
        return self.wanted_instances or int(is_brought)


def check_name(name: str) -> str:
    """Return the name, or say why it cannot name a model.

    Raises:
        BadRequest: not `[a-z0-9][a-z0-9._/-]{0,95}`, or it holds `..` or `//`, or ends in `/logs`,
            which in an address of the admin API means the logs of the model before it.
    """
    plain = unicodedata.normalize("NFKC", name)
    if plain != name or not NAME_PATTERN.match(name) or ".." in name or "//" in name:
        raise BadRequest(
            f"model name {name!r}: need 1 to 96 of a-z 0-9 . _ / -, first a letter or digit",
            param="name",
        )
    if name.endswith("/logs"):
        raise BadRequest(f"model name {name!r}: must not end in /logs", param="name")
    return name


# Fields whose change makes another process necessary; the others apply to a running one.
PROCESS_FIELDS = (
    "worker_type",
    "engine",
    "source",
    "params",
    "urls",
    "concurrency",
    "upstream_model",
    "api_key_env",
    "host",
    "labels",
    "resources",
    "runtime_env",
)
SPEC_FIELDS = (*PROCESS_FIELDS, "replicas", "aliases", "open_fields", "routing", "scaling")


def difference(old: Deployment, new: Deployment) -> dict[str, tuple[Any, Any]]:
    """Return the fields of the specification in which two deployments differ, as (old, new)."""
    return {
        field: (getattr(old, field), getattr(new, field))
        for field in SPEC_FIELDS
        if getattr(old, field) != getattr(new, field)
    }


def detour_notes(asked: Deployment, known: Iterable[Deployment]) -> tuple[str, ...]:
    """Say, a line each, which models should answer in its place by its rules and cannot, and why.

    No mistake for sure, so nothing is refused: a canary may be named before it is started.
    """
    if not asked.routing.others:
        return ()
    names = {name: one for one in known for name in (one.name, *one.aliases)}
    own = {asked.name, *asked.aliases}
    notes = []
    for other in sorted(asked.routing.others):
        found = names.get(other)
        if found is None:
            near = get_close_matches(other, names.keys() - own, n=1)
            hint = (
                f"did you mean {near[0]!r}?" if near else "`hostler model list` shows what there is"
            )
            notes.append(
                f"routing: model {other[:96]!r} does not exist yet, and is passed over until it is "
                f"started; {hint}"
            )
        elif found.worker_type is not asked.worker_type:
            notes.append(
                f"routing: model {other!r} is of type {found.worker_type.value}, and never answers "
                f"for one of type {asked.worker_type.value}"
            )
    return tuple(notes)
