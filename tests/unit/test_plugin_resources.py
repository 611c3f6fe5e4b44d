"""The users' face: what can be written, what is refused and in which words, and that making things opens nothing."""

import json
import logging
import pickle
import socket
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
from pydantic import ValidationError

import dagster_slurmbus
from dagster_slurmbus import (
    BashLauncher,
    BusResource,
    ComputeLauncher,
    ComputeResource,
    ExecutionMode,
    Modules,
    MoreMemory,
    MoreTime,
    PipesSlurmClient,
    RayLauncher,
    SiteFolder,
    SlurmQueueConfig,
    SlurmResource,
    SlurmRunConfig,
    SlurmSite,
)
from dagster_slurmbus._compat import DagsterLibraryRegistry
from dagster_slurmbus.files import local_files, without_duplicates
from dagster_slurmbus.launcher_config import LauncherConfig
from dagster_slurmbus.pipes import _argv
from dagster_slurmbus.reattach import request_hash, request_parts
from dagster_slurmbus.values import environment, inside
from slurmbus_protocol.messages import CommandPlan, FileRef, JobOptions, JobSpec

pytestmark = pytest.mark.filterwarnings(  # Dagster's own, for every nested resource
    "ignore:InitResourceContext.dagster_run is deprecated:DeprecationWarning"
)


def paper_example(mode: ExecutionMode = ExecutionMode.SLURM) -> ComputeResource:
    return ComputeResource(
        mode=mode,
        slurm=SlurmResource(
            bus=BusResource.from_env(prefix="SLURMBUS"),
            site="leonardo-alice",
            queue=SlurmQueueConfig(partition="main", time_limit="00:10:00", cpus=2, mem="1G"),
            remote_base="/home/alice/dagster_runs",
        ),
        default_launcher=BashLauncher(),
    )


def resolve(compute: Any, config: dict[str, Any] | None = None) -> ComputeResource:
    """Give the resource as an asset gets it at run time."""
    got: list[ComputeResource] = []

    @dg.asset(required_resource_keys={"compute"})
    def asset(context: dg.AssetExecutionContext) -> None:
        got.append(context.resources.compute)

    logging.disable(logging.CRITICAL)
    try:
        defs = dg.Definitions(assets=[asset], resources={"compute": compute})
        run_config = {"resources": {"compute": {"config": config}}} if config is not None else None
        defs.resolve_implicit_global_asset_job_def().execute_in_process(run_config=run_config)
    finally:
        logging.disable(logging.NOTSET)
    return got[0]


# ------------------------------------------------------------------ the site


def two_sites(**more: Any) -> ComputeResource:
    return ComputeResource(
        mode="slurm",
        slurm=SlurmResource(site="alpha", bus=BusResource(prefix="TEAM"), env={"DATA": "/a"}),
        other_sites=[
            SlurmSite(site="beta", queue=SlurmQueueConfig(partition="gpu"), remote_base="/b", env={"DATA": "/b"})
        ],
        on_changed_request="fail",
        **more,
    )


def test_a_site_is_chosen_with_all_that_belongs_to_it() -> None:
    assert resolve(two_sites()).chosen() == resolve(two_sites(site="alpha")).slurm
    compute = resolve(two_sites(site="beta"))
    client = compute.pipes_client()
    assert (client.site, client.remote_base, compute.site_env()) == ("beta", "/b", {"DATA": "/b"})
    assert client.bus is not None
    assert client.bus.prefix == "TEAM"
    assert client.queue == SlurmQueueConfig(partition="gpu")
    assert client.env == {"DATA": "/b"}


class SiteLauncher(BashLauncher):
    """One of the user's own, which other processes find in this module."""


