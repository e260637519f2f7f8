"""Everything that is done to this checkout, one session each; ``./do NAME`` runs them."""

from __future__ import annotations

import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from threading import Thread
from typing import NamedTuple

import nox
from nox.command import CommandFailed

nox.options.sessions = ["lint", "types", "test"]
nox.options.default_venv_backend = "virtualenv"
nox.options.reuse_existing_virtualenvs = True
nox.needs_version = ">=2025.2.9"

HERE = Path(__file__).resolve().parent
BUILD = ["setuptools>=77", "cffi>=2.0"]
PACKAGES = HERE / "system-packages.txt"
SOURCES = ["sandboxlib", "_native", "tests", "examples", "benchmarks", "docs", "noxfile.py", "setup.py", "do"]

# Runs pytest with arguments and variables of the environment.
Run = Callable[[Sequence[str], Mapping[str, str]], None]
# How many tests that failed get a second look, see `twice`.
UNSTEADY = 3

# Boots a kernel of its own and runs a command in it: see docs/contributing/lab.md.
LAB = HERE / "tools" / "lab"
# What the lab exists for: not met there is an error there, whatever is mandatory here.
LAB_MUST_RUN = "lab,userns,netns,overlay"
LAB_CGROUPS = "cgroup2:memory,cgroup2:cpu,cgroup2:io,cgroup2:pids"


class Place(NamedTuple):
    """One way to run tests in the lab: what has to be met there, the lab's options, and which tests."""

    must_run: str
    options: Sequence[str]
    kernel: str = "uml"
    # An expression of marks; without one it is every test.
    marks: str = ""


# As on a machine on which Docker or podman has run: new network namespaces take it over.
ROUTER = ["--append", "sysctl.net.ipv4.ip_forward=1"]

# The first three run all tests: in three ways to be allowed. The others run what only they can show.
LAB_PLACES = {
    "root": Place(f"{LAB_MUST_RUN},{LAB_CGROUPS},root,apparmor", ["--as", "root", *ROUTER]),
    "user": Place(f"{LAB_MUST_RUN},{LAB_CGROUPS},unprivileged", ["--as", "user"]),
    "session": Place(f"{LAB_MUST_RUN},unprivileged", ["--as", "session", "--no-subids"]),
    "systemd": Place(
        f"{LAB_MUST_RUN},unprivileged,systemd_user",
        ["--as", "session", "--systemd"],
        marks="systemd_user",
    ),
    "scope": Place(
        f"{LAB_MUST_RUN},{LAB_CGROUPS},unprivileged",
        ["--as", "session", "--systemd"],
        marks="cgroup or cgroup2",
    ),
    "selinux": Place(
        f"{LAB_MUST_RUN},{LAB_CGROUPS},root,selinux",
        ["--as", "root", "--append", "security=selinux selinux=1"],
        marks="selinux",
    ),
    "qemu": Place(
        f"{LAB_MUST_RUN},{LAB_CGROUPS},root,cgroup2:cpuset,psi,landlock,namespace,bridge",
        ["--as", "root", *ROUTER],
        kernel="6.12",
        marks="qemu",
    ),
    "qemu-user": Place(
        f"{LAB_MUST_RUN},{LAB_CGROUPS},unprivileged,cgroup2:cpuset,psi",
        ["--as", "user"],
        kernel="6.1",
        marks="qemu",
    ),
}


def install(session: nox.Session, *extras: str) -> None:
    """
    Install the checkout in place, with *extras*, and build the extension if its sources have changed.

    Without build isolation: the two packages that the build needs are installed
    once, instead of anew for each build.
    """
    session.install("--quiet", *BUILD)
    wanted = f".[{','.join(extras)}]" if extras else "."
    session.install("--quiet", "--no-build-isolation", "--editable", wanted)


def mandatory() -> set[str]:
    """The needs that must be met: names in ``SANDBOXLIB_MUST_RUN``."""
    return {name.strip() for name in os.environ.get("SANDBOXLIB_MUST_RUN", "").split(",")} - {""}


def report_missing_packages(session: nox.Session) -> None:
    """Say which system packages are not there; the tests that need them will skip."""
    if not shutil.which("dpkg-query"):
        return
    missing = [name for name in package_names() if not (Path("/var/lib/dpkg/info") / f"{name}.list").exists()]
    # Packages for several architectures have theirs in the name.
    missing = [name for name in missing if not list(Path("/var/lib/dpkg/info").glob(f"{name}:*.list"))]
    if missing:
        session.warn(
            f"not installed: {' '.join(missing)}; tests that need them skip (./do packages installs them)"
        )


def package_names() -> list[str]:
    """The names in system-packages.txt."""
    lines = (line.split("#")[0].strip() for line in PACKAGES.read_text().splitlines())
    return [line for line in lines if line]


