"""
Read a seccomp profile written as JSON, for Docker or for an OCI runtime.

Both forms share most of their fields; one reader takes either and refuses what it does not know,
because a misspelt ``excludes`` would be a hole. What differs from a `Profile`:

* Docker writes machines as Go does (``amd64``), ABIs as libseccomp does (``SCMP_ARCH_X86``).
* Two conditions on the same argument are alternatives there, as Docker, runc and crun do it, because
  libseccomp cannot express "both". In a `Rule` all conditions must hold.
* MASKED_EQ has its mask in ``value`` and the value in ``valueTwo``.

Spec: runtime-spec config-linux.md#seccomp; moby profiles/seccomp/seccomp.go; the fields ``errno`` and
``defaultErrno`` are podman's (containers/common pkg/seccomp).
"""

from __future__ import annotations

import errno as _errno
from collections.abc import Iterator, Mapping
from typing import Any, NoReturn

from sandboxlib.errors import SpecError
from sandboxlib.seccomp.profile import EVERYWHERE, MASK64, MAX_ERRNO, Action, Arg, Op, Profile, Rule, Scope

_ACTIONS = {action.value: action for action in Action} | {"SCMP_ACT_KILL": Action.KILL_THREAD}
_OPS = {op.value: op for op in Op}

#: What is a valid action elsewhere, and why it is refused here.
_SUPERVISED = {
    "SCMP_ACT_NOTIFY": "an action that needs no supervisor (SCMP_ACT_NOTIFY needs a listening process)",
    "SCMP_ACT_TRACE": "an action that needs no supervisor (SCMP_ACT_TRACE needs a tracer)",
}

# Lists that are written, and read, as words.
_words = str.split

#: Go's names of machines, as ``os.uname().machine`` has them; None where we run on none of them.
_MACHINES: dict[str, str | None] = {
    "amd64": "x86_64",
    "arm64": "aarch64",
    **dict.fromkeys(
        _words(
            "x86 x32 386 arm loong64 m68k mips mips64 mips64n32 mipsel mipsel64 mipsel64n32 parisc parisc64 "
            "ppc ppc64 ppc64le riscv64 s390 s390x"
        )
    ),
}

_PREFIX = "SCMP_ARCH_"
_ABIS = {"X86_64": "x86_64", "X86": "i386", "X32": "x32", "AARCH64": "aarch64", "ARM": "arm"}
_OTHER_ABIS = frozenset(
    _words(
        "LOONGARCH64 M68K MIPS MIPS64 MIPS64N32 MIPSEL MIPSEL64 MIPSEL64N32 PARISC PARISC64 PPC PPC64 "
        "PPC64LE RISCV64 S390 S390X SHEB SH"
    )
)

_PROFILE_KEYS = frozenset(
    _words(
        "defaultAction defaultErrnoRet defaultErrno architectures archMap syscalls flags listenerPath "
        "listenerMetadata comment"
    )
)
_RULE_KEYS = frozenset(_words("name names action errnoRet errno args comment includes excludes"))


def read(source: str | bytes | Mapping[str, object]) -> Profile:
    """Return the profile in *source*: JSON text or what it was parsed to. Raises: SpecError."""
    if isinstance(source, (str, bytes)):
        source = _parse(source)
    document = _mapping("seccomp", source, _PROFILE_KEYS)
    for key in ("listenerPath", "listenerMetadata"):
        if document.get(key):
            raise SpecError(key, document[key], "left out: notifications are not supported")
    for place, flag in enumerate(_sequence("flags", document.get("flags"))):
        # A new process has one thread, so this flag changes nothing; the others would.
        if flag != "SECCOMP_FILTER_FLAG_TSYNC":
            raise SpecError(f"flags[{place}]", flag, "SECCOMP_FILTER_FLAG_TSYNC, or left out")
    if "defaultAction" not in document:
        raise SpecError("defaultAction", None, "given")
    default = _action("defaultAction", document["defaultAction"])
    rules = [
        rule
        for place, item in enumerate(_sequence("syscalls", document.get("syscalls")))
        for rule in _rules(f"syscalls[{place}]", item)
    ]
    return Profile(
        rules=tuple(rules),
        default=default,
        default_errno=_number_of_error("default", document, default),
        architectures=frozenset(_architectures(document)),
    )