def test_what_belongs_to_a_site_comes_with_it() -> None:
    """Also through the configuration that Dagster makes of it, and when the launchpad gives a part."""
    first = SlurmResource(
        site="alpha",
        environment=SiteFolder("/alpha/env"),
        default_launcher=RayLauncher(python="/alpha/python"),
        on_timeout=MoreTime(limit="2:00:00"),
        secret_env=["TOKEN"],
    )
    beta = SlurmSite(
        site="beta",
        environment=Modules("gcc", use=("/beta/modules",)),
        default_launcher=SiteLauncher(preamble="module load r", interpreter="Rscript"),
        on_out_of_memory=MoreMemory(limit="64G"),
        secret_env=[],
    )
    gamma = SlurmSite(site="gamma", default_launcher=RayLauncher(pre_start_commands=["ulimit -n 9"]))
    plain = SlurmSite(site="plain")

    def site(name: str) -> SlurmResource:
        compute = ComputeResource(mode="slurm", slurm=first, other_sites=[beta, gamma, plain])
        chosen = resolve(compute, {"site": name}).chosen()
        assert chosen is not None
        return chosen

    def made(name: str) -> Any:
        environment = site(name).environment
        return environment.environment() if environment is not None else None

    assert [made(name) for name in ("alpha", "beta", "gamma", "plain")] == [
        SiteFolder("/alpha/env"),
        Modules("gcc", use=("/beta/modules",)),
        None,
        None,
    ]
    assert site("alpha").default_launcher == RayLauncher(python="/alpha/python")
    assert site("beta").default_launcher == SiteLauncher(preamble="module load r", interpreter="Rscript")
    assert type(site("beta").default_launcher) is SiteLauncher
    assert site("gamma").default_launcher == RayLauncher(pre_start_commands=["ulimit -n 9"])
    assert site("plain").default_launcher is None
    assert (site("alpha").on_timeout, site("beta").on_timeout) == (MoreTime(limit="2:00:00"), None)
    assert (site("beta").on_out_of_memory, site("gamma").on_out_of_memory) == (MoreMemory(limit="64G"), None)
    assert [site(name).secret_env for name in ("alpha", "beta", "plain")] == [["TOKEN"], [], ["TOKEN"]]
    assert [site(name).pipes_client().secret_env for name in ("alpha", "beta")] == [["TOKEN"], []]


def test_a_part_of_the_launchpad_s_config_leaves_the_rest_as_it_is() -> None:
    compute = resolve(two_sites(), {"site": "beta"})
    assert (compute.mode, compute.on_changed_request, compute.pipes_client().site) == ("slurm", "fail", "beta")


def test_an_unknown_site_names_the_known_ones() -> None:
    with pytest.raises(dg.Failure, match=r"ComputeResource.site names the site 'gamma', .* it has 'alpha', 'beta'"):
        resolve(two_sites(site="gamma")).pipes_client()


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"site": "Two Words"}, "site"),
        ({"site": dg.EnvVar("SITE")}, r"dg.EnvVar can't stand here: write os.environ\['SITE'\]"),
        ({"site": "beta", "env": {"DATA": dg.EnvVar("D")}}, r"write os.environ\['D'\]"),
        ({"site": "beta", "default_launcher": BashLauncher(python=dg.EnvVar("P"))}, r"write os.environ\['P'\]"),
        ({"site": "beta", "default_launcher": "ray"}, "'ray' is no launcher"),
        ({"site": "beta", "environment": dg.EnvVar("E")}, r"write os.environ\['E'\]"),
    ],
)
def test_a_site_that_cant_be_used(fields: dict[str, Any], words: str) -> None:
    with pytest.raises(ValidationError, match=words):
        SlurmSite(**fields)


def test_a_launcher_that_other_processes_cant_make_is_refused() -> None:
    class Inner(BashLauncher):
        pass

    with pytest.raises(ValidationError, match="has to be a class of a module"):
        SlurmSite(site="beta", default_launcher=Inner())  # type: ignore[arg-type]
    for settings, words in (
        ({"kind": "rey"}, "'rey' is none of bash"),
        ({"kind": "pathlib:Path"}, "pathlib:Path is no launcher"),
        ({"kind": "ray", "settings": {"start_timeout": -1}}, "ray can't be made of"),
    ):
        with pytest.raises(dg.Failure, match=words):
            LauncherConfig(**settings).launcher()  # type: ignore[arg-type]


# ------------------------------------------------------------------ the mode


@pytest.mark.parametrize("mode", [ExecutionMode.SLURM, "slurm"])
def test_mode_takes_the_enum_and_its_text(mode: str) -> None:
    assert ComputeResource(mode=mode).mode == "slurm"
    assert ComputeResource().mode == "local"