@nox.session
def run(session: nox.Session) -> None:
    """Set up and run the example, examples/main_job.py."""
    install(session)
    session.run("python", "examples/main_job.py", *session.posargs)


@contextmanager
def records_of_a_run() -> Iterator[str]:
    """A folder for records of what passed; what is in it in the end is kept in SANDBOXLIB_KEEP_RECORDS."""
    with tempfile.TemporaryDirectory(prefix="sandboxlib-records-") as folder:
        try:
            yield folder
        finally:
            if kept := os.environ.get("SANDBOXLIB_KEEP_RECORDS"):
                Path(kept).mkdir(parents=True, exist_ok=True)
                for record in Path(folder).glob("*.passed"):
                    shutil.copy(record, kept)


@nox.session
def test(session: nox.Session) -> None:
    """Set up and run all tests on this machine; arguments go to pytest."""
    install(session, "test")
    report_missing_packages(session)
    must = mandatory()
    with records_of_a_run() as folder:
        failed = False
        if must & {"all", "lab"} and "-lab" not in must:
            # The lab first: a test which passed there need not be possible here.
            failed = not run_in_lab(session, Path(folder), shared=True)
        records = os.pathsep.join(str(path) for path in sorted(Path(folder).glob("*.passed")))

        def on_this_machine(arguments: Sequence[str], settings: Mapping[str, str]) -> None:
            env = {"SANDBOXLIB_PASSED_ELSEWHERE": records, "PYTHONUTF8": "1", **settings}
            session.run("python", "-m", "pytest", *arguments, env=env)

        if not twice(session, on_this_machine, session.posargs, Path(folder) / "here"):
            session.error("tests failed")
    if failed:
        session.error("tests failed in the lab, see above")


def twice(session: nox.Session, run: Run, arguments: Sequence[str], record: Path) -> bool:
    """
    Run pytest, and a test or two that failed once more by themselves; tell whether all passed in the end.

    A test that waits for what a slow machine does in good time may fail once. Said loudly: it is to
    be mended all the same. More than `UNSTEADY` failures are no accident.
    """
    failures = record.with_suffix(".failed")
    try:
        run(arguments, {"SANDBOXLIB_RECORD": f"{record}.passed", "SANDBOXLIB_FAILED": str(failures)})
    except CommandFailed:
        names = failures.read_text().splitlines() if failures.exists() else []
        if not 0 < len(names) <= UNSTEADY or any("::" not in name for name in names):
            return False
        session.warn(f"failed, and run once more by themselves: {' '.join(names)}")
        try:
            run(names, {"SANDBOXLIB_RECORD": f"{record}-again.passed"})
        except CommandFailed:
            return False
        session.warn(f"failed at first and passed then, so unsteady: {' '.join(names)}")
    return True


@nox.session
def lab(session: nox.Session) -> None:
    """Run the tests in virtual machines with cgroup v2 only, as root and as plain users."""
    install(session, "test")
    with records_of_a_run() as folder:
        if not run_in_lab(session, Path(folder)):
            session.error("tests failed in the lab, see above")


def run_in_lab(session: nox.Session, records: Path, *, shared: bool = False) -> bool:
    """
    Run the tests in the lab, in each of `LAB_PLACES`; tell whether all passed.

    Leaves in *records* one file for each place with the tests that passed. Where they are *shared*,
    tests run in one of the places for all of them, and only those of limits in each: see tests/conftest.py.
    """
    session.env["SANDBOXLIB_LAB_SHARED"] = "1" if shared else ""
    records.chmod(0o1777)  # the plain user in the machine writes here too
    # The other tests are the same on every machine, and slow in that one.
    chosen = any(argument.startswith("tests") for argument in session.posargs)
    paths = [] if chosen else ["tests/kernel"]
    # Who names a file wants it where all tests run: it may have nothing for the other places.
    usual = [name for name, place in LAB_PLACES.items() if not (chosen and place.marks)]

    def passes(name: str) -> bool:
        session.log(f"in the lab, {name}:")
        success = twice(
            session, in_the_lab(session, name, records), [*paths, *session.posargs], records / name
        )
        if not success:
            session.warn(f"the tests failed in the lab: {name}")
        return success

    names = os.environ.get("SANDBOXLIB_LAB_PLACES", ",".join(usual)).split(",")
    # A machine of User-mode Linux has one CPU.
    with ThreadPoolExecutor(min(2, os.cpu_count() or 1)) as machines:
        return all(list(machines.map(passes, names)))


@contextmanager
def labelled(name: str) -> Iterator[int]:
    """A descriptor; what is written to it is printed line by line, with *name* in front."""
    read, write = os.pipe()

    def show() -> None:
        with open(read, encoding="utf-8", errors="replace") as lines:
            for line in lines:
                print(f"{name}: {line}", end="", flush=True)

    thread = Thread(target=show)
    thread.start()
    try:
        yield write
    finally:
        os.close(write)
        thread.join()


