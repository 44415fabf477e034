"""The store on PostgreSQL: its schema, its errors, and the lease by which one of several leads."""

import asyncio
import importlib.util
import random
import signal
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager

import pytest
import sqlalchemy as sa

from hostler.app.config import Config, StoreConfig
from hostler.app.environment import worker_environment
from hostler.app.loading import load_config
from hostler.cli import checks
from hostler.core.deployment import Deployment
from hostler.core.errors import (
    ConfigError,
    HostlerError,
    InsufficientStorage,
    Standby,
    StartupError,
    StorageBusy,
    StorageFailed,
)
from hostler.core.model import WorkerType
from hostler.core.worker import OperatorEvent
from hostler.storage import hanging, tables
from hostler.storage.lease import STEADY_S, TTL_S, Candidate, Holding, Lease, Standing, clock
from hostler.storage.migrations.run import upgrade
from hostler.storage.postgres import PostgresStore, check_url, shown
from hostler.storage.writer import Writer
from tests.postgres import Postgres, running_postgres, until


@pytest.fixture(scope="module")
def postgres() -> Iterator[Postgres]:
    with running_postgres() as server:
        yield server


@pytest.fixture
def url(postgres: Postgres) -> str:
    return postgres.new_url()


@pytest.fixture
def store(url: str) -> Iterator[PostgresStore]:
    with closing(PostgresStore.alone(url)) as made:
        yield made


def deployment(name: str) -> Deployment:
    return Deployment(name=name, worker_type=WorkerType.LLM, engine="fake")


@contextmanager
def connected(url: str) -> Iterator[sa.Connection]:
    engine = sa.create_engine(url, poolclass=sa.pool.NullPool)
    with engine.connect() as connection, connection.begin():
        yield connection
    engine.dispose()


def candidate(name: str) -> Candidate:
    return Candidate(owner=f"owner of {name}", name=name)


def silence(postgres: Postgres, url: str, seconds: float) -> None:
    """Make the last leadership's last renewal so old."""
    postgres.execute(f"UPDATE leaderships SET renewed_at_s = renewed_at_s - {seconds}", url)


# Schema


def shape(connection: sa.Connection) -> object:
    inspector = sa.inspect(connection)
    return {
        name: (
            [
                (one["name"], str(one["type"]), one["nullable"], one.get("default"))
                for one in inspector.get_columns(name)
            ],
            inspector.get_pk_constraint(name)["constrained_columns"],
            [(one["name"], one["column_names"]) for one in inspector.get_indexes(name)],
        )
        for name in sorted(inspector.get_table_names())
    }


def test_a_new_database_has_the_schema_that_the_migrations_make(
    postgres: Postgres, store: PostgresStore, url: str
) -> None:
    with connected(url) as connection:
        new = shape(connection)
    with connected(postgres.new_url()) as connection:
        upgrade(connection)
        migrated = shape(connection)
    assert migrated == new
    assert "INTEGER" not in str(new)  # 32 bits: some sums and times need more


@pytest.mark.parametrize("version", tables.HISTORY[:-1])
def test_F77_an_older_schema_is_brought_forward(url: str, version: str) -> None:
    with connected(url) as connection:
        upgrade(connection, version)
        body = '{"name":"old","worker_type":"llm","engine":"llama.cpp"}'
        row = {"name": "old", "worker_type": "llm", "body": body}
        connection.execute(sa.insert(tables.deployments).values(row))
    with closing(PostgresStore.alone(url)) as store:
        assert [one.name for one in store.deployments()] == ["old"]
        store.save_deployment(deployment("new"))
    with closing(PostgresStore.alone(url)) as store:
        assert [one.name for one in store.deployments()] == ["new", "old"]


def test_F77_a_newer_schema_is_refused_with_text(
    postgres: Postgres, store: PostgresStore, url: str
) -> None:
    postgres.execute("UPDATE alembic_version SET version_num = '9999'", url)
    with pytest.raises(StartupError, match=rf"schema 9999.*newer Hostler.*0001 to {tables.HEAD}"):
        PostgresStore(url)


def test_eight_that_start_at_once_make_the_tables_once(url: str) -> None:
    with ThreadPoolExecutor(8) as pool:
        for made in list(pool.map(lambda _: PostgresStore.alone(url), range(8))):
            made.close()


# Errors


def raised(postgres: Postgres, url: str, state: str) -> None:
    """Make every write of a wish fail on the server with this SQLSTATE."""
    postgres.execute(
        "CREATE FUNCTION fail() RETURNS trigger AS $$ BEGIN RAISE EXCEPTION 'as asked' "
        f"USING ERRCODE = '{state}'; END $$ LANGUAGE plpgsql",
        url,
    )
    postgres.execute(
        "CREATE TRIGGER fail BEFORE INSERT ON deployments FOR EACH ROW EXECUTE FUNCTION fail()", url
    )


