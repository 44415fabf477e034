"""The settings tree: frozen, units in the names, checked once, when it is built.

Not here: where values are read from (loading.py).
"""

import re
from pathlib import Path
from typing import ClassVar

import platformdirs

from hostler.app.environment import child_environment as child_environment
from hostler.app.environment import engine_environment as engine_environment
from hostler.app.environment import environment as environment
from hostler.app.environment import quiet_openmp as quiet_openmp
from hostler.app.machines_section import ControlConfig as ControlConfig
from hostler.app.machines_section import HostConfig as HostConfig
from hostler.app.machines_section import RayConfig as RayConfig
from hostler.app.model_section import ModelConfig as ModelConfig
from hostler.app.section import Section
from hostler.core.errors import ConfigError

GATEWAYS_MAX = 32  # the board on which they count has two columns for each


_ORIGIN = re.compile(r"[a-z][a-z0-9+.-]*://(?:[a-z0-9._-]+|\[[0-9a-f:.]+\])(?::[0-9]{1,5})?")


class ServerConfig(Section, frozen=True, kw_only=True):
    host: str = "127.0.0.1"  # loopback: nothing is open to the network unless asked
    port: int = 8100  # 0: the kernel picks a free one
    allow_remote: bool = False  # plain HTTP on another address than loopback; not needed with TLS
    tls: bool = False  # with a certificate of our own authority, when no tls_cert is given
    tls_cert: str = ""  # PEM file with the certificate and its chain; read anew when it changes
    tls_key: str = ""  # PEM file with its key, unencrypted
    allowed_hosts: tuple[str, ...] = ()  # more names accepted in the Host header
    cors_origins: tuple[
        str, ...
    ] = ()  # web pages whose scripts may ask: "https://app.example", or "*"

    def __post_init__(self) -> None:
        if bool(self.tls_cert) != bool(self.tls_key):
            given, missing = ("cert", "key") if self.tls_cert else ("key", "cert")
            raise ConfigError(
                f"server: tls_{given} is set and tls_{missing} is not; TLS needs both"
            )
        for origin in self.cors_origins:
            if origin != "*" and _ORIGIN.fullmatch(origin) is None:
                raise ConfigError(
                    f"server.cors_origins: {origin!r} is not as browsers write an origin: "
                    "https://app.example or http://localhost:3000, lower case, without a path"
                )

    @property
    def is_tls(self) -> bool:
        return bool(self.tls_cert) or self.tls


class HeartbeatConfig(Section, frozen=True, kw_only=True):
    interval_s: float = 1.0  # how often a worker says it lives
    suspect_after_s: float = 2.5  # two missed beats and a half: no new requests
    lost_after_s: float = 30.0  # silent, and its engine too: its process is ended and replaced
    mass_lost_after_s: float = 300.0  # the same while most workers are silent at once
    most_per_s: float = 200.0  # beats of all together: many are told to beat less often
    replace_after_s: float = 0.0  # from the loss of a host to its models' start on another one

    def __post_init__(self) -> None:
        order = (self.interval_s, self.suspect_after_s, self.lost_after_s, self.mass_lost_after_s)
        if not (0 < order[0] < order[1] < order[2] <= order[3]):
            raise ConfigError(
                "heartbeat: need 0 < interval_s < suspect_after_s < lost_after_s "
                f"<= mass_lost_after_s, got {', '.join(map(str, order))}"
            )
        if self.most_per_s < 1 or self.replace_after_s < 0:
            raise ConfigError("heartbeat: need most_per_s >= 1 and replace_after_s >= 0")


