"""A broken or dangerous model file never reaches an engine."""

import ast
import io
import pickle
import struct
import time
import tracemalloc
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hostler.catalog.gguf import read_gguf
from hostler.catalog.headers import check_files
from hostler.catalog.onnx_file import read_onnx
from hostler.catalog.safetensors import read_safetensors
from hostler.core.errors import ModelFormatError
from tests.unit.catalog.files import field, gguf, key, number, onnx, safetensors, tensor, text

SRC = Path(__file__).parents[3] / "src" / "hostler"
READERS: dict[str, tuple[Callable[[], bytes], Callable[[Path], object]]] = {
    "gguf": (gguf, read_gguf),
    "onnx": (onnx, read_onnx),
    "safetensors": (safetensors, read_safetensors),
}
ANYWHERE = settings(
    max_examples=300, deadline=2000, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


def test_a_gguf_header_tells_what_the_estimate_needs(tmp_path: Path) -> None:
    file = tmp_path / "m.gguf"
    file.write_bytes(gguf())
    header = read_gguf(file)
    assert (header.architecture, header.name, header.quantisation) == ("llama", "tiny", "Q4_0")
    assert (header.context_length, header.block_count, header.embedding_length) == (2048, 4, 64)
    assert (header.head_count, header.head_count_kv, header.vocabulary) == (8, 2, 3)
    assert (header.parameter_count, header.weights_bytes) == (64 * 3 + 64, 768 + 36)
    assert header.has_chat_template


def test_whole_files_of_each_kind_are_accepted(tmp_path: Path) -> None:
    for kind, (make, _) in READERS.items():
        (tmp_path / f"model.{kind}").write_bytes(make())
    check_files(tmp_path, "")
    check_files(tmp_path / "model.gguf", "llama.cpp")
    check_files(tmp_path, "onnx")


@pytest.mark.parametrize("kind", READERS)
def test_F70_a_file_cut_off_anywhere_is_refused(kind: str, tmp_path: Path) -> None:
    make, _ = READERS[kind]
    whole = make()
    file = tmp_path / f"model.{kind}"
    for length in {len(whole) * step // 20 for step in range(20)} | {len(whole) - 1}:
        file.write_bytes(whole[:length])
        with pytest.raises(ModelFormatError):
            check_files(file, "")


@pytest.mark.parametrize(
    ("start", "end"), [(0, 24), (-804 - 120, -804)], ids=["the counts", "the tensor table"]
)
def test_F70_every_flipped_byte_of_the_structure_is_noticed_or_harmless(
    start: int, end: int, tmp_path: Path
) -> None:
    whole = gguf()
    file = tmp_path / "m.gguf"
    accepted = []
    for place in range(len(whole))[start:end]:
        for mask in (0x01, 0x80, 0xFF):
            broken = bytearray(whole)
            broken[place] ^= mask
            file.write_bytes(broken)
            try:
                header = read_gguf(file)
            except ModelFormatError:
                continue
            accepted.append((place, mask, header))
    for place, mask, header in accepted:
        # what is accepted still lies inside the file; only names, padding and the version moved
        assert header.weights_bytes <= len(whole), (place, mask)
        assert header.tensor_count == 2, (place, mask)


@pytest.mark.parametrize(
    "broken",
    [
        b"",
        b"GGUF",
        b"GGML" + gguf()[4:],
        b"GGUF" + struct.pack("<IQQ", 1, 0, 0),
        b"GGUF" + struct.pack(">IQQ", 3, 0, 0),
        b"GGUF" + struct.pack("<IQQ", 3, 1 << 63, 1),
        b"GGUF" + struct.pack("<IQQ", 3, 1, (1 << 64) - 1),
        b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + struct.pack("<Q", (1 << 64) - 1) + b"x",
        gguf(keys=[key("general.architecture", 9, struct.pack("<IQ", 8, 1 << 40))]),
        gguf(keys=[key("general.architecture", 9, struct.pack("<IQ", 9, 1))]),
        gguf(keys=[key("general.architecture", 13, b"")]),
        gguf(keys=[key("flag", 7, b"\2")]),
        gguf(keys=[number("a", 1), number("a", 2)]),
        gguf(keys=[number("general.alignment", 7)]),
        gguf(keys=[]),
        gguf(tensors=[]),
        gguf(tensors=[tensor("t", [1 << 62, 4], 0, 0)], data=bytes(64)),
        gguf(tensors=[tensor("t", [(1 << 64) - 1], 0, 0)], data=bytes(64)),
        gguf(tensors=[tensor("t", [8], 0, 32)], data=bytes(64)),
        gguf(tensors=[tensor("t", [8], 5, 0)], data=bytes(64)),
        gguf(tensors=[tensor("t", [8], 2, 0)], data=bytes(64)),
        gguf(tensors=[tensor("t", [8], 0, 0), tensor("t", [8], 0, 32)], data=bytes(64)),
        gguf(tensors=[tensor("t", [8], 0, 0), tensor("u", [8], 0, 0)], data=bytes(64)),
        gguf(tensors=[tensor("t", [1, 1, 1, 1, 1], 0, 0)], data=bytes(64)),
        gguf(tensors=[tensor("", [8], 0, 0)], data=bytes(64)),
    ],
)
def test_F70_a_gguf_header_that_contradicts_itself_is_refused(
    broken: bytes, tmp_path: Path
) -> None:
    file = tmp_path / "m.gguf"
    file.write_bytes(broken)
    with pytest.raises(ModelFormatError, match=r"m\.gguf"):
        read_gguf(file)


def test_an_array_of_too_many_texts_is_refused_before_it_is_walked(tmp_path: Path) -> None:
    file = tmp_path / "m.gguf"
    count = 3_000_001
    start = b"GGUF" + struct.pack("<IQQ", 3, 1, 1) + key("a", 9, struct.pack("<IQ", 8, count))
    file.write_bytes(start)
    with file.open("r+b") as stream:
        stream.truncate(len(start) + 8 * count)
    started = time.perf_counter()
    with pytest.raises(ModelFormatError, match="texts"):
        read_gguf(file)
    assert time.perf_counter() - started < 3


@pytest.mark.parametrize(
    "broken",
    [
        safetensors({"a": {"dtype": "F32", "shape": [2], "data_offsets": [4, 12]}}, bytes(12)),
        safetensors({"a": {"dtype": "F32", "shape": [3], "data_offsets": [0, 8]}}, bytes(8)),
        safetensors({"a": {"dtype": "F99", "shape": [2], "data_offsets": [0, 8]}}, bytes(8)),
        safetensors({"a": {"dtype": "F32", "shape": [-2], "data_offsets": [0, 8]}}, bytes(8)),
        safetensors({"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}, bytes(9)),
        safetensors({"a": {"dtype": "F32", "shape": [2]}}, bytes(8)),
        safetensors({"a": 1}, b""),
        struct.pack("<Q", 1 << 60) + b"{}",
        struct.pack("<Q", 60_000) + b"[" * 60_000,
    ],
)
def test_F70_a_safetensors_header_that_contradicts_itself_is_refused(
    broken: bytes, tmp_path: Path
) -> None:
    file = tmp_path / "m.safetensors"
    file.write_bytes(broken)
    with pytest.raises(ModelFormatError):
        read_safetensors(file)


@pytest.mark.parametrize(
    "broken",
    [
        b"not protobuf at all, but a page of text",
        b"<html><body>404</body></html>",
        field(1, 8) + field(8, b""),
        field(1, 0) + field(7, field(1, b"") + field(12, b"")) + field(8, b""),
        field(1, 8) + field(7, b"") + field(8, b""),
        field(1, 8) + field(7, field(12, b"")) + field(8, b""),
        b"\x08" + b"\xff" * 11,
        onnx() + field(7, b""),
    ],
)
def test_F70_what_is_not_onnx_is_refused(broken: bytes, tmp_path: Path) -> None:
    file = tmp_path / "model.onnx"
    file.write_bytes(broken)
    with pytest.raises(ModelFormatError):
        check_files(file, "onnx")


@pytest.mark.parametrize("location", ["../w.bin", "/etc/passwd", "a/../../w", "", "C:\\w"])
def test_F104_onnx_weights_outside_the_folder_are_refused(location: str, tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(onnx(location=location))
    with pytest.raises(ModelFormatError, match="outside"):
        check_files(tmp_path, "onnx")


def test_onnx_weights_beside_the_file_are_needed_and_enough(tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(onnx(location="model.onnx_data"))
    with pytest.raises(ModelFormatError, match="not beside it"):
        check_files(tmp_path, "onnx")
    (tmp_path / "model.onnx_data").write_bytes(bytes(8))
    check_files(tmp_path, "onnx")


@given(kind=st.sampled_from(sorted(READERS)), data=st.data())
@ANYWHERE
def test_any_bytes_are_read_or_refused_within_bounds(
    tmp_path: Path, kind: str, data: st.DataObject
) -> None:
    make, read = READERS[kind]
    raw = bytearray(make())
    for _ in range(data.draw(st.integers(0, 4))):
        place = data.draw(st.integers(0, len(raw) - 1))
        new = data.draw(st.binary(min_size=0, max_size=9))
        raw[place : place + data.draw(st.integers(0, 9))] = new
        if not raw:
            break
    if data.draw(st.booleans()):
        raw = bytearray(make()[:4] + data.draw(st.binary(max_size=200)))
    file = tmp_path / f"fuzz.{kind}"
    file.write_bytes(raw)
    tracemalloc.start()
    started = time.perf_counter()
    try:
        read(file)
    except ModelFormatError:
        pass
    finally:
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
    assert time.perf_counter() - started < 5
    assert peak < 1 << 20


class Canary:
    """Leaves a file behind when it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Callable[[str, str], object], tuple[str, str]]:
        return open, (str(self.mark), "w")


@pytest.mark.parametrize(
    "name",
    ["pytorch_model.bin", "model.pt", "model.PTH", "m.pkl", "m.joblib", "m.ckpt", "weights.dat"],
)
@pytest.mark.parametrize("packed", [False, True], ids=["bare", "zipped"])
def test_F105_pickles_are_refused_unread(name: str, packed: bool, tmp_path: Path) -> None:
    mark = tmp_path / "executed"
    folder = tmp_path / "model"
    folder.mkdir()
    raw = pickle.dumps(Canary(mark))
    if packed:
        buffer = io.BytesIO()
        with zipfile.ZipFile(buffer, "w") as archive:
            archive.writestr("archive/data.pkl", raw)
        raw = buffer.getvalue()
    (folder / "model.safetensors").write_bytes(safetensors())
    (folder / name).write_bytes(raw)
    for path in (folder, folder / name):
        with pytest.raises(ModelFormatError, match="pickle"):
            check_files(path, "")
    assert not mark.exists()


def test_F105_an_archive_that_cannot_be_listed_is_refused(tmp_path: Path) -> None:
    (tmp_path / "weights.bin").write_bytes(b"PK\x03\x04" + bytes(100))
    with pytest.raises(ModelFormatError, match="pickle"):
        check_files(tmp_path / "weights.bin", "")


def test_F106_a_config_that_brings_code_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"auto_map": {"AutoModel": "evil.Model"}}')
    with pytest.raises(ModelFormatError, match="auto_map"):
        check_files(tmp_path, "")


def test_F104_a_link_that_leaves_the_model_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("canary")
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "vocab.txt").symlink_to(tmp_path / "secret")
    with pytest.raises(ModelFormatError, match="leaves"):
        check_files(folder, "")


def test_an_engine_without_a_file_of_its_kind_is_told_so(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("nothing here")
    with pytest.raises(ModelFormatError, match=r"\.gguf"):
        check_files(tmp_path, "llama.cpp")
    with pytest.raises(ModelFormatError, match="not there"):
        check_files(tmp_path / "gone", "llama.cpp")


BANNED_MODULES = {
    "pickle",
    "cPickle",
    "_pickle",
    "dill",
    "cloudpickle",
    "shelve",
    "marshal",
    "joblib",
}
BANNED_CALLS = {"eval", "exec", "compile", "__import__"}
BANNED_ATTRIBUTES = {("torch", "load"), ("yaml", "load"), ("np", "load"), ("numpy", "load")}


def test_F105_no_code_of_ours_can_unpickle_or_evaluate() -> None:
    found: list[str] = []
    for path in sorted(SRC.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            match node:
                case ast.Import(names=names):
                    bad = {alias.name.split(".")[0] for alias in names} & BANNED_MODULES
                case ast.ImportFrom(module=str(module)):
                    bad = {module.split(".")[0]} & BANNED_MODULES
                case ast.Call(func=ast.Name(id=name)):
                    bad = {name} & BANNED_CALLS
                case ast.Attribute(value=ast.Name(id=owner), attr=attr):
                    bad = {f"{owner}.{attr}"} if (owner, attr) in BANNED_ATTRIBUTES else set()
                case _:
                    continue
            found.extend(f"{path}:{getattr(node, 'lineno', 0)}: {word}" for word in sorted(bad))
    assert not found, "\n".join(found)


def test_text_of_the_builder_is_what_the_format_says() -> None:
    assert text("ab") == b"\2\0\0\0\0\0\0\0ab"
