"""The playground with tools and JSON: what a model calls is shown, and one says what that gave."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, expect

from hostler.testing.cluster import Cluster
from tests.integration.console.browser import chromium, shot, signed_in
from tests.integration.console.porter import HOSTILE
from tests.integration.console.steps import LOOKS, assert_usable_by_all, go, talk

pytestmark = [pytest.mark.slow, pytest.mark.timeout(240)]


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    chromium()
    root = Path(__file__).parents[3]
    with Cluster(
        '[[models]]\nname = "porter"\ntype = "llm"\nengine = "python"\n[models.params]\n'
        f'worker_class = "tests.integration.console.porter:Porter"\npython_path = "{root}"\n'
    ) as made:
        yield made


def tool(name: str) -> dict[str, object]:
    return {"type": "function", "function": {"name": name, "parameters": {"type": "object"}}}


def fill_tools(page: Page, text: str) -> None:
    page.get_by_label("Tools the model may call").fill(text)


def open_fields(page: Page) -> None:
    go(page, "Playground")
    page.get_by_text("Tools and JSON answers").click()


@pytest.mark.parametrize("look", LOOKS)
def test_tools_are_called_and_answered(cluster: Cluster, browser: Browser, look: str) -> None:
    with signed_in(browser, cluster, **LOOKS[look]) as page:
        open_fields(page)
        fill_tools(page, json.dumps([tool("get_weather"), tool("find_inn")]))
        talk(page, "What is the weather, and where do I sleep?")
        calls = page.locator(".said.assistant .call")
        expect(calls).to_have_count(2)
        expect(calls.nth(0)).to_contain_text("calls get_weather")
        shown = calls.nth(1).locator("pre").inner_text()
        assert shown == json.dumps({"town": "Bern", "note": HOSTILE, "n": 1}, indent=2)
        assert page.evaluate("document.querySelectorAll('main img').length") == 0
        # nothing else can be sent before the tools have been answered for
        page.get_by_label("Message", exact=True).fill("And then?")
        expect(page.get_by_role("button", name="Send")).to_be_disabled()
        assert_usable_by_all(page)
        page.get_by_label("What get_weather gave").fill('{"celsius": 21}')
        page.get_by_label("What find_inn gave").fill("The Bear")
        shot(page, f"playground-tools-{look}")
        page.get_by_role("button", name="Go on with these results").click()
        answer = page.locator(".said.assistant").nth(1)
        gave = {"get_weather": '{"celsius": 21}', "find_inn": "The Bear"}
        expect(answer.locator("code.json")).to_have_text(
            json.dumps({"gave": gave, "whole": True}, indent=2), use_inner_text=True
        )
        expect(page.locator(".said.tool").first).to_contain_text("tool get_weather")
        expect(page.get_by_label("What get_weather gave")).to_have_count(0)
        expect(page.get_by_role("button", name="Send")).to_be_enabled()
        answer.get_by_role("button", name="Plain").click()
        expect(answer).to_contain_text(json.dumps({"gave": gave, "whole": True}))
        expect(answer.locator("code.json")).to_have_count(0)
        shot(page, f"playground-answer-{look}")
        assert page.evaluate("document.documentElement.scrollWidth - innerWidth") <= 0
        assert page.title() == "Playground · Hostler"


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("[", "This is no JSON"),
        ("{}", "A list of tools is needed"),
        ('[{"type": "function"}]', "Tool 1:"),
        (json.dumps([tool("one"), tool("two words")]), 'Tool 2: "name" is needed'),
        (
            '[{"type": "function", "function": {"name": "a", "parameters": []}}]',
            '"parameters" is a JSON schema',
        ),
    ],
)
def test_what_is_no_list_of_tools_is_told_and_not_sent(
    cluster: Cluster, browser: Browser, text: str, told: str
) -> None:
    with signed_in(browser, cluster) as page:
        open_fields(page)
        page.get_by_label("Message", exact=True).fill("Hello")
        fill_tools(page, text)
        expect(page.get_by_role("alert")).to_contain_text(told)
        expect(page.get_by_role("button", name="Send")).to_be_disabled()
        page.get_by_role("button", name="Put an example there").click()
        expect(page.get_by_role("alert")).to_have_count(0)
        expect(page.get_by_role("button", name="Send")).to_be_enabled()


def test_an_answer_can_be_asked_for_as_json_of_a_schema(cluster: Cluster, browser: Browser) -> None:
    with signed_in(browser, cluster) as page:
        open_fields(page)
        page.get_by_role("combobox", name="Answer").select_option("json_schema")
        page.get_by_label("Message", exact=True).fill("Hello")
        expect(page.get_by_role("alert")).to_contain_text("A JSON schema is needed")
        expect(page.get_by_role("button", name="Send")).to_be_disabled()
        schema = {"type": "object", "properties": {"town": {"type": "string"}}}
        page.get_by_label("JSON schema of the answer").fill(json.dumps(schema))
        talk(page, "Hello")
        wanted = {"name": "answer", "schema": schema, "strict": True}
        shape = {"type": "json_schema", "json_schema": wanted}
        expect(page.locator("code.json")).to_have_text(
            json.dumps({"shape": shape}, indent=2), use_inner_text=True
        )
