"""The dashboard in a real browser, as a user works with it, over a cluster in memory.

What was seen is kept in `build/screenshots`.
"""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest

from hatch_build import DASHBOARD, ROOT, build_dashboard, install_packages
from shoal.model import verbs
from shoal.model.access import Caller, Scope
from shoal.model.builds import BuildInfo, BuildLog, BuildState
from tests.api import Api, serving
from tests.browser import Page, browser
from tests.cluster import printing
from tests.processes import eventually

pytestmark = pytest.mark.engine

SHOTS = ROOT / "build" / "screenshots"
HOSTILE = "<img src=x onerror=alert(1)>\u202egnp.exe"
_NOTE_FAULTS = """
window.faults = [];
addEventListener("securitypolicyviolation", (e) => faults.push(`${e.violatedDirective} ${e.blockedURI}`));
addEventListener("error", (e) => faults.push(e.message));
addEventListener("unhandledrejection", (e) => faults.push(String(e.reason)));
"""
_AXE = """axe.run(document, {resultTypes: ["violations"]}).then((found) => found.violations
  .filter((each) => ["serious", "critical"].includes(each.impact))
  .map((each) => `${each.id}: ${each.nodes.map((node) => node.html).join(" ")}`))"""


class Dashboard:
    """The browser, signed in, and a sandbox to look at."""

    def __init__(self, page: Page, api: Api, sandbox: str) -> None:
        self.page = page
        self.api = api
        self.sandbox = sandbox
        self.of_sandbox = f"/e/main/sandboxes/{sandbox}"

    def open(self, path: str, selector: str) -> None:
        """Goes there; returns once the element that the page is about is seen."""
        self.page.load(self.api.url + path)
        self.sees(selector)

    def sees(self, selector: str, text: str = "") -> None:
        found = f"[...document.querySelectorAll({json.dumps(selector)})]"
        self.page.until(f"{found}.some((e) => e.innerText.includes({json.dumps(text)}))")

    def press_button(self, label: str) -> None:
        """The last button of that name: one in a dialog, where one is open."""
        mark = f"""(() => {{
          const named = (e) => e.innerText.trim() === {json.dumps(label)} && e.getClientRects().length;
          const all = [...document.querySelectorAll("button")].filter(named);
          document.querySelectorAll("[data-test]").forEach((e) => e.removeAttribute("data-test"));
          all.at(-1)?.setAttribute("data-test", "");
          return all.length;
        }})()"""
        self.page.until(mark)
        self.page.click("[data-test]")


@pytest.fixture(scope="module")
def dashboard() -> Iterator[Dashboard]:
    build_dashboard()
    with serving() as api, browser(printing) as page:
        assert api.ask("POST", "/v1/volumes", {"name": "data", "size": 10 << 30}).status == 201
        mount = {"path": "/data", "volume": "data", "read_only": True}
        sandbox = api.sandbox(image=HOSTILE, tags={HOSTILE: "<b>x</b>"}, command=["cat"], volumes=[mount])
        page.before_each(_NOTE_FAULTS)
        page.show_as(1280, 800)
        page.load(link(api))
        yield Dashboard(page, api, sandbox["id"])


def link(api: Api) -> str:
    """What `shoal dashboard` prints."""
    command = [sys.executable, "-m", "shoal.cli.main", "--url", api.url, "dashboard", "--no-open"]
    environment = {**os.environ, "SHOAL_TOKEN": api.root}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.startswith(f"{api.url}/#sign-in=")
    return done.stdout.strip()


@pytest.mark.timeout(900)  # the first time the browser is installed
def test_a_link_signs_in_and_hostile_names_are_text(dashboard: Dashboard) -> None:
    page, sandbox = dashboard.page, dashboard.sandbox
    dashboard.sees("nav", "admin in all environments")
    assert page.value("location.hash") == ""
    dashboard.open("/e/main/sandboxes", "tbody tr")
    dashboard.sees("tr", sandbox)
    dashboard.sees(".tag", "\\u{202e}gnp.exe")
    assert page.value("document.querySelector('main img')") is None
    page.click(f'a[href$="{sandbox}"]')
    dashboard.sees(".timeline li", "running")


