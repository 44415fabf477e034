"""The SQLite file: who may read it, how it is opened, and every way in which it can be bad."""

import ast
import os
import random
import sqlite3
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest
import sqlalchemy as sa
from alembic.config import Config
from alembic.script import ScriptDirectory

import hostler.storage.migrations
from hostler.app.auth import new_key
from hostler.core.deployment import Deployment
from hostler.core.errors import InsufficientStorage, StartupError, StorageBusy, StorageFailed
from hostler.core.model import WorkerType
from hostler.core.worker import OperatorEvent
from hostler.storage import database, tables
from hostler.storage.migrations.run import upgrade
from hostler.storage.sql import SqlStore

PRAGMAS = ("journal_mode", "synchronous", "busy_timeout")
MIGRATIONS = Path(hostler.storage.migrations.__file__).parent


def deployment(name: str, **changes: object) -> Deployment:
    return Deployment(
        name=name,
        worker_type=WorkerType.LLM,
        engine="llama.cpp",
        **changes,  # type: ignore[arg-type]
    )


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "hostler.db"


@pytest.fixture
def filled(path: Path) -> Path:
    """A database with 40 wishes, a key and 200 events, closed."""
    with closing(SqlStore(path)) as store:
        for n in range(40):
            store.save_deployment(deployment(f"model-{n}", params={"note": "x" * 200}))
        store.save_key(new_key(["inference"], name="app").stored)
        for n in range(200):
            store.append_event(OperatorEvent(kind="k", message=f"event {n}"))
    return path


def test_only_its_owner_can_read_any_of_its_files(path: Path) -> None:
    old = os.umask(0)
    try:
        with closing(SqlStore(path)) as store:
            store.save_deployment(deployment("a"))
            modes = {one.name: stat.S_IMODE(one.stat().st_mode) for one in path.parent.iterdir()}
    finally:
        os.umask(old)
    assert modes == {"hostler.db": 0o600, "hostler.db-wal": 0o600, "hostler.db-shm": 0o600}


def test_what_was_saved_is_there_after_opening_again(filled: Path) -> None:
    with closing(SqlStore(filled)) as store:
        assert len(store.deployments()) == 40
        assert store.last_seq() == 200
        assert store.next_epoch("a@llm", 0) == 1
    with closing(SqlStore(filled)) as store:
        assert store.next_epoch("a@llm", 0) == 2


def test_every_pragma_that_durability_needs_is_set(path: Path) -> None:
    with closing(SqlStore(path)) as store:
        found = [
            [line.connection.exec_driver_sql(f"PRAGMA {name}").scalar_one() for name in PRAGMAS]
            for line in (store._state, store._log)
        ]
        assert found == [["wal", 2, 5_000], ["wal", 1, 200]]


def test_opening_a_current_database_does_not_import_alembic_and_is_quick(filled: Path) -> None:
    program = (
        "import sys, time, pathlib; from hostler.storage.sql import SqlStore; "
        "began = time.perf_counter(); SqlStore(pathlib.Path(sys.argv[1])); "
        "print(time.perf_counter() - began, 'alembic' in sys.modules)"
    )
    run = [sys.executable, "-c", program, str(filled)]
    told = subprocess.run(
        run, capture_output=True, text=True, check=True, cwd="src", timeout=60
    ).stdout.split()
    assert told[1] == "False"
    assert float(told[0]) < 0.35


def test_a_new_database_has_the_schema_that_the_migrations_make(path: Path) -> None:
    def shape(connection: sa.Connection) -> object:
        inspector = sa.inspect(connection)
        return {
            name: (
                [
                    (column["name"], str(column["type"]), column["nullable"])
                    for column in inspector.get_columns(name)
                ],
                inspector.get_pk_constraint(name)["constrained_columns"],
                [(one["name"], one["column_names"]) for one in inspector.get_indexes(name)],
                inspector.get_table_options(name),
            )
            for name in sorted(inspector.get_table_names())
        }

    with closing(SqlStore(path)) as store:
        new = shape(store._state.connection)
    engine = sa.create_engine("sqlite://")
    with engine.connect() as connection, connection.begin():
        upgrade(connection)
        migrated = shape(connection)
    engine.dispose()
    assert migrated == new


def test_the_versions_named_are_the_migrations_there() -> None:
    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS))
    steps = list(ScriptDirectory.from_config(config).walk_revisions())
    assert tuple(step.revision for step in reversed(steps)) == tables.HISTORY


