"""Labels of AppArmor and SELinux: commands are in the one that was asked for, or do not run."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from subprocess import CompletedProcess

import pytest

from sandboxlib import Namespace, Sandbox, Security, UnsupportedError
from sandboxlib.errors import CommandNotExecutableError, KernelError
from sandboxlib.kernel.probe import probe

HERE = Path(__file__).parent
DOCS = HERE.parents[1] / "docs" / "security.md"
CURRENT = {"apparmor": "/proc/self/attr/apparmor/current", "selinux": "/proc/self/attr/current"}

#: As a profile of a user's would be: what it forbids is allowed by everything else.
PROFILE = """
profile sandboxlib-test flags=(attach_disconnected,mediate_deleted) {
  file,
  signal,
  mount,
  capability,
  deny /work/closed* rw,
}
"""
WRITES = "echo x >/work/open && cat /work/open; echo x >/work/closed"


@pytest.fixture
def load() -> Iterator[Callable[[str], None]]:
    """Load AppArmor profiles; they are gone afterwards."""
    loaded = []

    def load(text: str) -> None:
        subprocess.run(["apparmor_parser", "--replace"], input=text, text=True, check=True)
        loaded.append(text)

    yield load
    for text in loaded:
        subprocess.run(["apparmor_parser", "--remove"], input=text, text=True, check=True)


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Load our policy and enforce it: for good, it is the lab's machine."""
    compiled = tmp_path_factory.mktemp("policy") / "policy"
    source = HERE / "labels" / "policy.conf"
    subprocess.run(["checkpolicy", "-U", "allow", "-o", compiled, source], check=True)
    # The kernel takes a policy in one piece.
    fd = os.open("/sys/fs/selinux/load", os.O_WRONLY)
    try:
        assert os.write(fd, compiled.read_bytes()) == compiled.stat().st_size
    finally:
        os.close(fd)
    Path("/sys/fs/selinux/enforce").write_text("1")


def label(module: str) -> list[str]:
    return ["cat", CURRENT[module]]


# --- AppArmor ----------------------------------------------------------------------------------------


@pytest.mark.lab
@pytest.mark.apparmor
def test_every_command_is_in_the_profile(load: Callable[[str], None]) -> None:
    load(PROFILE)
    with Sandbox(security=Security(apparmor="sandboxlib-test")) as sb:
        assert sb.run(label("apparmor"), text=True).stdout == "sandboxlib-test (enforce)\n"
        # So are its children, and the next command.
        assert sb.sh(f"sh -c 'cat {CURRENT['apparmor']}'", text=True).stdout == "sandboxlib-test (enforce)\n"
        with sb.popen(["sleep", "60"]) as process:
            assert (
                Path(f"/proc/{process.pid}/attr/apparmor/current").read_text().startswith("sandboxlib-test")
            )
            process.kill()


@pytest.mark.lab
@pytest.mark.apparmor
def test_what_the_profile_denies_is_denied_and_else_allowed(load: Callable[[str], None]) -> None:
    load(PROFILE)
    with Sandbox() as sb:
        assert sb.sh(WRITES).returncode == 0
    with Sandbox(security=Security(apparmor="sandboxlib-test")) as sb:
        done = sb.sh(WRITES, text=True)
        assert (done.stdout, done.returncode) == ("x\n", 2)
        assert "Permission denied" in done.stderr
        # The helper for files is the program's, as before.
        sb.files.write("/work/closed", "y")
        assert sb.run(["cat", "/work/closed"]).returncode == 1


@pytest.mark.lab
@pytest.mark.apparmor
def test_a_profile_cannot_be_left(load: Callable[[str], None]) -> None:
    load(PROFILE)
    leave = f"""
import os
fd = os.open({CURRENT["apparmor"]!r}, os.O_WRONLY)
os.write(fd, b"changeprofile unconfined")
"""
    with Sandbox(security=Security(apparmor="sandboxlib-test", capabilities=["ALL"])) as sb:
        assert "PermissionError" in sb.run(["python3", "-c", leave], text=True).stderr
        # Not by mounting something over /proc, either: the label is set from outside.
        assert sb.sh("mount -t tmpfs none /proc").returncode == 0
        assert sb.sh(WRITES).returncode == 2


@pytest.mark.lab
@pytest.mark.apparmor
def test_a_profile_that_is_not_loaded_starts_no_sandbox() -> None:
    with (
        pytest.raises(KernelError, match=r"has to be loaded.*no-such-profile"),
        Sandbox(security=Security(apparmor="no-such-profile")),
    ):
        pass


@pytest.mark.lab
@pytest.mark.apparmor
def test_a_profile_that_was_unloaded_meanwhile_runs_no_command(load: Callable[[str], None]) -> None:
    other = PROFILE.replace("sandboxlib-test", "sandboxlib-gone")
    subprocess.run(["apparmor_parser", "--replace"], input=other, text=True, check=True)
    with Sandbox(security=Security(apparmor="sandboxlib-gone")) as sb:
        subprocess.run(["apparmor_parser", "--remove"], input=other, text=True, check=True)
        with pytest.raises(KernelError, match="sandboxlib-gone"):
            sb.run(["true"])


