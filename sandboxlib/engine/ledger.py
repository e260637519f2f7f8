"""
The book of networks: who has which address, kept in a file that all programs of this host share.

It lies below the run-time folder, one for each network namespace that programs stand in, and is
only read and written under a lock. An entry is written before what it names is made, and taken
out after that is gone; so what a killed program left is found in it.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import socket
import struct
import time
from collections.abc import Iterator
from operator import attrgetter
from typing import Any

import attrs

from sandboxlib.errors import NetworkError
from sandboxlib.image import locks
from sandboxlib.kernel.descriptor import Fd, openat
from sandboxlib.kernel.syscall import failed

_LOCK, _BOOK = "lock", "book"
_FOLDER = "networks-"
#: Of the file: what is of another is not read.
_VERSION = 2
#: How many networks that have gone are remembered, for their addresses.
_REMEMBERED = 64
#: Seconds in which another program has to be done with the book: what is done with it takes milliseconds.
PATIENCE = 30.0
#: SO_NETNS_COOKIE of <asm-generic/socket.h>, Linux 5.14: no other namespace has it until the next boot.
_COOKIE = 71


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
        forwards: The host hands packets on from it: to the outside, or answers of published ports.
        mtu: Of the bridge and all that is on it.
        last4, last6: The addresses that were given out last, counted from the start of the range.
        top4, top6: The last that ever were.
        someone: An address of each of its ranges that is not the bridge's.
        localnet: The host's 127.0.0.1 may be a source on the bridge.
        leaving: Its bridge is being removed, by the owner that this names; no network any more.
    """

    name: str
    bridge: str
    v4: str = ""
    v6: str = ""
    gateway4: str = ""
    gateway6: str = ""
    internal: bool = False
    forwards: bool = True
    mtu: int = 1500
    last4: int = 0
    last6: int = 0
    top4: int = 0
    top6: int = 0
    someone: list[str] = attrs.field(factory=list)
    localnet: bool = False
    leaving: str = ""

    def give(self, version: int, place: int) -> bool:
        """Enter that somebody has an address; returns whether somebody else may have had it before."""
        top = self.top4 if version == 4 else self.top6
        if version == 4:
            self.top4 = max(top, place)
        else:
            self.top6 = max(top, place)
        return place <= top


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
        published: Rules lead to them.
        rate: It has an interface besides, at which its packets wait.
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
    published: bool = False
    rate: bool = False

    @property
    def addresses(self) -> list[str]:
        """Those that it has."""
        return [address for address in (self.v4, self.v6) if address]


@attrs.define
class Opened:
    """
    Where we let this host forward, which it did not.

    Attributes:
        links: Interfaces between which nothing is forwarded all the same.
        settings: Files below /proc/sys that we wrote to: (path, what it held, what we wrote).
    """

    links: list[str] = attrs.field(factory=list)
    settings: list[list[str]] = attrs.field(factory=list)


@attrs.define
class Servers:
    """
    Name servers of this host that sandboxes cannot reach as others are reached.

    Attributes:
        near: Link-local ones, which are let through.
        local: One on the host's loopback, which the bridges' own addresses lead to; or empty.
    """

    near: list[str] = attrs.field(factory=list)
    local: str = ""


@attrs.define
class Rules:
    """
    What we made of the host's rules, see `sandboxlib.engine.firewall`.

    Attributes:
        table: The name of our tables; empty where there are none.
        generation: The kernel's number of all rules after our last change.
        digest: What the tables looked like then; empty as long as nobody looked.
        owner: Which book it is, see `sandboxlib.engine.presence`.
    """

    table: str = ""
    generation: int = 0
    digest: str = ""
    owner: str = ""


@attrs.define
class Book:
    """
    What the file holds.

    Attributes:
        folder: Where it lies, and the files of names beside it.
        networks: By name.
        leaving: Networks whose bridges are being removed.
        members: By a token that names the owner, see `sandboxlib.kernel.owner`.
        forwarding: For 4 and 6, where we let the host forward.
        servers: Name servers that need help.
        rules: What we made of the host's rules.
        past: Of networks that have gone: their ranges, with the addresses that were given out last, and the
            highest.
        range: The last range of IPv4 that was chosen by itself.
    """

    folder: str
    networks: dict[str, Net] = attrs.field(factory=dict)
    leaving: list[Net] = attrs.field(factory=list)
    members: dict[str, Member] = attrs.field(factory=dict)
    forwarding: dict[str, Opened] = attrs.field(factory=dict)
    servers: Servers = attrs.field(factory=Servers)
    rules: Rules = attrs.field(factory=Rules)
    past: dict[str, list[int]] = attrs.field(factory=dict)
    range: str = ""

    def on(self, network: str) -> list[Member]:
        """Who is on a network."""
        return [member for member in self.members.values() if member.network == network]

    def path(self, name: str) -> str:
        """A file beside the book."""
        return os.path.join(self.folder, name)

    @property
    def empty(self) -> bool:
        """Is there nothing that it is needed for?"""
        return not (self.networks or self.members or self.leaving or self.forwarding or self.rules.table)

    def save(self) -> None:
        """Write it down: as a whole, or not at all. Raises: KernelError."""
        while len(self.past) > _REMEMBERED:
            del self.past[next(iter(self.past))]
        text = json.dumps(
            {
                "version": _VERSION,
                "networks": [_NET(net) for net in self.networks.values()],
                "leaving": [_NET(net) for net in self.leaving],
                "members": {token: _MEMBER(member) for token, member in self.members.items()},
                "forwarding": {family: [one.links, one.settings] for family, one in self.forwarding.items()},
                "servers": [self.servers.near, self.servers.local],
                "rules": _RULES(self.rules),
                "past": self.past,
                "range": self.range,
            }
        )
        path = self.path(_BOOK)
        try:
            with open(f"{path}.new", "w", encoding="utf-8") as file:
                file.write(text)
            os.rename(f"{path}.new", path)
        except OSError as error:
            raise failed(error, f'write("{path}")', "the book of networks") from None


