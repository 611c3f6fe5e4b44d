"""Learning that files have grown, with inotify or, where there is none, by looking every now and then."""

from __future__ import annotations

import os
import struct

from slurmbus_agent.runner import libc

_EVENT = struct.Struct("iIII")
_BUFFER = 4096


class Notifier:
    """Waits for one change of each armed file; ``descriptor`` is None when looking is all that is left."""

    def __init__(self) -> None:
        self.descriptor = libc.inotify()
        self._armed: dict[int, str] = {}

    def arm(self, path: str) -> bool:
        """Wait for the next change of a file; False when that isn't possible."""
        return self._arm(path, libc.IN_MODIFY)

    def arm_folder(self, path: str) -> bool:
        """Wait for the next file that is moved into a folder, or replaced in it; False when that isn't possible."""
        return self._arm(path, libc.IN_MOVED_TO)

    def _arm(self, path: str, what: int) -> bool:
        if self.descriptor is None:
            return False
        number = libc.watch_once(self.descriptor, path, what)
        if number is None:
            return False
        self._armed[number] = path
        return True

    def stop(self) -> None:
        """Stop waiting. The kernel needs up to 20 ms to let go of watches: the sooner it is told, the sooner we end."""
        if self.descriptor is not None:
            for number in self._armed:
                libc.forget(self.descriptor, number)
            self._armed.clear()

    def changed(self) -> list[str]:
        """Give the files that changed; they must be armed again."""
        if self.descriptor is None:
            return []
        try:
            events = os.read(self.descriptor, _BUFFER)
        except BlockingIOError:
            return []
        paths = []
        at = 0
        while at < len(events):
            number, _, _, name_length = _EVENT.unpack_from(events, at)
            at += _EVENT.size + name_length
            path = self._armed.pop(number, None)
            if path is not None:
                paths.append(path)
        return paths