class HttpLimits(Section, frozen=True, kw_only=True):
    """What a client may send. Sources of the figures: docs/design/wire.md."""

    header_bytes: int = 32 * 1024  # all header fields together
    header_fields: int = 100  # how many of them
    target_bytes: int = 8 * 1024  # of the address in the request line
    body_bytes: int = 8 * 1024 * 1024  # of one request
    all_bodies_bytes: int = 256 * 1024 * 1024  # request bodies held by one process
    json_depth: int = 64  # tables and lists in each other, of a body
    header_timeout_s: float = 10.0  # from the first byte of a request to the end of its header
    body_timeout_s: float = 60.0  # until a body has come
    body_grace_s: float = 10.0  # after which a body must have come at body_rate_bytes
    body_rate_bytes: int = 100  # a second, on average
    idle_timeout_s: float = 75.0  # a connection without a request is closed then
    write_stall_s: float = 30.0  # a client that takes nothing of its answer for so long is left
    connections: int = 4096  # at once; the one idle longest goes for a new one
    connections_per_client: int = 512  # of one address that is not this machine's; 0: any number
    requests_per_connection: int = 0  # then it is closed; 0: any number
    # What a slow reader may hold (B20).
    stream_buffer_bytes: int = 64 * 1024  # of an answer to a slow reader, here
    socket_send_bytes: int = 32 * 1024  # and in the kernel, which counts twice as much


class GatewayConfig(Section, frozen=True, kw_only=True):
    processes: int = 1  # each with a socket of its own on the same port; about one a core
    connect_timeout_s: float = 1.0
    attempts: int = 3  # of one request, all instances together
    lost_max: int = 2  # of these, on workers that died with it
    quarantine_s: float = 60.0  # a request that killed lost_max workers is refused so long
    queue_length: int = 128  # requests that wait for a slot, a model
    queue_wait_s: float = 30.0
    request_timeout_s: float = (
        3600.0  # queue, retries and answer together; a client may ask for less
    )
    keep_alive_s: float = (
        15.0  # a stream that waits for its first token gets a comment so often; 0: none
    )
    probe_interval_s: float = 0.5  # of an instance that was ejected, and of servers given by URL
    probe_timeout_s: float = 1.0
    timeline_requests: int = 1000  # that each gateway remembers for `hostler requests`; 0: none
    ask_usage: bool = True  # of a stream's engine also when its client did not: to count its tokens
    eject_s: float = 1.0  # out after a connection failure, doubled each time up to 30 s
    stall_s: float = 60.0  # an instance none of whose requests gets a byte for so long is asked
    canary_timeout_s: float = 30.0  # for one token; unanswered: its requests end or go elsewhere

    def __post_init__(self) -> None:
        if not 1 <= self.processes <= GATEWAYS_MAX:
            raise ConfigError(f"gateway: need 1 to {GATEWAYS_MAX} processes, got {self.processes}")
        if self.keep_alive_s and self.keep_alive_s < 0.1:
            raise ConfigError(f"gateway: need keep_alive_s >= 0.1, or 0, got {self.keep_alive_s:g}")


class LifeConfig(Section, frozen=True, kw_only=True):
    orphan_grace_s: float = 20.0  # workers without a controller end after this
    hung_after_s: float = 10.0  # a controller or gateway silent for so long is restarted
    drain_timeout_s: float = 30.0  # in-flight requests may finish until then
    kill_grace_s: float = 5.0  # from SIGTERM to SIGKILL
    start_timeout_s: float = 600.0  # a worker must be ready then, and a large model later:
    load_bytes_per_s: int = (
        50_000_000  # its size over this is added; half of what a slow disk reads
    )
    backoff_first_s: float = 1.0  # after a crash, doubled each time with jitter
    backoff_last_s: float = 60.0  # the longest wait before a crashed worker starts again
    crash_limit: int = 5  # crashes in crash_window_s that end in a verdict
    crash_window_s: float = 600.0  # crashes before that are forgotten
    memory_check: bool = True  # a model that does not fit in memory is not started
    memory_reserve_bytes: int = 64 << 20  # never given to models

    @property
    def stop_limit_s(self) -> float:
        """How long the stop of an instance may take in all."""
        return self.drain_timeout_s + self.kill_grace_s + 5.0

    def __post_init__(self) -> None:
        if self.load_bytes_per_s < 1:
            raise ConfigError(f"life: need load_bytes_per_s >= 1, got {self.load_bytes_per_s}")
        if self.hung_after_s < 2:  # they tell of themselves once a second
            raise ConfigError(f"life: need hung_after_s >= 2, got {self.hung_after_s:g}")


