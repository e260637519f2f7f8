"""
Every error that sandboxlib raises, and nothing else.

::

    SandboxError                        root; never raised itself
    ├─ SpecError(ValueError)            you asked for something that makes no sense
    ├─ UnsupportedError                 this host cannot do it
    ├─ KernelError(OSError)             a system call failed
    ├─ ImageError                       digest, manifest, layer, registry
    ├─ NetworkError                     addresses, ports, interfaces
    ├─ BuildError                       a step of a build failed
    │  └─ DockerfileError               the text of a Dockerfile makes no sense
    ├─ ViolationError                   unsafe input: an escape, a race, a trick
    ├─ TooLargeError                    there is more inside than the caller lets in
    ├─ StateError(RuntimeError)         the object is not in a state that allows this
    ├─ ExitError(CalledProcessError)    the command failed and check=True
    │  ├─ CommandNotFoundError(FileNotFoundError)        exit 127
    │  └─ CommandNotExecutableError(PermissionError)     exit 126
    └─ TimeoutExpired(subprocess.TimeoutExpired)         the caller's patience ended

They are split by whose fault it is: yours (`SpecError`, `StateError`), the
host's (`UnsupportedError`, `KernelError`), the input's (`ViolationError`,
`TooLargeError`, `ImageError`), or the command's (`ExitError`, `TimeoutExpired`).
"""

from __future__ import annotations

import errno as _errno
import os
import subprocess

from sandboxlib.hints import HINTS


def printable(text: str, keep: str = "") -> str:
    r"""
    *text* with all that a terminal may obey, or that cannot be seen, as it is written in Python.

    Names come from inside, and from others' archives and hosts: one may hold escape sequences, line ends, or
    marks that turn the text around.

    Args:
        text: Any text.
        keep: What stays as it is all the same, such as ``"\n"``.
    """
    if text.isprintable():
        return text
    return "".join(letter if letter.isprintable() or letter in keep else _written(letter) for letter in text)


def _written(letter: str) -> str:
    code = ord(letter)
    # What stands for a byte that is no character: os.fsdecode.
    return f"\\x{code - 0xDC00:02x}" if 0xDC80 <= code <= 0xDCFF else ascii(letter)[1:-1]


class SandboxError(Exception):
    """
    The root of all errors of this library; catch it to catch them all.

    What its text has from inside is made printable; attributes hold it as it is.
    """

    def __init__(self, *args: object) -> None:
        super().__init__(*(printable(arg, "\n") if isinstance(arg, str) else arg for arg in args))


class SpecError(SandboxError, ValueError):
    """
    A value makes no sense, or two values contradict each other.

    Raised before anything is made, so nothing has to be undone. You do not get
    it when the value is fine but this host cannot serve it: that is
    `UnsupportedError`.

    Attributes:
        field: The name of the argument or attribute.
        value: What was given.
        allowed: What would have been accepted, as a phrase.
    """

    def __init__(self, field: str, value: object, allowed: str) -> None:
        self.field = field
        self.value = value
        self.allowed = allowed
        super().__init__(f"{field!r} must be {allowed} (got {_brief(value)})")


def _brief(value: object) -> str:
    # A number of thousands of digits has no repr: Python refuses to make one.
    try:
        text = repr(value)
    except ValueError:
        return f"a {type(value).__name__} too long to show"
    return text if len(text) <= 200 else f"{text[:150]}... of {len(text)} characters"


class UnsupportedError(SandboxError):
    """
    This host cannot do what was asked; nothing has been made.

    Attributes:
        feature: What was asked for.
        needs: What the host lacks.
        hint: How to get it, as an instruction; empty when there is no way.
    """

    def __init__(self, feature: str, needs: str, hint: str = "") -> None:
        self.feature = feature
        self.needs = needs
        self.hint = hint
        text = f"{feature} is not possible on this host: it needs {needs}"
        super().__init__(f"{text}; {hint}" if hint else text)


