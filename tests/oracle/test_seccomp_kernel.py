"""Our programs in the real kernel: what it lets through, what it refuses, and that programs still run."""

from __future__ import annotations

import errno
import json
import os
import platform
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

import pytest

from sandboxlib.seccomp import Action, Arg, Op, Profile, Rule, compile, default, default_program  # noqa: A004
from sandboxlib.seccomp.abi import X32_BIT, table
from sandboxlib.seccomp.denied import DENIED

MACHINE = platform.machine()
CALLS = table(MACHINE)
RUNNER = Path(__file__).with_name("under_filter.py")
DOCKER = Path(__file__).with_name("docker.json")

# Makes the calls that it reads as JSON, and writes the errno of each.
PROBE = """
import ctypes, json, sys
libc = ctypes.CDLL(None, use_errno=True)
libc.syscall.restype = ctypes.c_long
answers = []
for number, *args in json.load(sys.stdin):
    ctypes.set_errno(0)
    failed = libc.syscall(ctypes.c_long(number), *[ctypes.c_ulong(arg) for arg in args]) == -1
    answers.append(ctypes.get_errno() if failed else 0)
print(json.dumps(answers))
"""

# Enters the kernel as a 32-bit program does: mov eax, 20 (getpid); int 0x80; ret.
INT_0X80 = """
import ctypes, mmap
code = mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
code.write(bytes.fromhex("b814000000cd80c3"))
call = ctypes.CFUNCTYPE(ctypes.c_int)(ctypes.addressof(ctypes.c_char.from_buffer(code)))
import os
print(call() == os.getpid())
"""


def under(
    folder: Path, program: bytes, *command: str, text: str = "", seconds: float = 50
) -> subprocess.CompletedProcess[str]:
    file = folder / "filter"
    file.write_bytes(program)
    run = [sys.executable, "-I", str(RUNNER), str(file), *command]
    return subprocess.run(
        run, input=text, capture_output=True, text=True, timeout=seconds, cwd=folder, check=False
    )


def errors(folder: Path, program: bytes, calls: Iterable[tuple[int, ...]]) -> list[int]:
    done = under(folder, program, sys.executable, "-I", "-c", PROBE, text=json.dumps(list(calls)))
    assert done.returncode == 0, done.stderr
    answers: list[int] = json.loads(done.stdout)
    return answers


@pytest.mark.parametrize("path", [DOCKER])
def test_the_kernel_takes_a_profile_of_docker(path: Path, tmp_path: Path) -> None:
    program = compile(Profile.from_file(path), arch=MACHINE, kernel=(6, 1))
    assert under(tmp_path, program, "true").returncode == 0


def test_every_denied_call_is_denied_by_the_kernel(tmp_path: Path) -> None:
    expected = {name: row.errno for row in DENIED for name in row.names.split() if name in CALLS}
    got = errors(tmp_path, default_program(arch=MACHINE), [(CALLS[name], 0, 0, 0, 0, 0) for name in expected])
    assert dict(zip(expected, got, strict=True)) == expected


def test_a_number_from_the_future_is_not_there(tmp_path: Path) -> None:
    assert errors(tmp_path, default_program(arch=MACHINE), [(900,), (4095,)]) == [errno.ENOSYS] * 2


def test_arguments_decide_in_the_kernel(tmp_path: Path) -> None:
    high = 0xFFFFFFFF << 32
    cases = [
        ((CALLS["socket"], 2, 1, 0), 0),
        ((CALLS["socket"], 2 | high, 1 | high, 6 | high), 0),
        ((CALLS["socket"], 16, 3, 0), 0),
        ((CALLS["socket"], 40, 1, 0), errno.EPERM),
        ((CALLS["socket"], 40 | high, 1, 0), errno.EPERM),
        ((CALLS["socket"], 38, 5, 0), errno.EPERM),
        ((CALLS["socket"], 17, 3, 0), errno.EPERM),
        ((CALLS["socket"], 2, 3, 1), errno.EPERM),
        ((CALLS["socket"], 16, 3, 12), errno.EPERM),
        ((CALLS["ioctl"], 0, 0x5412, 0), errno.EPERM),
        ((CALLS["ioctl"], 0, 0x5412 | high, 0), errno.EPERM),
        ((CALLS["ioctl"], 4095, 0x5413, 0), errno.EBADF),
        ((CALLS["personality"], 0xFFFFFFFF), 0),
        ((CALLS["personality"], 0x40000), errno.EPERM),
        ((CALLS["clone"], 0x10000000 | signal.SIGCHLD, 0, 0, 0, 0), errno.EPERM),
        ((CALLS["clone"], 0x40000000 | high, 0, 0, 0, 0), errno.EPERM),
        ((CALLS["fchmod"], 4095, 0o644), errno.EBADF),
        ((CALLS["fchmod"], 4095, 0o4755), errno.EPERM),
        ((CALLS["openat"], 4095, 0, 0, 0o4755), errno.EFAULT),
        ((CALLS["openat"], 4095, 0, 0o100, 0o4755), errno.EPERM),
        ((CALLS["openat"], 4095, 0, 0o20200002, 0o2755), errno.EPERM),
    ]
    got = errors(tmp_path, default_program(arch=MACHINE), [call for call, _ in cases])
    assert [(call, error) for (call, _), error in zip(cases, got, strict=True)] == cases


