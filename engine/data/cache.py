"""Packed sources on disk: one folder per content and image size, published whole and verified when read.

ROOT/data/KEY/   images-SPLIT.npy, images-SPLIT.1.npy, …   (uint8 [n, S, S, 3], a gigabyte each)
                 labels-SPLIT.npy (int64 [N])   meta.json
ROOT/memory/     small facts that are slow to find out again (the hash of a source, the size chosen for it)
ROOT/downloads/  what torchvision downloaded

KEY depends on the bytes of what was packed and on the image size, never on names and times alone.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..boundary import engine_error
from ..errors import DataError, PlatformError
from ..files import Folder, expanded, make_folder, read_arrays, synchronise
from ..locks import HELD, clear, held_folder, sweep
from ..sealing import NewerError, read_json, sealed_json
from ..terminal import say_once
from .store import MAPPED_BYTES, ImageStore, Pixels, ShardedImages, fingerprint
from .verification import Verification, running_hashes

FORMAT = 2
_PARTIAL = ".partial-"
_OURS = re.compile(r"(images|labels)-[a-z]+(\.\d+)?\.npy|\.?meta\.json(\.\d+\.tmp)?|lock")  # what packing writes
# FAT's clock, the coarsest of a file system in use: a file may be written twice within it and keep its times.
_CLOCK_NS = 2_000_000_000


class DamagedError(PlatformError):
    """A cache entry is not what was packed; its message says how. Reaches a user only if it was packed just now."""

    def __init__(self, how: str) -> None:
        super().__init__(how, fix="check the disk of the cache, then run the command again")


@dataclass(frozen=True)
class SplitMeta:
    """What meta.json says about one split.

    Attributes:
        images: how many.
        labelled: whether there are labels.
        fingerprint: of images and labels, see `store.fingerprint`.
        shard_images: how many lie in each file but the last.
        bytes, mtime_ns: of each of the image files.
        hashes: see `running_hashes`, without the last; empty where an earlier version packed.
    """

    images: int
    labelled: bool
    fingerprint: str
    shard_images: int
    bytes: tuple[int, ...]
    mtime_ns: tuple[int, ...]
    hashes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        counts = (self.images, self.shard_images, *self.bytes, *self.mtime_ns)
        if not all(type(count) is int and count >= 0 for count in counts) or self.shard_images < 1:
            raise ValueError("counts must be whole numbers")
        if not len(self.bytes) == len(self.mtime_ns) == max(1, -(-self.images // self.shard_images)):
            raise ValueError(f"{len(self.bytes)} files for {self.images} images")
        if len(self.hashes) not in (0, len(self.bytes)):
            raise ValueError(f"{len(self.hashes)} hashes for {len(self.bytes)} files")

    def shard_lengths(self) -> list[int]:
        """How many images lie in each file."""
        whole, files = self.shard_images, len(self.bytes)
        return [whole] * (files - 1) + [self.images - whole * (files - 1)]


@dataclass(frozen=True)
class Meta:
    """What meta.json says about a packed source.

    Attributes:
        source, kind, image_size, class_names, splits: of it.
        skipped: `(path, reason)` of what was left out.
        tree: see `Listing`; empty for a named source.
        arranged: by which version of the rules of `arrange`; 0 for the first.
        levels: the lowest and highest value of its 16-bit gray images; None without any.
    """

    source: str
    kind: str
    image_size: int
    class_names: tuple[str, ...]
    splits: dict[str, SplitMeta]
    skipped: tuple[tuple[str, str], ...] = ()
    tree: tuple[tuple[str, str, str, int], ...] = ()
    arranged: int = 0
    format: int = FORMAT
    levels: tuple[int, int] | None = None


def cache_root() -> Path:
    """$SIMCLR_ENGINE_CACHE, else $XDG_CACHE_HOME/simclr_engine, else ~/.cache/simclr_engine."""
    if own := os.environ.get("SIMCLR_ENGINE_CACHE"):
        return expanded(own)
    if shared := os.environ.get("XDG_CACHE_HOME"):
        return Path(shared) / "simclr_engine"
    if not (home := expanded("~")).is_absolute():
        fix = "set HOME, or SIMCLR_ENGINE_CACHE to a folder that can be written"
        raise PlatformError("the home folder, where the cache is kept, is not known", saw="no HOME", fix=fix)
    return home / ".cache" / "simclr_engine"


def entry_path(content: str, size: int) -> Path:
    """Where a source with this content key is kept at this image size."""
    key = hashlib.sha256(f"{FORMAT} {content} {size}".encode()).hexdigest()[:32]
    return cache_root() / "data" / key


def read_meta(entry: Path) -> Meta | None:
    """The description of an entry, None where there is no entry.

    Raises:
        DamagedError: it cannot be read.
        NewerError: a newer version wrote it.
        PlatformError: there is no permission to read it, which packing again would not change.
    """
    path = entry / "meta.json"
    try:
        fields = read_json(path, "", path.name, ours=FORMAT)
    except (FileNotFoundError, NotADirectoryError):
        if entry.exists():
            raise DamagedError("meta.json is missing") from None
        return None
    except PermissionError as error:
        raise unusable(error) from error
    except NewerError:
        raise
    except (OSError, ValueError, DataError) as error:
        raise DamagedError(f"meta.json cannot be read ({str(error)[:200]})") from error
    try:
        splits = {name: _split_meta(**values) for name, values in fields.pop("splits").items()}
        skipped = tuple((str(path), str(reason)) for path, reason in fields.pop("skipped"))
        names = tuple(str(name) for name in fields.pop("class_names"))
        tree = tuple((str(a), str(b), str(c), int(n)) for a, b, c, n in fields.pop("tree", ()))
        levels = fields.pop("levels", None)
        if levels is not None:
            low, high = levels
            levels = (int(low), int(high))
        meta = Meta(**fields, splits=splits, skipped=skipped, class_names=names, tree=tree, levels=levels)
        if not isinstance(meta.arranged, int):
            raise ValueError("arranged is no number")
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise DamagedError(f"meta.json cannot be understood ({str(error)[:200]})") from error
    if meta.format != FORMAT or not meta.splits or not all(re.fullmatch("[a-z]+", name) for name in meta.splits):
        raise DamagedError("meta.json is of another format")
    return meta


def _split_meta(bytes: list[int], mtime_ns: list[int], hashes: Sequence[str] = (), **values: Any) -> SplitMeta:
    return SplitMeta(bytes=tuple(bytes), mtime_ns=tuple(mtime_ns), hashes=tuple(map(str, hashes)), **values)


def write_meta(entry: Path, meta: Meta) -> None:
    """Write the description, in one step: the last thing that packing does. Also replaces one of the same files."""
    document = sealed_json(asdict(meta), "meta.json")
    try:
        Folder.open(entry, "the packed images to the cache").write("meta.json", document)
    except PlatformError as error:
        if isinstance(error.__cause__, OSError):
            raise unusable(error.__cause__) from error
        raise


def read_labels(entry: Path, split: str) -> NDArray[np.int64] | None:
    """The labels int64 `[N]` of a split of an entry; None if they cannot be read."""
    try:
        labels: NDArray[np.int64] = np.load(labels_path(entry, split), allow_pickle=False)
    except Exception:  # `read_split` says what is wrong with them
        return None
    return labels


def read_split(entry: Path, meta: Meta, split: str, name: str) -> ImageStore:
    """A verified split of an entry.

    Images over `MAPPED_BYTES` are memory-mapped. If size and time of their files are those at packing, their pixels are
    compared with the fingerprint by `ImageStore.verify`; all others are read and compared here.

    Raises:
        DamagedError: a file is missing, cut short, of another shape, or its fingerprint differs.
    """
    said = meta.splits[split]
    paths = images_paths(entry, split, len(said.bytes))
    try:
        sizes, times = sizes_and_times(paths)
        large = sum(sizes) > MAPPED_BYTES
        shards = [np.load(path, mmap_mode="r" if large else None, allow_pickle=False) for path in paths]
        labels = np.load(labels_path(entry, split), allow_pickle=False) if said.labelled else None
    except Exception as error:  # numpy's readers raise a dozen kinds for damaged files; all mean the same here
        raise DamagedError(f"split {split} cannot be read ({str(error)[:200]})") from error
    for shard, count in zip(shards, said.shard_lengths(), strict=True):
        if shard.dtype != np.uint8 or shard.shape != (count, meta.image_size, meta.image_size, 3):
            raise DamagedError(f"split {split} holds {shard.dtype} {list(shard.shape)}")
    if labels is not None and (labels.dtype != np.int64 or labels.shape != (said.images,)):
        raise DamagedError(f"the labels of split {split} are {labels.dtype} {list(labels.shape)}")
    images: Pixels = ShardedImages(shards) if large else np.concatenate(shards) if len(shards) > 1 else shards[0]
    if large and (sizes, times) == (said.bytes, said.mtime_ns):
        hashes = running_hashes(images.shape, paths, sizes[0] - shards[0].nbytes, labels)
        known = (*(said.hashes or (None,) * len(paths)), said.fingerprint)
        named = (*paths, labels_path(entry, split) if said.hashes else entry)
        check = Verification(hashes, tuple(zip(named, known, strict=True)), paths)
        images = ShardedImages(shards, checks=(check,))
    elif fingerprint(images, labels) != said.fingerprint:
        raise DamagedError(f"the fingerprint of split {split} differs")
    names = meta.class_names if labels is not None else ()
    return ImageStore(images, labels, names, said.fingerprint, name, split, meta.skipped)


def images_paths(entry: Path, split: str, count: int) -> list[Path]:
    """The image files of a split."""
    return [entry / (f"images-{split}.{n}.npy" if n else f"images-{split}.npy") for n in range(count)]


def labels_path(entry: Path, split: str) -> Path:
    """The label file of a split."""
    return entry / f"labels-{split}.npy"


def sizes_and_times(paths: list[Path]) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Bytes and mtime in ns of each file."""
    status = [path.stat() for path in paths]
    return tuple(file.st_size for file in status), tuple(file.st_mtime_ns for file in status)