@pytest.mark.lab
@pytest.mark.apparmor
@pytest.mark.unprivileged
def test_a_plain_users_commands_are_in_the_profile(
    load: Callable[[str], None], as_user: Callable[..., CompletedProcess[str]]
) -> None:
    load(PROFILE)
    script = f"""
from sandboxlib import Sandbox, Security
with Sandbox(security=Security(apparmor="sandboxlib-test")) as sb:
    print(sb.run(["cat", "{CURRENT["apparmor"]}"], text=True).stdout, sb.sh("{WRITES}").returncode)
try:
    with Sandbox(security=Security(apparmor="no-such-profile")): pass
except OSError as error:
    print(error.strerror)
"""
    out = as_user(script).stdout.splitlines()
    assert out[:2] == ["sandboxlib-test (enforce)", " 2"]
    assert "no-such-profile" in out[2]


@pytest.mark.lab
@pytest.mark.apparmor
def test_the_profile_in_the_documentation_works(load: Callable[[str], None]) -> None:
    text = re.search(r"```text\n(# What runs in a sandbox.*?)```", DOCS.read_text(), re.DOTALL)
    assert text is not None
    load(text[1])
    security = Security(apparmor="sandboxlib-payload", capabilities=["ALL"])
    with Sandbox(security=security, namespaces=[Namespace("user")]) as sb:
        script = """
import os, socket, subprocess, threading
thread = threading.Thread(target=lambda: None); thread.start(); thread.join()
assert subprocess.run(["sh", "-c", "kill -0 $PPID && echo hello >/work/file && cat /work/file"],
                      capture_output=True, check=True).stdout == b"hello\\n"
server = socket.create_server(("127.0.0.1", 0))
socket.create_connection(server.getsockname()).close()
one, other = socket.socketpair(); one.send(b"x"); assert other.recv(1) == b"x"
"""
        assert sb.run(["python3", "-c", script], text=True).stderr == ""
        assert sb.run(["mount", "-t", "tmpfs", "none", "/work"]).returncode != 0
        with sb.popen(["sleep", "60"]) as process:
            process.terminate()
            assert process.wait(30) == -15
    # With the same rights and without the profile it may mount.
    with Sandbox(security=Security(capabilities=["ALL"])) as sb:
        assert sb.run(["mount", "-t", "tmpfs", "none", "/work"]).returncode == 0


# --- SELinux -----------------------------------------------------------------------------------------

BOX = "system_u:system_r:box_t"
DATAGRAM = "import socket; socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)"


@pytest.mark.lab
@pytest.mark.selinux
@pytest.mark.usefixtures("policy")
def test_every_command_has_the_label() -> None:
    with Sandbox(security=Security(selinux=BOX)) as sb:
        assert sb.run(label("selinux"), text=True).stdout == f"{BOX}\0"
        assert sb.sh(f"sh -c 'cat {CURRENT['selinux']}'", text=True).stdout == f"{BOX}\0"
    with Sandbox() as sb:
        assert sb.run(label("selinux"), text=True).stdout == "system_u:system_r:system_t\0"


@pytest.mark.lab
@pytest.mark.selinux
@pytest.mark.usefixtures("policy")
def test_what_the_policy_denies_is_denied() -> None:
    with Sandbox() as sb:
        assert sb.run(["python3", "-c", DATAGRAM]).returncode == 0
    with Sandbox(security=Security(selinux=BOX)) as sb:
        done = sb.run(["python3", "-c", DATAGRAM], text=True)
        assert done.returncode == 1
        assert "PermissionError" in done.stderr


@pytest.mark.lab
@pytest.mark.selinux
@pytest.mark.usefixtures("policy")
@pytest.mark.parametrize("unknown", ["nonsense", "system_u:system_r:no_such_t"])
def test_a_label_that_the_policy_does_not_know_starts_no_sandbox(unknown: str) -> None:
    with (
        pytest.raises(KernelError, match="policy has to know it") as caught,
        Sandbox(security=Security(selinux=unknown)),
    ):
        pass
    assert unknown in str(caught.value)


@pytest.mark.lab
@pytest.mark.selinux
@pytest.mark.usefixtures("policy")
def test_a_change_that_the_policy_forbids_runs_nothing() -> None:
    with Sandbox(security=Security(selinux="system_u:system_r:other_t")) as sb:
        with pytest.raises(CommandNotExecutableError, match="the change to system_u:system_r:other_t"):
            sb.run(["touch", "/work/file"])
        assert not sb.files.exists("/work/file")


@pytest.mark.lab
@pytest.mark.selinux
@pytest.mark.usefixtures("policy")
@pytest.mark.unprivileged
def test_a_plain_users_commands_have_the_label(as_user: Callable[..., CompletedProcess[str]]) -> None:
    script = f"""
from sandboxlib import Sandbox, Security
with Sandbox(security=Security(selinux="{BOX}")) as sb:
    print(sb.run(["cat", "{CURRENT["selinux"]}"], text=True).stdout)
    print(sb.run(["python3", "-c", "{DATAGRAM}"]).returncode)
"""
    assert as_user(script).stdout.split() == [f"{BOX}\0", "1"]


# --- without -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("module", ["apparmor", "selinux"])
def test_where_the_module_is_not_active_a_label_is_refused_and_nothing_made(module: str) -> None:
    security = Security(**{module: "anything"})  # type: ignore[arg-type]
    if module in probe().labels:
        assert module in str(Sandbox(security=security).plan())
        return
    with pytest.raises(UnsupportedError, match=f"the {module} security module, which is not active here"):
        Sandbox(security=security).plan()
