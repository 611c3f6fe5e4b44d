"""Adds the processes' numbers up with PyTorch's gloo."""

import os
import socket
import sys
import time

import torch
from torch import distributed

distributed.init_process_group("gloo")
rank, size = distributed.get_rank(), distributed.get_world_size()
total = torch.tensor([float(rank + 1)])
distributed.all_reduce(total)
hosts = [None] * size
distributed.all_gather_object(hosts, socket.gethostname())
restarts = os.environ["TORCHELASTIC_RESTART_COUNT"]
print(f"rank {rank} of {size}: sum {int(total.item())} over {sorted(set(hosts))} after {restarts} restarts", flush=True)
distributed.barrier()
if len(sys.argv) > 1 and rank == 3 and restarts == "0":
    sys.exit(int(sys.argv[1]))
if len(sys.argv) > 1 and restarts == "0":
    time.sleep(600)
distributed.destroy_process_group()
