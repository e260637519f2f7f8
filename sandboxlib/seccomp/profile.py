"""
What a seccomp filter shall do, as frozen values: `Profile`, its `Rule`s, their `Arg`s.

A profile does nothing by itself; `sandboxlib.seccomp.compile` turns it into a program for one
machine. How rules combine is this library's own, simple and independent of their order:

* a rule matches a call when it names it, its `includes` and `excludes` hold, and all its `args` do;
* of all rules that match, the strictest action answers; between two error numbers, the earlier rule;
* when none matches, the profile's default answers;
* a call that is newer than every call the profile names gets ENOSYS, unless the default lets it
  pass, so that programs fall back to what the profile's author knew (runc does so, too);
* a call by an ABI that is not covered kills the process.

Kernel: seccomp(2).  Spec: runtime-spec config-linux.md#seccomp; Docker's default.json.
"""

from __future__ import annotations

import enum
import errno as _errno
import os
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import attrs

from sandboxlib.errors import SpecError
from sandboxlib.seccomp.abi import ABIS, FOREIGN

MASK64 = (1 << 64) - 1
MASK32 = (1 << 32) - 1

#: The largest error number that a filter can return (MAX_ERRNO of linux/err.h).
MAX_ERRNO = 4095

_FOREIGN = tuple(sorted({name for names in FOREIGN.values() for name in names}))


class Action(enum.Enum):
    """What happens to a call, from the strictest to the most permissive."""

    KILL_PROCESS = "SCMP_ACT_KILL_PROCESS"
    KILL_THREAD = "SCMP_ACT_KILL_THREAD"
    TRAP = "SCMP_ACT_TRAP"
    ERRNO = "SCMP_ACT_ERRNO"
    LOG = "SCMP_ACT_LOG"
    ALLOW = "SCMP_ACT_ALLOW"


class Op(enum.Enum):
    """How an argument is compared; all comparisons are unsigned."""

    NE = "SCMP_CMP_NE"
    LT = "SCMP_CMP_LT"
    LE = "SCMP_CMP_LE"
    EQ = "SCMP_CMP_EQ"
    GE = "SCMP_CMP_GE"
    GT = "SCMP_CMP_GT"
    MASKED_EQ = "SCMP_CMP_MASKED_EQ"


