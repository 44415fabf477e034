"""What every test gets: an order that shows the quick failures first."""

import pytest

_ROOMS = ("unit", "integration", "chaos")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Unit, integration, chaos; everything marked `slow` after that. One run, one closing line."""
    items.sort(key=_rank)


# Private


def _rank(item: pytest.Item) -> tuple[bool, int]:
    folders = item.path.parts
    room = next((number for number, name in enumerate(_ROOMS) if name in folders), -1)
    return item.get_closest_marker("slow") is not None, room
