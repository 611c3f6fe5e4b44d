"""Every option that Slurm has for a batch job: one table for the plugin, the command and the agent.

A row says how people write an option, which field of JobOptions carries it, how sbatch calls it and, where pyslurm can
express it as sbatch does, how pyslurm calls it. Source of the meanings: sbatch(1) of Slurm 26.05.
"""

from __future__ import annotations

import re
from enum import Enum, auto
from typing import NamedTuple


class Kind(Enum):
    """How the value of an option is written."""

    TEXT = auto()
    LIST = auto()
    """Text; a list of several is joined by commas."""
    GPUS = auto()
    """``[type:]number``, or several separated by commas."""
    COUNT = auto()
    """A number from 1."""
    NATURAL = auto()
    """A number from 0."""
    NUMBER = auto()
    FLAG = auto()
    """Given or not given."""
    CHOICE = auto()
    """Yes, no, or what the site has set."""
    MINUTES = auto()
    MEMORY = auto()
    MOMENT = auto()
    """A date or a time of day, as Slurm reads them on the site."""


class Option(NamedTuple):
    """One option of a batch job."""

    name: str
    """How people write it: a field of SlurmQueueConfig, a key of a mapping."""
    flag: str
    """sbatch's long name for it."""
    kind: Kind
    about: str
    field: str = ""
    """The field of JobOptions; empty when it is called like ``name``."""
    native: str = ""
    """The argument of pyslurm's JobSubmitDescription; empty when only sbatch can express it."""
    bare: str = ""
    """What the option means when it is given without a value, where sbatch allows that."""

    @property
    def wire(self) -> str:
        """The field of JobOptions."""
        return self.field or self.name


K = Kind