@pytest.mark.parametrize("mode", ["cluster", "SLURM", "", 3])
def test_an_unknown_mode_names_the_known_ones(mode: Any) -> None:
    with pytest.raises(ValidationError, match="is no mode: use local or slurm"):
        ComputeResource(mode=mode)


@pytest.mark.parametrize("mode", [ExecutionMode.SLURM_SESSION, "slurm-hetjob"])
def test_modes_of_later_versions_are_refused_honestly(mode: str) -> None:
    with pytest.raises(ValidationError, match="isn't in this version: use local or slurm"):
        ComputeResource(mode=mode)


def test_mode_and_nested_settings_come_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    compute = ComputeResource(
        mode=dg.EnvVar("MODE"),
        slurm=SlurmResource(
            site=dg.EnvVar("SITE"),
            bus=BusResource(prefix=dg.EnvVar("PREFIX")),
            queue=SlurmQueueConfig(partition=dg.EnvVar("PART"), cpus=dg.EnvVar.int("CPUS"), mem=dg.EnvVar("MEM")),
        ),
    )
    for name, value in {
        "MODE": "slurm",
        "SITE": "alpha",
        "PREFIX": "BUS",
        "PART": "gpu",
        "CPUS": "3",
        "MEM": "2G",
    }.items():
        monkeypatch.setenv(name, value)
    found = resolve(compute)
    assert found.mode == "slurm"
    assert found.slurm is not None
    assert found.slurm.site == "alpha"
    assert found.slurm.bus is not None
    assert found.slurm.bus.prefix == "BUS"
    options = found.slurm.queue.to_options()
    assert (options.partition, options.cpus_per_task, options.mem_per_node_mib) == ("gpu", 3, 2048)
    monkeypatch.setenv("MODE", "cluster")
    with pytest.raises(dg.DagsterResourceFunctionError) as caught:
        resolve(compute)
    assert "is no mode: use local or slurm" in str(caught.value.__cause__)


def test_mode_comes_from_yaml() -> None:
    partial = ComputeResource.configure_at_launch()
    assert resolve(partial, {"mode": "slurm"}).mode == "slurm"
    with pytest.raises(dg.DagsterResourceFunctionError) as caught:
        resolve(partial, {"mode": "cluster"})
    assert "is no mode: use local or slurm" in str(caught.value.__cause__)


def test_slurm_mode_without_a_site_names_the_field() -> None:
    with pytest.raises(dg.Failure, match="mode is 'slurm', but the field slurm isn't set"):
        ComputeResource(mode="slurm").pipes_client()


@pytest.mark.parametrize(("field", "value"), [("site", "Leonardo.Alice"), ("remote_base", "dagster_runs")])
def test_a_site_that_cannot_be_is_refused_where_it_is_written(field: str, value: str) -> None:
    with pytest.raises(ValidationError, match=field):
        SlurmResource(**{"site": "alpha", field: value})


# ------------------------------------------------------------------ making things opens nothing


def test_making_resources_opens_and_reads_nothing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def never(*_: Any, **__: Any) -> Any:
        raise AssertionError("something was opened")

    for name in ("SLURMBUS_URL", "SLURMBUS_CREDENTIALS", "SLURMBUS_SIGNING_KEY", "SLURMBUS_HOME"):
        monkeypatch.setenv(name, "/nowhere/at/all")
    monkeypatch.setattr(socket, "socket", never)
    monkeypatch.setattr(subprocess, "Popen", never)
    monkeypatch.setattr(threading.Thread, "start", never)
    monkeypatch.setattr(Path, "open", never)
    compute = paper_example()
    compute.pipes_client()
    PipesSlurmClient.local(home=tmp_path)
    PipesSlurmClient(site="alpha", bus=BusResource.from_env())


@pytest.mark.parametrize(
    "client",
    [
        PipesSlurmClient.local(),
        PipesSlurmClient({"A": "1"}, "/data", site="alpha", bus=BusResource(home=dg.EnvVar("H")), queue={"cpus": 2}),
        paper_example().pipes_client(),
    ],
)
def test_clients_can_be_pickled(client: PipesSlurmClient) -> None:
    copy = pickle.loads(pickle.dumps(client))
    assert (copy.site, copy.queue, copy.env, copy.cwd) == (client.site, client.queue, client.env, client.cwd)
    assert copy.conduct == client.conduct
    assert copy.bus == client.bus


