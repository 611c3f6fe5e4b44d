"""Unpacking wheels and archives: what they should become, and that nothing hostile lands anywhere."""

from __future__ import annotations

import gzip
import io
import os
import stat
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

from environment_lab import entry, make_tar, make_wheel, row
from slurmbus_agent.environments import archives, pythons, wheels
from slurmbus_agent.environments.paths import Budget, Hostile, Tree, make_read_only
from slurmbus_protocol.errors import EnvironmentUnusable

NAME = "demo-1.0-py3-none-any.whl"


def here() -> pythons.Python:
    found = pythons.ask(sys.executable)
    assert found is not None
    return found


def install(tmp_path: Path, wheel: Path, budget: Budget | None = None) -> Path:
    prefix = tmp_path / "env"
    prefix.mkdir()
    tree = Tree(prefix, budget or Budget(10**9, 10**5), "the environment")
    venv = wheels.Venv(tree, prefix, here())
    venv.create()
    wheels.install(wheel, NAME, venv, lambda _: None)
    tree.finish()
    wheels.link_python(venv)
    return prefix


def everything(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if not path.is_dir()}


# ---------------------------------------------------------------------- wheels


def test_a_wheel_becomes_an_environment_that_works(tmp_path: Path) -> None:
    files = {
        "demo/__init__.py": b"def main():\n    print('hello from', __name__)\n",
        "demo-1.0.dist-info/METADATA": b"Metadata-Version: 2.1\nName: demo\nVersion: 1.0\n",
        "demo-1.0.dist-info/entry_points.txt": b"[console_scripts]\ndemo-cli = demo:main\n",
        "demo-1.0.data/scripts/demo-script": b"#!python\nimport demo; demo.main()\n",
        "demo-1.0.data/data/share/demo.txt": b"data\n",
        "demo-1.0.data/purelib/more.py": b"MORE = 1\n",
    }
    prefix = install(tmp_path, make_wheel(tmp_path / NAME, files))
    for script in ("demo-cli", "demo-script"):
        done = subprocess.run([prefix / "bin" / script], capture_output=True, text=True, check=True)
        assert done.stdout == "hello from demo\n"
    code = (
        "import sys, more, importlib.metadata as m; files = m.files('demo');"
        "print(sys.prefix, m.version('demo'), all(f.locate().exists() for f in files), len(files))"
    )
    done = subprocess.run([prefix / "bin" / "python", "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == [str(prefix), "1.0", "True", "10"]
    assert (prefix / "share" / "demo.txt").read_text() == "data\n"


def test_a_long_path_needs_no_long_shebang(tmp_path: Path) -> None:
    deep = tmp_path / ("d" * 120)
    deep.mkdir()
    files = {
        "demo.py": b"def main():\n    print('hello')\n",
        "demo-1.0.dist-info/entry_points.txt": b"[console_scripts]\nx=demo:main\n",
    }
    prefix = install(deep, make_wheel(tmp_path / NAME, files))
    first = (prefix / "bin" / "x").read_bytes().splitlines()[0]
    assert first == b"#!/bin/sh"
    assert subprocess.run([prefix / "bin" / "x"], capture_output=True, text=True, check=True).stdout == "hello\n"


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("../../outside.py", "leads outside"),
        ("/tmp/slurmbus-outside.py", "leads outside"),
        ("demo/../../../../outside.py", "leads outside"),
        ("demo\\..\\outside.py", "leads outside"),
        ("demo-1.0.data/scripts/../../outside", "leads outside"),
        ("demo-1.0.data/data/pyvenv.cfg", "has no place"),
        ("demo-1.0.data/data/bin/python3", "has no place"),
        ("demo-1.0.data/data/lib64/x.so", "has no place"),
        ("demo-1.0.data/elsewhere/x", "has no place"),
    ],
)
def test_a_wheels_entry_cant_escape(tmp_path: Path, name: str, words: str) -> None:
    wheel = make_wheel(tmp_path / NAME, {"demo.py": b"", name: b"evil"})
    with pytest.raises(Hostile, match=words):
        install(tmp_path, wheel)
    assert not any("outside" in path for path in everything(tmp_path))
    assert not Path("/tmp/slurmbus-outside.py").exists()


