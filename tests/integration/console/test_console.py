"""The console on a real server with a real model, as a person uses it, in a real Chromium."""

import os
import re
import signal
from collections.abc import Iterator

import pytest
from openai import OpenAI
from playwright.sync_api import Browser, Route, expect

from hostler.testing.cluster import Cluster
from tests.integration.console.browser import chromium, shot, signed_in
from tests.integration.console.steps import LOOKS, assert_usable_by_all, go, talk
from tests.models import model_path, models_dir

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

CHAT = "smollm2-135m-instruct"


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    chromium()
    model_path("chat")  # fetched once for all runs
    cluster = Cluster("models = []")
    cluster.state_dir.mkdir(mode=0o700)
    os.symlink(models_dir(), cluster.state_dir / "models")
    with cluster:
        yield cluster


def test_from_the_first_start_to_a_key_that_is_used(cluster: Cluster, browser: Browser) -> None:
    with signed_in(browser, cluster) as page:
        assert "ticket" not in page.url
        expect(page.get_by_text("No model was asked for yet")).to_be_visible()

        go(page, "Models")
        page.get_by_role("button", name="Start a model").click()
        expect(page.get_by_text("fits this machine now")).to_be_visible()
        page.get_by_text("Parameters of llama.cpp").click()
        assert_usable_by_all(page)
        page.get_by_label("Copies").fill("2")
        page.get_by_role("button", name="Start", exact=True).click()
        expect(page.get_by_text("2 of 2")).to_be_visible(timeout=60_000)

        go(page, "Playground")
        talk(page, "What is the capital of France? Answer in one word.")
        expect(page.locator(".said.assistant").first).to_contain_text("Paris")
        expect(page.locator(".said.assistant small").first).to_contain_text("tokens, first after")

        victim = cluster.ready(CHAT)[0]
        os.kill(victim["pid"], signal.SIGKILL)
        talk(page, "And of Italy? Answer in one word.")
        expect(page.locator(".said.assistant").nth(1)).to_contain_text("tokens, first after")
        go(page, "Models")
        expect(page.get_by_text("2 of 2")).to_be_visible(timeout=60_000)
        go(page, "Events")
        expect(page.get_by_text("instance.failed").first).to_be_visible()

        go(page, "Keys")
        page.get_by_role("button", name="Create a key").click()
        page.get_by_label("Name").fill("laptop")
        page.get_by_label("Share of a model").fill("2")
        page.get_by_role("button", name="Create", exact=True).click()
        key = page.locator("pre.key").inner_text()
        page.get_by_role("button", name="I have it").click()
        with OpenAI(base_url=f"{cluster.url}/v1", api_key=key, max_retries=0) as client:
            client.chat.completions.create(
                model=CHAT, messages=[{"role": "user", "content": "Hello"}], max_tokens=4
            )
        row = page.get_by_role("row").filter(has_text="laptop")
        expect(row).to_contain_text(re.compile(r"\d / 4"))
        expect(row).to_contain_text("share 2, normal")
        go(page, "Requests")
        expect(page.get_by_role("row").filter(has_text="laptop")).to_contain_text("ok")

        go(page, "Models")
        page.get_by_role("button", name=f"Stop {CHAT}").click()
        page.get_by_role("dialog").get_by_role("button", name="Stop").click()
        expect(page.get_by_text("0 of 0")).to_be_visible()
        expect(page.get_by_role("row").filter(has_text=CHAT)).to_contain_text("stopped")
        go(page, "Playground")
        expect(page.get_by_text("No model here can do that")).to_be_visible()
    cluster.wait_for(lambda: not cluster.ready(CHAT), 20, "it is gone")


