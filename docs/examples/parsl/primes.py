"""Counts primes with Parsl: a pool of workers on each node of this job's allocation."""

import itertools
import os
import sys
import time

import parsl
from dagster_pipes import open_dagster_pipes
from parsl.addresses import address_by_hostname
from parsl.config import Config
from parsl.executors import HighThroughputExecutor
from parsl.launchers import SrunLauncher
from parsl.providers import LocalProvider

NODES = int(os.environ["SLURM_JOB_NUM_NODES"])
CPUS = int(os.environ["SLURM_CPUS_PER_TASK"])
PIECES = 16


@parsl.python_app
def count_primes(first: int, last: int):
    import os

    found = sum(all(number % divisor for divisor in range(2, int(number**0.5) + 1)) for number in range(first, last))
    return found, os.uname().nodename


def pools():
    """One block: the allocation that this payload runs in. srun starts a pool on each of its nodes."""
    return HighThroughputExecutor(
        address=address_by_hostname(),  # without it Parsl asks a web service, which compute nodes may not reach
        max_workers_per_node=CPUS,
        provider=LocalProvider(
            nodes_per_block=NODES,
            launcher=SrunLauncher(overrides=f"--cpus-per-task={CPUS}"),  # else srun binds each pool to one CPU
        ),
    )


def wait_for_all(executor: HighThroughputExecutor):
    """The first pool would begin alone; figures of all nodes need all of them."""
    while len(executor.connected_managers()) < NODES:
        if executor.bad_state_is_set:
            raise executor.executor_exception
        time.sleep(0.1)


def main():
    last = int(sys.argv[1])
    bounds = [2 + (last - 2) * piece // PIECES for piece in range(PIECES + 1)]
    executor = pools()
    config = Config(executors=[executor], strategy="none", strategy_period=1)  # it looks at its blocks every second
    with open_dagster_pipes() as pipes, parsl.load(config):
        wait_for_all(executor)
        pipes.log.info(f"Parsl has {NODES} pools of {CPUS} workers")
        counted = [future.result() for future in [count_primes(*piece) for piece in itertools.pairwise(bounds)]]
        pipes.report_asset_materialization(
            metadata={"primes": sum(found for found, _ in counted), "hosts": sorted({host for _, host in counted})}
        )


if __name__ == "__main__":
    main()