OPTIONS: tuple[Option, ...] = (
    # where and for whom
    Option("partition", "partition", K.LIST, "Partition, or several separated by commas.", native="partitions"),
    Option("account", "account", K.TEXT, "Account that the job is charged to.", native="account"),
    Option("qos", "qos", K.LIST, "Quality of service.", native="qos"),
    Option("reservation", "reservation", K.LIST, "Reservation to run in.", native="reservations"),
    Option("wckey", "wckey", K.TEXT, "Workload characterization key.", native="wckey"),
    Option("mcs_label", "mcs-label", K.TEXT, "Label for multi-category security."),
    # how long and when
    Option(
        "time_limit",
        "time",
        K.MINUTES,
        'Longest run time: "00:10:00", "1-12:00:00", a number of minutes, or UNLIMITED.',
        field="time_limit_minutes",
        native="time_limit",
    ),
    Option(
        "time_min",
        "time-min",
        K.MINUTES,
        "Shortest run time that would do, so that the job may start earlier.",
        field="time_min_minutes",
        native="time_limit_min",
    ),
    Option(
        "begin",
        "begin",
        K.MOMENT,
        'Not before: "now+1hour", "16:00", "2030-01-20T12:34:00"; by the clock of the site.',
        native="begin_time",
    ),
    Option(
        "deadline",
        "deadline",
        K.MOMENT,
        "Remove the job when it can't end by then; written like begin.",
        native="deadline",
    ),
    Option(
        "delay_boot",
        "delay-boot",
        K.NATURAL,
        "Minutes to wait before nodes are rebooted for their features.",
        field="delay_boot_minutes",
    ),
    Option(
        "dependency",
        "dependency",
        K.LIST,
        'Other Slurm jobs that this one waits for: "afterok:1234:1235,afterany:1236".',
        native="dependencies",
    ),
    Option("kill_on_invalid_dep", "kill-on-invalid-dep", K.CHOICE, "End the job when its dependency can't be met."),
    Option("hold", "hold", K.FLAG, "Wait until somebody releases the job (scontrol release).", native="priority"),
    Option(
        "nice",
        "nice",
        K.NUMBER,
        "Lower the priority by so much; without a value by 100. Only operators may give a negative one.",
        native="nice",
        bare="100",
    ),
    Option("priority", "priority", K.TEXT, "The priority itself, or TOP; operators only."),
    Option(
        "signal",
        "signal",
        K.TEXT,
        'Signal before the time limit: "B:USR1@120" reaches the payload 120 s earlier, "USR1@120" its srun steps.',
    ),
    # what happens to it
    Option(
        "requeue",
        "requeue",
        K.FLAG,
        "Start again after a node failure or a preemption; the payload must bear that.",
        native="is_requeueable",
    ),
    Option("requeue_expedite", "requeue", K.FLAG, "Requeue with the highest priority; implies requeue."),
    Option("no_kill", "no-kill", K.FLAG, "Go on when one of the job's nodes fails."),
    Option(
        "oom_kill_step", "oom-kill-step", K.CHOICE, "End the whole step when one task runs out of memory.", bare="1"
    ),
    Option("mail_type", "mail-type", K.LIST, 'Mail at these events: "END,FAIL", ALL, …'),
    Option("mail_user", "mail-user", K.TEXT, "Who gets the mail."),
    Option("comment", "comment", K.TEXT, "A comment of your own, for people.", native="comment"),
    # nodes, tasks and CPUs
    Option("nodes", "nodes", K.COUNT, "Number of nodes; with nodes_max the least.", native="nodes"),
    Option("nodes_max", "nodes", K.COUNT, "The most nodes that are wanted.", native="nodes"),
    Option("node_counts", "nodes", K.LIST, 'Several numbers of nodes that would do: "1,3,8" or "2-16:2".'),
    Option("ntasks", "ntasks", K.COUNT, "Number of tasks.", native="ntasks"),
    Option("ntasks_per_node", "ntasks-per-node", K.COUNT, "Number of tasks on each node.", native="ntasks_per_node"),
    Option("ntasks_per_core", "ntasks-per-core", K.COUNT, "Most tasks on each core."),
    Option("ntasks_per_socket", "ntasks-per-socket", K.COUNT, "Most tasks on each socket."),
    Option("ntasks_per_gpu", "ntasks-per-gpu", K.COUNT, "Tasks for each GPU."),
    Option("cpus", "cpus-per-task", K.COUNT, "CPUs for each task.", field="cpus_per_task", native="cpus_per_task"),
    Option("cpus_per_gpu", "cpus-per-gpu", K.COUNT, "CPUs for each GPU; excludes cpus."),
    Option("mincpus", "mincpus", K.COUNT, "Least CPUs of each node."),
    Option("overcommit", "overcommit", K.FLAG, "Allocate as if there were one task on each node."),
    # memory and disk
    Option(
        "mem",
        "mem",
        K.MEMORY,
        'Memory on each node: "1G", "500M", a number of MiB, or 0 for all of it.',
        field="mem_per_node_mib",
        native="memory_per_node",
    ),
    Option(
        "mem_per_cpu",
        "mem-per-cpu",
        K.MEMORY,
        "Memory for each CPU; excludes mem.",
        field="mem_per_cpu_mib",
        native="memory_per_cpu",
    ),
    Option("mem_per_gpu", "mem-per-gpu", K.MEMORY, "Memory for each GPU; excludes mem.", field="mem_per_gpu_mib"),
    Option("mem_bind", "mem-bind", K.TEXT, "How tasks are bound to memory."),
    Option(
        "mem_update", "mem-update", K.TEXT, 'Lower the memory limit to the use plus a margin: "20@10" (%, minutes).'
    ),
    Option("tmp", "tmp", K.MEMORY, "Least temporary disk of each node.", field="tmp_mib"),
    # GPUs and other resources
    Option("gpus", "gpus", K.GPUS, 'GPUs of the whole job: "4" or "a100:4"; 0 is a job without any.'),
    Option("gpus_per_node", "gpus-per-node", K.GPUS, 'GPUs on each node: "2" or "a100:2".', native="gres_per_node"),
    Option("gpus_per_task", "gpus-per-task", K.GPUS, "GPUs for each task."),
    Option("gpus_per_socket", "gpus-per-socket", K.GPUS, "GPUs on each socket; needs sockets_per_node."),
    Option("gpu_bind", "gpu-bind", K.TEXT, "How tasks are bound to GPUs: closest, single:1, …"),
    Option("gpu_freq", "gpu-freq", K.TEXT, "Frequency of the GPUs: medium, memory=high, …"),
    Option("gres", "gres", K.LIST, 'Generic resources on each node: "gpu:2,shard:1".', native="gres_per_node"),
    Option("gres_flags", "gres-flags", K.LIST, "enforce-binding, disable-binding, one-task-per-sharing, …"),
    Option("tres_per_task", "tres-per-task", K.LIST, 'Trackable resources for each task: "cpu=4,gres/gpu=1".'),
    Option("tres_bind", "tres-bind", K.TEXT, "How tasks are bound to trackable resources."),
    Option("licenses", "licenses", K.LIST, 'Licences: "matlab:2,ansys".', native="licenses"),
    Option("resources", "resources", K.LIST, "Hierarchical resources."),
    Option("bb", "bb", K.TEXT, "Burst buffer, as the site writes it."),
    # which nodes
    Option("constraint", "constraint", K.TEXT, 'Features that the nodes must have: "a100&nvme".', native="constraints"),
    Option("prefer", "prefer", K.TEXT, "Features that the nodes should have."),
    Option("batch", "batch", K.TEXT, "Features that the first node must have."),
    Option("cluster_constraint", "cluster-constraint", K.TEXT, "Features that the cluster of a federation must have."),
    Option("node_extra", "extra", K.TEXT, "What the nodes' Extra field must fulfil (sbatch's own --extra)."),
    Option("nodelist", "nodelist", K.LIST, "Nodes that must be among the job's.", native="required_nodes"),
    Option("exclude", "exclude", K.LIST, "Nodes that must not be among the job's.", native="excluded_nodes"),
    Option("exclusive", "exclusive", K.FLAG, "Share the nodes with no other job.", native="resource_sharing"),
    Option("exclusive_scope", "exclusive", K.TEXT, "Share the nodes only within: user, mcs or topo."),
    Option("oversubscribe", "oversubscribe", K.FLAG, "Share CPUs with other jobs."),
    Option("contiguous", "contiguous", K.FLAG, "Nodes that stand side by side."),
    Option("spread_job", "spread-job", K.FLAG, "As many nodes as possible."),
    Option("use_min_nodes", "use-min-nodes", K.FLAG, "Of a range of nodes, rather few."),
    Option("switches", "switches", K.TEXT, 'Most leaf switches, and how long to wait for that: "1@60:00".'),
    Option("segment", "segment", K.COUNT, "Nodes of a segment, in a block topology."),
    Option("spread_segments", "spread-segments", K.FLAG, "Segments in separate base blocks."),
    Option("consolidate_segments", "consolidate-segments", K.FLAG, "All segments in one higher block."),
    # how nodes are used
    Option("core_spec", "core-spec", K.NATURAL, "Cores of each node left to the system; implies exclusive."),
    Option("thread_spec", "thread-spec", K.NATURAL, "Threads of each node left to the system; implies exclusive."),
    Option("sockets_per_node", "sockets-per-node", K.COUNT, "Least sockets of a node."),
    Option("cores_per_socket", "cores-per-socket", K.COUNT, "Least cores of a socket."),
    Option("threads_per_core", "threads-per-core", K.COUNT, "Least threads of a core."),
    Option("hint", "hint", K.TEXT, "compute_bound, memory_bound, multithread or nomultithread."),
    Option("distribution", "distribution", K.TEXT, "How tasks are laid out: block, cyclic, plane=4, block:cyclic, …"),
    Option("cpu_freq", "cpu-freq", K.TEXT, "Frequency of the CPUs: low, high, 2000000-3000000:OnDemand, …"),
    Option("power", "power", K.TEXT, "Power management, where the site has it."),
    Option("reboot", "reboot", K.FLAG, "Reboot the nodes first; administrators only."),
    Option("wait_all_nodes", "wait-all-nodes", K.CHOICE, "Start only when all nodes have booted."),
    Option("network", "network", K.LIST, "What is asked of the network, as the site writes it."),
    Option("resv_ports", "resv-ports", K.TEXT, "How many ports to reserve; without a value as many as needed."),
    Option("stepmgr", "stepmgr", K.FLAG, "Let the job manage its own steps, for very many of them."),
    Option("propagate", "propagate", K.LIST, "Resource limits of the login node to take along; ALL without a value."),
    Option("profile", "profile", K.LIST, "What to profile: all, none, energy, task, lustre, network."),
    Option("acctg_freq", "acctg-freq", K.LIST, 'Seconds between samples: "task=10,energy=30".'),
    Option("context", "context", K.TEXT, "SELinux context."),
    Option("container", "container", K.TEXT, "OCI bundle, an absolute path on the site."),
    Option("container_id", "container-id", K.TEXT, "Name of the OCI container."),
    Option("container_type", "container-type", K.TEXT, "Type of the container."),
)

