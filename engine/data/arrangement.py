"""Which image belongs to which split and class, told from the folders alone: the same for folders and archives.

Everything is decided on the number of images in each folder; the names of files play no part.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np

from .listing import HOLDS_RUN, Listing, SplitListing

SPLIT_ORDER = ("all", "train", "val", "test", "unlabeled")
RULES = 1  # the version of what `arrange` decides; packed copies of another are compared with it once
FEW_FILES, FEW_SHARE = 3, 0.03  # so many strays never change the layout
_SPLIT_WORDS = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("test", "testing", "holdout", "heldout"), "test"),
    **dict.fromkeys(("val", "valid", "validation", "validate", "dev", "devel", "development"), "val"),
    **dict.fromkeys(("eval", "evaluation"), "val"),
    **dict.fromkeys(("unlabeled", "unlabelled", "unlabel", "unsup", "unsupervised", "unannotated"), "unlabeled"),
}
# Words that say no more of a folder than that it holds images: `train_images` and `test-set` are splits all the same.
_FILLERS = frozenset(
    (
        *("set", "data", "dataset", "image", "images", "img", "imgs", "jpg", "jpeg", "jpegs", "png", "pngs", "pic"),
        *("pics", "picture", "pictures", "photo", "photos", "split", "folder", "full", "raw", "hr", "lr", "x", "px"),
        *("seg",),
    )
)
# Words of folders that stand beside the images of a set, if they hold few of them.
_ASIDE = frozenset(
    (
        *("sample", "samples", "example", "examples", "preview", "previews", "doc", "docs", "asset", "assets"),
        *("figure", "figures", "plot", "plots", "screenshot", "screenshots", "thumb", "thumbs", "thumbnail"),
        *("thumbnails", "icon", "icons", "logo", "logos", "demo", "report", "reports", "media", "readme", "result"),
        *("results", "cover"),
    )
)

Folder = tuple[str, ...]


@dataclass(frozen=True)
class _Place:
    """Where the images of a folder belong: a split (None: left out), a class (or ""), and the folder shown for it."""

    split: str | None
    name: str
    shown: Folder


@dataclass(frozen=True)
class _Tree:
    """How many images each folder holds by itself and with all below it, and which folders are in it."""

    direct: Mapping[Folder, int]
    below: Mapping[Folder, int]
    children: Mapping[Folder, Mapping[str, None]]

    @classmethod
    def of(cls, counts: Mapping[Folder, int]) -> _Tree:
        below: Counter[Folder] = Counter()
        children: defaultdict[Folder, dict[str, None]] = defaultdict(dict)
        for folder, count in counts.items():
            for depth in range(len(folder) + 1):
                below[folder[:depth]] += count
                if depth:
                    children[folder[: depth - 1]][folder[depth - 1]] = None
        return cls(counts, below, children)

    def heads(self, folder: Folder) -> list[str]:
        """The names of the folders in a folder."""
        return list(self.children.get(folder, ()))

    def count(self, folder: Folder, heads: Iterable[str]) -> int:
        """The images in some of the folders in a folder."""
        return sum(self.below[(*folder, head)] for head in heads)


def arrange(
    paths: Iterable[str], refused: Iterable[tuple[str, str]] = (), labels: Mapping[str, str] | None = None
) -> Listing:
    """Sort image paths into splits and classes.

    - Folders that merely wrap everything else are looked through.
    - A folder named after a split (`train`, `val`, `holdout`, `test_images`, …) is one if it stands beside another
      split, or alone, or if the folders in it have the names of those beside it. So a class may be called `train`.
      Images outside the splits are `unlabeled`. Without splits everything is the one split `all`.
    - Inside a split, folders are classes (files deeper down belong to the class of the outermost folder). A few images
      beside them are `unlabeled`; many mean that the folders are no classes, and the split has no labels.
    - What belongs to no class is `unlabeled` and not lost: pretraining takes it. Beside the classes of a test or
      validation split it is left out, for it may be held out too.

    Args:
        paths: relative POSIX paths of image files, in any order.
        refused: `(path, reason)` of files that are not to be read; they are passed on. What lies in a folder that was
            refused because it `HOLDS_RUN` is left out with it.
        labels: the class of each path, from a table; folders then name splits only. Paths without one are unlabeled.
    """
    skipped = list(refused)
    runs = tuple(f"{path}/" for path, reason in skipped if reason == HOLDS_RUN)
    folders: dict[str, Folder] = {}
    for path in paths:
        if path in folders:
            skipped.append((path, "appears twice; the first one counts"))
        elif not path.startswith(runs):
            folders[path] = tuple(path.lstrip("/").split("/")[:-1])  # absolute in a list of files
    places = _places(_Tree.of(Counter(folders.values())), labels is not None)
    classes: dict[str, dict[str, str]] = {}  # {split: {path: class, empty without one}}
    shown: Counter[tuple[str, str, str]] = Counter()
    for path in sorted(folders):
        place = places[folders[path]]
        split, name = place.split, place.name
        if labels is not None:
            name = labels.get(path, "") if split != "unlabeled" else ""
            split = "unlabeled" if not name and split in ("all", "train") else split
        if split is None:
            skipped.append((path, "lies beside the class folders of a held-out split"))
            continue
        classes.setdefault(split, {})[path] = name
        shown[split, "/".join(place.shown), name] += 1
    names = sorted_names({name for of_split in classes.values() for name in of_split.values() if name})
    number = {name: label for label, name in enumerate(names)}
    splits: dict[str, SplitListing] = {}
    for split in SPLIT_ORDER:
        if of_split := classes.get(split):
            labelled = {path: number[name] for path, name in of_split.items() if name}
            if labelled:  # only a table names some images of a held-out split and not the others
                skipped += [(path, "has no label in the table") for path in of_split if path not in labelled]
            known = np.array(list(labelled.values()), dtype=np.int64) if labelled else None
            splits[split] = SplitListing(tuple(labelled or of_split), known)
    tree = tuple((split, folder, name, n) for (split, folder, name), n in shown.items())
    tree = tuple(sorted(tree, key=lambda row: _shown_at(row, number)))
    return Listing(splits, names, tuple(skipped), tree)


def _shown_at(row: tuple[str, str, str, int], number: Mapping[str, int]) -> tuple[int, str, int, str]:
    """Where a row of the tree stands: the classes of a folder in their own order, which numbers have too."""
    split, folder, name, _ = row
    return SPLIT_ORDER.index(split), folder.rpartition("/")[0], number.get(name, -1), folder


def sorted_names(names: Iterable[str]) -> tuple[str, ...]:
    """Class names in label order: as numbers where all of them are, else by their characters."""
    named = set(names)
    if named and all(re.fullmatch(r"-?\d+", name, re.ASCII) for name in named):
        return tuple(sorted(named, key=lambda name: (int(name[:4000]), name)))
    return tuple(sorted(named))


def look_alike(name: str) -> str:
    """The same for names that people take for one: `Cat` and `cats`, the two Unicode forms of é, `01` and `1`."""
    letters = re.sub(r"[\W_]+", "", unicodedata.normalize("NFKC", name).casefold())
    return (letters.lstrip("0") or "0") if letters.isdigit() else (letters.removesuffix("s") or name)


def split_named(folder: str) -> str | None:
    """The split that a folder of this name stands for: `train` for `Train`, `training_set` and `train2017`."""
    words = [word for word in re.findall("[a-z]+", folder.lower()) if word not in _FILLERS]
    joined = "".join(words)
    for ending in ("", "set", "data", "images"):
        if joined.endswith(ending) and (split := _SPLIT_WORDS.get(joined.removesuffix(ending))):
            return split
    return None


def few(count: int, rest: int) -> bool:
    """Whether so many images beside the rest are strays."""
    return count <= rest and (count <= FEW_FILES or count <= FEW_SHARE * (count + rest))


def _set_aside(tree: _Tree, folder: Folder, heads: Iterable[str]) -> set[str]:
    """Folders such as `sample_images` and `docs`, if they hold few of the images."""
    named = {head for head in heads if _ASIDE.intersection(re.findall("[a-z]+", head.lower()))}
    aside = tree.count(folder, named)
    return named if few(aside, tree.below[folder] - aside) else set()


def _root(tree: _Tree) -> Folder:
    """The folder below those that merely wrap everything."""
    root: Folder = ()
    while True:
        heads = set(tree.heads(root))
        inner = heads - _set_aside(tree, root, heads)
        if len(inner) != 1 or (split_named(head := next(iter(inner))) is not None):
            return root
        beside = tree.below[root] - tree.below[*root, head]
        # Beside folders full of classes a picture is a stray; beside a folder of pictures it may be one of them.
        if beside and (not few(beside, tree.below[*root, head]) or not tree.heads((*root, head))):
            return root
        root = (*root, head)


def _split_folders(tree: _Tree, root: Folder) -> dict[Folder, str]:
    """The folders that are splits, none of them inside another; with `train`, the classes beside a lone test split."""
    found: dict[Folder, str] = {}
    waiting = [root]
    while waiting:
        at = waiting.pop()
        heads = tree.heads(at)
        named = {head: split for head in heads if (split := split_named(head))}
        others = set(heads) - set(named)
        splits = _are_splits(tree, at, named, others, alone=at == root)
        if splits:
            found |= {(*at, head): split for head, split in named.items()}
        if splits == "beside their classes":
            found |= {(*at, head): "train of classes" for head in others}
        else:
            waiting += [(*at, head) for head in (others if splits else heads)]
    return found


def _are_splits(tree: _Tree, at: Folder, named: Mapping[str, str], others: set[str], alone: bool) -> str:
    """Whether the folders named after splits are splits: empty if not, else why."""
    if not named:
        return ""
    others = others - _set_aside(tree, at, others)
    kinds = set(named.values())
    if kinds - {"unlabeled"} and not others:
        return "alone" if alone or len(kinds) > 1 else ""
    if len(kinds) > 1:
        flat = not any(tree.heads((*at, head)) for head in named)
        outnumbered = len(others) > len(named) and tree.count(at, others) > tree.count(at, named)
        return "" if flat and outnumbered else "beside another split"
    if kinds & {"val", "test"}:
        beside = {head.casefold() for head in others}
        inside = [head.casefold() for name in named for head in tree.heads((*at, name))]
        if len(beside.intersection(inside)) >= max(2, len(set(inside)) / 2):
            return "beside their classes"
    return ""


def _places(tree: _Tree, table: bool) -> dict[Folder, _Place]:
    """Where the images of each folder belong."""
    root = _root(tree)
    splits = _split_folders(tree, root)
    # CLASS/train, CLASS/test: the class is the folder above.
    above = len({folder[:-1] for folder in splits}) > 1
    places: dict[Folder, _Place] = {}
    classes = {folder: _class_heads(tree, folder) for folder in splits}
    if not splits:
        heads = _class_heads(tree, root)
        splits, classes = {root: "all"}, {root: heads if len(heads) > 1 else set()}
    inner = {folder: _inner(tree, folder) for folder in splits}
    for folder in tree.direct:
        inside = next((folder[:depth] for depth in range(len(folder) + 1) if folder[:depth] in splits), None)
        if inside is None:
            places[folder] = _Place("unlabeled", "", folder[: len(root) + 1])
            continue
        split, heads = splits[inside], classes[inside]
        into = inner[inside]
        head = folder[len(into)] if len(folder) > len(into) else ""
        if split == "train of classes":
            places[folder] = _Place("train", inside[-1], inside)
        elif split == "unlabeled" or table:
            places[folder] = _Place(split, "", inside)
        elif head in heads:
            places[folder] = _Place(split, head, (*into, head))
        elif heads:  # a stray
            held_out = split in ("val", "test")
            places[folder] = _Place(None if held_out else "unlabeled", "", folder[: len(into) + 1])
        else:
            name = inside[-2] if above and len(inside) > 1 else ""
            places[folder] = _Place(split, name, folder[: len(inside) + 1] if split == "all" else inside)
    return places


def _inner(tree: _Tree, split: Folder) -> Folder:
    """The folder that holds the classes of a split: below `train/images`, which names none."""
    heads = tree.heads(split)
    if len(heads) == 1 and not tree.direct.get(split) and not set(re.findall("[a-z]+", heads[0].lower())) - _FILLERS:
        return (*split, heads[0])
    return split


def _class_heads(tree: _Tree, split: Folder) -> set[str]:
    """The folders in a split that are its classes; none if many images lie beside them."""
    into = _inner(tree, split)
    heads = set(tree.heads(into))
    heads -= _set_aside(tree, into, heads) | {head for head in heads if split_named(head) == "unlabeled"}
    return heads if few(tree.direct.get(into, 0), tree.count(into, heads)) else set()
