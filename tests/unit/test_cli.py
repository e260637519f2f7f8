"""What the options of ``python -m sandboxlib run`` mean, and how its exit status speaks."""

from __future__ import annotations

import os
import shlex
import sys
from pathlib import Path

import pytest

from sandboxlib import cli
from sandboxlib.errors import SpecError
from sandboxlib.mount import Mount
from sandboxlib.network import Network
from sandboxlib.rootfs import Rootfs
from sandboxlib.security import Security
from sandboxlib.spec import SandboxSpec


def spec(line: str) -> SandboxSpec:
    """What a line asks for."""
    return cli.sandbox_of(cli.parser().parse_args(["run", *shlex.split(line)])).spec


@pytest.mark.parametrize(
    "line, expected",
    [
        ("", SandboxSpec()),
        ("--memory 256M --cpus 0.5 --pids 64", SandboxSpec(memory="256M", cpus=0.5, pids=64)),
        ("--network host", SandboxSpec(network="host")),
        ("--network bridge", SandboxSpec(network="bridge")),
        (
            "--network bridge:a --network bridge:b --publish 8080:80 --publish 127.0.0.1:53:54/udp",
            SandboxSpec(
                network=[Network.bridge("a"), Network.bridge("b")],
                ports={8080: 80, "127.0.0.1:53/udp": 54},
            ),
        ),
        ("--network user --publish 80-81:90-91", SandboxSpec(network="user", ports={"80-81": "90-91"})),
        ("--hostname db --cwd /tmp", SandboxSpec(hostname="db", cwd="/tmp")),
        ("--user 1000:1000", SandboxSpec(security=Security(user="1000:1000"))),
        (
            "--without seccomp --without rlimits",
            SandboxSpec(security=Security(without=["rlimits", "seccomp"])),
        ),
        ("--cap net_raw", SandboxSpec(security=Security(capabilities=["CAP_NET_RAW"]))),
        ("--env A=1 --env B= --env C=x=y", SandboxSpec(env={"A": "1", "B": "", "C": "x=y"})),
        ("--bind /data:/mnt", SandboxSpec(mounts=[Mount.bind("/data", "/mnt")])),
        ("--bind /data:/mnt:ro", SandboxSpec(mounts=[Mount.bind("/data", "/mnt", readonly=True)])),
        ("--bind /a:b:/mnt:rw", SandboxSpec(mounts=[Mount.bind("/a:b", "/mnt")])),
        ("--tmpfs /scratch", SandboxSpec(mounts=[Mount.tmpfs("/scratch")])),
        ("--tmpfs /scratch:64M", SandboxSpec(mounts=[Mount.tmpfs("/scratch", size="64M")])),
        ("--rootfs /srv/base", SandboxSpec(rootfs=Rootfs.directory("/srv/base"))),
        ("--rootfs /srv/base:rw", SandboxSpec(rootfs=Rootfs.directory("/srv/base", readonly=False))),
        ("--overlay /top --overlay /base", SandboxSpec(rootfs=Rootfs.overlay(lower=["/top", "/base"]))),
    ],
)
def test_options_are_the_arguments_of_sandbox(line: str, expected: SandboxSpec) -> None:
    assert spec(line) == expected


def test_a_relative_source_is_the_callers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert spec("--bind data:/mnt").mounts == (Mount.bind(f"{tmp_path}/data", "/mnt"),)
    assert spec("--rootfs .").rootfs == Rootfs.directory(tmp_path)
    assert spec("--overlay top").rootfs == Rootfs.overlay(lower=[tmp_path / "top"])


def test_a_variable_without_a_value_is_the_callers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LIKE_OUTSIDE", "yes")
    assert spec("--env LIKE_OUTSIDE").env == (("LIKE_OUTSIDE", "yes"),)
    monkeypatch.delenv("LIKE_OUTSIDE")
    with pytest.raises(SpecError, match="LIKE_OUTSIDE"):
        spec("--env LIKE_OUTSIDE")


@pytest.mark.parametrize(
    "line, field",
    [
        ("--memory lots", "memory"),
        ("--pids 0", "pids"),
        ("--bind /data", "--bind"),
        ("--bind :/data", "--bind"),
        ("--bind /data:mnt", "destination"),
        ("--tmpfs /scratch:", "size"),
        ("--user root", "user"),
        ("--cap NO_SUCH", "capabilities"),
        ("--cwd here", "cwd"),
        ("--env =x", "env"),
        ("--overlay /a --overlay /a/b", "lower"),
    ],
)
def test_what_makes_no_sense_is_refused_with_its_name(line: str, field: str) -> None:
    with pytest.raises(SpecError) as caught:
        spec(line)
    assert caught.value.field == field


@pytest.mark.parametrize(
    "line",
    [
        "run --no-such-option",
        "run --cpus many",
        "run --rootfs / --overlay /",
        "",
        "walk",
    ],
)
def test_a_line_that_cannot_be_read_ends_with_125(line: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        cli.main(shlex.split(line))
    assert caught.value.code == 125
    assert "python -m sandboxlib" in capsys.readouterr().err


@pytest.mark.parametrize(
    "line, command",
    [
        ("run -- ls -l", ["ls", "-l"]),
        ("run ls -l", ["ls", "-l"]),
        ("run --pids 5 ls --pids 6", ["ls", "--pids", "6"]),
        ("run --pids 5 -- sh -c x -- y", ["sh", "-c", "x", "--", "y"]),
        ("run -- --help", ["--help"]),
    ],
)
def test_all_that_follows_the_command_is_the_commands(line: str, command: list[str]) -> None:
    options = cli.parser().parse_args(shlex.split(line))
    assert [word for i, word in enumerate(options.command) if i or word != "--"] == command


@pytest.mark.parametrize("line", ["run", "run --", "run --timeout 0 -- true", "run --timeout nan -- true"])
def test_nothing_to_run_or_no_time_ends_with_125(line: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(shlex.split(line)) == 125
    assert capsys.readouterr().err.startswith("sandboxlib: '")


@pytest.mark.parametrize("verb", ["run", "doctor"])
def test_each_verb_has_a_help_that_names_the_exit_status(
    verb: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        cli.main([verb, "--help"])
    assert caught.value.code == 0
    assert "xit status" in capsys.readouterr().out


def test_reading_the_options_loads_no_engine() -> None:
    import subprocess

    script = "import sys, sandboxlib.cli as c; c.parser(); print('sandboxlib.engine' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd=os.getcwd()
    )
    assert done.stdout == "False\n"
