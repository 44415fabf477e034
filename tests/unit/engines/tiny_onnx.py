"""A tiny encoder made by hand: an ONNX graph of one Gather, and a word tokenizer. No onnx package.

The hidden state of a token is its row in a table, so every expected vector can be worked out.
"""

from pathlib import Path

import numpy as np
import numpy.typing as npt
from tokenizers import Tokenizer, models, pre_tokenizers, processors

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "one", "two", "three", "four"]
TABLE: npt.NDArray[np.float32] = np.random.default_rng(7).normal(size=(8, 4)).astype(np.float32)

_FLOAT, _INT32, _INT64 = 1, 6, 7
_KINDS = {"int64": _INT64, "int32": _INT32}


def write_model(
    folder: Path,
    *,
    inputs: tuple[str, ...] = ("input_ids", "attention_mask"),
    kind: str = "int64",
    output: str = "last_hidden_state",
    table: npt.NDArray[np.float32] = TABLE,
    note: str = "",
) -> Path:
    """Write model.onnx: output = table[input_ids]. note: a name inside the graph."""
    gather = _field(1, b"table") + _field(1, b"input_ids") + _field(2, output.encode())
    node = gather + _field(3, note.encode()) + _field(4, b"Gather")
    rows, width = table.shape
    tensor = _varint(1, rows) + _varint(1, width) + _varint(2, _FLOAT)
    tensor += _field(8, b"table") + _field(9, table.tobytes())
    graph = _field(1, node) + _field(2, b"tiny") + _field(5, tensor)
    for name in inputs:
        graph += _field(11, _value(name, _KINDS[kind], ("batch", "length")))
    graph += _field(12, _value(output, _FLOAT, ("batch", "length", "width")))
    model = _varint(1, 8) + _field(7, graph) + _field(8, _varint(2, 17))
    path = folder / "model.onnx"
    path.write_bytes(model)
    return path


def write_tokenizer(folder: Path) -> None:
    """Write tokenizer.json with fixed padding, as rerankers are often published."""
    vocabulary = {word: number for number, word in enumerate(WORDS)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", 2), ("[SEP]", 3)],
    )
    tokenizer.enable_padding(length=64)
    tokenizer.save(str(folder / "tokenizer.json"))


# Private


def _value(name: str, kind: int, dimensions: tuple[str, ...]) -> bytes:
    shape = b"".join(_field(1, _field(2, item.encode())) for item in dimensions)
    return _field(1, name.encode()) + _field(2, _field(1, _varint(1, kind) + _field(2, shape)))


def _field(number: int, data: bytes) -> bytes:
    """A length-delimited protobuf field."""
    return _number(number << 3 | 2) + _number(len(data)) + data


def _varint(number: int, value: int) -> bytes:
    return _number(number << 3) + _number(value)


def _number(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)