class TelemetryConfig(Section, frozen=True, kw_only=True):
    """Traces for OpenTelemetry; needs the extra `hostler[otel]`."""

    otlp_endpoint: str = ""  # of a collector that takes OTLP over HTTP, like http://127.0.0.1:4318
    service_name: str = "hostler"  # as traces show this server
    queue_spans: int = 2048  # that wait for the collector; more are dropped and counted
    timeout_s: float = 5.0  # of one export, its retries included


class StoreConfig(Section, frozen=True, kw_only=True):
    """Where wishes, keys, events and usage are kept. Several controllers may share a PostgreSQL
    database; one of them leads. It needs the extra `hostler[postgres]`."""

    secret: ClassVar[frozenset[str]] = frozenset({"url"})

    url: str = (
        ""  # postgresql+psycopg://USER:PASSWORD@HOST/DATABASE; "": SQLite in the state folder
    )
    name: str = ""  # what the others call this controller; "": the machine's name
    cut_off_s: float = (
        0.0  # after so long out of the database's reach workers end; 0: they serve on
    )

    def __post_init__(self) -> None:
        scheme = self.url.partition("://")[0] if "://" in self.url else ""
        if self.url and scheme not in ("postgresql", "postgresql+psycopg", "postgres"):
            raise ConfigError(
                f"store.url: {scheme or 'a text without a scheme'!r} is no database known here; write "
                "postgresql+psycopg://USER:PASSWORD@HOST/DATABASE, or leave it out for SQLite"
            )
        if self.cut_off_s < 0:
            raise ConfigError(f"store: need cut_off_s >= 0, got {self.cut_off_s:g}")

    def __repr__(self) -> str:
        """Without the URL, which may hold a password."""
        return f"StoreConfig(url={'...' if self.url else ''!r}, name={self.name!r})"


class Config(Section, frozen=True, kw_only=True):
    """All settings of one `hostler up`."""

    state_dir: str = ""  # "": the user's data folder
    log_json: bool = False  # log lines as JSON
    server: ServerConfig = ServerConfig()
    heartbeat: HeartbeatConfig = HeartbeatConfig()
    limits: HttpLimits = HttpLimits()
    gateway: GatewayConfig = GatewayConfig()
    life: LifeConfig = LifeConfig()
    host: HostConfig = HostConfig()
    ray: RayConfig = RayConfig()
    telemetry: TelemetryConfig = TelemetryConfig()
    store: StoreConfig = StoreConfig()
    control: ControlConfig | None = None
    models: tuple[ModelConfig, ...] | None = None  # None: the default ones; `models = []`: none


def state_dir(config: Config) -> Path:
    """The absolute state folder of these settings."""
    given = config.state_dir
    return Path(given).expanduser().absolute() if given else default_state_dir()


def tls_dir(config: Config) -> Path:
    """Where our authority lies, and who this machine is for others."""
    return state_dir(config) / "tls"


def default_state_dir() -> Path:
    """Where state lives when nobody says: the user's data folder of this platform."""
    return Path(platformdirs.user_data_dir("hostler", appauthor=False))


def default_host_dir() -> Path:
    """Where a host keeps its state when nobody says: beside that of a server of this user, never in it."""
    return Path(platformdirs.user_data_dir("hostler-host", appauthor=False))


def default_gateway_dir() -> Path:
    """Where a gateway that follows a controller on another machine keeps its state; as of a host."""
    return Path(platformdirs.user_data_dir("hostler-gateway", appauthor=False))