BY_NAME: dict[str, Option] = {option.name: option for option in OPTIONS}

OWNED: dict[str, str] = {
    "array": "a job array has records and outputs of its own: use run_array(…)",
    "job-name": "the job's name carries the key by which it is found again",
    "output": "the payload's output comes here as it is written, and stays in the job's folder",
    "error": "the payload's output comes here as it is written, and stays in the job's folder",
    "input": "the payload reads files: pass them with extra_files",
    "open-mode": "output is never overwritten",
    "chdir": "write cwd: an argument of run(…), and a key of the queue, the asset's metadata and the launchpad",
    "export": "jobs start from a fresh login shell: pass variables with extra_env",
    "export-file": "jobs start from a fresh login shell: pass variables with extra_env",
    "get-user-env": "jobs start from a fresh login shell anyway",
    "wrap": "name the command instead: PipesSlurmClient.run(command=…), or a payload",
    "wait": "run() waits for the job's end, and survives that its process is killed",
    "clusters": "choose the site instead: each cluster has one, with an agent of its own",
    "cluster": "choose the site instead: each cluster has one, with an agent of its own",
    "uid": "jobs belong to the agent's user",
    "gid": "jobs belong to the agent's user",
    "parsable": "what sbatch prints is read by the agent",
    "quiet": "what sbatch prints is read by the agent",
    "verbose": "what sbatch prints is read by the agent",
    "test-only": "nothing would be submitted; to see when a job would start, ask squeue --start for a waiting one",
    "autocomplete": "nothing would be submitted",
    "help": "nothing would be submitted",
    "usage": "nothing would be submitted",
    "version": "nothing would be submitted",
    "ignore-pbs": "the batch script is Slurmbus' own and has no such lines",
    "external": "the payload is a batch script's child: a job without one can't run it",
}
"""What isn't the user's to say, by sbatch's long name, with the reason and what to do instead."""

