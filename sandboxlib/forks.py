"""
Forks, while another thread loads a part of this library.

Python keeps a lock for each module that is being loaded. A child that is forked meanwhile has the lock and
not the thread that would let go of it, and waits for ever when it needs the module itself. Parts of this
library are loaded when they are first used. So a fork waits for a moment, until no other thread loads one.
"""

from __future__ import annotations

import os
import sys
import threading
import time

#: Seconds that a fork is held up at most: loading takes a fraction of one.
_PATIENCE = 10.0
_PACKAGE = __name__.partition(".")[0]
#: What functions of this library load by themselves, that is none of it: each has further modules below.
_FOREIGN = frozenset({
    "bz2", "difflib", "e2b_dockerfile_utils", "fcntl", "hashlib", "http", "ipaddress", "itertools",
    "json", "linecache", "lzma", "msgspec", "pwd", "rich", "shlex", "socket", "ssl", "tempfile", "termios",
    "trio", "tty", "urllib", "urllib3",
})  # fmt: skip
#: By name a weak reference to the lock of a module, for as long as somebody loads that.
_LOCKS = sys.modules["_frozen_importlib"]._module_locks  # noqa: SLF001 - there is no other way to ask


def _is_loading() -> bool:
    """Does another thread load a part of this library, or what that needs?"""
    mine = threading.get_ident()
    for name, found in list(_LOCKS.items()):
        lock = found()
        if lock is not None and lock.owner not in (None, mine):
            top = name.partition(".")[0]
            if top == _PACKAGE or top in _FOREIGN:
                return True
    return False


def _before() -> None:
    until = time.monotonic() + _PATIENCE
    # Other threads run while this one sleeps, and not for the next few milliseconds: so none begins between
    # the look and the fork.
    time.sleep(0)
    while _is_loading() and time.monotonic() < until:
        time.sleep(0.001)


os.register_at_fork(before=_before)

__all__: list[str] = []
