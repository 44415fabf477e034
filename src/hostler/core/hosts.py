"""The words between a controller and its hosts: machines that run workers for it (docs/design/hosts.md).

As in core/fleet.py: both sides decode with these types, and `protocol` is that of core/snapshot.py.
"""

from collections.abc import Mapping
from enum import StrEnum
from typing import Annotated, Any

import msgspec
from msgspec import Meta

from hostler.core.lifecycle import State
from hostler.core.model import ModelMetadata, WorkerType
from hostler.core.placing import Held
from hostler.core.snapshot import REPORTED
from hostler.core.worker import OperatorEvent

FILES_PATH = "/host/files"
LOG_LINES = 10_000  # of one log, in one answer
EVENTS_PER_BEAT = 64  # what happened between two beats; more is dropped, oldest first


class Role(StrEnum):
    """What a machine joins as."""

    HOST = "host"  # it starts and stops models by the controller's orders
    WORKER = "worker"  # it brings one instance of its own choice
    GATEWAY = "gateway"  # it serves users


class Standing(StrEnum):
    """How a host is, for the controller."""

    ALIVE = "alive"
    UNKNOWN = "unknown"  # silent here, but it answers gateways: what it has serves, nothing new goes there
    SUSPECT = "suspect"  # silent: no new requests go there
    LOST = "lost"  # silent for so long that its instances are replaced
    DRAINING = "draining"  # it gets nothing new, and what it has moves away
    LEFT = "left"


class HostFacts(msgspec.Struct, frozen=True, kw_only=True):
    """What a host says of itself.

    engines: those that may be started there: installed, and allowed by its operator.
    labels: of its operator, for placing. folders: where `path` sources may lie there; none: anywhere.
    memory_bytes: what its models may take in all. load_1m: how many threads ran or waited for a CPU, on
        average over the last minute; None: nobody knows.
    """

    name: str
    version: str = ""
    cpus: int = 1
    memory_bytes: int | None = None
    memory_free_bytes: int | None = None
    disk_free_bytes: int | None = None
    load_1m: float | None = None
    gpus: tuple[str, ...] = ()
    engines: tuple[str, ...] = ()
    labels: Mapping[str, str] = {}
    folders: tuple[str, ...] = ()


class CreatedToken(msgspec.Struct, frozen=True, kw_only=True):
    """A join token just made. token: its plain text, shown this once and kept nowhere.

    url: where the machine joins. command: to run there. expires_at_s: Unix time.
    """

    token: str
    url: str
    command: str
    token_id: str
    role: Role
    expires_at_s: float


class JoinRequest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """POST /join. csr: PEM of a request for a certificate, whose key stays where it was made; "" where
    the connection shows one that the operator gave.

    address: of its relay, "" for the one it connects from; port: of its relay.
    """

    protocol: int = REPORTED
    token: str
    role: Role
    csr: str
    facts: HostFacts
    address: str = ""
    port: int = 0


class JoinAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """certificate, authority: PEM. expires_at_s: Unix time."""

    host_id: str
    certificate: str
    authority: str
    expires_at_s: float


class RenewRequest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """POST /host/renew, of a host or a gateway: another certificate. Answered by a JoinAnswer."""

    protocol: int = REPORTED
    csr: str


class OrderWish(StrEnum):
    """What should become of an instance on a host."""

    RUN = "run"
    DRAIN = "drain"  # finish, then end
    END = "end"  # now


class Order(msgspec.Struct, frozen=True, kw_only=True):
    """One instance that should be on a host, as the controller wishes it.

    The fields of a model are those of core.deployment.Deployment. held: what a placer has chosen.
    """

    instance_id: str
    epoch: int
    replica: int
    generation: int
    wish: OrderWish = OrderWish.RUN
    reason: str = ""
    model_name: str
    worker_type: WorkerType
    engine: str
    source: str = ""
    params: Mapping[str, Any] = {}
    concurrency: int = 1
    upstream_model: str = ""
    held: Held = Held()


