"""`simclr-engine data`: list, info and pack, for people and as JSON."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from fixtures.image_files import class_tree, encode, noise, tar_bytes, write_tree
from simclr_engine.cli.data import command
from simclr_engine.data import load_data, source_names
from simclr_engine.errors import DataError, UsageError


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SIMCLR_ENGINE_CACHE", str(tmp_path / "cache"))


def run(*args: str | Path) -> Result:
    return CliRunner().invoke(command, [str(arg) for arg in args], catch_exceptions=True)


def document(*args: str | Path) -> dict[str, object]:
    result = run(*args, "--json")
    assert result.exit_code == 0, result.output
    parsed = json.loads(result.stdout)
    assert isinstance(parsed, dict)
    return parsed


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    files = class_tree(prefix="train/", each=3) | class_tree(prefix="test/", each=1) | {"train/ant/bad.png": b"x"}
    return write_tree(tmp_path / "set", files)


def test_list_names_every_source() -> None:
    assert document("list")["sources"] == [{"name": n, "description": d} for n, d in source_names().items()]
    text = run("list").stdout
    assert all(name in text and description in text for name, description in source_names().items())


def test_info_describes_an_unpacked_folder_without_packing_it(folder: Path, tmp_path: Path) -> None:
    row = document("info", folder)
    assert row["packed"] is False and row["kind"] == "folder" and row["class_names"] == ["ant", "bee"]
    assert row["splits"] == {"train": {"images": 7, "labelled": True}, "test": {"images": 2, "labelled": True}}
    assert not (tmp_path / "cache/data").exists()
    text = run("info", folder).stdout
    assert "not packed yet" in text and "7 images, labelled" in text and "2 classes: ant, bee" in text


def test_pack_packs_and_info_then_shows_the_packed_copy(folder: Path) -> None:
    row = document("pack", folder)
    store = load_data(folder)
    assert row["packed"] is True and row["image_size"] == 16 and row["source"] == str(folder)
    assert row["splits"]["train"] == {"images": 6, "labelled": True, "fingerprint": store.fingerprint}
    ((path, reason),) = row["skipped"]
    assert path == "train/ant/bad.png" and "not a readable" in reason
    assert isinstance(row["seconds"], float) and Path(str(row["cache"])).is_dir()
    files = Path(str(row["cache"])).iterdir()
    assert row["bytes"] == sum(file.stat().st_size for file in files)
    assert {k: v for k, v in row.items() if k != "seconds"} == document("info", folder)
    text = run("info", folder).stdout
    assert "packed at 16 × 16" in text and store.fingerprint[:12] in text and "1 file skipped" in text
    assert "train/ant/bad.png" in text


def test_pack_at_another_size_shows_that_copy(tmp_path: Path) -> None:
    (tmp_path / "set.tar").write_bytes(tar_bytes({"1.png": encode(noise(0))}))
    row = document("pack", tmp_path / "set.tar", "--size", "40")
    assert row["image_size"] == 40 and row["class_names"] == [] and row["kind"] == "archive"
    assert document("info", tmp_path / "set.tar")["packed"] is False  # there is no copy at the images' own size


def test_info_of_a_download_asks_no_network_and_packs_nothing() -> None:
    row = document("info", "cifar10")
    assert row["packed"] is False and row["splits"] is None and row["description"] == source_names()["cifar10"]


def test_json_stays_alone_on_stdout_while_notices_go_to_stderr(folder: Path) -> None:
    result = run("pack", folder, "--json")
    json.loads(result.stdout)
    assert "1 of 9 files skipped" in result.stderr


def test_many_skipped_files_are_counted_not_all_shown(tmp_path: Path) -> None:
    files = {f"{n:02}.png": b"x" for n in range(25)} | {"good.png": encode(noise(0))}
    text = run("pack", write_tree(tmp_path / "set", files)).stdout
    assert "25 files skipped" in text and "… 15 more" in text and "24.png" not in text


def test_errors_are_raised_for_main_to_show(tmp_path: Path) -> None:
    assert isinstance(run("info", "cifra10").exception, UsageError)
    assert isinstance(run("pack", tmp_path / "nothing").exception, DataError)
    assert isinstance(run("pack", "digits", "--size", "4").exception, UsageError)
    assert run("pack", "digits", "--size", "four").exit_code == 2


def test_foreign_names_cannot_send_control_codes_to_the_terminal(tmp_path: Path) -> None:
    files = {"a\x1b[2J/1.png": encode(noise(0)), "b/2.png": encode(noise(1)), "b/\x1b]0;x.png": b"x"}
    result = run("pack", write_tree(tmp_path / "set", files))
    assert result.exit_code == 0 and "\x1b" not in result.stdout + result.stderr and "\\x1b[2J" in result.stdout