def publish(entry: Path, build: Callable[[Path], None]) -> None:
    """Let `build` fill an empty folder, then put it in the place of `entry` in one step.

    Processes that publish the same entry at once all succeed: the first one's is kept. A damaged entry is replaced,
    and one that was arranged by other rules.
    """
    try:
        with partial_entry(entry) as partial:
            build(partial)
            partial.chmod(0o755)
            synchronise(partial)
            _replace(partial, entry)
            synchronise(entry.parent)
    except OSError as error:
        raise unusable(error) from error


@contextmanager
def partial_entry(entry: Path) -> Iterator[Path]:
    """A folder beside `entry` for an entry under way, removed at the end. What killed processes left goes first.

    Raises:
        OSError: it cannot be made.
    """
    make_folder(entry.parent)
    sweep(entry.parent, _PARTIAL, _OURS)
    with held_folder(entry.parent, f"{_PARTIAL}{entry.name[:8]}-") as partial:
        yield partial


def _replace(partial: Path, entry: Path) -> None:
    for _ in range(10):
        try:
            partial.rename(entry)
            with suppress(OSError):  # a reader does not mind it
                (entry / HELD).unlink()
            return
        except OSError:
            if not entry.exists():
                raise
        if _is_whole(entry, like=partial):
            return
        aside = partial.with_name(f"{partial.name}-damaged")
        with suppress(FileNotFoundError):  # another process replaces it too
            if foreign := [file for file in entry.iterdir() if not _OURS.fullmatch(file.name)]:
                raise PlatformError(
                    "a damaged packed copy is not replaced, because its folder holds other files",
                    saw=foreign[0],
                    fix="move it elsewhere, then run again",
                )
            (entry / HELD).touch()  # a kill now leaves a folder to `sweep`
            entry.rename(aside)
            clear(aside, _OURS)
    raise OSError(f"{entry} cannot be replaced")


