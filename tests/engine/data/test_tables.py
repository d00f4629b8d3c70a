"""Tables of classes and lists of files, as people have them beside their images."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from fixtures.image_files import encode, noise, tar_bytes, write_tree
from simclr_engine.data import Selection, load_data, load_splits
from simclr_engine.data.sources import overview
from simclr_engine.data.tables import read_labels, read_list
from simclr_engine.errors import DataError, UsageError

FILES = {f"{folder}/{n}.png": encode(noise(10 * f + n)) for f, folder in enumerate(("a", "b")) for n in range(3)}


@pytest.mark.parametrize(
    ("text", "rows"),
    [
        ("file,label\na/0.png,cat\nb/1.png,dog\n", {"a/0.png": "cat", "b/1.png": "dog"}),
        ("a/0.png,cat\nb/1.png,dog", {"a/0.png": "cat", "b/1.png": "dog"}),
        ("\ufeffImage_ID;x;Class\n0.png;5;cat\n", {"0.png": "cat"}),
        ("label\tfilename\ncat\t.\\a\\0.png\n", {"a/0.png": "cat"}),
        ('file,label\n"a, b.png","big, cat"\n\n', {"a, b.png": "big, cat"}),
        ("img_00,class_1\nimg_01,class_2\n", {"img_00": "class_1", "img_01": "class_2"}),
    ],
    ids=["header", "no header", "semicolons and other columns", "tabs, other order, backslashes", "quotes", "numbered"],
)
def test_a_table_is_read_as_people_write_it(tmp_path: Path, text: str, rows: dict[str, str]) -> None:
    (tmp_path / "t.csv").write_text(text, encoding="utf-8")
    assert read_labels(tmp_path / "t.csv").rows == rows


@pytest.mark.parametrize(
    ("content", "cause"),
    [
        (b"", "has no rows"),
        (b"file,label\n", "has no rows"),
        (b"a.png,cat\na.png,dog\n", "two classes"),
        (b"a.png,cat\nb.png\n", "has no label"),
        (b"\xff\xfea\0", "not text in UTF-8"),
        (b"a.png,\0", "not a text file"),
        (b'a.png,"cat\nb.png,dog\n', "not a CSV file"),
    ],
)
def test_a_table_that_cannot_be_meant_is_refused(tmp_path: Path, content: bytes, cause: str) -> None:
    (tmp_path / "t.csv").write_bytes(content)
    with pytest.raises(DataError, match=cause):
        read_labels(tmp_path / "t.csv")
    with pytest.raises(DataError, match="cannot be read"):
        read_labels(tmp_path / "missing.csv")


@pytest.mark.parametrize("kind", ["folder", "tar"])
def test_the_classes_are_those_of_the_table_and_the_rest_is_unlabeled(tmp_path: Path, kind: str) -> None:
    path = write_tree(tmp_path / "set", FILES)
    if kind == "tar":
        path = tmp_path / "set.tar"
        path.write_bytes(tar_bytes(FILES))
    (tmp_path / "t.csv").write_text("file,label\na/0,cat\na/1.png,dog\nb/2.png,cat\n")
    chosen = Selection(path, tmp_path / "t.csv")
    store = load_data(chosen)
    np.testing.assert_array_equal(store.images, np.stack([noise(0), noise(1), noise(12)]))
    assert store.labels is not None and store.labels.tolist() == [0, 1, 0] and store.class_names == ("cat", "dog")
    assert len(load_data(chosen, "pretraining")) == 6
    assert load_data(path).class_names == ("a", "b")  # the folder by itself is another packed copy
    (tmp_path / "t.csv").write_text("file,label\na/0,dog\na/1.png,dog\nb/2.png,cat\n")
    changed = load_data(chosen)
    assert changed.labels is not None and changed.labels.tolist() == [1, 1, 0]


def test_a_row_without_its_folder_names_the_one_file_of_that_name(tmp_path: Path) -> None:
    write_tree(tmp_path / "set", {"x/1.png": FILES["a/0.png"], "y/2.png": FILES["a/1.png"]})
    (tmp_path / "t.csv").write_text("id,breed\n1,cat\n2,dog\n")
    store = load_data(Selection(tmp_path / "set", tmp_path / "t.csv"))
    assert store.class_names == ("cat", "dog") and store.labels is not None and store.labels.tolist() == [0, 1]


def test_a_row_that_fits_two_folders_is_refused_with_both(tmp_path: Path) -> None:
    write_tree(tmp_path / "set", FILES)
    (tmp_path / "t.csv").write_text("1.png,cat\n")
    with pytest.raises(DataError, match="fits several images") as caught:
        load_data(Selection(tmp_path / "set", tmp_path / "t.csv"))
    assert "a/1.png, b/1.png" in str(caught.value.saw)


def test_a_table_of_other_files_is_refused_with_both_names(tmp_path: Path) -> None:
    write_tree(tmp_path / "set", FILES)
    (tmp_path / "t.csv").write_text("z/9.png,cat\n")
    with pytest.raises(DataError, match="names an image of the data") as caught:
        load_data(Selection(tmp_path / "set", tmp_path / "t.csv"))
    assert caught.value.saw == "the table's 'z/9.png', the data's 'a/0.png'"


def test_rows_that_give_one_image_two_classes_are_refused(tmp_path: Path) -> None:
    source = write_tree(tmp_path / "set", FILES)
    (tmp_path / "t.csv").write_text("a/0,cat\na/0.png,dog\nb/1.png,dog\n")
    with pytest.raises(DataError, match="a file two classes"):
        load_data(Selection(source, tmp_path / "t.csv"))
    (tmp_path / "t.csv").write_text("a/0,dog\na/0.png,dog\n0.png,cat\n")  # the last one is of b/0.png
    assert load_data(Selection(source, tmp_path / "t.csv")).class_names == ("cat", "dog")


def test_a_table_alone_names_images_beside_it(tmp_path: Path) -> None:
    write_tree(tmp_path / "set", FILES)
    (tmp_path / "set/t.csv").write_text("".join(f"{path},{n % 2}\n" for n, path in enumerate(sorted(FILES))))
    train, test = load_splits(Selection(labels=tmp_path / "set/t.csv"))
    assert (len(train), len(test)) == (4, 2)


def test_a_list_names_the_images_that_are_used(tmp_path: Path) -> None:
    write_tree(tmp_path / "set", FILES)
    (tmp_path / "elsewhere.png").write_bytes(encode(noise(99)))
    lines = ["a/2.png", "./b/0.png", "", "a/2.png", "missing.png", str(tmp_path / "elsewhere.png")]
    again = ["a//2.png", "a/./2.png", "b/../a/2.png", str(tmp_path / "set/a/2.png"), "../elsewhere.png", ".//b/0.png"]
    (tmp_path / "set/list.txt").write_text("\n".join(lines + again))
    for source in (None, tmp_path / "set"):
        store = load_data(Selection(source, None, tmp_path / "set/list.txt"))
        assert sorted(image.tobytes() for image in store.images) == sorted(noise(n).tobytes() for n in (2, 10, 99))
        ((path, reason),) = store.skipped
        assert path == "missing.png" and "No such file" in reason


def test_a_list_of_an_archive_names_its_members(tmp_path: Path) -> None:
    (tmp_path / "set.tar").write_bytes(tar_bytes(FILES))
    (tmp_path / "list.txt").write_text("a/2.png\nb/0.png\n")
    store = load_data(Selection(tmp_path / "set.tar", None, tmp_path / "list.txt"))
    np.testing.assert_array_equal(store.images, np.stack([noise(2), noise(10)]))


def test_a_data_set_by_name_has_no_table(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("a,b\n")
    with pytest.raises(UsageError, match="its own images and labels"):
        load_data(Selection("digits", tmp_path / "t.csv"))
    with pytest.raises(UsageError, match="which images"):
        overview(Selection())


def test_only_the_end_of_a_line_ends_a_name(tmp_path: Path) -> None:
    (tmp_path / "list.txt").write_text("a\u2028b.png\nc\x0bd.png\r\n", encoding="utf-8")
    assert read_list(tmp_path / "list.txt") == ("a\u2028b.png", "c\x0bd.png")


def test_an_empty_list_is_refused(tmp_path: Path) -> None:
    (tmp_path / "list.txt").write_text("\n \n")
    with pytest.raises(DataError, match="names no file"):
        read_list(tmp_path / "list.txt")
