"""The skeleton of an ONNX file: is it whole, has it a graph, does it stay in its folder.

A walk over the protobuf fields that matter (onnx/onnx.proto), by lengths alone;
weights are not read. It says nothing about what the graph computes.
"""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

import msgspec

from hostler.catalog.address import check_member
from hostler.core.errors import BadRequest, ModelFormatError

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
_HIGHEST_FIELD = 200
_MOST_FIELDS = 2_000_000
_NEWEST_IR = 100
_LONGEST_TEXT = 4096
# field numbers of onnx.proto
_MODEL_IR, _MODEL_GRAPH, _MODEL_OPSET = 1, 7, 8
_MODEL_TYPES = {1: 0, 2: 2, 3: 2, 4: 2, 5: 0, 6: 2, 7: 2, 8: 2, 14: 2, 20: 2, 25: 2, 26: 2}
_GRAPH_NODE, _GRAPH_INITIALIZER, _GRAPH_OUTPUT = 1, 5, 12
_GRAPH_TYPES = {1: 2, 2: 2, 5: 2, 10: 2, 11: 2, 12: 2, 13: 2, 14: 2, 15: 2, 16: 2}
_TENSOR_EXTERNAL = 13
_ENTRY_KEY, _ENTRY_VALUE = 1, 2

Wrong = Callable[[str], ModelFormatError]


class OnnxSkeleton(msgspec.Struct, frozen=True, kw_only=True):
    ir_version: int
    nodes: int
    initializers: int
    outputs: int
    file_bytes: int
    external_files: tuple[str, ...] = ()


def read_onnx(path: Path) -> OnnxSkeleton:
    """Return the skeleton of an ONNX file.

    Raises:
        ModelFormatError: not ONNX, cut off, without a graph, or with data outside its folder.
    """

    def wrong(why: str) -> ModelFormatError:
        return ModelFormatError(f"{path.name}: not a usable ONNX file: {why}; fetch it again")

    try:
        with path.open("rb") as stream:
            size = stream.seek(0, 2)
            return _model(stream, size, wrong)
    except OSError as error:
        raise wrong(f"cannot be read: {error.strerror}") from error


# Private


class _Field(msgspec.Struct, frozen=True):
    number: int
    value: int  # of a varint
    start: int  # of bytes
    end: int


def _model(stream: BinaryIO, size: int, wrong: Wrong) -> OnnxSkeleton:
    ir_version, opsets = 0, 0
    graph: _Field | None = None
    for field in _fields(stream, 0, size, _MODEL_TYPES, wrong):
        if field.number == _MODEL_IR:
            ir_version = field.value
        elif field.number == _MODEL_OPSET:
            opsets += 1
        elif field.number == _MODEL_GRAPH:
            if graph is not None:
                raise wrong("two graphs")
            graph = field
    if not 1 <= ir_version <= _NEWEST_IR:
        raise wrong(f"IR version {ir_version}")
    if graph is None or not opsets:
        raise wrong("no graph or no operator set: cut off, or another kind of file")
    return _graph(stream, graph, ir_version, size, wrong)


def _graph(
    stream: BinaryIO, graph: _Field, ir_version: int, size: int, wrong: Wrong
) -> OnnxSkeleton:
    counts = {_GRAPH_NODE: 0, _GRAPH_INITIALIZER: 0, _GRAPH_OUTPUT: 0}
    external: set[str] = set()
    for field in _fields(stream, graph.start, graph.end, _GRAPH_TYPES, wrong):
        if field.number in counts:
            counts[field.number] += 1
        if field.number == _GRAPH_INITIALIZER:
            external.update(_external_files(stream, field, wrong))
    if not counts[_GRAPH_NODE] or not counts[_GRAPH_OUTPUT]:
        raise wrong("its graph computes nothing")
    return OnnxSkeleton(
        ir_version=ir_version,
        nodes=counts[_GRAPH_NODE],
        initializers=counts[_GRAPH_INITIALIZER],
        outputs=counts[_GRAPH_OUTPUT],
        file_bytes=size,
        external_files=tuple(sorted(external)),
    )


def _external_files(stream: BinaryIO, tensor: _Field, wrong: Wrong) -> Iterator[str]:
    for field in _fields(stream, tensor.start, tensor.end, {_TENSOR_EXTERNAL: _BYTES}, wrong):
        if field.number != _TENSOR_EXTERNAL:
            continue
        key = value = b""
        for part in _fields(stream, field.start, field.end, {1: _BYTES, 2: _BYTES}, wrong):
            if part.number in (_ENTRY_KEY, _ENTRY_VALUE) and part.end - part.start <= _LONGEST_TEXT:
                stream.seek(part.start)
                text = stream.read(part.end - part.start)
                key, value = (text, value) if part.number == _ENTRY_KEY else (key, text)
        if key == b"location":
            try:
                yield str(check_member(value.decode()))
            except (BadRequest, UnicodeDecodeError) as error:
                raise wrong("its weights lie at a place outside its folder") from error


def _fields(
    stream: BinaryIO, start: int, end: int, types: dict[int, int], wrong: Wrong
) -> Iterator[_Field]:
    """Give the fields of one message; bytes are skipped. types: the wire types of known fields."""
    at = start
    for _ in range(_MOST_FIELDS):
        if at == end:
            return
        stream.seek(at)
        tag, at = _varint(stream, at, end, wrong)
        number, kind = tag >> 3, tag & 7
        if not 1 <= number <= _HIGHEST_FIELD or types.get(number, kind) != kind:
            raise wrong(f"an impossible field at byte {at}")
        if kind == _VARINT:
            value, at = _varint(stream, at, end, wrong)
            yield _Field(number, value, at, at)
            continue
        if kind == _BYTES:
            length, at = _varint(stream, at, end, wrong)
        elif kind in (_FIXED32, _FIXED64):
            length = 4 if kind == _FIXED32 else 8
        else:
            raise wrong(f"an impossible wire type at byte {at}")
        if length > end - at:
            raise wrong(
                f"cut off: field {number} needs {length} bytes at {at}, {end - at} are left"
            )
        yield _Field(number, 0, at, at + length)
        at += length
    raise wrong("too many fields")


def _varint(stream: BinaryIO, at: int, end: int, wrong: Wrong) -> tuple[int, int]:
    value = 0
    for shift in range(0, 64, 7):
        byte = stream.read(1)
        if at >= end or not byte:
            raise wrong(f"cut off at byte {at}")
        at += 1
        value |= (byte[0] & 0x7F) << shift
        if byte[0] < 0x80:
            return value, at
    raise wrong(f"an impossible number at byte {at}")