@pytest.mark.parametrize(
    ("state", "kind", "text"),
    [
        ("53100", InsufficientStorage, "disk is full"),
        ("40001", StorageBusy, "as asked"),
        ("40P01", StorageBusy, "as asked"),
        ("53300", StorageBusy, "no connection left"),
        ("57P01", StorageBusy, "shutting down"),
        ("XX001", StorageFailed, "as asked"),
    ],
)
def test_F80_an_error_of_the_server_is_one_of_ours_and_nothing_was_changed(
    postgres: Postgres,
    url: str,
    store: PostgresStore,
    state: str,
    kind: type[HostlerError],
    text: str,
) -> None:
    raised(postgres, url, state)
    with pytest.raises(kind, match=text) as told:
        store.save_deployment(deployment("a"))
    assert "hostler:" not in str(told.value.message)
    assert store.deployments() == ()
    postgres.execute("DROP TRIGGER fail ON deployments", url)
    store.save_deployment(deployment("a"))  # the next one connects anew


def test_a_database_that_takes_no_writes_says_what_to_name_instead(
    postgres: Postgres, url: str, store: PostgresStore
) -> None:
    postgres.execute(
        f"ALTER DATABASE {url.rpartition('/')[2]} SET default_transaction_read_only = on"
    )
    with pytest.raises(StorageFailed, match=r"standby of PostgreSQL.*target_session_attrs"):
        store.save_deployment(deployment("a"))
    assert store.deployments() == ()  # reads go on
    postgres.execute(f"ALTER DATABASE {url.rpartition('/')[2]} RESET default_transaction_read_only")
    store.save_deployment(deployment("a"))


def end_connections(postgres: Postgres, url: str) -> None:
    name = url.rpartition("/")[2]
    postgres.execute(
        f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '{name}'"
    )


def test_a_connection_that_broke_costs_a_reader_nothing_and_a_writer_one_more_try(
    postgres: Postgres, url: str, store: PostgresStore
) -> None:
    end_connections(postgres, url)
    assert store.deployments() == ()

    async def main() -> None:
        writer = Writer("w")
        async with writer.running():
            await writer.do(store.save_deployment, deployment("a"))

    asyncio.run(main())
    assert len(store.deployments()) == 1


def test_F79_a_server_that_is_away_is_busy_and_found_again(
    postgres: Postgres, url: str, store: PostgresStore
) -> None:
    postgres.stop("immediate")
    try:
        for work in (lambda: store.save_deployment(deployment("a")), store.deployments):
            with pytest.raises(StorageBusy, match="cannot be reached") as told:
                work()
            assert "not-needed" not in told.value.message
        with pytest.raises(StorageBusy):
            PostgresStore(url)
    finally:
        postgres.start()
    store.save_deployment(deployment("a"))


def test_a_server_that_stands_still_is_given_up_and_found_again(
    postgres: Postgres, store: PostgresStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its kernel takes what is sent, and nobody answers: no limit of the server's helps."""
    monkeypatch.setattr(hanging, "HANG_S", 1.0)
    store.save_deployment(deployment("a"))
    postgres.signal(signal.SIGSTOP)
    try:
        began_s = time.monotonic()
        with pytest.raises(StorageBusy):
            store.save_deployment(deployment("b"))
        assert time.monotonic() - began_s < 10.0
    finally:
        postgres.signal(signal.SIGCONT)
    until(lambda: saved(store), 10, "it answers again")


def saved(store: PostgresStore) -> bool:
    try:
        store.save_deployment(deployment("b"))
    except StorageBusy:
        return False
    return True


def test_who_is_refused_by_the_server_is_told_so_at_the_start(postgres: Postgres, url: str) -> None:
    with pytest.raises(StartupError, match=r'refuses us.*role "nobody-here" does not exist'):
        PostgresStore(url.replace("hostler:", "nobody-here:"))
    with pytest.raises(StartupError, match=r'refuses us.*database "none" does not exist'):
        PostgresStore(f"{postgres.base}/none")


def test_numbers_and_texts_beyond_what_other_databases_take(store: PostgresStore) -> None:
    store.append_event(OperatorEvent(kind="k", message="a\0b \U0001f40e"))
    assert store.events()[0].message == "a\0b \U0001f40e"


# The URL


def test_without_the_extra_the_error_says_how_to_install_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"pip install 'hostler\[postgres\]'"):
        check_url("postgresql+psycopg://user:s3cret@host/db")