def test_a_wheels_record_is_verified(tmp_path: Path) -> None:
    good = {"demo.py": b"x = 1\n"}
    cases: dict[str, tuple[Path, str]] = {
        "changed": (
            make_wheel(
                tmp_path / "demo-1.0-1-py3-none-any.whl",
                good,
                record=lambda t: t.replace("demo.py,sha256=", "demo.py,sha256=A"),
            ),
            "isn't what",
        ),
        "unlisted": (
            make_wheel(tmp_path / "demo-1.0-2-py3-none-any.whl", good, entries={"evil.py": b""}),
            "doesn't name",
        ),
        "missing": (
            make_wheel(tmp_path / "demo-1.0-3-py3-none-any.whl", good, record=lambda t: t + row("gone.py", b"")),
            "isn't there",
        ),
        "unhashed": (
            make_wheel(tmp_path / "demo-1.0-4-py3-none-any.whl", good, record=lambda t: t + "demo.pyc,,\n"),
            "no hash",
        ),
        "weak": (
            make_wheel(
                tmp_path / "demo-1.0-5-py3-none-any.whl",
                good,
                record=lambda t: t.replace("demo.py,sha256=", "demo.py,md5="),
            ),
            "no hash",
        ),
    }
    for name, (wheel, words) in cases.items():
        (tmp_path / name).mkdir()
        with pytest.raises(Hostile, match=words):
            install(tmp_path / name, wheel)


def test_what_is_no_wheel_is_said_so(tmp_path: Path) -> None:
    (tmp_path / NAME).write_bytes(b"PK\x03\x04 nothing")
    with pytest.raises(Hostile, match="is no wheel"):
        install(tmp_path, tmp_path / NAME)


def test_bombs_stop_at_the_limits(tmp_path: Path) -> None:
    large = make_wheel(tmp_path / "demo-1.0-1-py3-none-any.whl", {"zeros.bin": bytes(50_000_000)})
    assert large.stat().st_size < 100_000
    (tmp_path / "a").mkdir()
    with pytest.raises(Hostile, match="larger than this site allows"):
        install(tmp_path / "a", large, Budget(1_000_000, 1000))
    written = sum(
        path.stat().st_size for path in (tmp_path / "a").rglob("*") if path.is_file() and not path.is_symlink()
    )
    assert written <= 1_000_000
    many = make_wheel(tmp_path / "demo-1.0-2-py3-none-any.whl", {f"demo/{number}.py": b"" for number in range(500)})
    (tmp_path / "b").mkdir()
    with pytest.raises(Hostile, match="more files than this site allows"):
        install(tmp_path / "b", many, Budget(10**9, 100))


# ---------------------------------------------------------------------- tar archives


def unpack(tmp_path: Path, archive: Path, budget: Budget | None = None) -> Path:
    target = tmp_path / "unpacked"
    target.mkdir()
    archives.unpack(archive, target, budget or Budget(10**9, 10**5), lambda _: None)
    return target


def test_an_archive_is_unpacked_with_its_links_and_times(tmp_path: Path) -> None:
    archive = make_tar(
        tmp_path / "a.tar.gz",
        (entry("lib64", tarfile.SYMTYPE, link="lib"), b""),
        (entry("./lib/x.py", mode=0o4755), b"x = 1\n"),
        (entry("lib/y.py", tarfile.LNKTYPE, link="lib/x.py"), b""),
        (entry("bin/tool", mode=0o755), b"#!/bin/sh\n"),
        (entry("deep/er", tarfile.DIRTYPE), b""),
        (entry("deep/up", tarfile.SYMTYPE, link="../lib/x.py"), b""),
    )
    target = unpack(tmp_path, archive)
    assert (target / "lib64" / "y.py").read_text() == (target / "deep" / "up").read_text() == "x = 1\n"
    assert (target / "lib" / "x.py").stat().st_mtime == 1_000_000_000
    assert not (target / "lib" / "x.py").stat().st_mode & stat.S_ISUID
    assert os.access(target / "bin" / "tool", os.X_OK)


