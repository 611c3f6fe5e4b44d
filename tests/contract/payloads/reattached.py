"""Jobs whose steps are killed; ``DIE`` names a moment at which the first attempt of a step kills itself."""

import os
import signal
import sys
import threading
from pathlib import Path

import dagster as dg

from dagster_slurmbus import ComputeResource, PipesSlurmClient, SlurmResource, slurmbus_reconcile_sensor
from dagster_slurmbus.forwarding import Forwarder, _position
from dagster_slurmbus.shown import Shown
from slurmbus.client import SiteClient
from slurmbus_protocol.subjects import Stream

DESK = Path(os.environ["DESK"])


# ------------------------------------------------------------------ moments


def die(moment):
    died = DESK / "died"
    if moment is not None and os.environ.get("DIE") == moment and not died.exists():
        died.write_text(moment)
        os.kill(os.getpid(), signal.SIGKILL)


def between(owner, name, before, after):
    """Let a method of the real thing be preceded and followed by a moment."""
    real = getattr(owner, name)

    def wrapped(self, *args, **options):
        die(before(args))
        result = real(self, *args, **options)
        die(after(args))
        return result

    setattr(owner, name, wrapped)


def half_of_it(self, start, stream, until, data):
    if os.environ.get("DIE") == "half of the output" and stream is Stream.STDOUT and not (DESK / "died").exists():
        sys.stdout.flush()
        self._shown.begin(start, stream, until, _position(sys.stdout))
        os.write(sys.stdout.fileno(), data[: len(data) // 2])
        die("half of the output")
    show(self, start, stream, until, data)


show = Forwarder._show
Forwarder._show = half_of_it
between(SiteClient, "submit", lambda _: "before submit", lambda _: "after submit")
streams = {Stream.STDOUT: "output", Stream.MESSAGES: "log", Stream.STDERR: "error"}
between(Shown, "begin", lambda _: None, lambda args: f"before {streams[args[1]]}")
between(Shown, "end", lambda args: f"after {streams[args[1]]}", lambda _: None)


# ------------------------------------------------------------------ assets and jobs


def run(context, name="", **options):
    site = os.environ.get("SITE")
    compute = ComputeResource(
        mode="slurm" if site else "local",
        slurm=SlurmResource(site=site) if site else None,
        on_changed_request=os.environ.get("ON_CHANGED", "resubmit"),
    )
    return compute.run(
        context=context,
        payload_path=DESK / "payload.py",
        extra_env={"DESK": os.environ.get("THERE", str(DESK)), "FAIL": os.environ.get("FAIL", ""), "NAME": name},
        options={"cpus": int(os.environ.get("CPUS", "1"))},
        **options,
    )


@dg.asset
def one(context: dg.AssetExecutionContext):
    return run(context).get_materialize_result()


@dg.asset(retry_policy=dg.RetryPolicy(max_retries=2))
def retried(context: dg.AssetExecutionContext):
    done = run(context)
    die("before return")
    return done.get_materialize_result()


@dg.asset(retry_policy=dg.RetryPolicy(max_retries=100))
def chatty(context: dg.AssetExecutionContext):
    return run(context).get_materialize_result()


@dg.asset(partitions_def=dg.StaticPartitionsDefinition(["a", "b"]))
def partitioned(context: dg.AssetExecutionContext):
    return run(context, context.partition_key).get_materialize_result()


@dg.asset(partitions_def=dg.StaticPartitionsDefinition(["a", "b", "c"]), backfill_policy=dg.BackfillPolicy.single_run())
def single_run(context: dg.AssetExecutionContext):
    return run(context, f"{context.partition_keys[0]}-{context.partition_keys[-1]}").get_materialize_result()


@dg.op(out=dg.DynamicOut(str))
def names():
    yield dg.DynamicOutput("x", mapping_key="x")
    yield dg.DynamicOutput("y", mapping_key="y")


@dg.op
def work(context: dg.OpExecutionContext, name: str) -> str:
    run(context, name)
    return name


@dg.job
def mapped():
    names().map(work)


@dg.asset
def threads(context: dg.AssetExecutionContext):
    """Four calls at once; the next begins when the one before has its number."""
    calls = []
    for name in os.environ["ORDER"]:
        before = len(list_of_handles(context))
        call = threading.Thread(target=run, args=(context, name))
        call.start()
        calls.append(call)
        while len(list_of_handles(context)) == before:
            call.join(0.05)
    for call in calls:
        call.join()
    return dg.MaterializeResult()


def list_of_handles(context):
    entries = context.instance.all_logs(context.run_id, of_type=dg.DagsterEventType.ENGINE_EVENT)
    return [entry for entry in entries if "[pipes]" in (entry.get_dagster_event().message or "")]


@dg.asset
def named(context: dg.AssetExecutionContext):
    """Two calls that ask for the same, told apart by their names alone."""
    for name in os.environ["ORDER"]:
        run(context, "same", reattach_key=name)
    return dg.MaterializeResult()


defs = dg.Definitions(
    assets=[one],
    jobs=[dg.define_asset_job("one_job", [one])],
    sensors=[slurmbus_reconcile_sensor("slurm", minimum_interval_seconds=1)],
    resources={"slurm": PipesSlurmClient.local()},
)
one, retried, chatty, partitioned, single_run, threads, named = (
    dg.Definitions(
        assets=[asset], jobs=[dg.define_asset_job(f"{asset.key.to_user_string()}_job", [asset])]
    ).resolve_job_def(f"{asset.key.to_user_string()}_job")
    for asset in (one, retried, chatty, partitioned, single_run, threads, named)
)
