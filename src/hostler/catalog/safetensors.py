"""The header of a safetensors file, checked against the file.

Source: the format's own page (huggingface/safetensors): 8 bytes of length, JSON, then the data
without holes. Weights are never read.
"""

import math
import struct
from pathlib import Path

import msgspec

from hostler.core.errors import ModelFormatError

_LONGEST_HEADER = 100_000_000  # the format's own limit
_MOST_DIMENSIONS = 16
_BITS = {
    "BOOL": 8, "U8": 8, "I8": 8, "F8_E5M2": 8, "F8_E4M3": 8, "F8_E8M0": 8, "I16": 16, "U16": 16,
    "F16": 16, "BF16": 16, "I32": 32, "U32": 32, "F32": 32, "F64": 64, "I64": 64, "U64": 64,
    "C64": 64,     "F4": 4, "F6_E2M3": 6, "F6_E3M2": 6,
}  # fmt: skip


class _Tensor(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    dtype: str
    shape: list[int]
    data_offsets: tuple[int, int]


class SafetensorsHeader(msgspec.Struct, frozen=True, kw_only=True):
    tensor_count: int
    weights_bytes: int


def read_safetensors(path: Path) -> SafetensorsHeader:
    """Return the header of a safetensors file.

    Raises:
        ModelFormatError: not safetensors, cut off, or with tensors that overlap or leave holes.
    """
    try:
        size = path.stat().st_size
        with path.open("rb") as stream:
            head = stream.read(8)
            length = struct.unpack("<Q", head)[0] if len(head) == 8 else 0
            if not 2 <= length <= min(_LONGEST_HEADER, size - 8):
                raise _wrong(path, f"a header of {length} bytes in a file of {size}")
            raw = stream.read(length)
    except OSError as error:
        raise _wrong(path, f"cannot be read: {error.strerror}") from error
    try:
        fields = msgspec.json.decode(raw, type=dict[str, msgspec.Raw])
        if "__metadata__" in fields:
            msgspec.json.decode(fields.pop("__metadata__"), type=dict[str, str])
        tensors = [
            (msgspec.json.decode(value, type=_Tensor), name) for name, value in fields.items()
        ]
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise _wrong(path, f"its header is not what the format asks: {error}") from error
    end = 0
    for tensor, name in sorted(tensors, key=lambda pair: pair[0].data_offsets):
        start, stop = tensor.data_offsets
        if start != end or stop < start:
            raise _wrong(path, f"tensor {name[:100]!r} lies at {start}, expected {end}")
        _check_size(path, tensor, name[:100])
        end = stop
    if 8 + length + end != size:
        raise _wrong(path, f"{size} bytes here, the header announces {8 + length + end}")
    return SafetensorsHeader(tensor_count=len(tensors), weights_bytes=end)


# Private


def _check_size(path: Path, tensor: _Tensor, name: str) -> None:
    bits = _BITS.get(tensor.dtype)
    start, stop = tensor.data_offsets
    if bits is None:
        raise _wrong(path, f"tensor {name!r}: type {tensor.dtype[:20]!r}")
    if len(tensor.shape) > _MOST_DIMENSIONS or any(
        not 0 <= side < 1 << 48 for side in tensor.shape
    ):
        raise _wrong(path, f"tensor {name!r}: impossible shape")
    if math.prod(tensor.shape) * bits != (stop - start) * 8:
        raise _wrong(path, f"tensor {name!r}: its shape and its bytes differ")


def _wrong(path: Path, why: str) -> ModelFormatError:
    return ModelFormatError(f"{path.name}: not a usable safetensors file: {why}; fetch it again")
