"""The fake engine's texts: deterministic, and every kind of damage shows."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hostler.testing import fake_text

names = st.from_regex(r"[a-z0-9][a-z0-9._/-]{0,20}", fullmatch=True)


def chat(prompt: str, **more: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": prompt}], **more}


@given(names, st.text(), st.integers(0, 40))
def test_an_answer_is_a_pure_function_of_model_prompt_and_params(
    model: str, prompt: str, tokens: int
) -> None:
    body = chat(prompt, max_tokens=tokens, seed=3)
    again = {"seed": 3, "max_tokens": tokens, "messages": [{"content": prompt, "role": "user"}]}
    first = fake_text.expected_texts(model, body, 40)
    assert first == fake_text.expected_texts(model, again, 40)
    if not fake_text.magic_words(prompt):
        assert first[0].split() == [
            fake_text.token(model, fake_text.digest(fake_text.prompts_of(body)[0], body), n).strip()
            for n in range(tokens)
        ]


@given(names, st.text(), st.integers(1, 30))
def test_longer_answers_begin_with_shorter_ones(model: str, prompt: str, tokens: int) -> None:
    mark = fake_text.digest(prompt)
    shorter, longer = (fake_text.answer(model, mark, n) for n in (tokens, tokens + 1))
    assert longer.startswith(shorter)
    assert longer != shorter


@given(names, names, st.text())
def test_another_model_gives_another_answer(one: str, other: str, prompt: str) -> None:
    mark = fake_text.digest(prompt)
    told = fake_text.difference(fake_text.answer(one, mark), fake_text.answer(other, mark))
    assert bool(told) == (one != other)
    if told:
        assert f"of model {other!r}" in told


@pytest.mark.parametrize("name", fake_text.PARAMS)
def test_a_parameter_that_is_dropped_on_the_way_shows(name: str) -> None:
    assert fake_text.expected_texts("m", chat("x", **{name: 1})) != fake_text.expected_texts(
        "m", chat("x")
    )


@pytest.mark.parametrize(
    ("damage", "told"),
    [
        (lambda words: words[:-1], "cut: 15 of 16 tokens"),
        (lambda words: [*words, words[-1]], "too long"),
        (lambda words: [*words[:3], *words[4:]], "token 3 is out of order"),
        (lambda words: [*words[:3], words[2], *words[3:]], "token 3 is out of order"),
        (lambda words: [words[1], words[0], *words[2:]], "token 0 is out of order"),
        (lambda words: [*words[:5], words[5][:4], *words[6:]], "token 5 is broken"),
        (lambda words: [*words[:5], "m‖00000000‖5", *words[6:]], "answers another request"),
    ],
)
def test_every_damage_is_told_in_words(damage: Any, told: str) -> None:
    right = fake_text.answer("m", fake_text.digest("hello"))
    assert told in fake_text.difference(right, " ".join(damage(right.split())) + " ")
    assert fake_text.difference(right, right) == ""


def test_prompts_and_choices_have_texts_of_their_own() -> None:
    texts = fake_text.expected_texts("m", {"prompt": ["a", "b"], "n": 2})
    assert len(texts) == len(set(texts)) == 4


def test_token_ids_are_prompts_too() -> None:
    assert fake_text.prompts_of({"prompt": [1, 2]}) == ["[1,2]"]
    assert fake_text.prompts_of({"prompt": [[1], "x"]}) == ["[1]", "x"]


def test_magic_words_are_read_from_anywhere_in_a_prompt() -> None:
    assert fake_text.magic_words("a [[die]] b [[tokens=3]]") == {"die": "", "tokens": "3"}
    assert fake_text.token_limit(chat("[[tokens=3]]")) == (3, "stop")
    assert fake_text.token_limit(chat("[[tokens=3]]", max_tokens=2)) == (2, "length")


@given(names, st.text(), st.integers(1, 64))
def test_an_embedding_survives_float32(model: str, text: str, dimensions: int) -> None:
    vector = fake_text.embedding(model, text, dimensions)
    assert len(vector) == dimensions
    assert all(-1 <= value <= 1 and value * 128 == int(value * 128) for value in vector)


def test_a_ranking_names_every_document_once_best_first() -> None:
    ranked = fake_text.ranking("m", "q", ["a", {"text": "b"}, "c"])
    assert sorted(index for index, _ in ranked) == [0, 1, 2]
    assert [score for _, score in ranked] == sorted((s for _, s in ranked), reverse=True)