@pytest.mark.skipif(MACHINE != "x86_64", reason="the 32-bit entry of x86_64")
def test_int_0x80_is_killed(tmp_path: Path) -> None:
    # User-mode Linux takes it as a 64-bit call, and a kernel without IA32 emulation as a fault.
    plain = subprocess.run([sys.executable, "-c", INT_0X80], capture_output=True, text=True, check=False)
    expected = (-signal.SIGSYS, "") if plain.stdout == "True\n" else (plain.returncode, plain.stdout)
    done = under(tmp_path, default_program(arch=MACHINE), sys.executable, "-c", INT_0X80)
    assert (done.returncode, done.stdout) == expected


@pytest.mark.skipif(MACHINE != "x86_64", reason="a bit in the numbers of x86_64")
def test_x32_is_killed(tmp_path: Path) -> None:
    calls = json.dumps([(X32_BIT | 39,)])
    done = under(tmp_path, default_program(arch=MACHINE), sys.executable, "-c", PROBE, text=calls)
    assert done.returncode == -signal.SIGSYS


@pytest.mark.skipif(MACHINE != "x86_64", reason="the 32-bit entry of x86_64")
def test_int_0x80_works_where_it_is_asked_for(tmp_path: Path) -> None:
    # The same as without a filter, so that above it is the filter that ends it.
    plain = subprocess.run([sys.executable, "-c", INT_0X80], capture_output=True, text=True, check=False)
    program = compile(default(architectures=["i386"]), arch=MACHINE)
    done = under(tmp_path, program, sys.executable, "-c", INT_0X80)
    assert (done.returncode, done.stdout) == (plain.returncode, plain.stdout)


def test_64_bit_comparisons_hold_in_the_kernel(tmp_path: Path) -> None:
    # lseek on a descriptor that is not open: EBADF where the filter lets it through.
    value = 0x1_8000_0001
    tried = [value - 1, value, value + 1, 1, 0x8000_0001, 0x2_0000_0000]
    for op, passing in [
        (Op.EQ, [value]),
        (Op.GE, [value, value + 1, 0x2_0000_0000]),
        (Op.LT, [value - 1, 1, 0x8000_0001]),
        (Op.NE, [n for n in tried if n != value]),
    ]:
        rules = [
            Rule(
                names=["lseek"], action=Action.ERRNO, errno=99, args=[Arg(0, Op.EQ, 4095), Arg(1, op, value)]
            )
        ]
        program = compile(Profile(rules=rules, default=Action.ALLOW), arch=MACHINE)
        got = errors(tmp_path, program, [(CALLS["lseek"], 4095, n, 0) for n in tried])
        assert got == [99 if n in passing else errno.EBADF for n in tried], op


# --- programs that must run -------------------------------------------------------------------------------

