"""What will be done at a site, by what was found there."""

from __future__ import annotations

from typing import Any

import pytest
from msgspec.structs import replace

from slurmbus.bootstrap import plan, probe, ways
from slurmbus.bootstrap.login import Login
from slurmbus.bootstrap.probe import Dialled, Place, Probe, Python, SlurmFound, Supervisors, Usable
from slurmbus.errors import SiteUnfit

LOGIN = Login(host="login")
GIB = 2**30
HOME = Place(kind="home", path="/home/alice", free=10 * GIB, free_files=10**6, system="nfs", mount="/home")
SCRATCH = Place(
    kind="$SCRATCH", path="/scratch/alice", free=10 * GIB, free_files=0, system="lustre", mount="/scratch", own=True
)
NEW = Python(version="3.12.4", path="/usr/bin/python3.12", source="path", headers=True)
SITE = Probe(
    user="alice",
    uid=1001,
    home="/home/alice",
    shell="/bin/bash",
    host="login1",
    system="Linux",
    machine="x86_64",
    libc=("glibc", "2.34"),
    pythons=(NEW,),
    slurm=SlurmFound(version="25.11.2", sbatch="/usr/bin/sbatch"),
    supervisors=Supervisors(cron=Usable(usable=True, why="crontab is allowed")),
    places=(HOME, SCRATCH),
)


def test_an_ordinary_site() -> None:
    made = plan.make(SITE, LOGIN, "auto")
    assert made.python == NEW
    assert made.install_folder == "/home/alice/.slurmbus/.agent"
    assert (made.supervisor.what, made.scheduler.what, made.pyslurm.what) == ("cron", "commands", "none")
    assert "headers" in made.scheduler.why


@pytest.mark.parametrize(
    ("pythons", "chosen"),
    [
        (("3.9.2", "3.12.1", "3.11.4"), "3.12.1"),
        (("3.9.2",), None),
        ((), None),
    ],
)
def test_the_newest_python_that_fits(pythons: tuple[str, ...], chosen: str | None) -> None:
    there = tuple(Python(version=version, path=f"/{version}", source="path") for version in pythons)
    found = plan.choose_python(replace(SITE, pythons=there), LOGIN)
    assert (found.version if found else None) == chosen


def test_pypy_and_free_threaded_pythons_dont_count() -> None:
    there = (replace(NEW, implementation="pypy"), replace(NEW, free_threaded=True))
    assert plan.choose_python(replace(SITE, pythons=there), LOGIN) is None


def test_a_python_that_was_named_and_is_too_old() -> None:
    old = replace(SITE, pythons=(Python(version="3.6.8", path="/old", source="path"),))
    with pytest.raises(SiteUnfit, match=r"is cpython 3\.6\.8; the agent needs CPython 3\.11"):
        plan.choose_python(old, replace(LOGIN, agent_python="/old"))


def test_an_archive_stands_over_what_is_there() -> None:
    assert plan.choose_python(SITE, replace(LOGIN, python_archive="x.tar.gz")) is None


def test_a_home_without_programs() -> None:
    made = plan.make(replace(SITE, places=(replace(HOME, programs=False), SCRATCH)), LOGIN, "auto")
    assert made.install_folder == "/scratch/alice/slurmbus-agent"
    assert any("can't be started from the home" in note for note in made.notes)


def test_a_shared_scratch_gets_a_folder_of_the_users_own() -> None:
    shared = replace(SCRATCH, kind="scratch", path="/scratch", own=False)
    made = plan.make(replace(SITE, places=(replace(HOME, programs=False), shared)), LOGIN, "auto")
    assert made.install_folder == "/scratch/alice/slurmbus-agent"
    full = replace(SITE, places=(replace(HOME, free=1000), shared))
    with pytest.raises(SiteUnfit) as caught:
        plan.choose_folder(full, LOGIN)
    assert "e.g. /scratch/alice/slurmbus-agent" in (caught.value.hint or "")


BOBS = "/scratch/alice belongs to bob"


