"""The one program that ``slurmbus up`` runs on a login node: it does what it is told until its input ends.

It is fed to whatever Python is there (3.6 or newer) and uses the standard library only. Each line of its input is a
JSON object ``{"op": …, …}``; each line of its output that counts begins with a mark that nobody else prints. Everything
is 7-bit text, so that terminals, banners and login shells that talk do no harm. When its input ends, its children are
killed, and folders that were begun and not finished are removed: an interrupted set-up leaves nothing half done.
"""

import base64
import errno
import grp
import hashlib
import json
import os
import pwd
import queue
import shutil
import signal
import socket
import stat
import subprocess
import sys
import tarfile
import threading
import time
import zipfile
from typing import IO, Any, Callable, Dict, List, Optional, Set, Tuple, TypeVar

Operation = TypeVar("Operation", bound=Callable[..., Any])
OUTPUT_LIMIT = 1024 * 1024
"""Bytes of a command's output that are kept: its end."""
PIECE = 65536
OTHERS_WRITE = stat.S_IWGRP | stat.S_IWOTH
OTHERS_ENTER = stat.S_IXGRP | stat.S_IXOTH
LINKS = 40
"""Symlinks on the way to a folder, as many as the kernel follows. Source: path_resolution(7)."""
OPS: Dict[str, Callable[..., Any]] = {}
unfinished: List[str] = []
"""Folders and files that are removed unless somebody says that they are whole."""
running: "Set[subprocess.Popen[bytes]]" = set()
speaking = threading.Lock()
mark = ""


def op(function: Operation) -> Operation:
    """Let a function be called from the other side, under its name."""
    OPS[function.__name__] = function
    return function


def say(**frame: Any) -> None:
    """Write one frame."""
    line = mark + " " + json.dumps(frame) + "\n"
    with speaking:
        data = line.encode("ascii")
        while data:
            data = data[os.write(1, data) :]


def text_of(data: bytes) -> str:
    """Decode what a program wrote."""
    return data.decode("utf-8", "replace")


# ---------------------------------------------------------------------- programs


@op
def run(
    argv: List[str],
    env: Optional[Dict[str, Optional[str]]] = None,
    cwd: Optional[str] = None,
    data: str = "",
    timeout: float = 60.0,
    tell: bool = False,
) -> Dict[str, Any]:
    """Run a program to its end. ``env`` is added to ours; ``tell`` reports each line of its output as it comes."""
    environment = dict(os.environ)
    for name, value in (env or {}).items():
        if value is None:
            environment.pop(name, None)
        else:
            environment[name] = value
    try:
        child = subprocess.Popen(
            argv,
            env=environment,
            cwd=cwd,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            preexec_fn=os.setsid,
        )
    except OSError as error:
        return {"code": 127 if error.errno == errno.ENOENT else 126, "out": "", "err": error.strerror, "late": False}
    assert child.stdin
    assert child.stdout
    assert child.stderr
    running.add(child)
    late: List[bool] = []

    def kill() -> None:
        late.append(True)
        kill_group(child)

    timer = threading.Timer(timeout, kill)
    timer.start()
    try:
        out: List[bytes] = []
        err: List[bytes] = []
        readers = [
            threading.Thread(target=drain, args=(child.stdout, out, tell)),
            threading.Thread(target=drain, args=(child.stderr, err, tell)),
        ]
        for reader in readers:
            reader.start()
        try:
            child.stdin.write(base64.b64decode(data))
            child.stdin.close()
        except (BrokenPipeError, ConnectionResetError):
            pass  # it didn't want to read
        code = child.wait()
        for reader in readers:
            reader.join(5.0)  # a grandchild in the background may keep the pipe for ever
    finally:
        timer.cancel()
        running.discard(child)
    return {"code": code, "out": text_of(b"".join(out)), "err": text_of(b"".join(err)), "late": bool(late)}


def drain(pipe: IO[bytes], pieces: List[bytes], tell: bool) -> None:
    """Keep the end of what comes."""
    size = 0
    for line in iter(pipe.readline, b""):
        pieces.append(line)
        size += len(line)
        while size > OUTPUT_LIMIT:
            size -= len(pieces.pop(0))
        if tell:
            say(told=text_of(line.rstrip()))


def kill_group(child: "subprocess.Popen[bytes]") -> None:
    """Kill a program and what it started."""
    try:
        os.killpg(child.pid, signal.SIGKILL)
    except (ProcessLookupError, PermissionError):
        pass


# ---------------------------------------------------------------------- folders that nobody else can swap


