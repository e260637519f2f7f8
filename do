#!/usr/bin/env python3
"""
The one door to this checkout: ``./do run``, ``./do test``, ``./do lint``, ...

Needs Python (3.11 or newer) and a C compiler, nothing else: it makes the
virtual environment ``.venv``, installs nox there, and hands over to the nox
session of that name. It touches nothing outside the checkout, so it also works
where the system's own pip refuses to install. Everything is fetched from the
package index that pip is configured for.
"""

# The first lines must parse, and find a newer Python, on any Python 3.6.
import os
import shutil
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
VENV = HERE / ".venv"
OLDEST = (3, 11)
USAGE = """\
./do run               set everything up and run the example, examples/main_job.py
./do test [ARGUMENT..] set everything up and run the tests; arguments go to pytest
./do packages          install the system packages that some tests need (Debian, root)
./do lint | types | native | lab | package | abi3 | docs | bench
                       one nox session each; ./do --list describes them"""


def use_newer_python() -> None:
    """Start again under the newest Python on the path, if this one is too old."""
    if sys.version_info >= OLDEST:
        return
    for minor in range(20, OLDEST[1] - 1, -1):
        newer = shutil.which("python3.{}".format(minor))  # noqa: UP032 - has to parse on an old Python
        # A version manager may have a stub on the path for a Python that is not there.
        if newer and subprocess.call([newer, "-c", ""], stderr=subprocess.DEVNULL) == 0:
            os.execv(newer, [newer, __file__, *sys.argv[1:]])
    sys.exit("sandboxlib needs Python 3.11 or newer; this is " + sys.version.split()[0])


def find_compiler() -> None:
    """Check that a C program can be built, and export ``CC`` if Python's own choice is not installed."""
    import shlex
    import sysconfig

    own = os.environ.get("CC") or sysconfig.get_config_var("CC") or "cc"
    if not shutil.which(shlex.split(own)[0]):
        found = next((name for name in ("cc", "gcc", "clang") if shutil.which(name)), None)
        if not found or "CC" in os.environ:
            sys.exit(f"sandboxlib needs a C compiler and found none ({own}); install one, e.g. gcc")
        os.environ["CC"] = own = found
    headers = "#include <stdio.h>\n#include <linux/seccomp.h>\n"
    probe = subprocess.run(
        [*shlex.split(own), "-E", "-o", os.devnull, "-x", "c", "-"],
        input=headers, capture_output=True, text=True, check=False,
    )  # fmt: skip
    if probe.returncode:
        sys.exit(
            f"the C compiler ({own}) has no headers of the C library and of Linux; "
            f"install them, e.g. libc6-dev\n{probe.stderr}"
        )


def pip_setting(name: str, default: str) -> str:
    """A global setting of pip, from where pip itself looks: the environment, then its files."""
    import configparser

    parser = configparser.RawConfigParser(strict=False)
    home = os.environ.get("XDG_CONFIG_HOME") or os.path.expanduser("~/.config")
    # Later files win. PIP_CONFIG_FILE=/dev/null switches all off for pip; here it is merely one more.
    files = [
        "/etc/xdg/pip/pip.conf",
        "/etc/pip.conf",
        os.path.expanduser("~/.pip/pip.conf"),
        f"{home}/pip/pip.conf",
    ]
    parser.read([*files, os.environ.get("PIP_CONFIG_FILE", os.devnull)])
    written = parser.get("global", name, fallback=default)
    return os.environ.get("PIP_" + name.upper().replace("-", "_"), written)


def fetch_pip(folder: Path) -> Path:
    """Download a wheel of pip into *folder*: from the index that pip is configured for, else from Debian."""
    if index := pip_setting("index-url", ""):
        return fetch_from_index(index, folder)
    if shutil.which("apt-get") and shutil.which("dpkg-deb"):
        return fetch_from_debian(folder)
    sys.exit("this Python has no ensurepip; install it (python3-venv), or configure an index-url for pip")


