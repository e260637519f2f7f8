"""
Images from a shell: pull, push, images, inspect, history, tag, rmi, save, load, commit, prune, login, logout.

What is asked for goes to stdout; how far a transfer is goes to stderr, as bars where that is a
terminal and rich is installed (``pip install sandboxlib[cli]``), else as a line for each layer.
"""

from __future__ import annotations

import argparse
import getpass
import json
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from sandboxlib.errors import SpecError, printable

if TYPE_CHECKING:
    from sandboxlib.image.progress import Progress
    from sandboxlib.images import Image

INSECURE = "plain HTTP will do where TLS is not spoken"

Carry = Callable[[argparse.Namespace], int]


def add(verbs: Any) -> None:
    """Add the verbs of images to those of the command line."""

    def verb(name: str, carry_out: Carry, text: str, *arguments: str) -> argparse.ArgumentParser:
        found: argparse.ArgumentParser = verbs.add_parser(
            name, help=text, description=f"{text[0].upper()}{text[1:]}."
        )
        for argument in arguments:
            found.add_argument(argument.lower(), metavar=argument)
        found.set_defaults(carry_out=carry_out)
        return found

    for name, carry_out, text in (
        ("pull", pull, "fetch an image from its registry"),
        ("push", push, "send an image to a registry"),
    ):
        parser = verb(name, carry_out, text, "NAME")
        parser.add_argument("--insecure", action="store_true", help=INSECURE)
        parser.add_argument("--ca", metavar="FILE", help="certificates to trust")
        parser.add_argument("--quiet", action="store_true", help="only the digest")
        if name == "pull":
            parser.add_argument("--platform", metavar="OS/ARCH[/VARIANT]", help="this machine's otherwise")
        else:
            parser.add_argument("target", nargs="?", metavar="TARGET", help="what it is called there")
    verb("images", images, "list the images of this user").add_argument(
        "--json", action="store_true", help="for programs"
    )
    verb("inspect", inspect, "show all that is known of an image, as JSON", "NAME")
    verb("history", history, "show how an image was made", "NAME")
    verb("tag", tag, "give an image one more name", "NAME", "NEW")
    rmi = verb("rmi", rmi_, "remove images, or names of them")
    rmi.add_argument("names", nargs="+", metavar="NAME")
    save = verb("save", save_, "write images to a file that load, podman and skopeo read")
    save.add_argument("names", nargs="+", metavar="NAME")
    save.add_argument("--output", "-o", required=True, metavar="FILE")
    save.add_argument("--format", choices=["oci", "oci-dir", "docker"], default="oci")
    load_ = verb("load", load, "bring in the images of an archive")
    load_.add_argument(
        "file", nargs="?", default="-", metavar="FILE", help="standard input if left out, or -"
    )
    commit = verb("commit", commit_, "run a command in an image, and make an image of what it has changed")
    commit.add_argument("--message", "-m", default="", help="why")
    commit.add_argument("--author", default="", help="who")
    commit.add_argument("name", metavar="NAME")
    commit.add_argument("new", metavar="NEW")
    commit.add_argument("command", nargs=argparse.REMAINDER, metavar="[--] COMMAND")
    prune = verb("prune", prune_, "remove images without a name, and what no image needs")
    prune.add_argument("--all", action="store_true", help="all that no sandbox uses")
    login = verb("login", login_, "keep a user and a password for a registry", "REGISTRY")
    login.add_argument("--username", "-u", metavar="NAME")
    login.add_argument("--password-stdin", action="store_true", help="read it from stdin")
    login.add_argument("--insecure", action="store_true", help=INSECURE)
    login.add_argument("--ca", metavar="FILE", help="certificates to trust")
    verb("logout", logout_, "forget them", "REGISTRY")


# ---- to and from registries -----------------------------------------------------------------------


def pull(options: argparse.Namespace) -> int:
    """Carry out ``pull``."""
    from sandboxlib.images import Image

    with shown(quiet=options.quiet) as on_progress:
        image = Image.pull(
            options.name,
            platform=options.platform,
            on_progress=on_progress,
            insecure=options.insecure,
            ca=options.ca,
        )
    print_(image.digest)
    return 0


def push(options: argparse.Namespace) -> int:
    """Carry out ``push``."""
    from sandboxlib.images import Image

    image = Image.get(options.name)
    with shown(quiet=options.quiet) as on_progress:
        digest = image.push(
            options.target or options.name, on_progress=on_progress, insecure=options.insecure, ca=options.ca
        )
    print_(digest)
    return 0


@contextmanager
def shown(*, quiet: bool) -> Iterator[Callable[[Progress], object] | None]:
    """Show how far a transfer is, while the block runs."""
    if quiet:
        yield None
        return
    if sys.stderr.isatty():
        try:
            from rich.progress import BarColumn, DownloadColumn, TextColumn, TransferSpeedColumn
            from rich.progress import Progress as Bars
        except ImportError:
            pass
        else:
            from rich.console import Console

            columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
            with Bars(*columns, console=Console(stderr=True)) as bars:
                yield _Bars(bars)
            return
    yield _Lines()


class _Bars:
    """One bar for each layer and each thing that is done to it."""

    def __init__(self, bars: Any) -> None:
        self._bars = bars
        self._known: dict[tuple[str, str], Any] = {}

    def __call__(self, event: Progress) -> None:
        if not event.digest:
            return
        key = (event.kind, event.digest)
        if key not in self._known:
            text = f"{event.digest.partition(':')[2][:12]} {event.kind}"
            self._known[key] = self._bars.add_task(text, total=event.total or None)
        self._bars.update(self._known[key], completed=event.current, total=event.total or None)


