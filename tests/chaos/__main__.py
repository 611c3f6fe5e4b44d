"""``make chaos``: run the system under fire and say which promises were kept."""

from __future__ import annotations

import argparse
import asyncio
import random
import signal
import sys
import time
from pathlib import Path

from chaos import checker, report
from chaos.faults import COMMON, EMPTY_BUS, KINDS
from chaos.harness import Run, plan
from chaos.pointed_run import PointRun, plan_cases
from chaos.points import POINTS
from chaos.rig import Rig
from slurmbus_cluster import ClusterError


def main() -> int:
    """Run; 0 when every promise was kept, 1 when one was broken, 2 when the run couldn't be made."""
    parser = argparse.ArgumentParser(prog="make chaos")
    parser.add_argument("--seed", type=int, default=None, help="repeat the run of this seed")
    parser.add_argument("--seconds", type=float, default=120.0, help="how long jobs and faults come")
    parser.add_argument("--jobs", type=int, default=None, help="how many jobs (default: 0.8 a second)")
    parser.add_argument("--steps", type=int, default=None, help="how many Dagster steps (default: one in 15 s)")
    parser.add_argument("--new-bus", action="store_true", help="also replace the bus by an empty one now and then")
    parser.add_argument("--only", default="", help="only these kinds of faults, with commas between them")
    parser.add_argument("--pause", type=float, nargs=2, default=(1.0, 4.0), help="seconds between two faults")
    parser.add_argument("--mode", choices=("random", "points"), default="random", help="at random, or at every point")
    parser.add_argument(
        "--cases", type=int, default=len(POINTS), help="how many cases of the points (default: each point once; 0: all)"
    )
    parser.add_argument("--labels", default="", help="only these points, with commas between them")
    parser.add_argument("--scheduler", choices=("native", "commands"), default="native", help="by what agents submit")
    parser.add_argument("--folder", type=Path, default=Path("build/chaos"), help="where reports and evidence go")
    arguments = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the containers are removed
    seed = arguments.seed if arguments.seed is not None else random.SystemRandom().randrange(1_000_000)
    kinds = [name.strip() for name in arguments.only.split(",") if name.strip()] or COMMON
    if arguments.new_bus:
        kinds.append(EMPTY_BUS)
    unknown = [name for name in kinds if name not in KINDS]
    if unknown:
        parser.error(f"no such fault: {', '.join(unknown)}; there are: {', '.join(KINDS)}")
    folder = (arguments.folder / f"{time.strftime('%Y%m%d-%H%M%S')}-{arguments.mode}-{seed}").absolute()
    folder.mkdir(parents=True)
    pointed = arguments.mode == "points"
    try:
        with Rig(folder, say, pointed=pointed, scheduler=arguments.scheduler) as rig:
            run = _pointed(rig, arguments, seed) if pointed else _random(rig, arguments, seed, kinds)
            history = asyncio.run(run.run())
    except ClusterError as error:
        say(f"error: {error}")
        return 2
    verdict = checker.check(history)
    path = report.write(history, verdict, folder)
    print(report.table(history, verdict))
    print(f"\n{path}")
    return 1 if verdict.breaches else 0


def _random(rig: Rig, arguments: argparse.Namespace, seed: int, kinds: list[str]) -> Run:
    steps = arguments.steps if arguments.steps is not None else int(arguments.seconds / 15)
    schedule = plan(
        seed, arguments.seconds, jobs=arguments.jobs, kinds=kinds, pause=tuple(arguments.pause), steps=steps
    )
    say(f"seed {seed}: {len(schedule.jobs)} jobs, {len(schedule.faults)} faults in {arguments.seconds:.0f} s")
    return Run(rig, schedule, say)


def _pointed(rig: Rig, arguments: argparse.Namespace, seed: int) -> Run:
    cases = plan_cases(seed, arguments.cases or None, [label for label in arguments.labels.split(",") if label])
    say(f"seed {seed}: {len(cases)} cases")
    return PointRun(rig, seed, cases, say)


def say(line: str) -> None:
    """Show how far it is."""
    print(f"[chaos] {line}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
