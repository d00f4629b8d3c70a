"""An archive of images as a source; it is read from beginning to end and nothing of it is ever written to disk."""

from __future__ import annotations

import gzip
import hashlib
import lzma
import re
import stat
import tarfile
import time
import zipfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import IO, Any, ClassVar, cast

from ..boundary import raise_fault
from ..bounds import (
    BYTES_OF_MEMBER,
    GROWTH_FREE_BYTES,
    MAX_DEPTH,
    MAX_FILE_BYTES,
    MAX_GROWTH,
    MAX_HEADER_BYTES,
    MAX_PATH,
    MEMBERS_FREE,
    MOST_HEADERS,
)
from ..errors import DataError, EngineError, PlatformError, cut
from ..files import MARKER
from ..inputs import open_regular
from ..progress import progress_bar
from . import cache
from .decode import HEAD_BYTES, image_format, unread_picture
from .levels import FULL_LEVELS, Levels, levels_key
from .listing import HOLDS_RUN, LAYOUTS, Blob, has_image_ending, is_hidden, is_label_file
from .tables import LabelTable, normal_form
from .zip_names import member_names

SUFFIXES = (".tar", ".tar.gz", ".tgz", ".tar.xz", ".txz", ".tar.zst", ".tzst", ".zip")
_NEVER_READ = (".rar", ".7z")
MAX_READS_PAST_END = 1000

_ZIP, _GZIP, _XZ, _ZSTD = (b"PK\x03\x04", b"PK\x05\x06"), b"\x1f\x8b", b"\xfd7zXZ\x00", b"\x28\xb5\x2f\xfd"
# What says something of the member after it: its long name, its pax records.
_HEADERS = (
    *(tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK),
    *(tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.SOLARIS_XHDTYPE),
)
_BLOCK, _CHUNK = tarfile.BLOCKSIZE, 1 << 20


@dataclass(frozen=True)
class ArchiveSource:
    """Images in a tar (plain, gzip, xz, zstd) or zip file; links, devices and unsafe paths in it are refused.

    Attributes:
        path, name: of the file, and what the user called it.
        labels: the class of each image, from a table; None where folders are classes.
        listed: the members to take; None for all of them.
        levels: how 16-bit images become 8 bits, see `decode_image`.
    """

    path: Path
    name: str
    labels: LabelTable | None = None
    listed: tuple[str, ...] | None = None
    levels: Levels = FULL_LEVELS
    kind: ClassVar[str] = "archive"

    def content(self, progress: bool = False) -> str:
        """Which images these are: the sha256 of the file, hashed again where `file_state` differs from last time.

        Args:
            progress: whether a bar shows how much has been hashed.
        """
        about = f" labels {self.labels.digest}" if self.labels is not None else ""
        if self.listed is not None:
            about += f" listed {hashlib.sha256(repr(self.listed).encode('utf-8', 'replace')).hexdigest()}"
        return f"archive {self._digest(progress)}{about}{levels_key(self.levels)}"

    def old_content(self) -> str:
        """What `content` was in versions that relied on path, size and modification time."""
        return self._digest(progress=False)

    def _digest(self, progress: bool) -> str:
        try:
            looked_ns, status = time.time_ns(), self.path.stat()
            state = cache.file_state(status)
            known = cache.recall_digest(self.path, state)
            if known is not None:
                return known[0]
            hasher = hashlib.sha256()
            with (
                open_regular(self.path) as file,
                progress_bar(f"hashing {self.path.name}", status.st_size, "bytes", progress) as advance,
            ):
                while chunk := file.read(_CHUNK):
                    hasher.update(chunk)
                    advance(len(chunk))
        except OSError as error:
            raise _unopenable(self.path, error) from error
        digest = hasher.hexdigest()
        cache.remember_digest(self.path, state, (digest, []), changed_ns=max(state[3:]), looked_ns=looked_ns)
        return digest

    def blobs(self, contents: bool = True, progress: bool = False) -> Iterator[Blob]:
        """Every image in archive order, and every refused member with its reason.

        Args:
            contents: whether the bytes are wanted, or the names are enough.
            progress: whether a bar shows how much of the file has been read.
        """
        images, first_refused = 0, ""
        try:
            with ExitStack() as stack:
                file = stack.enter_context(open_regular(self.path))
                magic = file.read(8)
                file.seek(0)
                total = self.path.stat().st_size
                advance = stack.enter_context(progress_bar(f"reading {self.path.name}", total, "bytes", progress))
                if magic.startswith(_ZIP):
                    members = _zip_members(file, total, contents, advance)
                else:
                    members = _tar_members(file, magic, total, contents, advance)
                wanted = None if self.listed is None else frozenset(map(normal_form, self.listed))
                for blob in members:
                    if wanted is not None and normal_form(blob.path) not in wanted:
                        continue
                    images += not blob.refused and not is_label_file(blob.path)
                    first_refused = first_refused or (f"{blob.path}: {blob.refused}" if blob.refused else "")
                    yield blob
        except EngineError:
            raise
        except Exception as error:  # zlib, lzma, zstd, zipfile, tarfile: each has kinds of its own for damage
            raise_fault(error)
            if isinstance(error, OSError) and error.errno is not None:
                raise _unopenable(self.path, error) from error
            raise _damaged(self.path, error) from error
        if not images:
            raise DataError(
                f"no images in the archive {self.path}",
                saw=first_refused or None,
                fix=f"give an archive that holds {LAYOUTS}",
            )


