"""Imports go down only, heavy modules load late, and no module grows beyond what one can read."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

CHECKOUT = Path(__file__).resolve().parents[2]
PACKAGE = CHECKOUT / "sandboxlib"

# Each layer with what it may import, itself included where its modules know each other. What is not here is
# the outside, which `ONLY_IN` is about.
LAYERS: dict[str, set[str]] = {
    "errors": {"errors"},
    "values": {"errors", "values"},
    "seccomp": {"errors", "values", "seccomp"},
    "plan": {"errors", "values", "seccomp", "plan"},
    "kernel": {"errors", "values", "kernel", "native"},
    "image": {"errors", "values", "kernel", "image"},
    "build": {"errors", "values", "kernel", "image", "build"},
    "engine": {"errors", "values", "seccomp", "plan", "kernel", "image", "build", "engine"},
    "faces": {"errors", "values", "plan", "image", "engine", "faces"},
    "top": {"errors", "values", "plan", "image", "engine", "faces", "kernel", "top"},
}
# The layer of each module or package directly below sandboxlib. A new one has to be entered here.
MEMBERS: dict[str, str] = {
    "errors": "errors",
    "hints": "errors",
    "doors": "errors",
    "forks": "errors",
    "quantity": "values",
    "bounds": "values",
    "result": "values",
    "host": "values",
    "namespace": "values",
    "cgroup": "values",
    "cgroup_fields": "values",
    "reference": "values",
    "addresses": "values",
    "rootfs": "values",
    "merged": "values",
    "ranges": "values",
    "signals": "values",
    "mount": "values",
    "network": "values",
    "security": "values",
    "limits": "values",
    "spec": "values",
    "seccomp": "seccomp",
    "plan": "plan",
    "kernel": "kernel",
    "_native": "native",
    "image": "image",
    "build": "build",
    "engine": "engine",
    "blocking": "faces",
    "files": "faces",
    "process": "faces",
    "alone": "faces",
    "from_image": "faces",
    "images": "faces",
    "running": "faces",
    "trio_images": "faces",
    "trio": "faces",
    "trio_files": "faces",
    "trio_process": "faces",
    "trio_waiter": "faces",
    "asyncio_waiter": "faces",
    "__init__": "top",
    "__main__": "top",
    "cli": "top",
    "cli_images": "top",
    "doctor": "top",
    "surroundings": "top",
    "pytest_plugin": "top",
}
# Functions in which a value may reach upwards: what opens it, and what loads a name when it is first used.
DOORS = {"open", "__getattr__"}
# Values that stand for something which is there whether it is open or not have more of them.
MORE_DOORS = {"mount.py": {"list", "prune", "remove", "path"}}  # volumes, on disk
# Modules from outside, or the native one, and where alone they may be imported.
ONLY_IN = {
    "sandboxlib._native": ("kernel/",),
    "cffi": (),
    "pyroute2": ("kernel/",),
    "jeepney": ("kernel/bus.py",),
    "msgspec": ("image/", "build/"),
    "e2b_dockerfile_utils": ("build/dockerfile.py",),
    "urllib3": ("image/",),
    "compression": ("image/",),
    "backports": ("image/",),
    "trio": ("trio.py", "trio_process.py", "trio_images.py", "trio_waiter.py"),
    "asyncio": ("asyncio_waiter.py",),
}
# What `import sandboxlib` must not load, for the time it takes or the threads it starts.
HEAVY = [
    "trio",
    "pyroute2",
    "urllib3",
    "http",
    "ssl",
    "socket",
    "asyncio",
    "msgspec",
    "platformdirs",
    "json",
    "jeepney",
]


class Import(NamedTuple):
    """One import: in which file and line, what, inside which functions, and whether for types only."""

    file: str
    line: int
    module: str
    inside: tuple[str, ...]
    for_types: bool

    def __str__(self) -> str:
        return f"sandboxlib/{self.file}:{self.line} imports {self.module}"


def imports(source: str, file: str) -> Iterator[Import]:
    """All imports of a module, as absolute names."""

    def walk(node: ast.AST, inside: tuple[str, ...], for_types: bool) -> Iterator[Import]:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.Import):
                for alias in child.names:
                    yield Import(file, child.lineno, alias.name, inside, for_types)
            elif isinstance(child, ast.ImportFrom):
                assert child.level == 0, f"sandboxlib/{file}:{child.lineno}: imports are absolute here"
                module = child.module or ""
                for alias in child.names:
                    # `from sandboxlib import errors` is about the module, not about the package.
                    full = f"{module}.{alias.name}"
                    is_module = module.split(".")[0] == "sandboxlib" and exists(full)
                    yield Import(file, child.lineno, full if is_module else module, inside, for_types)
            elif isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef)):
                yield from walk(child, (*inside, child.name), for_types)
            elif isinstance(child, ast.If) and ast.unparse(child.test) in {
                "TYPE_CHECKING",
                "typing.TYPE_CHECKING",
            }:
                yield from walk(child, inside, True)
            else:
                yield from walk(child, inside, for_types)

    yield from walk(ast.parse(source), (), False)


def exists(name: str) -> bool:
    """Tell whether *name* is a module of the package, the native one included."""
    path = PACKAGE.joinpath(*name.split(".")[1:])
    return path.with_suffix(".py").exists() or path.is_dir() or name == "sandboxlib._native"


def layer_of(module: str) -> str:
    """The layer of a module of the package, by its full name."""
    member = [*module.split("."), "__init__"][1]
    assert member in MEMBERS, (
        f"sandboxlib.{member} has no layer: enter it in MEMBERS of {Path(__file__).name}"
    )
    return MEMBERS[member]


def own_layer(file: str) -> str:
    """The layer of a file, by its path below the package."""
    return layer_of("sandboxlib." + file.removesuffix(".py").split("/")[0])


def upward(found: Import) -> bool:
    """Tell whether an import goes where its layer may not look, and not through a door."""
    if found.module.split(".")[0] != "sandboxlib" or found.for_types:
        return False
    doors = DOORS | MORE_DOORS.get(found.file, set())
    return layer_of(found.module) not in LAYERS[own_layer(found.file)] and not doors & set(found.inside)


def misplaced(found: Import) -> bool:
    """Tell whether an import brings in what only other files may."""
    for module, files in ONLY_IN.items():
        if (found.module + ".").startswith(module + "."):
            return not found.for_types and not found.file.startswith(files or ("-",))
    return False


def sources() -> list[Path]:
    return sorted(PACKAGE.rglob("*.py"))


def all_imports() -> list[Import]:
    return [
        found
        for path in sources()
        for found in imports(path.read_text(encoding="utf-8"), path.relative_to(PACKAGE).as_posix())
    ]  # fmt: skip


def test_imports_go_down_only() -> None:
    assert [str(found) for found in all_imports() if upward(found)] == []


def test_heavy_and_native_modules_are_imported_in_one_place() -> None:
    assert [str(found) for found in all_imports() if misplaced(found)] == []


def test_modules_do_not_import_each_other_in_a_circle() -> None:
    below: dict[str, set[str]] = {}
    for found in all_imports():
        if not found.inside and not found.for_types and found.module.startswith("sandboxlib."):
            name = "sandboxlib." + found.file.removesuffix(".py").removesuffix("/__init__").replace("/", ".")
            below.setdefault(name, set()).add(found.module)

    def reach(name: str, way: tuple[str, ...]) -> None:
        assert name not in way, " -> ".join((*way, name))
        for next_name in sorted(below.get(name, ())):
            reach(next_name, (*way, name))

    for name in below:
        reach(name, ())


@pytest.mark.parametrize(
    "file, source, verdict",
    [
        ("errors.py", "import os", False),
        ("errors.py", "from sandboxlib.quantity import size", True),
        ("errors.py", "from sandboxlib import quantity", True),
        ("cgroup.py", "from sandboxlib.engine import open_group", True),
        ("cgroup.py", "class C:\n  def open(self):\n    from sandboxlib.engine import open_group", False),
        ("cgroup.py", "def other():\n  from sandboxlib.engine import open_group", True),
        ("cgroup.py", "if TYPE_CHECKING:\n  from sandboxlib.engine import Group", False),
        ("plan/steps.py", "from sandboxlib.kernel import syscall", True),
        ("kernel/mount.py", "from sandboxlib.plan import steps", True),
        ("engine/run.py", "from sandboxlib.blocking import Sandbox", True),
        ("blocking.py", "from sandboxlib.engine import run", False),
    ],
)
def test_the_rule_for_layers(file: str, source: str, verdict: bool) -> None:
    assert [upward(found) for found in imports(source, file)] == [verdict]


@pytest.mark.parametrize(
    "file, source, verdict",
    [
        ("kernel/mount.py", "from sandboxlib._native import lib", False),
        ("kernel/mount.py", "from sandboxlib import _native", False),
        ("engine/run.py", "from sandboxlib._native import lib", True),
        ("kernel/netlink.py", "import pyroute2.netlink", False),
        ("network.py", "import pyroute2", True),
        ("trio.py", "import trio.lowlevel", False),
        ("engine/run.py", "def f():\n  import trio", True),
        ("engine/run.py", "import trios", False),
    ],
)
def test_the_rule_for_single_places(file: str, source: str, verdict: bool) -> None:
    assert [misplaced(found) for found in imports(source, file)] == [verdict]


@pytest.mark.parametrize("path", sources(), ids=lambda path: path.relative_to(PACKAGE).as_posix())
def test_a_module_is_short_enough_to_read(path: Path) -> None:
    # All errors are one list, which is looked up in and not read from the first line to the last.
    assert len(path.read_text(encoding="utf-8").splitlines()) <= (500 if path.name == "errors.py" else 400)


@pytest.mark.parametrize("statement", ["import sandboxlib", "from sandboxlib import Sandbox"])
def test_importing_loads_nothing_heavy(statement: str) -> None:
    script = f"{statement}\nimport sys\nloaded = sorted(sys.modules)\nimport json\nprint(json.dumps(loaded))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert [name for name in json.loads(done.stdout) if name in HEAVY] == []


def test_importing_starts_no_thread_and_opens_nothing() -> None:
    script = (
        "import os, attrs\nbefore = os.listdir('/proc/self/fd'), os.listdir('/proc/self/task')\n"
        "import sandboxlib\nassert (os.listdir('/proc/self/fd'), os.listdir('/proc/self/task')) == before"
    )
    subprocess.run([sys.executable, "-c", script], check=True)


def test_every_name_that_is_offered_is_there() -> None:
    import sandboxlib

    assert [name for name in sandboxlib.__all__ if not hasattr(sandboxlib, name)] == []