class HostOrders(msgspec.Struct, frozen=True, kw_only=True):
    """All that should be on a host. Newer by (incarnation, version); an older one says nothing.

    refused: ids of gateways that were removed and whose certificates may be good still: its relay serves
        them no more.
    """

    protocol: int = REPORTED
    host_id: str
    incarnation: int
    version: int
    orders: tuple[Order, ...] = ()
    refused: tuple[str, ...] = ()


class FileFacts(msgspec.Struct, frozen=True, kw_only=True):
    """One file of a model. name: relative, with `/`."""

    name: str
    bytes: int
    sha256: str


class FileList(msgspec.Struct, frozen=True, kw_only=True):
    """GET /host/files/INSTANCE: what the controller has of a source that is a path there. The number of a
    file is its place here. main: the one that an engine opens; "": it opens the folder.
    """

    main: str = ""
    files: tuple[FileFacts, ...] = ()


class InstanceReport(msgspec.Struct, frozen=True, kw_only=True):
    """One instance, as its host sees it.

    metadata: None when it has not loaded, or when nothing of the full report has changed since the
        last one (the controller asks for it by `HostBeatAnswer.wanted`).
    engine_ok: its engine answers its agent.
    """

    instance_id: str
    epoch: int
    state: State
    reason: str = ""
    error_code: str = ""
    pid: int | None = None
    metadata: ModelMetadata | None = None
    upstream_model: str = ""
    command_args: tuple[str, ...] = ()
    concurrency: int = 1
    in_flight: int = 0
    memory_bytes: int | None = None
    engine_ok: bool = True


class HostBeat(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A host lives; how all of its instances are.

    run_id: of this run of the host process, random. seq: +1 a beat of this run.
    incarnation, version: of the newest orders it has. facts: with the first beat, and when changed.
    address, port: of its relay; "" for the address it connects from.
    """

    protocol: int = REPORTED
    host_id: str
    run_id: str
    seq: int
    incarnation: int = 0
    version: int = 0
    draining: bool = False
    facts: HostFacts | None = None
    address: str = ""
    port: int = 0
    instances: tuple[InstanceReport, ...] = ()
    events: tuple[OperatorEvent, ...] = ()


class HostBeatAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """next_beat_s: when to beat again. wanted: ids of instances whose full report is asked for.

    facts_wanted: the facts are. version: of the newest orders, for a host whose stream of them hangs.
    spread_s: over how many seconds all hosts are to come back, once nobody has answered them.
    """

    next_beat_s: float
    spread_s: float = 0.0
    wanted: tuple[str, ...] = ()
    facts_wanted: bool = False
    incarnation: int = 0
    version: int = 0


class Offer(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """POST /host/offer: a worker that was started by hand. The fields are those of a deployment."""

    protocol: int = REPORTED
    model_name: str
    worker_type: WorkerType
    engine: str
    source: str = ""
    params: Mapping[str, Any] = {}
    concurrency: int = 1
    aliases: tuple[str, ...] = ()


class OfferAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """The instance it is from now on; its order comes with the list."""

    instance_id: str
    epoch: int


class HostView(msgspec.Struct, frozen=True, kw_only=True):
    """One host, as operators see it. heard_s: seconds since it was last heard; None: never."""

    host_id: str
    role: Role
    standing: Standing
    facts: HostFacts
    address: str = ""
    port: int = 0
    heard_s: float | None = None
    instances: int = 0
    in_flight: int = 0
    joined_at_s: float = 0.0


class LogQuestion(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """GET /host/logs/INSTANCE of a relay, after `?`. tail: how many of the last lines.

    after: the `next` of the answer before: what is new since.
    """

    tail: Annotated[int, Meta(ge=0, le=LOG_LINES)] = 100
    after: Annotated[int, Meta(ge=0, le=1 << 60)] | None = None


class HostLog(msgspec.Struct, frozen=True, kw_only=True):
    """Its answer. next: where to read on."""

    lines: tuple[str, ...]
    next: int
