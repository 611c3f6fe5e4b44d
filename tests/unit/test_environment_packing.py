"""Choosing wheels for a site, packing them, and what a request says of an environment."""

from __future__ import annotations

import hashlib
import http.server
import threading
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import dagster as dg
import pytest

from dagster_slurmbus import ComputeResource, EnvironmentConfig
from dagster_slurmbus.environments import Telling, as_config
from environment_lab import make_lock, make_package
from slurmbus.environments import (
    ApptainerImage,
    InstalledEnvironment,
    Modules,
    PackedEnvironment,
    Requirements,
    SiteFolder,
    Target,
    UvLock,
    as_environment,
)
from slurmbus.environments.guessing import guess
from slurmbus.environments.wheels import Depot, Source, Wheel, choose, site_tags
from slurmbus_protocol.environments import EnvironmentKind, decode_manifest
from slurmbus_protocol.errors import EnvironmentUnusable, InvalidBody, InvalidSetting
from slurmbus_protocol.messages import (
    FolderEnvironment,
    ImageEnvironment,
    ModulesEnvironment,
    NamedEnvironment,
    Platform,
    SitePython,
)

PY314 = SitePython(path="/usr/bin/python3.14", version="3.14.1")
PY39 = SitePython(path="/usr/bin/python3.9", version="3.9.2")
FREE = SitePython(path="/opt/t/python3.14", version="3.14.1", free_threaded=True)
LINUX = Platform(system="Linux", machine="x86_64", libc="glibc", libc_version="2.28", pythons=(PY314, PY39))
OLD = Platform(system="Linux", machine="x86_64", libc="glibc", libc_version="2.17", pythons=(PY314,))
ALPINE = Platform(system="Linux", machine="aarch64", libc="musl", libc_version="1.2", pythons=(PY314,))
NAMES = [
    "demo-1.0-cp314-cp314-manylinux_2_28_x86_64.whl",
    "demo-1.0-cp314-cp314-manylinux2014_x86_64.manylinux_2_17_x86_64.whl",
    "demo-1.0-cp314-cp314t-manylinux_2_17_x86_64.whl",
    "demo-1.0-cp39-abi3-manylinux_2_17_x86_64.whl",
    "demo-1.0-cp314-cp314-musllinux_1_2_aarch64.whl",
    "demo-1.0-cp314-cp314-win_amd64.whl",
    "demo-1.0-cp314-cp314-macosx_11_0_arm64.whl",
]


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURMBUS_CACHE", str(tmp_path / "cache"))


def package(*names: str, **fields: Any) -> dict[str, Any]:
    wheels = [{"name": name, "url": f"https://x/{name}", "size": 1, "hashes": {"sha256": "00"}} for name in names]
    return {"name": "demo", "version": "1.0", "wheels": wheels, **fields}


@pytest.mark.parametrize(
    ("platform", "python", "expected"),
    [
        (LINUX, PY314, NAMES[0]),
        (OLD, PY314, NAMES[1]),
        (LINUX, FREE, NAMES[2]),
        (LINUX, PY39, NAMES[3]),
        (ALPINE, PY314, NAMES[4]),
        (Platform(system="Darwin", machine="arm64", libc_version="14.5"), PY314, NAMES[6]),
    ],
)
def test_the_wheel_that_runs_on_the_site_is_chosen(platform: Platform, python: SitePython, expected: str) -> None:
    (chosen,) = choose({"packages": [package(*NAMES)]}, platform, python, Path())
    assert isinstance(chosen, Wheel)
    assert chosen.name == expected


def test_pure_wheels_run_everywhere_and_markers_are_the_sites() -> None:
    lock = {
        "packages": [
            package("demo-1.0-py3-none-any.whl"),
            package("demo-1.0-py3-none-any.whl", marker="python_version < '3.10'"),
            package("demo-1.0-py3-none-any.whl", marker="sys_platform == 'win32'"),
        ]
    }
    assert len(choose(lock, LINUX, PY314, Path())) == 1
    assert len(choose(lock, LINUX, PY39, Path())) == 2