def test_output_of_processes_is_text(dashboard: Dashboard) -> None:
    said = f"<b>bold</b>\x1b[31m red {'x' * 100_000}"
    started = dashboard.api.ask("POST", f"/v1/sandboxes/{dashboard.sandbox}/processes", {"argv": ["echo", said]})
    assert started.status == 201
    dashboard.open(f"{dashboard.of_sandbox}/processes", "tbody tr")
    dashboard.press_button("stdout")
    dashboard.sees(".stream pre", "<b>bold</b> red")
    assert dashboard.page.value("document.querySelector('.stream pre').innerText.length") < 10_000


def test_files_go_in_and_come_out(dashboard: Dashboard, tmp_path: Path) -> None:
    page = dashboard.page
    sent = tmp_path / "notes <i>.txt"
    sent.write_text("from the browser")
    dashboard.open(f"{dashboard.of_sandbox}/files?path=/tmp", "input[type=file]")
    page.choose_file("input[type=file]", sent)
    dashboard.sees("td", sent.name)
    at = f"/v1/sandboxes/{dashboard.sandbox}/files?path=/tmp/{quote(sent.name)}"
    assert dashboard.api.ask("GET", at).body == b"from the browser"
    dashboard.press_button(sent.name)
    dashboard.sees("dialog .look", "from the browser")
    page.press("Escape", 27)
    got = page.value("fetch([...document.querySelectorAll('td a[download]')].at(-1).href).then((r) => r.text())")
    assert got == "from the browser"


def test_a_volume_is_made_filled_deleted_and_restored(dashboard: Dashboard, tmp_path: Path) -> None:
    page = dashboard.page
    sent = tmp_path / "answer.txt"
    sent.write_text("42")
    dashboard.open("/e/main/volumes", "tbody tr")
    dashboard.press_button("New volume")
    page.click("dialog input[required]")
    page.write("results")
    dashboard.press_button("Make")
    page.click('a[href$="/volumes/results"]')
    dashboard.sees(".files .empty", "empty")
    page.choose_file("input[type=file]", sent)
    dashboard.sees("td", sent.name)
    assert dashboard.api.ask("GET", "/v1/volumes/results/files?path=answer.txt").body == b"42"
    dashboard.press_button("Delete")
    dashboard.sees("dialog", "restored")
    dashboard.press_button("Delete")
    dashboard.sees("section h2", "Deleted")
    page.click('[aria-label="Restore results"]')
    dashboard.sees('a[href$="/volumes/results"]', "results")
    assert page.value("faults") == []


class Building:
    """A builder with one build, whose log is written as a test goes on."""

    def __init__(self) -> None:
        self.text = f"step 1 of 2\n\x1b[32m{HOSTILE}\x1b[0m\n"
        self.info = BuildInfo("bd-running", "main", BuildState.RUNNING, 2, 1, started_at=time.time())

    async def builds(self, by: Caller) -> list[BuildInfo]:
        return [self.info]

    async def log(self, build_id: str, offset: int, wait: float, by: Caller) -> BuildLog:
        await asyncio.sleep(0.05)
        return BuildLog(self.text[offset:], len(self.text), self.info)


def test_the_log_of_a_build_is_followed(dashboard: Dashboard) -> None:
    building = Building()
    dashboard.api.fake.use_builder(building)
    dashboard.open("/e/main/images", "section tbody tr")
    dashboard.page.click('a[href$="/images/builds/bd-running"]')
    dashboard.sees(".stream pre", "<img src=x onerror=alert(1)>")
    dashboard.sees("figcaption", "Follows")
    building.text += "step 2 of 2\n"
    dashboard.sees(".stream pre", "step 2 of 2")
    building.info = replace(building.info, state=BuildState.DONE, step=2, image="im-made", ended_at=time.time())
    dashboard.sees("figcaption", "the end")
    dashboard.sees("main", "im-made")
    assert dashboard.page.value("document.querySelector('main img')") is None


