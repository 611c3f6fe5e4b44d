"""What a job's Python and its packages come from, and how that gets to a site.

Kinds that travel are :class:`PackedEnvironment`: packed here into files and a manifest, uploaded once, installed once.
The others are there already and only need to be named.
"""

from slurmbus.environments.conda import CondaPack, PixiPack
from slurmbus.environments.packing import Pack, PackedEnvironment, Target
from slurmbus.environments.places import ApptainerImage, InstalledEnvironment, Modules, SiteFolder
from slurmbus.environments.requirements import Requirements, UvLock
from slurmbus.environments.shipping import AnyEnvironment, Shipper, as_environment

__all__ = [
    "AnyEnvironment",
    "ApptainerImage",
    "CondaPack",
    "InstalledEnvironment",
    "Modules",
    "Pack",
    "PackedEnvironment",
    "PixiPack",
    "Requirements",
    "Shipper",
    "SiteFolder",
    "Target",
    "UvLock",
    "as_environment",
]
