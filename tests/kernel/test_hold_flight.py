"""Descriptors on their way, as many as a user may have, hold nobody up: not this sandbox, not others"""

from __future__ import annotations

import errno

import pytest
from kernel.probe.outside import WHO, program

import filters

pytestmark = [pytest.mark.userns, pytest.mark.timeout(180)]

#: Sends descriptors that nobody receives, until the kernel takes no more, and goes on trying.
#: It says how many it took.
FLOOD = """
import array, errno, os, resource, socket, time
soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
if {raised}:
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
null = os.open("/dev/null", os.O_RDONLY)
many = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [null] * 200))]
pairs, sent, full = [], 0, False
while not full:
    pairs.append(socket.socketpair())
    pairs[-1][0].setblocking(False)
    try:
        while True:
            pairs[-1][0].sendmsg([b"x"], many)
            sent += 200
    except OSError as error:
        full = error.errno == errno.ETOOMANYREFS
        if not full and error.errno != errno.EAGAIN:
            raise
print(sent, flush=True)
one = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [null]))]
while True:
    time.sleep(0.01)
    try:
        pairs[-1][0].sendmsg([b"x"], one)
    except OSError:
        pass
"""

#: Each verb that has a helper, and those that get a descriptor from it.
VERBS = """
import os, socket, tempfile, threading
from sandboxlib import AsyncSandbox
from sandboxlib.blocking import PIPE, Sandbox
from sandboxlib.errors import KernelError
SERVER = '''
import os, socket, time
if os.path.exists('/work/server'):
    os.unlink('/work/server')
tcp = socket.create_server(("127.0.0.1", 7000))
unix = socket.socket(socket.AF_UNIX)
unix.bind("/work/server")
unix.listen(10)
print("on", flush=True)
time.sleep(1000)
'''
def flood(sandbox):
    flooder = sandbox.popen(["python3", "-I", "-S", "-c", facts["flood"]], stdout=PIPE)
    return flooder, int(flooder.stdout.readline())
def verbs(sandbox):
    server = sandbox.popen(["python3", "-I", "-S", "-c", SERVER], stdout=PIPE)
    assert server.stdout.readline() == b"on\\n"
    sandbox.files.write("/work/x", b"x" * 100000)
    assert sandbox.files.read("/work/x") == b"x" * 100000
    assert "x" in sandbox.files.list("/work")
    assert sandbox.files.exists("/work/x")
    with tempfile.TemporaryDirectory() as folder:
        sandbox.files.copy_out("/work/x", os.path.join(folder, "y"))
        sandbox.files.copy_in(os.path.join(folder, "y"), "/work/y")
    sandbox.files.remove("/work/y")
    sandbox.wait_for(path="/work/x", timeout=10)
    sandbox.wait_for(port=7000, timeout=10)
    for address in (7000, "/work/server"):
        sandbox.connect(address).close()
    with sandbox.popen(["echo", "shown"], tty=True) as shown:
        assert b"shown" in shown.tty.read(100)
    assert sandbox.run(["echo", "on"], stderr=None).stdout == b"on\\n"
    changes = len(sandbox.changes())
    server.kill()
    server.wait()
    server.stdout.close()
    return changes
"""


def facts(*, raised: bool) -> dict[str, str]:
    return {"flood": FLOOD.format(raised=raised)}


@WHO
@pytest.mark.parametrize("raised", [False, True])
def test_every_verb_goes_on_in_this_sandbox_and_in_others(who: str, raised: bool) -> None:
    script = (
        VERBS
        + """
with Sandbox() as other, Sandbox() as sandbox:
    flooder, sent = flood(sandbox)
    changes = [verbs(sandbox), verbs(other)]
    # One that starts now, as well.
    with Sandbox() as third:
        changes.append(verbs(third))
    running = flooder.poll() is None
    flooder.kill()
    flooder.wait()
    flooder.stdout.close()
print(json.dumps([sent, changes, running]))
"""
    )
    sent, changes, running = program(who, script, patience=120, **facts(raised=raised))
    # Otherwise the kernel did not refuse any, and this says nothing.
    assert sent >= 800
    assert all(changes)
    assert running


