"""
A plain user for tests that are started by root, without changing the machine.

Adding a user would outlive a test that is killed. So a script is run in a mount
namespace of its own, where

- /etc/passwd, /etc/group, /etc/subuid and /etc/subgid have one more line each (when
  subordinate ids are asked for: newuidmap(1) wants to know its caller by name),
- /home is an empty tmpfs with this user's home folder and XDG_RUNTIME_DIR,
- a folder on the way to the Python or to the checkout that only root may enter (as
  /root) shows, at the same path, nothing but what has to be reached through it.

The script then runs as a uid that nothing else uses, with no groups and no
capabilities. Whoever runs the tests without root runs it as who he is.

This file is also the program that does it: ``python users.py SPEC COMMAND...`` with
SPEC the JSON text of the attributes of `Spec`.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import sysconfig
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

CHECKOUT = Path(__file__).resolve().parent.parent
#: Above the ids of real users, below those that systemd gives out, and not nobody's.
UID = 64_042
NAME = "sandboxlib-test"
SUBORDINATE = (2_000_000_000, 65_536)


def why_not() -> str | None:
    """Why root cannot become a plain user here; None if it can."""
    done = subprocess.run(_command(["-c", ""], subids=False), capture_output=True, text=True, check=False)
    return None if done.returncode == 0 else (done.stderr.strip().splitlines() or ["no reason given"])[-1]


def run(
    script: str,
    *arguments: str,
    subids: bool = False,
    files: Mapping[str, str] | None = None,
    env: Mapping[str, str] | None = None,
    timeout: float = 60,
    check: bool = True,
) -> subprocess.CompletedProcess[str]:
    """
    Run a Python *script* as a plain user; its working directory is the user's home.

    Args:
        script: Source text; sandboxlib can be imported, `sys.argv[1:]` are *arguments*.
        arguments: What the script gets.
        subids: Give the user a range of subordinate ids. Who runs the tests without root
            has what he has.
        files: Texts that stand in files of the machine for the script, as root only; not set-uid.
        env: More variables of the environment.
        timeout: Seconds, then the script is killed and the test fails.
        check: Fail with the script's output if it does not exit with 0.
    """
    command = [sys.executable, "-c", script, *arguments]
    environment = {"PATH": "/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin", "LANG": "C.UTF-8"}
    kept = ("SANDBOXLIB_LAB", "XDG_RUNTIME_DIR", "HOME", "USER") if os.geteuid() else ("SANDBOXLIB_LAB",)
    environment |= {name: os.environ[name] for name in kept if name in os.environ}
    environment |= {
        "PYTHONPATH": os.environ.get("PYTHONPATH", ""),
        "PYTHONDONTWRITEBYTECODE": "1",
        **(env or {}),
    }
    place = None
    if os.geteuid() == 0:
        command = _command(command[1:], subids=subids, files=files)
    elif os.access(os.path.expanduser("~"), os.W_OK):
        # As for the plain user whom root becomes: the checkout need not be writable.
        place = os.path.expanduser("~")
    done = subprocess.run(
        command, env=environment, capture_output=True, text=True, timeout=timeout, check=False, cwd=place
    )
    if check and done.returncode:
        message = f"the script of the plain user ended with {done.returncode}\n{done.stdout}\n{done.stderr}"
        raise AssertionError(message)
    return done


def _command(
    python_arguments: Sequence[str], *, subids: bool, files: Mapping[str, str] | None = None
) -> list[str]:
    """The command line that runs this file, and through it Python with *python_arguments*."""
    reach = {sys.prefix, sys.base_prefix, sys.exec_prefix, str(CHECKOUT), os.path.dirname(sys.executable)}
    reach |= {os.path.realpath(sys.executable).rsplit("/", 2)[0], sysconfig.get_path("stdlib")}
    reach |= {entry for entry in sys.path if os.path.isdir(entry)}
    paths = sorted({os.path.abspath(path) for path in reach} | {os.path.realpath(path) for path in reach})
    spec = json.dumps({"reach": paths, "subids": subids, "files": dict(files or {})})
    return [sys.executable, "-I", "-S", os.path.abspath(__file__), spec, sys.executable, *python_arguments]


# --- what runs as a program ---------------------------------------------------------------------------

CLONE_NEWNS = 0x00020000
MS_BIND, MS_REC, MS_PRIVATE = 4096, 16384, 1 << 18


def _call(name: str, *arguments: Any) -> None:
    """Call a function of the C library; a failure ends this program with its errno."""
    import ctypes

    libc = ctypes.CDLL(None, use_errno=True)
    encoded = [value.encode() if isinstance(value, str) else value for value in arguments]
    if getattr(libc, name)(*encoded):
        shown = ", ".join(map(str, arguments))
        sys.exit(f"{name}({shown}): {os.strerror(ctypes.get_errno())}")


def _hidden(path: str) -> str | None:
    """The topmost folder on the way to *path* which the plain user may not enter."""
    for folder in reversed(Path(path).parents):
        if not folder.stat().st_mode & 0o001:
            return str(folder)
    return None


def _cover(folder: str, paths: Sequence[str]) -> None:
    """Mount an empty tmpfs on *folder*, and in it again those of *paths* that lie below it."""
    below = [path for path in paths if Path(path) != Path(folder) and Path(path).is_relative_to(folder)]
    # What lies below another of them comes with it.
    tops = [path for path in below if not any(Path(other) in Path(path).parents for other in below)]
    handles = [(path, os.open(path, os.O_PATH)) for path in tops]
    _call("mount", "tmpfs", folder, "tmpfs", 0, "mode=755,size=16M")
    for path, handle in handles:
        if os.path.isdir(f"/proc/self/fd/{handle}"):
            os.makedirs(path, exist_ok=True)
        else:
            os.makedirs(os.path.dirname(path), exist_ok=True)
            Path(path).touch()
        _call("mount", f"/proc/self/fd/{handle}", path, None, MS_BIND | MS_REC, None)
        os.close(handle)


def _add_line(file: str, line: str) -> None:
    """Show *file* with one line more, from the home folder's tmpfs."""
    copy = Path("/home", os.path.basename(file))
    before = Path(file).read_text() if os.path.exists(file) else ""
    copy.write_text(f"{before.rstrip()}\n{line}\n".lstrip())
    copy.chmod(0o644)
    if not os.path.exists(file):
        sys.exit(f"{file} does not exist: install uidmap")
    _call("mount", str(copy), file, None, MS_BIND, None)