#: The values of each, in order; what attrs has for it is slower by far, and there may be hundreds.
_NET, _MEMBER, _RULES = (
    attrgetter(*(field.name for field in attrs.fields(kind))) for kind in (Net, Member, Rules)
)


def _name() -> str:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sock:
        cookie = struct.unpack("=Q", sock.getsockopt(socket.SOL_SOCKET, _COOKIE, 8))[0]
    return f"{_FOLDER}{cookie}-{os.stat('/proc/thread-self/ns/net').st_ino}"


def folder(run_dir: str) -> str:
    """Where the book of this thread's network namespace lies."""
    return os.path.join(run_dir, _name())


def others(run_dir: str) -> list[tuple[str, int]]:
    """The folders of other network namespaces' books, with the namespaces' inodes."""
    found = []
    own = _name()
    for name in os.listdir(run_dir):
        _, _, inode = name.rpartition("-")
        if name.startswith(_FOLDER) and name != own and inode.isdigit():
            found.append((os.path.join(run_dir, name), int(inode)))
    return found


@contextlib.contextmanager
def locked(run_dir: str, where: str = "") -> Iterator[Book]:
    """
    Open the book, which nobody else has meanwhile; an empty one is taken away with its folder.

    Args:
        run_dir: The run-time folder.
        where: The folder of the book; else that of this thread's network namespace.

    Raises:
        KernelError: The folder cannot be used.
        NetworkError: The book is none, or another program does not give it back.
    """
    where = where or folder(run_dir)
    with _lock(where):
        try:
            book = _read(where)
        except OSError as error:
            _clear_unwritten(where)
            raise failed(error, f'open("{where}")', "the book of networks") from None
        try:
            yield book
        finally:
            if book.empty and not _clear_unwritten(where):
                _clear(where)


def _lock(where: str) -> Fd:
    until = time.monotonic() + PATIENCE
    try:
        while True:
            # Not os.makedirs(): where another program takes the folder away just then, it says "File exists".
            with contextlib.suppress(FileExistsError):
                os.mkdir(where, mode=0o700)
            fd = Fd()
            try:
                fd = openat(f"{where}/{_LOCK}", os.O_RDWR | os.O_CREAT)
                _wait_for(fd.fileno(), where, until)
                # Whoever had it may have taken it away with the folder.
                if os.stat(f"{where}/{_LOCK}").st_ino == os.fstat(fd.fileno()).st_ino:
                    return fd
            except FileNotFoundError:
                # Taken away in between; others come and go, but not for as long as that.
                fd.close()
                if time.monotonic() > until:
                    raise
            except BaseException:
                fd.close()
                raise
            fd.close()
    except OSError as error:
        with contextlib.suppress(OSError):
            # If it has no lock, nobody uses it.
            os.rmdir(where)
        raise failed(error, f'flock("{where}/{_LOCK}")', "the book of networks") from None


def _wait_for(fd: int, where: str, until: float) -> None:
    pause = 0.0001
    while True:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > until:
                who = f"another program{locks.holder(fd)}"
                raise NetworkError(
                    f"{who} has had {where}, the book of networks, for {PATIENCE:g} s: let it go on or end it"
                ) from None
            time.sleep(pause)
            pause = min(2 * pause, 0.01)
        else:
            return


def _read(where: str) -> Book:
    book = Book(where)
    path = book.path(_BOOK)
    try:
        with open(path, encoding="utf-8") as file:
            found = json.load(file)
        if found["version"] != _VERSION:
            raise ValueError("it is of another version of sandboxlib")
        for values in found["networks"]:
            net = Net(*values)
            book.networks[net.name] = net
        book.leaving = [Net(*values) for values in found["leaving"]]
        book.members = {token: Member(*values) for token, values in found["members"].items()}
        book.forwarding = {family: Opened(*values) for family, values in found["forwarding"].items()}
        book.servers = Servers(*found["servers"])
        book.rules = Rules(*found["rules"])
        book.past = found["past"]
        book.range = found["range"]
    except FileNotFoundError:
        return book
    except (ValueError, KeyError, TypeError) as error:
        # Of another version, or written to by somebody else.
        hint = "end all sandboxes that are on a network, and remove the file"
        raise NetworkError(f"the book of networks, {path}, cannot be read ({error}): {hint}") from None
    return book


def _clear_unwritten(where: str) -> bool:
    """Take the folder away, whose lock is held, if there is no book in it: that takes no descriptor."""
    if os.path.lexists(os.path.join(where, _BOOK)):
        return False
    with contextlib.suppress(OSError):
        os.unlink(os.path.join(where, _LOCK))
        os.rmdir(where)
    return not os.path.lexists(where)


def _clear(where: str) -> None:
    if not _read(where).empty:
        return
    clear(where)


def clear(where: str) -> None:
    """Take the folder of a book away, whose lock is held."""
    with contextlib.suppress(FileNotFoundError):
        for name in os.listdir(where):
            if name != _LOCK:
                os.unlink(os.path.join(where, name))
        # The lock last: who waits for it looks whether it is still there.
        os.unlink(os.path.join(where, _LOCK))
    try:
        os.rmdir(where)
    except OSError as error:
        # Somebody who waited has begun a new one.
        if error.errno not in (errno.ENOENT, errno.ENOTEMPTY):
            raise failed(error, f'rmdir("{where}")', "the book of networks") from None


__all__ = [
    "Book", "Member", "Net", "Opened", "Rules", "Servers", "clear", "folder", "locked", "others",
]  # fmt: skip
