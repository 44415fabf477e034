"""A query becomes a struct, or a mistake that names its field."""

import pytest

from hostler.core.errors import BadRequest, UnknownParameter
from hostler.core.timeline import RequestOutcome, RequestQuery
from hostler.wire.structs import read_query


def test_a_query_has_the_types_it_is_declared_with() -> None:
    told = read_query("model=a%2Fb&limit=5&outcome=ok&here=true&since=1.5", RequestQuery)
    assert told == RequestQuery(
        model="a/b", limit=5, outcome=RequestOutcome.OK, here=True, since=1.5
    )
    assert read_query("", RequestQuery) == RequestQuery()


@pytest.mark.parametrize(
    ("query", "param", "told"),
    [
        ("limit=5&limit=6", "limit", "given twice"),
        ("limit=0", "limit", "expected `int` >= 1"),
        ("limit=many", "limit", "expected `int`"),
        ("outcome=fine", "outcome", "invalid enum value 'fine'"),
        ("&".join(f"a{n}=1" for n in range(21)), None, "more than 20 fields"),
    ],
)
def test_a_wrong_query_is_refused_and_the_field_named(
    query: str, param: str | None, told: str
) -> None:
    with pytest.raises(BadRequest) as caught:
        read_query(query, RequestQuery)
    assert caught.value.param == param
    assert told in caught.value.message


def test_an_unknown_field_is_told_with_the_nearest() -> None:
    with pytest.raises(UnknownParameter, match="did you mean 'outcome'"):
        read_query("outcom=ok", RequestQuery)
