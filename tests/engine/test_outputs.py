"""A command replaces what it wrote itself, and what the user says; all else is refused before any work."""

from __future__ import annotations

from pathlib import Path

import pytest

from simclr_engine.errors import PlatformError, UsageError
from simclr_engine.outputs import Output, check_outputs, png_by
from simclr_engine.sealing import BLANK, NewerError


def _check(out: Path, overwrite: bool = False) -> None:
    check_outputs(Output(out, lambda path: path.read_text() == "ours"), overwrite=overwrite)


def test_an_output_is_replaced_where_it_is_ours_or_the_user_says_so(tmp_path: Path) -> None:
    out = tmp_path / "compare.html"
    _check(out)  # nothing is there
    out.write_text("ours")
    _check(out)
    for foreign in (b"a thesis", b"\xff"):  # the second is no text, so that the look at it fails
        out.write_bytes(foreign)
        with pytest.raises(UsageError, match="not written by this command"):
            _check(out)
        _check(out, overwrite=True)
    assert [path.name for path in tmp_path.iterdir()] == [out.name] and out.read_bytes() == b"\xff"
    out.unlink()
    out.symlink_to(tmp_path / "thesis")
    for overwrite in (False, True):
        with pytest.raises(UsageError, match="a link"):
            _check(out, overwrite)


def test_an_output_that_cannot_be_written_is_refused_before_any_work(tmp_path: Path) -> None:
    _check(tmp_path / "new" / "folder" / "out")
    assert not list(tmp_path.iterdir())
    (tmp_path / "file").touch()
    (tmp_path / "newer").write_text(BLANK.replace("seal 1", "seal 9"))
    for out, why in (("/proc/out", "/proc/out"), (tmp_path / "file" / "out", "Not a directory")):
        with pytest.raises(PlatformError, match=why):
            _check(Path(out))
    with pytest.raises(NewerError):
        _check(tmp_path / "newer", overwrite=True)
    with pytest.raises(UsageError, match="one name"):
        check_outputs(*(Output(tmp_path / name, Path.is_file) for name in ("a", "b/../a")))
    with pytest.raises(UsageError, match=r"end the name in \.png"):
        check_outputs(Output(tmp_path / "a.foo", Path.is_file, ".png"))


def test_a_picture_is_told_by_its_metadata_and_not_by_words_in_a_file(tmp_path: Path) -> None:
    from matplotlib.figure import Figure

    picture, is_ours = tmp_path / "a.png", png_by("simclr-engine bench")
    for software, ours in (("simclr-engine bench", True), ("simclr-engine predict", False)):
        Figure().savefig(picture, metadata={"Software": software})
        assert is_ours(picture) is ours
    picture.write_text("notes on simclr-engine bench")
    with pytest.raises(UsageError, match="not written by this command"):
        check_outputs(Output(picture, is_ours, ".png"))