def fetch_from_debian(folder: Path) -> Path:
    """Download Debian's package of the wheel, verified by apt; lists of its own need no root."""
    lists, package = folder / "lists", "python3-pip-whl"
    (lists / "partial").mkdir(parents=True)
    settings = {
        "Dir::State::Lists": str(lists),
        "Dir::State::Status": os.devnull,
        "Dir::Cache": str(folder),
        "Debug::NoLocking": "1",
        # As root apt would fetch as a user of its own, who may not write here.
        "APT::Sandbox::User": "root",
    }
    own = ["-qq", *(f"--option={name}={value}" for name, value in settings.items())]
    subprocess.run(["apt-get", *own, "update"], check=True)
    subprocess.run(["apt-get", *own, "download", package], check=True, cwd=folder)
    (archive,) = folder.glob(f"{package}_*.deb")
    subprocess.run(["dpkg-deb", "--extract", str(archive), str(folder / "root")], check=True)
    (wheel,) = (folder / "root").glob("usr/share/python-wheels/pip-*.whl")
    return wheel


def fetch_from_index(index: str, folder: Path) -> Path:
    """Download the newest wheel of pip from a package index into *folder*, with its checksum verified."""
    import hashlib
    import re
    import ssl
    import urllib.parse
    import urllib.request

    index = index.rstrip("/") + "/pip/"
    trust = ssl.create_default_context(cafile=pip_setting("cert", "") or None)
    with urllib.request.urlopen(index, context=trust, timeout=60) as page:
        listing = page.read().decode()
    pattern = r'<a\s[^>]*href="([^"#]*/pip-([0-9.]+)-py3-none-any\.whl)#sha256=([0-9a-f]{64})"([^>]*)>'
    wheels = [match for match in re.findall(pattern, listing) if "data-yanked" not in match[3]]
    if not wheels:
        sys.exit(f"{index} lists no wheel of pip that can be used; install python3-venv instead")
    link, _, digest, _ = max(wheels, key=lambda match: tuple(map(int, match[1].split("."))))
    with urllib.request.urlopen(urllib.parse.urljoin(index, link), context=trust, timeout=60) as download:
        data = download.read()
    if hashlib.sha256(data).hexdigest() != digest:
        sys.exit(f"{link} does not have the checksum that {index} promises")
    wheel = folder / str(link).rsplit("/", 1)[-1]
    wheel.write_bytes(data)
    return wheel


def make_environment() -> None:
    """
    Make ``.venv`` with nox in it; ``bin/nox`` comes last, so half an environment is made anew.

    Some distributions put `ensurepip` into a package of its own. There an
    environment can be made all the same, and pip comes from where this machine's packages come from.
    """
    import importlib.util
    import tempfile

    print(f"making {VENV}", flush=True)
    with_pip = importlib.util.find_spec("ensurepip") is not None
    options = [] if with_pip else ["--without-pip"]
    subprocess.run([sys.executable, "-m", "venv", "--clear", *options, str(VENV)], check=True)
    python = str(VENV / "bin/python")
    with tempfile.TemporaryDirectory() as folder:
        # A wheel can be run from where it lies, to install itself as well.
        pip = ["-m", "pip"] if with_pip else [f"{fetch_pip(Path(folder))}/pip"]
        install = [python, *pip, "install", "--quiet", "--disable-pip-version-check"]
        subprocess.run([*install, "nox>=2025.2.9"], check=True)


def main() -> None:
    """Do what the first argument says."""
    use_newer_python()
    command, arguments = (sys.argv[1:2] or ["--help"])[0], sys.argv[2:]
    if command in {"-h", "--help"}:
        print(USAGE)
        return
    os.chdir(HERE)
    # Plain users, and root of a sandbox, read what is installed here: some tests run as such.
    os.umask(0o022)
    nox = VENV / "bin/nox"
    # The second: the Python that it was made with may have gone.
    ready = nox.exists() and (VENV / "bin/python").exists()
    if command != "--list":
        find_compiler()
    try:
        if not ready:
            make_environment()
    except subprocess.CalledProcessError as error:
        sys.exit(f"could not make the environment {VENV}: {error}")
    chosen = ["--list"] if command == "--list" else ["--session", command, "--", *arguments]
    sys.stdout.flush()
    os.execv(nox, [str(nox), "--noxfile", "noxfile.py", *chosen])


if __name__ == "__main__":
    main()