def _parse(text: str | bytes) -> Any:
    import json

    def no_twice(pairs: list[tuple[str, object]]) -> dict[str, object]:
        found = dict(pairs)
        if len(found) != len(pairs):
            raise SpecError("seccomp", [key for key, _ in pairs], "an object that has each key once")
        return found

    try:
        return json.loads(text, object_pairs_hook=no_twice)
    except (json.JSONDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise SpecError("seccomp", _short(text), f"JSON ({error})") from None


def _short(text: str | bytes) -> str | bytes:
    return text if len(text) <= 60 else text[:60]


def _mapping(field: str, value: object, keys: frozenset[str]) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise SpecError(field, value, "an object")
    for key in value:
        if key not in keys:
            raise SpecError(field, key, f"an object with only {', '.join(sorted(keys))}")
    return value


def _sequence(field: str, value: object) -> list[Any]:
    """Return a list; the JSON that Go writes has null for an empty one."""
    if value is None:
        return []
    if not isinstance(value, (list, tuple)):
        raise SpecError(field, value, "a list")
    return list(value)


def _action(field: str, value: object) -> Action:
    action = _ACTIONS.get(value) if isinstance(value, str) else None
    if action is None:
        allowed = _SUPERVISED.get(value) if isinstance(value, str) else None
        raise SpecError(field, value, allowed or f"one of {', '.join(_ACTIONS)}")
    return action


def _number_of_error(prefix: str, item: Mapping[str, Any], action: Action, where: str = "") -> int | None:
    """Return the error number that ``errnoRet`` or, by name and first, ``errno`` gives."""
    number_key, name_key = ("defaultErrnoRet", "defaultErrno") if prefix else ("errnoRet", "errno")
    number, name = item.get(number_key), item.get(name_key)
    value: int | None = None
    field = f"{where}{name_key if name else number_key}"
    if number is not None:
        value = _whole(f"{where}{number_key}", number, MAX_ERRNO)
    if name:
        value = getattr(_errno, name, None) if isinstance(name, str) and name.startswith("E") else None
        if not isinstance(value, int):
            raise SpecError(field, name, "the name of an error, such as EPERM")
    if value is not None and action is not Action.ERRNO:
        raise SpecError(field, value, "left out: only SCMP_ACT_ERRNO has an error number")
    return value


def _whole(field: str, value: object, maximum: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= maximum:
        raise SpecError(field, value, f"a whole number from 0 to {maximum}")
    return value


def _architectures(document: Mapping[str, Any]) -> Iterator[str]:
    listed = _sequence("architectures", document.get("architectures"))
    mapped = _sequence("archMap", document.get("archMap"))
    if listed and mapped:
        raise SpecError("architectures", listed, "left out when archMap is given")
    for place, item in enumerate(listed):
        yield from _abi(f"architectures[{place}]", item)
    for place, item in enumerate(mapped):
        field = f"archMap[{place}]"
        entry = _mapping(field, item, frozenset({"architecture", "subArchitectures"}))
        # Which entry counts is the machine's matter; an ABI belongs to one machine only, and the
        # compiler takes only the machine's own.
        tuple(_abi(f"{field}.architecture", entry.get("architecture")))
        for number, sub in enumerate(_sequence(f"{field}.subArchitectures", entry.get("subArchitectures"))):
            yield from _abi(f"{field}.subArchitectures[{number}]", sub)


def _abi(field: str, value: object) -> Iterator[str]:
    short = value.removeprefix(_PREFIX) if isinstance(value, str) and value.startswith(_PREFIX) else ""
    if short in _ABIS:
        yield _ABIS[short]
    elif short not in _OTHER_ABIS:
        raise SpecError(field, value, f"an architecture such as {_PREFIX}X86_64")


def _rules(field: str, item: object) -> Iterator[Rule]:
    entry = _mapping(field, item, _RULE_KEYS)
    names = tuple(_sequence(f"{field}.names", entry.get("names")))
    if entry.get("name"):
        if names:
            raise SpecError(f"{field}.name", entry["name"], "left out when names is given")
        names = (entry["name"],)
    action = _action(f"{field}.action", entry.get("action"))
    error = _number_of_error("", entry, action, f"{field}.")
    args = [
        _arg(f"{field}.args[{place}]", arg)
        for place, arg in enumerate(_sequence(f"{field}.args", entry.get("args")))
    ]
    try:
        # One argument twice: each condition is a rule of its own.
        twice = len({arg.index for arg in args}) < len(args)
        for together in [[arg] for arg in args] if twice else [args]:
            yield Rule(
                names=names,
                action=action,
                errno=error,
                args=tuple(together),
                includes=_scope(f"{field}.includes", entry.get("includes")),
                excludes=_scope(f"{field}.excludes", entry.get("excludes")),
                comment=str(entry.get("comment") or ""),
            )
    except SpecError as problem:
        _again(field, problem)


def _again(field: str, problem: SpecError) -> NoReturn:
    """Raise what a value object complained about, with the place in the document in front."""
    if problem.field.startswith("syscalls["):
        raise problem
    raise SpecError(f"{field}.{problem.field}", problem.value, problem.allowed) from None


def _arg(field: str, item: object) -> Arg:
    entry = _mapping(field, item, frozenset({"index", "value", "valueTwo", "op"}))
    name = entry.get("op")
    op = _OPS.get(name) if isinstance(name, str) else None
    if op is None:
        raise SpecError(f"{field}.op", name, f"one of {', '.join(_OPS)}")
    index = _whole(f"{field}.index", entry.get("index"), 5)
    value = _whole(f"{field}.value", entry.get("value"), MASK64)
    second = _whole(f"{field}.valueTwo", entry.get("valueTwo") or 0, MASK64)
    if op is Op.MASKED_EQ:
        return Arg(index, op, second, value)
    # Some writers fill the unused field; libseccomp ignores it, and so it cannot be a limit.
    return Arg(index, op, value)


def _scope(field: str, item: object) -> Scope:
    if item is None:
        return EVERYWHERE
    entry = _mapping(field, item, frozenset({"caps", "arches", "minKernel"}))
    arches = []
    for place, arch in enumerate(_sequence(f"{field}.arches", entry.get("arches"))):
        if not isinstance(arch, str) or arch not in _MACHINES:
            raise SpecError(f"{field}.arches[{place}]", arch, "an architecture such as amd64")
        # A machine that we never run on stays in the list, so that the list is not empty.
        arches.append(_MACHINES[arch] or arch)
    caps = _sequence(f"{field}.caps", entry.get("caps"))
    try:
        return Scope(
            capabilities=caps,
            arches=arches,
            min_kernel=_version(f"{field}.minKernel", entry.get("minKernel")),
        )
    except SpecError as problem:
        if problem.field != "capabilities":
            raise
        raise SpecError(f"{field}.caps", problem.value, problem.allowed) from None


def _version(field: str, value: object) -> tuple[int, int] | None:
    if not value:
        return None
    parts = value.split(".") if isinstance(value, str) else []
    if len(parts) != 2 or not all(part.isascii() and part.isdigit() for part in parts):
        raise SpecError(field, value, 'a kernel version such as "4.8"')
    return int(parts[0]), int(parts[1])
