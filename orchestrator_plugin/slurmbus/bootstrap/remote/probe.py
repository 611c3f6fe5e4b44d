"""What a login node is like; loaded into the helper (see ``helper.py``): Python 3.6 and the standard library only."""

import errno
import glob
import json
import os
import platform
import pwd
import re
import resource
import socket
import tempfile
import threading
import time
import urllib.error
import urllib.request
from typing import Any, Callable, Dict, List, Optional, Set, Tuple

from slurmbus.bootstrap.remote.helper import op, remove, run, walk

Found = Dict[str, Any]
Ask = Callable[..., Found]

PATIENCE = 10.0
BUSY = os.strerror(errno.ETXTBSY)
SERIES = (14, 13, 12, 11)
PLACES = ("/usr/bin", "/usr/local/bin", "/opt/python/*/bin", "/opt/slurmbus/bin")
LOGIN_VARIABLES = re.compile(r"(PATH|LD_LIBRARY_PATH|MODULEPATH|MODULESHOME|LMOD_.*|SLURM_CONF|LANG|LC_ALL|TZ)$")
SCRATCHES = ("SCRATCH", "WORK", "PROJECT", "DATA", "SCRATCHDIR", "WORKDIR", "CSCRATCH", "PSCRATCH")
SCRATCH_FOLDERS = ("/scratch/{user}", "/scratch", "/work/{user}", "/data/{user}", "/lustre/{user}")
NOEXEC = 8  # ST_NOEXEC of statvfs(3)
HEADERS = ("/usr/include", "/usr/local/include", "/opt/slurm/include", "/opt/slurm/*/include", "/usr/slurm/include")
ASK_PYTHON = (
    "import json,os,platform,struct,sys,sysconfig;"
    "print(json.dumps({'version':platform.python_version(),'path':sys.executable,"
    "'implementation':sys.implementation.name,'bits':struct.calcsize('P')*8,'libc':platform.libc_ver(),"
    "'free_threaded':bool(sysconfig.get_config_var('Py_GIL_DISABLED')),"
    "'headers':os.path.exists(os.path.join(sysconfig.get_paths()['include'],'Python.h')),"
    "'ssl':__import__('importlib.util').util.find_spec('_ssl') is not None}))"
)


@op
def probe(index: str, wanted: str, folders: List[str]) -> Found:
    """Look at everything at once, the slow questions beside each other.

    ``index`` is a URL of packages, ``wanted`` a Python that was named, ``folders`` places where the agent may be
    installed, besides those that are found here.
    """
    user = pwd.getpwuid(os.getuid())
    environment = login_environment(user.pw_shell)

    def ask(argv: List[str], patience: float = PATIENCE) -> Found:
        return run(argv, env=environment, timeout=patience)

    tasks = {
        "pythons": lambda: pythons(ask, wanted),
        "slurm": lambda: slurm(ask),
        "index": lambda: reaches(index),
        "supervisors": lambda: supervisors(ask, user.pw_name),
        "places": lambda: places(user, folders),
        "crowd": lambda: crowd(user.pw_uid),
    }
    found = beside_each_other(tasks)
    found.update(
        user=user.pw_name,
        uid=user.pw_uid,
        home=user.pw_dir,
        shell=user.pw_shell,
        host=platform.node(),
        system=platform.system(),
        machine=platform.machine(),
        kernel=platform.release(),
        libc=list(libc()),
        environment=environment,
        limits=limits(),
        client=os.environ.get("SSH_CONNECTION", "").split(" ")[0],
        runtime=os.environ.get("XDG_RUNTIME_DIR", ""),
    )
    return found


def beside_each_other(tasks: Dict[str, Callable[[], Any]]) -> Found:
    """Do several things at once; what fails is told as words."""
    found: Found = {}
    words: Dict[str, str] = {}

    def do(name: str, task: Callable[[], Any]) -> None:
        try:
            found[name] = task()
        except Exception as error:  # one question that can't be answered shall not hide the other answers
            found[name] = None
            words[name] = "%s: %s" % (type(error).__name__, error)

    threads = [threading.Thread(target=do, args=item, daemon=True) for item in tasks.items()]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60.0)
    for name in tasks:
        if name not in found:
            found[name], words[name] = None, "no answer within a minute"
    found["problems"] = words
    return found


# ---------------------------------------------------------------------- the account