def main() -> None:
    """Make the view, become the user, run the command."""
    os.umask(0o022)
    spec, command = json.loads(sys.argv[1]), sys.argv[2:]
    _call("unshare", CLONE_NEWNS)
    _call("mount", "none", "/", None, MS_REC | MS_PRIVATE, None)
    _cover("/home", spec["reach"])
    for path in spec["reach"]:
        while (folder := _hidden(path)) is not None:
            _cover(folder, spec["reach"])
        if not os.stat(path).st_mode & 0o001:
            sys.exit(f"{path} may not be entered by a plain user: chmod o+rx it")
    home = Path("/home", NAME)
    runtime = home / ".run"
    for made in (home, runtime):
        made.mkdir(mode=0o700)
        os.chown(made, UID, UID)
    if spec["subids"]:
        start, number = SUBORDINATE
        _add_line("/etc/passwd", f"{NAME}:x:{UID}:{UID}::{home}:/bin/sh")
        _add_line("/etc/group", f"{NAME}:x:{UID}:")
        _add_line("/etc/subuid", f"{NAME}:{start}:{number}")
        _add_line("/etc/subgid", f"{NAME}:{start}:{number}")
    for path, text in spec["files"].items():
        shown = Path("/home", f"{os.path.basename(path)}.shown")
        shown.write_text(text)
        shown.chmod(0o755)
        _call("mount", str(shown), path, None, MS_BIND, None)
    os.environ |= {"HOME": str(home), "USER": NAME, "XDG_RUNTIME_DIR": str(runtime)}
    os.chdir(home)
    os.setgroups([])
    os.setresgid(UID, UID, UID)
    os.setresuid(UID, UID, UID)
    os.execv(command[0], command)


if __name__ == "__main__":
    main()
