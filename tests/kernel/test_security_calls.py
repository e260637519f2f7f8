"""The filter: what the kernel would answer is not what a sandbox gets. As root, and as a plain user."""

from __future__ import annotations

import functools
from typing import Any

import pytest
from kernel.probe.outside import WHO, by_default, look_as, without


@functools.cache
def unfiltered(who: str) -> dict[str, Any]:
    return look_as(
        who,
        "refused",
        "refused_twice",
        "i386_entry",
        "x32_entry",
        "device_node",
        arguments=without("seccomp"),
    )


@WHO
def test_dangerous_calls_are_refused(who: str) -> None:
    found = by_default(who)["refused"]
    assert len(found) > 50
    passed = {name: result for name, result in found.items() if result not in ("EPERM", "ENOSYS")}
    assert not passed


@WHO
def test_without_the_filter_each_of_them_is_answered_otherwise(who: str) -> None:
    """Were one of them refused by the kernel anyway, the test above would say nothing."""
    same = {
        name
        for name, result in by_default(who)["refused"].items()
        if unfiltered(who)["refused"][name] == result
    }
    # What this kernel does not have is refused by it as the filter would.
    assert {name for name in same if by_default(who)["refused"][name] != "ENOSYS"} <= {
        "userfaultfd",
        "bpf",
    }, same


@WHO
def test_calls_for_the_mighty_are_refused(who: str) -> None:
    assert set(by_default(who)["refused_twice"].values()) == {"EPERM"}


@WHO
def test_no_device_node_can_be_made(who: str) -> None:
    """Not even the one that every user may make: a whiteout."""
    assert by_default(who)["device_node"] == "EPERM"
    assert unfiltered(who)["device_node"] == "ok"


@WHO
def test_the_32_bit_entry_is_death(who: str) -> None:
    entries = look_as(who, "i386_entry", "x32_entry")
    # Without the filter the kernel answers, if it knows these entries at all; aarch64 does not.
    if unfiltered(who)["i386_entry"] == "ok":
        assert entries["i386_entry"] == "signal 31"
    else:
        assert entries["i386_entry"] == unfiltered(who)["i386_entry"]
    assert entries["x32_entry"] in ("signal 31", "ENOSYS")
    assert unfiltered(who)["x32_entry"] in ("ok", "Function not implemented")


@pytest.mark.root
def test_a_foreign_abi_is_let_in_by_name() -> None:
    assert (
        look_as("root", "i386_entry", arguments="security=Security(abi=['i386'])")["i386_entry"]
        == unfiltered("root")["i386_entry"]
    )


@pytest.mark.root
def test_a_capability_opens_the_calls_that_it_is_for_and_no_other() -> None:
    raw = look_as("root", "refused_twice", arguments="security=Security(capabilities=['CAP_NET_RAW'])")[
        "refused_twice"
    ]
    assert {name for name, result in raw.items() if result != "EPERM"} == {
        "socket(raw)",
        "socket(raw, IPv6)",
        "socket(packet)",
    }


@pytest.mark.root
def test_commands_of_all_kinds_are_filtered() -> None:
    """The filter is each command's own, so it must not be forgotten for any of them."""
    from kernel.probe.outside import command, make

    with make("") as sandbox:
        for options in ({}, {"stdin": 0}, {"cwd": "/"}, {"env": {"A": "b"}}):
            done = sandbox.run(
                ["grep", "-E", "^(Seccomp|NoNewPrivs|CapBnd):", "/proc/self/status"], **options
            )
            assert done.stdout.split() == [b"CapBnd:", b"0" * 16, b"NoNewPrivs:", b"1", b"Seccomp:", b"2"], (
                options
            )
        with sandbox.popen(command(("status",), {}), stdout=-1) as process:
            assert b'"Seccomp": "2"' in process.stdout.read()
