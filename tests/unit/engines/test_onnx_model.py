"""From a folder to vectors, with an encoder small enough to work the answers out by hand."""

import json
from pathlib import Path

import numpy as np
import pytest

from hostler.core.errors import BadRequest, ModelFormatError
from hostler.engines.onnx_model import OnnxModel, Vector, find_model, quantizes_batches
from hostler.engines.parameters import OnnxParameters
from tests.unit.engines.tiny_onnx import TABLE, WORDS, write_model, write_tokenizer

CLS, SEP = WORDS.index("[CLS]"), WORDS.index("[SEP]")
ONE, TWO = WORDS.index("one"), WORDS.index("two")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_model(tmp_path)
    write_tokenizer(tmp_path)
    return tmp_path


def made(folder: Path, reranks: bool = False, **params: object) -> OnnxModel:
    parameters = OnnxParameters(**params)  # type: ignore[arg-type]
    return OnnxModel(folder, parameters, reranks)


def unit(vector: Vector) -> Vector:
    """The vector at length 1."""
    scaled: Vector = vector / np.linalg.norm(vector)
    return scaled


def test_mean_pooling_averages_the_real_tokens_only(folder: Path) -> None:
    model = made(folder)
    assert (model.pooling, model.dimensions) == ("mean", 4)
    short, long = model.encode(["one", "one two three four"])
    expected = unit(TABLE[[CLS, ONE, SEP]].mean(axis=0))
    for vector in (model.compute([short])[0], model.compute([long, short])[1]):
        np.testing.assert_allclose(vector, expected, atol=1e-6)


def test_cls_pooling_takes_the_first_token_and_length_may_stay(folder: Path) -> None:
    model = made(folder, pooling="cls", normalize=False)
    (vector,) = model.compute(model.encode(["one two"]))
    np.testing.assert_allclose(vector, TABLE[CLS], atol=1e-6)


@pytest.mark.parametrize(
    ("file", "content", "pooling"),
    [
        ("1_Pooling/config.json", {"pooling_mode_cls_token": True}, "cls"),
        ("1_Pooling/config.json", {"pooling_mode_mean_tokens": True}, "mean"),
        ("config.json", {"_name_or_path": "BAAI/bge-small-en"}, "cls"),
        ("config.json", {"_name_or_path": "all-MiniLM-L6-v2"}, "mean"),
    ],
)
def test_pooling_is_what_the_folder_says(
    folder: Path, file: str, content: dict[str, object], pooling: str
) -> None:
    (folder / file).parent.mkdir(exist_ok=True)
    (folder / file).write_text(json.dumps(content))
    assert made(folder).pooling == pooling


def test_inputs_are_cut_to_the_least_of_what_the_files_say(folder: Path) -> None:
    assert made(folder).max_length == 512
    (folder / "config.json").write_text('{"max_position_embeddings": 8, "model_type": "roberta"}')
    (folder / "tokenizer_config.json").write_text('{"model_max_length": 1e30}')
    model = made(folder)
    assert model.max_length == 6
    assert len(model.encode(["one " * 100])[0]) == 6
    assert model.count("one " * 100) == 102
    assert len(made(folder, max_length=3).encode(["one two three"])[0]) == 3


def test_token_ids_are_the_text_and_foreign_ones_are_refused(folder: Path) -> None:
    model = made(folder)
    text, ids = model.encode(["one two", [ONE, TWO]])
    assert list(text.ids) == list(ids.ids) == [CLS, ONE, TWO, SEP]
    assert len(model.encode([[ONE] * 1000])[0]) == 512
    for wrong in ([8], [-1]):
        with pytest.raises(BadRequest, match="0 to 7"):
            model.encode([wrong])


@pytest.mark.parametrize("kind", ["int32", "int64"])
def test_the_models_own_inputs_and_number_types_are_used(tmp_path: Path, kind: str) -> None:
    write_tokenizer(tmp_path)
    for inputs in (
        ("input_ids",),
        ("attention_mask", "input_ids", "token_type_ids"),
    ):
        write_model(tmp_path, inputs=inputs, kind=kind)
        (vector,) = made(tmp_path, pooling="cls").compute(made(tmp_path).encode(["one"]))
        np.testing.assert_allclose(vector, unit(TABLE[CLS]), atol=1e-6)


def test_a_dynamically_quantized_model_is_computed_text_by_text(tmp_path: Path) -> None:
    write_tokenizer(tmp_path)
    assert not quantizes_batches(write_model(tmp_path))
    path = write_model(tmp_path, note="x_DynamicQuantizeLinear")
    assert quantizes_batches(path)
    model = made(tmp_path)
    together = model.compute(model.encode(["one", "one two"]))
    alone = [model.compute(model.encode([text]))[0] for text in ("one", "one two")]
    np.testing.assert_array_equal(together, alone)


def test_folders_that_cannot_work_say_why(tmp_path: Path) -> None:
    with pytest.raises(ModelFormatError, match="found none"):
        find_model(tmp_path)
    (tmp_path / "model.onnx").write_bytes(b"\x08\x08garbage")
    with pytest.raises(ModelFormatError, match=r"cannot load model.onnx"):
        made(tmp_path)
    write_model(tmp_path)
    with pytest.raises(ModelFormatError, match=r"tokenizer.json: not found"):
        made(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(ModelFormatError, match="not a tokenizer"):
        made(tmp_path)
    write_tokenizer(tmp_path)
    write_model(tmp_path, inputs=("input_ids", "pixel_values"))
    with pytest.raises(ModelFormatError, match="pixel_values"):
        made(tmp_path)
    write_model(tmp_path, table=TABLE[:2])  # no rows for [CLS] and [SEP]
    with pytest.raises(ModelFormatError, match="cannot compute a text"):
        made(tmp_path)
    write_model(tmp_path)
    with pytest.raises(ModelFormatError, match="1 or 2 logits"):
        made(tmp_path, reranks=True)


def test_a_tokenizer_may_lie_elsewhere(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    write_model(tmp_path / "model")
    write_tokenizer(tmp_path)
    model = made(tmp_path / "model", tokenizer=str(tmp_path / "tokenizer.json"))
    assert len(model.encode(["one two"])[0]) == 4