@pytest.mark.parametrize("version", tables.HISTORY[:-1])
def test_F77_an_older_schema_is_brought_forward_with_a_copy_kept(path: Path, version: str) -> None:
    engine = sa.create_engine(f"sqlite:///{path}")
    with engine.connect() as connection, connection.begin():
        upgrade(connection, version)
        body = '{"name":"old","worker_type":"llm","engine":"llama.cpp"}'
        row = {"name": "old", "worker_type": "llm", "body": body}
        connection.execute(sa.insert(tables.deployments).values(row))
    engine.dispose()
    with closing(SqlStore(path)) as store:
        assert [one.name for one in store.deployments()] == ["old"]
    with closing(sqlite3.connect(path)) as now:
        assert now.execute("SELECT * FROM alembic_version").fetchall() == [(tables.HEAD,)]
    copy = path.with_name(f"hostler.db.schema-{version}")
    assert stat.S_IMODE(copy.stat().st_mode) == 0o600
    with closing(sqlite3.connect(copy)) as before:
        assert before.execute("SELECT * FROM alembic_version").fetchall() == [(version,)]
        assert before.execute("SELECT name FROM deployments").fetchall() == [("old",)]


def test_F77_a_newer_schema_is_refused_with_text_and_left_alone(filled: Path) -> None:
    with closing(sqlite3.connect(filled)) as raw, raw:
        raw.execute("UPDATE alembic_version SET version_num = '9999'")
    before = filled.read_bytes()
    with pytest.raises(StartupError, match=rf"schema 9999.*newer Hostler.*0001 to {tables.HEAD}"):
        SqlStore(filled)
    assert filled.read_bytes() == before


def not_a_database(path: Path) -> None:
    path.write_bytes(b"this is not a database, it is a long piece of text. " * 90)


def empty(path: Path) -> None:
    path.write_bytes(b"")


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:4096])


def another(path: Path) -> None:
    path.unlink()
    with closing(sqlite3.connect(path)) as raw, raw:
        raw.execute("CREATE TABLE deployments (name TEXT)")


def bad_row(path: Path) -> None:
    with closing(sqlite3.connect(path)) as raw, raw:
        raw.execute("UPDATE deployments SET body = '{\"name\":' WHERE name = 'model-3'")


def bad_name(path: Path) -> None:
    body = '{"name":"../x","worker_type":"llm","engine":"e"}'
    with closing(sqlite3.connect(path)) as raw, raw:
        raw.execute("UPDATE deployments SET body = ? WHERE name = 'model-3'", (body,))


def bad_text(path: Path) -> None:
    with closing(sqlite3.connect(path)) as raw, raw:
        raw.execute("UPDATE deployments SET body = CAST(x'ff00fe' AS TEXT) WHERE name = 'model-3'")


DAMAGES: list[Callable[[Path], None]] = [
    not_a_database,
    empty,
    cut,
    another,
    bad_row,
    bad_name,
    bad_text,
]


@pytest.mark.parametrize("damage", DAMAGES)
def test_F82_a_damaged_database_is_refused_with_text_and_never_replaced(
    filled: Path, damage: Callable[[Path], None]
) -> None:
    damage(filled)
    before = filled.read_bytes()
    for _ in range(2):
        with pytest.raises(StartupError, match="damaged"):
            SqlStore(filled)
    assert filled.read_bytes() == before


def test_F82_flipped_bytes_are_refused_or_all_wishes_are_there(filled: Path) -> None:
    seed = random.randrange(10**9)
    chance = random.Random(seed)
    whole = filled.read_bytes()
    outcomes = {"refused": 0, "full": 0}
    for _ in range(60):
        damaged = bytearray(whole)
        place = chance.randrange(len(whole))
        damaged[place] ^= 1 << chance.randrange(8)
        for left in ("-wal", "-shm"):
            filled.with_name(filled.name + left).unlink(missing_ok=True)
        filled.write_bytes(damaged)
        try:
            with closing(SqlStore(filled)) as store:
                assert len(store.deployments()) == 40, f"seed {seed}, byte {place}"
                assert len(store.keys()) == 1, f"seed {seed}, byte {place}"
            outcomes["full"] += 1
        except StartupError:
            outcomes["refused"] += 1
    assert sum(outcomes.values()) == 60


def test_F82_a_database_that_is_gone_while_its_log_stays_is_refused(path: Path) -> None:
    with closing(SqlStore(path)) as store:
        store.save_deployment(deployment("a"))
        log = path.with_name("hostler.db-wal").read_bytes()
    path.unlink()
    path.with_name("hostler.db-wal").write_bytes(log)
    with pytest.raises(StartupError, match="is gone but"):
        SqlStore(path)
    assert not path.exists()