def _is_whole(entry: Path, like: Path) -> bool:
    """Whether an entry can be read, and was arranged by the rules of the other one."""
    try:
        meta, other = read_meta(entry), read_meta(like)
        if meta is None or other is None or meta.arranged != other.arranged:
            return False
        for split in meta.splits:
            read_split(entry, meta, split, "")
    except DamagedError:
        return False
    return True


FileState = tuple[int, int, int, int, int]


def file_state(status: os.stat_result) -> FileState:
    """What tells a changed file from the one that was hashed: device, inode, bytes, ctime and mtime in ns.

    A program can set a file's mtime and keep its size, but not set its ctime.
    """
    return status.st_dev, status.st_ino, status.st_size, status.st_ctime_ns, status.st_mtime_ns


def recall_digest(path: Path, states: object) -> tuple[str, list[str]] | None:
    """What `remember_digest` was told for this path, if its files are still in the same states."""
    note = recall("content", {"path": str(path.resolve())})
    if not isinstance(note, dict) or note.get("states") != _digest_of(states):
        return None
    digest, names = note.get("digest"), note.get("images", [])
    if not (isinstance(digest, str) and re.fullmatch("[0-9a-f]{64}", digest) and isinstance(names, list)):
        return None
    return (digest, names) if all(isinstance(name, str) for name in names) else None


