"""One task of several: two seconds of CPU time each."""

import os
import time

while time.process_time() < 2:
    pass
print("task", os.environ["SLURM_PROCID"], "of", os.environ["SLURM_NTASKS"], flush=True)