def in_the_lab(session: nox.Session, name: str, records: Path) -> Run:
    """Return what runs pytest in one place of the lab."""
    place = LAB_PLACES[name]
    python = str(Path(session.bin) / "python")
    kernel = os.environ.get("SANDBOXLIB_LAB_KERNEL", place.kernel)
    machine = ["python", str(LAB), "--kernel", kernel, "--timeout", "3600", *place.options]
    machine += ["--rw", str(records)]
    pytest = [python, "-m", "pytest", "-p", "no:cacheprovider", "--timeout=600"]
    pytest += ["-m", f"({place.marks}) and not slow" if place.marks else "not slow"]
    fixed = {
        "SANDBOXLIB_LAB": name,
        "SANDBOXLIB_LAB_SHARED": session.env["SANDBOXLIB_LAB_SHARED"] or "",
        "SANDBOXLIB_MUST_RUN": place.must_run,
        "PYTHONUTF8": "1",
        # The checkout is read-only there.
        "HYPOTHESIS_STORAGE_DIRECTORY": "/tmp/hypothesis",
    }

    def run(arguments: Sequence[str], settings: Mapping[str, str]) -> None:
        environment = [f"--env={name}={value}" for name, value in {**fixed, **settings}.items()]
        command = [*machine, *environment, "--", *pytest, *arguments]
        with labelled(name) as output:
            session.run(*command, external=True, stdout=output)

    return run


@nox.session
def lint(session: nox.Session) -> None:
    """Check style; ``./do lint --fix`` mends what it can."""
    session.install("--quiet", "ruff>=0.17")
    fix = "--fix" in session.posargs
    session.run("ruff", "check", *(["--fix"] if fix else []), ".")
    session.run("ruff", "format", *([] if fix else ["--check"]), ".")


@nox.session
def types(session: nox.Session) -> None:
    """Check types."""
    install(session, "test", "lint")
    session.run("mypy", *session.posargs)


@nox.session
def native(session: nox.Session) -> None:
    """Test the C code: under ASan and UBSan, and the launcher's decoder by fuzzing."""
    install(session, "test")
    session.run("python", "-m", "pytest", "tests/native", *session.posargs)


@nox.session
def package(session: nox.Session) -> None:
    """Build the sdist, a wheel from it, and run the tests that need no root against the installed wheel."""
    session.install("--quiet", "build", "abi3audit", *BUILD)
    with tempfile.TemporaryDirectory() as folder:
        session.run("python", "-m", "build", "--no-isolation", "--outdir", folder, ".", silent=True)
        (wheel,) = Path(folder).glob("*.whl")
        if not re.search(r"-cp311-abi3-linux_\w+\.whl$", wheel.name):
            session.error(f"{wheel.name} is not a wheel for all of Python 3.11 and newer")
        session.run("abi3audit", "--strict", "--summary", str(wheel))
        session.install("--quiet", "--force-reinstall", "--no-deps", str(wheel))
        session.install("--quiet", f"sandboxlib[test] @ {wheel.as_uri()}")
        # -P: the checkout, which is the working directory, must not be what is imported.
        session.run("python", "-P", "-m", "pytest", "tests/unit", "tests/property", *session.posargs)


@nox.session(python=["3.11", "3.12", "3.13", "3.14"])
def abi3(session: nox.Session) -> None:
    """Run the unit and property tests on each Python that is installed."""
    install(session, "test")
    session.run("python", "-m", "pytest", "tests/unit", "tests/property", *session.posargs)


@nox.session
def docs(session: nox.Session) -> None:
    """Build the documentation into docs/_build; a broken reference is an error."""
    install(session, "docs")
    session.run("sphinx-build", "--fail-on-warning", "--keep-going", "-b", "html", "docs", "docs/_build")


@nox.session
def bench(session: nox.Session) -> None:
    """Measure start-up and memory beside other tools; prints the bars next to the figures."""
    install(session, "bench")
    session.run("python", "-m", "benchmarks", *session.posargs)


@nox.session(venv_backend="none")
def packages(session: nox.Session) -> None:
    """Install what is listed in system-packages.txt (Debian and its kin, as root); --list only prints it."""
    if "--list" in session.posargs:
        print("\n".join(package_names()))
        return
    if not shutil.which("apt-get"):
        session.error(f"there is no apt-get here; install the counterparts of {PACKAGES.name} by hand")
    quiet = {"DEBIAN_FRONTEND": "noninteractive"}
    session.run("apt-get", "update", "-qq", external=True, env=quiet)
    session.run(
        *["apt-get", "install", "-qq", "--yes", "--no-install-recommends", *package_names()],
        external=True,
        env=quiet,
    )