def remember_digest(
    path: Path, states: object, found: tuple[str, list[str]], *, changed_ns: int, looked_ns: int
) -> None:
    """Note the hash of the files at a path; not if one was changed so recently that its times cannot be relied on.

    A file that is written twice within one tick of the file system's clock has equal times both times. So states are
    trusted only if all times in them lie clearly before the moment at which they were taken.

    Args:
        path: of the folder or file.
        states: `file_state` of every file, with its name; anything with a `repr` of its own.
        found: sha256 in hexadecimal, and the files that are images by their bytes alone.
        changed_ns: the latest ctime or mtime among them.
        looked_ns: when the states were taken, before the files were hashed.
    """
    if changed_ns < looked_ns - _CLOCK_NS:
        digest, names = found
        note = {"states": _digest_of(states), "digest": digest} | ({"images": names} if names else {})
        remember("content", {"path": str(path.resolve())}, note)


def _digest_of(states: object) -> str:
    return hashlib.sha256(repr(states).encode()).hexdigest()


def recall(kind: str, about: dict[str, Any]) -> Any:
    """What `remember` was told about exactly this; None if nothing, or if the note is damaged."""
    path = _memory_path(kind, about)
    try:
        note = read_json(path, "it is found out again", path.name, needed=True)
        return note["value"] if note["about"] == about else None
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError, KeyError, DataError) as error:
        why = error.cause if isinstance(error, DataError) else error
        say_once(f"note: {path} is not used: {why}; what it says is found out again")
        return None


def remember(kind: str, about: dict[str, Any], value: Any) -> None:
    """Note a fact that would be slow to find out again; if the cache cannot be written, it is not noted."""
    path = _memory_path(kind, about)
    with suppress(PlatformError, DataError):  # also a note that is too long to be read again
        Folder.open(path.parent, make=True).write(path.name, sealed_json({"about": about, "value": value}, path.name))


def _memory_path(kind: str, about: dict[str, Any]) -> Path:
    key = hashlib.sha256(json.dumps([FORMAT, about], sort_keys=True).encode()).hexdigest()[:24]
    return cache_root() / "memory" / f"{kind}-{key}.json"


def unusable(error: OSError) -> PlatformError:
    """What an error of the system says of the cache, or of a file in it."""
    told = engine_error(error)  # also by its words, where it has no number
    fix = ((told.fix if told else None) or "check the path").removesuffix(", or choose another path")
    return PlatformError(
        "the cache cannot be used",
        saw=f"{error.strerror or error} ({error.filename or cache_root()})",
        fix=f"{fix}, or set SIMCLR_ENGINE_CACHE to a folder that can be written",
    )


def cached_features(
    key: str, store: ImageStore, compute: Callable[[ImageStore], NDArray[np.float32]]
) -> NDArray[np.float32]:
    """The features of `store`, from the cache where they are, else computed and kept there.

    Args:
        key: identifies the encoder (hash of weights and buffers, or of the file) and its preprocessing.
        store: the images; their fingerprint completes the key.
        compute: gives float32 `[N, D]`, one row per image.

    A cache that cannot be read is computed anew; one that cannot be written costs time, never the evaluation.
    """
    name = hashlib.sha256(f"{key}\n{store.fingerprint}".encode()).hexdigest()
    path = cache_root() / "features" / f"{name}.npy"
    known = read_arrays(path, "they are computed again", needed=True)
    if known is not None and known[0].dtype == np.float32 and known[0].ndim == 2 and len(known[0]) == len(store):
        return known[0]
    features = compute(store)
    store.verify()  # what damaged images gave is not kept under the name of good ones
    with (
        suppress(PlatformError, NewerError),
        Folder.open(path.parent, make=True).sealing(path.name) as file,
    ):
        np.save(file, features, allow_pickle=False)
    return features