def test_a_package_without_a_wheel_is_named() -> None:
    with pytest.raises(EnvironmentUnusable, match=r"no wheel of demo 1\.0 for Python 3\.14\.1") as error:
        choose({"packages": [package(NAMES[5])]}, LINUX, PY314, Path())
    assert "python='3.x'" in error.value.hint
    sdist = {"url": "https://x/demo-1.0.tar.gz", "hashes": {"sha256": "00"}}
    (source,) = choose({"packages": [package(NAMES[5], sdist=sdist)]}, LINUX, PY314, Path())
    assert isinstance(source, Source)
    with pytest.raises(EnvironmentUnusable, match="a repository, which isn't packed"):
        choose({"packages": [package(vcs={"type": "git"})]}, LINUX, PY314, Path())


def test_the_tags_are_those_of_the_sites_libc() -> None:
    tags = [str(tag) for tag in site_tags(OLD, PY314)]
    assert "cp314-cp314-manylinux_2_17_x86_64" in tags
    assert "cp314-cp314-manylinux_2_18_x86_64" not in tags
    assert "py3-none-any" in tags


def source_of(folder: Path, name: str, *, compiled: bool) -> Path:
    """Write the source of a package whose build needs nothing but the standard library."""
    project = folder / name
    project.mkdir()
    tag = "cp311-cp311-linux_x86_64" if compiled else "py3-none-any"
    (project / "backend.py").write_text(
        "import zipfile\n"
        "def build_wheel(where, config_settings=None, metadata_directory=None):\n"
        f"    name = '{name}-1.0-{tag}.whl'\n"
        "    with zipfile.ZipFile(where + '/' + name, 'w') as wheel:\n"
        f"        wheel.writestr('{name}.py', 'VALUE = 1')\n"
        "    return name\n"
    )
    (project / "pyproject.toml").write_text(
        f"[project]\nname='{name}'\nversion='1.0'\n"
        "[build-system]\nrequires=[]\nbuild-backend='backend'\nbackend-path=['.']\n"
    )
    return project


def test_pure_packages_without_a_wheel_are_built_here_and_others_refused(tmp_path: Path) -> None:
    depot = Depot(tmp_path / "depot")
    pure = Source("pure 1.0", "", "", source_of(tmp_path, "pure", compiled=False))
    assert list(depot.get([pure], lambda *_: None)) == ["pure-1.0-py3-none-any.whl"]
    compiled = Source("compiled 1.0", "", "", source_of(tmp_path, "compiled", compiled=True))
    with pytest.raises(EnvironmentUnusable, match=r"compiled 1\.0 has compiled parts") as error:
        depot.get([compiled], lambda *_: None)
    assert "resolve='site'" in error.value.hint


# ---------------------------------------------------------------------- fetching


class _Quiet(http.server.SimpleHTTPRequestHandler):
    asked: list[str | None] = []  # noqa: RUF012

    def do_GET(self) -> None:
        self.asked.append(self.headers.get("Authorization"))
        super().do_GET()

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def index(tmp_path: Path) -> Iterator[str]:
    folder = tmp_path / "index"
    folder.mkdir()
    _Quiet.asked.clear()
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), partial(_Quiet, directory=str(folder))) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def test_wheels_are_fetched_once_verified_and_with_the_users_password(
    tmp_path: Path, index: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "netrc").write_text("machine 127.0.0.1 login me password secret\n")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    (tmp_path / "index" / "demo-1.0-py3-none-any.whl").write_bytes(b"wheel")
    digest = hashlib.sha256(b"wheel").hexdigest()
    wheel = Wheel("demo-1.0-py3-none-any.whl", f"{index}/demo-1.0-py3-none-any.whl", digest, 5)
    depot = Depot(tmp_path / "depot")
    for _ in range(2):
        (path,) = depot.get([wheel], lambda *_: None).values()
        assert path.read_bytes() == b"wheel"
    assert _Quiet.asked == ["Basic bWU6c2VjcmV0"]
    with pytest.raises(EnvironmentUnusable, match=r"isn't the demo.* that was locked"):
        depot.get([Wheel(wheel.name, wheel.url, "0" * 64, 5)], lambda *_: None)
    with pytest.raises(EnvironmentUnusable, match="can't be fetched from http") as error:
        depot.get([Wheel(wheel.name, wheel.url.replace("http://", "http://u:topsecret@") + "x", "1" * 64, 5)], print)
    assert "topsecret" not in str(error.value)
    assert not [path for path in (tmp_path / "depot").rglob("*") if path.name.startswith(".")]


