"""What the tests of the C code share: the harness, built once."""

from __future__ import annotations

import os
import struct
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

HERE = Path(__file__).parent
NATIVE = HERE.parents[1] / "_native"
SOURCES = [HERE / "harness.c", HERE / "launcher_hosted.c"]
SANITIZERS = [
    "-fsanitize=address,undefined",
    "-fno-sanitize-recover=all",
    "-fno-omit-frame-pointer",
    "-g",
    "-O1",
]

# The leak check needs ptrace(2), which containers and tracers take away; the harness frees what it makes.
os.environ.setdefault("ASAN_OPTIONS", "detect_leaks=0")


def compile_c(compiler: str, out: Path, *options: str) -> Path:
    """Compile the harness."""
    flags = ["-Wall", "-Wextra", "-Werror", *SANITIZERS, f"-I{NATIVE}"]
    subprocess.run([compiler, *flags, *options, *SOURCES, "-o", out], check=True)
    return out


@pytest.fixture(scope="session")
def build(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Compile the harness: ``build("clang", "-DLIBFUZZER")``."""
    return lambda compiler, *options: compile_c(
        compiler, tmp_path_factory.mktemp("native") / "harness", *options
    )


@pytest.fixture(scope="session")
def harness(build: Callable[..., Path]) -> Path:
    """The harness as an ordinary program."""
    return build("gcc")


class Checker:
    """Asks a running harness about one program after the other."""

    def __init__(self, harness: Path) -> None:
        self._process = subprocess.Popen([harness, "check"], stdin=subprocess.PIPE, stdout=subprocess.PIPE)

    def __call__(self, code: bytes) -> bool:
        """Tell whether *code* passes the check; carries it out in the harness if it does."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(struct.pack("=I", len(code)) + code)
        self._process.stdin.flush()
        answer = self._process.stdout.read(1)
        assert answer in (b"0", b"1"), "the harness died"
        return answer == b"1"

    def close(self) -> None:
        """End the harness; it has to end well."""
        self._process.communicate()
        assert self._process.returncode == 0


@pytest.fixture(scope="session")
def passes(harness: Path) -> Iterator[Checker]:
    """``passes(code)``: does the launcher take it?"""
    checker = Checker(harness)
    yield checker
    checker.close()
