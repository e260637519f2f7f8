"""
A machine of its own to run one command in: nothing but cgroup v2, a kernel of choice, systemd if wanted.

::

    python tools/lab [--kernel uml|6.1|6.12] [--as root|user|session] [--systemd] [--rw DIR]
                     [--env NAME=VALUE] -- COMMAND...

Its files are this machine's own, read-only, below a layer in memory: the same Python, the same checkout,
at the same paths. /tmp, /home and /scratch are on a fresh disk. Output and status of the command are those
of this program; 125 says that the machine never told one, and its console is printed. Needs root.

``uml`` is User-mode Linux, a kernel that is an ordinary process: it boots in three seconds and computes at
nearly full speed, but has one CPU, no cpuset, no pressure files, no time namespace, no Landlock, no
nftables. The others are Debian's kernels in QEMU without hardware help: complete, and ten to seventy times
slower.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import lzma
import os
import shlex
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

HERE = Path(__file__).resolve().parent
CACHE = Path(os.environ.get("SANDBOXLIB_LAB_CACHE", "/var/cache/sandboxlib-lab"))
#: Debian's packages with the kernels for QEMU.
KERNELS = {"6.1": "linux-image-cloud-amd64", "6.12": "linux-image-6.12-cloud-amd64"}
#: What the initial RAM disk needs to reach the host's files and to show what it does.
MODULES = ("virtio_pci", "virtio_blk", "virtio_console", "virtiofs", "overlay", "ext4")
USER, UID = "lab", 4242
TOOLS = {"busybox": "busybox-static", "mke2fs": "e2fsprogs", "newuidmap": "uidmap", "depmod": "kmod"}
COMPILER = shlex.split(os.environ.get("CC") or "cc")
UML = {"linux.uml": "user-mode-linux", COMPILER[0]: "gcc"}
QEMU = {"qemu-system-x86_64": "qemu-system-x86", "/usr/lib/qemu/virtiofsd": "qemu-system-common"}
SYSTEMD = {"/lib/systemd/systemd": "systemd-sysv", "dbus-daemon": "dbus"}
PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


def main() -> int:
    """Boot, run, and return the command's status."""
    options = arguments()
    need({**TOOLS, **(UML if options.kernel == "uml" else QEMU), **(SYSTEMD if options.systemd else {})})
    if os.geteuid():
        sys.exit("the lab mounts and boots: it needs root")
    # A terminated lab leaves as little behind as one that ends.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    CACHE.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="run-", dir=CACHE) as folder:
        return Machine(options, Path(folder)).run()