def is_archive_path(path: Path) -> bool:
    """Whether the name is one of an archive that can be read."""
    return path.name.lower().endswith(SUFFIXES)


def unread(path: str) -> str:
    """Why a file is not read although it is or may hold pictures, by its ending; empty for any other."""
    lower = path.lower()
    if lower.endswith(SUFFIXES + _NEVER_READ):
        return "an archive among the images, which is not read; unpack it, or give it by itself"
    return unread_picture(lower)


def member_path(name: str) -> str | None:
    """A member's name as relative POSIX path; None where it would lead out of the archive's own folder."""
    name = name.replace("\\", "/")
    parts = [part for part in name.split("/") if part not in ("", ".")]
    if name.startswith("/") or ".." in parts or "\0" in name or (parts and re.match("[A-Za-z]:", parts[0])):
        return None
    return "/".join(parts)


class _BoundedHeader(tarfile.TarInfo):
    """A member whose headers may neither fill the memory nor take long.

    The maps of sparse files are skipped, for such a file is no image. Of a pax header only the records that say where
    a member is and where it ends are read, each once: tarfile's own search takes a time that grows with the square of
    its length, and keeps the records of a global header for all members.
    """

    def _proc_member(self, tar: tarfile.TarFile) -> tarfile.TarInfo:  # the hooks that tarfile documents in its source
        total = 0
        if self.type in _HEADERS:
            total = getattr(tar, "header_bytes", 0) + max(self.size, MAX_HEADER_BYTES // MOST_HEADERS)
        if total > MAX_HEADER_BYTES:
            raise tarfile.ReadError(f"a member with headers of {total:,} bytes")
        tar.header_bytes = total  # type: ignore[attr-defined]  # of all that stand before one member
        return super()._proc_member(tar)  # type: ignore[misc]  # a hook that typeshed leaves out

    def _proc_sparse(self, tar: Any) -> tarfile.TarInfo:
        _, goes_on, nbytes = self._sparse_structs  # type: ignore[attr-defined]  # set by tarfile's parser alone
        while goes_on:
            block = tar.fileobj.read(_BLOCK)
            goes_on = len(block) == _BLOCK and block[504]
        self.sparse: Any = []
        self.offset_data = tar.fileobj.tell()
        tar.offset = self.offset_data + self._block(self.size)  # type: ignore[attr-defined]  # typeshed leaves it out
        self.size = nbytes
        return self

    def _proc_pax(self, tar: Any) -> tarfile.TarInfo:
        whole = tar.fileobj.read(self._block(self.size))  # type: ignore[attr-defined]  # typeshed leaves it out
        records = _pax_records(whole[: self.size])
        try:
            following = self.fromtarfile(tar)
        except tarfile.HeaderError as error:
            raise tarfile.ReadError(str(error)) from None
        if self.type == tarfile.XGLTYPE:
            return following
        following.offset = self.offset
        if any(key.startswith(b"GNU.sparse.") for key in records):
            following.sparse = []
        for key in (b"path", b"GNU.sparse.name"):
            if key in records:
                following.name = records[key].decode("utf-8", "surrogateescape").rstrip("/")
        if b"size" in records:  # where eleven octal digits do not suffice
            following.size = int(records[b"size"])
            stored = following.isreg() or following.type not in tarfile.SUPPORTED_TYPES
            nbytes = following._block(following.size) if stored else 0  # type: ignore[attr-defined]  # as above
            tar.offset = following.offset_data + nbytes
        return following


def _pax_records(header: bytes) -> dict[bytes, bytes]:
    """The records `LENGTH KEY=VALUE` of a pax header, up to one that is none."""
    records, at = {}, 0
    while (space := header.find(b" ", at, at + 10)) > at and header[at:space].isdigit():
        end = at + int(header[at:space])
        key, equals, value = header[space + 1 : end - 1].partition(b"=")
        if not equals or end > len(header):
            break
        records[key] = value
        at = end
    return records


class _Bounded:
    """A decompressed stream that stops when it has grown out of proportion, and can look back a little.

    It decompresses in large chunks: each call releases the interpreter lock and waits milliseconds for it while other
    threads decode, so with tarfile's 10 KB calls packing took twice as long.
    """

    def __init__(self, stream: IO[bytes], compressed: IO[bytes], total: int, advance: Callable[[int], None]) -> None:
        self._stream, self._compressed, self._advance = stream, compressed, advance
        self._total, self._count, self._shown = total, 0, 0
        self._chunk, self._at = b"", 0
        self._reads_past_end = 0

    def read(self, n: int = -1) -> bytes:
        if self._at == len(self._chunk):
            self._chunk, self._at = self._next_chunk(), 0
            if not self._chunk:
                self._refuse_to_go_on()
        piece = self._chunk[self._at : self._at + n] if n >= 0 else self._chunk[self._at :]
        self._at += len(piece)
        return piece

    def _refuse_to_go_on(self) -> None:
        """tarfile skips a member of claimed 2⁶³ bytes in steps of 10 KB, wherever the file ends: for years."""
        self._reads_past_end += 1
        if self._reads_past_end > MAX_READS_PAST_END:
            raise tarfile.ReadError("a member claims to reach far beyond the end of the file")

    def _next_chunk(self) -> bytes:
        chunk = self._stream.read(_CHUNK)
        while len(chunk) < _CHUNK and (more := self._stream.read(_CHUNK - len(chunk))):
            chunk += more
        if not chunk:
            return b""
        self._count += len(chunk)
        _check_growth(self._count, self._total)
        at = self._compressed.tell()
        if at - self._shown >= 1 << 16:
            self._advance(at - self._shown)
            self._shown = at
        return chunk

    def block_at(self, offset: int) -> bytes:
        """The 512 bytes at `offset`, a multiple of 512 that was read last; empty where the stream had ended."""
        start = offset - (self._count - len(self._chunk))
        return self._chunk[start : start + _BLOCK] if start >= 0 else b""

    def rest(self, offset: int) -> Iterator[bytes]:
        """What follows from `offset`, which was read last, to the end."""
        yield self._chunk[max(0, offset - (self._count - len(self._chunk))) :]
        yield from iter(self._next_chunk, b"")


def _tar_members(
    file: IO[bytes], magic: bytes, total: int, contents: bool, advance: Callable[[int], None]
) -> Iterator[Blob]:
    with ExitStack() as stack:
        plain: IO[bytes] = file
        if magic.startswith(_GZIP):
            plain = stack.enter_context(gzip.GzipFile(fileobj=file))  # type: ignore[arg-type]  # all but its __enter__
        elif magic.startswith(_XZ):
            plain = stack.enter_context(lzma.open(file))
        elif magic.startswith(_ZSTD):
            plain = stack.enter_context(_open_zstd(file))
        stream = _Bounded(plain, file, total, advance)
        tar = stack.enter_context(
            tarfile.open(fileobj=cast(IO[bytes], stream), mode="r|", bufsize=20 * _BLOCK, tarinfo=_BoundedHeader)
        )
        members = 0
        while (member := tar.next()) is not None:
            tar.members = []  # type: ignore[attr-defined]  # it would keep every header for a way back we never take
            members += 1
            _check_members(members, total)
            path, refused = _judge(member.name, member.isreg() and not member.issparse(), member.size)
            if member.isdir() or not path:
                continue
            content: bytes | None = b""
            if not refused and (contents or not has_image_ending(path)):
                data = tar.extractfile(member)
                assert data is not None  # only links and devices give none
                content = _wanted(path, data.read, contents)
            if content is not None:
                yield Blob(path, None if refused else content, refused)
        # tarfile takes any unreadable header for the end; only a block of zeros is one.
        if stream.block_at(tar.offset) != bytes(_BLOCK):
            raise tarfile.ReadError(f"it breaks off after {tar.offset:,} bytes")
        for rest in stream.rest(tar.offset):  # to the end, where the compressor's own checksum is compared
            if b"ustar" in rest:
                raise tarfile.ReadError("another archive follows its end, as `cat a.tar b.tar` writes it")


def _zip_members(file: IO[bytes], total: int, contents: bool, advance: Callable[[int], None]) -> Iterator[Blob]:
    with zipfile.ZipFile(file) as archive:
        members = [member for member in archive.infolist() if not member.is_dir()]
        _check_growth(sum(member.file_size for member in members), total)
        _check_members(len(members), total)
        for member, name in zip(members, member_names(members), strict=True):
            advance(member.compress_size)
            plain = stat.S_IFMT(member.external_attr >> 16) in (0, stat.S_IFREG)
            path, refused = _judge(name, plain, member.file_size)
            if not path:
                continue
            refused = refused or ("encrypted" if member.flag_bits & 1 else "")
            content: bytes | None = b""
            if not refused and (contents or not has_image_ending(path)):
                try:
                    content = _zip_content(archive, member, path, contents)
                except Exception as error:  # a zip file is not one stream: the other members are still good
                    raise_fault(error)
                    refused = f"damaged in the archive ({error})" if has_image_ending(path) else ""
                    content = b"" if refused else None
            if content is not None:
                yield Blob(path, None if refused else content, refused)


def _judge(name: str, plain: bool, nbytes: int) -> tuple[str, str]:
    """The path of an archive's member, empty if it cannot be an image, and why it is refused, empty if it is not."""
    path = member_path(name)
    if len(name) > MAX_PATH or name.count("/") + name.count("\\") > MAX_DEPTH:
        return cut(name), f"a path of more than {MAX_PATH:,} characters or {MAX_DEPTH} folders"
    if path is None:
        return name, "unsafe path in the archive"
    *folders, last = path.split("/")
    if any(map(is_hidden, folders)) or is_hidden(last):
        return ("/".join(folders), HOLDS_RUN) if last == MARKER else ("", "")
    if not has_image_ending(path):
        if reason := unread(path):
            return path, reason
        return (path, "") if plain and nbytes <= MAX_FILE_BYTES else ("", "")
    if not plain:
        return path, "a link or device in the archive, not a plain file"
    return path, f"{nbytes:,} bytes; at most {MAX_FILE_BYTES:,} are read" if nbytes > MAX_FILE_BYTES else ""


def _wanted(path: str, read: Callable[[int], bytes], contents: bool) -> bytes | None:
    """What is read of a member: all of it where contents are wanted; None if it is neither image nor label."""
    head = b""
    if not has_image_ending(path):
        head = read(HEAD_BYTES)
        if is_label_file(path):
            return head
        if image_format(head) is None:
            return None
    return head + read(-1) if contents else b""


def _check_members(count: int, total: int) -> None:
    """Refuse an archive of `total` bytes with `count` members: each takes memory, and may have 20 bytes in the file."""
    if count > MEMBERS_FREE + total // BYTES_OF_MEMBER:
        raise DataError(
            "the archive has far more members than its size has room for",
            saw=f"{count:,} members or more in {total:,} bytes",
            fix="if it is genuine, extract it and give the folder",
        )


def _check_growth(grown: int, total: int) -> None:
    """Refuse an archive of `total` bytes that decompresses to `grown` bytes or more, if images would not."""
    if grown > max(GROWTH_FREE_BYTES, MAX_GROWTH * total):
        raise DataError(
            "the archive decompresses to far more than images do",
            saw=f"{grown:,} bytes or more",
            fix="if it is genuine, extract it and give the folder",
        )


def _zip_content(archive: zipfile.ZipFile, member: zipfile.ZipInfo, path: str, contents: bool) -> bytes | None:
    """`_wanted` of a member, decompressed piece by piece: ZipFile.read takes all that a member holds into memory, even
    where it claims to hold little. Of bzip2 and lzma even a small piece grows, so it is smaller still."""
    step = _CHUNK if member.compress_type in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED) else 4096
    with archive.open(member) as file:

        def read(n: int) -> bytes:
            return file.read(n) if n >= 0 else b"".join(iter(partial(file.read, step), b""))

        return _wanted(path, read, contents)


def _open_zstd(file: IO[bytes]) -> IO[bytes]:
    """A decompressing reader: the standard library's from Python 3.14, before that the `zstandard` package's."""
    try:
        from compression import zstd  # type: ignore[import-not-found]  # Python 3.14

        return zstd.open(file)
    except ModuleNotFoundError:
        pass
    try:
        import zstandard
    except ModuleNotFoundError as error:
        raise PlatformError(
            "this Python cannot read zstd archives",
            saw="neither compression.zstd (Python 3.14) nor the package zstandard",
            fix="pip install zstandard, or repack the archive as .tar.xz",
        ) from error
    return zstandard.ZstdDecompressor().stream_reader(file, read_across_frames=True)


def _damaged(path: Path, error: Exception) -> DataError:
    return DataError(
        f"the archive {path} is damaged or not an archive",
        saw=" ".join(str(error).split()) or type(error).__name__,
        fix="download or pack it again",
    )


def _unopenable(path: Path, error: OSError) -> DataError:
    return DataError(f"the archive {path} cannot be read", saw=error.strerror, fix="check the path and its permissions")
