"""How payloads are started on the site: launchers make typed plans, the runner there carries them out."""

from dagster_slurmbus.launchers.base import ComputeLauncher
from dagster_slurmbus.launchers.bash import BashLauncher
from dagster_slurmbus.launchers.mpi import MpiLauncher
from dagster_slurmbus.launchers.ray import RayLauncher
from dagster_slurmbus.launchers.spark import SparkLauncher
from dagster_slurmbus.launchers.torchrun import TorchrunLauncher

__all__ = ["BashLauncher", "ComputeLauncher", "MpiLauncher", "RayLauncher", "SparkLauncher", "TorchrunLauncher"]
