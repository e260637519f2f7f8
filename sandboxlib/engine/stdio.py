"""The descriptors of a command, as the arguments of ``run`` and ``popen`` say them."""

from __future__ import annotations

import fcntl
import os
import stat
import subprocess
from typing import NamedTuple

from sandboxlib.engine.given import Handed, handed, let_in
from sandboxlib.errors import KernelError, SpecError
from sandboxlib.kernel.descriptor import Fd, dup, openat, pipe

PIPE, STDOUT, DEVNULL = subprocess.PIPE, subprocess.STDOUT, subprocess.DEVNULL


class Stdio(NamedTuple):
    """
    Descriptors of a command.

    Attributes:
        theirs: Its 0, 1 and 2; borrowed, or of those in `held`.
        ours: The other ends of its pipes, where it has them.
        held: To be closed when it has started.
        foreign: One of them is a file of the caller's.
        terminal: The other end of its terminal, if it has one.
        files: Which of them are files of the caller's that can be opened by name.
        lent: The caller's descriptions that it has, as descriptors of our own, with their flags.
    """

    theirs: tuple[int, int, int]
    ours: tuple[Fd, Fd, Fd]
    held: tuple[Fd, ...]
    foreign: bool
    terminal: Fd
    files: tuple[Handed, ...] = ()
    lent: tuple[tuple[Fd, int], ...] = ()

    def close(self) -> None:
        """Close all of them. Idempotent."""
        for fd in (*self.ours, *self.held, self.terminal):
            fd.close()
        give_back(self.lent)


class Unsaid(int):
    """A default for a stream: it counts as the number that it is, and shows that nobody gave it."""


UNSAID = Unsaid(DEVNULL)


def stdio(stdin: object, stdout: object, stderr: object) -> Stdio:
    """
    Make the descriptors that `subprocess` would make.

    Each is `PIPE`, `DEVNULL`, `STDOUT` (for stderr), a descriptor, a file, or
    None for the caller's own.

    Raises:
        SpecError: It is none of these.
    """
    theirs, ours, held = [-1, -1, -1], [Fd(), Fd(), Fd()], list[Fd]()
    lent: list[tuple[Fd, int]] = []
    foreign, files = False, list[Handed]()
    try:
        for i, (name, value) in enumerate((("stdin", stdin), ("stdout", stdout), ("stderr", stderr))):
            if isinstance(value, int) and value == PIPE:
                read, write = pipe()
                theirs[i], ours[i] = (read.fileno(), write) if i == 0 else (write.fileno(), read)
                held.append(read if i == 0 else write)
                # To be opened again by name, and no other way than it is open: nobody inside is its owner.
                os.fchmod(theirs[i], 0o444 if i == 0 else 0o222)
            elif isinstance(value, int) and value == DEVNULL:
                held.append(openat("/dev/null", os.O_RDONLY if i == 0 else os.O_WRONLY))
                theirs[i] = held[-1].fileno()
            elif isinstance(value, int) and value == STDOUT and i == 2:
                theirs[i] = theirs[1]
                files += [file._replace(number=2) for file in files if file.number == 1]
            else:
                theirs[i] = i if value is None else _fileno(name, value)
                try:
                    found = os.fstat(theirs[i])
                except OSError:
                    raise SpecError(name, value, "an open descriptor") from None
                foreign |= stat.S_IFMT(found.st_mode) in (stat.S_IFREG, stat.S_IFDIR, stat.S_IFBLK)
                let_in(theirs[i], found)
                if (file := handed(i, theirs[i], found)) is not None:
                    files.append(file)
                if own := _described_anew(theirs[i], found.st_mode):
                    held.append(own)
                    theirs[i] = own.fileno()
                else:
                    lent.append((dup(theirs[i]), fcntl.fcntl(theirs[i], fcntl.F_GETFL)))
    except BaseException:
        for fd in (*held, *ours, *(fd for fd, _ in lent)):
            fd.close()
        raise
    numbers, ends = (theirs[0], theirs[1], theirs[2]), (ours[0], ours[1], ours[2])
    return Stdio(numbers, ends, tuple(held), foreign, Fd(), tuple(files), tuple(lent))


def _described_anew(fd: int, mode: int) -> Fd:
    """
    A description of its own of the pipe or terminal *fd*; none where there cannot be one.

    O_NONBLOCK and its kin belong to the description (fcntl(2), F_SETFL): with the caller's own, the command
    would set them for the program. A file is handed on as it is, since where it is written to goes on for
    the program as well, and of a socket there is no other.
    """
    if not (stat.S_ISFIFO(mode) or (stat.S_ISCHR(mode) and os.isatty(fd))):
        return Fd()
    flags = fcntl.fcntl(fd, fcntl.F_GETFL)
    kept = flags & (os.O_ACCMODE | os.O_APPEND)
    try:
        # Nobody is waited for who has the other end. An end without another, or another user's terminal,
        # stays as it is.
        own = openat(f"/proc/self/fd/{fd}", kept | os.O_NOCTTY | os.O_NONBLOCK)
    except KernelError:
        return Fd()
    fcntl.fcntl(own.fileno(), fcntl.F_SETFL, flags & os.O_APPEND)
    return own


def give_back(lent: tuple[tuple[Fd, int], ...]) -> None:
    """Set the flags of descriptions that were lent as they were, and close our descriptors of them."""
    for fd, flags in lent:
        if fd and fcntl.fcntl(fd.fileno(), fcntl.F_GETFL) != flags:
            fcntl.fcntl(fd.fileno(), fcntl.F_SETFL, flags)
        fd.close()


def _fileno(name: str, value: object) -> int:
    allowed = "PIPE, DEVNULL, a file or a descriptor" + (", or STDOUT" if name == "stderr" else "")
    if isinstance(value, int) and not isinstance(value, bool):
        if value < 0:
            raise SpecError(name, value, allowed)
        return value
    try:
        return value.fileno()  # type: ignore[attr-defined,no-any-return]
    except (AttributeError, OSError, ValueError):
        raise SpecError(name, value, allowed) from None


__all__ = ["DEVNULL", "PIPE", "STDOUT", "UNSAID", "Stdio", "Unsaid", "give_back", "stdio"]