def walk(path: str, make: bool, mode: int = 0o700) -> None:
    """Go from the root down to a folder, and see that nobody but this user and root can put another in its place.

    What is missing is made, or else ends the walk. Each folder is looked at before the next one, so that nothing that
    was looked at can change afterwards: its name stands in a folder where only the two can rename things, or in a
    sticky one, where others can't rename what isn't theirs. Symlinks are followed step by step, under the same rules.
    What lies above the home isn't judged: whoever can swap that has the account already.

    Raises PermissionError, which names the folder and says what to do.
    """
    if not path.startswith("/") or ".." in path.split("/"):
        raise OSError(errno.EINVAL, "is no plain absolute path", path)
    here, rest = begin(path)
    shut, links = "", 0
    check_folder(here, os.lstat(here), inside=False)
    while rest:
        name = rest.pop()
        if name == "..":  # of a symlink: "here" has none in it, and was looked at on the way down
            here = os.path.dirname(here)
            continue
        place = os.path.join(here, name)
        status = entry(place, make, 0o700 if rest else mode)
        if status is None:
            return
        if stat.S_ISLNK(status.st_mode):
            links += 1
            if links > LINKS:
                raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), path)
            here, more = follow(here, os.readlink(place))
            check_folder(here, os.lstat(here), inside=False)
            rest += more
            continue
        here = place
        inside = bool(shut) and here.startswith(shut + "/")
        check_folder(here, status, inside)
        if not inside and status.st_uid == os.getuid() and not status.st_mode & OTHERS_ENTER:
            shut = here
    if make and os.lstat(here).st_uid != os.getuid():
        raise PermissionError(errno.EPERM, "belongs to root, not to you; choose a folder of your own", here)


def entry(place: str, make: bool, mode: int) -> Optional[os.stat_result]:
    """Look at one name on the way, which must be of the user or root; None when it is missing and isn't made."""
    try:
        status = os.lstat(place)
    except FileNotFoundError:
        if not make:
            return None
        try:
            os.mkdir(place, mode)
        except FileExistsError:
            pass  # somebody was faster: it is looked at like any other
        status = os.lstat(place)
    check_owner(place, status)
    return status


def begin(path: str) -> Tuple[str, List[str]]:
    """Give the folder from which a way is judged, the home or else the root, and the names that follow."""
    home = pwd.getpwuid(os.getuid()).pw_dir
    real = os.path.realpath(home)
    for one in (home, real):
        if len(steps(one)) > 1 and os.path.isdir(one) and (path + "/").startswith(one.rstrip("/") + "/"):
            return real, steps(path[len(one) :])
    return "/", steps(path)


def follow(here: str, target: str) -> Tuple[str, List[str]]:
    """Give from where a symlink in a folder leads on, and through which names."""
    if target.startswith("/"):
        return begin(target) if ".." not in target.split("/") else ("/", steps(target))
    if ".." in target.split("/"):  # it may lead out of the home
        return "/", steps(target) + steps(here)
    return here, steps(target)


def steps(path: str) -> List[str]:
    """Give the names in a path, the first one last."""
    return [name for name in reversed(path.split("/")) if name not in ("", ".")]


def check_owner(place: str, status: os.stat_result) -> None:
    """Raise PermissionError unless it is this user's or root's: an owner may put anything in the place of a thing."""
    if status.st_uid in (0, os.getuid()):
        return
    try:
        owner = pwd.getpwuid(status.st_uid).pw_name
    except KeyError:
        owner = "user %d" % status.st_uid
    words = "belongs to %s, who could put other programs in the place of yours; choose another folder" % owner
    raise PermissionError(errno.EPERM, words, place)


def check_folder(place: str, status: os.stat_result, inside: bool) -> None:
    """Raise an error if it is no folder, or others may rename what lies in it; ``inside`` one they can't enter."""
    if not stat.S_ISDIR(status.st_mode):
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), place)
    if inside or not status.st_mode & OTHERS_WRITE or status.st_mode & stat.S_ISVTX:
        return
    if not status.st_mode & stat.S_IWOTH and is_own_group(place, status.st_gid):
        return
    words = "can be written by others, who could put other programs in the place of yours; "
    words += "chmod go-w %s, or choose another folder" % place if status.st_uid == os.getuid() else "choose another one"
    raise PermissionError(errno.EPERM, words, place)


def is_own_group(place: str, gid: int) -> bool:
    """Tell whether a group is root's, or one that the user has alone, by the custom of giving each user a group.

    Others could still be let in by an access control list, whose rights look like the group's. Source: acl(5).
    """
    if gid == 0:
        return True
    try:
        group, user = grp.getgrgid(gid), pwd.getpwuid(os.getuid())
        listed = "system.posix_acl_access" in os.listxattr(place)
    except (KeyError, OSError):
        return False
    own = group.gr_name == user.pw_name and user.pw_gid == gid and not set(group.gr_mem) - {user.pw_name}
    return own and not listed


