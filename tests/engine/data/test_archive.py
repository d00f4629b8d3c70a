"""Archives made to escape, to exhaust memory or disk, or cut short: refused or reported, and nothing is written."""

from __future__ import annotations

import gzip
import io
import lzma
import os
import stat
import struct
import tarfile
import time
import tracemalloc
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fixtures.image_files import class_tree, encode, noise, tar_bytes, zip_bytes
from simclr_engine.data import archive, load_data
from simclr_engine.data.archive import ArchiveSource, member_path
from simclr_engine.errors import DataError

GOOD = class_tree(("ant",), each=2)
MODES = {"tar": "w", "tar.gz": "w:gz", "tar.xz": "w:xz"}


def header(name: str, kind: bytes, **fields: object) -> tarfile.TarInfo:
    member = tarfile.TarInfo(name)
    member.type = kind
    for field, value in fields.items():
        setattr(member, field, value)
    return member


@pytest.mark.parametrize(
    "name", ["../evil.png", "a/../../evil.png", "/etc/evil.png", "C:/evil.png", "..\\evil.png", "\\\\host\\evil.png"]
)
@pytest.mark.parametrize("kind", ["tar", "zip"])
def test_paths_that_lead_out_are_reported_and_nothing_is_written(tmp_path: Path, name: str, kind: str) -> None:
    files = GOOD | {name: encode(noise(9))}
    inner = tmp_path / "inner"
    inner.mkdir()
    path = inner / f"set.{kind}"
    path.write_bytes(tar_bytes(files) if kind == "tar" else zip_bytes(files))
    store = load_data(path)
    assert len(store) == 2
    assert [reason for _, reason in store.skipped] == ["unsafe path in the archive"]
    assert list(tmp_path.iterdir()) == [inner] and list(inner.iterdir()) == [path]


@settings(deadline=None)
@given(st.text(alphabet="ab./\\:C\0é", max_size=12))
def test_a_member_path_never_leads_out_whatever_the_name(name: str) -> None:
    path = member_path(name)
    if path is not None:
        assert not path.startswith("/") and "\\" not in path and "\0" not in path
        assert not {"..", "."} & set(path.split("/"))
        assert os.path.normpath(f"/root/inside/{path}").startswith("/root/inside")


def test_links_and_devices_in_a_tar_are_refused_and_reported(tmp_path: Path) -> None:
    odd = {
        "ant/hard.png": header("ant/hard.png", tarfile.LNKTYPE, linkname="ant/0.png"),
        "ant/soft.png": header("ant/soft.png", tarfile.SYMTYPE, linkname="/etc/passwd"),
        "ant/pipe.png": header("ant/pipe.png", tarfile.FIFOTYPE),
        "ant/null.png": header("ant/null.png", tarfile.CHRTYPE, devmajor=1, devminor=3),
        "ant/disk.png": header("ant/disk.png", tarfile.BLKTYPE),
    }
    (tmp_path / "set.tar").write_bytes(tar_bytes(odd | GOOD))
    store = load_data(tmp_path / "set.tar")
    assert len(store) == 2
    assert {path for path, _ in store.skipped} == set(odd)
    assert {reason for _, reason in store.skipped} == {"a link or device in the archive, not a plain file"}


def test_a_linked_folder_in_a_tar_cannot_redirect_what_follows(tmp_path: Path) -> None:
    files = {
        "ant": header("ant", tarfile.SYMTYPE, linkname=str(tmp_path / "outside")),
        "ant/0.png": GOOD["ant/0.png"],
        "bee/0.png": GOOD["ant/1.png"],
    }
    (tmp_path / "outside").mkdir()
    (tmp_path / "set.tar").write_bytes(tar_bytes(files))
    assert len(load_data(tmp_path / "set.tar")) == 2
    assert list((tmp_path / "outside").iterdir()) == []


def test_a_symbolic_link_in_a_zip_is_refused(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "set.zip", "w") as file:
        for path, data in GOOD.items():
            file.writestr(path, data)
        link = zipfile.ZipInfo("ant/link.png")
        link.external_attr = (stat.S_IFLNK | 0o777) << 16
        file.writestr(link, "/etc/passwd")
    store = load_data(tmp_path / "set.zip")
    assert len(store) == 2
    assert store.skipped == (("ant/link.png", "a link or device in the archive, not a plain file"),)


