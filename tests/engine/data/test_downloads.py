"""Downloaded data sets, played here by small files in torchvision's formats."""

from __future__ import annotations

import hashlib
import io
import pickle
import socket
import sys
import tarfile
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fixtures.image_files import noise, write_tree
from simclr_engine.data import load_data, load_splits
from simclr_engine.errors import PlatformError
from simclr_engine.torchvision_shim import import_torchvision


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache and a working folder of the test's own, and no network."""

    def offline(*_: object, **__: object) -> None:
        raise urllib.error.URLError("no network in this test")

    monkeypatch.setenv("SIMCLR_ENGINE_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(urllib.request, "urlopen", offline)
    return tmp_path


def md5(data: bytes) -> str:
    return hashlib.md5(data, usedforsecurity=False).hexdigest()


def cifar_files(label_key: str, names_key: str) -> tuple[dict[str, bytes], np.ndarray, list[int]]:
    """Two training batches of three images and a test batch of two, in CIFAR's format."""
    images = np.stack([noise(seed, 32, 32) for seed in range(8)])
    labels = [3, 1, 0, 2, 1, 3, 0, 2]
    rows = images.transpose(0, 3, 1, 2).reshape(8, 3072)
    files = {
        name: pickle.dumps({"data": rows[at], label_key: labels[at]})
        for name, at in (("one", slice(0, 3)), ("two", slice(3, 6)), ("three", slice(6, 8)))
    }
    files["names"] = pickle.dumps({names_key: ["ant", "bee", "cow", "dog"]})
    return files, images, labels


def use_small_cifar(
    monkeypatch: pytest.MonkeyPatch, name: str = "cifar10"
) -> tuple[dict[str, bytes], np.ndarray, list[int]]:
    import_torchvision()
    from torchvision import datasets

    keys = ("labels", "label_names") if name == "cifar10" else ("fine_labels", "fine_label_names")
    files, images, labels = cifar_files(*keys)
    dataset = getattr(datasets, name.upper())
    monkeypatch.setattr(dataset, "train_list", [[n, md5(files[n])] for n in ("one", "two")])
    monkeypatch.setattr(dataset, "test_list", [["three", md5(files["three"])]])
    monkeypatch.setattr(dataset, "meta", {"filename": "names", "key": keys[1], "md5": md5(files["names"])})
    return {f"{dataset.base_folder}/{n}": data for n, data in files.items()}, images, labels


@pytest.mark.parametrize("name", ["cifar10", "cifar100"])
@pytest.mark.parametrize("where", ["data", "cache/downloads/NAME"])
def test_cifar_already_downloaded_is_found_offline(
    place: Path, monkeypatch: pytest.MonkeyPatch, name: str, where: str
) -> None:
    files, images, labels = use_small_cifar(monkeypatch, name)
    write_tree(place / where.replace("NAME", name), files)
    train, test = load_splits(name)
    np.testing.assert_array_equal(train.images, images[:6])
    np.testing.assert_array_equal(test.images, images[6:])
    assert train.labels is not None and train.labels.tolist() == labels[:6]
    assert test.labels is not None and test.labels.tolist() == labels[6:]
    assert train.class_names == ("ant", "bee", "cow", "dog") and train.name == name


def test_a_packed_download_needs_no_network_no_torchvision_and_no_files(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files, images, _ = use_small_cifar(monkeypatch)
    write_tree(place / "data", files)
    load_data("cifar10")
    for path in files:
        (place / "data" / path).unlink()
    monkeypatch.setitem(sys.modules, "simclr_engine.data.downloads", None)
    np.testing.assert_array_equal(load_data("cifar10").images, images[:6])


@pytest.mark.parametrize("name", ["cifar10", "cifar100", "stl10", "svhn"])
def test_a_failed_download_names_the_other_ways(name: str, place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    socket_timeout = socket.getdefaulttimeout()
    with pytest.raises(PlatformError, match=f"{name} cannot be downloaded") as caught:
        load_data(name)
    error = caught.value
    assert "no network in this test" in str(error.saw) and error.exit_code == 3
    assert "--data FOLDER" in str(error.fix) and "--data glyphs" in str(error.fix)
    assert socket.getdefaulttimeout() == socket_timeout
    assert capsys.readouterr().out == ""
    assert list((place / "cache/data").iterdir()) == []


class Response:
    """What urlopen gives for a file."""

    def __init__(self, data: bytes, url: str) -> None:
        self._file, self.length, self.url = io.BytesIO(data), len(data), url

    def read(self, n: int) -> bytes:
        return self._file.read(n)

    def __enter__(self) -> Response:
        return self

    def __exit__(self, *_: object) -> None:
        pass


def test_a_partial_download_is_noticed_by_its_checksum_and_fetched_again(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    files, images, _ = use_small_cifar(monkeypatch)
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
        for path, data in files.items():
            member = tarfile.TarInfo(path)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    whole = buffer.getvalue()
    from torchvision import datasets

    monkeypatch.setattr(datasets.CIFAR10, "tgz_md5", md5(whole))
    served = [whole[: len(whole) // 2], whole]
    fetched = []

    def urlopen(request: Any) -> Response:
        if "Method" not in request.headers:  # torchvision asks for redirects first, with a header "Method: HEAD"
            fetched.append(request.full_url)
            return Response(served[len(fetched) - 1], request.full_url)
        return Response(b"", request.full_url)

    monkeypatch.setattr(urllib.request, "urlopen", urlopen)
    with pytest.raises(PlatformError, match="cannot be downloaded"):
        load_data("cifar10")
    partial = place / "cache/downloads/cifar10/cifar-10-python.tar.gz"
    assert partial.stat().st_size == len(whole) // 2
    np.testing.assert_array_equal(load_data("cifar10").images, images[:6])
    assert len(fetched) == 2
    assert len(load_data("cifar10", size=16)) == 6 and len(fetched) == 2  # complete files are not fetched again
    captured = capsys.readouterr()
    assert captured.out == "" and "downloading cifar10 to" in captured.err


def test_a_damaged_downloaded_file_is_not_read(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files, _, _ = use_small_cifar(monkeypatch)
    files["cifar-10-batches-py/two"] = pickle.dumps({"data": np.zeros((3, 3072), dtype=np.uint8), "labels": [0, 0, 0]})
    write_tree(place / "data", files)
    with pytest.raises(PlatformError, match="cannot be downloaded"):
        load_data("cifar10")


def test_stl10_has_three_splits_channels_last_one_without_labels(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import_torchvision()
    from torchvision import datasets

    images = np.stack([noise(seed, 96, 96) for seed in range(6)])

    def binary(rows: slice) -> bytes:
        return images[rows].transpose(0, 3, 2, 1).tobytes()  # channels, then columns, then rows

    files = {
        "train_X.bin": binary(slice(0, 2)),
        "train_y.bin": bytes([2, 1]),
        "unlabeled_X.bin": binary(slice(2, 5)),
        "test_X.bin": binary(slice(5, 6)),
        "test_y.bin": bytes([1]),
        "class_names.txt": b"ant\nbee\n",
    }
    listed = [[n, md5(files[n])] for n in ("train_X.bin", "train_y.bin", "unlabeled_X.bin")]
    monkeypatch.setattr(datasets.STL10, "train_list", listed)
    monkeypatch.setattr(datasets.STL10, "test_list", [[n, md5(files[n])] for n in ("test_X.bin", "test_y.bin")])
    write_tree(place / "data/stl10_binary", files)
    train, test = load_splits("stl10")
    np.testing.assert_array_equal(train.images, images[:2])
    np.testing.assert_array_equal(test.images, images[5:])
    assert train.labels is not None and train.labels.tolist() == [1, 0] and train.class_names == ("ant", "bee")
    unlabeled = load_data("stl10", split="unlabeled")
    np.testing.assert_array_equal(unlabeled.images, images[2:5])
    assert unlabeled.labels is None and unlabeled.class_names == ()


def test_svhn_is_channels_last_and_its_ten_means_zero(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from scipy.io import savemat

    import_torchvision()
    from torchvision import datasets

    images = np.stack([noise(seed, 32, 32) for seed in range(5)])
    listed = dict(datasets.SVHN.split_list)
    for split, rows in (("train", slice(0, 3)), ("test", slice(3, 5))):
        buffer = io.BytesIO()
        labels = np.array([[10], [7], [1]][: rows.stop - rows.start], dtype=np.uint8)
        savemat(buffer, {"X": images[rows].transpose(1, 2, 3, 0), "y": labels})
        url, name, _ = listed[split]
        listed[split] = [url, name, md5(buffer.getvalue())]
        write_tree(place / "data", {name: buffer.getvalue()})
    monkeypatch.setattr(datasets.SVHN, "split_list", listed)
    train, test = load_splits("svhn")
    np.testing.assert_array_equal(train.images, images[:3])
    np.testing.assert_array_equal(test.images, images[3:])
    assert train.labels is not None and train.labels.tolist() == [0, 7, 1]
    assert train.class_names == tuple("0123456789")
