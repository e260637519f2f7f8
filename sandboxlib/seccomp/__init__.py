"""
System call filters: profiles as values, and the compiler that makes programs of them.

Pure: nothing here makes a system call, so a filter can be made, read and tested for any machine.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sandboxlib.seccomp.compiler import compile  # noqa: A004 - as in re.compile
    from sandboxlib.seccomp.defaults import default
    from sandboxlib.seccomp.profile import Action, Arg, Op, Profile, Rule, Scope
    from sandboxlib.seccomp.ready import default_program

__all__ = ["Action", "Arg", "Op", "Profile", "Rule", "Scope", "compile", "default", "default_program"]

_HOME = {"compile": "compiler", "default": "defaults", "default_program": "ready"}


def __getattr__(name: str) -> object:
    # Loaded when first asked for: a program that never opens a sandbox pays nothing for them.
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import importlib

    value: object = getattr(importlib.import_module(f"{__name__}.{_HOME.get(name, 'profile')}"), name)
    globals()[name] = value
    return value
