"""The header of a GGUF file, read with every length checked before it is believed.

Source: the GGUF specification of ggml-org/ggml (docs/gguf.md); tensors lie one after another, as
llama.cpp demands. Weights are never read.
"""

import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

import msgspec

from hostler.core.errors import ModelFormatError

# type number: (values a block, bytes a block)
_BLOCKS = {
    0: (1, 4), 1: (1, 2), 2: (32, 18), 3: (32, 20), 6: (32, 22), 7: (32, 24), 8: (32, 34),
    9: (32, 36), 10: (256, 84), 11: (256, 110), 12: (256, 144), 13: (256, 176), 14: (256, 210),
    15: (256, 292),
    16: (256, 66), 17: (256, 74), 18: (256, 98), 19: (256, 50), 20: (32, 18), 21: (256, 110),
    22: (256, 82), 23: (256, 136), 24: (1, 1), 25: (1, 2), 26: (1, 4), 27: (1, 8), 28: (1, 8),
    29: (256, 56), 30: (1, 2), 34: (256, 54), 35: (256, 66), 39: (32, 17),
}  # fmt: skip
_FILE_TYPES = {
    0: "F32", 1: "F16", 2: "Q4_0", 3: "Q4_1", 7: "Q8_0", 8: "Q5_0", 9: "Q5_1", 10: "Q2_K", 
    11: "Q3_K_S", 12: "Q3_K_M", 13: "Q3_K_L", 14: "Q4_K_S", 15: "Q4_K_M", 16: "Q5_K_S",
    17: "Q5_K_M",
    18: "Q6_K",
    19: "IQ2_XXS", 20: "IQ2_XS", 21: "Q2_K_S", 22: "IQ3_XS", 23: "IQ3_XXS", 24: "IQ1_S",
    25: "IQ4_NL",
    26: "IQ3_S", 27: "IQ3_M", 28: "IQ2_S", 29: "IQ2_M", 30: "IQ4_XS", 31: "IQ1_M", 32: "BF16",
    36: "TQ1_0", 37: "TQ2_0", 38: "MXFP4",
}  # fmt: skip
_NEWEST_KNOWN_TYPE = 39
_HIGHEST_TYPE = 63
_SCALARS = {
    0: "B",
    1: "b",
    2: "H",
    3: "h",
    4: "I",
    5: "i",
    6: "f",
    7: "?",
    10: "Q",
    11: "q",
    12: "d",
}
_STRING, _ARRAY, _BOOL = 8, 9, 7

_MOST_KEYS, _MOST_TENSORS = 10_000, 200_000
_LONGEST_KEY, _LONGEST_STRING = 1024, 16 << 20
_LONGEST_ARRAY = 8_000_000
_MOST_TEXTS = 3_000_000  # in all arrays together; the largest vocabulary known has 0.3 million
_LONGEST_HEADER = 512 << 20
_KEPT_STRING, _KEPT_ARRAY = 1 << 20, 1024


class GgufHeader(msgspec.Struct, frozen=True, kw_only=True):
    """What Hostler uses of a GGUF header. Counts are None when the file does not tell."""

    version: int
    architecture: str
    name: str = ""
    quantisation: str = ""
    tensor_count: int = 0
    parameter_count: int = 0
    weights_bytes: int = 0
    context_length: int | None = None
    block_count: int | None = None
    embedding_length: int | None = None
    head_count: int | None = None
    head_count_kv: int | None = None
    key_length: int | None = None
    value_length: int | None = None
    vocabulary: int | None = None
    has_chat_template: bool = False


def read_gguf(path: Path) -> GgufHeader:
    """Return the header of a GGUF file.

    Time and memory are bounded by the counts above, whatever the file says.

    Raises:
        ModelFormatError: not GGUF, cut off, or inconsistent; the message says at which byte.
    """
    try:
        with path.open("rb") as stream:
            size = stream.seek(0, 2)
            stream.seek(0)
            return _Reader(stream, size, path.name).header()
    except OSError as error:
        raise ModelFormatError(f"{path.name}: cannot be read: {error.strerror}") from error


# Private


