"""Snapshot: everything the data plane needs to know, immutable, one version at a time.

The registry publishes it; gateways mirror it by watching and go on with the last one they have.
"""

import msgspec

from hostler.core.lifecycle import State
from hostler.core.model import PrefixReach, WorkerType
from hostler.core.serving import Priority, RoutingRules

# Of the words between processes: this module and core/fleet.py. One more when a reader of the one before
# could not go on; the one before is still understood (F78). 1 is spoken by who says no number.
PROTOCOL = 3
PROTOCOLS = (PROTOCOL - 1, PROTOCOL)
# What is said to a controller, which may be the one before: these words are as they were there.
REPORTED = PROTOCOL - 1


class Endpoint(msgspec.Struct, frozen=True, kw_only=True):
    """Where an engine answers HTTP: a Unix socket of ours, or a URL given by the operator.

    socket: path of a Unix socket in the run folder (0700), named after the instance: no other
        process can have it, so a connection to it proves the instance.
    host, port, base_path, tls: for a server given by URL. base_path goes before `/chat/completions`,
        e.g. `/v1`.
    api_key_env: environment variable with the bearer key to send there.
    host_id: of the host whose relay stands before the engine: who answers must show its certificate.
    prefix: goes before every path there; it names the instance: `/i/INSTANCE`.
    """

    socket: str = ""
    host: str = ""
    port: int = 0
    base_path: str = "/v1"
    tls: bool = False
    api_key_env: str = ""
    host_id: str = ""
    prefix: str = ""

    @property
    def is_ours(self) -> bool:
        """Is the engine one of ours, here or on another host, and no server given by URL?"""
        return bool(self.socket or self.host_id)

    @property
    def agent(self) -> "Endpoint":
        """Where the agent of an engine of ours answers: beside its engine."""
        if self.host_id:
            return msgspec.structs.replace(self, prefix=f"/a{self.prefix.removeprefix('/i')}")
        return Endpoint(socket=f"{self.socket.removesuffix('.sock')}.agent")


class InstanceView(msgspec.Struct, frozen=True, kw_only=True):
    """One instance, as a router sees it."""

    instance_id: str
    epoch: int
    model_name: str
    worker_type: WorkerType
    engine: str
    state: State
    endpoint: Endpoint
    concurrency: int = 1
    upstream_model: str = ""  # the name the engine knows the model by
    replica: int = 0  # its place among the copies of its model
    prefix_reach: PrefixReach = PrefixReach.SLOT  # as its engine says


class ModelView(msgspec.Struct, frozen=True, kw_only=True):
    """One model, as the data plane sees it, with or without instances."""

    name: str
    worker_type: WorkerType
    engine: str
    wanted: int = 1
    aliases: tuple[str, ...] = ()
    open_fields: tuple[str, ...] = ()
    created_at_s: int = 0
    context_length: int | None = None
    loading: bool = False  # some instance is pending, fetching or starting
    routing: RoutingRules = RoutingRules()
    scales: bool = False  # its load decides how many instances there are: gateways tell of it
    renewing: bool = False  # its last ready instance made room for a new one: requests wait
    states: tuple[tuple[str, int], ...] = ()  # how many instances in each state, for error texts


class KeyView(msgspec.Struct, frozen=True, kw_only=True):
    """An API key without its secret: enough to check one.

    weight: its share of a model that others wait for too. priority: the class it waits in.
    parent: the key that a browser signed in with, whose session this is. is_ticket: it only opens one.
    """

    key_id: str
    secret_hash: str  # hex SHA-256 of the secret part
    scopes: tuple[str, ...]
    models: tuple[str, ...] = ()  # empty: all
    expires_at_s: float | None = None
    revoked: bool = False
    weight: float = 1.0
    priority: Priority = Priority.NORMAL
    parent: str = ""
    is_ticket: bool = False


class Snapshot(msgspec.Struct, frozen=True, kw_only=True):
    """One version of the truth. Versions of one controller incarnation only grow.

    incarnation: +1 for each start of the controller on this store; (incarnation, version) orders
        snapshots, so a mirror never goes back.
    """

    protocol: int = 1
    incarnation: int = 0
    version: int = 0
    models: tuple[ModelView, ...] = ()
    instances: tuple[InstanceView, ...] = ()
    keys: tuple[KeyView, ...] = ()


class Spoken(msgspec.Struct, frozen=True):
    """Any message, as far as every protocol reads it."""

    protocol: int = 1

    def refusal(self) -> str:
        """Say why it is not understood here; empty when it is."""
        if self.protocol in PROTOCOLS:
            return ""
        return (
            f"the sender speaks protocol {self.protocol}, this process {PROTOCOLS[0]} and {PROTOCOL}: "
            "run one version of Hostler, or neighbouring ones"
        )