@WHO
def test_on_trio_as_well(who: str) -> None:
    script = (
        VERBS
        + """
import trio
async def main():
    async with AsyncSandbox() as other, AsyncSandbox() as sandbox:
        process = await sandbox.popen(["python3", "-I", "-S", "-c", facts["flood"]], stdout=PIPE)
        sent = int(await process.stdout.receive_some())
        found = []
        for one in (sandbox, other):
            await one.files.write("/work/x", b"x")
            found.append([entry.path.rpartition("/")[2] for entry in await one.changes()])
            assert await one.files.read("/work/x") == b"x"
            terminal = await one.popen(["echo", "shown"], tty=True)
            assert b"shown" in await terminal.tty.receive_some()
            await terminal.wait()
            await terminal.tty.aclose()
        process.kill()
        await process.wait()
        await process.stdout.aclose()
    return sent, found
print(json.dumps(trio.run(main)))
"""
    )
    sent, found = program(who, script, patience=120, **facts(raised=True))
    assert sent >= 800
    assert all("x" in names for names in found)


AS_MANY = (
    VERBS
    + """
import resource
resource.setrlimit(resource.RLIMIT_NOFILE, (1024, 3000))
"""
)


@pytest.mark.unprivileged
def test_also_where_what_is_inside_may_have_as_many_as_the_program() -> None:
    script = (
        AS_MANY
        + """
options = "security=Security(rlimits={'nofile': 3000})"
with make(options) as other, make(options) as sandbox:
    flooder, sent = flood(sandbox)
    changes = [verbs(sandbox), verbs(other)]
    with make(options) as third:
        changes.append(verbs(third))
    flooder.kill()
    flooder.wait()
    flooder.stdout.close()
print(json.dumps([sent, changes]))
"""
    )
    sent, changes = program("user", script, patience=120, **facts(raised=True))
    assert sent >= 2800
    assert all(changes)


@pytest.mark.unprivileged
def test_where_the_program_cannot_take_a_descriptor_itself_it_is_told() -> None:
    # As container engines forbid pidfd_getfd(2) to who has no CAP_SYS_PTRACE.
    filter_ = filters.compiled(filters.failing(["pidfd_getfd"], errno.EPERM))
    script = (
        AS_MANY
        + """
from oracle.under_filter import load
options = "security=Security(rlimits={'nofile': 3000})"
with make(options) as other, make(options) as sandbox:
    servers = []
    for one in (sandbox, other):
        servers.append(one.popen(["python3", "-I", "-S", "-c", SERVER], stdout=PIPE))
        assert servers[-1].stdout.readline() == b"on\\n"
    flooder, sent = flood(sandbox)
    load(bytes.fromhex(facts["filter"]))
    found = []
    for one in (sandbox, other):
        for verb in (lambda: one.popen(["true"], tty=True), lambda: one.connect(7000)):
            try:
                verb()
                found.append(None)
            except KernelError as error:
                found.append([error.errno, str(error)])
        # No descriptor is handed out for these.
        one.files.write("/work/x", "x")
        found.append(one.files.read("/work/x") == b"x")
    for server in servers:
        server.kill()
        server.wait()
        server.stdout.close()
    flooder.kill()
    flooder.wait()
    flooder.stdout.close()
    # And once there are fewer, it goes on.
    found.append(verbs(other) > 0)
print(json.dumps(found))
"""
    )
    found = program("user", script, patience=120, **facts(raised=True), filter=filter_.hex())
    assert found[2] is found[5] is found[6] is True
    for told in (found[0], found[1], found[3], found[4]):
        assert told[0] == errno.ETOOMANYREFS
        assert "as many descriptors on their way" in told[1]