OTHER_WORDS: dict[str, str] = {
    "extra-node-info": "written as sockets_per_node, cores_per_socket and threads_per_core",
    "nodefile": "the file is read here, into nodelist",
    "bbf": "the file is read here, into bb",
    "no-requeue": "requeue=False",
    "tasks-per-node": "ntasks_per_node",
    "ntasks-per-tres": "ntasks_per_gpu",
}
"""sbatch's further names for what the table has, and what becomes of them."""

SHORT: dict[str, str] = {
    "A": "account",
    "a": "array",
    "B": "extra-node-info",
    "b": "begin",
    "C": "constraint",
    "c": "cpus-per-task",
    "D": "chdir",
    "d": "dependency",
    "e": "error",
    "F": "nodefile",
    "G": "gpus",
    "H": "hold",
    "h": "help",
    "i": "input",
    "J": "job-name",
    "k": "no-kill",
    "L": "licenses",
    "M": "clusters",
    "m": "distribution",
    "N": "nodes",
    "n": "ntasks",
    "O": "overcommit",
    "o": "output",
    "p": "partition",
    "Q": "quiet",
    "q": "qos",
    "S": "core-spec",
    "s": "oversubscribe",
    "t": "time",
    "V": "version",
    "v": "verbose",
    "W": "wait",
    "w": "nodelist",
    "x": "exclude",
}
"""sbatch's one-letter names."""

