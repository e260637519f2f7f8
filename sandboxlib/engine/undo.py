"""What has to be taken back of something that was begun, however often that is interrupted."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from sandboxlib.doors import told
from sandboxlib.errors import SandboxError

Step = Callable[[], Awaitable[object]]


class Undo:
    """
    Steps that take something back, in the order in which they are carried out.

    Each of them is idempotent, and knows by itself whether there is something to be taken back, since what
    is made is known before it is made. One that was carried out is done with; one that failed, or was
    interrupted, is left for the next time.
    """

    def __init__(self, *steps: Step) -> None:
        self._left = list(steps)

    @property
    def finished(self) -> bool:
        """Is nothing left?"""
        return not self._left

    async def carry_out(self) -> None:
        """
        Carry out what is left: one that fails does not keep the others.

        An exception from outside, such as a signal handler's, is held back until all is done; a second one
        is not, so that whoever insists gets away.

        Raises:
            SandboxError: The first that a step failed with; notes tell of the others.
        """
        held: BaseException | None = None
        while True:
            problems: list[SandboxError] = []
            try:
                for step in list(self._left):
                    try:
                        await step()
                    except OSError as error:
                        found = told(error, "close()")
                        if not isinstance(found, SandboxError):
                            raise  # a signal handler's
                        problems.append(found)
                    except SandboxError as problem:
                        problems.append(problem)
                    else:
                        self._left.remove(step)
                break
            except BaseException as problem:
                if held is not None:
                    raise
                held = problem
        if held is not None:
            raise held
        if problems:
            for other in problems[1:]:
                problems[0].add_note(f"and: {other}")
            raise problems[0]


__all__ = ["Undo"]