# ---------------------------------------------------------------------- files


@op
def look(path: str) -> Dict[str, Any]:
    """Tell what lies at a path."""
    try:
        status = os.lstat(path)
    except (FileNotFoundError, NotADirectoryError):
        return {"kind": "", "size": 0, "mode": 0, "target": "", "age": 0.0}
    kinds = ((stat.S_ISLNK, "link"), (stat.S_ISDIR, "folder"), (stat.S_ISREG, "file"), (stat.S_ISSOCK, "socket"))
    kind = next((name for is_it, name in kinds if is_it(status.st_mode)), "other")
    target = os.readlink(path) if kind == "link" else ""
    age = time.time() - status.st_mtime
    return {"kind": kind, "size": status.st_size, "mode": stat.S_IMODE(status.st_mode), "target": target, "age": age}


@op
def names(path: str) -> List[str]:
    """List a folder; nothing when it isn't there."""
    try:
        return sorted(os.listdir(path))
    except (FileNotFoundError, NotADirectoryError):
        return []


@op
def read(path: str, limit: int = OUTPUT_LIMIT) -> Optional[str]:
    """Give the end of a file, or None when there is none."""
    try:
        with open(path, "rb") as file:
            size = os.fstat(file.fileno()).st_size
            file.seek(max(0, size - limit))
            return base64.b64encode(file.read(limit)).decode("ascii")
    except FileNotFoundError:
        return None


@op
def folder(path: str, mode: int = 0o700, new: bool = False) -> None:
    """Make a folder with its parents, where nobody else can swap it.

    A ``new`` one mustn't exist, and goes again unless it is kept.
    """
    if new:
        walk(os.path.dirname(path), make=True)
        os.mkdir(path, mode)
        unfinished.append(path)
    else:
        walk(path, make=True, mode=mode)


@op
def keep(path: str) -> None:
    """Say that something is whole."""
    if path in unfinished:
        unfinished.remove(path)


@op
def write(path: str, data: str, mode: int = 0o600) -> None:
    """Write a small file, all or nothing."""
    new = "%s.%d" % (path, os.getpid())
    unfinished.append(new)
    descriptor = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(base64.b64decode(data))
        file.flush()
        os.fsync(file.fileno())
    os.chmod(new, mode)
    os.rename(new, path)
    unfinished.remove(new)


@op
def append(path: str, data: str, offset: int) -> None:
    """Put a piece of a big file to its place."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.seek(offset)
        file.write(base64.b64decode(data))


@op
def digest(path: str) -> Optional[str]:
    """Hash a file; None when there is none."""
    found = hashlib.sha256()
    try:
        with open(path, "rb") as file:
            for piece in iter(lambda: file.read(PIECE), b""):
                found.update(piece)
    except FileNotFoundError:
        return None
    return found.hexdigest()


@op
def link(path: str, target: str) -> None:
    """Make a symlink, or turn it, in one step."""
    new = "%s.%d" % (path, os.getpid())
    os.symlink(target, new)
    os.rename(new, path)


@op
def remove(path: str) -> None:
    """Remove a file, a link or a folder with everything in it."""
    try:
        if os.path.isdir(path) and not os.path.islink(path):
            shutil.rmtree(path)
        else:
            os.unlink(path)
    except FileNotFoundError:
        pass


@op
def room(path: str, size: int) -> None:
    """Take so many bytes for a moment: only a file system itself knows what quotas leave.

    Raises OSError with ENOSPC or EDQUOT where there isn't room.
    """
    walk(path, make=True)
    name = os.path.join(path, ".room.%d" % os.getpid())
    unfinished.append(name)
    try:
        descriptor = os.open(name, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            os.posix_fallocate(descriptor, 0, size)
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    finally:
        remove(name)
        unfinished.remove(name)


@op
def unzip(path: str, target: str) -> None:
    """Unpack a wheel. It was made or checked on the other side, where its names were looked at."""
    with zipfile.ZipFile(path) as archive:
        archive.extractall(target)


@op
def untar(path: str, target: str) -> None:
    """Unpack an archive that the other side trusts; nothing lands outside all the same."""
    root = os.path.realpath(target) + os.sep
    with tarfile.open(path) as archive:
        for member in archive:
            place = os.path.join(root, member.name)
            aim = os.path.join(os.path.dirname(place), member.linkname) if member.issym() else place
            aim = os.path.join(root, member.linkname) if member.islnk() else aim
            for one in (place, aim):
                if not (os.path.normpath(one) + os.sep).startswith(root):
                    raise OSError(errno.EPERM, "leads out of the archive", member.name)
            archive.extract(member, target)


@op
def private_folder(paths: List[str]) -> str:
    """Make the first of these folders that can be had for this user alone."""
    problem = OSError(errno.ENOENT, "no folder was named")
    for path in paths:
        try:
            walk(path, make=True)
            status = os.lstat(path)
        except OSError as error:
            problem = error
            continue
        if stat.S_ISDIR(status.st_mode) and status.st_uid == os.getuid() and not status.st_mode & 0o077:
            return path
        problem = PermissionError(errno.EPERM, "isn't a folder of this user alone", path)
    raise problem


@op
def end(words: List[str], seconds: float) -> Dict[str, List[int]]:
    """Ask this user's processes on this host to end whose command lines have these words, one after the other."""
    asked = with_words(words)
    for pid in asked:
        try:
            os.kill(pid, signal.SIGTERM)
        except ProcessLookupError:
            pass  # it has just ended
    deadline = time.monotonic() + seconds
    left = asked
    while left and time.monotonic() < deadline:
        time.sleep(0.1)
        left = [pid for pid in with_words(words) if pid in asked]
    return {"asked": asked, "left": left}