def test_local_mode_needs_nothing_of_the_bus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SLURMBUS_URL", raising=False)
    found = resolve(paper_example(ExecutionMode.LOCAL))
    assert found.pipes_client().remote_base is None


def test_commands_of_local_mode_get_what_payloads_get(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOKEN", "s3cret")
    client = ComputeResource(
        slurm=SlurmResource(site="alpha", env={"DATA": "/a"}, secret_env=["TOKEN"]), local_env={"DATA": "here"}
    ).pipes_client()
    assert (client.env, client.secret_env) == ({"DATA": "here"}, ["TOKEN"])
    assert "s3cret" not in repr(client) + repr(vars(client))
    assert ComputeResource().pipes_client().secret_env is None


# ------------------------------------------------------------------ the drop-in


def test_the_constructor_takes_what_pipes_subprocess_client_takes() -> None:
    client = PipesSlurmClient(
        env={"A": "1"},
        cwd="/data",
        context_injector=None,
        message_reader=None,
        forward_termination=False,
        forward_stdio=False,
        termination_timeout_seconds=5,
    )
    assert client.env == {"A": "1"}
    assert client.cwd == "/data"
    assert not client.conduct.forward_termination
    assert not client.conduct.forward_stdio
    assert client.conduct.termination_timeout_seconds == 5


def test_injectors_and_readers_of_ones_own_are_refused() -> None:
    with pytest.raises(ValueError, match="context_injector=PipesEnvContextInjector"):
        PipesSlurmClient(context_injector=dg.PipesEnvContextInjector())
    with pytest.raises(ValueError, match="message_reader=PipesTempFileMessageReader"):
        PipesSlurmClient(message_reader=dg.PipesTempFileMessageReader())


def test_it_is_a_resource_by_its_annotation_alone() -> None:
    @dg.asset
    def features(slurm: PipesSlurmClient) -> None:
        slurm.connect()

    assert "slurm" in features.required_resource_keys


def test_a_client_without_a_site_says_so() -> None:
    with pytest.raises(dg.Failure, match=r"site isn't set; name the site .* or use PipesSlurmClient.local"):
        PipesSlurmClient().connect()


@pytest.mark.parametrize(
    ("command", "argv"),
    [
        ("python3 'my file.py' --year 2026", ("python3", "my file.py", "--year", "2026")),
        (["python", Path("a.py")], ("python", "a.py")),
        ([sys.executable, "a.py"], (sys.executable, "a.py")),
        ("echo $HOME && ls", ("echo", "$HOME", "&&", "ls")),
    ],
)
def test_commands_are_taken_as_they_are(command: Any, argv: tuple[str, ...]) -> None:
    assert _argv(command) == argv


@pytest.mark.parametrize(
    ("command", "words"),
    [("", "command is empty"), ([], "command is empty"), (["a", 1], "1 is int"), ("a 'b", "can't be taken apart")],
)
def test_impossible_commands_are_refused(command: Any, words: str) -> None:
    with pytest.raises(dg.Failure, match=words):
        _argv(command)


# ------------------------------------------------------------------ values


@pytest.mark.parametrize(
    ("env", "words"),
    [
        ({"YEAR": 2026}, r"env\['YEAR'\] is int 2026, but environment variables are text: write str\(2026\)"),
        ({"A B": "x"}, "'A B' is no name"),
        ({"A=": "x"}, "'A=' is no name"),
        ({"": "x"}, "'' is no name"),
        ({"A": "x\0"}, "NUL"),
        ({"A": None}, "is NoneType None"),
    ],
)
def test_environments_are_checked(env: Any, words: str) -> None:
    with pytest.raises(dg.Failure, match=words):
        environment(env, "env")


def test_environments_may_hold_env_vars(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOKEN_HERE", "secret")
    assert environment({"TOKEN": dg.EnvVar("TOKEN_HERE")}, "env") == {"TOKEN": "secret"}
    monkeypatch.delenv("TOKEN_HERE")
    with pytest.raises(dg.Failure, match=r"env\['TOKEN'\]: the environment variable TOKEN_HERE isn't set"):
        environment({"TOKEN": dg.EnvVar("TOKEN_HERE")}, "env")


@pytest.mark.parametrize("path", ["/etc/passwd", "../up", "a/../../b", "", ".", "a\0b"])
def test_paths_stay_in_the_working_directory(path: str) -> None:
    with pytest.raises(dg.Failure, match="isn't a path inside the job's working directory"):
        inside(path, "outputs")


def test_files_are_looked_for_before_anything_is_submitted(tmp_path: Path) -> None:
    here = tmp_path / "a.py"
    here.write_text("1")
    (tmp_path / "sub").mkdir()
    other = tmp_path / "sub" / "a.py"
    other.write_text("2")
    assert [file.target for file in local_files({"lib/b.py": here}, "files")] == ["lib/b.py"]
    assert len(without_duplicates(local_files([here, str(here)], "files"))) == 1
    for files, words in [
        ([tmp_path / "none.py"], "extra_files: there is no file"),
        (["none.py"], "looked for in"),
        ([tmp_path], "is no file"),
        ({"../x": here}, "isn't a path inside"),
        (str(here), "is a list of paths"),
    ]:
        with pytest.raises(dg.Failure, match=words):
            local_files(files, "extra_files")  # type: ignore[arg-type]
    with pytest.raises(dg.Failure, match=r"two files would both become 'a\.py'"):
        without_duplicates(local_files([here, other], "files"))


def test_a_missing_payload_is_named_before_anything_is_opened(tmp_path: Path) -> None:
    with (
        dg.build_asset_context() as context,
        pytest.raises(dg.Failure, match="payload_path: there is no file") as caught,
    ):
        paper_example().run(context=context, payload_path=tmp_path / "train.py")
    assert not caught.value.allow_retries


# ------------------------------------------------------------------ the request's hash


CONTEXT = {
    "extras": {},
    "asset_keys": ["x"],
    "code_version_by_asset_key": {"x": None},
}


def test_the_hash_knows_code_and_resources_but_not_the_attempt() -> None:
    def hashed(run: str, context: Any = None, partition: Any = None, **fields: Any) -> str:
        base: dict[str, Any] = {
            "name": "x",
            "plan": CommandPlan(argv=("a", run)),
            "env": {"EXPERIMENT": run, "B": "1"},
            "labels": {"dagster_run": run},
            "pipes_context": json.dumps({"run_id": run, **CONTEXT, **(context or {})}).encode(),
        }
        return request_hash(request_parts(JobSpec(**base | fields), run, partition or {}))

    plain = hashed("run-1")
    assert plain == hashed("run-2")
    assert plain == hashed("run-1", stream_limit=1, options=JobOptions(comment="now"))
    assert plain == hashed("run-1", {"provenance_by_asset_key": {"x": None}, "retry_number": 1})
    assert hashed("run-1", env={"A": "1", "B": "2"}) == hashed("run-1", env={"B": "2", "A": "1"})
    for changed in (
        {"plan": CommandPlan(argv=("b", "run-1"))},
        {"options": JobOptions(partition="other")},
        {"files": (FileRef(path="a.py", sha256="0" * 64, size=1),)},
        {"outputs": ("plot.png",)},
        {"cwd": "/tmp"},
        {"context": {"extras": {"a": 1}}},
        {"context": {"asset_keys": ["x", "y"]}},
        {"context": {"code_version_by_asset_key": {"x": "2"}}},
        {"partition": {"dagster/partition": "2026"}},
    ):
        assert hashed("run-1", **changed) != plain, changed


# ------------------------------------------------------------------ odds and ends


def test_the_library_is_registered() -> None:
    assert DagsterLibraryRegistry.get()["dagster-slurmbus"] == dagster_slurmbus.__version__


def test_the_launchpad_offers_every_option() -> None:
    @dg.op
    def train(config: SlurmRunConfig) -> None:
        assert config.partition is None

    assert set(SlurmQueueConfig.model_fields) <= set(train.config_schema.as_field().config_type.fields)  # type: ignore[attr-defined]


def test_a_launcher_of_ones_own_can_be_the_default() -> None:
    class RLauncher(ComputeLauncher):
        def plan(self, payload: str, args: Any = ()) -> CommandPlan:
            return CommandPlan(argv=("Rscript", payload, *args))

    found = resolve(ComputeResource(default_launcher=RLauncher(preamble="module load r")))
    assert found.default_launcher == RLauncher(preamble="module load r")
