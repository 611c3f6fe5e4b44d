"""Adds the processes' numbers up with PyTorch's gloo; one fails at its first start when an exit code is given."""

import pathlib
import socket
import sys
import time

import torch
from torch import distributed

FAILED = pathlib.Path("failed")

again = " again" if FAILED.exists() else ""
distributed.init_process_group("gloo")
rank, size = distributed.get_rank(), distributed.get_world_size()
total = torch.tensor([float(rank + 1)])
distributed.all_reduce(total)
hosts = [None] * size
distributed.all_gather_object(hosts, socket.gethostname())
# In one piece: unbuffered, print() writes the end of the line by itself, and another rank may come between.
sys.stdout.write(f"rank {rank} of {size}: sum {int(total.item())} over {sorted(set(hosts))}{again}\n")
sys.stdout.flush()
distributed.barrier()
if len(sys.argv) > 1 and not again:
    if rank == 3:
        FAILED.touch()
        sys.exit(int(sys.argv[1]))
    time.sleep(600)
distributed.destroy_process_group()