class KernelError(SandboxError, OSError):
    """
    A system call failed while a step was carried out.

    You do not get it for what can be known before: that is refused as
    `SpecError` or `UnsupportedError`. Where `OSError` has a class for the errno, such as
    FileNotFoundError, the error is one of that class too.

    Attributes:
        errno: The error number.
        call: The call with its arguments, as the plan prints it.
        step: What the call was for.
        hint: What the errno means here when the kernel's text misleads; may be empty.
    """

    call: str
    step: str
    hint: str

    def __new__(cls, errno: int, *_: object, **__: object) -> KernelError:  # noqa: D102, PYI034 - a subclass
        # As OSError does: the builtin class for this errno is one of the error's own.
        return super().__new__(_BUILTIN.get(errno, cls) if cls is KernelError else cls, errno)

    def __init__(self, errno: int, call: str, step: str = "", hint: str = "") -> None:
        self.call = call
        self.step = step
        name, _, arguments = call.partition("(")
        file = f"{name} {arguments.partition(',')[0]}"
        self.hint = hint or HINTS.get((name.strip(), errno)) or HINTS.get((file, errno), "")
        super().__init__(errno, call)
        self._tell(errno)

    def _tell(self, errno: int) -> None:
        code = _errno.errorcode.get(errno, str(errno))
        text = f"{self.step}: {self.call}" if self.step else self.call
        text = f"{text}: {os.strerror(errno)} ({code})"
        self._text = printable(f"{text}; hint: {self.hint}" if self.hint else text)
        # Set here, for with a __new__ of its own OSError leaves them alone.
        self.args = (errno, self._text)
        self.errno = errno
        self.strerror = self._text

    def tell(self, step: str) -> None:
        """Have it say what it was for, where it does not yet."""
        if not self.step and self.errno is not None:
            self.step = step
            self._tell(self.errno)

    def __reduce__(self) -> tuple[object, ...]:
        return KernelError, (self.errno, self.call, self.step, self.hint), {"filename": self.filename}

    def __str__(self) -> str:
        return self._text


class KernelFileNotFoundError(KernelError, FileNotFoundError):
    """A `KernelError` with ENOENT."""


class KernelFileExistsError(KernelError, FileExistsError):
    """A `KernelError` with EEXIST."""


class KernelNotADirectoryError(KernelError, NotADirectoryError):
    """A `KernelError` with ENOTDIR."""


class KernelIsADirectoryError(KernelError, IsADirectoryError):
    """A `KernelError` with EISDIR."""


class KernelPermissionError(KernelError, PermissionError):
    """A `KernelError` with EACCES or EPERM."""


class KernelBlockingIOError(KernelError, BlockingIOError):
    """A `KernelError` with EAGAIN."""


class KernelBrokenPipeError(KernelError, BrokenPipeError):
    """A `KernelError` with EPIPE."""


class KernelChildProcessError(KernelError, ChildProcessError):
    """A `KernelError` with ECHILD."""


class KernelConnectionRefusedError(KernelError, ConnectionRefusedError):
    """A `KernelError` with ECONNREFUSED."""


class KernelConnectionResetError(KernelError, ConnectionResetError):
    """A `KernelError` with ECONNRESET."""


class KernelProcessLookupError(KernelError, ProcessLookupError):
    """A `KernelError` with ESRCH."""


class KernelTimeoutError(KernelError, TimeoutError):
    """A `KernelError` with ETIMEDOUT: nothing came in time, and no ``timeout=`` was given."""


_BUILTIN: dict[int, type[KernelError]] = {
    _errno.EAGAIN: KernelBlockingIOError,
    _errno.EPIPE: KernelBrokenPipeError,
    _errno.ECHILD: KernelChildProcessError,
    _errno.ECONNREFUSED: KernelConnectionRefusedError,
    _errno.ECONNRESET: KernelConnectionResetError,
    _errno.ESRCH: KernelProcessLookupError,
    _errno.ETIMEDOUT: KernelTimeoutError,
    _errno.ENOENT: KernelFileNotFoundError,
    _errno.EEXIST: KernelFileExistsError,
    _errno.ENOTDIR: KernelNotADirectoryError,
    _errno.EISDIR: KernelIsADirectoryError,
    _errno.EACCES: KernelPermissionError,
    _errno.EPERM: KernelPermissionError,
}


class ImageError(SandboxError):
    """
    An image, a layer or a registry is not as it has to be.

    Attributes:
        reference: The image or blob that it is about; may be empty.
    """

    def __init__(self, message: str, reference: str = "") -> None:
        self.reference = reference
        super().__init__(f"{printable(reference)}: {message}" if reference else message)


class BuildError(SandboxError):
    """
    A step of a build failed; no image has been named.

    Attributes:
        message: What went wrong.
        file: The Dockerfile, as it was named.
        line: The line of it where the instruction begins, from 1; 0 where no line is to blame.
        text: The instruction, as it is written there.
        stage: The name of its stage, or its number; empty before any stage.
        step: The number of the step within its stage, from 1; 0 where none was carried out.
        completed: The `Completed` of a RUN, with its output and its usage; None of anything else.
    """

    def __init__(
        self,
        message: str,
        file: str = "",
        line: int = 0,
        text: str = "",
        *,
        stage: str = "",
        step: int = 0,
        completed: object = None,
    ) -> None:
        self.message = message
        self.file = file
        self.line = line
        self.text = text
        self.stage = stage
        self.step = step
        self.completed = completed
        super().__init__(message, file, line, text)

    def __reduce__(self) -> tuple[object, ...]:
        rest = {"stage": self.stage, "step": self.step, "completed": self.completed}
        return type(self), (self.message, self.file, self.line, self.text), rest

    def __str__(self) -> str:
        where = ":".join(filter(None, (self.file, str(self.line) if self.line else "")))
        text = self.text if len(self.text) <= 200 else f"{self.text[:150]}… of {len(self.text)} characters"
        return printable(": ".join(filter(None, (where, text, self.message))), "\n")


