"""A D-Bus connection: real buses answer, all else ends in time and says what it is."""

from __future__ import annotations

import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from sandboxlib.kernel.bus import BUS, Bus, RefusedError
from sandboxlib.kernel.cgroup.probe import bus_address


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[str]:
    """The address of a real bus, whose socket has every mark in its name that addresses use themselves."""
    folder = tmp_path / "a=b,c;d%e f"
    folder.mkdir()
    path = f"{folder}/bus"
    address = "unix:path=" + "".join(c if c.isalnum() or c in "/-_." else f"%{ord(c):02x}" for c in path)
    command = ["dbus-daemon", "--session", "--nofork", "--nopidfile", "--print-address=1"]
    with subprocess.Popen([*command, f"--address={address}"], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline().startswith(b"unix:")
        yield path
        process.kill()


@pytest.mark.tool("dbus-daemon")
def test_a_real_bus_answers_and_its_errors_have_their_names(
    daemon: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("DBUS_SESSION_BUS_ADDRESS", raising=False)
    monkeypatch.setenv("XDG_RUNTIME_DIR", daemon.removesuffix("/bus"))
    with Bus(f"unix:path=/nowhere;{bus_address()}", 30) as bus:
        (names,) = bus.call(BUS, "ListNames")
        assert "org.freedesktop.DBus" in names
        # Its own name: the signal came during the greeting.
        assert next(bus.signals("NameAcquired"))[0] in names
        with pytest.raises(RefusedError, match="NameHasNoOwner") as caught:
            bus.call(BUS, "GetNameOwner", "s", "org.example.Nobody")
        assert caught.value.name == "org.freedesktop.DBus.Error.NameHasNoOwner"
        assert len(bus.call(BUS, "ListNames")) == 1, "and it goes on after an error"


@pytest.mark.tool("dbus-daemon")
def test_waiting_for_a_signal_that_never_comes_ends(daemon: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DBUS_SESSION_BUS_ADDRESS", raising=False)
    monkeypatch.setenv("XDG_RUNTIME_DIR", daemon.removesuffix("/bus"))
    with Bus(bus_address(), 2) as bus, pytest.raises(TimeoutError):
        next(bus.signals("NeverComes"))


def test_silence_ends_in_time_and_leaves_no_descriptor(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tmp_path / "bus"))
        server.listen()
        began = time.monotonic()
        with pytest.raises(TimeoutError):
            Bus(f"unix:path={tmp_path}/bus", 0.2)
        assert 0.1 < time.monotonic() - began < 10
        connection, _ = server.accept()
        with connection:
            connection.settimeout(10)
            while connection.recv(4096):
                pass


@pytest.mark.parametrize(
    "address, error",
    [
        ("unix:path=/nowhere", FileNotFoundError),
        ("unix:path=/nowhere;unix:path=/dev/null", ConnectionRefusedError),
        ("tcp:host=localhost,port=1", ValueError),
        ("unix:", ValueError),
        ("nonsense", ValueError),
        ("", ValueError),
    ],
)
def test_an_address_without_a_bus_is_an_error_of_its_kind(address: str, error: type[Exception]) -> None:
    with pytest.raises(error):
        Bus(address, 10)


@pytest.mark.parametrize(
    "variables, expected",
    [
        ({}, ""),
        ({"XDG_RUNTIME_DIR": ""}, ""),
        ({"XDG_RUNTIME_DIR": "/run/user/1"}, "unix:path=/run/user/1/bus"),
        ({"XDG_RUNTIME_DIR": "/a,b;c=d%"}, "unix:path=/a%2cb%3bc%3dd%25/bus"),
        ({"XDG_RUNTIME_DIR": "/a", "DBUS_SESSION_BUS_ADDRESS": "unix:abstract=b"}, "unix:abstract=b"),
        ({"XDG_RUNTIME_DIR": "/a", "DBUS_SESSION_BUS_ADDRESS": ""}, "unix:path=/a/bus"),
    ],
)
def test_where_the_environment_says_that_the_bus_is(
    variables: dict[str, str], expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("XDG_RUNTIME_DIR", "DBUS_SESSION_BUS_ADDRESS"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert bus_address() == expected