def test_a_folder_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(StartupError, match="No such file"):
        SqlStore(tmp_path / "none" / "hostler.db")


def test_F79_a_locked_database_is_storage_busy_after_the_wait_and_reads_go_on(
    path: Path,
) -> None:
    with closing(SqlStore(path, busy_timeout_s=0.3)) as store:
        store.save_deployment(deployment("a"))
        with closing(sqlite3.connect(path, isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")
            began_s = time.monotonic()
            with pytest.raises(StorageBusy) as caught:
                store.save_deployment(deployment("b"))
            assert 0.2 < time.monotonic() - began_s < 2
            assert caught.value.http_status == 503
            with pytest.raises(StorageBusy):
                store.append_event(OperatorEvent(kind="k"))
            assert len(store.deployments()) == 1
            other.execute("ROLLBACK")
        store.save_deployment(deployment("b"))
        assert len(store.deployments()) == 2


def test_F79_an_event_gives_up_soon_while_an_order_still_waits(path: Path) -> None:
    with (
        closing(SqlStore(path)) as store,
        closing(sqlite3.connect(path, isolation_level=None)) as other,
    ):
        other.execute("BEGIN EXCLUSIVE")
        order = threading.Thread(target=store.next_epoch, args=("a@llm", 0))
        order.start()
        began_s = time.monotonic()
        with pytest.raises(StorageBusy):
            store.append_event(OperatorEvent(kind="k"))
        assert store.events() == ()
        assert time.monotonic() - began_s < 3
        other.execute("ROLLBACK")
        order.join()
        assert store.next_epoch("a@llm", 0) == 2
        assert store.append_event(OperatorEvent(kind="k")) == 1


def test_two_processes_may_write_in_turn(path: Path) -> None:
    with closing(SqlStore(path)) as one, closing(SqlStore(path)) as two:
        stores = [one, two]

        def write(number: int) -> None:
            for _ in range(40):
                stores[number % 2].next_epoch("a@llm", 0)

        threads = [threading.Thread(target=write, args=(n,)) for n in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert one.next_epoch("a@llm", 0) == 161


def fill(store: SqlStore) -> None:
    for n in range(200):
        store.save_deployment(deployment(f"m{n}", params={"x": "y" * 2_000}))


def test_F80_a_full_disk_is_507_reads_go_on_and_it_heals(path: Path) -> None:
    with closing(SqlStore(path)) as store:
        store.save_deployment(deployment("a"))
        pages = store._state.connection.exec_driver_sql("PRAGMA page_count").scalar_one()
        store._state.connection.exec_driver_sql(f"PRAGMA max_page_count={pages}")
        store._state.connection.rollback()
        with pytest.raises(InsufficientStorage) as caught:
            fill(store)
        assert caught.value.http_status == 507
        kept = store.deployments()
        assert kept[0].name == "a"
        store._state.connection.exec_driver_sql("PRAGMA max_page_count=1000000")
        store._state.connection.rollback()
        store.save_deployment(deployment("z", params={"x": "y" * 2_000}))
        assert len(store.deployments()) == len(kept) + 1


def test_an_error_of_any_other_kind_is_told_and_not_taken_for_damage(path: Path) -> None:
    with closing(SqlStore(path)) as store:
        store._state.connection.exec_driver_sql("DROP TABLE events")
        store._state.connection.commit()
        with pytest.raises(StorageFailed, match="no such table"):
            store.append_event(OperatorEvent(kind="k"))


def test_F110_a_dump_of_the_database_holds_no_secret(path: Path) -> None:
    made = new_key(["admin"])
    with closing(SqlStore(path)) as store:
        store.save_key(made.stored)
    secret = made.plain.split("_")[2][:43]
    with closing(sqlite3.connect(path)) as raw:
        dump = "\n".join(raw.iterdump())
    assert made.view.key_id in dump
    assert secret not in dump


def test_F108_no_statement_is_put_together_from_values() -> None:
    """A formatted string may reach the database only for a setting of ours, never for a query."""
    room = Path(database.__file__).parent

    def statements() -> Iterator[ast.Call]:
        for file in room.rglob("*.py"):
            for node in ast.walk(ast.parse(file.read_text())):
                if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
                    yield node

    for call in statements():
        assert isinstance(call.func, ast.Attribute)
        assert call.func.attr != "text"
        if call.func.attr == "exec_driver_sql" and isinstance(call.args[0], ast.JoinedStr):
            start = call.args[0].values[0]
            assert isinstance(start, ast.Constant)
            assert str(start.value).startswith("PRAGMA ")