def login_environment(shell: str) -> Dict[str, Optional[str]]:
    """Give what a login shell sets: site-wide PATH, modules, SLURM_CONF."""
    word = "slurmbus-%d" % os.getpid()
    script = "echo %s; env; echo %s" % (word, word)
    for program in (shell, "/bin/bash", "/bin/sh"):
        if os.path.basename(program) in ("csh", "tcsh") or not os.access(program, os.X_OK):
            continue  # they take no -l beside -c; what bash finds in /etc/profile is the next best
        said = run([program, "-l", "-c", script], timeout=PATIENCE)["out"].split(word + "\n")
        if len(said) >= 3:
            pairs = [line.split("=", 1) for line in said[1].splitlines() if "=" in line]
            return {name: value for name, value in pairs if LOGIN_VARIABLES.match(name)}
    return {"PATH": os.environ.get("PATH", "")}


def limits() -> Dict[str, int]:
    """Give what a process of this login may use; -1 is no limit."""
    kinds = {"cpu_seconds": "RLIMIT_CPU", "address_space": "RLIMIT_AS", "open_files": "RLIMIT_NOFILE"}
    kinds.update(processes="RLIMIT_NPROC", file_size="RLIMIT_FSIZE")
    return {name: resource.getrlimit(getattr(resource, kind))[0] for name, kind in kinds.items()}


def crowd(uid: int) -> int:
    """Count the other people who have processes here now."""
    people: Set[int] = set()
    for name in os.listdir("/proc"):
        if name.isdigit():
            try:
                people.add(os.stat("/proc/" + name).st_uid)
            except OSError:
                continue
    return len([one for one in people if one >= 1000 and one not in (uid, 65534)])


def libc() -> Tuple[str, str]:
    """Give the C library and its version; musl says it only when its loader is called."""
    try:
        name, version = (os.confstr("CS_GNU_LIBC_VERSION") or "").split(" ")
        return name, version
    except (AttributeError, ValueError, OSError):
        pass
    for loader in glob.glob("/lib/ld-musl-*"):
        found = re.search(r"Version ([0-9.]+)", run([loader], timeout=PATIENCE)["err"])
        if found:
            return "musl", found.group(1)
    return "", ""


# ---------------------------------------------------------------------- Python


def pythons(ask: Ask, wanted: str) -> List[Found]:
    """Give the Pythons that can be started here: on PATH, in usual places, of modules."""
    paths = [wanted] if wanted else []
    for minor in SERIES:
        name = "python3.%d" % minor
        paths += filter(
            None, [which(ask, name)] + [p for place in PLACES for p in sorted(glob.glob(place + "/" + name))]
        )
    paths += [which(ask, "python3")] + sorted(glob.glob("/opt/*/bin/python3"))
    found: List[Found] = []
    seen: Set[str] = set()
    for path in filter(None, paths):
        one = ask_python(ask, [path], "path")
        if one and os.path.realpath(one["path"]) not in seen:
            seen.add(os.path.realpath(one["path"]))
            found.append(one)
    if not any(is_new(one) for one in found):
        found += modules(ask)
    return found


def is_new(python: Found) -> bool:
    """Tell whether the agent runs on it."""
    return tuple(int(part) for part in re.findall(r"\d+", python["version"])[:2]) >= (3, 11)


def which(ask: Ask, name: str) -> str:
    """Find a program as a login shell would."""
    said = ask(["/bin/sh", "-c", 'command -v "$0"', name])
    return str(said["out"]).strip() if said["code"] == 0 else ""


def ask_python(ask: Ask, argv: List[str], source: str) -> Optional[Found]:
    """Ask a Python what it is; None when it can't say so."""
    said = ask(argv + ["-I", "-c", ASK_PYTHON])
    if said["code"] != 0:
        return None
    found: Found = json.loads(said["out"].strip().splitlines()[-1])
    found["source"] = source
    return found


@op
def python_of(paths: List[str]) -> Optional[Found]:
    """Give the first of these Pythons that runs."""
    for path in paths:
        if os.path.exists(path):
            found = ask_python(run, [path], "archive")
            if found:
                return found
    return None


def modules(ask: Ask) -> List[Found]:
    """Give the Pythons of the site's modules: Lmod's and Environment Modules' list has one name a line."""
    said = ask(["/bin/bash", "-l", "-c", "module -t avail 2>&1"], 30.0)["out"]
    names = [line.strip().split("(")[0] for line in said.splitlines()]
    names = [name for name in names if re.match(r"(?i)(.*/)?(c?python3?|anaconda3?|miniforge3?|miniconda3?)/", name)]
    found: List[Found] = []
    for name in sorted(names, key=numbers, reverse=True)[:4]:
        script = "module load %s >/dev/null 2>&1 && command -v python3" % name
        path = ask(["/bin/bash", "-l", "-c", script], 30.0)["out"].strip().splitlines()[-1:]
        one = ask_python(ask, path, "module " + name) if path else None
        if one:
            found.append(one)
            if is_new(one):
                break
    return found


