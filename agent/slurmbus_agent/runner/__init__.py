"""The program that starts a payload inside its Slurm job and reports on it: standard library only, Python >= 3.9."""