def with_words(words: List[str]) -> List[int]:
    """Give this user's processes with these words in their command lines."""
    wanted = b"".join(b"\0" + os.fsencode(word) for word in words) + b"\0"
    found = []
    for pid in os.listdir("/proc"):
        if not pid.isdigit():
            continue
        try:
            with open("/proc/%s/cmdline" % pid, "rb") as file:
                ours = os.fstat(file.fileno()).st_uid == os.getuid()
                if ours and wanted in file.read():
                    found.append(int(pid))
        except OSError:
            pass  # it has ended, or is somebody else's
    return found


@op
def hang_up(path: str) -> bool:
    """Tell whether somebody listens on a Unix socket; one that nobody listens on is removed."""
    with socket.socket(socket.AF_UNIX) as probe:
        probe.settimeout(5.0)
        try:
            probe.connect(path)
        except (FileNotFoundError, ConnectionRefusedError):
            remove(path)
            return False
    return True


# ---------------------------------------------------------------------- the session


@op
def load(source: str) -> None:
    """Learn further operations."""
    exec(compile(source, "<slurmbus>", "exec"), {"__name__": "slurmbus_loaded"})


def serve(lines: "queue.Queue[Optional[str]]") -> None:
    """Carry out one request after the other."""
    while True:
        line = lines.get()
        if line is None:
            return
        request = json.loads(line)
        number, name = request.pop("id"), request.pop("op")
        try:
            say(id=number, result=OPS[name](**request))
        except OSError as error:
            say(id=number, errno=error.errno, path=str(error.filename or ""), error=error.strerror or str(error))
        except Exception as error:  # whatever it is, the other side decides what it means
            say(id=number, errno=0, path="", error="%s: %s" % (type(error).__name__, error))


def listen(lines: "queue.Queue[Optional[str]]") -> None:
    """Pass on the lines of the input; at its end kill what runs."""
    rest = b""
    over = False
    while not over:
        try:
            data = os.read(0, PIECE)
        except OSError:  # a terminal that is gone
            data = b""
        over = not data
        rest += data
        while b"\n" in rest:
            line, rest = rest.split(b"\n", 1)
            if line.strip() == b"bye":  # a terminal passes no end of the input on
                over = True
            elif line.strip():
                lines.put(line.decode("ascii"))
    for child in list(running):
        kill_group(child)
    lines.put(None)


def tidy() -> None:
    """Remove what wasn't finished."""
    for path in reversed(unfinished):
        if os.path.isdir(path) and not os.path.islink(path):
            shutil.rmtree(path, ignore_errors=True)
        elif os.path.lexists(path):
            os.unlink(path)


def main(word: str) -> None:
    """Serve until the input ends."""
    global mark
    mark = word
    sys.modules["slurmbus.bootstrap.remote.helper"] = sys.modules["__main__"]  # what is loaded later imports us
    for number in (signal.SIGHUP, signal.SIGINT, signal.SIGTERM):
        # The end of the input says the same. No SIG_IGN: children would inherit that.
        signal.signal(number, lambda _number, _frame: None)
    os.umask(0o077)
    lines: "queue.Queue[Optional[str]]" = queue.Queue()
    threading.Thread(target=listen, args=(lines,), daemon=True).start()
    say(ready=True, python=sys.version.split()[0], pid=os.getpid(), time=time.time())
    try:
        serve(lines)
    finally:
        tidy()
