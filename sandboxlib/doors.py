"""
Where the library ends: what comes out of it is a `SandboxError` that says what it was for.

Most steps tell by themselves which call of the kernel failed. A call of Python's, such as one for a file on
a disk that is full, knows its path at most; here it becomes a `KernelError` that says the rest.
"""

from __future__ import annotations

import errno
import functools
import io
import os
import sys
from collections.abc import Callable, Mapping
from types import CodeType, FunctionType, TracebackType
from typing import Any, TypeVar

from sandboxlib.errors import KernelError, SandboxError

C = TypeVar("C", bound=type)
F = TypeVar("F", bound=Callable[..., Any])
#: What callers call without its name.
_SPECIAL = frozenset({"__enter__", "__exit__", "__aenter__", "__aexit__"})
#: This library, and others that work for it; and what goes for whoever has called it.
_OURS = frozenset({"sandboxlib", "attr", "attrs", "cffi", "jeepney", "msgspec", "pyroute2", "urllib3"})
_NEUTRAL = sys.stdlib_module_names | {"trio", "outcome"}
_GENERATOR, _COROUTINE = 0x20, 0x80  # of code objects: inspect.CO_GENERATOR, inspect.CO_COROUTINE
_LONGEST = 200


def told(error: OSError, step: str) -> OSError:
    """
    The `KernelError` for *error*, which came out of *step*.

    It is handed back as it is where no call of the library's has failed: functions of a caller's that are
    called meanwhile, such as the handler of a signal, may raise what they like.
    """
    if isinstance(error, KernelError):
        error.tell(step)
        return error
    # A file of Python's that is open the other way: what the call would have given, had it been made.
    wrong_way = isinstance(error, io.UnsupportedOperation)
    number = errno.EBADF if wrong_way else error.errno
    # Those of other modules, such as socket.gaierror, have numbers of their own.
    foreign = isinstance(error, SandboxError) or (type(error).__module__ != "builtins" and not wrong_way)
    if foreign or number is None or (place := _place(error.__traceback__)) is None:
        return error
    paths = (error.filename, error.filename2)
    shown = ", ".join(f'"{os.fsdecode(path)}"' for path in paths if isinstance(path, str | bytes))
    # Where nothing more can be opened, its source cannot be read either.
    call = "open" if number in (errno.EMFILE, errno.ENFILE) else _call(*place)
    return KernelError(number, f"{call}({shown})", step)


def _place(trace: TracebackType | None) -> tuple[CodeType, int] | None:
    """Where it was raised: the code and the instruction. None where that is a caller's."""
    found = None
    while trace is not None:
        name = trace.tb_frame.f_globals.get("__name__", "").partition(".")[0]
        if name in _OURS:
            found = trace.tb_frame.f_code, trace.tb_lasti
        elif name not in _NEUTRAL:
            found = None
        trace = trace.tb_next
    return found


def _call(code: CodeType, instruction: int) -> str:
    """What was called there, as the source has it."""
    import linecache
    from itertools import islice

    nowhere: tuple[int | None, ...] = (None,) * 4
    line, _, begin, _ = next(islice(code.co_positions(), instruction // 2, None), nowhere)
    if line is not None and begin is not None:
        source = linecache.getline(code.co_filename, line).encode()[begin:].decode(errors="replace")
        name = source.partition("(")[0].rpartition(".")[2].strip()
        if name.isidentifier():
            return name
    return code.co_name.strip("_<>")


def door(function: F) -> F:
    """
    *function*, or method, whose errors say that they came out of it.

    The first of its arguments is told of, too, if it is a text or a path.
    """
    code: CodeType = function.__code__
    names = code.co_varnames[: code.co_argcount]
    bound = names[:1] in (("self",), ("cls",))

    def step(args: tuple[Any, ...], options: Mapping[str, Any]) -> str:
        owner = ""
        if bound:
            cls = args[0] if isinstance(args[0], type) else type(args[0])
            owner = f"{cls.__name__}."
        given = (*args, *(options[name] for name in names if name in options))
        value = given[bound] if len(given) > bound else None
        shown = repr(os.fspath(value)) if isinstance(value, str | bytes | os.PathLike) else ""
        return f"{owner}{function.__name__}({shown if len(shown) <= _LONGEST else shown[:_LONGEST] + '…'})"

    async def awaited(*args: Any, **options: Any) -> Any:
        try:
            return await function(*args, **options)
        except OSError as error:
            if (found := told(error, step(args, options))) is error:
                raise
            raise found from error

    def generated(*args: Any, **options: Any) -> Any:
        try:
            return (yield from function(*args, **options))
        except OSError as error:
            if (found := told(error, step(args, options))) is error:
                raise
            raise found from error

    def called(*args: Any, **options: Any) -> Any:
        try:
            return function(*args, **options)
        except OSError as error:
            if (found := told(error, step(args, options))) is error:
                raise
            raise found from error

    through: Callable[..., Any] = called
    if code.co_flags & _COROUTINE:
        through = awaited
    elif code.co_flags & _GENERATOR:
        through = generated
    return functools.wraps(function)(through)  # type: ignore[return-value]


def doors(cls: C) -> C:
    """The class, with a door in each of its verbs."""
    for attribute, member in list(vars(cls).items()):
        if attribute.startswith("_") and attribute not in _SPECIAL:
            continue
        if isinstance(member, staticmethod | classmethod):
            setattr(cls, attribute, type(member)(door(member.__func__)))
        elif isinstance(member, property) and member.fget is not None:
            setattr(cls, attribute, member.getter(door(member.fget)))
        elif isinstance(member, FunctionType):
            setattr(cls, attribute, door(member))
    return cls


__all__ = ["door", "doors", "told"]
