"""Usage over time on the page Keys: of all keys and of one, as bars and as a table."""

from collections.abc import Iterator

import pytest
from playwright.sync_api import Browser, expect

from hostler.testing.cluster import Cluster, fake_model
from tests.integration.console.browser import chromium, shot, signed_in
from tests.integration.console.steps import LOOKS, assert_usable_by_all, go

pytestmark = [pytest.mark.slow, pytest.mark.timeout(240)]


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    """Three good requests and a bad one of the key `laptop`, two of the administrator's."""
    chromium()
    with Cluster(fake_model("echo", tokens=8)) as made:
        key = made.json("POST", "/api/v1/keys", {"name": "laptop"})["key"]
        for text in ("one", "two", "three", "[[status=400]]"):
            body = {"model": "echo", "messages": [{"role": "user", "content": text}]}
            made.request("POST", "/v1/chat/completions", body, key=key)
        made.chat("echo", "four")
        made.chat("echo", "five")
        yield made


@pytest.mark.parametrize("look", LOOKS)
def test_usage_is_told_as_bars_by_keys_and_as_a_table(
    cluster: Cluster, browser: Browser, look: str
) -> None:
    with signed_in(browser, cluster, **LOOKS[look]) as page:
        go(page, "Keys")
        requests = page.locator(".chart").filter(has_text="Requests")
        tokens = page.locator(".chart").filter(has_text="Tokens")
        status = requests.get_by_role("status")
        expect(status).to_have_text("In all: 5 answered, 1 failed")
        expect(tokens.get_by_role("status")).to_contain_text("40 tokens out")
        shot(page, f"keys-usage-{look}")

        page.get_by_role("button", name="Usage of laptop").click()
        expect(status).to_have_text("In all: 3 answered, 1 failed")
        assert_usable_by_all(page)
        assert page.evaluate("document.documentElement.scrollWidth - innerWidth") <= 0

        plot = requests.get_by_role("group", name="Requests: 3 answered, 1 failed.")
        plot.focus()
        page.keyboard.press("Home")
        expect(status).to_contain_text(":00: 0 answered, 0 failed")
        page.keyboard.press("End")
        page.keyboard.press("ArrowLeft")
        expect(status).not_to_contain_text("In all")
        box = plot.bounding_box()
        assert box is not None
        page.mouse.move(box["x"] + box["width"] / 2, box["y"] + 40)
        expect(status).to_contain_text("0 answered, 0 failed")
        page.mouse.move(0, 0)
        expect(status).to_contain_text("In all")

        requests.get_by_role("button", name="Show as table").click()
        rows = requests.locator("tr[data-at]")
        expect(rows).to_have_count(24)
        page.get_by_label("Over").select_option("day")
        expect(rows).to_have_count(30)
        assert_usable_by_all(page)
        told = [int(cell) for cell in requests.locator("td:nth-child(2)").all_inner_texts()]
        assert sum(told) == 3
        requests.get_by_role("button", name="Show as bars").click()
        go(page, "Requests")
        go(page, "Keys")
        expect(page.get_by_label("Over")).to_have_value("day")
        expect(status).to_have_text("In all: 3 answered, 1 failed")


TICKS = "async (most) => (await import('/console/chart.js')).ticks(most)"


def test_an_axis_has_round_numbers_up_to_the_highest_bar(
    cluster: Cluster, browser: Browser
) -> None:
    with signed_in(browser, cluster) as page:
        assert page.evaluate(TICKS, 0) == [0, 1]
        assert page.evaluate(TICKS, 3) == [0, 1, 2, 3]
        assert page.evaluate(TICKS, 40) == [0, 10, 20, 30, 40]
        assert page.evaluate(TICKS, 1_234) == [0, 500, 1000, 1500]
