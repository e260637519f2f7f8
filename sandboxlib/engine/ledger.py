"""
The book of networks: who has which address, kept in a file that all programs of this host share.

It lies below the run-time folder, one for each network namespace that programs stand in, and is
only read and written under a lock. An entry is written before what it names is made, and taken
out after that is gone; so what a killed program left is found in it.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
from collections.abc import Iterator
from operator import attrgetter
from typing import Any

import attrs

from sandboxlib.errors import KernelError, NetworkError

_LOCK, _BOOK = "lock", "book"


@attrs.define
class Net:
    """
    A network that is there.

    Attributes:
        name: As it was asked for.
        bridge: The interface.
        v4, v6: Its ranges; empty where it has none of the family.
        gateway4, gateway6: The bridge's addresses in them.
        internal: It has no way out.
        mtu: Of the bridge and all that is on it.
        last4, last6: The addresses that were given out last, counted from the start of the range.
    """

    name: str
    bridge: str
    v4: str = ""
    v6: str = ""
    gateway4: str = ""
    gateway6: str = ""
    internal: bool = False
    mtu: int = 1500
    last4: int = 0
    last6: int = 0


@attrs.define
class Member:
    """
    A sandbox's place on a network; or, without a link, a program that holds the network open.

    Attributes:
        network: Its name.
        link: The interface on the bridge, empty for a holder.
        inside: The interface's name inside.
        v4, v6, mac: Its addresses.
        names: By which it is found.
        hosts: The file of names that it reads.
        ports: What is published: (address, port, protocol, port inside).
    """

    network: str
    link: str = ""
    inside: str = ""
    v4: str = ""
    v6: str = ""
    mac: str = ""
    names: list[str] = attrs.field(factory=list)
    hosts: str = ""
    ports: list[list[Any]] = attrs.field(factory=list)


@attrs.define
class Book:
    """
    What the file holds.

    Attributes:
        folder: Where it lies, and the files of names beside it.
        networks: By name.
        members: By a token that names the owner, see `sandboxlib.kernel.cgroup.owner`.
        forwarding: For 4 and 6, where we switched forwarding on: the interfaces that were there, and
            those of them whose ``accept_ra`` we changed.
    """

    folder: str
    networks: dict[str, Net] = attrs.field(factory=dict)
    members: dict[str, Member] = attrs.field(factory=dict)
    forwarding: dict[str, list[list[str]]] = attrs.field(factory=dict)

    def on(self, network: str) -> list[Member]:
        """Who is on a network."""
        return [member for member in self.members.values() if member.network == network]

    def path(self, name: str) -> str:
        """A file beside the book."""
        return os.path.join(self.folder, name)

    def save(self) -> None:
        """Write it down: as a whole, or not at all. Raises: KernelError."""
        text = json.dumps(
            {
                "networks": [_NET(net) for net in self.networks.values()],
                "members": {token: _MEMBER(member) for token, member in self.members.items()},
                "forwarding": self.forwarding,
            }
        )
        path = self.path(_BOOK)
        try:
            with open(f"{path}.new", "w", encoding="utf-8") as file:
                file.write(text)
            os.rename(f"{path}.new", path)
        except OSError as error:
            raise KernelError(error.errno or 0, f'write("{path}")', "the book of networks") from None


#: The values of each, in order; what attrs has for it is slower by far, and there may be hundreds.
_NET, _MEMBER = (attrgetter(*(field.name for field in attrs.fields(kind))) for kind in (Net, Member))


def folder(run_dir: str) -> str:
    """Where the book of this thread's network namespace lies."""
    return os.path.join(run_dir, f"networks-{os.stat('/proc/thread-self/ns/net').st_ino}")


@contextlib.contextmanager
def locked(run_dir: str) -> Iterator[Book]:
    """
    Open the book, which nobody else has meanwhile; an empty one is taken away with its folder.

    Raises:
        KernelError: The folder cannot be used.
        NetworkError: The book is none.
    """
    where = folder(run_dir)
    try:
        fd = _lock(where)
    except OSError as error:
        raise KernelError(error.errno or 0, f'flock("{where}/{_LOCK}")', "the book of networks") from None
    try:
        book = _read(where)
        try:
            yield book
        finally:
            if not (book.networks or book.members or book.forwarding):
                _clear(where)
    finally:
        os.close(fd)


def _lock(where: str) -> int:
    while True:
        os.makedirs(where, mode=0o700, exist_ok=True)
        try:
            fd = os.open(f"{where}/{_LOCK}", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except FileNotFoundError:
            continue  # taken away in between
        try:
            fcntl.flock(fd, fcntl.LOCK_EX)
            # Whoever had it may have taken it away with the folder.
            if os.stat(f"{where}/{_LOCK}").st_ino == os.fstat(fd).st_ino:
                return fd
        except FileNotFoundError:
            pass
        except BaseException:
            os.close(fd)
            raise
        os.close(fd)


def _read(where: str) -> Book:
    book = Book(where)
    path = book.path(_BOOK)
    try:
        with open(path, encoding="utf-8") as file:
            found = json.load(file)
        for values in found["networks"]:
            net = Net(*values)
            book.networks[net.name] = net
        book.members = {token: Member(*values) for token, values in found["members"].items()}
        book.forwarding = found["forwarding"]
    except FileNotFoundError:
        return book
    except (ValueError, KeyError, TypeError) as error:
        # Of another version, or written to by somebody else.
        hint = "end all sandboxes that are on a network, and remove the file"
        raise NetworkError(f"the book of networks, {path}, cannot be read ({error}): {hint}") from None
    return book


def _clear(where: str) -> None:
    book = _read(where)
    if book.networks or book.members or book.forwarding:
        return
    for name in os.listdir(where):
        if name != _LOCK:
            os.unlink(os.path.join(where, name))
    # The lock last: who waits for it looks whether it is still there.
    os.unlink(os.path.join(where, _LOCK))
    os.rmdir(where)


__all__ = ["Book", "Member", "Net", "folder", "locked"]
