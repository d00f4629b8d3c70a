"""Zip files written on Windows name their members in the encoding of its language, and do not say which."""

from __future__ import annotations

import io
import zipfile

import pytest

from simclr_engine.data.zip_names import member_names

FOLDERS = {
    "gbk": ("猫猫", "狗狗", "汽车"),
    "cp932": ("ねこ", "いぬ", "自動車"),
    "cp949": ("고양이", "강아지", "자동차", "비행기"),
    "big5": ("貓咪", "汽車", "飛機"),
    "cp1251": ("кошка", "собака", "Машина"),
    "cp866": ("кошка", "собака", "Машина"),
    "cp437": ("café", "thé", "Müller", "niño"),
    "cp1252": ("café", "thé", "forêt"),
    "utf-8": ("café", "猫猫", "кошка"),
}


def zipped(names: list[bytes]) -> zipfile.ZipFile:
    """A zip file with members of these names, none of them marked as UTF-8."""
    buffer = io.BytesIO()
    places = [bytes([ord("A") + number]) * len(name) for number, name in enumerate(names)]
    with zipfile.ZipFile(buffer, "w") as archive:
        for place in places:
            archive.writestr(place.decode(), b"")
    data = buffer.getvalue()
    for place, name in zip(places, names, strict=True):
        assert data.count(place) == 2, "one in the header, one in the directory"
        data = data.replace(place, name)
    return zipfile.ZipFile(io.BytesIO(data))


@pytest.mark.parametrize("encoding", FOLDERS)
def test_names_are_read_in_the_encoding_that_they_were_written_in(encoding: str) -> None:
    names = [f"images/{name}/x{n}.jpg" for n, name in enumerate(FOLDERS[encoding])]
    assert member_names(zipped([name.encode(encoding) for name in names]).infolist()) == names


def test_names_in_ascii_and_marked_names_are_left_as_they_are() -> None:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("a/b.png", b"")
        archive.writestr("猫/c.png", b"")
    assert member_names(zipfile.ZipFile(buffer).infolist()) == ["a/b.png", "猫/c.png"]


def test_bytes_that_are_no_language_are_read_all_the_same() -> None:
    names = member_names(zipped([bytes([200, 129, 1, 255, 254, 47, 65, 66])]).infolist())
    assert len(names) == 1 and len(names[0]) == 8