GROUPS: tuple[frozenset[str], ...] = (
    frozenset({"mem_per_node_mib", "all_memory", "mem_per_cpu_mib", "mem_per_gpu_mib"}),
    frozenset({"exclusive", "exclusive_scope", "oversubscribe"}),
    frozenset({"nodes", "nodes_max", "node_counts"}),
    frozenset({"requeue", "requeue_expedite"}),
    frozenset({"time_limit_minutes", "unlimited_time"}),
    frozenset({"ntasks", "ntasks_per_node", "ntasks_per_gpu"}),
    frozenset({"cpus_per_task", "cpus_per_gpu"}),
    frozenset({"gpus", "gpus_per_node", "gpus_per_task", "gpus_per_socket"}),
    frozenset({"core_spec", "thread_spec"}),
)
"""Fields of JobOptions that are ways of saying one thing: who sets one of them replaces them all."""

FORMER: dict[str, str] = {
    "num-nodes": "nodes",
    "signal-before-timeout": "signal, with a B: as in signal='B:TERM@120'",
}
"""Names that the SSH-based integration (dagster-slurm) has for options, and what they are called here."""

LISTS = ("gres", "tres_per_task")
"""Fields whose items may say what a group says, too."""

LISTED: tuple[tuple[str, re.Pattern[str]], ...] = (
    ("cpus_per_task", re.compile(r"cpu[:=].*")),
    ("gpus", re.compile(r"(?:gres[/:])?gpu(?:[:=].*)?")),
)
"""Items of these lists that say what a group says, each with a field of that group."""

OF_GPUS = frozenset({"gpu_bind", "gpu_freq", "cpus_per_gpu", "mem_per_gpu_mib", "ntasks_per_gpu"})
"""Fields of JobOptions that mean nothing to a job without GPUs."""

CONFLICTS: tuple[tuple[str, str], ...] = (
    ("mem", "mem_per_cpu"),
    ("mem", "mem_per_gpu"),
    ("mem_per_cpu", "mem_per_gpu"),
    ("exclusive", "oversubscribe"),
    ("exclusive_scope", "oversubscribe"),
    ("cpus", "cpus_per_gpu"),
    ("core_spec", "thread_spec"),
)
"""Options that exclude each other."""


def long_name(key: str) -> str:
    """Give sbatch's long name for what somebody wrote: ``-N``, ``--time-min``, ``time_min``."""
    bare = key.lstrip("-")
    return SHORT.get(bare, bare.replace("_", "-").lower())


_BY_KEY: dict[str, Option] = {}
for _option in reversed(OPTIONS):  # of several with the same flag, the first one is meant
    _BY_KEY[_option.flag] = _option
for _option in OPTIONS:
    _BY_KEY[_option.name.replace("_", "-")] = _option
del _BY_KEY["extra"]  # the escape of this name is meant


def find(key: str) -> Option | None:
    """Give the option that somebody means by ``key``: our name or sbatch's, with ``-`` or ``_``; None is none."""
    return _BY_KEY.get(long_name(key))