def test_settings_are_found_by_name_and_say_where_they_came_from(
    cluster: Cluster, browser: Browser
) -> None:
    with signed_in(browser, cluster, **LOOKS["phone"]) as page:
        go(page, "Settings")
        expect(page.get_by_text(str(cluster.config))).to_be_visible()
        page.get_by_role("searchbox", name="Search").fill("server.port")
        row = page.get_by_role("row").filter(has_text="port")
        expect(row).to_have_count(1)
        expect(row).to_contain_text("option --port")
        expect(row).to_contain_text("0: the kernel picks a free one")
        page.get_by_role("searchbox", name="Search").fill("")
        page.keyboard.press("Tab")
        page.keyboard.press("Space")
        expect(page.get_by_role("checkbox")).to_be_checked()
        expect(page.get_by_role("heading", name="heartbeat")).to_have_count(0)
        expect(page.get_by_text("state_dir")).to_be_visible()


def test_a_running_model_is_changed_and_what_is_wrong_with_a_change_is_said(
    cluster: Cluster, browser: Browser
) -> None:
    model = {"model": "changing", "engine": "fake", "worker_type": "llm", "params": {"tokens": 3}}
    cluster.json("POST", "/api/v1/models", model)
    with signed_in(browser, cluster) as page:
        go(page, "Models")
        row = page.get_by_role("row").filter(has_text="changing")
        expect(row).to_contain_text("1 of 1")

        def change(**fields: str) -> None:
            page.get_by_role("button", name="Change changing").click()
            for name, text in fields.items():
                page.get_by_role("dialog").locator(f"#{name.replace('_', '-')}").fill(text)
            page.get_by_role("dialog").get_by_role("button", name="Change").click()

        def told_wrong(what: str) -> None:
            expect(page.get_by_role("alert")).to_contain_text(what)
            page.get_by_role("button", name="Cancel").click()

        change()
        told_wrong("Nothing is other than it was")
        change(p_tokens="many")
        told_wrong("many is no whole number")
        change(p_tokens="9", p_script='{"exit_at_start": 7}')
        told_wrong("old specification")
        page.get_by_role("button", name="Change changing").click()
        assert page.locator("#p-tokens").input_value() == "3"
        page.get_by_text("Machine, routing, scaling").click()
        page.locator("#m-routing").fill("{nonsense")
        page.get_by_role("dialog").get_by_role("button", name="Change").click()
        expect(page.get_by_role("alert")).to_contain_text("Routing: this is no JSON")
        assert_usable_by_all(page)
        shot(page, "models-change")
        page.locator("#m-routing").fill('{"policy": "round-robin"}')
        page.locator("#p-tokens").fill("5")
        page.get_by_role("dialog").get_by_role("button", name="Change").click()
        expect(page.get_by_role("dialog")).to_have_count(0)
        kept = cluster.json("GET", "/api/v1/models/changing")["deployment"]
        assert kept["params"]["tokens"] == 5
        assert kept["routing"]["policy"] == "round-robin"
        expect(row).to_contain_text("1 of 1")
        page.get_by_role("button", name="Change changing").click()
        page.get_by_text("Machine, routing, scaling").click()
        page.locator("#m-routing").fill("")
        page.locator("#p-tokens").fill("")
        page.get_by_role("dialog").get_by_role("button", name="Change").click()
        expect(page.get_by_role("dialog")).to_have_count(0)
        kept = cluster.json("GET", "/api/v1/models/changing")["deployment"]
        assert "tokens" not in kept["params"]
        assert not kept.get("routing", {}).get("policy")

        page.get_by_role("button", name="Stop changing").click()
        page.get_by_role("dialog").get_by_role("button", name="Stop").click()
        page.get_by_role("button", name="Forget changing").click()
        page.get_by_role("dialog").get_by_role("button", name="Forget").click()
        expect(row).to_have_count(0)
    # the oracle sees no orders of the page: it is to see this one end, too
    cluster.json("POST", "/api/v1/models", model)
    cluster.json("DELETE", "/api/v1/models/changing?delete=true")