class DockerfileError(BuildError):
    """
    The text of a Dockerfile makes no sense; nothing has been made.

    You do not get it for a step that fails when it is carried out: that is a plain `BuildError`.
    """


class NetworkError(SandboxError):
    """A network cannot be made or joined as asked: an address, a port or a name is taken."""


class ViolationError(SandboxError):
    """
    Unsafe input was refused: it would have reached outside the sandbox.

    Attributes:
        path: The path that was refused; may be empty.
    """

    def __init__(self, message: str, path: str = "") -> None:
        self.path = path
        super().__init__(f"{printable(path)}: {message}" if path else message)


class TooLargeError(SandboxError):
    """
    There is more inside than the caller lets in: code inside can make files, names and lists without end.

    What was copied until then is left where it is, but for the file that is too large.

    Attributes:
        where: What is too large.
        what: What was counted, such as ``"entries"``.
        limit: How much is let in.
        argument: The argument that sets the limit; None for it lets all in.
    """

    def __init__(self, where: str, what: str, limit: int, argument: str) -> None:
        self.where = where
        self.what = what
        self.limit = limit
        self.argument = argument
        super().__init__(
            f"{printable(where)}: more than {limit} {what}, which {argument}= lets in; give a larger one"
        )


class StateError(SandboxError, RuntimeError):
    """The object cannot do this now: it is closed, not yet open, or already open."""


class ExitError(SandboxError, subprocess.CalledProcessError):
    """
    The command did not end well and ``check=True`` was given.

    Attributes:
        returncode: Exit status, or the negative number of the signal.
        cmd: The command.
        stdout, stderr: What it wrote, if captured.
        completed: The whole `Completed`; None where the command never ran.
    """

    def __init__(
        self,
        returncode: int,
        cmd: object,
        stdout: object = None,
        stderr: object = None,
        completed: object = None,
    ) -> None:
        subprocess.CalledProcessError.__init__(self, returncode, cmd, stdout, stderr)  # type: ignore[arg-type]
        self.completed = completed

    def __str__(self) -> str:
        text = subprocess.CalledProcessError.__str__(self)
        outcome = getattr(self.completed, "outcome", None)
        if outcome is not None and outcome.value != "exited":
            text = f"{text[:-1]} ({outcome.value})"
        tail = self.stderr
        if isinstance(tail, bytes):
            tail = tail.decode(errors="replace")
        if tail:
            text += "\n" + printable(tail[-2000:].rstrip(), "\n\t")
        return text

    @property
    def signal(self) -> int | None:
        """The number of the signal that ended the command, or None."""
        return -self.returncode if self.returncode < 0 else None


class _CommandError(ExitError, OSError):
    """What the two errors below share: a command that never began."""

    _default_errno = 0
    _returncode = 0

    def __init__(self, path: str, cmd: object, errno: int = 0, reason: str = "") -> None:
        ExitError.__init__(self, self._returncode, cmd)
        self.errno = errno or self._default_errno
        self.filename = path
        self.path = path
        self.strerror = reason or os.strerror(self.errno)

    def __str__(self) -> str:
        return printable(f"{self.path}: {self.strerror} (exit {self.returncode})")


class CommandNotFoundError(_CommandError, FileNotFoundError):
    """
    The command does not exist inside, or its interpreter does not; nothing ran.

    Raised with or without ``check=True``: there is no status to report.

    Attributes:
        path: What was looked for.
        returncode: 127, as a shell would say.
    """

    _default_errno = _errno.ENOENT
    _returncode = 127


class CommandNotExecutableError(_CommandError, PermissionError):
    """
    The command exists inside but cannot be executed; nothing ran.

    Attributes:
        path: What was tried.
        returncode: 126, as a shell would say.
    """

    _default_errno = _errno.EACCES
    _returncode = 126


class TimeoutExpired(SandboxError, subprocess.TimeoutExpired):
    """
    ``timeout=`` seconds have passed; the command's whole tree has been killed.

    Attributes:
        cmd: The command.
        timeout: The seconds that were allowed.
        stdout, stderr: What it had written until then, if captured.
    """

    def __init__(self, cmd: object, timeout: float, output: object = None, stderr: object = None) -> None:
        subprocess.TimeoutExpired.__init__(self, cmd, timeout, output, stderr)  # type: ignore[arg-type]