def test_no_password_is_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    secret = "postgresql+psycopg://user:s3cret@host:5433/db?password=s3cret"
    assert shown(secret) == "postgresql://host:5433/db"
    config = load_config(None, {"store": {"url": secret}})
    assert "s3cret" not in repr(config) + str(config)
    with pytest.raises(ConfigError) as told:
        check_url("postgresql+psycopg://user:s3cret@host:port/db")
    assert "s3cret" not in told.value.message
    with pytest.raises(ConfigError, match=r"store\.url: 'mysql' is no database known here") as told:
        Config(store=StoreConfig(url="mysql://user:s3cret@host/db"))
    assert "s3cret" not in told.value.message
    monkeypatch.setenv("HOSTLER_STORE_URL", secret)
    assert load_config().store.url == secret
    assert "HOSTLER_STORE_URL" not in worker_environment()  # anybody's class may run there


def test_the_doctor_says_who_leads(postgres: Postgres, store: PostgresStore, url: str) -> None:
    assert "nobody leads" in checks.database(url, None).seen
    Lease(store.lease_line, candidate("anna")).try_take()
    found = checks.database(url, None)
    assert (found.verdict, "anna leads" in found.seen) == (checks.Verdict.OK, True)
    gone = checks.database(url.replace(f":{postgres.port}/", ":1/"), None)
    assert (gone.verdict, "cannot be reached" in gone.seen) == (checks.Verdict.FAIL, True)


# The lease


def test_F35_of_many_that_want_to_lead_one_does(store: PostgresStore, url: str) -> None:
    leases = []
    stores = [PostgresStore(url) for _ in range(8)]
    for number, one in enumerate(stores):
        leases.append(Lease(one.lease_line, candidate(str(number))))
    with ThreadPoolExecutor(8) as pool:
        for _ in range(5):
            won = [number for _, number in pool.map(lambda lease: lease.try_take(), leases)]
            (number,) = [one for one in won if one is not None]
            leases[won.index(number)].give_back(number)
    for one in stores:
        one.close()


def test_F35_a_number_only_grows_and_is_the_incarnation(store: PostgresStore) -> None:
    assert [store.next_incarnation() for _ in range(2)] == [1, 2]  # as one program alone
    lease = Lease(store.lease_line, candidate("anna"))
    _, number = lease.try_take()
    store.fence.number = number
    assert number == 3 == store.next_incarnation() == store.next_incarnation()
    lease.give_back(number)
    assert lease.try_take()[1] == 4


def test_F35_who_does_not_lead_writes_nothing(
    postgres: Postgres, store: PostgresStore, url: str
) -> None:
    store.fence.number = Lease(store.lease_line, candidate("anna")).try_take()[1]
    store.save_deployment(deployment("a"))
    silence(postgres, url, TTL_S)
    with closing(PostgresStore(url)) as other:
        other.fence.number = Lease(other.lease_line, candidate("bert")).try_take()[1]
        assert other.fence.number == 2
        writes: list[Callable[[], object]] = [
            lambda: store.save_deployment(deployment("b")),
            lambda: store.delete_deployment("a", WorkerType.LLM),
            lambda: store.next_epoch("a@llm", 0),
            lambda: store.append_event(OperatorEvent(kind="k")),
            lambda: store.delete_launch("i"),
            lambda: store.revoke_key("k"),
        ]
        for write in writes:
            with pytest.raises(Standby):
                write()
        assert [one.name for one in other.deployments()] == ["a"]
        assert not Lease(store.lease_line, candidate("anna")).renew(1)


def test_F35_who_takes_the_lead_waits_for_a_write_and_sees_it(
    postgres: Postgres, store: PostgresStore, url: str
) -> None:
    """Or else an order could be accepted that the next leader never reads."""
    store.fence.number = Lease(store.lease_line, candidate("anna")).try_take()[1]
    silence(postgres, url, TTL_S)
    taken: list[float] = []
    with closing(PostgresStore(url)) as other:
        lease = Lease(other.lease_line, candidate("bert"))

        def take() -> None:
            assert lease.try_take()[1] == 2
            taken.append(time.monotonic())

        with store._state.writing() as connection:
            taking = threading.Thread(target=take)
            taking.start()
            time.sleep(0.3)
            store._put(
                connection, tables.deployments, name="late", worker_type="llm",
                body='{"name":"late","worker_type":"llm","engine":"fake"}',
            )  # fmt: skip
            assert not taken
            wrote_s = time.monotonic()
        taking.join(10)
        assert taken[0] > wrote_s
        assert [one.name for one in other.deployments()] == ["late"]


