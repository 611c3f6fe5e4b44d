"""Environments from a request to a job's Python: the real bus, the real agent, local jobs."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from contract.agent_site import RealAgent, agent_site
from contract.bus_site import BusSite, wait_until
from environment_lab import conda_prefix, entry, make_lock, make_package, make_tar, make_wheel
from integration.jobs import Story, follow, spec
from slurmbus.environments import (
    ApptainerImage,
    CondaPack,
    InstalledEnvironment,
    Modules,
    Pack,
    PackedEnvironment,
    PixiPack,
    Requirements,
    Shipper,
    SiteFolder,
)
from slurmbus_agent.environments.store import Store
from slurmbus_protocol import blobs, subjects
from slurmbus_protocol.environments import EnvironmentKind
from slurmbus_protocol.errors import (
    BadSignature,
    BusFull,
    EnvironmentInUse,
    EnvironmentUnusable,
    UnknownEnvironment,
)
from slurmbus_protocol.messages import Environment, InstallEnvironment
from slurmbus_protocol.states import JobState
from slurmbus_protocol.streams import BusLimits

pytestmark = pytest.mark.usefixtures("_cache")


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[BusSite, RealAgent]]:
    with agent_site(tmp_path_factory.mktemp("site")) as running:
        yield running


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURMBUS_CACHE", str(tmp_path / "cache"))


def demo(folder: Path, name: str = "demo", value: str = "1") -> PackedEnvironment:
    """Make an environment of one package, different for each value."""
    code = f"import sys\nVALUE = {value!r}\n\ndef main():\n    print('I am', VALUE, 'in', sys.prefix)\n"
    return Requirements(str(make_lock(folder, make_package(folder, name, code))))


def submit(site: BusSite, environment: Environment | None, *argv: str, **fields: object) -> str:
    return site.client.submit(spec(*argv, environment=environment, **fields))


def run(site: BusSite, environment: Environment | None, *argv: str, **fields: object) -> Story:
    return follow(site.client, submit(site, environment, *argv, **fields))


def shipped(site: BusSite, environment: PackedEnvironment) -> Pack:
    shipper = Shipper(site.client)
    pack = shipper.pack(environment)
    shipper.upload(pack)
    return pack


def store(agent: RealAgent) -> Path:
    return agent.folder / "spool" / "environments"


# ---------------------------------------------------------------------- packages


def test_a_job_runs_in_its_environment_and_the_second_one_at_once(
    site: tuple[BusSite, RealAgent], tmp_path: Path
) -> None:
    bus, agent = site
    pack = shipped(bus, demo(tmp_path))
    code = "import os, sys, demo; print(sys.prefix, demo.VALUE, os.environ['VIRTUAL_ENV']); demo.main()"
    story = run(bus, pack.ref, "python3", "-c", code)
    assert story.record.state is JobState.COMPLETED, story.stderr
    prefix, value, venv = story.stdout.splitlines()[0].split()
    assert (value, prefix) == ("1", venv)
    assert Path(prefix).is_relative_to(store(agent))
    assert story.record.environment == pack.ref.digest
    assert "environment" in story.record.timings
    assert not os.access(Path(prefix) / "bin", os.W_OK) or os.getuid() == 0
    assert not (Path(prefix) / "bin").stat().st_mode & 0o222
    assert run(bus, pack.ref, "demo-cli").stdout == f"I am 1 in {prefix}\n"

    again = run(bus, pack.ref, "python3", "-c", "import demo; print(demo.VALUE)")
    assert again.stdout == "1\n"
    assert "environment" not in again.record.timings  # nothing was installed
    assert Shipper(bus.client).upload(pack) == 0
    listed = {one.digest: one for one in Shipper(bus.client).installed().environments}
    assert listed[pack.ref.digest].kind == "wheels"
    assert listed[pack.ref.digest].path == prefix
    assert "demo.cpython" in " ".join(
        path.name for path in Path(prefix).rglob("*.pyc")
    )  # nobody could compile it later


def test_two_environments_share_the_wheels_on_the_bus(site: tuple[BusSite, RealAgent], tmp_path: Path) -> None:
    bus, _ = site
    first, second, third = (
        make_package(tmp_path, name, f"VALUE = {name!r}\ndef main(): ...\n") for name in ("aa", "bb", "cc")
    )
    one = Shipper(bus.client).pack(Requirements(str(make_lock(tmp_path, first, second))))
    assert Shipper(bus.client).upload(one) >= first.stat().st_size + second.stat().st_size
    (tmp_path / "two").mkdir()
    two = Shipper(bus.client).pack(Requirements(str(make_lock(tmp_path / "two", second, third))))
    assert Shipper(bus.client).upload(two) == third.stat().st_size + len(two.manifest)


def test_an_upload_that_was_cut_off_goes_on_where_it_was(site: tuple[BusSite, RealAgent], tmp_path: Path) -> None:
    bus, _ = site
    path = tmp_path / "large.tar.gz"
    path.write_bytes(os.urandom(5 * blobs.BLOB_CHUNK + 17))
    pack = Pack.of(EnvironmentKind.CONDA_PACK, {path.name: path}, "large")
    (digest,) = pack.sources

    async def put_some() -> None:
        session = bus.client.connection.session
        data = path.read_bytes()
        for index in (0, 1, 3):
            piece = data[index * blobs.BLOB_CHUNK : (index + 1) * blobs.BLOB_CHUNK]
            await (await session.blobs()).publish(subjects.blob(digest, index), piece, expected_last=0)

    bus.client.connection.run(put_some())
    told: list[tuple[str, int, int]] = []
    sent = Shipper(bus.client, lambda *words: told.append(words)).upload(pack)
    assert sent == 2 * blobs.BLOB_CHUNK + 17 + len(pack.manifest)
    assert told[-1][:2] == ("uploading", path.stat().st_size)


def test_an_environment_that_the_bus_cant_keep_is_refused_before_it_is_sent(tmp_path: Path) -> None:
    with agent_site(tmp_path / "site", BusLimits(blobs=2_000_000)) as (bus, _):
        path = tmp_path / "large.tar.gz"
        path.write_bytes(os.urandom(3_000_000))
        pack = Pack.of(EnvironmentKind.CONDA_PACK, {path.name: path}, "large")
        with pytest.raises(BusFull, match=r"3,000,000 bytes is larger than what stream BLOBS of the bus keeps"):
            Shipper(bus.client).upload(pack)


# ---------------------------------------------------------------------- what goes wrong


def test_a_broken_environment_is_refused_with_its_reason_and_leaves_nothing(
    site: tuple[BusSite, RealAgent], tmp_path: Path
) -> None:
    bus, agent = site
    evil = make_wheel(tmp_path / "evil-1.0-py3-none-any.whl", {"../../../../evil.py": b"x"})
    pack = shipped(bus, Requirements(str(make_lock(tmp_path, evil))))
    story = run(bus, pack.ref, "true")
    assert story.record.state is JobState.REJECTED
    assert story.record.error_code == "environment-hostile"
    assert "leads outside" in str(story.record.reason)
    assert not list(agent.folder.rglob("evil.py"))
    assert not list((store(agent) / "store").glob(f"{pack.ref.digest[:20]}.*"))


def test_a_damaged_file_is_found_out_and_can_be_sent_again(site: tuple[BusSite, RealAgent], tmp_path: Path) -> None:
    bus, _ = site
    shipper = Shipper(bus.client)
    pack = shipper.pack(demo(tmp_path, value="damaged"))
    (digest,) = pack.sources

    async def damage() -> None:
        blob_bus = await bus.client.connection.session.blobs()
        size = next(iter(pack.sources.values())).stat().st_size
        await blob_bus.publish(subjects.blob(digest, 0), b"x" * size)

    bus.client.connection.run(damage())
    shipper.upload(pack)
    story = run(bus, pack.ref, "true")
    assert (story.record.state, story.record.error_code) == (JobState.REJECTED, "blob-corrupt")
    assert "--again" in str(story.record.hint)
    shipper.upload(pack, again=True)
    shipper.install(pack, again=True)
    assert run(bus, pack.ref, "python3", "-c", "import demo; print(demo.VALUE)").stdout == "damaged\n"


def test_an_environment_for_another_python_names_those_that_there_are(
    site: tuple[BusSite, RealAgent], tmp_path: Path
) -> None:
    bus, _ = site
    shipper = Shipper(bus.client)
    path = make_package(tmp_path, "demo", "def main(): ...\n")
    pack = Pack.of(EnvironmentKind.WHEELS, {path.name: path}, "demo", python="3.99")
    shipper.upload(pack)
    story = run(bus, pack.ref, "true")
    assert story.record.state is JobState.REJECTED
    assert "is for Python 3.99, and this site has 3." in str(story.record.reason)
    with pytest.raises(EnvironmentUnusable, match=r"the site has no Python 3\.99, only 3\."):
        shipper.pack(Requirements(str(make_lock(tmp_path, path)), python="3.99"))


def test_a_cancel_ends_a_long_installation(site: tuple[BusSite, RealAgent], tmp_path: Path) -> None:
    bus, agent = site
    key, release = slow_job(bus, agent, tmp_path, "cancelled")
    bus.client.cancel(key)
    story = follow(bus.client, key)
    assert story.record.state is JobState.CANCELLED
    wait_until(lambda: not list(store(agent).glob("*.lock")), "the lock to be gone")
    assert not release.exists()


def slow_job(bus: BusSite, agent: RealAgent, folder: Path, title: str) -> tuple[str, Path]:
    """Submit a job whose environment takes until a file is there; come back when it is being installed."""
    release = folder / "release"
    script = folder / "slow.sh"
    script.write_text(
        "#!/bin/sh\n"
        f"echo $$ >> {folder}/pids\n"
        f"for _ in $(seq 1200); do test -e {release} && break; sleep 0.05; done\n"
        "test -d $2 || exit 1; mkdir -p $2/env/bin $2/env/conda-meta; "
        f"printf '#!/bin/sh\\necho {title}\\n' > $2/env/bin/tool; chmod +x $2/env/bin/tool\n"
    )
    pack = shipped(bus, PixiPack(str(script)))
    key = submit(bus, pack.ref, "tool")
    wait_until((folder / "pids").exists, "the installation to begin")
    wait_until(lambda: "pixi-unpack" in str((bus.client.record(key) or spec).reason), "the record to say what is done")
    record = bus.client.record(key)
    assert record is not None
    assert record.state is JobState.STAGING
    assert str(record.reason).startswith("installing environment slow")
    return key, release


def test_a_killed_agents_installation_is_taken_up_again(tmp_path: Path) -> None:
    with agent_site(tmp_path / "site") as (bus, agent):
        key, release = slow_job(bus, agent, tmp_path, "survived")
        assert agent.process is not None
        agent.process.kill()
        agent.process.wait()
        first = int((tmp_path / "pids").read_text().split()[0])
        wait_until(
            lambda: not Path(f"/proc/{first}/cmdline").exists() or not Path(f"/proc/{first}/cmdline").read_bytes(),
            "the installer to die with its agent",
        )
        release.touch()
        agent.start()
        story = follow(bus.client, key)
        assert story.record.state is JobState.COMPLETED, story.record
        assert story.stdout == "survived\n"
        assert len(list((store(agent) / "store").iterdir())) == 1
        assert not list(store(agent).glob("*.lock"))


def test_an_attempt_that_another_agent_took_for_dead_begins_again(
    site: tuple[BusSite, RealAgent], tmp_path: Path
) -> None:
    bus, agent = site
    key, release = slow_job(bus, agent, tmp_path, "again")
    running = max((store(agent) / "store").iterdir(), key=lambda path: path.stat().st_ctime)
    Store(store(agent)).discard(running)
    release.touch()
    story = follow(bus.client, key)
    assert (story.record.state, story.stdout) == (JobState.COMPLETED, "again\n"), story.record
    assert len((tmp_path / "pids").read_text().split()) == 2


def test_two_agents_that_install_the_same_at_once_do_it_once(tmp_path: Path) -> None:
    shared = tmp_path / "shared"
    with agent_site(tmp_path / "one") as (bus, agent), agent_site(tmp_path / "two") as (bus2, agent2):
        for one in (agent, agent2):  # both sites share one folder of environments
            bundle = one.site.home.bundle_path("scripted")
            one.stop()
            bundle.write_text(bundle.read_text() + f'\n[environments]\nfolder = "{shared}"\n')
            one.start()
            one.wait_until_it_serves()
        script = tmp_path / "slow.sh"
        release = tmp_path / "release"
        script.write_text(
            f"#!/bin/sh\necho run >> {tmp_path}/runs\n"
            f"for _ in $(seq 1200); do test -e {release} && break; sleep 0.05; done\n"
            "mkdir -p $2/env/bin $2/env/conda-meta; cp /bin/true $2/env/bin/tool\n"
        )
        packs = [shipped(one, PixiPack(str(script))) for one in (bus, bus2)]
        keys = [submit(one, pack.ref, "tool") for one, pack in zip((bus, bus2), packs, strict=True)]

        def reasons() -> list[str]:
            records = [one.client.record(key) for one, key in zip((bus, bus2), keys, strict=True)]
            return sorted(str(record.reason) if record else "" for record in records)

        wait_until(lambda: "waiting for the agent on" in reasons()[1], "the second agent to wait for the first one")
        release.touch()
        for one, key in zip((bus, bus2), keys, strict=True):
            assert follow(one.client, key).record.state is JobState.COMPLETED
        assert (tmp_path / "runs").read_text() == "run\n"
        assert len(list((shared / "store").iterdir())) == 1


# ---------------------------------------------------------------------- pushing, naming and removing


def test_an_environment_is_pushed_named_used_listed_and_removed(
    site: tuple[BusSite, RealAgent], tmp_path: Path
) -> None:
    bus, agent = site
    shipper = Shipper(bus.client)
    pack = shipped(bus, demo(tmp_path, value="pushed"))
    path = shipper.install(pack, "train-1.0")
    assert Path(path, "bin", "python").exists()
    release = tmp_path / "release"
    wait = f"import demo, os, time\nwhile not os.path.exists({str(release)!r}): time.sleep(0.05)\nprint(demo.VALUE)"
    for name in ("train-1.0", pack.ref.digest[:12]):
        assert (
            run(bus, InstalledEnvironment(name).wire(), "python3", "-c", "import demo; print(demo.VALUE)").stdout
            == "pushed\n"
        )
    key = submit(bus, InstalledEnvironment("train-1.0").wire(), "python3", "-c", wait)
    wait_until(lambda: (record := bus.client.record(key)) and record.state is JobState.RUNNING, "the job to run")
    listed = next(one for one in shipper.installed().environments if one.digest == pack.ref.digest)
    assert listed.names == ("train-1.0",)
    assert listed.jobs == (key,)
    with pytest.raises(EnvironmentInUse, match=key):
        shipper.remove(pack.ref.digest)
    release.touch()
    assert follow(bus.client, key).stdout == "pushed\n"
    wait_until(lambda: not shipper.installed(pack.ref.digest).environments[0].jobs, "the job to be forgotten")
    shipper.remove(pack.ref.digest)
    assert not shipper.installed(pack.ref.digest).environments
    assert not Path(path).exists()
    wait_until(lambda: not list((store(agent) / "trash").iterdir()), "the files to be removed")
    with pytest.raises(UnknownEnvironment):
        shipper.remove(pack.ref.digest)
    story = run(bus, InstalledEnvironment("train-1.0").wire(), "true")
    assert (story.record.state, story.record.error_code) == (JobState.REJECTED, "unknown-environment")


def test_nobody_installs_or_removes_without_a_signature(site: tuple[BusSite, RealAgent], tmp_path: Path) -> None:
    bus, _ = site
    pack = shipped(bus, demo(tmp_path, value="unsigned"))
    wish = InstallEnvironment(site="scripted", expires_at=time.time() + 60, submitter="x", environment=pack.ref)
    from slurmbus_protocol.messages import EnvironmentStatus

    with pytest.raises(BadSignature):
        bus.client.ask("install-environment", wish, EnvironmentStatus)
    assert not Shipper(bus.client).installed(pack.ref.digest).environments


def test_the_command_pushes_lists_and_removes(site: tuple[BusSite, RealAgent], tmp_path: Path) -> None:
    bus, _ = site
    lock = make_lock(tmp_path, make_package(tmp_path, "demo", "VALUE = 'command'\ndef main(): ...\n"))

    def slurmbus(*words: str, group: tuple[str, ...] = ("env",)) -> subprocess.CompletedProcess[str]:
        env = {**os.environ, "SLURMBUS_HOME": str(bus.home.path)}
        program = Path(sys.executable).with_name("slurmbus")
        return subprocess.run([program, *group, *words], env=env, capture_output=True, text=True, check=False)

    pushed = slurmbus("push", "--site", "scripted", "--name", "mine", str(lock))
    assert pushed.returncode == 0, pushed.stderr
    digest = pushed.stdout.strip()
    assert len(digest) == 64
    assert "and called mine" in pushed.stderr
    listed = json.loads(slurmbus("list", "--site", "scripted", "--json").stdout)
    assert [one["names"] for one in listed if one["digest"] == digest] == [["mine"]]
    assert "mine" in slurmbus("list", "--site", "scripted").stdout
    job = ["submit", "--site", "scripted", "--environment", "mine", "python3", "-c", "import demo; print(demo.VALUE)"]
    assert slurmbus(*job, group=()).stdout == "command\n"
    dry = slurmbus("remove", "--site", "scripted", "--dry-run", "mine")
    assert dry.stdout.split("\t")[:2] == [digest, "would remove"]
    assert Shipper(bus.client).installed(digest).environments
    assert slurmbus("remove", "--site", "scripted", "mine").stdout.split("\t")[1] == "removed"
    assert not Shipper(bus.client).installed(digest).environments
    assert slurmbus("remove", "--site", "scripted", "mine").returncode != 0


# ---------------------------------------------------------------------- what is there already, and others' archives


def test_a_job_runs_in_a_folder_that_is_there(site: tuple[BusSite, RealAgent], tmp_path: Path) -> None:
    bus, _ = site
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", tmp_path / "venv"], check=True)
    there = SiteFolder(str(tmp_path / "venv")).wire()
    story = run(bus, there, "python3", "-c", "import sys; print(sys.prefix)")
    assert story.stdout == f"{tmp_path / 'venv'}\n"
    missing = run(bus, SiteFolder(str(tmp_path / "nothing")).wire(), "true")
    assert missing.record.state is JobState.FAILED
    assert "isn't on this node" in str(missing.record.reason)


def test_modules_are_loaded_before_the_payload(site: tuple[BusSite, RealAgent], tmp_path: Path) -> None:
    bus, _ = site
    init = tmp_path / "init"
    init.mkdir()
    (init / "bash").write_text(
        'module() { [[ $2 == missing ]] && return 1; export LOADED="${LOADED-}[$*]"; undefined=$NOT_SET; }\n'
    )
    env = {"MODULESHOME": str(tmp_path)}
    wanted = Modules("gcc/13", "cuda", use=("/opt/modules",), purge=True).wire()
    story = run(bus, wanted, "sh", "-c", "echo $LOADED", env=env)
    assert story.stdout == "[purge][use /opt/modules][load gcc/13][load cuda]\n", story.stderr
    failed = run(bus, Modules("missing").wire(), "true", env=env)
    assert failed.record.state is JobState.FAILED
    assert "'module load missing' failed" in failed.stderr


def test_an_image_gets_the_jobs_folders_and_the_payloads_words(site: tuple[BusSite, RealAgent], tmp_path: Path) -> None:
    """Apptainer isn't here: a script of its name notes its arguments and runs what comes after the image."""
    bus, _ = site
    fake = tmp_path / "apptainer"
    fake.write_text('#!/bin/bash\nprintf "%s\\n" "$@" >&2\nwhile [[ $1 != *.sif ]]; do shift; done\nshift\nexec "$@"\n')
    fake.chmod(0o755)
    image = tmp_path / "x.sif"
    image.touch()
    wanted = ApptainerImage(str(image), binds=("/data:/mnt:ro",), options=("--nv",), program=str(fake)).wire()
    context = b'{"asset_keys": null, "extras": {}}'
    story = run(bus, wanted, "sh", "-c", 'echo "$@" $DAGSTER_PIPES_CONTEXT', "x", "a b", "c", pipes_context=context)
    words = story.stderr.splitlines()
    spool, work = str(story.record.spool), str(story.record.work_dir)
    binds = ["--bind", spool, "--bind", work, "--bind", "/data:/mnt:ro"]
    assert words[:12] == ["exec", *binds, "--pwd", work, "--nv", str(image), "sh"]
    assert story.stdout.startswith("a b c eJ")
    image.unlink()
    missing = run(bus, wanted, "true")
    assert "isn't on this node" in str(missing.record.reason)


