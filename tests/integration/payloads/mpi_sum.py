"""Adds the ranks' numbers up over MPI, says so, and may then fail on one rank."""

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

what = sys.argv[1] if len(sys.argv) > 1 else ""
if what:
    if rank != int(sys.argv[2]):
        time.sleep(600)
    elif what == "exit":
        os._exit(int(sys.argv[3]))
    elif what == "kill":
        os.kill(os.getpid(), signal.SIGSEGV)
    elif what == "raise":
        raise ValueError("this rank doesn't like it")
    else:
        print("waiting", flush=True)
        time.sleep(600)