def test_a_regular_file_after_a_link_of_the_same_name_counts(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        tar.addfile(header("ant/0.png", tarfile.SYMTYPE, linkname="x"))
        for seed in (1, 2):  # twice: the first of the two is used, as the listing says
            data = encode(noise(seed))
            member = tarfile.TarInfo("ant/0.png")
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    (tmp_path / "set.tar").write_bytes(buffer.getvalue())
    store = load_data(tmp_path / "set.tar")
    assert (store.images == noise(1)).all() and len(store) == 1
    assert [reason.split(";")[0] for _, reason in store.skipped] == [
        "a link or device in the archive, not a plain file",
        "appears twice",
    ]


@pytest.mark.parametrize("kind", ["tar", "tar.gz", "tar.xz"])
@pytest.mark.parametrize("padding", [1024, 10_240])
def test_archives_one_behind_the_other_are_an_error_never_the_first_of_them(
    tmp_path: Path, kind: str, padding: int
) -> None:
    path, data = tmp_path / f"set.{kind}", tar_bytes(GOOD, MODES[kind])
    if kind == "tar":
        data = data.rstrip(b"\0")
        data += bytes(-len(data) % 512 + padding)
    path.write_bytes(data + data)
    with pytest.raises(DataError, match="another archive follows"):
        load_data(path)
    path.write_bytes(data + b"junk" * (kind == "tar"))
    assert len(load_data(path)) == len(GOOD)


@pytest.mark.parametrize("kind", ["tar", "tar.gz", "tar.xz"])
@pytest.mark.parametrize("share", [0.2, 0.5, 0.8])
def test_a_tar_cut_short_is_an_error_never_a_smaller_data_set(tmp_path: Path, kind: str, share: float) -> None:
    data = tar_bytes(class_tree(("ant", "bee"), each=8), MODES[kind])
    path = tmp_path / f"set.{kind}"
    path.write_bytes(data[: int(share * len(data))])
    for size in (None, 16):  # both ways of reading: with contents, and names only
        with pytest.raises(DataError, match="damaged or not an archive"):
            load_data(path, size=size)


def test_a_tar_cut_between_members_or_with_a_broken_header_is_an_error(tmp_path: Path) -> None:
    files = class_tree(("ant", "bee"), each=3)
    plain = bytearray(tar_bytes(files))
    member = 512 + -(-len(files["bee/0.png"]) // 512) * 512
    path = tmp_path / "set.tar"
    path.write_bytes(plain[: 3 * member])
    with pytest.raises(DataError, match="damaged") as caught:
        load_data(path)
    assert "breaks off after" in str(caught.value.saw)
    plain[3 * member + 148 : 3 * member + 156] = b"\xff" * 8  # the checksum of the fourth header
    path.write_bytes(plain)
    with pytest.raises(DataError, match="damaged"):
        load_data(path)


@pytest.mark.parametrize("where", ["middle", "checksum"])
@pytest.mark.parametrize("kind", ["gz", "xz"])
def test_a_changed_byte_in_a_compressed_tar_is_noticed(tmp_path: Path, kind: str, where: str) -> None:
    data = bytearray(tar_bytes(class_tree(("ant",), each=6), f"w:{kind}"))
    at = len(data) // 2 if where == "middle" else len(data) - (8 if kind == "gz" else 30)
    data[at] ^= 0x55
    path = tmp_path / f"set.tar.{kind}"
    path.write_bytes(data)
    with pytest.raises(DataError, match="damaged"):
        load_data(path)


def test_the_compressors_checksum_far_behind_the_last_image_is_compared(tmp_path: Path) -> None:
    data = bytearray(gzip.compress(tar_bytes(GOOD) + bytes(3 << 20)))
    path = tmp_path / "set.tar.gz"
    path.write_bytes(data)
    assert len(load_data(path)) == 2
    data[-8] ^= 1
    path.write_bytes(data)
    with pytest.raises(DataError, match="damaged"):
        load_data(path)


def test_reading_a_tar_keeps_nothing_of_the_members_that_are_past(tmp_path: Path) -> None:
    (tmp_path / "set.tar").write_bytes(tar_bytes({f"{n}.png": b"x" for n in range(6000)}))
    tracemalloc.start()
    assert sum(1 for _ in ArchiveSource(tmp_path / "set.tar", "set").blobs()) == 6000
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 3 << 20  # with tarfile's own list of the headers it is 4.6 MB, and grows


def test_a_damaged_or_encrypted_member_of_a_zip_costs_only_itself(tmp_path: Path) -> None:
    data = bytearray(zip_bytes(class_tree(("ant",), each=4)))
    with zipfile.ZipFile(io.BytesIO(data)) as file:
        members = file.infolist()
    data[members[1].header_offset + 60] ^= 0xFF  # in the compressed pixels of ant/1.png
    at = data.rindex(b"PK\x01\x02")  # the directory entry of ant/3.png
    data[at + 8] |= 1
    (tmp_path / "set.zip").write_bytes(data)
    for size in (None, 24):  # 24: another copy, whose listing is made from names only
        store = load_data(tmp_path / "set.zip", size=size)
        assert len(store) == 2
        reasons = dict(store.skipped)
        assert set(reasons) == {"ant/1.png", "ant/3.png"}
        assert "damaged" in reasons["ant/1.png"] and reasons["ant/3.png"] == "encrypted"


@pytest.mark.parametrize("suffix", [".tar", ".tar.gz", ".tar.xz", ".zip"])
@pytest.mark.parametrize("content", [b"", b"x" * 5000, b"PK\x03\x04rest", b"\x1f\x8b\x08", b"\xfd7zXZ\x00"])
def test_what_is_no_archive_is_a_data_error(tmp_path: Path, suffix: str, content: bytes) -> None:
    path = tmp_path / f"set{suffix}"
    path.write_bytes(content)
    with pytest.raises(DataError, match="archive") as caught:
        load_data(path)
    assert caught.value.exit_code == 4


@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(seed=st.integers(0, 2**32), hits=st.integers(1, 20), kind=st.sampled_from(["tar", "tar.gz", "tar.xz", "zip"]))
def test_bytes_changed_at_random_never_give_another_kind_of_error(
    tmp_path: Path, seed: int, hits: int, kind: str
) -> None:
    random = np.random.default_rng(seed)
    raw = zip_bytes(GOOD) if kind == "zip" else tar_bytes(GOOD, MODES[kind])
    data = np.frombuffer(raw, dtype=np.uint8).copy()
    data[random.integers(0, len(data), hits)] = random.integers(0, 256, hits)
    path = tmp_path / f"set.{kind}"
    path.write_bytes(data.tobytes())
    try:
        for blob in ArchiveSource(path, "set").blobs():
            assert blob.content is not None or blob.refused
    except DataError:
        pass


@pytest.mark.parametrize("kind", ["gz", "xz"])
def test_a_decompression_bomb_is_stopped_with_little_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    monkeypatch.setattr(archive, "GROWTH_FREE_BYTES", 32 << 20)
    bomb = tarfile.TarInfo("ant/zeros.txt")
    bomb.size = 1 << 30
    path = tmp_path / f"set.tar.{kind}"
    with gzip.open(path, "wb", compresslevel=1) if kind == "gz" else lzma.open(path, "wb", preset=0) as file:
        file.write(bomb.tobuf())
        for _ in range(40):
            file.write(bytes(1 << 20))
    tracemalloc.start()
    with pytest.raises(DataError, match="far more than images do"):
        load_data(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 16 << 20


def test_a_zip_bomb_is_refused_from_its_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archive, "GROWTH_FREE_BYTES", 1 << 20)
    (tmp_path / "set.zip").write_bytes(zip_bytes({"ant/0.bmp": bytes(8 << 20)}))
    with pytest.raises(DataError, match="far more than images do"):
        load_data(tmp_path / "set.zip")


@pytest.mark.parametrize("kind", [tarfile.GNUTYPE_LONGNAME, tarfile.XHDTYPE, tarfile.XGLTYPE])
def test_an_extended_header_cannot_fill_the_memory(tmp_path: Path, kind: bytes) -> None:
    huge = tarfile.TarInfo("long")
    huge.type = kind
    huge.size = 64 << 20
    path = tmp_path / "set.tar.gz"
    with gzip.open(path, "wb", compresslevel=1) as file:
        file.write(huge.tobuf())
        file.write(bytes(64 << 20))
        file.write(tar_bytes(GOOD))
    tracemalloc.start()
    with pytest.raises(DataError, match="damaged") as caught:
        load_data(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert "67,108,864" in str(caught.value.saw) and peak < 16 << 20


def test_long_names_below_that_bound_are_read(tmp_path: Path) -> None:
    name = "ant/" + "x" * 200 + "é.png"
    for form in (tarfile.GNU_FORMAT, tarfile.PAX_FORMAT):
        buffer = io.BytesIO()
        with tarfile.open(fileobj=buffer, mode="w", format=form) as tar:
            data = encode(noise(1))
            for path in (name, "bee/1.png"):
                member = tarfile.TarInfo(path)
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))
        (tmp_path / f"{form}.tar").write_bytes(buffer.getvalue())
        assert [b.path for b in ArchiveSource(tmp_path / f"{form}.tar", "x").blobs()] == [name, "bee/1.png"]


def test_a_member_that_claims_to_be_huge_is_skipped_unread(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archive, "MAX_FILE_BYTES", 2000)
    files = GOOD | {"ant/9.bmp": encode(noise(1, 64, 64), "BMP")}
    for path, data in ((tmp_path / "set.tar", tar_bytes(files)), (tmp_path / "set.zip", zip_bytes(files))):
        path.write_bytes(data)
        store = load_data(path)
        assert len(store) == 2
        assert store.skipped == (("ant/9.bmp", f"{len(files['ant/9.bmp']):,} bytes; at most 2,000 are read"),)


def test_a_sparse_member_is_refused(tmp_path: Path) -> None:
    sparse = tarfile.TarInfo("ant/9.png")
    sparse.size = 0
    raw = bytearray(sparse.tobuf(tarfile.GNU_FORMAT))
    raw[156:157] = tarfile.GNUTYPE_SPARSE
    raw[483:495] = b"%011o\0" % (200 << 20)  # the size it would have when unpacked
    raw[148:156] = b" " * 8
    raw[148:156] = b"%06o\0 " % sum(raw[:512])
    (tmp_path / "set.tar").write_bytes(bytes(raw) + tar_bytes(GOOD))
    store = load_data(tmp_path / "set.tar")
    assert len(store) == 2
    assert store.skipped == (("ant/9.png", "a link or device in the archive, not a plain file"),)


def test_an_image_bomb_inside_an_archive_is_skipped_with_its_reason(tmp_path: Path) -> None:
    bomb = bytearray(encode(noise(1)))
    bomb[16:24] = struct.pack(">II", 50_000, 50_000)
    bomb[29:33] = struct.pack(">I", zlib.crc32(bomb[12:29]))
    (tmp_path / "set.tar").write_bytes(tar_bytes(GOOD | {"ant/bomb.png": bytes(bomb)}))
    store = load_data(tmp_path / "set.tar")
    assert len(store) == 2 and [path for path, _ in store.skipped] == ["ant/bomb.png"]
    assert "pixels" in store.skipped[0][1]


def _gnu_sparse(blocks: int) -> bytes:
    """A sparse file whose map has so many blocks more, each of 21 pieces."""
    member = tarfile.TarInfo("ant/sparse.png")
    member.type = tarfile.GNUTYPE_SPARSE
    header = bytearray(member.tobuf(tarfile.GNU_FORMAT))
    header[482], header[483:495] = 1, b"00000001000\0"
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    pieces = (b"00000001000\0" * 42).ljust(504, b"\0")
    return bytes(header) + b"".join(pieces + bytes([n < blocks - 1]) + bytes(7) for n in range(blocks))


def _pax(records: bytes, size: int = 0, kind: bytes = tarfile.XHDTYPE) -> bytes:
    header = tarfile.TarInfo("pax")
    header.type, header.size = kind, len(records)
    member = tarfile.TarInfo("ant/sparse.png")
    member.size = size
    return header.tobuf() + records.ljust(-(-len(records) // 512) * 512, b"\0") + member.tobuf()


def _record(key: str, value: str) -> bytes:
    length = len(key) + len(value) + 3
    length += len(str(length + len(str(length))))
    return f"{length} {key}={value}\n".encode()


VERSION = _record("GNU.sparse.major", "1") + _record("GNU.sparse.minor", "0")
# Each would take gigabytes or minutes, by tarfile's own reading, for the kilobytes that it has when it is packed.
TARS: dict[str, Callable[[], bytes]] = {
    "GNU": lambda: _gnu_sparse(40_000),
    "pax 0.0": lambda: _pax(_record("GNU.sparse.size", "9") + _record("GNU.sparse.offset", "1") * 40_000),
    "pax 0.1": lambda: _pax(_record("GNU.sparse.map", "1,1," * 200_000)),
    "pax 1.0": lambda: _pax(VERSION, 12 << 20) + (b"3000000\n" + b"1\n" * 6_000_000).ljust(12 << 20, b"\0"),
    "digits": lambda: _pax(b"1" * (1 << 20)),
    "overlapping": lambda: _pax(b"2 " * (1 << 19)),
    "global": lambda: _pax(b"".join(_record(f"k{n}", "") for n in range(20_000)), 0, tarfile.XGLTYPE) * 3,
}


@pytest.mark.parametrize("kind", TARS)
def test_no_kind_of_header_makes_more_than_it_is(tmp_path: Path, kind: str) -> None:
    raw = TARS[kind]() + tar_bytes(GOOD)
    with gzip.open(tmp_path / "set.tar.gz", "wb", compresslevel=1) as file:
        file.write(raw)
    del raw
    begin = time.process_time()
    tracemalloc.start()
    try:
        blobs = list(ArchiveSource(tmp_path / "set.tar.gz", "set").blobs())
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert {blob.path for blob in blobs if blob.content} == set(GOOD)
    assert peak < 24 << 20 and time.process_time() - begin < 10


def test_headers_before_one_member_are_counted_together(tmp_path: Path) -> None:
    header = _pax(_record("comment", "x"))[:1024]
    for count, passes in ((15, True), (17, False)):
        (tmp_path / "set.tar").write_bytes(header * count + tar_bytes(GOOD))
        if passes:
            assert len(list(ArchiveSource(tmp_path / "set.tar", "set").blobs())) == 2
        else:
            with pytest.raises(DataError, match="damaged") as caught:
                list(ArchiveSource(tmp_path / "set.tar", "set").blobs())
            assert "headers of" in str(caught.value.saw)


def test_links_however_many_are_no_headers(tmp_path: Path) -> None:
    link = tarfile.TarInfo("ant/link.png")
    link.type, link.linkname = tarfile.SYMTYPE, "1.png"
    (tmp_path / "set.tar").write_bytes(link.tobuf() * 40 + tar_bytes(GOOD))
    assert sum(not blob.refused for blob in ArchiveSource(tmp_path / "set.tar", "set").blobs()) == 2


@pytest.mark.parametrize("suffix", [".tar.gz", ".zip"])
def test_an_archive_of_endless_empty_members_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, suffix: str
) -> None:
    monkeypatch.setattr(archive, "MEMBERS_FREE", 100)
    path = tmp_path / f"set{suffix}"
    if suffix == ".zip":
        monkeypatch.setattr(archive, "BYTES_OF_MEMBER", 1 << 20)
        path.write_bytes(zip_bytes({f"{n}.png": b"" for n in range(200)}))
    else:
        path.write_bytes(
            gzip.compress(b"".join(tarfile.TarInfo(f"{n}.png").tobuf() for n in range(2000)) + bytes(1024))
        )
    with pytest.raises(DataError, match="far more members"):
        list(ArchiveSource(path, "set").blobs())


def test_a_path_of_endless_folders_is_refused_with_little_memory(tmp_path: Path) -> None:
    names = {"a/" * 30_000 + "1.png": b"x", "b" * 5000 + ".png": b"x", "c\\" * 300 + "1.png": b"x"}
    good = encode(noise(1))
    for path, data in (
        ("set.zip", zip_bytes(names | {"ant/1.png": good})),
        ("set.tar", tar_bytes(names | {"ant/1.png": good})),
    ):
        (tmp_path / path).write_bytes(data)
        tracemalloc.start()
        store = load_data(tmp_path / path)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert len(store) == 1 and len(store.skipped) == 3 and peak < 16 << 20
        assert {why for _, why in store.skipped} == {"a path of more than 4,096 characters or 256 folders"}
        assert max(len(name) for name, _ in store.skipped) <= 201