def test_a_folder_is_not_the_users_own_by_its_name() -> None:
    bobs = replace(SCRATCH, kind="scratch", own=False, unsafe=BOBS)
    shared = replace(SCRATCH, kind="scratch", path="/scratch", own=False, unsafe=BOBS)
    temporary = replace(SCRATCH, kind="temporary", path="/var/tmp", own=False)
    no_programs = replace(HOME, programs=False)
    made = plan.make(replace(SITE, places=(no_programs, bobs, shared, temporary)), LOGIN, "auto")
    assert made.install_folder == "/var/tmp/alice/slurmbus-agent"
    assert [note for note in made.notes if BOBS in note] == [f"not there: {BOBS}"]
    with pytest.raises(SiteUnfit, match=f"; {BOBS} "):
        plan.choose_folder(replace(SITE, places=(no_programs, bobs, shared)), LOGIN)


def test_a_home_that_others_can_write() -> None:
    places = (replace(HOME, unsafe="/home/alice can be written by others"), SCRATCH)
    with pytest.raises(SiteUnfit, match="/home/alice can be written by others") as caught:
        plan.choose_folder(replace(SITE, places=places), LOGIN)
    assert "e.g. /scratch/alice/slurmbus-agent" in (caught.value.hint or "")


def test_no_programs_anywhere() -> None:
    with pytest.raises(SiteUnfit, match="programs can't be started"):
        plan.choose_folder(replace(SITE, places=(replace(HOME, programs=False),)), LOGIN)


def test_a_full_home_names_the_file_system_and_another_folder() -> None:
    with pytest.raises(SiteUnfit, match=r"/home, nfs\), \d+ MiB are needed") as caught:
        plan.choose_folder(replace(SITE, places=(replace(HOME, free=1000), SCRATCH)), LOGIN)
    assert "/scratch/alice" in (caught.value.hint or "")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"programs": False}, "noexec"),
        ({"free": 0}, "no room"),
        ({"writable": False}, "may not write"),
        ({"unsafe": BOBS}, "what other users of login1 may put"),
    ],
)
def test_a_folder_that_was_named(change: dict[str, Any], words: str) -> None:
    named = replace(SCRATCH, kind="named", path="/data/a")
    login = replace(LOGIN, install_folder="/data/a")
    assert plan.choose_folder(replace(SITE, places=(named, HOME)), login)[1] == "/data/a"
    with pytest.raises(SiteUnfit, match=words):
        plan.choose_folder(replace(SITE, places=(replace(named, **change), HOME)), login)


@pytest.mark.parametrize(
    ("usable", "wanted", "chosen"),
    [
        ({"systemd", "cron", "scrontab"}, "auto", "systemd"),
        ({"cron", "scrontab"}, "auto", "cron"),
        ({"scrontab"}, "auto", "scrontab"),
        (set(), "auto", "detached"),
        ({"systemd", "scrontab"}, "scrontab", "scrontab"),
        ({"systemd"}, "detached", "detached"),
    ],
)
def test_the_best_supervisor(usable: set[str], wanted: str, chosen: str) -> None:
    there = Supervisors(**{name: Usable(usable=True) for name in usable})
    assert plan.choose_supervisor(there, wanted).what == chosen


def test_a_supervisor_that_isnt_there() -> None:
    with pytest.raises(SiteUnfit, match="no systemd here"):
        plan.choose_supervisor(Supervisors(systemd=Usable(why="no systemd here")), "systemd")


def test_no_slurm() -> None:
    bare = replace(SITE, slurm=SlurmFound())
    with pytest.raises(SiteUnfit, match="no Slurm on login1"):
        plan.make(bare, LOGIN, "auto")
    assert plan.make(bare, LOGIN, "local").scheduler.what == "local"


BUILDABLE = SlurmFound(
    version="25.11.2",
    sbatch="/usr/bin/sbatch",
    headers="/usr/include",
    header_version="25.11.2",
    libraries=("/usr/lib/libslurm.so",),
    compiler="/usr/bin/gcc",
)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"version": "22.05.8"}, "no pyslurm of Slurm 22.05"),
        ({"headers": ""}, "headers"),
        ({"header_version": "24.11.5"}, "headers there are of Slurm 24.11.5"),
        ({"libraries": ()}, "libslurm"),
        ({"compiler": ""}, "compiler"),
    ],
)
def test_why_pyslurm_isnt_built(change: dict[str, Any], words: str) -> None:
    assert (
        plan.choose_pyslurm(replace(SITE, slurm=BUILDABLE), replace(LOGIN, pyslurm=True), NEW, "auto").what == "build"
    )
    lacking = replace(SITE, slurm=replace(BUILDABLE, **change))
    choice = plan.choose_pyslurm(lacking, replace(LOGIN, pyslurm=True), NEW, "auto")
    assert choice.what == "none"
    assert words in choice.why
    assert plan.choose_scheduler(lacking, "auto", choice).what == "commands"


