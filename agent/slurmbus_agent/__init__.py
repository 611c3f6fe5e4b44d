"""The user-space agent that submits and follows Slurm jobs for Slurmbus."""

__version__ = "0.1.0"
