"""What objects show of themselves in a notebook: bounded, escaped text, whatever a sandbox says."""

from __future__ import annotations

import pickle
import sys
import types
from collections.abc import Callable
from html.parser import HTMLParser
from typing import Any

import pytest

import shoal
from shoal.client import html
from shoal.client.html import Listed
from shoal.client.rollouts import bar
from shoal.model.info import NodeInfo
from tests.unit.client_lab import ClientLab

HOSTILE = "<script>alert(1)</script>&\"'\x1b]0;title\x07\u202egnp.exe\u200b\ud800\x00"
OURS = {"div", "b", "br", "small", "code", "pre", "bdi", "table", "thead", "tbody", "tr", "th", "td", "progress"}


class Seen(HTMLParser):
    """The elements of a page and its text."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.names: set[str] = set()
        self.attributes: set[str] = set()
        self.text = ""
        self.feed(page)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.names.add(tag)
        self.attributes |= {name for name, _ in attrs}

    def handle_data(self, data: str) -> None:
        self.text += data


def hostile_results() -> list[Any]:
    long = HOSTILE * 100_000
    result = shoal.Result(1, long, f"{HOSTILE}\n" * 100_000, 0.5, False, True)
    raw = shoal.Result(0, long.encode("utf-8", "surrogatepass"), b"\xff" * 100_000, 0.5, False, False)
    tags = {f"{HOSTILE}{number}": long for number in range(1000)}
    lab = ClientLab()
    sandbox = shoal.Sandbox.create(image="x<y", tags={"a": "<b>"}, client=lab.client)
    outcomes = [shoal.Outcome(n, long, None, ValueError(long), 1, 0.5, None) for n in range(100)]
    outcomes += [shoal.Outcome(0, tags, Rude(), None, 1, 0.5, long)]
    entries = [shoal.Entry(HOSTILE, f"/{HOSTILE}", "link", 1, 0o777, 0, 0, 0, long)] * 1000
    return [
        *(result, raw, sandbox, *outcomes, shoal.Outcomes(outcomes)),
        shoal.Reward(0.5, {"score": 0.5, HOSTILE: long}, long, result),
        Listed(entries, "name kind size target"),
        Listed([shoal.NotFound(long)], "id"),
        Listed([types.SimpleNamespace(tags=tags, nested=[[long] * 1000] * 1000)], "tags nested"),
    ]


class Rude:
    def __repr__(self) -> str:
        raise RuntimeError


def test_what_is_hostile_is_bounded_text() -> None:
    for shown in hostile_results():
        page = shown._repr_html_()
        seen = Seen(page)
        assert seen.names <= OURS, shown
        assert seen.attributes <= {"style"}
        assert len(page) < 60_000
        assert all(c.isprintable() or c in "\t\n" for c in seen.text)
        page.encode()


def test_output_reads_as_in_a_terminal_without_its_colours() -> None:
    page = html.block("\x1b[1;31mred\x1b[0m <ok>\r\nnext\tcell\x07")
    assert Seen(page).text == "red <ok>\nnext\tcell\\x07"
    assert html.block("") == html.block(b"") == ""
    lines = Seen(html.block("first\n" + "x" * 1_000_000 + "\nlast")).text.splitlines()
    assert (lines[0], lines[-1]) == ("first", "last")
    assert any("996,011" in line for line in lines)


def test_a_result_tells_how_it_ended() -> None:
    seen = Seen(shoal.Result(-9, "out", "err", 1.5, True, True)._repr_html_())
    assert all(word in seen.text for word in ("timed out", "1.5 s", "dropped", "out", "stderr", "err"))
    assert "exit code 0" in Seen(shoal.Result(0, "", "", 1.5, False, False)._repr_html_()).text


def test_a_sandbox_and_a_list_of_them_ask_nobody() -> None:
    lab = ClientLab()
    made = shoal.Sandbox.create_many([{"name": "web"}, {"memory": -1}], return_errors=True, client=lab.client)
    assert isinstance(made, list)
    text = Seen(made._repr_html_()).text  # type: ignore[attr-defined]
    assert "web" in text
    assert "running" in text
    assert "InvalidRequest" in text
    found = shoal.Sandbox.list(client=lab.client)
    assert found == list(found)
    assert "web" in Seen(found[0]._repr_html_()).text


def test_a_list_is_one_for_all_else() -> None:
    listed = Listed([NodeInfo("n", "a", "h", None, "oci", (), True, 0, 0, 1, 1, 1, 1, 1, 1)], "hostname")
    again = pickle.loads(pickle.dumps(listed))
    assert again == listed
    assert again._repr_html_() == listed._repr_html_()
    assert Listed([], "id")._repr_html_() == "<small>none</small>"
    outcomes = shoal.Outcomes([shoal.Outcome(0, "a", 1, None, 1, 0.5, None)])
    assert pickle.loads(pickle.dumps(outcomes)).mean == outcomes.mean == 1


def test_outcomes_tell_failures_and_the_mean_of_scores() -> None:
    values = [0.5, shoal.Reward(1.0), True, "text"]
    outcomes = shoal.Outcomes(shoal.Outcome(n, n, value, None, 1, 0.5, None) for n, value in enumerate(values))
    outcomes.append(shoal.Outcome(4, 4, None, ValueError("no"), 3, 0.5, None))
    assert outcomes.mean == 0.75
    text = Seen(outcomes._repr_html_()).text
    assert all(word in text for word in ("5 outcomes", "failed 1", "mean 0.75", "ValueError: no"))
    assert shoal.Outcomes([]).mean is None


@pytest.mark.parametrize("total", [4, None])
def test_a_notebook_s_bar_is_drawn_in_place(total: int | None, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[str] = []

    class Handle:
        def update(self, shown: Any) -> None:
            drawn.append(Seen(shown._repr_html_()).text)

    monkeypatch.setitem(sys.modules, "ipykernel", types.ModuleType("ipykernel"))
    monkeypatch.setattr(bar, "_REDRAW_S", 0)
    for name, function in notebook(Handle()).items():
        monkeypatch.setitem(sys.modules, name, function)
    shown = bar.Bar(total)
    shown.start()
    for value, ok in ((1.0, True), (0.0, True), (None, False)):
        shown.count(value, ok)
    shown.stop()
    shown.stop()
    assert len(drawn) == 4
    assert f"3{' of 4' if total else ''}" in drawn[-1]
    assert "failed 1 · mean 0.5" in drawn[-1]
    assert ("left" in drawn[0]) == (total is not None)


def notebook(handle: object) -> dict[str, types.ModuleType]:
    """What stands in for IPython in a kernel."""
    ipython, display = types.ModuleType("IPython"), types.ModuleType("IPython.display")
    get_ipython: Callable[[], Any] = lambda: types.SimpleNamespace(kernel=object())  # noqa: E731
    ipython.get_ipython, display.display = get_ipython, lambda *shown, display_id: handle  # type: ignore[attr-defined]
    return {"IPython": ipython, "IPython.display": display}
