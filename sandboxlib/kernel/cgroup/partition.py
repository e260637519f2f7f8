"""
Partitions: groups that have CPUs to themselves.

The kernel takes the word for one whether it can be or not, and a live one may become invalid by whatever
changes CPUs, of the group or of one above. It says so only to who reads the file again, as
``root invalid (REASON)``.

Kernel: cgroup-v2.rst, cpuset.cpus.partition.
"""

from __future__ import annotations

import os

from sandboxlib.cgroup import CGroup
from sandboxlib.errors import KernelError, UnsupportedError
from sandboxlib.kernel.cgroup import files

#: Which says whether its group is one.
FILE = "cpuset.cpus.partition"
_ADVICE = (
    "choose CPUs that no other group has asked for, and leave one to the group above, which has to "
    "be a partition itself, as the top of the hierarchy is"
)


def found(folder: str) -> dict[str, str]:
    """The partitions in *folder* and below that are valid, and what they are."""
    read = {below: files.find(f"{below}/{FILE}") for below in files.tree(folder)}
    return {below: text.strip() for below, text in read.items() if text in ("root\n", "isolated\n")}


def made(folder: str, wanted: str) -> None:
    """Raises: UnsupportedError: The kernel took the word and made no partition; it is a member again."""
    text = files.read(f"{folder}/{FILE}").strip()
    if text != wanted:
        # CPUs that are nobody's partition are shared with the siblings, as before.
        end(folder)
        raise UnsupportedError(
            f"cpuset_cpus_partition={wanted!r}",
            f"CPUs that can be split off there; the kernel says: {_reason(text)}",
            _ADVICE,
        )


def check(before: dict[str, str], folder: str, limits: CGroup) -> None:
    """
    Compare with those that were there *before* the *limits* of *folder* were changed.

    Raises:
        UnsupportedError: One of them is none any more, which was not asked for.
    """
    for below, word in before.items():
        if below == folder and (limits.cpuset_cpus_partition or FILE in dict(limits.unified or ())):
            continue
        text = files.read(f"{below}/{FILE}").strip()
        if text != word:
            raise UnsupportedError(
                "a change of CPUs above a partition" if below != folder else "a change of a partition's CPUs",
                f"CPUs that {below} can stay a partition with; the kernel says: {_reason(text)}",
                _ADVICE,
            )


def mend(before: dict[str, str], error: BaseException) -> None:
    """See to it that they are partitions again; *error* gets a note of one that cannot be."""
    for folder, word in reversed(before.items()):
        path = f"{folder}/{FILE}"
        try:
            if files.read(path).strip() != word:
                files.write(path, word)
            text = files.read(path).strip()
            if text != word:
                error.add_note(f"and {path} could not be set back: {text}")
        except KernelError as problem:
            error.add_note(f"and it could not be set back: {problem}")


def end(folder: str) -> None:
    """
    Let others have the CPUs. Raises: KernelError.

    On Linux 6.1 they do not come back with the folder's end, but some time after it.
    """
    path = f"{folder}/{FILE}"
    if os.path.exists(path):
        files.write(path, "member")


def _reason(text: str) -> str:
    return text.partition("(")[2].rstrip(")") or text


__all__ = ["FILE", "check", "end", "found", "made", "mend"]
