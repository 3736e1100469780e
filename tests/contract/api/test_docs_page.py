"""`/docs` in a real browser: it works within its own policy, and forgets the token."""

from __future__ import annotations

import pytest

from tests.api import serving
from tests.browser import Page, browser
from tests.cluster import printing

pytestmark = pytest.mark.timeout(600)  # the first time the browser is installed

_OWN = "[id$=get_own_token]"
_TYPE = """(() => {
  const input = document.querySelector(".auth-container input");
  Object.getOwnPropertyDescriptor(HTMLInputElement.prototype, "value").set.call(input, "TOKEN");
  input.dispatchEvent(new Event("input", {bubbles: true}));
})()"""


def click(page: Page, selector: str) -> None:
    page.until(f"!!document.querySelector({selector!r})")
    page.value(f"document.querySelector({selector!r}).click()")


def test_a_token_is_used_and_forgotten() -> None:
    with serving() as api, browser(printing) as page:
        page.ask("Page.addScriptToEvaluateOnNewDocument", source=_WATCH)
        page.load(f"{api.url}/docs")
        click(page, ".btn.authorize")
        page.until("!!document.querySelector('.auth-container input')")
        page.value(_TYPE.replace("TOKEN", api.root))
        click(page, ".auth-btn-wrapper .authorize")
        click(page, ".btn-done")
        click(page, f"{_OWN} .opblock-summary-control")
        click(page, f"{_OWN} .try-out__btn")
        click(page, f"{_OWN} .execute")
        answer = f"document.querySelector('{_OWN} .live-responses-table .response .highlight-code')?.innerText"
        assert '"scope": "admin"' in page.until(answer)
        assert page.value("window.refused.join()") == ""
        kept = page.value("JSON.stringify([{...localStorage}, {...sessionStorage}, document.cookie])")
        assert api.root.rpartition("_")[2] not in kept


_WATCH = """
window.refused = [];
document.addEventListener("securitypolicyviolation", event => {
  window.refused.push(event.violatedDirective + " " + event.blockedURI);
});
"""