def test_the_rewards_of_a_rollout_are_drawn_as_they_come(dashboard: Dashboard) -> None:
    page, api = dashboard.page, dashboard.api
    dashboard.open("/e/dev/rollouts", ".empty pre")
    dashboard.sees("nav [aria-current]", "Rollouts")
    dashboard.open("/e/dev/pools", ".empty")
    assert "Rollouts" not in page.value("document.querySelector('nav').innerText"), "there is none in this environment"
    rewards = {"items": [8, 16, 24], "counts": [7, 8, 8], "mean": [0.2, 0.3, 0.55], "least": [-0.5, 0, 0]}
    report: dict[str, Any] = {"name": HOSTILE, "total": 100, "done": 24, "failed": 1, "running": 8, "seconds": 30}
    report["rewards"] = {**rewards, "most": [1, 1, 1]}
    assert api.ask("PUT", "/v1/rollouts/ro-drawn", report).status == 204
    assert api.ask("PUT", "/v1/rollouts/ro-empty", {**report, "state": "stopped", "rewards": {}}).status == 204
    dashboard.open("/e/main/rollouts", "tbody tr")
    dashboard.sees("nav [aria-current]", "Rollouts")
    dashboard.sees("td a", "<img src=x onerror=alert(1)>\\u{202e}gnp.exe")
    dashboard.sees("td .meter-text", "24 of 100")
    page.value("document.querySelector('a[href$=\"/rollouts/ro-drawn\"]').click()")  # its middle is between two lines
    dashboard.sees(".chart li", "mean 0.55")
    report["rewards"] = {name: [*values, values[-1]] for name, values in report["rewards"].items()}
    report["rewards"]["items"][-1] = 32
    report["rewards"]["mean"][-1] = 0.75
    assert api.ask("PUT", "/v1/rollouts/ro-drawn", {**report, "done": 32}).status == 204
    dashboard.sees(".chart li", "mean 0.75")
    dashboard.sees(".figure", "32")
    assert page.value("document.querySelector('main img')") is None
    assert page.value("faults") == []


def test_every_page_is_accessible_and_keeps_to_its_policy(dashboard: Dashboard) -> None:
    install_packages(development=True)
    axe = (ROOT / DASHBOARD / "web/node_modules/axe-core/axe.min.js").read_text("utf-8")
    page, found = dashboard.page, {}
    for number, (path, selector) in enumerate(PAGES):
        dashboard.open(path.format(sandbox=dashboard.of_sandbox), selector)
        page.value(f"{axe};0")
        name = path.format(sandbox="sandbox").strip("/").replace("/", "-").partition("?")[0]
        dark = number % 2 == 1
        page.show_as(1280, 800, dark=dark)
        found[path] = [*page.value(_AXE), *page.value("faults")]
        page.screenshot(SHOTS / f"{name}{'-dark' if dark else ''}.png")
        page.show_as(360, 800)
        page.until("document.documentElement.scrollWidth <= document.documentElement.clientWidth")
    page.show_as(1280, 800)
    assert {path: faults for path, faults in found.items() if faults} == {}


PAGES = (
    ("/e/main/overview", ".chart .u-wrap"),
    ("/e/main/sandboxes", "tbody tr"),
    ("/e/main/rollouts", "tbody tr"),
    ("/e/main/rollouts/ro-drawn", ".chart .u-wrap"),
    ("/e/main/pools", ".empty, table"),
    ("/e/main/images", ".empty, table"),
    ("/e/main/images/builds/bd-running", ".stream pre"),
    ("/e/main/volumes", "tbody .meter"),
    ("/e/main/volumes/data?path=/", ".files .empty"),
    ("/e/main/secrets", ".empty, table"),
    ("/cluster/nodes", ".empty, table"),
    ("/cluster/environments", "tbody tr"),
    ("/cluster/tokens", "tbody tr"),
    ("/cluster/audit", "tbody tr"),
    ("{sandbox}", ".timeline li"),
    ("{sandbox}/terminal", ".xterm-screen"),
    ("{sandbox}/files?path=/tmp", "tbody tr"),
    ("{sandbox}/tunnels", ".empty, table"),
    ("{sandbox}/usage", ".empty, .chart"),
    ("{sandbox}/spec", ".command"),
)


