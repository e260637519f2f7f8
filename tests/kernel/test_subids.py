"""A user's subordinate IDs: what is wrong with them is said, and nobody gets another one's."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from subprocess import CompletedProcess

import pytest

from users import NAME, SUBORDINATE, UID

pytestmark = [pytest.mark.root, pytest.mark.unprivileged, pytest.mark.subids]

GOOD = f"{NAME}:{SUBORDINATE[0]}:{SUBORDINATE[1]}\n"
SCRIPT = """
from sandboxlib import Sandbox, Security, UnsupportedError
from sandboxlib.doctor import examine
from sandboxlib.kernel.probe import probe
host = probe()
print(host.subuids, host.subgids)
print([note for note in Sandbox().plan().notes if "subordinate ones" in note] or "no note")
print(next(str(finding) for finding in examine(host) if finding.name == "users inside"))
with Sandbox() as sb:
    print(sb.sh("cat /proc/self/uid_map; id -u", text=True).stdout.split())
try:
    with Sandbox(security=Security(user=1000)) as sb:
        print(sb.run(["id", "-u"], text=True).stdout.strip())
except UnsupportedError as error:
    print(error.hint)
"""

Run = Callable[..., CompletedProcess[str]]


def said(as_user: Run, files: Mapping[str, str]) -> list[str]:
    return as_user(SCRIPT, subids=True, files=files).stdout.splitlines()


def test_who_has_a_good_line_has_the_range(as_user: Run) -> None:
    found, note, doctor, inside, other = said(as_user, {})
    assert found == f"{SUBORDINATE} {SUBORDINATE}"
    assert note == "no note"
    assert doctor.startswith("ok")
    assert inside == str(["0", str(UID), "1", "1", str(SUBORDINATE[0]), "65535", "0"])
    assert other == "1000"


def test_a_line_by_number_does_as_well(as_user: Run) -> None:
    line = GOOD.replace(NAME, str(UID))
    found, _, _, inside, other = said(as_user, {"/etc/subuid": line, "/etc/subgid": line})
    assert found == f"{SUBORDINATE} {SUBORDINATE}"
    assert str(SUBORDINATE[0]) in inside
    assert other == "1000"


def test_a_short_range_is_used_as_far_as_it_goes(as_user: Run) -> None:
    line = f"{NAME}:{SUBORDINATE[0]}:2000\n"
    found, _, _, inside, other = said(as_user, {"/etc/subuid": line, "/etc/subgid": line})
    assert found == f"({SUBORDINATE[0]}, 2000) ({SUBORDINATE[0]}, 2000)"
    assert "2000" in inside
    assert other == "1000"


@pytest.mark.parametrize(
    ("files", "words"),
    [
        ({"/etc/subuid": f"{NAME}:many:65536\n"}, ["/etc/subuid: line 1 is not NAME:START:COUNT", "put"]),
        ({"/etc/subgid": f"\n{NAME}:100000:0\n"}, ["/etc/subgid: line 2 has no usable range"]),
        ({"/etc/subuid": f"{NAME}:{UID - 5}:65536\n"}, ["/etc/subuid: line 1", f"own ID {UID}"]),
        ({"/etc/subuid": f"{NAME}:0:65536\n"}, ["/etc/subuid: line 1 hands out root's own ID"]),
        ({"/etc/subgid": "\n"}, ["/etc/subuid has a range", "/etc/subgid has none", "usermod --add-subgids"]),
        ({"/etc/subuid": "\n"}, ["/etc/subgid has a range", "/etc/subuid has none", "usermod --add-subuids"]),
        ({"/usr/bin/newuidmap": "#!/bin/sh\n"}, ["/usr/bin/newuidmap is neither set-uid root", "reinstall"]),
        ({"/usr/bin/newgidmap": "#!/bin/sh\n"}, ["/usr/bin/newgidmap is neither set-uid root"]),
    ],
)
def test_what_is_wrong_is_said_everywhere_and_one_user_is_left(
    files: Mapping[str, str], words: list[str], as_user: Run
) -> None:
    found, note, doctor, inside, other = said(as_user, files)
    assert found == "None None"
    for text in (note, doctor, other):
        assert all(word in text for word in words), text
    # No ID but the user's own.
    assert inside == str(["0", str(UID), "1", "0"])


def test_who_has_been_given_none_is_told_how_to_get_some(as_user: Run) -> None:
    found, note, doctor, _, other = as_user(SCRIPT).stdout.splitlines()
    assert found == "None None"
    assert note == "no note"
    assert "usermod --add-subuids" in doctor
    assert "/etc/subuid" in other


def test_no_new_privs_is_named_as_what_takes_the_rights_from_newuidmap(as_user: Run) -> None:
    before = "import ctypes; assert not ctypes.CDLL(None).prctl(38, 1, 0, 0, 0)\n"
    found, note, *_ = as_user(before + SCRIPT, subids=True).stdout.splitlines()
    assert found == "None None"
    assert "no_new_privs" in note


def test_other_peoples_ids_are_refused_in_newuidmaps_words(as_user: Run) -> None:
    script = """
import os
from sandboxlib import KernelError, Namespace, Sandbox
own = os.getuid()
for start in (0, 1000, 100000):
    try:
        with Sandbox(namespaces=[Namespace("user", uid_map=[(0, own, 1), (1, start, 10)],
                                           gid_map=[(0, own, 1), (1, start, 10)])]):
            print("given away")
    except KernelError as error:
        print("newuidmap" in error.call, "not allowed" in error.hint, "/etc/subuid" in error.hint)
"""
    assert as_user(script, subids=True).stdout == "True True True\n" * 3


def test_what_newuidmap_refuses_is_not_gone_without(as_user: Run) -> None:
    # What the library reads and what newuidmap goes by need not be the same: the file may change in between.
    script = """
from sandboxlib import KernelError, Sandbox
from sandboxlib.kernel import subids
real = subids.probe
subids.probe = lambda uid, gid: real(uid, gid)._replace(uids=(1_900_000_000, 65536))
try:
    with Sandbox():
        print("started")
except KernelError as error:
    print(error)
"""
    done = as_user(script, subids=True).stdout
    assert "newuidmap" in done
    assert "1900000000" in done