def numbers(name: str) -> List[int]:
    """Give what names are sorted by: their version."""
    return [int(part) for part in re.findall(r"\d+", name.rpartition("/")[2])]


# ---------------------------------------------------------------------- Slurm


def slurm(ask: Ask) -> Found:
    """Give Slurm's version, and what pyslurm could be built against."""
    said = ask(["sbatch", "--version"])
    version = re.search(r"(\d+\.\d+\.\d+)", said["out"])
    sbatch = which(ask, "sbatch")
    prefix = os.path.dirname(os.path.dirname(os.path.realpath(sbatch))) if sbatch else ""
    headers = [place for places in HEADERS + (prefix + "/include",) for place in glob.glob(places)]
    libraries = glob.glob("/usr/lib*/libslurm.so*") + glob.glob("/usr/lib/*/libslurm.so*")
    libraries += glob.glob("/usr/lib*/slurm*/libslurm*.so*") + glob.glob("/opt/slurm*/lib*/libslurm.so*")
    libraries += glob.glob(prefix + "/lib*/libslurm.so*") if prefix not in ("", "/usr") else []
    include = next((place for place in headers if os.path.exists(place + "/slurm/slurm.h")), "")
    return {
        "version": version.group(1) if version else "",
        "sbatch": sbatch,
        "scrontab": bool(which(ask, "scrontab")),
        "sacct": bool(which(ask, "sacct")),
        "headers": include,
        "header_version": header_version(include),
        "libraries": sorted(libraries),
        "compiler": which(ask, "gcc") or which(ask, "cc"),
        "conf": next((c for c in ("/etc/slurm/slurm.conf", "/etc/slurm-llnl/slurm.conf") if os.path.exists(c)), ""),
    }


def header_version(include: str) -> str:
    """Read the version out of Slurm's headers: 0x1a0505 is 26.5.5."""
    for name in ("slurm_version.h", "slurm.h"):
        try:
            with open("%s/slurm/%s" % (include, name)) as file:
                found = re.search(r"SLURM_VERSION_NUMBER\s+0x([0-9a-fA-F]{6})", file.read())
        except OSError:
            continue
        if found:
            number = int(found.group(1), 16)
            return "%d.%02d.%d" % (number >> 16, number >> 8 & 255, number & 255)
    return ""


# ---------------------------------------------------------------------- the network


@op
def dial(host: str, port: int) -> Found:
    """Tell whether a TCP connection gets through from here, and if not, why."""
    try:
        with socket.create_connection((host, port), timeout=PATIENCE):
            return {"host": host, "port": port, "open": True, "why": ""}
    except OSError as error:
        return {"host": host, "port": port, "open": False, "why": error.strerror or str(error)}


def reaches(index: str) -> bool:
    """Tell whether packages can be had from here."""
    if not index:
        return False
    try:
        with urllib.request.urlopen(index, timeout=PATIENCE):
            return True
    except urllib.error.HTTPError:
        return True  # it answered
    except (OSError, ValueError):
        return False


# ---------------------------------------------------------------------- supervisors


def supervisors(ask: Ask, user: str) -> Found:
    """Tell what could keep the agent running here, and why something couldn't."""
    return {"systemd": systemd(ask, user), "cron": cron(ask), "scrontab": scrontab(ask)}


def systemd(ask: Ask, user: str) -> Found:
    """A user's systemd, which goes on after the logout only with lingering."""
    if not os.path.isdir("/run/systemd/system"):
        return {"usable": False, "why": "this machine doesn't run systemd"}
    said = ask(["systemctl", "--user", "show", "--property=Version"])
    if said["code"] != 0:
        return {"usable": False, "why": "no systemd of the user's own: " + last_line(said)}
    linger = ask(["loginctl", "show-user", user, "--property=Linger", "--value"])["out"].strip()
    if linger != "yes":
        said = ask(["loginctl", "--no-ask-password", "enable-linger"])
        if said["code"] != 0:
            return {"usable": False, "why": "it ends at the logout, and lingering isn't allowed: " + last_line(said)}
    return {"usable": True, "why": "lingers after the logout"}


def cron(ask: Ask) -> Found:
    """The user's crontab, and a daemon that reads it."""
    if not which(ask, "crontab"):
        return {"usable": False, "why": "there is no crontab"}
    said = ask(["crontab", "-l"])
    if said["code"] != 0 and "no crontab" not in said["err"]:
        return {"usable": False, "why": last_line(said) or "crontab isn't allowed"}
    for name in os.listdir("/proc"):
        if name.isdigit():
            try:
                with open("/proc/%s/comm" % name) as file:
                    if file.read().strip() in ("cron", "crond", "anacron", "systemd-cron"):
                        return {"usable": True, "why": "crontab is allowed"}
            except OSError:
                continue
    return {"usable": False, "why": "no cron daemon runs"}