# ---------------------------------------------------------------------- packing


def test_the_same_packages_are_the_same_environment_and_packed_once(tmp_path: Path) -> None:
    lock = make_lock(tmp_path, make_package(tmp_path, "aa", "x"), make_package(tmp_path, "bb", "y"))
    told: list[str] = []
    packs = [Requirements(str(lock)).pack(Target(LINUX), lambda doing, *_: told.append(doing)) for _ in range(2)]
    assert packs[0] == packs[1]
    assert told.count("finding out what is needed") == 1
    manifest = decode_manifest(packs[0].manifest)
    assert manifest.kind is EnvironmentKind.WHEELS
    assert manifest.python == "3.14"
    assert [file.name for file in manifest.files] == ["aa-1.0-py3-none-any.whl", "bb-1.0-py3-none-any.whl"]
    assert Requirements(str(lock), python="3.9").pack(Target(LINUX)).ref != packs[0].ref
    make_package(tmp_path, "bb", "changed")
    make_lock(tmp_path, tmp_path / "aa-1.0-py3-none-any.whl", tmp_path / "bb-1.0-py3-none-any.whl")
    assert Requirements(str(lock)).pack(Target(LINUX)).ref != packs[0].ref


def test_a_uv_project_is_packed_with_its_groups_and_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wheels = tmp_path / "wheels"
    wheels.mkdir()
    for name in ("aa", "bb"):
        make_package(wheels, name, "x = 1")
    project = source_of(tmp_path, "project", compiled=False)
    (project / "pyproject.toml").write_text(
        "[project]\nname='project'\nversion='1.0'\nrequires-python='>=3.11'\ndependencies=['aa']\n"
        "[dependency-groups]\nmore=['bb']\n"
        f"[tool.uv]\nno-index=true\nfind-links=['{wheels}']\n"
        "[build-system]\nrequires=[]\nbuild-backend='backend'\nbackend-path=['.']\n"
    )
    from slurmbus.environments.tools import find_uv, run

    monkeypatch.delenv("PIP_FIND_LINKS", raising=False)
    run([find_uv(), "lock", "--quiet"], cwd=project)

    def names(**how: Any) -> list[str]:
        manifest = decode_manifest(UvLock(str(project), **how).pack(Target(LINUX)).manifest)
        return [file.name.split("-")[0] for file in manifest.files]

    assert names() == ["aa"]
    assert names(groups=("more",)) == ["aa", "bb"]
    assert names(project=True) == ["aa", "project"]
    assert UvLock(str(project)).pack(Target(LINUX)).title == "project"
    with pytest.raises(EnvironmentUnusable, match=r"there is no uv\.lock"):
        UvLock(str(tmp_path)).pack(Target(LINUX))


@pytest.mark.parametrize(
    "files",
    [
        [{"name": "../x.whl", "sha256": "0" * 64, "size": 1}],
        [{"name": "a/x.whl", "sha256": "0" * 64, "size": 1}],
        [{"name": ".hidden", "sha256": "0" * 64, "size": 1}],
        [{"name": "x.whl", "sha256": "../../../etc", "size": 1}],
        [{"name": "x.whl", "sha256": "0" * 64, "size": 1}] * 2,
    ],
)
def test_hostile_manifests_are_refused(files: list[dict[str, Any]]) -> None:
    import msgspec

    with pytest.raises(InvalidBody):
        decode_manifest(msgspec.json.encode({"kind": "wheels", "files": files}))
    with pytest.raises(InvalidBody):
        decode_manifest(msgspec.json.encode({"kind": "something-newer", "files": []}))


