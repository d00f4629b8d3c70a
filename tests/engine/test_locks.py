"""What killed processes left is found again by its lock file."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from simclr_engine.locks import HELD, clear, sweep

NAMES = ("a.npy", "k.npy", "z.npy", HELD)


class Killed(BaseException):
    """Nothing catches it, as nothing follows a kill."""


@pytest.mark.parametrize("ours", [None, re.compile(r".\.npy|lock")], ids=["whatever is there", "files by name"])
def test_a_folder_whose_removal_was_killed_is_swept(
    ours: re.Pattern[str] | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    unlink = Path.unlink
    for first in NAMES:  # a folder may be listed in any order
        for removed in itertools.count():
            folder = tmp_path / "part-x"
            folder.mkdir()
            for name in (first, *NAMES):
                (folder / name).touch()
            left = iter(range(removed))

            def killed(path: Path, missing_ok: bool = False, left: Iterator[int] = left) -> None:
                if next(left, None) is None:
                    raise Killed
                unlink(path, missing_ok)

            listed = sorted(folder.iterdir(), key=lambda path: path.name != first)
            with monkeypatch.context() as patch:
                patch.setattr(Path, "iterdir", lambda folder, listed=listed: iter(listed))
                patch.setattr(Path, "unlink", killed)
                try:
                    clear(folder, ours)
                    break
                except Killed:
                    pass
            sweep(tmp_path, "part-", re.compile(r".\.npy|lock"))
            assert not folder.exists(), f"{removed} files removed, {first} first"
        assert removed == len(NAMES) and not folder.exists()
