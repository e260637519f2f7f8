"""What is closed when the interpreter exits; starts that fail because there are too few descriptors."""

from __future__ import annotations

import pytest
from kernel.probe.outside import OWN_NETWORK, WHO, program

# Before 6.6 a plain user has no overlay in memory.
pytestmark = [pytest.mark.userns, pytest.mark.overlay, pytest.mark.bridge, pytest.mark.kernel("6.6")]

#: What can be closed, as source.
HAVE = {
    "a sandbox": "Sandbox()",
    "with layers": "Sandbox(rootfs=Rootfs.overlay([base]), mounts=host)",
    "with layers on disk": "Sandbox(rootfs=Rootfs.overlay([base], storage=folder), mounts=host)",
    "with a copy": "Sandbox(rootfs=Rootfs.overlay([base], storage=folder, driver='copy'), mounts=host)",
    "with a volume": "Sandbox(mounts=[Volume('closing').at('/kept')])",
    "that shares another's": "Sandbox(namespaces=[Namespace.of(one, 'network')])",
    "a namespace": "Namespace('user')",
    "a tree": "Rootfs.overlay([base])",
    "a tree on disk": "Rootfs.overlay([base], storage=folder)",
}
ROOT = {
    "on a bridge": "Sandbox(network=Network.bridge('closing'), ports={0: 80})",
    "a network": "Network.bridge('closing')",
    "a group": "CGroup(pids_max=9)",
}
PRELUDE = """
import importlib.abc, subprocess, tempfile
from pathlib import Path
from sandboxlib import CGroup, Mount, Namespace, Network, Rootfs, Sandbox, SandboxError, Volume
from sandboxlib.engine.current import program
from sandboxlib.kernel.folders import run_folder
folder, base = tempfile.mkdtemp(), tempfile.mkdtemp()
host = [Mount.bind(path, path, readonly=True) for path in ("/usr", "/bin", "/lib", "/lib64")]
"""
#: As at the end of a program: what is not loaded yet cannot be loaded any more.
CLOSING = (
    PRELUDE
    + """
class Over(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if over:
            asked.append(name)
            raise ImportError("the interpreter ends")
sys.meta_path.insert(0, Over())
found, over = {}, False
with Sandbox() as one:
    for name, source in facts["have"].items():
        asked = []
        thing = eval(source).open()
        commands = []
        if isinstance(thing, Sandbox):
            commands.append(thing.popen(["sleep", "60"], stdin=-1, stdout=-1))
        over = True
        try:
            for opened in [*commands[:len(found) % 2], thing]:
                opened.__exit__(None, None, None) if opened is thing else opened.kill()
        except BaseException as error:
            asked.append(repr(error))
        over = False
        thing.close()
        found[name] = asked
Volume.remove("closing")
print(json.dumps(found))
"""
)


def available(who: str) -> dict[str, str]:
    return {**HAVE, **(ROOT if who == "root" else {})}


def own(who: str) -> str:
    return OWN_NETWORK if who == "root" else ""


@WHO
def test_closing_loads_nothing(who: str) -> None:
    found = program(who, own(who) + CLOSING, have=available(who), patience=120)
    assert {name: asked for name, asked in found.items() if asked} == {}
    assert len(found) == len(available(who))


#: Starts with fewer descriptors than it takes, one more each time, until it comes through.
FEW = (
    PRELUDE
    + """
import gc, resource
import leaks
place = Path(run_folder(os.geteuid()))
def there():
    # The lock of who owns something, and the book of networks, are there for as long as that is.
    return sorted(os.listdir(place) if place.exists() else []) + sorted(os.listdir(folder))
hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
found = {}
with Sandbox() as one:
    for name, source in facts["have"].items():
        wrong, tries = [], 0
        eval(source).open().close()
        before, children = there(), leaks.snapshot()
        for more in range(80):
            thing, opened, full = eval(source), None, []
            resource.setrlimit(resource.RLIMIT_NOFILE, (200, hard))
            try:
                while True:
                    full.append(os.open("/dev/null", os.O_RDONLY))
            except OSError:
                for fd in full[:more]:
                    os.close(fd)
            try:
                opened = thing.open()
            except SandboxError:
                tries += 1
            except BaseException as error:
                wrong.append(f"{more}: {error!r}")
            for fd in full[more:]:
                os.close(fd)
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
            if opened is not None:
                opened.close()
            if there() != before:
                wrong.append(f"{more}: {sorted(set(there()) ^ set(before))}")
                before = there()
            if opened is not None:
                break
        # All is let go of, of those that failed too: so the lock of who owns something goes with the last.
        wrong += [str(holder) for holder in program().owner._holders if holder is not one._engine]
        # Who keeps an exception keeps all that was in use where it came.
        gc.collect()
        left = leaks.difference(children, leaks.snapshot())
        found[name] = [opened is not None, tries > 0, wrong, sorted(left)]
print(json.dumps(found))
"""
)


@WHO
def test_a_start_near_the_limit_on_descriptors_leaves_nothing(who: str) -> None:
    have = {name: source for name, source in available(who).items() if "volume" not in name}
    found = program(who, own(who) + FEW, have=have, patience=300)
    assert {name: told for name, told in found.items() if told != [True, True, [], []]} == {}
    assert len(found) == len(have)
