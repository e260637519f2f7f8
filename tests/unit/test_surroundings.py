"""What is around a program is named with what to change, and nothing is named that is not in the way."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from sandboxlib.surroundings import read, surroundings

GVISOR = "#1 SMP Sun Jan 10 15:06:54 PST 2016"
PLAIN = {
    "/proc/version": "Linux version 6.12.0 (gcc)",
    "/proc/self/mountinfo": "30 24 0:26 / /sys/fs/cgroup rw,nosuid - cgroup2 cgroup2 rw\n",
    "/dev/fuse": "",
}


def names(
    files: dict[str, str], environment: dict[str, str] | None = None, *, restricted: bool = True
) -> list[str]:
    return [found.name for found in surroundings(files.get, environment or {}, restricted=restricted)]


def test_a_plain_machine_has_nothing_around_it() -> None:
    assert names(PLAIN) == []


@pytest.mark.parametrize(
    "more, environment, name, word",
    [
        ({"/.dockerenv": ""}, {}, "Docker", "seccomp=unconfined"),
        ({"/run/.containerenv": ""}, {}, "podman", "unmask=ALL"),
        ({"/.dockerenv": ""}, {"KUBERNETES_SERVICE_HOST": "10.0.0.1"}, "Kubernetes", "procMount: Unmasked"),
        (
            {"/proc/version": "Linux version 4.4.0 #1 SMP Sun Jan 10 15:06:54 PST 2016"},
            {},
            "gVisor",
            "runc or crun",
        ),
        (
            {"/proc/self/mountinfo": "30 24 0:26 / /sys/fs/cgroup ro,nosuid - cgroup2 cgroup2 rw\n"},
            {},
            "cgroupfs",
            "remount,rw",
        ),
    ],
)
def test_each_is_named_with_what_to_change(
    more: dict[str, str], environment: dict[str, str], name: str, word: str
) -> None:
    (found,) = surroundings((PLAIN | more).get, environment)
    assert found.name == name
    assert word in found.remedy


def test_without_fuse_it_says_so() -> None:
    assert names({name: text for name, text in PLAIN.items() if name != "/dev/fuse"}) == ["/dev/fuse"]


def test_a_container_in_which_sandboxes_start_is_not_in_the_way() -> None:
    assert names(PLAIN | {"/.dockerenv": ""}, restricted=False) == []
    # What takes away more than the start is named all the same.
    readonly = {"/proc/self/mountinfo": "30 24 0:26 / /sys/fs/cgroup ro - cgroup2 cgroup2 rw\n"}
    assert names(PLAIN | readonly, restricted=False) == ["cgroupfs"]


def test_files_are_read_as_far_as_they_can_be() -> None:
    assert read("/nowhere") is None
    assert "Linux" in (read("/proc/version") or "")
    assert read("/") == ""


@pytest.mark.root
@pytest.mark.tool("unshare")
def test_a_read_only_cgroupfs_is_seen_on_the_real_kernel() -> None:
    script = (
        "import subprocess\n"
        "subprocess.run(['mount', '-t', 'tmpfs', 'none', '/sys/fs/cgroup'], check=True)\n"
        "done = subprocess.run(['mount', '-t', 'cgroup2', '-o', 'ro', 'none', '/sys/fs/cgroup'])\n"
        "from sandboxlib.surroundings import surroundings\n"
        "print([found.name for found in surroundings() if found.name == 'cgroupfs'], done.returncode)"
    )
    done = subprocess.run(
        ["unshare", "--mount", "--propagation", "private", sys.executable, "-c", script],
        capture_output=True,
        text=True,
        check=True,
        env=dict(os.environ),
    )
    assert done.stdout.strip() == "['cgroupfs'] 0"