class _Lines:
    """A line when something begins, and none while it goes on."""

    def __init__(self) -> None:
        self._said: set[tuple[str, str]] = set()

    def __call__(self, event: Progress) -> None:
        key = (event.kind, event.digest)
        if key not in self._said:
            self._said.add(key)
            sys.stderr.write(f"{event}\n")


def login_(options: argparse.Namespace) -> int:
    """Carry out ``login``."""
    from sandboxlib.image import registry

    username = options.username
    if username is None:
        if options.password_stdin or not sys.stdin.isatty():
            raise SpecError("--username", None, "given where stdin is no terminal")
        username = input("Username: ")
    if options.password_stdin:
        password = sys.stdin.readline().rstrip("\r\n")
    elif sys.stdin.isatty():
        password = getpass.getpass()
    else:
        raise SpecError("--password-stdin", False, "given where stdin is no terminal")
    file = registry.login(options.registry, username, password, insecure=options.insecure, ca=options.ca)
    print_(f"kept in {file}")
    return 0


def logout_(options: argparse.Namespace) -> int:
    """Carry out ``logout``."""
    from sandboxlib.image import registry

    found = registry.logout(options.registry)
    print_(f"forgotten: {options.registry}" if found else f"nothing was known of {options.registry}")
    return 0


# ---- in the store -----------------------------------------------------------------------------------


def images(options: argparse.Namespace) -> int:
    """Carry out ``images``."""
    from sandboxlib.images import Image

    found = Image.list()
    if options.json:
        print_(json.dumps([known(image) for image in found], indent=2))
        return 0
    rows = [
        (familiar(image.reference), short(image.id), image.platform, image.created, size(image.size))
        for image in found
    ]
    table(("NAME", "ID", "PLATFORM", "CREATED", "SIZE"), rows)
    return 0


def inspect(options: argparse.Namespace) -> int:
    """Carry out ``inspect``."""
    from sandboxlib.images import Image

    print_(json.dumps(known(Image.get(options.name)), indent=2))
    return 0


def history(options: argparse.Namespace) -> int:
    """Carry out ``history``."""
    from sandboxlib.images import Image

    image = Image.get(options.name)
    sizes = iter(image.layers)
    rows = []
    for step in image.history:
        layer = None if step.empty_layer else next(sizes, None)
        rows.append(
            (step.created, "" if layer is None else size(layer.size), step.created_by or step.comment)
        )
    table(("CREATED", "SIZE", "CREATED BY"), rows[::-1])
    return 0


def tag(options: argparse.Namespace) -> int:
    """Carry out ``tag``."""
    from sandboxlib.images import Image

    Image.get(options.name).tag(options.new)
    return 0


def rmi_(options: argparse.Namespace) -> int:
    """Carry out ``rmi``."""
    from sandboxlib.images import Image

    for name in options.names:
        Image.remove(name)
    return 0


def save_(options: argparse.Namespace) -> int:
    """Carry out ``save``."""
    from sandboxlib.images import Image, save

    save([Image.get(name) for name in options.names], options.output, format=options.format)
    return 0


def load(options: argparse.Namespace) -> int:
    """Carry out ``load``."""
    from sandboxlib.images import Image

    for image in Image.load(options.file):
        print_(familiar(image.reference) or image.digest)
    return 0


def commit_(options: argparse.Namespace) -> int:
    """Carry out ``commit``."""
    from sandboxlib.blocking import Sandbox
    from sandboxlib.cli import words

    command = options.command[1:] if options.command[:1] == ["--"] else options.command
    with Sandbox(image=options.name) as sandbox:
        done = sandbox.run(words(sandbox, command, None), stdout=None, stderr=None)
        if done.returncode != 0:
            sys.stderr.write("sandboxlib: the command has failed, so nothing is made of what it did\n")
            return done.returncode if done.returncode > 0 else 128 - done.returncode
        image = sandbox.commit(options.new, message=options.message, author=options.author)
    print_(image.digest)
    return 0


def prune_(options: argparse.Namespace) -> int:
    """Carry out ``prune``."""
    from sandboxlib.images import Image

    gone = Image.prune(all=options.all)
    print_(f"removed {gone.images} images, {gone.blobs} files, {gone.layers} layers: {size(gone.bytes)}")
    return 0


# ---- how it looks -----------------------------------------------------------------------------------


def known(image: Image) -> dict[str, Any]:
    """What is known of an image, for JSON."""
    return {
        "reference": image.reference,
        "digest": image.digest,
        "id": image.id,
        "platform": image.platform,
        "created": image.created,
        "size": image.size,
        "layers": [layer._asdict() for layer in image.layers],
        "config": dict(image.config),
        "history": [step._asdict() for step in image.history],
    }


def familiar(reference: str) -> str:
    """A name as people write it."""
    from sandboxlib.reference import Reference

    return Reference.parse(reference).familiar if reference else ""


def short(digest: str) -> str:
    """The first characters of a digest."""
    return digest.partition(":")[2][:12]


def size(number: int) -> str:
    """A number of bytes for people; binary multiples, as they are read."""
    value = float(number)
    for unit in ("B", "K", "M", "G"):
        if value < 1024:
            return f"{value:.0f}{unit}" if unit == "B" or value >= 100 else f"{value:.1f}{unit}"
        value /= 1024
    return f"{value:.1f}T"


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print rows below their heads, each column as wide as it has to be."""
    widths = [max(len(row[i]) for row in (head, *rows)) for i in range(len(head))]
    # What an image says of itself may be anything.
    for row in (head, *([printable(text) for text in row] for row in rows)):
        print_("  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip())


def print_(text: str) -> None:
    """Print a line; names may have bytes that are no text."""
    sys.stdout.buffer.write(os.fsencode(text) + b"\n")
    sys.stdout.flush()


__all__ = ["add"]
