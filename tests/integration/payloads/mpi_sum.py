"""Adds the ranks' numbers up over MPI, says so, and may then fail on one rank: ``exit 2 3``, ``raise 2``, ``wait``."""

import os
import signal
import socket
import sys
import time

import numpy as np
from mpi4py import MPI

world = MPI.COMM_WORLD
rank = world.Get_rank()
total = np.zeros(1, dtype="i")
world.Allreduce(np.array([rank + 1], dtype="i"), total)
hosts = sorted(set(world.allgather(socket.gethostname())))
print(f"rank {rank} of {world.Get_size()}: sum {total[0]} over {hosts}", flush=True)
world.Barrier()

if len(sys.argv) > 1:
    what, who, *code = sys.argv[1:]
    if rank != int(who):
        time.sleep(600)
    if what == "exit":
        os._exit(int(code[0]))
    if what == "kill":
        os.kill(os.getpid(), signal.SIGSEGV)
    if what == "raise":
        raise ValueError("this rank doesn't like it")
    print("waiting", flush=True)
    time.sleep(600)
