"""The catalogue's promises: names, pins, what fits."""

import shutil
from pathlib import Path

import pytest

from hostler.catalog.address import WheelAddress, parse_source
from hostler.catalog.catalog import Catalog
from hostler.catalog.entries import SMOLLM2
from hostler.catalog.gguf import read_gguf
from hostler.catalog.needs import (
    estimate_memory_bytes,
    fits,
    free_memory_bytes,
    kv_cache_bytes,
    supported,
)
from hostler.core.deployment import check_name
from hostler.core.errors import ModelFormatError, ModelNotFound
from hostler.core.model import WorkerType
from hostler.engines.base import check_parameters, find_engine
from tests.models import ROLES, model_path
from tests.unit.catalog.files import gguf, onnx


def test_every_entry_has_a_usable_name_source_engine_and_parameters() -> None:
    for entry in Catalog().entries:
        check_name(entry.name)
        parse_source(entry.source)
        kind = find_engine(entry.engine)
        assert entry.worker_type in kind.worker_types
        check_parameters(kind, entry.params)
        assert entry.license
        assert entry.description


def test_every_wheel_of_the_catalogue_is_pinned_with_all_its_files() -> None:
    for entry in Catalog().entries:
        wheels = [part for part in parse_source(entry.source) if isinstance(part, WheelAddress)]
        assert {part.requirement for part in wheels} == set(entry.wheels)
        assert bool(entry.files) is bool(wheels)
        assert entry.needs_hub is not bool(wheels)
        for pin in (*entry.wheels.values(), *entry.files.values()):
            assert len(pin.sha256) == 64
            assert pin.bytes > 0
        if wheels:
            assert entry.download_bytes == sum(pin.bytes for pin in entry.wheels.values())


def test_a_fresh_machine_gets_one_model_a_role() -> None:
    roles = [entry.worker_type for entry in Catalog().default_models()]
    assert roles == [WorkerType.LLM, WorkerType.TEXT2VEC, WorkerType.RERANKER]
    assert Catalog().default_for(WorkerType.LLM) is SMOLLM2
    assert Catalog().default_for(WorkerType.AUDIO) is None


def test_a_misspelt_name_gets_the_nearest_one() -> None:
    catalog = Catalog()
    assert catalog.nearest("smollm-135m-instruct") == "smollm2-135m-instruct"
    assert catalog.nearest("zzzz") is None
    assert catalog.find_source(SMOLLM2.source) is SMOLLM2
    with pytest.raises(ModelNotFound, match=r"bge-small-en-v1\.5"):
        catalog.require("bge-small")


def test_two_entries_of_one_name_are_refused() -> None:
    with pytest.raises(ValueError, match="two catalogue entries"):
        Catalog([SMOLLM2, Catalog().require("all-minilm-l6-v2"), SMOLLM2.__replace__()])


def test_the_cache_grows_with_context_slots_and_number_format(tmp_path: Path) -> None:
    file = tmp_path / "m.gguf"
    file.write_bytes(gguf())
    header = read_gguf(file)
    # 4 layers x 2 heads x (8 + 8) values x 2 bytes a token
    assert kv_cache_bytes(header, {"context_length": 1024}, 1) == 4 * 2 * 16 * 2 * 1024
    assert kv_cache_bytes(header, {"context_length": 1024}, 4) == 4 * 4 * 2 * 16 * 2 * 1024
    assert kv_cache_bytes(header, {"context_length": 99_999}, 1) == 4 * 2 * 16 * 2 * 2048
    small = {"context_length": 1024, "cache_type_k": "q8_0", "cache_type_v": "q8_0"}
    assert kv_cache_bytes(header, small, 1) == 4 * 2 * 16 * 1024 * 34 // 32
    more = estimate_memory_bytes(file, "llama.cpp", {"context_length": 2048})
    assert more > estimate_memory_bytes(file, "llama.cpp", {"context_length": 256})


def test_a_broken_file_has_no_estimate(tmp_path: Path) -> None:
    file = tmp_path / "m.gguf"
    file.write_bytes(gguf()[:-1])
    with pytest.raises(ModelFormatError):
        estimate_memory_bytes(file, "llama.cpp", {})
    with pytest.raises(ModelFormatError):
        estimate_memory_bytes(tmp_path / "none", "llama.cpp", {})


def test_what_fits_is_judged_by_what_is_free(tmp_path: Path) -> None:
    assert fits(10, 10)
    assert not fits(11, 10)
    assert fits(None, 10) is None
    assert not fits(10**18)
    (tmp_path / "memory.max").write_text("1000\n")
    (tmp_path / "memory.current").write_text("400\n")
    assert free_memory_bytes(tmp_path) == 600
    (tmp_path / "memory.max").write_text("max\n")
    free = free_memory_bytes(tmp_path)
    assert free is not None
    assert free > 1000


def test_files_put_into_the_model_folder_are_offered_and_broken_ones_are_not(
    tmp_path: Path,
) -> None:
    (tmp_path / "My Model.Q4.gguf").write_bytes(gguf())
    (tmp_path / "broken.gguf").write_bytes(gguf()[:-1])
    (tmp_path / "embedder").mkdir()
    (tmp_path / "embedder" / "model.onnx").write_bytes(onnx())
    shutil.copytree(tmp_path / "embedder", tmp_path / "sub" / "embedder")
    rows = {row.model: row for row in supported(tmp_path)}
    assert set(rows) == {entry.name for entry in Catalog().entries} | {"my-model-q4", "embedder"}
    assert rows["my-model-q4"].present
    assert rows["my-model-q4"].worker_type is WorkerType.LLM
    assert rows["my-model-q4"].fits
    assert rows["embedder"].engine == "onnx"
    assert not rows["smollm2-135m-instruct"].present
    for row in (rows["my-model-q4"], rows["embedder"]):
        parse_source(row.source)


@pytest.mark.slow
@pytest.mark.parametrize("role", ["chat", "embedding", "reranker"])
def test_the_catalogues_memory_figure_is_that_of_the_files(role: str) -> None:
    path = model_path(role)
    (entry,) = [e for e in Catalog().default_models() if e.worker_type is ROLES[role]]
    need = estimate_memory_bytes(path, entry.engine, entry.params)
    assert entry.memory_bytes is not None
    assert abs(need - entry.memory_bytes) < need / 50