def test_nothing_is_compiled_unasked() -> None:
    site = replace(SITE, slurm=BUILDABLE)
    asked = plan.make(site, replace(LOGIN, pyslurm=True), "auto")
    assert (asked.pyslurm.what, asked.scheduler.what) == ("build", "native")
    left = plan.make(site, LOGIN, "auto")
    assert (left.pyslurm.what, left.scheduler.what) == ("none", "commands")
    assert "--pyslurm" in left.scheduler.why


# ---------------------------------------------------------------------- the way to the bus

BUS = ["tls://10.0.0.5:4222", "wss://10.0.0.5:443"]
REACHED, REFUSED = (
    [Dialled(host="10.0.0.5", port=port, open=port in ports, why="refused") for port in (4222, 443)]
    for ports in ((4222, 443), ())
)


@pytest.mark.parametrize(
    ("wanted", "dialled", "way", "servers"),
    [
        ("auto", REACHED, "direct", BUS[:1]),
        ("auto", [REFUSED[0], REACHED[1]], "websocket", BUS[1:]),
        ("websocket", REACHED, "websocket", BUS[1:]),
        ("auto", REFUSED, "tunnel", []),
        ("tunnel", REACHED, "tunnel", []),
    ],
)
def test_ways(wanted: str, dialled: list[Dialled], way: str, servers: list[str]) -> None:
    route = ways.choose(wanted, BUS, dialled, "10.0.0.5:4222")
    assert (route.way.what, list(route.servers)) == (way, servers)


@pytest.mark.parametrize("wanted", ["direct", "websocket"])
def test_a_way_that_cant_be_gone(wanted: str) -> None:
    with pytest.raises(SiteUnfit, match=r"10\.0\.0\.5:4222: refused"):
        ways.choose(wanted, BUS, REFUSED, "10.0.0.5:4222")


def test_a_bus_on_the_loopback_is_this_machines_only() -> None:
    """Somebody else's service may listen at the same port of the login node."""
    dialled = [Dialled(host="127.0.0.1", port=4222, open=True)]
    route = ways.choose("auto", ["tls://127.0.0.1:4222"], dialled, "127.0.0.1:4222")
    assert route.way.what == "tunnel"
    assert "this machine only" in route.way.why
    assert ways.choose("auto", ["tls://127.0.0.1:4222"], dialled, "", here=True).way.what == "direct"


def test_an_answer_that_cant_be_understood() -> None:
    with pytest.raises(SiteUnfit, match="can't be understood"):
        probe.parse({"user": "alice"})


def test_a_bus_that_is_reached_but_not_encrypted() -> None:
    urls = ["nats://10.0.0.5:4222", "ws://10.0.0.5:443"]
    with pytest.raises(SiteUnfit, match=r"nats://10\.0\.0\.5:4222 isn't encrypted \(--allow-plain"):
        ways.choose("direct", urls, REACHED, "10.0.0.5:4222", pinned=False)
    route = ways.choose("auto", urls, REACHED, "10.0.0.5:4222", pinned=False)
    assert route.way.what == "tunnel"
    assert "isn't encrypted" in route.way.why
    mixed = ways.choose("auto", [*urls, *BUS], [REFUSED[0], REACHED[1]], "10.0.0.5:4222", pinned=False)
    assert mixed.servers == (BUS[1],)
    # With a pinned authority every connection but a WebSocket is encrypted, whatever its address.
    assert ways.choose("auto", urls, REACHED, "10.0.0.5:4222").servers == (urls[0],)
    assert ways.choose("auto", urls, REACHED, "10.0.0.5:4222", pinned=False, allow_plain=True).servers == (urls[0],)


def test_a_name_that_only_begins_like_the_loopback_is_another_machine() -> None:
    dialled = [Dialled(host="localhost.example.org", port=4222, open=True)]
    assert ways.choose("auto", ["tls://localhost.example.org"], dialled, "").way.what == "direct"
