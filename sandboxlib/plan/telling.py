"""Steps that only helpers are asked for: who listens, what stands in files, and what there is."""

from __future__ import annotations

from typing import NamedTuple

from sandboxlib.plan.flags import Named


class Connect(NamedTuple):
    """
    Connect socket *fd*, again and again until someone listens or *milliseconds* are over.

    Attributes:
        ignore: Up to two errnos that are no failure here.
    """

    fd: int
    address: bytes
    milliseconds: int
    why: str
    ignore: tuple[int, ...] = ()

    def __str__(self) -> str:
        return f"connect({self.fd}, <{len(self.address)} bytes>)"


class Read(NamedTuple):
    """
    Tell the program what *name*, a call such as read(2), brings from *fd*.

    Again and again, until nothing comes or *size* bytes have come.

    Attributes:
        ignore: Up to two errnos that are no failure here.
    """

    name: str
    fd: int
    size: int
    why: str
    ignore: tuple[int, ...] = ()

    def __str__(self) -> str:
        return f"{self.name}({self.fd}) ..."


class Stats(NamedTuple):
    """Tell the program what each of *names* in the folder *fd* is, by *flags* for statx(2)."""

    fd: int
    names: tuple[bytes, ...]
    flags: Named
    why: str

    def __str__(self) -> str:
        return f"statx({self.fd}, each of {len(self.names)} names, {self.flags})"


class Extents(NamedTuple):
    """Tell the program where a file has data from *begin* on, *most* pairs at most. Kernel: lseek(2)."""

    fd: int
    begin: int
    most: int
    why: str

    def __str__(self) -> str:
        return f"lseek({self.fd}, {self.begin}, SEEK_DATA) ..."


class Files(NamedTuple):
    """
    Tell the program what stands in each of the files *names*, *most* bytes at most of each.

    What it tells has the file's place in *names* as its value; one that cannot be read tells nothing.
    """

    names: tuple[bytes, ...]
    most: int
    why: str

    def __str__(self) -> str:
        return f"read(each of {len(self.names)} files, {self.most})"


__all__ = ["Connect", "Extents", "Files", "Read", "Stats"]
