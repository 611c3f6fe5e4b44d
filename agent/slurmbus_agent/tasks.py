"""Starting tasks in groups that may be ending."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any


def spawn(group: asyncio.TaskGroup, work: Coroutine[Any, Any, None], name: str | None = None) -> asyncio.Task[None]:
    """Start a task in a group; where the group is ending, whoever asks ends as well, as if cancelled.

    asyncio raises a RuntimeError then, which would look like an error of ours beside the one that ended the group.
    """
    try:
        return group.create_task(work, name=name)
    except RuntimeError:
        work.close()
        raise asyncio.CancelledError from None
