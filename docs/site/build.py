"""Builds the documentation's site: `make docs` → build/docs/site/index.html.

The pages are those of the repository, as they are read there: docs, README and the like, the notebooks with their
outputs, and each file that one of these links to. The Python reference is made of the docstrings. A link that leads
nowhere, or to a heading that is not there, fails the build.
"""

from __future__ import annotations

import json
import posixpath
import re
import shutil
import subprocess
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import shoal

ROOT = Path(__file__).parents[2]
OUT = ROOT / "build" / "docs"
SHOTS = ROOT / "build" / "screenshots"

PAGES = (
    "README.md",
    "CHANGELOG.md",
    "CONTRIBUTING.md",
    "shoal/images/agent/PROTOCOL.md",
    "shoal/configs/on-premises.md",
)
_SHOWN = {
    "e-main-overview": "The overview",
    "sandbox": "One sandbox",
    "e-main-sandboxes-dark": "Sandboxes, in the dark",
}
_FIRST = ("Sandbox", "Result", "Process", "FileSystem", "map", "Outcome", "reward", "Reward", "connect", "Client")
_FORMS = "All of it is in `shoal`. What is `async` here has two forms: `f(…)` blocks, `await f.aio(…)` does not."
_LINK = re.compile(r"(\]\()([^)\s#:]+)((?:#[^)\s]*)?\))")
_FENCE = re.compile(r"^(```|~~~).*?^\1", re.MULTILINE | re.DOTALL)
_LANGUAGES = {".py": "python", ".yaml": "yaml", ".json": "json", ".go": "go", ".toml": "toml"}


class BrokenLink(Exception):
    """A page links to what is not there."""


class Pages:
    """The pages of a repository, written into `out`. What they link to is added as it is found."""

    def __init__(self, root: Path, out: Path) -> None:
        self._root = root
        self._out = out
        self._written: set[PurePosixPath] = set()

    def write(self, paths: Iterable[str]) -> None:
        """Raises `BrokenLink`."""
        for path in paths:
            self._add(PurePosixPath(path))
        self._write("notebooks/index.md", self._notebooks())

    def _add(self, path: PurePosixPath) -> str:
        """The page of a file of the repository; `index.md` of the README."""
        page = "index.md" if str(path) == "README.md" else str(path if path.suffix == ".md" else f"{path}.md")
        if path in self._written:
            return page
        self._written.add(path)
        text = (self._root / path).read_text("utf-8")
        if path.suffix == ".md":
            text = self._relinked(text, path, page)
        elif path.suffix == ".ipynb":
            text = "\n\n".join(self._cells(json.loads(text), path, page))
        else:
            text = f"# {path.name}\n\n`{path}`\n\n~~~~{_LANGUAGES.get(path.suffix, '')}\n{text}\n~~~~\n"
        self._write(page, text)
        return page

    def _write(self, page: str, text: str) -> None:
        file = self._out / page
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text, "utf-8")

    def _relinked(self, text: str, path: PurePosixPath, page: str) -> str:
        """A page's text, with links to the pages of the files that it links to."""
        parts, end = [], 0
        for fence in [*_FENCE.finditer(text), None]:
            prose = text[end : fence.start() if fence else len(text)]
            parts.append(_LINK.sub(lambda link: self._link(link, path, page), prose))
            if fence:
                parts.append(fence[0])
                end = fence.end()
        return "".join(parts)

    def _link(self, link: re.Match[str], path: PurePosixPath, page: str) -> str:
        there = PurePosixPath(posixpath.normpath(path.parent / link[2]))
        if str(there) == "notebooks":
            target = f"{there}/index.md"
        else:
            if (self._root / there).is_dir():
                there /= "__init__.py"  # which says what is in the folder
            if not (self._root / there).is_file():
                raise BrokenLink(f"{path} links to {link[2]}, which is not there")
            target = self._add(there)
        return f"{link[1]}{posixpath.relpath(target, posixpath.dirname(page))}{link[3]}"

    def _notebooks(self) -> str:
        lines = ["# Notebooks", "", "They need a cluster: `shoal up`. Their files are in the folder `notebooks`.", ""]
        for file in sorted((self._root / "notebooks").glob("*.ipynb")):
            self._add(PurePosixPath("notebooks") / file.name)
            title = "".join(json.loads(file.read_text("utf-8"))["cells"][0]["source"]).split("\n")[0].lstrip("# ")
            lines.append(f"- [{title}]({file.name}.md)")
        return "\n".join(lines) + "\n"

    def _cells(self, notebook: Any, path: PurePosixPath, page: str) -> Iterator[str]:
        for cell in notebook["cells"]:
            source = "".join(cell["source"])
            if cell["cell_type"] == "markdown":
                yield self._relinked(source, path, page)
                continue
            yield f"~~~~python\n{source}\n~~~~"
            for output in cell["outputs"]:
                yield shown(output)


def shown(output: Any) -> str:
    """An output of a cell, in Markdown."""
    data = output.get("data", {})
    if "image/png" in data:
        return f'<img alt="" src="data:image/png;base64,{"".join(data["image/png"]).strip()}">'
    if "text/html" in data:
        # Markdown takes an empty line for the end of HTML.
        page = re.sub(r"<style.*?</style>", "", "".join(data["text/html"]), flags=re.DOTALL)
        return f"<div>{page}</div>".replace("\n", "&#10;")
    return f"~~~~text\n{''.join(output.get('text') or data.get('text/plain', ''))}\n~~~~"


def reference() -> str:
    """The page of the public names, in the order of what they are for."""
    public = {name: getattr(shoal, name) for name in shoal.__all__}
    errors = [name for name, each in public.items() if isinstance(each, type) and issubclass(each, Exception)]
    groups = {
        "Most used": _FIRST,
        "More": [name for name in public if name not in {*_FIRST, *errors}],
        "Errors": errors,
    }
    text = f"# Python reference\n\n{_FORMS}\n"
    for title, names in groups.items():
        items = (f"::: shoal.{name}\n    options: {{heading_level: 3}}\n\n" for name in names)
        text += f"\n## {title}\n\n{''.join(items)}"
    return text


def screenshots(out: Path) -> str:
    """The dashboard as its test saw it, where that has run: what to add to its page."""
    text = ""
    for name, title in _SHOWN.items():
        file = SHOTS / f"{name}.png"
        if file.exists():
            shutil.copy(file, out)
            text += f"\n![{title}]({file.name})\n*{title}*\n"
    return f"\n## What it looks like\n{text}" if text else ""


def write(out: Path) -> None:
    """Writes all pages. Raises `BrokenLink`."""
    Pages(ROOT, out).write([*PAGES, *(f"docs/{page.name}" for page in sorted((ROOT / "docs").glob("*.md")))])
    (out / "reference.md").write_text(reference(), "utf-8")
    with (out / "docs" / "dashboard.md").open("a", encoding="utf-8") as page:
        page.write(screenshots(out / "docs"))


def main(arguments: Sequence[str]) -> int:
    shutil.rmtree(OUT, ignore_errors=True)
    OUT.mkdir(parents=True)
    try:
        write(OUT / "pages")
    except BrokenLink as error:
        print(error, file=sys.stderr)
        return 1
    shutil.copy(Path(__file__).with_name("zensical.toml"), OUT)
    program = str(Path(sys.executable).with_name("zensical"))
    build = [program, "build", "--strict", "--config-file", str(OUT / "zensical.toml"), *arguments]
    return subprocess.run(build, cwd=ROOT, check=False).returncode


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