def arguments() -> argparse.Namespace:
    """What is asked for on the command line."""
    parser = argparse.ArgumentParser(
        prog="lab", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kernel", default="uml", choices=("uml", *KERNELS))
    parser.add_argument(
        "--as",
        dest="who",
        default="root",
        choices=("root", "user", "session"),
        help="a user to whom a cgroup is delegated; or one, as after a plain login, to whom none is",
    )
    parser.add_argument("--systemd", action="store_true", help="systemd as process 1; else a shell script")
    parser.add_argument("--no-subids", action="store_true", help="the user has no subordinate ids")
    parser.add_argument("--delegate", default="cpu cpuset io memory pids", help="what systemd hands users")
    parser.add_argument("--rw", action="append", default=[], metavar="DIR", help="keep writes below DIR")
    parser.add_argument("--env", action="append", default=[], metavar="NAME=VALUE")
    parser.add_argument("--append", default="", metavar="ARGUMENTS", help="more for the kernel")
    parser.add_argument("--memory", default="2G")
    parser.add_argument("--timeout", type=float, default=1800, metavar="SECONDS")
    parser.add_argument("--verbose", action="store_true", help="print the machine's console at the end")
    parser.add_argument("command", nargs="+")
    return parser.parse_args()


def need(programs: dict[str, str]) -> None:
    """Check that all *programs* are there; says which packages to install."""
    missing = sorted(
        {package for program, package in programs.items() if not shutil.which(program, path=PATH)}
    )
    if missing:
        sys.exit(f"the lab needs packages that are not installed: {' '.join(missing)}")


def debian_kernel(series: str) -> Path:
    """Fetch one of Debian's kernels and unpack it, once; it is never installed."""
    place = CACHE / f"kernel-{series}"
    if not place.exists():
        with tempfile.TemporaryDirectory(prefix="kernel-", dir=CACHE) as folder:
            depends = capture("apt-cache", "depends", KERNELS[series])
            names = [line.split()[1] for line in depends.splitlines() if "Depends: linux-image" in line]
            package = (names or [KERNELS[series]])[0]
            run("apt-get", "download", "-qq", "-o", "APT::Sandbox::User=root", package, cwd=folder)
            (archive,) = Path(folder).glob("*.deb")
            run("dpkg", "-x", archive, f"{folder}/tree")
            (version,) = Path(folder, "tree/lib/modules").iterdir()
            run("depmod", "-b", f"{folder}/tree", version.name)
            Path(folder, "tree").rename(place)
    return place


def xstate_library(folder: Path) -> Path:
    """Compile xstate.c, which says what it is for, once for each of its versions."""
    source = HERE / "xstate.c"
    library = folder / f"xstate-{hashlib.sha256(source.read_bytes()).hexdigest()[:16]}.so"
    if not library.exists():
        # Several machines may start at the same time: each finds it whole or not at all.
        with tempfile.TemporaryDirectory(prefix="xstate-", dir=folder) as place:
            run(*COMPILER, "-O2", "-fPIC", "-shared", "-o", f"{place}/made", source)
            os.replace(f"{place}/made", library)
    return library


def run(*command: str | Path, cwd: str | Path | None = None) -> None:
    """Run a program that has to succeed; what it says goes to stderr."""
    subprocess.run(command, check=True, cwd=cwd, stdout=sys.stderr)


def capture(*command: str) -> str:
    """What a program that has to succeed writes."""
    return subprocess.run(command, check=True, text=True, stdout=subprocess.PIPE).stdout


class Machine:
    """One machine, from its disk to its end."""

    def __init__(self, options: argparse.Namespace, folder: Path) -> None:
        self.options = options
        self.folder = folder
        self.uml = options.kernel == "uml"
        self.tree = Path("/") if self.uml else debian_kernel(options.kernel)
        # A folder with one folder in it, named as the kernel's version.
        self.modules = self.tree / ("usr/lib/uml/modules" if self.uml else "lib/modules")
        self.binds = sorted({os.path.abspath(path) for path in options.rw})
        working = os.getcwd()
        # The machine's /tmp is its own.
        self.shown = [working] if working.startswith("/tmp/") and working not in self.binds else []

    def run(self) -> int:
        """Boot it and see it off."""
        self.job()
        (self.folder / "initrd").write_bytes(cpio(self.initrd()))
        disk = self.folder / "disk"
        with disk.open("wb") as file:
            file.truncate(16 << 30)
        mkfs = ["mke2fs", "-q", "-t", "ext4", "-O", "^has_journal", "-E", "lazy_itable_init=1"]
        subprocess.run([*mkfs, str(disk)], check=True, env={**os.environ, "PATH": PATH})
        (self.folder / "share").mkdir()
        with contextlib.ExitStack() as stack:
            log = stack.enter_context((self.folder / "log").open("w+b"))
            pipes = [os.pipe() for _ in range(3)]
            outputs = [write for _, write in pipes]
            command = self.user_mode(outputs) if self.uml else self.emulated(outputs, log, stack)
            machine = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, pass_fds=outputs
            )
            stack.callback(end, machine)
            status: list[bytes] = []
            sinks = [sys.stdout.buffer, sys.stderr.buffer, None]
            threads = [
                threading.Thread(target=copy, args=(read, sink, status))
                for (read, _), sink in zip(pipes, sinks, strict=True)
            ]
            for write, thread in zip(outputs, threads, strict=True):
                os.close(write)
                thread.start()
            try:
                machine.wait(self.options.timeout)
            except subprocess.TimeoutExpired:
                print(f"lab: no end after {self.options.timeout:g} s", file=sys.stderr)
            end(machine)
            for thread in threads:
                thread.join()
            if self.options.verbose or not status:
                log.seek(0)
                sys.stderr.write(log.read().decode(errors="replace").replace("\r", ""))
        return int(b"".join(status) or 125)

    # ---- what the machine finds --------------------------------------------------------------

    def job(self) -> None:
        """The files of /run/lab in the machine."""
        options = self.options
        job = self.folder / "job"
        job.mkdir()
        settings = {
            "LAB_AS": options.who,
            "LAB_INIT": "systemd" if options.systemd else "plain",
            "LAB_USER": USER,
            "LAB_UID": str(UID),
            "LAB_SUBIDS": "" if options.no_subids else "200000:65536",
            "LAB_DELEGATE": options.delegate,
        }
        environment = {
            "PATH": f"{Path(sys.executable).parent}:{PATH}",
            "LANG": "C.UTF-8",
            "PYTHONDONTWRITEBYTECODE": "1",
            "HOME": "/root",
            "USER": "root",
        }
        if options.who != "root":
            own = {"HOME": f"/home/{USER}", "USER": USER, "XDG_RUNTIME_DIR": f"/run/user/{UID}"}
            environment |= own
        environment |= dict(pair.split("=", 1) for pair in options.env)
        lines = ["#!/bin/sh", *(f"export {name}={shlex.quote(text)}" for name, text in environment.items())]
        lines.append(f"cd {shlex.quote(os.getcwd())} || cd /")
        lines.append(f"({shlex.join(options.command)}) </dev/null >/run/lab/out 2>/run/lab/err")
        lines.append("echo $? >/run/lab/status\n")
        places = enumerate([*self.binds, *self.shown])
        texts = {
            "settings": "".join(f"{name}={shlex.quote(text)}\n" for name, text in settings.items()),
            "binds": "".join(f"{number} {path}\n" for number, path in places),
            "job": "\n".join(lines),
        }
        for name, text in texts.items():
            (job / name).write_text(text)
            (job / name).chmod(0o755)

    def initrd(self) -> Iterator[tuple[str, bytes, int]]:
        """Names, contents and modes of the initial RAM disk."""
        for folder in ("bin", "dev", "proc", "sys", "host", "layer", "new", "modules"):
            yield folder, b"", stat.S_IFDIR | 0o755
        busybox = shutil.which("busybox", path=PATH)
        assert busybox is not None
        yield "bin/busybox", Path(busybox).read_bytes(), stat.S_IFREG | 0o755
        yield "init", (HERE / "guest.sh").read_bytes(), stat.S_IFREG | 0o755
        for number, path in enumerate(self.early_modules()):
            data = path.read_bytes()
            data = lzma.decompress(data) if path.suffix == ".xz" else data
            yield f"modules/{number:02}.ko", data, stat.S_IFREG | 0o644

    def early_modules(self) -> list[Path]:
        """The files of `MODULES` and of all that they need, in loading order; built-in ones have none."""
        (place,) = self.modules.iterdir()
        needs: dict[str, list[str]] = {}
        for line in (place / "modules.dep").read_text().splitlines():
            path, _, others = line.partition(":")
            name = Path(path).name.partition(".ko")[0].replace("-", "_")
            needs[name] = [*reversed(others.split()), path]
        order = dict.fromkeys(path for name in MODULES for path in needs.get(name, ()))
        return [place / path for path in order]

    def sharing(self) -> list[str | Path]:
        """
        Run what follows where the shared tree is put together, and end it with this program.

        The host's tree is bound alone, without what is mounted in it: its /proc, /sys and /dev stay here.
        """
        share = shlex.quote(str(self.folder / "share"))
        lines = [
            "mount --make-rprivate /",
            f"mount -t tmpfs share {share}",
            f"cd {share}",
            "mkdir -p root job binds modules/usr/lib/modules",
            "mount --bind / root && mount -o remount,bind,ro root",
            f"mount --bind {shlex.quote(str(self.folder / 'job'))} job",
            f"mount --bind {shlex.quote(str(self.modules))} modules/usr/lib/modules",
        ]
        for number, path in enumerate([*self.binds, *self.shown]):
            mode = "rw" if path in self.binds else "ro"
            lines.append(f"mkdir binds/{number} && mount --bind {shlex.quote(path)} binds/{number}")
            lines.append(f"mount -o remount,bind,{mode} binds/{number}")
        return [*CONTAINED, "sh", "-ec", "\n".join([*lines, '"$@"; exit $?']), "sh"]

    # ---- the two kinds of machines -------------------------------------------------------------

    def kernel_arguments(self) -> list[str]:
        """What every kernel is told."""
        options = self.options
        shared = "quiet loglevel=4 security=apparmor cgroup_no_v1=all"
        return [
            *shared.split(),
            "systemd.unit=lab.service",
            "systemd.show_status=no",
            *options.append.split(),
        ]

    def user_mode(self, outputs: list[int]) -> list[str | Path]:
        """The command that is the machine: a Linux kernel as a process."""
        kernel = shutil.which("linux.uml", path=PATH)
        assert kernel is not None
        folder = self.folder
        consoles = (f"con{number}=null,fd:{fd}" for number, fd in enumerate(outputs, 1))
        return [
            *self.sharing(),
            "env",
            f"LD_PRELOAD={xstate_library(CACHE)}",
            kernel,
            f"mem={self.options.memory}",
            f"initrd={folder}/initrd",
            f"ubda={folder}/disk",
            f"hostfs={folder}/share",
            f"uml_dir={folder}",
            "con=null",
            "con0=null,fd:1",
            *consoles,
            *self.kernel_arguments(),
        ]

    def emulated(self, outputs: list[int], log: object, stack: contextlib.ExitStack) -> list[str | Path]:
        """The command that is the machine: QEMU, beside a server for the shared tree."""
        folder = self.folder
        socket = folder / "share.sock"
        server = [*self.sharing(), "/usr/lib/qemu/virtiofsd", "-f", f"--socket-path={socket}"]
        server += ["-o", f"source={folder}/share,cache=always,xattr,log_level=warn"]
        serving = subprocess.Popen(server, stdout=log, stderr=log)  # type: ignore[call-overload]
        stack.callback(end, serving)
        wait_for(socket, serving)
        (image,) = (self.tree / "boot").glob("vmlinuz-*")
        told = [*self.kernel_arguments(), "console=ttyS0", "panic=-1", "mitigations=off", "nokaslr"]
        memory = self.options.memory
        command: list[str | Path] = [*CONTAINED, "qemu-system-x86_64", "-accel", "tcg,thread=multi"]
        for option in (
            "-M pc,memory-backend=memory -cpu max -smp 2 -nodefaults -no-user-config -display none",
            f"-m {memory} -object memory-backend-memfd,id=memory,share=on,size={memory}",
            f"-serial stdio -kernel {image} -initrd {folder}/initrd",
            f"-chardev socket,id=share,path={socket} -device vhost-user-fs-pci,chardev=share,tag=lab",
            f"-drive file={folder}/disk,format=raw,if=virtio,cache=unsafe,discard=unmap",
            "-no-reboot -device virtio-serial-pci",
        ):
            command += option.split()
        for number, fd in enumerate(outputs, 1):
            command += ["-chardev", f"file,id=port{number},path=/dev/fd/{fd}"]
            command += ["-device", f"virtserialport,chardev=port{number},nr={number}"]
        return [*command, "-append", " ".join(told)]


