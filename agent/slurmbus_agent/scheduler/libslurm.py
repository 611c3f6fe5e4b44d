"""What libslurm knows and pyslurm doesn't tell: a user's own jobs in one call, whole exit codes and whole states.

pyslurm loads everybody's jobs or one; it takes 128 off exit codes of 128 and more, and shows one word of a state
that has several. Nothing here knows the layout of Slurm's records, which differs between versions: pyslurm was compiled
against it. Its own objects are filled with known values to find out where a field lies, and lent a copy of a record to
read it. What doesn't fit ends the start of the child with an error.
"""

from __future__ import annotations

import ctypes
import signal
from collections.abc import Iterator
from typing import Any

from slurmbus_agent.scheduler.base import Unavailable

NO_VAL = 0xFFFFFFFE  # slurm.h
SHOW_ALL = 1  # slurm.h: also jobs in hidden partitions
INVALID_JOB_ID = 2017  # slurm_errno.h: ESLURM_INVALID_JOB_ID
ALREADY_DONE = 2021  # slurm_errno.h: ESLURM_ALREADY_DONE
STATE_BASE = 0xFF  # slurm.h: JOB_STATE_BASE
_POINTER_AT = object.__basicsize__ + ctypes.sizeof(ctypes.c_void_p)
"""Where a pyslurm object keeps the address of its record: after Python's own head and Cython's table of methods."""
_MARK = 0x5A17


class _JobInfoMsg(ctypes.Structure):
    """The head of ``job_info_msg_t`` (slurm.h)."""

    _fields_ = (
        ("last_backfill", ctypes.c_long),
        ("last_update", ctypes.c_long),
        ("record_count", ctypes.c_uint32),
        ("job_array", ctypes.c_void_p),
    )


class LoadFailed(Exception):
    """The controller couldn't be asked for a user's jobs."""

    def __init__(self, errno: int) -> None:
        """Take Slurm's error number."""
        self.errno = errno
        super().__init__(errno)


class Field:
    """An integer of the record behind pyslurm's objects of one class."""

    def __init__(self, library: Library, scratch: Any, attribute: str, raw: int, shown: object) -> None:
        """Find the one place in an empty object's record where ``raw`` makes ``attribute`` read as ``shown``."""
        record = address_of(scratch)
        places = []
        for offset in range(0, library.size_of(record) - 3, 4):
            cell = ctypes.c_uint32.from_address(record + offset)
            before = cell.value
            if before not in {0, NO_VAL}:
                continue  # set by pyslurm itself: an id, half an address
            cell.value = raw
            if getattr(scratch, attribute) == shown:
                places.append(offset)
            cell.value = before
        if len(places) != 1:
            raise _unknown_layout(f"{attribute} of {type(scratch).__name__} has {len(places)} places")
        self._offset = places[0]

    def of(self, shown: Any) -> int:
        """Give the integer of an object."""
        return ctypes.c_uint32.from_address(address_of(shown) + self._offset).value


class Library:
    """The functions of the libslurm that pyslurm has loaded into this process."""

    def __init__(self) -> None:
        """Find them; pyslurm makes its library's symbols visible to everybody."""
        functions = ctypes.CDLL(None, use_errno=True)
        try:
            self._load_job_user = functions.slurm_load_job_user
            self._kill_job = functions.slurm_kill_job2
            self._free_job_info_msg = functions.slurm_free_job_info_msg
            self._xsize = functions.slurm_xsize
            self._state_string = functions.slurm_job_state_string
        except AttributeError as error:
            raise _unknown_layout(str(error)) from error
        self._load_job_user.argtypes = (ctypes.c_void_p, ctypes.c_uint32, ctypes.c_uint16)
        self._kill_job.argtypes = (ctypes.c_char_p, ctypes.c_uint16, ctypes.c_uint16, ctypes.c_char_p)
        self._free_job_info_msg.argtypes = (ctypes.c_void_p,)
        self._free_job_info_msg.restype = None
        self._xsize.argtypes = (ctypes.c_void_p,)
        self._xsize.restype = ctypes.c_size_t
        self._state_string.argtypes = (ctypes.c_uint32,)
        self._state_string.restype = ctypes.c_char_p
        self._no_flag = self._word(0)

    def size_of(self, allocation: int) -> int:
        """Give the bytes of a piece of memory that libslurm allocated."""
        return int(self._xsize(allocation))

    def words_of(self, state: int) -> tuple[str, tuple[str, ...]]:
        """Give the base state and the flags of a ``job_state``, in Slurm's words."""
        flags = (1 << bit for bit in range(8, 32) if state & (1 << bit))
        words = (self._word(flag) for flag in flags)
        # A flag without a word of its own reads as the base state.
        return self._word(state & STATE_BASE), tuple(word for word in words if word != self._no_flag)

    def _word(self, state: int) -> str:
        return bytes(self._state_string(state)).decode()

    def jobs_of(self, user: int, scratch: Any) -> Iterator[Any]:
        """Ask for a user's jobs; ``scratch``, an empty pyslurm.Job, shows each of them in turn.

        Raises:
            LoadFailed: no answer, or an error.
        """
        message = ctypes.POINTER(_JobInfoMsg)()
        if self._load_job_user(ctypes.byref(message), user, SHOW_ALL) != 0:
            errno = ctypes.get_errno()
            if errno == INVALID_JOB_ID:
                return
            raise LoadFailed(errno)
        own = address_of(scratch)
        size = self.size_of(own)
        empty = ctypes.string_at(own, size)
        try:
            count = message.contents.record_count
            records = message.contents.job_array
            if count and self.size_of(records) != count * size:
                raise _unknown_layout(f"{count} records in {self.size_of(records)} bytes, not of {size} each")
            for number in range(count):
                ctypes.memmove(own, records + number * size, size)
                yield scratch
        finally:
            # What the scratch object shows belongs to the message: it must not be freed twice.
            ctypes.memmove(own, empty, size)
            self._free_job_info_msg(message)

    def kill_tasks(self, array_id: int, indexes: str) -> int:
        """Cancel some tasks of an array, e.g. ``3`` or ``1-3,7``; give Slurm's error number, 0 when it said yes.

        By the array's id alone, which is also one task's own, Slurm would cancel all of them.
        """
        meant = f"{array_id}_{indexes}" if indexes.isdecimal() else f"{array_id}_[{indexes}]"
        if self._kill_job(meant.encode(), signal.SIGKILL, 0, None) == 0:
            return 0
        return ctypes.get_errno()


def check_layout(library: Library, scratch: Any) -> None:
    """Make sure that the record of a pyslurm.Job made for the id MARK lies where it is looked for."""
    record = address_of(scratch)
    size = library.size_of(record)
    words = (ctypes.c_uint32 * (size // 4)).from_address(record)
    if _MARK not in words:
        raise _unknown_layout("a job's record isn't where it is looked for")
    place = list(words).index(_MARK)
    words[place] = _MARK + 1
    if scratch.id != _MARK + 1:
        raise _unknown_layout("a job's record isn't the one that is shown")
    words[place] = _MARK


def scratch_job(job_class: Any) -> Any:
    """Make the job that lends its eyes."""
    return job_class(_MARK)


def address_of(shown: Any) -> int:
    """Give the address of the record behind a pyslurm object."""
    address = ctypes.c_void_p.from_address(id(shown) + _POINTER_AT).value
    if address is None:
        raise _unknown_layout(f"{type(shown).__name__} has no record")
    return address


def _unknown_layout(what: str) -> Unavailable:
    return Unavailable(
        f"this version of pyslurm can't be used: {what}", hint="use the pyslurm version that the documentation names"
    )
