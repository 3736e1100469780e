"""Local files that go into an image: what is ignored, and the hash of the rest."""

from __future__ import annotations

import hashlib
import io
import os
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest

from shoal.client.image import local_files
from shoal.client.image.ignore import Ignore
from shoal.client.image.image import Image
from shoal.client.image.local_files import LocalFiles
from shoal.model.errors import InvalidRequest
from shoal.model.recipe import Add, Run, SetEnv


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    for name in ("a.py", "a.pyc", "sub/b.py", "sub/b.pyc", ".git/config", "sub/deep/c.txt", "node_modules/x/y.js"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(name)
    return tmp_path


def files(tree: Path, *ignore: str) -> LocalFiles:
    return LocalFiles(((tree, ""),), "/srv", tree, Ignore.of(ignore))


def names(step: LocalFiles) -> list[str]:
    with tarfile.open(fileobj=io.BytesIO(b"".join(step.pack()))) as archive:
        return sorted(each.name for each in archive if not each.isdir())


@pytest.mark.parametrize(
    ("patterns", "left"),
    [
        ((), [".git/config", "a.py", "a.pyc", "node_modules/x/y.js", "sub/b.py", "sub/b.pyc", "sub/deep/c.txt"]),
        (("*.pyc", ".git", "node_modules/"), ["a.py", "sub/b.py", "sub/b.pyc", "sub/deep/c.txt"]),
        (("**/*.pyc", "/.git", "node_modules", "sub/*/*.txt"), ["a.py", "sub/b.py"]),
        (("**", "!sub", "sub/deep"), ["sub/b.py", "sub/b.pyc"]),
        (("*", "!a.[^p]*", "!**/c.txt"), ["sub/deep/c.txt"]),
        (("*", "!?.py"), ["a.py"]),
    ],
)
def test_patterns(patterns: tuple[str, ...], left: list[str], tree: Path) -> None:
    assert names(files(tree, *patterns)) == left


def test_a_file_of_patterns(tmp_path: Path) -> None:
    (tmp_path / ".dockerignore").write_text("# not this\n\n*.log\n!keep.log\n")
    assert Ignore.read(tmp_path / ".dockerignore").patterns == ("*.log", "!keep.log")
    assert Ignore.read(tmp_path / "none").patterns == ()
    with pytest.raises(InvalidRequest):
        Ignore.of("*.log")


@pytest.mark.parametrize(
    ("change", "same"),
    [
        (lambda tree: os.utime(tree / "a.py", (1, 1)), True),
        (lambda tree: (tree / "a.py").write_text("b.py"), False),
        (lambda tree: (tree / "a.py").chmod(0o700), False),
        (lambda tree: (tree / "a.py").rename(tree / "z.py"), False),
        (lambda tree: (tree / "link").symlink_to("a.py"), False),
        (lambda tree: (tree / "empty").mkdir(), False),
        (lambda tree: (tree / "more.pyc").write_text("ignored"), True),
    ],
)
def test_content_names_and_modes_make_the_hash(change: Callable[[Path], object], same: bool, tree: Path) -> None:
    step = files(tree, "**/*.pyc")
    before = step.resolve()
    data = b"".join(step.pack())
    assert (before.digest, before.size) == (hashlib.sha256(data).hexdigest(), len(data))
    change(tree)
    assert (step.resolve().digest == before.digest) is same


def test_what_is_too_much_is_refused(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local_files, "MOST_FILES", 3)
    with pytest.raises(InvalidRequest):
        files(tree).resolve()
    monkeypatch.undo()
    monkeypatch.setattr(local_files, "MOST_FILES_BYTES", 4096)
    with pytest.raises(InvalidRequest):
        files(tree).resolve()


def test_an_image_is_a_value(tree: Path) -> None:
    image = Image.base().pip_install("six").env({"A": "1"})
    assert image == Image.base().pip_install("six").env({"A": "1"}) != image.user("nobody")
    assert image.recipe().base == "shoal/base"
    assert image.id is None
    assert Image.from_id("im-abc").id == "im-abc"
    added = Image.base().add_local_file(tree / "a.py", "/srv/").add_local_file(tree / "a.py", "/srv/b.py", mode=0o755)
    one, two = added.recipe().steps
    assert isinstance(one, Add)
    assert isinstance(two, Add)
    assert (one.path, two.path, one.digest == two.digest) == ("/srv", "/srv", False)


def test_python_sources_are_found_by_name(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tree / "pkg").mkdir()
    (tree / "pkg" / "__init__.py").write_text("raise RuntimeError('imported')")
    monkeypatch.syspath_prepend(str(tree))
    steps = Image.base().env({"PYTHONPATH": "/x"}).add_local_python_source("pkg", "a").recipe().steps
    assert [type(step) for step in steps] == [SetEnv, Add, Add, SetEnv]
    last = steps[-1]
    assert isinstance(last, SetEnv)
    assert last.variables == {"PYTHONPATH": "/opt/python:/x"}
    with pytest.raises(InvalidRequest):
        Image.base().add_local_python_source("no_such_module")


@pytest.mark.parametrize(
    ("make", "field"),
    [
        (lambda: Image.base().run_commands(), "lines"),
        (lambda: Image.base().pip_install(""), "packages"),
        (lambda: Image.base().cmd("sleep 1"), "argv"),
        (lambda: Image.base().workdir("srv"), "path"),
        (lambda: Image.base().env({"A=": "1"}), "variables"),
        (lambda: Image.base().env({"A": 1}), "variables"),  # type: ignore[dict-item]
        (lambda: Image.base().run_commands("true", env={"A": 1}), "env"),  # type: ignore[dict-item]
        (lambda: Image.base().user(5), "user"),  # type: ignore[arg-type]
        (lambda: Image.base().pip_install(["six"]), "packages"),  # type: ignore[arg-type]
        (lambda: Image.debian_slim(3.11), "python"),  # type: ignore[arg-type]
        (lambda: Image.base().add_local_file("/none/such", "/a"), "local"),
        (lambda: Image.base().add_local_dir("/etc/hostname", "/a"), "local"),
        (lambda: Image.base().add_local_dir("/etc", "a"), "remote"),
        (lambda: Image.from_dockerfile("/none/such"), "path"),
        (lambda: Image.from_id("sb-1"), "image_id"),
        (lambda: Image.from_name("Upper:1"), "name"),
        (lambda: Image.debian_slim("3"), "python"),
        (lambda: Image.from_registry(""), "reference"),
    ],
)
def test_a_wrong_argument_is_refused_where_it_is_given(make: Callable[[], Image], field: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        make()
    assert caught.value.field == field


def test_requirements_are_installed_by_one_command(tmp_path: Path) -> None:
    listed = tmp_path / "requirements.txt"
    listed.write_text("six==1.16\n# comment\n")
    (step,) = Image.base().pip_install_from_requirements(listed).recipe().steps
    assert isinstance(step, Run)
    assert "six==1.16" in step.argv[2]
    listed.write_text("-r other.txt\n")
    with pytest.raises(InvalidRequest):
        Image.base().pip_install_from_requirements(listed)
