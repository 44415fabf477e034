"""A file of the page does not come: refused, cut off or never answered. The page says so and asks again."""

from collections.abc import Callable, Iterator

import pytest
from playwright.sync_api import Browser, Page, Route, expect

from hostler.testing.cluster import Cluster
from tests.integration.console.browser import chromium

pytestmark = [pytest.mark.slow, pytest.mark.timeout(120)]

TROUBLES: dict[str, tuple[str, Callable[[Route], None]]] = {
    "refused": ("/console/app.js", lambda route: route.fulfill(status=503)),
    "cut": ("/console/pages/keys.js", lambda route: route.abort("connectionreset")),
    "silent": ("/console/vendor/htm-preact.js", lambda route: None),
}


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    chromium()
    with Cluster("models = []\n") as made:
        yield made


@pytest.fixture
def page(browser: Browser) -> Iterator[Page]:
    with browser.new_context() as window:
        yield window.new_page()


@pytest.mark.parametrize("trouble", TROUBLES)
def test_a_file_that_does_not_come_is_asked_for_again(
    cluster: Cluster, page: Page, trouble: str
) -> None:
    file, break_it = TROUBLES[trouble]
    asked: list[str] = []

    def first_time(route: Route) -> None:
        asked.append(route.request.url)
        if len(asked) == 1:
            break_it(route)
        else:
            route.continue_()

    page.route(f"**{file}", first_time)
    page.goto(cluster.url, wait_until="commit")
    expect(page.get_by_label("API key")).to_be_visible()
    assert len(asked) >= 2
    assert page.evaluate("sessionStorage.getItem('boot')") is None


def test_a_file_that_never_comes_is_told_and_asked_for_no_more(
    cluster: Cluster, page: Page
) -> None:
    asked: list[str] = []

    def never(route: Route) -> None:
        asked.append(route.request.url)
        route.fulfill(status=503)

    page.route("**/console/pages/keys.js", never)
    page.goto(cluster.url, wait_until="commit")
    told = page.get_by_text("Reload the page to ask again.")
    expect(told).to_be_visible()
    count = len(asked)
    page.wait_for_timeout(2_500)  # longer than its longest pause
    assert len(asked) == count
    page.unroute("**/console/pages/keys.js")
    page.reload()
    expect(page.get_by_label("API key")).to_be_visible()


def test_without_its_first_file_the_page_says_what_to_do(cluster: Cluster, page: Page) -> None:
    page.route("**/console/boot.js", lambda route: route.fulfill(status=503))
    page.goto(cluster.url)
    expect(page.get_by_text("Loading…")).to_be_visible()
    hint = page.get_by_text("If this stays, reload the page.")
    assert not hint.is_visible()
    expect(hint).to_be_visible()
    page.unroute("**/console/boot.js")
    page.reload()
    expect(page.get_by_label("API key")).to_be_visible()
