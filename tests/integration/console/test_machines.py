"""The page Machines beside a real host process, which joins by what the page says."""

import shlex
from collections.abc import Iterator

import pytest
from playwright.sync_api import Browser, Page, expect

from hostler.testing.cluster import LOOPBACK, Cluster, fake_model
from hostler.testing.host_run import HostRun
from tests.integration.console.browser import chromium, shot, signed_in
from tests.integration.console.steps import assert_usable_by_all, go

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    chromium()
    with Cluster(fake_model("echo"), joined_at=LOOPBACK) as cluster:
        yield cluster


def sure(page: Page, verb: str) -> None:
    page.get_by_role("dialog").get_by_role("button", name=verb).click()
    expect(page.get_by_role("dialog")).to_have_count(0)


def test_a_machine_is_let_in_gets_a_model_is_emptied_and_removed(
    cluster: Cluster, browser: Browser
) -> None:
    with HostRun() as host, signed_in(browser, cluster, ignore_https_errors=True) as page:
        go(page, "Machines")
        expect(page.get_by_text("Only the server's own machine works here")).to_be_visible()
        page.get_by_role("button", name="Let a machine in").click()
        page.get_by_label("Name of the token").fill("rack 2")
        assert_usable_by_all(page)
        page.get_by_role("button", name="Make a token").click()
        told = shlex.split(page.locator("pre.key").inner_text())
        assert told[:3] == ["hostler", "host", "join"]
        page.get_by_role("button", name="Done").click()
        token = page.get_by_role("region", name="Join tokens").get_by_role("row")
        expect(token.filter(has_text="rack 2")).to_be_visible()

        more = ("--address=127.0.0.1", "--port=0", "--name=b", "--labels=gpu=a100")
        host.start(*told[1:], *more)
        row = page.get_by_role("region", name="Machines").get_by_role("row").filter(has_text="b")
        row = row.filter(has_text="gpu=a100")
        expect(row).to_contain_text("alive")
        expect(token.filter(has_text="rack 2")).to_have_count(0)  # it was for one

        go(page, "Models")
        page.get_by_role("button", name="Change echo").click()
        page.get_by_text("Machine, routing, scaling").click()
        page.get_by_role("combobox", name="Machine").select_option("b")
        sure(page, "Change")
        assert [one["host_name"] for one in cluster.ready("echo")] == ["b"]

        go(page, "Machines")
        expect(row.get_by_role("cell").nth(7)).to_have_text("1")
        assert_usable_by_all(page)
        shot(page, "machines-light")
        page.get_by_role("button", name="Remove b").click()
        page.get_by_role("dialog").get_by_role("button", name="Remove").click()
        expect(page.get_by_role("alert")).to_contain_text("instances")
        page.get_by_role("button", name="Cancel").click()
        page.get_by_role("button", name="Drain b").click()
        sure(page, "Drain")
        expect(row).to_contain_text("draining")
        page.get_by_role("button", name="Use again b").click()
        sure(page, "Use again")
        expect(row).to_contain_text("alive")

        go(page, "Models")
        page.get_by_role("button", name="Change echo").click()
        page.get_by_text("Machine, routing, scaling").click()
        page.get_by_role("combobox", name="Machine").select_option("the server's own")
        sure(page, "Change")
        go(page, "Machines")
        page.get_by_role("button", name="Remove b").click()
        sure(page, "Remove")
        expect(row).to_have_count(0)
        host.wait_gone()


def test_the_gateways_are_renewed_and_a_token_is_revoked(
    cluster: Cluster, browser: Browser
) -> None:
    with signed_in(browser, cluster, ignore_https_errors=True) as page:
        go(page, "Machines")
        before = set(cluster.pids("gateway"))
        page.get_by_role("button", name="Renew the gateways").click()
        sure(page, "Renew")
        cluster.wait_for(
            lambda: bool(now := set(cluster.pids("gateway"))) and not now & before, 30, "new ones"
        )
        page.get_by_role("button", name="Let a machine in").click()
        page.get_by_label("Name of the token").fill("unwanted")
        page.get_by_role("button", name="Make a token").click()
        page.get_by_role("button", name="Done").click()
        page.get_by_role("button", name="Revoke unwanted").click()
        sure(page, "Revoke")
        expect(page.get_by_text("None now.")).to_be_visible()
