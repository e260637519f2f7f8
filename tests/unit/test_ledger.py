"""The book of networks: one at a time has it, though its folder comes and goes with it."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest

from sandboxlib.engine import ledger
from sandboxlib.errors import KernelError


def test_many_threads_have_it_one_after_the_other(tmp_path: Path) -> None:
    """Each finds it empty and takes it away, with the folder, while others make both anew."""
    inside: list[int] = []
    most, problems = [0], []

    def work() -> None:
        try:
            for _ in range(150):
                with ledger.locked(str(tmp_path)):
                    inside.append(1)
                    most[0] = max(most[0], len(inside))
                    inside.pop()
        except BaseException as error:
            problems.append(error)

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert problems == []
    assert most == [1]
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("kind", ["file", "missing above", "dangling link"])
def test_where_no_folder_can_be_made_it_says_so(
    tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ledger, "PATIENCE", 0.1)
    where = tmp_path / "book"
    if kind == "file":
        where.touch()
    elif kind == "missing above":
        where = where / "book"
    else:
        where.symlink_to("nowhere")
    with pytest.raises(KernelError, match=str(where)), ledger.locked(str(tmp_path), str(where)):
        pass
