"""Counts on a Spark cluster that it finds by itself, and says on which hosts the work was done."""

import socket
import sys
import time

from pyspark.sql import SparkSession


def where(rows):
    """Say where a partition is worked on; slowly, so that one executor can't have them all."""
    time.sleep(1)
    return [(socket.gethostname(), len(list(rows)))]


with SparkSession.builder.getOrCreate() as spark:
    context = spark.sparkContext
    deadline = time.monotonic() + 60
    while context._jsc.sc().getExecutorMemoryStatus().size() < 3 and time.monotonic() < deadline:
        time.sleep(0.1)
    found = context.parallelize(range(1000), 8).mapPartitions(where).collect()
    print("counted", sum(count for _, count in found), "on", sorted({host for host, _ in found}), flush=True)
    print("sum", spark.range(1000).selectExpr("sum(id)").first()[0], "by", context.master, flush=True)
    if len(sys.argv) > 1:
        print("waiting", flush=True)
        time.sleep(600)
