"""Joining and cutting is what the tokenizers library does, without what it keeps of the rest."""

import threading
import time
from pathlib import Path

import pytest
from tokenizers import Tokenizer

from hostler.engines.onnx_model import OnnxModel
from hostler.engines.onnx_pairs import PairForm, cut_longest
from hostler.engines.parameters import OnnxParameters
from tests.unit.engines.tiny_onnx import write_model, write_tokenizer


@pytest.fixture
def tokenizer(tmp_path: Path) -> Tokenizer:
    write_tokenizer(tmp_path)
    made = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    made.no_padding()
    return made


@pytest.mark.parametrize("left", [0, 1, 3, 8, 30])
@pytest.mark.parametrize("right", [0, 1, 4, 9, 30])
@pytest.mark.parametrize("most", [9, 12, 40, 64])
def test_a_pair_is_joined_and_cut_as_the_library_does(
    tokenizer: Tokenizer, left: int, right: int, most: int
) -> None:
    form = PairForm(tokenizer)
    ids, types = form.join([4] * left, [5] * right, most)
    tokenizer.enable_truncation(most, strategy="longest_first")
    expected = tokenizer.encode("one " * left, "two " * right)
    assert (ids, types) == (expected.ids, expected.type_ids)


def test_what_is_kept_fills_the_room() -> None:
    assert cut_longest(100, 100, 9) == (4, 5)
    assert cut_longest(101, 100, 9) == (5, 4)
    assert cut_longest(2, 100, 9) == (2, 7)
    assert cut_longest(100, 2, 9) == (7, 2)


def test_a_pair_of_long_texts_costs_what_its_length_says(tmp_path: Path) -> None:
    """Cut by the library, this pair would make 170 million parts of parts."""
    write_model(tmp_path)
    write_tokenizer(tmp_path)
    model = OnnxModel(tmp_path, OnnxParameters(max_length=16), reranks=False)
    began_s = time.monotonic()
    (pair,) = model.encode_pairs("one " * 200_000, ["two " * 200_000])
    assert len(pair) == 16
    assert time.monotonic() - began_s < 30


def test_a_long_text_holds_no_other_thread_up(tmp_path: Path) -> None:
    """A worker whose loop stands still for seconds is taken for dead, with all that it works on."""
    write_model(tmp_path)
    write_tokenizer(tmp_path)
    model = OnnxModel(tmp_path, OnnxParameters(), reranks=False)
    done = threading.Event()

    def work() -> None:
        model.encode(["one two three four " * 200_000])
        done.set()

    turns = 0
    worker = threading.Thread(target=work)
    worker.start()
    while not done.wait(0.001):
        turns += 1
    worker.join()
    assert turns > 10
