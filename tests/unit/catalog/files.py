"""Small model files made by hand, byte by byte: what the header readers are tried on."""

import json
import struct
import zipfile
from collections.abc import Mapping
from pathlib import Path


def text(value: str) -> bytes:
    raw = value.encode()
    return struct.pack("<Q", len(raw)) + raw


def key(name: str, kind: int, value: bytes) -> bytes:
    return text(name) + struct.pack("<I", kind) + value


def number(name: str, value: int) -> bytes:
    return key(name, 4, struct.pack("<I", value))


def words(name: str, values: list[str]) -> bytes:
    return key(name, 9, struct.pack("<IQ", 8, len(values)) + b"".join(text(v) for v in values))


def tensor(name: str, shape: list[int], kind: int, offset: int) -> bytes:
    sides = b"".join(struct.pack("<Q", side) for side in shape)
    return text(name) + struct.pack("<I", len(shape)) + sides + struct.pack("<IQ", kind, offset)


def gguf(
    *,
    keys: list[bytes] | None = None,
    tensors: list[bytes] | None = None,
    data: bytes | None = None,
) -> bytes:
    """Return a GGUF file of a made-up llama with two tensors, or of the parts given."""
    if keys is None:
        keys = [
            key("general.architecture", 8, text("llama")),
            key("general.name", 8, text("tiny")),
            number("general.file_type", 2),
            number("llama.context_length", 2048),
            number("llama.block_count", 4),
            number("llama.embedding_length", 64),
            number("llama.attention.head_count", 8),
            key("llama.attention.head_count_kv", 9, struct.pack("<IQ4I", 4, 4, 2, 2, 2, 2)),
            words("tokenizer.ggml.tokens", ["a", "b", "c"]),
            key("tokenizer.chat_template", 8, text("{{ messages }}")),
            key("tokenizer.ggml.add_bos_token", 7, b"\1"),
        ]
    if tensors is None:
        tensors = [tensor("embed", [64, 3], 0, 0), tensor("out", [64], 2, 768)]
        data = bytes(768 + 36)
    head = b"GGUF" + struct.pack("<IQQ", 3, len(tensors), len(keys)) + b"".join(keys + tensors)
    return head + bytes(-len(head) % 32) + (data or b"")


def varint(value: int) -> bytes:
    out = b""
    while value >= 0x80:
        out += bytes([value & 0x7F | 0x80])
        value >>= 7
    return out + bytes([value])


def field(number_: int, value: int | bytes) -> bytes:
    if isinstance(value, int):
        return varint(number_ << 3) + varint(value)
    return varint(number_ << 3 | 2) + varint(len(value)) + value


def onnx(*, location: str | None = None) -> bytes:
    """Return an ONNX file with one node and one initializer, its weights elsewhere when asked."""
    weights = field(8, b"w") + field(9, bytes(64))
    if location is not None:
        entry = field(1, b"location") + field(2, location.encode())
        weights = field(8, b"w") + field(13, entry) + field(14, 1)
    graph = field(1, field(4, b"Identity")) + field(2, b"g") + field(5, weights)
    graph += field(11, field(1, b"x")) + field(12, field(1, b"y"))
    return field(1, 8) + field(2, b"by hand") + field(7, graph) + field(8, field(2, 17))


def safetensors(header: Mapping[str, object] | None = None, data: bytes = bytes(24)) -> bytes:
    if header is None:
        header = {
            "__metadata__": {"format": "pt"},
            "a": {"dtype": "F32", "shape": [2, 2], "data_offsets": [0, 16]},
            "b": {"dtype": "F16", "shape": [4], "data_offsets": [16, 24]},
        }
    raw = json.dumps(header).encode()
    return struct.pack("<Q", len(raw)) + raw + data


def wheel(path: Path, members: Mapping[str, bytes]) -> Path:
    """Write a wheel that pip accepts, named by its own file name, with these members."""
    name, version = path.name.split("-")[:2]
    info = f"{name}-{version}.dist-info"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for member, content in members.items():
            archive.writestr(member, content)
        archive.writestr(
            f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"
        )
        archive.writestr(
            f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        archive.writestr(f"{info}/RECORD", "")
    return path