@pytest.mark.parametrize(
    "members",
    [
        [(entry("/etc/slurmbus-evil"), b"x")],
        [(entry("../evil"), b"x")],
        [(entry("a/../../evil"), b"x")],
        [(entry("out", tarfile.SYMTYPE, link="/tmp"), b"")],
        [(entry("out", tarfile.SYMTYPE, link="../.."), b"")],
        [(entry("a/out", tarfile.SYMTYPE, link="../../evil"), b"")],
        [
            (entry("d/e/f"), b""),
            (entry("up", tarfile.SYMTYPE, link="d/e"), b""),
            (entry("o", tarfile.SYMTYPE, link="up/../../.."), b""),
        ],
        [
            (entry("a/b/c"), b""),
            (entry("s", tarfile.SYMTYPE, link="a/b"), b""),
            (entry("a/t", tarfile.SYMTYPE, link="../s/../../.."), b""),
        ],
        [(entry("hard", tarfile.LNKTYPE, link="/etc/passwd"), b"")],
        [(entry("hard", tarfile.LNKTYPE, link="../../evil"), b"")],
        [(entry("hard", tarfile.LNKTYPE, link="missing"), b"")],
        [(entry("device", tarfile.CHRTYPE), b"")],
        [(entry("disk", tarfile.BLKTYPE), b"")],
        [(entry("pipe", tarfile.FIFOTYPE), b"")],
        [(entry("a"), b"x"), (entry("a/b"), b"x")],
        [(entry("x" * 300), b"x")],
    ],
)
def test_hostile_archives_are_refused(tmp_path: Path, members: list[tuple[tarfile.TarInfo, bytes]]) -> None:
    victim = tmp_path / "evil"
    with pytest.raises(Hostile):
        unpack(tmp_path, make_tar(tmp_path / "a.tar.gz", *members))
    assert not victim.exists()
    assert not Path("/etc/slurmbus-evil").exists()
    assert everything(tmp_path) - {"a.tar.gz"} == {
        path for path in everything(tmp_path) if path.startswith("unpacked/")
    }


def test_nothing_is_written_through_a_symlink_of_the_archive(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    archive = make_tar(
        tmp_path / "a.tar.gz",
        (entry("way", tarfile.SYMTYPE, link="inside"), b""),
        (entry("way/file"), b"x"),  # the folder comes first: symlinks are made last
    )
    with pytest.raises(Hostile, match="there twice"):
        unpack(tmp_path, archive)
    assert not list(outside.iterdir())


def test_an_archive_that_is_cut_off_or_no_archive_is_said_so(tmp_path: Path) -> None:
    archive = make_tar(tmp_path / "a.tar.gz", (entry("big"), os.urandom(200_000)))
    archive.write_bytes(archive.read_bytes()[:100_000])
    with pytest.raises(Hostile, match="can't be unpacked"):
        unpack(tmp_path, archive)
    (tmp_path / "b.tar.gz").write_bytes(b"no archive")
    (tmp_path / "b").mkdir()
    with pytest.raises(Hostile, match="can't be unpacked"):
        unpack(tmp_path / "b", tmp_path / "b.tar.gz")


def test_an_archives_bombs_stop_at_the_limits(tmp_path: Path) -> None:
    archive = tmp_path / "a.tar.gz"
    with gzip.open(archive, "wb", 9) as packed, tarfile.open(fileobj=packed, mode="w|") as tar:
        info = entry("zeros")
        info.size = 64_000_000
        tar.addfile(info, io.BytesIO(bytes(64_000_000)))
    with pytest.raises(Hostile, match="larger than this site allows"):
        unpack(tmp_path, archive, Budget(1_000_000, 100))
    assert (tmp_path / "unpacked" / "zeros").stat().st_size <= 1_000_000


def test_an_installed_tree_is_read_only(tmp_path: Path) -> None:
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "tool").write_text("x")
    (tmp_path / "bin" / "tool").chmod(0o4777)
    (tmp_path / "data").write_text("12345")
    (tmp_path / "link").symlink_to("/etc/passwd")
    size, files = make_read_only(tmp_path)
    assert (size, files) == (6, 5)
    assert stat.S_IMODE((tmp_path / "bin" / "tool").stat().st_mode) == 0o555
    assert stat.S_IMODE((tmp_path / "data").stat().st_mode) == 0o444
    assert stat.S_IMODE((tmp_path / "bin").stat().st_mode) == 0o555
    for folder in (tmp_path, tmp_path / "bin"):
        folder.chmod(0o755)


# ---------------------------------------------------------------------- Pythons


def test_pythons_describe_themselves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    python = here()
    assert python.version == ".".join(map(str, sys.version_info[:3]))
    assert python.library == f"lib/python{python.series}/site-packages"
    assert pythons.ask("/bin/true") is None
    assert pythons.choose([python], python.series) is python
    with pytest.raises(EnvironmentUnusable, match=f"this site has {python.version}"):
        pythons.choose([python], "3.99")
    with pytest.raises(EnvironmentUnusable, match="none on this host"):
        pythons.choose([python], str(tmp_path / "python"))
    wrapper = tmp_path / "python3"
    wrapper.write_text("#!/bin/sh\nsleep 600\n")
    wrapper.chmod(0o755)
    monkeypatch.setattr(pythons, "_PATIENCE", 0.3)
    assert pythons.ask(str(wrapper)) is None  # and its child doesn't hold us up
    monkeypatch.undo()
    assert here().path in [one.path for one in pythons.discover([sys.executable])]