PYTHON = """
import asyncio, concurrent.futures, ctypes, multiprocessing, os, socket, sqlite3, ssl, subprocess, tempfile
def double(n):
    return 2 * n
async def talk():
    async def echo(reader, writer):
        writer.write(await reader.read(5)); await writer.drain(); writer.close()
    server = await asyncio.start_server(echo, "127.0.0.1", 0)
    reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
    writer.write(b"hello"); assert await reader.read(5) == b"hello"
    writer.close(); server.close()
    process = await asyncio.create_subprocess_exec("true"); assert await process.wait() == 0
if __name__ == "__main__":
    for method in ("fork", "spawn", "forkserver"):
        with multiprocessing.get_context(method).Pool(2) as pool:
            assert pool.map(double, [1, 2]) == [2, 4]
    with concurrent.futures.ThreadPoolExecutor() as pool:
        assert list(pool.map(double, [1, 2])) == [2, 4]
    asyncio.run(talk())
    ssl.create_default_context()
    with tempfile.TemporaryDirectory() as folder:
        base = sqlite3.connect(folder + "/base"); base.execute("pragma journal_mode=wal")
        base.execute("create table t (x)"); base.commit()
        os.mkfifo(folder + "/pipe"); os.chmod(folder + "/base", 0o1700)
    socket.getaddrinfo("localhost", 80)
    subprocess.run(["true"], check=True, start_new_session=True)
    print("fine")
"""
SHELL = r"""
set -e
x=$(printf 'b\na\n' | sort | head -1); (exit 3) || test $? = 3; echo $x > f
mkdir -p d/e; cp -a f d/e; mv d/e/f g; ln -s g h; touch h; chmod 640 g
tar cf t d g h; tar xf t; find . -name g | xargs grep -c a; rm -r d
sleep 0.01 & wait
df . > f; ls -l > f; stat g > f; id
"""
BUILD = r"""
echo '#include <stdio.h>' > a.c; echo 'int main(void) { puts("built"); }' >> a.c; gcc -O1 -pipe a.c && ./a.out
"""
COMMIT = """
git init -q r && cd r && echo x > f && git add f && git -c user.name=a -c user.email=b@c commit -qm m &&
git log --oneline && git clone -q . ../s
"""
NODE = """
const {Worker} = require('worker_threads'), fs = require('fs'), http = require('http');
const server = http.createServer((request, response) => response.end('ok'));
const serve = () => server.listen(0, function () {
  http.get({port: this.address().port}, r => r.on('data', d => { console.log(String(d)); process.exit(); }));
});
fs.promises.writeFile('f', 'x').then(() => new Worker('1', {eval: true}).on('exit', serve));
"""
TABLE = "pragma journal_mode=wal; create table t (x); insert into t values (1);"
PROGRAMS = {
    "bash": ["bash", "-c", SHELL],
    "gcc": ["sh", "-c", BUILD],
    "git": ["sh", "-c", COMMIT],
    "node": ["node", "-e", NODE],
    "java": ["java", "-Xmx64m", "-version"],
    "go": ["go", "version"],
    "sqlite3": ["sqlite3", "base", TABLE],
    "perl": ["perl", "-e", "open F, '>', 'f'; print F `echo 1`; close F; fork || exit; wait; print -s 'f'"],
    "curl": ["curl", "--version"],
}
HERE = sorted(name for name in PROGRAMS if shutil.which(name))


def test_python_runs(tmp_path: Path) -> None:
    (tmp_path / "job.py").write_text(PYTHON)
    done = under(tmp_path, default_program(arch=MACHINE), sys.executable, "job.py")
    assert (done.returncode, done.stdout, done.stderr) == (0, "fine\n", "")


@pytest.mark.parametrize("name", HERE)
def test_ordinary_programs_run(name: str, tmp_path: Path) -> None:
    done = under(tmp_path, default_program(arch=MACHINE), *PROGRAMS[name])
    assert done.returncode == 0, done.stderr
    assert done.stdout or done.stderr


def test_a_shell_and_a_compiler_were_among_them() -> None:
    assert {"bash", "gcc"} <= set(HERE)


def test_no_set_id_file_appears(tmp_path: Path) -> None:
    code = """
import os
for make in (
    lambda: os.chmod("f", 0o4755), lambda: os.open("g", os.O_CREAT | os.O_WRONLY, 0o4755),
    lambda: os.open(".", os.O_TMPFILE | os.O_WRONLY, 0o4755),
    lambda: os.mkdir("d", 0o2755), lambda: os.mknod("h", 0o106755),
):
    try:
        make()
    except PermissionError:
        continue
    raise SystemExit("made")
"""
    (tmp_path / "f").touch()
    done = under(tmp_path, default_program(arch=MACHINE), sys.executable, "-c", code)
    assert done.returncode == 0, done.stderr
    assert sorted(os.listdir(tmp_path)) == ["f", "filter"]