def scrontab(ask: Ask) -> Found:
    """Slurm's own crontab, whose entries are jobs."""
    if not which(ask, "scrontab"):
        return {"usable": False, "why": "there is no scrontab"}
    said = ask(["scrontab", "-l"])
    if said["code"] != 0 and "no crontab" not in (said["err"] + said["out"]).lower():
        return {"usable": False, "why": last_line(said) or "scrontab is disabled"}
    return {"usable": True, "why": "scrontab is enabled"}


def last_line(said: Found) -> str:
    """Give the words of a program that failed."""
    lines: List[str] = (said["err"].strip() or said["out"].strip()).splitlines()
    return lines[-1].strip() if lines else "exit code %d" % said["code"]


# ---------------------------------------------------------------------- file systems


def places(user: pwd.struct_passwd, folders: List[str]) -> List[Found]:
    """Look at the home, at scratch folders, and at those that were named."""
    named = [("named", path) for path in folders]
    candidates = named + [("home", user.pw_dir)]
    login = (
        run(["/bin/bash", "-l", "-c", "env"], timeout=PATIENCE)["out"].splitlines()
        if os.path.exists("/bin/bash")
        else []
    )
    variables = dict(line.split("=", 1) for line in login if "=" in line)
    candidates += [("$" + name, variables[name]) for name in SCRATCHES if variables.get(name, "").startswith("/")]
    candidates += [("scratch", path.format(user=user.pw_name)) for path in SCRATCH_FOLDERS]
    candidates += [("temporary", "/var/tmp"), ("temporary", "/tmp")]
    found: List[Found] = []
    seen: Set[str] = set()
    for kind, path in candidates:
        if path in seen or not (os.path.isdir(path) or kind == "named"):
            continue
        seen.add(path)
        found.append(place(kind, path, user))
    return found


def place(kind: str, path: str, user: pwd.struct_passwd) -> Found:
    """Look at one folder; of one that isn't there yet at the nearest that is.

    ``own`` says whether it is the user's: not by its name, for anybody may make /scratch/<user>. ``unsafe`` says why
    what would lie in it, or in a folder with the user's name in it, could be swapped by others.
    """
    there = path
    while not os.path.isdir(there) and there != "/":
        there = os.path.dirname(there)
    about = os.statvfs(there)
    device, mount, system = mounted(there)
    own = there == path and os.stat(path).st_uid == user.pw_uid
    why_not = unsafe(path if own or kind in ("home", "named") else os.path.join(path, user.pw_name))
    return {
        "kind": kind,
        "path": path,
        "free": about.f_bavail * about.f_frsize,
        "free_files": about.f_favail,
        "system": system,
        "device": device,
        "mount": mount,
        "writable": os.access(there, os.W_OK),
        # Where others can swap a program, not even the one that tries it is started.
        "programs": not about.f_flag & NOEXEC and (bool(why_not) or runs_programs(there)),
        "own": own,
        "unsafe": why_not,
    }


def unsafe(path: str) -> str:
    """Tell why others could swap what lies in a folder, which may still be missing; nothing when they can't."""
    try:
        walk(path, make=False)
    except OSError as error:
        return "%s %s" % (error.filename, error.strerror)
    return ""


def mounted(path: str) -> Tuple[str, str, str]:
    """Give device, mount point and type of the file system of a folder."""
    best = ("", "/", "")
    real = os.path.realpath(path)
    try:
        with open("/proc/self/mounts") as file:
            for line in file:
                device, mount, system = line.split(" ")[:3]
                mount = mount.replace("\\040", " ")
                if (real + "/").startswith(mount.rstrip("/") + "/") and len(mount) >= len(best[1]):
                    best = (device, mount, system)
    except OSError:
        pass
    return best


def runs_programs(path: str) -> bool:
    """Try whether a program in a folder may be started; True when nothing can be written there to try it."""
    deadline = time.monotonic() + PATIENCE
    try:
        descriptor, name = tempfile.mkstemp(prefix=".slurmbus-probe.", dir=path)
    except OSError:
        return True
    try:
        with os.fdopen(descriptor, "w") as file:
            file.write("#!/bin/sh\nexit 0\n")
        os.chmod(name, 0o700)
        said = run([name], timeout=PATIENCE)
        while said["err"] == BUSY and time.monotonic() < deadline:
            time.sleep(0.05)  # a program that another thread has just started has our file open until its own exec
            said = run([name], timeout=PATIENCE)
        return bool(said["code"] == 0)
    except OSError:
        return True
    finally:
        remove(name)