#: All that is started below this ends with it, and with this program, however that ends.
CONTAINED = ["setpriv", "--pdeathsig", "KILL", "unshare", "--pid", "--mount", "--kill-child", "--mount-proc"]


def end(process: subprocess.Popen[bytes]) -> None:
    """Kill and reap; nothing happens if it has ended."""
    process.kill()
    process.wait()


def copy(fd: int, sink: object, status: list[bytes]) -> None:
    """Pass on what comes from the machine; without a *sink* it is the status."""
    with open(fd, "rb", buffering=0) as source:
        while data := source.read(1 << 16):
            if sink is None:
                status.append(data)
            else:
                sink.write(data)  # type: ignore[attr-defined]
                sink.flush()  # type: ignore[attr-defined]


def wait_for(path: Path, process: subprocess.Popen[bytes]) -> None:
    """Wait until *path* is there, or the process that is to make it has ended."""
    while not path.exists() and process.poll() is None:
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(0.01)


def cpio(entries: Iterator[tuple[str, bytes, int]]) -> bytes:
    """Pack an archive as the kernel reads it: Documentation/driver-api/early-userspace/buffer-format.rst."""
    packed = bytearray()
    for number, (name, data, mode) in enumerate([*entries, ("TRAILER!!!", b"", 0)], 1):
        fields = (number, mode, 0, 0, 1, 0, len(data), 0, 0, 0, 0, len(name) + 1, 0)
        packed += b"070701" + "".join(f"{field:08x}" for field in fields).encode() + name.encode() + b"\0"
        packed += bytes(-len(packed) % 4) + data
        packed += bytes(-len(packed) % 4)
    return bytes(packed)


if __name__ == "__main__":
    sys.exit(main())