# ---------------------------------------------------------------------- what is there already


def test_what_is_there_already_is_only_named() -> None:
    assert as_environment("train-1.0").wire() == NamedEnvironment(name="train-1.0")  # type: ignore[union-attr]
    assert SiteFolder("/opt/x").wire() == FolderEnvironment(path="/opt/x")
    assert Modules("a", "b", purge=True).wire() == ModulesEnvironment(load=("a", "b"), purge=True)
    assert ApptainerImage("/x.sif", options=("--nv",)).wire() == ImageEnvironment(path="/x.sif", options=("--nv",))
    for wrong in (InstalledEnvironment("../x"), SiteFolder("opt/x"), Modules(), ApptainerImage("x.sif")):
        with pytest.raises(InvalidSetting):
            wrong.wire()
    with pytest.raises(InvalidSetting):
        as_environment(7)  # type: ignore[arg-type]


def test_a_path_tells_what_kind_of_environment_it_is(tmp_path: Path) -> None:
    (tmp_path / "uv.lock").touch()
    assert guess(str(tmp_path)) == guess("uv.lock") == guess("x/pyproject.toml") == "uv"
    assert guess("requirements-gpu.txt") == guess("pylock.gpu.toml") == "requirements"
    assert guess("env.tar.gz") == "conda"
    assert guess("environment.tar") == guess("environment.sh") == "pixi"
    with pytest.raises(InvalidSetting, match="isn't known as any kind"):
        guess("what.ever")


@pytest.mark.parametrize(
    "environment",
    [
        UvLock(".", groups=("gpu",), python="3.12"),
        Requirements("requirements.txt", resolve="site"),
        Modules("gcc/13", "cuda", use=("/opt/modules",), purge=True),
        SiteFolder("/opt/x"),
        ApptainerImage("/x.sif", binds=("/data",)),
        InstalledEnvironment("train"),
    ],
)
def test_an_environment_survives_dagsters_configuration(environment: Any) -> None:
    compute = ComputeResource(environment=environment)
    assert compute.environment is not None
    assert compute.environment.environment() == environment
    again = EnvironmentConfig(**compute.environment.model_dump())
    assert again.environment() == environment


def test_wrong_environments_are_told_when_they_are_configured() -> None:
    assert as_config("train") == EnvironmentConfig(kind="installed", settings={"name": "train"})
    with pytest.raises(ValueError, match="is no environment"):
        ComputeResource(environment=7)
    with pytest.raises(dg.Failure, match="can't be made of"):
        EnvironmentConfig(kind="folder", settings={"where": "x"}).environment()
    with pytest.raises(dg.Failure, match="is none of installed"):
        EnvironmentConfig(kind="teapot").environment()
    assert issubclass(UvLock, PackedEnvironment)


def test_progress_is_told_now_and_then() -> None:
    told: list[str] = []
    clock = iter(range(1000))
    telling = Telling(told.append, lambda: float(next(clock)))
    for done in range(41):
        telling("uploading", done * 1_000_000, 40_000_000)
    telling("installing", 0, 0)
    telling("installing", 0, 0)
    assert told[0] == "environment: uploading, 0 of 40 MB"
    assert told[-2:] == ["environment: uploading, 40 of 40 MB", "environment: installing"]
    assert len(told) == 6


def test_a_lock_that_is_no_toml_is_said_so(tmp_path: Path) -> None:
    path = tmp_path / "pylock.toml"
    path.write_text("[[")
    with pytest.raises(EnvironmentUnusable, match="can't be read"):
        Requirements(str(path)).pack(Target(LINUX))
