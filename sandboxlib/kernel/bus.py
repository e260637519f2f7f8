"""
A client of D-Bus for a handful of calls, all of which end by one deadline.

jeepney turns messages into bytes and back. Its own connections wait for the bus's greeting without end,
so the socket is ours.

Spec: D-Bus Specification, "Server Addresses", "Authentication Protocol", "Message Bus Messages".
"""

from __future__ import annotations

import contextlib
import itertools
import socket
import struct
import time
from collections.abc import Callable, Iterator
from types import TracebackType
from typing import Any, Self

from jeepney import DBusAddress, HeaderFields, Message, MessageType, Parser, new_method_call
from jeepney.auth import BEGIN, AuthenticationError, Authenticator
from jeepney.bus import get_connectable_addresses

#: Who is called: the path of the object, the name on the bus, the interface.
Target = tuple[str, str, str]
#: The bus itself.
BUS: Target = ("/org/freedesktop/DBus", "org.freedesktop.DBus", "org.freedesktop.DBus")

_SLICE = 0.1


class RefusedError(Exception):
    """
    The bus, or who was called over it, answered with an error.

    Attributes:
        name: As D-Bus names errors, such as ``org.freedesktop.DBus.Error.ServiceUnknown``.
        text: What it says.
    """

    def __init__(self, name: str, text: str) -> None:
        self.name, self.text = name, text
        super().__init__(f"{text} ({name})" if text else name)


class Bus:
    """
    A connection, which has said hello.

    Args:
        address: As D-Bus writes them: ``unix:path=...``, several with semicolons between.
        patience: Seconds for all that is done with it, from now on.
        check: Called every tenth of a second while an answer is waited for; it may raise, to give up.

    Raises:
        OSError: No socket of *address* can be connected to; TimeoutError after *patience*, here and later;
            ConnectionError if the other end gives up.
        ValueError: *address* is none, or of a kind that is not for UNIX sockets.
        RefusedError: It does not let this user in.
    """

    def __init__(self, address: str, patience: float, check: Callable[[], None] = lambda: None) -> None:
        self._check = check
        self._deadline = time.monotonic() + patience
        self._serials = itertools.count(1)
        self._parser = Parser()
        self._signals: list[Message] = []
        self._socket = self._connect(address)
        try:
            self._authenticate()
            self.call(BUS, "Hello")
        except BaseException:
            self._socket.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._socket.close()

    def call(self, to: Target, method: str, signature: str | None = None, *body: Any) -> tuple[Any, ...]:
        """Call a method, and return what it returns. Raises: OSError, RefusedError: as above."""
        serial = next(self._serials)
        message = new_method_call(DBusAddress(*to), method, signature, body)
        self._send(message.serialise(serial=serial))
        while True:
            answer = self._receive()
            fields = answer.header.fields
            if answer.header.message_type is MessageType.signal:
                self._signals.append(answer)
            elif fields.get(HeaderFields.reply_serial) == serial:
                if answer.header.message_type is MessageType.error:
                    raise RefusedError(fields[HeaderFields.error_name], " ".join(map(str, answer.body)))
                return tuple(answer.body)

    def signals(self, member: str) -> Iterator[tuple[Any, ...]]:
        """What signals of this name say, those that came during calls first. Raises: OSError."""
        while True:
            message = self._signals.pop(0) if self._signals else self._receive()
            is_signal = message.header.message_type is MessageType.signal
            if is_signal and message.header.fields.get(HeaderFields.member) == member:
                yield tuple(message.body)

    def _connect(self, address: str) -> socket.socket:
        try:
            places = list(get_connectable_addresses(address))
        except RuntimeError as problem:
            raise ValueError(str(problem)) from None
        failure = OSError("no address")
        for place in places:
            with contextlib.ExitStack() as on_fail:
                connection = on_fail.enter_context(socket.socket(socket.AF_UNIX))
                connection.settimeout(self._left())
                try:
                    connection.connect(place)
                except OSError as problem:
                    failure = problem
                else:
                    on_fail.pop_all()
                    return connection
        raise failure

    def _authenticate(self) -> None:
        # The kernel tells the bus who we are (SO_PEERCRED); the byte has to be there all the same.
        self._send(b"\0")
        conversation = Authenticator(inc_null_byte=False)
        try:
            for words in conversation:
                self._send(words)
                conversation.feed(self._read())
        except AuthenticationError as error:
            raise RefusedError("org.freedesktop.DBus.Error.AuthFailed", str(error)) from None
        self._send(BEGIN)

    def _receive(self) -> Message:
        try:
            while (message := self._parser.get_next_message()) is None:
                self._parser.add_data(self._read())
        except (LookupError, ValueError, struct.error) as problem:
            raise ConnectionError(f"what it sends is no message of D-Bus: {problem}") from None
        return message

    def _send(self, data: bytes) -> None:
        self._socket.settimeout(self._left())
        self._socket.sendall(data)

    def _read(self) -> bytes:
        while True:
            self._socket.settimeout(min(self._left(), _SLICE))
            try:
                data = self._socket.recv(1 << 16)
            except TimeoutError:
                self._check()
                continue
            if not data:
                raise ConnectionResetError("the bus closed the connection")
            return data

    def _left(self) -> float:
        left = self._deadline - time.monotonic()
        if left <= 0:
            raise TimeoutError("timed out")
        return left


__all__ = ["BUS", "Bus", "RefusedError", "Target"]
