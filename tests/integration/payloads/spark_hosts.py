"""Counts on a Spark cluster that it finds by itself: ``lose`` ends a worker in between, ``wait`` stays."""

import json
import os
import signal
import socket
import sys
import time
import urllib.request

from pyspark.sql import SparkSession


def where(rows):
    """Say where a partition is worked on; slowly, so that one executor doesn't have them all."""
    time.sleep(0.5)
    return [(socket.gethostname(), len(list(rows)))]


def end_worker(rows):
    """End this node's worker, when this is c2."""
    time.sleep(0.5)
    if socket.gethostname() == "c2":
        for pid in filter(str.isdigit, os.listdir("/proc")):
            with open(f"/proc/{pid}/cmdline", "rb") as file:
                if b"org.apache.spark.deploy.worker.Worker" in file.read():
                    os.kill(int(pid), signal.SIGKILL)
    return rows


def wait_for(condition, words):
    """Wait until something is so."""
    deadline = time.monotonic() + 240
    while not condition():
        assert time.monotonic() < deadline, words
        time.sleep(0.1)


with SparkSession.builder.getOrCreate() as spark:
    context = spark.sparkContext
    executors = context._jsc.sc().getExecutorMemoryStatus
    wait_for(lambda: executors().size() == 3, "the driver and two executors")
    if sys.argv[1:] == ["lose"]:
        try:
            context.parallelize(range(8), 4).mapPartitions(end_worker).count()
        finally:
            wait_for(lambda: executors().size() == 2, "the executor is gone")
    found = context.parallelize(range(1000), 8).mapPartitions(where).collect()
    with open(f"{os.environ['SLURMBUS_SPOOL']}/{os.environ['SLURMBUS_START']}.facts") as file:
        facts = json.load(file)
    with urllib.request.urlopen(facts["spark_ui"], timeout=10) as page:
        status = page.status
    result = {
        "count": sum(count for _, count in found),
        "hosts": sorted({host for host, _ in found}),
        "sum": spark.range(1000).selectExpr("sum(id)").first()[0],
        "master": context.master,
        "memory": context.getConf().get("spark.executor.memory"),
        "facts": facts,
        "page": status,
        "ended_at": time.time(),
    }
    print("RESULT", json.dumps(result), flush=True)
    if sys.argv[1:] == ["wait"]:
        time.sleep(600)
