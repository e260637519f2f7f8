"""What `sandboxlib.forks` knows of what is loaded late, compared with the source."""

from __future__ import annotations

import ast
import importlib
import sys
import threading
from pathlib import Path

from sandboxlib import forks

PACKAGE = Path(forks.__file__).parent


def late() -> set[str]:
    """What functions load by themselves that is not of this library: the topmost names."""
    found = set()
    for path in PACKAGE.rglob("*.py"):
        tree = ast.parse(path.read_text())
        for function in ast.walk(tree):
            if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef):
                for node in ast.walk(function):
                    if isinstance(node, ast.Import):
                        found |= {alias.name.partition(".")[0] for alias in node.names}
                    elif isinstance(node, ast.ImportFrom) and node.module is not None:
                        found.add(node.module.partition(".")[0])
    return found - {"sandboxlib", "importlib"}


def test_all_that_is_loaded_late_is_waited_for() -> None:
    assert late() == forks._FOREIGN - {"trio"}


def test_a_module_that_another_thread_loads_is_seen_and_one_of_its_own_is_not() -> None:
    loading, go_on = threading.Event(), threading.Event()
    seen = []

    class Slow:
        def find_spec(self, name: str, *_: object) -> None:
            if name == "sandboxlib.no_such_module":
                seen.append(forks._is_loading())
                loading.set()
                go_on.wait(20)

    def load() -> None:
        try:
            importlib.import_module("sandboxlib.no_such_module")
        except ModuleNotFoundError:
            seen.append(True)

    finder = Slow()
    sys.meta_path.insert(0, finder)
    try:
        thread = threading.Thread(target=load)
        thread.start()
        assert loading.wait(20)
        assert forks._is_loading()
        go_on.set()
        thread.join()
    finally:
        sys.meta_path.remove(finder)
    assert not forks._is_loading()
    # Its own thread saw nothing, and then that there is no such module.
    assert seen == [False, True]