class _Reader:
    def __init__(self, stream: BinaryIO, size: int, name: str) -> None:
        self._stream = stream
        self._size = size
        self._name = name
        self._at = 0
        self._texts = 0

    def header(self) -> GgufHeader:
        if self._take(4) != b"GGUF":
            raise self._wrong("does not start with GGUF")
        version = self._number("I")
        if version not in (2, 3):
            raise self._wrong(f"GGUF version {version}; known: 2 and 3 (little-endian)")
        tensor_count, key_count = self._number("Q"), self._number("Q")
        self._check_count("tensors", tensor_count, _MOST_TENSORS, 25)
        self._check_count("metadata keys", key_count, _MOST_KEYS, 13)
        if not tensor_count:
            raise self._wrong("it holds no weights")
        keys = self._keys(key_count)
        alignment = keys.get("general.alignment", 32)
        if not isinstance(alignment, int) or not 8 <= alignment <= 65536 or alignment % 8:
            raise self._wrong(f"alignment {alignment!r}")
        parameters, data_bytes = self._tensors(tensor_count, alignment)
        start = -(-self._at // alignment) * alignment
        if start + data_bytes > self._size:
            raise self._wrong(
                f"cut off: {self._size} bytes here, the header announces {start + data_bytes}"
            )
        return self._summary(version, keys, tensor_count, parameters, data_bytes)

    def _keys(self, count: int) -> dict[str, Any]:
        keys: dict[str, Any] = {}
        for _ in range(count):
            key = self._text(_LONGEST_KEY)
            if not key or not key.isascii() or not key.isprintable():
                raise self._wrong("a metadata key that is not printable ASCII")
            if key in keys:
                raise self._wrong(f"metadata key {key} twice")
            keys[key] = self._value(self._number("I"))
        return keys

    def _value(self, kind: int) -> Any:
        if kind == _STRING:
            return self._text(_LONGEST_STRING)
        if kind == _ARRAY:
            return self._array()
        if kind == _BOOL:
            if (byte := self._take(1)) not in (b"\0", b"\1"):
                raise self._wrong("a truth value that is neither 0 nor 1")
            return byte == b"\1"
        if kind not in _SCALARS:
            raise self._wrong(f"metadata value type {kind}")
        return self._number(_SCALARS[kind])

    def _array(self) -> Any:
        """Return a short array of numbers; of a long one, or one of texts, only its length."""
        kind, length = self._number("I"), self._number("Q")
        if kind == _ARRAY or (kind != _STRING and kind not in _SCALARS):
            raise self._wrong(f"array of type {kind}")
        width = 8 if kind == _STRING else struct.calcsize("<" + _SCALARS[kind])
        self._check_count("array items", length, _LONGEST_ARRAY, width)
        if kind == _STRING:
            self._texts += length
            if self._texts > _MOST_TEXTS:
                raise self._wrong(f"more than {_MOST_TEXTS} texts in its arrays")
            for _ in range(length):
                self._skip(self._length(_LONGEST_STRING))
            return _Length(length)
        if length > _KEPT_ARRAY:
            self._skip(length * width)
            return _Length(length)
        return list(struct.unpack(f"<{length}{_SCALARS[kind]}", self._take(length * width)))

    def _tensors(self, count: int, alignment: int) -> tuple[int, int]:
        """Check that the tensors lie one after another; return (values, bytes of data)."""
        names: set[str] = set()
        parameters = end = data_bytes = 0
        known = True
        for _ in range(count):
            name = self._text(_LONGEST_KEY)
            dimensions = self._number("I")
            if not name or name in names or not 1 <= dimensions <= 4:
                raise self._wrong(
                    f"tensor {name!r}: without a name, twice, or of {dimensions} dimensions"
                )
            names.add(name)
            shape = [self._number("Q") for _ in range(dimensions)]
            values = 1
            for side in shape:
                values *= side
            if values <= 0 or values >= 1 << 56:
                raise self._wrong(f"tensor {name}: impossible shape {shape}")
            kind, offset = self._number("I"), self._number("Q")
            if offset % alignment or (known and offset != end) or offset < end:
                raise self._wrong(f"tensor {name}: its data starts at {offset}, expected {end}")
            if kind in _BLOCKS:
                block, width = _BLOCKS[kind]
                if shape[0] % block:
                    raise self._wrong(f"tensor {name}: rows of {shape[0]} in blocks of {block}")
                data_bytes = offset + values // block * width
                known = True
            elif _NEWEST_KNOWN_TYPE < kind <= _HIGHEST_TYPE:
                data_bytes, known = offset + 1, False  # newer than this table: its size is its own
            else:
                raise self._wrong(f"tensor {name}: type {kind}")
            if data_bytes > self._size:
                raise self._wrong(f"cut off: tensor {name} ends after the file")
            end = -(-data_bytes // alignment) * alignment
            parameters += values
        return parameters, data_bytes

    def _summary(
        self, version: int, keys: dict[str, Any], tensors: int, parameters: int, data_bytes: int
    ) -> GgufHeader:
        architecture = keys.get("general.architecture")
        if not isinstance(architecture, str) or not architecture:
            raise self._wrong("no general.architecture: not a model")
        number = _numbers(keys, architecture)
        tokens = keys.get("tokenizer.ggml.tokens")
        file_type = keys.get("general.file_type")
        return GgufHeader(
            version=version,
            architecture=architecture[:64],
            name=str(keys.get("general.name", ""))[:200],
            quantisation=_FILE_TYPES.get(file_type, "") if isinstance(file_type, int) else "",
            tensor_count=tensors,
            parameter_count=parameters,
            weights_bytes=data_bytes,
            context_length=number("context_length"),
            block_count=number("block_count"),
            embedding_length=number("embedding_length"),
            head_count=number("attention.head_count"),
            head_count_kv=number("attention.head_count_kv"),
            key_length=number("attention.key_length"),
            value_length=number("attention.value_length"),
            vocabulary=tokens.count if isinstance(tokens, _Length) else None,
            has_chat_template=isinstance(keys.get("tokenizer.chat_template"), str),
        )

    def _text(self, longest: int) -> str:
        length = self._length(longest)
        raw = self._take(length)
        if length > _KEPT_STRING:
            raw = raw[:_KEPT_STRING]
        try:
            return raw.decode(errors="strict" if length <= _KEPT_STRING else "ignore")
        except UnicodeDecodeError as error:
            raise self._wrong("a text that is not UTF-8") from error

    def _length(self, longest: int) -> int:
        length: int = self._number("Q")
        if length > longest:
            raise self._wrong(f"a text of {length} bytes; the most is {longest}")
        return length

    def _number(self, form: str) -> Any:
        return struct.unpack("<" + form, self._take(struct.calcsize("<" + form)))[0]

    def _take(self, count: int) -> bytes:
        self._reserve(count)
        data = self._stream.read(count)
        if len(data) != count:
            raise self._wrong("cut off while it was read")
        return data

    def _skip(self, count: int) -> None:
        self._reserve(count)
        self._stream.seek(self._at)

    def _reserve(self, count: int) -> None:
        if self._at + count > self._size:
            raise self._wrong(
                f"cut off: needs {count} more bytes, {self._size - self._at} are left"
            )
        if self._at + count > _LONGEST_HEADER:
            raise self._wrong(f"a header over {_LONGEST_HEADER >> 20} MiB")
        self._at += count

    def _check_count(self, what: str, count: int, most: int, least_width: int) -> None:
        if count > most or count * least_width > self._size - self._at:
            raise self._wrong(f"{count} {what}, more than can be in this file")

    def _wrong(self, why: str) -> ModelFormatError:
        return ModelFormatError(
            f"{self._name}: not a usable GGUF file: {why} (at byte {self._at}); fetch it again"
        )


class _Length:
    """Stands for an array that was skipped."""

    def __init__(self, count: int) -> None:
        self.count = count


def _numbers(keys: dict[str, Any], architecture: str) -> Callable[[str], int | None]:
    """Return a reader of `ARCHITECTURE.name`; of one number a layer it takes the largest."""

    def read(name: str) -> int | None:
        value = keys.get(f"{architecture}.{name}")
        if isinstance(value, list) and value:
            value = max(value)
        if isinstance(value, bool) or not isinstance(value, int) or not 0 < value < 1 << 31:
            return None
        return value

    return read