def _whole(field: str, value: object, maximum: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= maximum:
        raise SpecError(field, value, f"a whole number from 0 to {maximum}")
    return value


def _name(value: object) -> str:
    if not isinstance(value, str) or not value.isascii() or not value.isidentifier():
        raise SpecError("names", value, "the name of a system call, such as 'openat'")
    return value


def _names(value: Iterable[str]) -> tuple[str, ...]:
    if isinstance(value, str):
        return (_name(value),)
    names = tuple(map(_name, value))
    if not names:
        raise SpecError("names", names, "one or more names of system calls")
    return names


def _capability(value: object) -> str:
    if not isinstance(value, str) or not value.startswith("CAP_") or not value.isidentifier():
        raise SpecError("capabilities", value, "the name of a capability, such as 'CAP_SYS_ADMIN'")
    return value


def _architectures(value: Iterable[str]) -> frozenset[str]:
    names = (value,) if isinstance(value, str) else tuple(value)
    for name in names:
        if name not in ABIS:
            raise SpecError("architectures", name, f"one of {', '.join(ABIS)}")
    # A machine's own ABI is always covered; to name it says nothing.
    return frozenset(names).intersection(_FOREIGN)


def _capabilities(value: Iterable[str]) -> frozenset[str]:
    return frozenset(map(_capability, value))


def _arches(value: Iterable[str]) -> frozenset[str]:
    return frozenset(value)


def _conditions(value: Iterable[Arg]) -> tuple[Arg, ...]:
    return tuple(value)


def _together(value: Iterable[Rule]) -> tuple[Rule, ...]:
    return tuple(value)


def _kernel(value: object) -> tuple[int, int] | None:
    if value is None:
        return None
    if not isinstance(value, tuple) or len(value) != 2:
        raise SpecError("min_kernel", value, "two whole numbers, such as (5, 12)")
    return _whole("min_kernel", value[0], MASK32), _whole("min_kernel", value[1], MASK32)


def _member(kind: type[enum.Enum]) -> Callable[[object, attrs.Attribute[Any], object], None]:
    def validate(_: object, attribute: attrs.Attribute[Any], value: object) -> None:
        if not isinstance(value, kind):
            raise SpecError(attribute.name, value, f"one of {kind.__name__}.{', '.join(kind.__members__)}")

    return validate


def _up_to(maximum: int) -> Callable[[object, attrs.Attribute[int], int], None]:
    def validate(_: object, attribute: attrs.Attribute[int], value: int) -> None:
        _whole(attribute.name, value, maximum)

    return validate


@attrs.frozen
class Arg:
    """
    A condition on one argument of a call.

    Pointers cannot be followed. An ``int`` argument is only the low 32 bits of what is compared, and
    a program may put anything above them (CVE-2019-10063): compare those with `Arg.int32`.

    Attributes:
        index: Which argument, 0 to 5.
        op: The comparison.
        value: What it is compared with, unsigned, 64 bits.
        mask: For MASKED_EQ, the bits that are looked at: ``arg & mask == value & mask``.
    """

    index: int = attrs.field(validator=_up_to(5))
    op: Op = attrs.field(validator=_member(Op))
    value: int = attrs.field(validator=_up_to(MASK64))
    mask: int = attrs.field(default=MASK64, validator=_up_to(MASK64))

    def __attrs_post_init__(self) -> None:
        if self.mask != MASK64 and self.op is not Op.MASKED_EQ:
            raise SpecError("mask", self.mask, f"left out with {self.op.name}")

    @classmethod
    def int32(cls, index: int, value: int, mask: int = MASK32) -> Arg:
        """Return the condition that an ``int`` argument, as the kernel truncates it, has these bits."""
        return cls(index, Op.MASKED_EQ, value, mask & MASK32)


@attrs.frozen(kw_only=True)
class Scope:
    """
    Where a rule applies.

    Attributes:
        capabilities: Names such as ``CAP_SYS_ADMIN``; those of the sandbox's bounding set count.
        arches: Machines, as ``os.uname().machine`` says.
        min_kernel: Major and minor version, compared with the running kernel's.
    """

    capabilities: frozenset[str] = attrs.field(default=(), converter=_capabilities)
    arches: frozenset[str] = attrs.field(default=(), converter=_arches)
    min_kernel: tuple[int, int] | None = attrs.field(default=None, converter=_kernel)


EVERYWHERE = Scope()


@attrs.frozen(kw_only=True)
class Rule:
    """
    An answer for some system calls.

    Attributes:
        names: The calls. A name that the machine does not have is passed over when the rule allows
            more than the default does, and refused by `compile` when it would forbid something.
        action: The answer.
        errno: The error number for `Action.ERRNO`; EPERM if not given. None for other actions.
        args: Conditions that all must hold.
        includes: The rule is left out unless all of it holds (all capabilities, one of the arches).
        excludes: The rule is left out if any of it holds.
        comment: For readers.
    """

    names: tuple[str, ...] = attrs.field(converter=_names)
    action: Action = attrs.field(default=Action.ALLOW, validator=_member(Action))
    errno: int | None = None
    args: tuple[Arg, ...] = attrs.field(default=(), converter=_conditions)
    includes: Scope = EVERYWHERE
    excludes: Scope = EVERYWHERE
    comment: str = attrs.field(default="", eq=False)

    def __attrs_post_init__(self) -> None:
        object.__setattr__(self, "errno", _errno_of("errno", self.action, self.errno))

    def applies(self, arch: str, capabilities: frozenset[str], kernel: tuple[int, int]) -> bool:
        """Return whether the rule counts on machine *arch* with these capabilities and this kernel."""
        keep, drop = self.includes, self.excludes
        return not (
            (drop.arches and arch in drop.arches)
            or (drop.capabilities & capabilities)
            or (drop.min_kernel and kernel >= drop.min_kernel)
            or (keep.arches and arch not in keep.arches)
            or (keep.capabilities - capabilities)
            or (keep.min_kernel and kernel < keep.min_kernel)
        )


# The hash of a profile is the key of the cache of compiled programs, so it is computed only once.
@attrs.frozen(kw_only=True, cache_hash=True)
class Profile:
    """
    Which system calls a sandbox may make.

    Attributes:
        rules: See the head of this module for how they combine.
        default: The answer when no rule matches.
        default_errno: Its error number for `Action.ERRNO`; EPERM if not given.
        architectures: ABIs besides the machine's own that are let in and filtered by the same
            names: ``i386`` and ``x32`` on x86_64, ``arm`` on aarch64. Others are killed.

    Example:
        >>> Profile(rules=[Rule(names=["read", "write", "exit_group"])]).default
        <Action.ERRNO: 'SCMP_ACT_ERRNO'>
    """

    rules: tuple[Rule, ...] = attrs.field(default=(), converter=_together)
    default: Action = attrs.field(default=Action.ERRNO, validator=_member(Action))
    default_errno: int | None = None
    architectures: frozenset[str] = attrs.field(default=(), converter=_architectures)

    def __attrs_post_init__(self) -> None:
        number = _errno_of("default_errno", self.default, self.default_errno)
        object.__setattr__(self, "default_errno", number)

    @classmethod
    def from_json(cls, source: str | bytes | Mapping[str, object]) -> Profile:
        """
        Read a profile in Docker's form or in the OCI runtime specification's (``linux.seccomp``).

        Args:
            source: The JSON text, or what it was parsed to.

        Raises:
            SpecError: It is not such a profile, or asks for what cannot be done here (a tracer, a
                notification socket); the error's field says where, as ``syscalls[3].args[0].op``.
        """
        from sandboxlib.seccomp import docker

        return docker.read(source)

    @classmethod
    def from_file(cls, path: str | os.PathLike[str]) -> Profile:
        """Read a profile from a JSON file. Raises: SpecError, as `from_json`; OSError."""
        with open(path, "rb") as file:
            return cls.from_json(file.read())


def _errno_of(field: str, action: Action, number: int | None) -> int | None:
    if action is not Action.ERRNO:
        if number is not None:
            raise SpecError(field, number, f"left out with {action.name}")
        return None
    return _errno.EPERM if number is None else _whole(field, number, MAX_ERRNO)