def test_what_conda_pack_packed_is_unpacked_with_its_paths_put_right(
    site: tuple[BusSite, RealAgent], tmp_path: Path
) -> None:
    bus, agent = site
    pack = shipped(bus, CondaPack(str(conda_prefix(tmp_path))))
    assert Shipper(bus.client).pack(CondaPack(str(tmp_path / "conda-env"))).ref == pack.ref  # it isn't packed again
    story = run(bus, pack.ref, "tool")
    assert story.record.state is JobState.COMPLETED, (story.record, story.stderr)
    where, yes, _, prefix = story.stdout.split()
    assert (where, yes) == (prefix, "yes")
    assert Path(prefix).is_relative_to(store(agent))


def test_an_archive_that_isnt_conda_packs_is_refused(site: tuple[BusSite, RealAgent], tmp_path: Path) -> None:
    bus, _ = site
    archive = make_tar(tmp_path / "x.tar.gz", (entry("bin/tool"), b"x"))
    story = run(bus, shipped(bus, CondaPack(str(archive))).ref, "true")
    assert story.record.state is JobState.REJECTED
    assert "is no archive of conda-pack" in str(story.record.reason)


def test_without_pixi_the_errors_say_how_to_get_it(
    site: tuple[BusSite, RealAgent], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bus, _ = site
    archive = tmp_path / "environment.tar"
    archive.write_bytes(b"x")
    story = run(bus, shipped(bus, PixiPack(str(archive))).ref, "true")
    assert story.record.state is JobState.REJECTED
    assert "pixi global install pixi-unpack" in str(story.record.hint)
    (tmp_path / "pixi.toml").touch()
    (tmp_path / "pixi.lock").touch()
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(EnvironmentUnusable) as failure:
        Shipper(bus.client).pack(PixiPack(str(tmp_path)))
    assert "pixi global install pixi-pack" in failure.value.hint


def test_pixis_own_tools_are_called_as_they_want_it(
    site: tuple[BusSite, RealAgent], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No pixi binary is here: a script of its name notes its arguments and makes a file."""
    bus, _ = site
    tool = tmp_path / "bin" / "pixi-pack"
    tool.parent.mkdir()
    tool.write_text(
        f'#!/bin/sh\necho "$@" > {tmp_path}/words\nwhile [ $1 != --output-file ]; do shift; done\necho x > $2\n'
    )
    tool.chmod(0o755)
    (tmp_path / "pixi.toml").touch()
    (tmp_path / "pixi.lock").touch()
    monkeypatch.setenv("PATH", str(tool.parent), prepend=os.pathsep)
    pack = Shipper(bus.client).pack(PixiPack(str(tmp_path), environment="gpu", self_extracting=True))
    words = (tmp_path / "words").read_text().split()
    assert words[:5] == ["--environment", "gpu", "--platform", "linux-64", "--output-file"]
    assert words[6:] == ["--create-executable", str(tmp_path / "pixi.toml")]
    assert '"name":"environment.sh"' in pack.manifest.decode()


def test_the_site_may_fetch_packages_itself(site: tuple[BusSite, RealAgent], tmp_path: Path) -> None:
    bus, _ = site
    wheel = make_package(tmp_path, "demo", "VALUE = 'fetched'\ndef main(): ...\n")
    digest = hashlib.sha256(wheel.read_bytes()).hexdigest()
    path = tmp_path / "requirements.txt"
    path.write_text(f"demo @ file://{wheel} --hash=sha256:{digest}\n")
    pack = shipped(bus, Requirements(str(path), resolve="site"))
    story = run(bus, pack.ref, "python3", "-c", "import demo; print(demo.VALUE)")
    assert story.stdout == "fetched\n", (story.record, story.stderr)
