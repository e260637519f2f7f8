"""The stub for the type checker, the declarations for cffi, and the C code say the same."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

from sandboxlib._native import lib

CHECKOUT = Path(__file__).parents[2]
DECLARATIONS = (CHECKOUT / "_native/native.cdef.h").read_text()
PROTOCOL = (CHECKOUT / "_native/protocol.h").read_text()
CONSTANTS = re.findall(r"^#define (\w+) \.\.\.$", DECLARATIONS, re.MULTILINE)
FUNCTIONS = re.findall(r"^static \w+ (\w+)\((.*)\);$", DECLARATIONS, re.MULTILINE)


def stub_class(name: str) -> ast.ClassDef:
    tree = ast.parse((CHECKOUT / "sandboxlib/_native.pyi").read_text())
    (found,) = (node for node in tree.body if isinstance(node, ast.ClassDef) and node.name == name)
    return found


def test_the_stub_has_every_constant() -> None:
    nodes = [node for node in stub_class("_Lib").body if isinstance(node, ast.AnnAssign)]
    assert sorted(ast.unparse(node.target) for node in nodes) == sorted(CONSTANTS)
    assert {ast.unparse(node.annotation) for node in nodes} == {"Final[int]"}


def test_the_stub_has_every_function_with_its_arguments() -> None:
    nodes = [node for node in stub_class("_Lib").body if isinstance(node, ast.FunctionDef)]
    stubs = {node.name: [arg.arg for arg in (*node.args.posonlyargs, *node.args.args)][1:] for node in nodes}
    declared = {
        name: [re.split(r"[ *]", argument)[-1] for argument in arguments.split(", ") if argument != "void"]
        for name, arguments in FUNCTIONS
    }
    assert stubs == declared


def test_the_module_has_what_is_declared() -> None:
    declared = [*CONSTANTS, *(name for name, _ in FUNCTIONS)]
    assert [name for name in declared if not hasattr(lib, name)] == []
    assert sorted(set(dir(lib))) == sorted(declared)


@pytest.mark.parametrize("name", re.findall(r"\b(SBX_\w+)\b(?=\s*=|\s+\d|\s+0x)", PROTOCOL))
def test_the_numbers_of_the_protocol_reach_python(name: str) -> None:
    match = re.search(rf"\b{name}\b\s*=?\s*(0x[0-9a-f]+|\d+)", PROTOCOL)
    assert match is not None
    assert getattr(lib, name) == int(match[1], 0)