def test_one_instance_is_restarted_after_a_question(cluster: Cluster, browser: Browser) -> None:
    wish = {"model": "talker", "engine": "fake", "replicas": 2}
    cluster.json("POST", "/api/v1/models", wish)
    cluster.wait_for(lambda: len(cluster.ready("talker")) == 2, 60, "both are ready")
    old, other = cluster.ready("talker")
    with signed_in(browser, cluster) as page:
        go(page, "Instances")
        name = f"Restart {old['instance_id']}"
        page.get_by_role("button", name=name).click()
        page.get_by_role("dialog").get_by_role("button", name="Cancel").click()
        page.get_by_role("button", name=name).click()
        expect(page.get_by_role("dialog")).to_contain_text("finishes what it has and ends")
        assert_usable_by_all(page)
        page.get_by_role("dialog").get_by_role("button", name="Restart").click()
        expect(page.get_by_text("another one is started in its place")).to_be_visible()
        rows = page.get_by_role("row").filter(has_text="talker")
        expect(rows.filter(has_text=old["instance_id"])).to_have_count(0, timeout=60_000)
        expect(rows.filter(has_text="ready")).to_have_count(2)
        expect(rows.filter(has_text=other["instance_id"])).to_have_count(1)
        shot(page, "instances-restart")
    cluster.json("DELETE", "/api/v1/models/talker?delete=true")
    cluster.wait_for(lambda: not cluster.ready("talker"), 20, "it is gone")


@pytest.mark.parametrize("is_back", [True, False])
def test_a_page_of_which_a_part_did_not_come_asks_again_and_is_never_just_empty(
    cluster: Cluster, browser: Browser, is_back: bool
) -> None:
    lost: list[str] = []

    def lose(route: Route) -> None:
        if is_back and len(lost) >= 2:  # once ahead, once by who imports it
            route.continue_()
            return
        lost.append(route.request.url)
        route.abort()

    made = cluster.json("POST", "/api/v1/session/tickets")
    with browser.new_context() as window:
        page = window.new_page()
        page.route("**/console/pages/keys.js", lose)
        page.goto(f"{cluster.url}/#ticket={made['ticket']}")
        if is_back:
            expect(page.get_by_role("heading", name="Overview")).to_be_visible()
        else:
            expect(page.get_by_text("Is the server well?")).to_be_visible()
            assert 4 <= len(lost) <= 8  # by each of four pages, once or twice


def test_it_is_small_and_quick(cluster: Cluster, browser: Browser) -> None:
    with signed_in(browser, cluster) as page:
        sizes = page.evaluate(
            "performance.getEntriesByType('resource').concat(performance.getEntriesByType('navigation'))"
            ".filter((e) => !e.name.includes('/api/')).map((e) => e.encodedBodySize)"
        )
        assert 5_000 < sum(sizes) <= 150_000


def test_signing_out_ends_the_session_and_a_wrong_key_is_told(
    cluster: Cluster, browser: Browser
) -> None:
    with signed_in(browser, cluster) as page:
        cookies = {one["name"]: one for one in page.context.cookies()}
        [session] = [one for name, one in cookies.items() if name.startswith("hostler_session")]
        assert session["httpOnly"] is True
        assert session["sameSite"] == "Strict"
        assert page.evaluate("document.cookie") == ""
        page.get_by_role("button", name="Sign out").click()
        page.get_by_label("API key").fill("hst_wrong")
        page.get_by_role("button", name="Sign in").click()
        expect(page.get_by_role("alert")).to_contain_text("A valid API key is needed")
        page.get_by_label("API key").fill(cluster.admin_key)
        page.get_by_role("button", name="Sign in").click()
        expect(page.get_by_role("heading", name="Overview")).to_be_visible()
    value = f"{session['name']}={session['value']}"
    headers = {"cookie": value, "x-hostler-console": "1"}
    status, _, _ = cluster.request("GET", "/v1/models", headers=headers, key="")
    assert status == 401
