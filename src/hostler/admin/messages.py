"""What the admin API takes and gives, where core has no word for it."""

from collections.abc import Mapping
from typing import Annotated, Any

import msgspec
from msgspec import Meta

from hostler.app.origins import Origin
from hostler.app.tokens import DAY_S, LONGEST_S
from hostler.core.deployment import Deployment
from hostler.core.hosts import HostView, Role
from hostler.core.model import ParameterDescription, WorkerType
from hostler.core.serving import PriorityWord
from hostler.core.usage import Tokens, UsageBy, UsageRow
from hostler.core.worker import OperatorEvent, Until, WorkerRunData, WorkerSupportedModel

Moment = Annotated[float, Meta(ge=0, le=1e11)]  # Unix time, seconds


class Query(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The part of an address after `?`. This one takes nothing."""


class ModelQuery(Query, frozen=True, kw_only=True):
    worker_type: WorkerType | None = None  # needed only when two types share the name


class StopQuery(ModelQuery, frozen=True, kw_only=True):
    delete: bool = False  # also forget the deployment


class LogQuery(Query, frozen=True, kw_only=True):
    tail: Annotated[int, Meta(ge=0, le=10_000)] = 100  # lines of each log, the newest
    follow: bool = False  # stay and send new lines as they come


class ModelLogQuery(LogQuery, frozen=True, kw_only=True):
    worker_type: WorkerType | None = None


class InstanceQuery(Query, frozen=True, kw_only=True):
    model: str | None = None


class SelectQuery(Query, frozen=True, kw_only=True):
    model: str
    worker_type: WorkerType | None = None
    healthy_only: bool = True


class MetadataQuery(Query, frozen=True, kw_only=True):
    model: str


class WaitQuery(Query, frozen=True, kw_only=True):
    model: str
    worker_type: WorkerType | None = None
    until: Until = Until.READY
    timeout_s: Annotated[float, Meta(ge=0, le=60)] = 25.0


class ParameterQuery(Query, frozen=True, kw_only=True):
    engine: str | None = None
    model: str | None = None
    worker_type: WorkerType | None = None


class EventQuery(Query, frozen=True, kw_only=True):
    """after: left out, the newest `limit` events are listed; a stream begins with what is new."""

    after: Annotated[int, Meta(ge=0, le=10**15)] | None = None
    limit: Annotated[int, Meta(ge=1, le=1000)] = 500
    model: str | None = None
    follow: bool = False


class RemoveQuery(Query, frozen=True, kw_only=True):
    force: bool = False  # also when it has instances: they are given up


class UsageQuery(Query, frozen=True, kw_only=True):
    """since, until: Unix time in seconds, of whole hours (UTC): those that began in between.

    by: what a row stands for; left out: one key and one model.
    """

    since: Moment | None = None
    until: Moment | None = None
    key: str | None = None
    model: str | None = None
    by: UsageBy | None = None


class ModelStatus(msgspec.Struct, frozen=True, kw_only=True):
    """A deployment and how it stands.

    states: how many instances in each state. ready, wanted: instances.
    reason: why an instance failed or is not ready, of the latest one that says so.
    notes: what of the wish has no effect as things are, a line each: other models that do not exist.
    start_limit_s: how long its processes may take to be ready once its files are here; told of a single
        model only.
    """

    name: str
    worker_type: WorkerType
    worker_key: str
    wanted: int
    ready: int
    states: Mapping[str, int]
    reason: str = ""
    notes: tuple[str, ...] = ()
    deployment: Deployment
    instances: tuple[WorkerRunData, ...] = ()
    start_limit_s: float | None = None


class ModelList(msgspec.Struct, frozen=True, kw_only=True):
    models: tuple[ModelStatus, ...]


class ModelAccepted(msgspec.Struct, frozen=True, kw_only=True):
    """A wish was written down. created: this order made the deployment.

    events: the address of the stream that tells what comes of it, from this order on.
    """

    created: bool
    model: ModelStatus
    events: str


class InstanceList(msgspec.Struct, frozen=True, kw_only=True):
    instances: tuple[WorkerRunData, ...]


class InstanceAccepted(msgspec.Struct, frozen=True, kw_only=True):
    """An instance will be replaced. events: the address of the stream that tells what comes of it."""

    instance: WorkerRunData
    events: str


class InstanceLog(msgspec.Struct, frozen=True, kw_only=True):
    """error: why there are no lines: the machine with the log does not answer, or there are too many."""

    instance_id: str
    lines: tuple[str, ...] = ()
    error: str = ""


class LogAnswer(msgspec.Struct, frozen=True, kw_only=True):
    logs: tuple[InstanceLog, ...]


class SupportedModelList(msgspec.Struct, frozen=True, kw_only=True):
    """problems: why an engine of another package cannot be used on this server, one line each."""

    models: tuple[WorkerSupportedModel, ...]
    problems: tuple[str, ...] = ()


class ParameterList(msgspec.Struct, frozen=True, kw_only=True):
    parameters: tuple[ParameterDescription, ...]


class EventList(msgspec.Struct, frozen=True, kw_only=True):
    """next: pass it as `after` to go on."""

    events: tuple[OperatorEvent, ...]
    next: int


class HostList(msgspec.Struct, frozen=True, kw_only=True):
    """By name. The controller's own machine is not among them."""

    hosts: tuple[HostView, ...]


class HostStatus(msgspec.Struct, frozen=True, kw_only=True):
    host: HostView
    instances: tuple[WorkerRunData, ...] = ()


class DrainOrder(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """draining: False: it takes instances again."""

    draining: bool = True


class UsageList(msgspec.Struct, frozen=True, kw_only=True):
    """By time, then key, then model. total: of all rows."""

    usage: tuple[UsageRow, ...]
    total: Tokens


class KeyOrder(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A key to make. models: empty for all. expires_in_s: seconds from now, None for never.

    weight: its share of a model that others wait for too. priority: the class it waits in.
    """

    scopes: tuple[str, ...] = ("inference",)
    name: Annotated[str, Meta(max_length=100)] = ""
    models: Annotated[tuple[str, ...], Meta(max_length=100)] = ()
    expires_in_s: Annotated[float, Meta(gt=0, le=3.2e9)] | None = None
    weight: Annotated[float, Meta(ge=0.01, le=100)] = 1.0
    priority: PriorityWord = "normal"


class KeyInfo(msgspec.Struct, frozen=True, kw_only=True):
    """A key without its secret."""

    key_id: str
    name: str
    last_4: str
    scopes: tuple[str, ...]
    models: tuple[str, ...] = ()
    created_at_s: float = 0.0
    expires_at_s: float | None = None
    revoked: bool = False
    weight: float = 1.0
    priority: PriorityWord = "normal"


class KeyCreated(msgspec.Struct, frozen=True, kw_only=True):
    """key: its plain text, shown this once and kept nowhere."""

    key: str
    info: KeyInfo


class SessionInfo(msgspec.Struct, frozen=True, kw_only=True):
    """Who is signed in: the key that did, and what it may do."""

    key_id: str
    scopes: tuple[str, ...]
    models: tuple[str, ...] = ()
    expires_at_s: float | None = None


class TicketCreated(msgspec.Struct, frozen=True, kw_only=True):
    """ticket: exchange it for a session, once, with POST /api/v1/session."""

    ticket: str
    expires_at_s: float


class Setting(msgspec.Struct, frozen=True, kw_only=True):
    """One setting. value: as it is used; of a secret `set` or `not set`.

    section: the table it is in; "" at the top; of a model `models.NAME`. about: what it does. origin: who
    gave the value.
    """

    name: str
    section: str
    value: Any = None
    default: Any = None
    unit: str = ""
    about: str = ""
    secret: bool = False
    origin: Origin = Origin()


class SettingList(msgspec.Struct, frozen=True, kw_only=True):
    """The settings in use. file: the config file that was read at `read_at_s`; "": there is none.

    notes: what has changed since and is not used yet, a line each.
    """

    settings: tuple[Setting, ...]
    file: str = ""
    read_at_s: float = 0.0
    notes: tuple[str, ...] = ()


class KeyList(msgspec.Struct, frozen=True, kw_only=True):
    keys: tuple[KeyInfo, ...]


class TokenOrder(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A join token to make. expires_in_s: seconds from now. uses: machines it is for; 0: any number."""

    role: Role
    name: Annotated[str, Meta(max_length=100)] = ""
    expires_in_s: Annotated[float, Meta(ge=1, le=LONGEST_S)] = DAY_S
    uses: Annotated[int, Meta(ge=0, le=100_000)] = 1


class TokenInfo(msgspec.Struct, frozen=True, kw_only=True):
    """A join token without its secret. uses_left: None for any number."""

    token_id: str
    role: Role
    name: str = ""
    created_at_s: float = 0.0
    expires_at_s: float = 0.0
    uses_left: int | None = None
    revoked: bool = False


class TokenCreated(msgspec.Struct, frozen=True, kw_only=True):
    """token: its plain text, shown this once and kept nowhere. url: of the control port.

    command: for the machine that is to join.
    """

    token: str
    url: str
    command: str
    info: TokenInfo


class TokenList(msgspec.Struct, frozen=True, kw_only=True):
    tokens: tuple[TokenInfo, ...]