def test_F35_a_write_that_stands_still_holds_nobody_up(
    postgres: Postgres, store: PostgresStore, url: str
) -> None:
    """As when its process is stopped in the middle: the server ends it."""
    store.fence.number = Lease(store.lease_line, candidate("anna")).try_take()[1]
    silence(postgres, url, TTL_S)
    with closing(PostgresStore(url)) as other:
        lease = Lease(other.lease_line, candidate("bert"))

        def write_slowly() -> None:
            with store._state.writing() as connection:
                began_s = time.monotonic()
                assert lease.try_take()[1] == 2
                assert time.monotonic() - began_s < 7.0  # 1 s on a machine of its own
                connection.execute(sa.select(tables.version))

        with pytest.raises(StorageBusy):
            write_slowly()
        with pytest.raises(Standby):
            store.save_deployment(deployment("b"))


def test_a_renewal_does_not_wait_for_writes(store: PostgresStore) -> None:
    lease = Lease(store.lease_line, candidate("anna"))
    store.fence.number = number = lease.try_take()[1] or 0
    with store._state.writing():
        assert lease.renew(number)


@pytest.mark.parametrize("watched_s", [0.0, TTL_S])
@pytest.mark.parametrize("silent_s", [-100.0, 0.5, TTL_S, 100.0])
def test_when_the_lead_is_free(silent_s: float, watched_s: float) -> None:
    held = Standing(
        number=1, owner="anna", is_ended=False, silent_s=silent_s, renewed_at_s=10.0, taken_at_s=9.0
    )
    anna, bert = Candidate(owner="anna", name=""), Candidate(owner="bert", name="")
    is_dead = silent_s >= TTL_S or silent_s < -TTL_S
    assert held.is_free_for(bert, watched_s) == (is_dead and watched_s >= TTL_S)
    assert held.is_free_for(anna, watched_s) == (silent_s >= TTL_S)
    assert Standing().is_free_for(bert, 0.0)


def test_the_next_process_of_a_steady_leader_goes_on_at_once(
    postgres: Postgres, store: PostgresStore, url: str
) -> None:
    anna, bert = (Lease(store.lease_line, candidate(name)) for name in ("anna", "bert"))
    assert anna.try_take()[1] == 1
    assert Lease(store.lease_line, candidate("anna")).try_take()[1] is None  # it dies at its start
    postgres.execute(f"UPDATE leaderships SET taken_at_s = taken_at_s - {STEADY_S}", url)
    assert bert.try_take()[1] is None
    assert Lease(store.lease_line, candidate("anna")).try_take()[1] == 2


def test_after_an_outage_who_led_before_has_the_first_seconds(
    postgres: Postgres, store: PostgresStore, url: str
) -> None:
    anna, bert = (Lease(store.lease_line, candidate(name)) for name in ("anna", "bert"))
    assert anna.try_take()[1] == 1
    assert bert.try_take()[1] is None
    postgres.stop("immediate")
    try:
        for lease in (anna, bert):
            with pytest.raises(StorageBusy):
                lease.try_take()
    finally:
        postgres.start()
    silence(postgres, url, 60.0)
    assert bert.try_take()[1] is None
    assert Lease(store.lease_line, candidate("bert")).try_take()[1] == 2  # one that has just come


def test_who_cannot_renew_ends_before_another_may_lead(
    postgres: Postgres, store: PostgresStore
) -> None:
    lease = Lease(store.lease_line, candidate("anna"))
    began_s = clock()
    number = lease.try_take()[1] or 0
    ended: list[float] = []
    holding = Holding(lease, number, began_s, lambda why: ended.append(clock()))
    holding.start()
    try:
        time.sleep(1.2)
        assert not ended
        postgres.stop("immediate")
        stopped_s = clock()
        until(lambda: ended, TTL_S + 5.0, "it ends")
        assert ended[0] - stopped_s < TTL_S + 1.0
    finally:
        holding.stop()
        postgres.start()
    assert lease.look().silent_s > 1.0


def test_a_clock_of_the_database_that_jumps_makes_nobody_lead_beside_another(
    postgres: Postgres, store: PostgresStore, url: str
) -> None:
    choice = random.Random(35)
    anna, bert = (Lease(store.lease_line, candidate(name)) for name in ("anna", "bert"))
    number = anna.try_take()[1] or 0
    for _ in range(10):
        silence(postgres, url, choice.choice([-3600.0, -5.0, 2.0]))
        assert bert.try_take()[1] is None
        assert anna.renew(number)