def test_the_table_is_sorted_by_the_cluster(dashboard: Dashboard) -> None:
    page = dashboard.page
    for name in ("sort-b", "sort-c", "sort-a"):
        dashboard.api.sandbox(name=name, environment="dev")
    dashboard.open("/e/dev/sandboxes?search=sort-", "tbody tr")
    names = "[...document.querySelectorAll('tbody a')].map((e) => e.innerText).join()"
    for order in ("sort-a,sort-b,sort-c", "sort-c,sort-b,sort-a"):
        page.click('[aria-label="Sort by name"]')
        page.until(f"{names} === {json.dumps(order)}")
    assert "sort=-name" in page.value("location.search"), "the view can be shared"


def test_an_end_is_seen_at_once(dashboard: Dashboard) -> None:
    page, other = dashboard.page, dashboard.api.sandbox()["id"]
    dashboard.open("/e/main/sandboxes", "tbody tr")
    dashboard.sees("tr", other)
    page.click(f'a[href$="{other}"]')
    dashboard.press_button("Terminate")
    dashboard.sees("dialog", "files are lost")
    dashboard.press_button("Terminate")
    dashboard.sees(".banner", "terminated")
    dashboard.open(f"/e/main/sandboxes?state=ended&search={other}", "tbody tr")
    dashboard.sees("tr", "terminated")


def test_a_page_says_that_the_cluster_is_away_and_goes_on_by_itself(dashboard: Dashboard) -> None:
    page = dashboard.page
    dashboard.open("/e/dev/sandboxes?search=away", ".empty")
    page.cut_off(True)
    dashboard.sees(".away", "does not answer")
    made = dashboard.api.sandbox(environment="dev", name="away")["id"]
    page.cut_off(False)
    dashboard.sees("tr", made)
    page.until("!document.querySelector('.away')")
    dashboard.open("/e/main/sandboxes", "tbody tr")
    assert made not in page.value("document.querySelector('tbody').innerText"), "each environment has its own"


def test_two_tabs_show_two_environments_until_one_of_them_signs_out(dashboard: Dashboard) -> None:
    api = dashboard.api
    for environment in ("main", "dev"):
        api.sandbox(environment=environment, name=f"tab-{environment}")
    with dashboard.page.another() as page:
        other = Dashboard(page, api, dashboard.sandbox)
        dashboard.open("/e/main/sandboxes?search=tab-", "tbody tr")
        other.open("/e/dev/sandboxes?search=tab-", "tbody tr")
        api.sandbox(environment="main", name="tab-later")
        dashboard.sees("tr", "tab-later")
        for each, its in ((dashboard, "tab-main"), (other, "tab-dev")):
            assert its in each.page.value("document.querySelector('tbody').innerText")
            assert each.page.value("document.querySelectorAll('tbody tr').length") == (2 if each is dashboard else 1)
        dashboard.press_button("Sign out")
        dashboard.sees("h1", "Sign in")
        other.sees("h1", "Sign in")
    dashboard.page.load(link(api))
    dashboard.sees("nav", "admin in all environments")


def test_a_revoked_session_ends(dashboard: Dashboard) -> None:
    page, api = dashboard.page, dashboard.api
    info, text = api.run(api.fake.ask(verbs.create_token, "short", "main", Scope.READ, None))
    dashboard.open("/cluster/environments", "nav")
    dashboard.press_button("Sign out")
    sign_in(dashboard, text)
    dashboard.sees(".who", "read in main")
    assert page.value("document.querySelector('nav').innerText.includes('Tokens')") is False
    api.run(api.fake.ask(verbs.revoke_token, info.id))
    eventually(lambda: api.ask("GET", "/v1/tokens/self", token=text).status == 401)
    page.value("document.querySelector('a[href$=\"/images\"]')?.click()")  # unless it has noticed by itself
    dashboard.sees("h1", "Sign in")
    sign_in(dashboard, "shoal_tk-wrong")
    dashboard.sees("[role=alert]", "no API token")


def sign_in(dashboard: Dashboard, token: str) -> None:
    dashboard.sees(".sign-in input")
    dashboard.page.click(".sign-in input")
    dashboard.page.write(token)
    dashboard.press_button("Sign in")
