"""The small files that fuzzing begins with: good ones of every format, and hostile ones made by hand."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import lzma
import tarfile
import tempfile
import warnings
import zipfile
from argparse import Namespace
from collections import OrderedDict, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, PngImagePlugin

from fixtures.image_files import encode, noise, tar_bytes, zip_bytes

from .mutation import message, parsed

PART = b"\n#=#\n"  # between the files of an input that is several


@dataclass(frozen=True)
class Seed:
    """A file to change.

    Attributes:
        data: what is changed.
        kind: of the structure that `mutation.STRUCTURED` knows, else the bytes are just bytes.
        suffix: of the file's name; the reader goes by it.
        seal: makes the file of the data: compression, checksums.
    """

    data: bytes
    kind: str
    suffix: str
    seal: Callable[[bytes], bytes] = bytes


def image_seeds() -> list[Seed]:
    """Every format in every mode, 8 to 16 pixels."""
    rgb, gray = noise(1, 8, 8), noise(2, 8, 8)[..., 0]
    exif = Image.Exif()
    exif[0x0112] = 6
    exif[0x010E] = "text"
    text = PngImagePlugin.PngInfo()
    text.add_text("XML:com.adobe.xmp", '<x tiff:Orientation="3"/>')
    text.add_text("Raw profile type exif", "\nexif\n      4\n4d4d002a\n", zip=True)
    palette = Image.fromarray(gray, "P")
    palette.putpalette(noise(3, 1, 256).tobytes())
    later = [Image.fromarray(noise(4, 8, 8))]
    png = [
        encode(rgb),
        encode(rgb, exif=exif),
        encode(rgb, pnginfo=text),
        encode(np.dstack([rgb, gray])),
        encode(gray.astype(np.uint16) * 257),
        encode(gray, mode="1"),
        encode(gray, mode="LA"),
        _saved(palette, "PNG", transparency=3),
        _saved(Image.fromarray(rgb), "PNG", save_all=True, append_images=later),
    ]
    jpeg = [
        encode(rgb, "JPEG"),
        encode(rgb, "JPEG", exif=exif, progressive=True),
        encode(noise(5, 64, 64), "JPEG", quality=20, restart_marker_blocks=1),
        encode(rgb, "JPEG", mode="CMYK"),
        encode(gray, "JPEG"),
    ]
    webp = [
        encode(rgb, "WEBP"),
        encode(np.dstack([rgb, gray]), "WEBP", lossless=True, exif=exif),
        _saved(Image.fromarray(rgb), "WEBP", save_all=True, append_images=later),
    ]
    bmp = [encode(rgb, "BMP"), encode(gray, "BMP"), encode(gray, "BMP", mode="1"), _saved(palette, "BMP")]
    others = [
        encode(rgb, "TIFF"),
        encode(gray, "TIFF", compression="tiff_lzw"),
        encode(rgb, "TIFF", compression="jpeg"),
    ]
    others += [_saved(Image.fromarray(rgb), "TIFF", save_all=True, append_images=later)]
    others += [_saved(Image.fromarray(rgb), "GIF", save_all=True, append_images=later), encode(gray, "GIF")]
    others += [encode(noise(6, 16, 16), "AVIF"), encode(noise(6, 16, 16), "JPEG2000"), encode(gray, "JPEG2000")]
    kinds = ((png, "png"), (jpeg, "jpeg"), (webp, "riff"), (bmp, "bytes"), (others, "bytes"))
    return [Seed(data, kind, f".{kind}") for files, kind in kinds for data in files]


def _saved(image: Image.Image, form: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


def archive_seeds(outside: str) -> list[Seed]:
    """Tar and zip files; `outside` is a path that nothing may be written to."""
    tree = {
        f"{split}/{name}/{n}.png": encode(noise(n, 8, 8))
        for split in ("train", "test")
        for name in "ab"
        for n in (1, 2)
    }
    plain = {f"ant/{n}.png": encode(noise(n, 8, 8)) for n in (1, 2)}
    hostile: dict[str, bytes | tarfile.TarInfo] = {
        "../outside.png": plain["ant/1.png"],
        f"{outside}.png": plain["ant/1.png"],
        "ant/<script>\x1b[2J\n.png": plain["ant/1.png"],
        "ant": _member("ant", tarfile.SYMTYPE, outside),
        "ant/link.png": _member("ant/link.png", tarfile.SYMTYPE, "/etc/passwd"),
        "ant/hard.png": _member("ant/hard.png", tarfile.LNKTYPE, "../../outside.png"),
        "ant/null.png": _member("ant/null.png", tarfile.CHRTYPE),
    }
    # No ending, the labels of a WebDataset, a run, an archive within.
    odd: dict[str, bytes | tarfile.TarInfo] = {"1": plain["ant/1.png"], "1.cls": b"7", "2.png": plain["ant/2.png"]}
    odd |= {"2.cls": b"x y", "runs/a/.simclr-engine-run": b"{}", "runs/a/1.png": b"x", "inner.zip": zip_bytes(plain)}
    long = {"ant/" + "n" * 150 + "é.png": plain["ant/1.png"], **plain}
    zeros = tar_bytes({"ant/0.bmp": bytes(1 << 16), **plain})
    tars = [tar_bytes(tree), tar_bytes({**plain, **hostile}), tar_bytes(long), zeros, _pax(long), tar_bytes(odd)]
    zips = [
        zip_bytes(tree),
        zip_bytes({n: d for n, d in {**plain, **hostile}.items() if isinstance(d, bytes)}),
        _odd_zip(),
        zip_bytes({name: data for name, data in odd.items() if isinstance(data, bytes)}).replace(
            b"2.png", b"\xc3\xa8png"
        ),
    ]
    return [
        *(Seed(data, "tar", ".tar") for data in tars),
        *(Seed(data, "tar", ".tar.gz", lambda d: gzip.compress(d, 1, mtime=0)) for data in tars),
        *(Seed(data, "tar", ".tar.xz", lambda d: lzma.compress(d, preset=0)) for data in tars[:2]),
        *(Seed(data, "tar", ".tar.zst", _zstd) for data in tars[:2]),
        *(Seed(data, "zip", ".zip") for data in zips * 2),
        Seed(tars[1], "tar", ".tar.gz", lambda d: gzip.compress(d + bytes(24 << 20), 1, mtime=0)),  # a small bomb
    ]


def _member(name: str, kind: bytes, target: str = "") -> tarfile.TarInfo:
    member = tarfile.TarInfo(name)
    member.type, member.linkname = kind, target
    return member


def _pax(files: Mapping[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for path, data in files.items():
            member = tarfile.TarInfo(path)
            member.size, member.pax_headers = (
                len(data),
                {"comment": "x" * 300, "GNU.sparse.major": "1", "size": str(len(data))},
            )
            tar.addfile(member, io.BytesIO(data))
    return buffer.getvalue()


def _odd_zip() -> bytes:
    """Stored, bzip2 and lzma members, a link, a comment."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for n, method in enumerate((zipfile.ZIP_STORED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA)):
            archive.writestr(f"ant/{n}.png", encode(noise(n, 8, 8)), method)
        link = zipfile.ZipInfo("ant/link.png")
        link.external_attr = 0o120777 << 16
        archive.writestr(link, "/etc/passwd")
        archive.comment = b"a comment"
    return buffer.getvalue()


def _zstd(data: bytes) -> bytes:
    try:
        from compression import zstd
    except ModuleNotFoundError:
        import zstandard

        return zstandard.ZstdCompressor(level=1).compress(data)
    return bytes(zstd.compress(data, 1))


def recipe_seeds() -> list[Seed]:
    """A whole recipe as a user's file and as a run's, files upon a base, and values of `--set`."""
    from simclr_engine.recipe import Recipe

    whole = Recipe.load("demo").to_toml().encode()
    short = b'base = "cifar10"\nname = "mine"\nnotes = "n"\n'
    short += b"[train]\nepochs = 3\nviews = 2\nresolution = [[0.5, 16], [1.0, 0]]\n"
    more = (
        short + b'[head]\nhidden = [64]\n[published]\nsource = "s"\nresults = [{method = "linear", accuracy = 0.9}]\n'
    )
    more += b'[[short_runs]]\nepochs = 5\n[short_runs.settings]\n"train.views" = 4\n'
    sets = b'train.epochs = 3\ntrain.resolution = [[1.0, 0]]\noptimizer.lr = .5\nmodel.arch = resnet18\nnotes = "x"'
    texts = [(whole, ".toml"), (whole, ".run"), (short, ".toml"), (more, ".toml"), (more, ".toml"), (sets, ".set")]
    return [Seed(text, "toml", suffix) for text, suffix in texts]


def table_seeds() -> list[Seed]:
    """Tables with and without a header, with each separator, quotes and other letters; and lists."""
    rows = [("cat/1.png", "cat"), ("./dog/2.JPG", "dog"), ("caf\u00e9 3", "\u72ac"), ('a "b", c.png', "x;y")]
    plain = "".join(f'"{a.replace(chr(34), chr(34) * 2)}","{b}"\n' for a, b in rows)
    texts = [plain, "image_id,label\n" + plain, "Label;File Name\n7;1.png\n8;2.png\n", "1.png\tcat\r\n2.png\tdog\r\n"]
    lists = ["cat/1.png\ncat/2.png\n\ndog\\3.png\n", "\ufeff./caf\u00e9.png\r\nb.png"]
    texts += [text.replace("\n", "\n\n") for text in texts[:1]]
    return [Seed(text.encode(), "text", ".csv") for text in texts] + [
        Seed(text.encode(), "text", ".list") for text in lists
    ]


def checkpoint_seeds() -> list[Seed]:
    """Checkpoints of ours and of others, with and without our footer, and safetensors files."""
    import torch

    from simclr_engine.recipe import Recipe

    small = {
        "step": 3,
        "name": "x",
        "model": OrderedDict({"encoder.conv1.weight": torch.ones(2, 3)}),
        "rng": torch.zeros(4),
    }
    recipe = Recipe.load("demo").to_toml()
    states: list[object] = [
        small,
        {
            "model": {"encoder.0.weight": torch.ones(2, 3, 1, 1)},
            "recipe": recipe,
        },  # fits the tiny encoder of the reader
        {"model": {1: 2, "encoder.x": None, "encoder.y": [1]}},
        {"model": [1, 2]},
        {"a": torch.ones(2, dtype=torch.complex64), "b": torch.eye(3).to_sparse(), "c": torch.empty(2, device="meta")},
        {"q": quantised(), "h": torch.ones(2).to(torch.float8_e5m2)},
        _resnet(torch.ones(1)),
        _resnet(torch.full((1,), float("nan"))),
        {"a": _resnet(torch.ones(1)), "b": _resnet(torch.zeros(1))},
        {
            f"{p}.layer1.0.conv1.weight": torch.ones(1).expand(100_000, 100_000, 1000) for p in "ab"
        },  # 40 TB of one value
        {f"{p}.layer1.0.conv1.weight": torch.empty(3, device="meta") for p in "ab"},
        {f"{p}.layer1.0.conv1.weight": torch.eye(3).to_sparse() for p in "ab"},
        {
            f"{p}.layer1.0.conv1.weight": v
            for p, v in (("a", torch.ones(2)), ("b", torch.ones(2).to(torch.float8_e5m2)))
        },
        {
            "args": Namespace(lr=0.1, out=Path("runs")),
            "best": np.float64(0.5),
            "lists": defaultdict(list, a=[1]),
            "set": {1, 2},
            "hyper_parameters": {"first_conv": False, "maxpool1": True},
            "state_dict": _resnet(torch.ones(1)),
        },
        torch.nn.Sequential(torch.nn.Conv2d(3, 2, 1), torch.nn.BatchNorm2d(2)),
    ]
    seeds = []
    for state in states:
        entries = _entries(_torch_bytes(state))
        name = next(key for key in entries if key.endswith("data.pkl"))
        others = {key: value for key, value in entries.items() if key != name}
        ours = lambda d, n=name, o=others: footed(_stored({n: d, **o}))  # noqa: E731  # one of two, side by side
        theirs = lambda d, n=name, o=others: _stored({n: d, **o})  # noqa: E731  # the other
        seeds += [Seed(entries[name], "pickle", ".pt", ours), Seed(entries[name], "pickle", ".foreign.pt", theirs)]
    whole = _torch_bytes(small)
    seeds += [Seed(whole, "zip", ".pt", footed), Seed(_deflated(small), "zip", ".pt", footed)]
    seeds += [Seed(_deflated({"a": torch.zeros(6_000_000)}), "zip", ".foreign.pt")]  # 24 MB in 24 KB
    old = (_torch_bytes(state, _use_new_zipfile_serialization=False) for state in (small, states[-2]))
    seeds += [Seed(data, "pickle", ".foreign.pt") for data in old]
    seeds += [Seed(whole + bytes(48), "bytes", ".pt"), Seed(footed(_torch_bytes([1, 2])), "bytes", ".pt")]
    return seeds + _safetensors_seeds()


def quantised() -> Any:
    """A tensor of three integers with their scale; torch warns that it will not make such any more."""
    import torch

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.quantize_per_tensor(torch.ones(3), 0.1, 0, torch.qint8)


def _safetensors_seeds() -> list[Seed]:
    import torch
    from safetensors.torch import save

    about = {"format": "simclr-engine encoder 1", "arch": "resnet18", "stem": "small", "image_size": "8"}
    about |= {"mean": "[0.5, 0.5, 0.5]", "std": "[0.2, 0.2, 0.2]", "recipe": "demo"}
    fits = save({"0.weight": torch.ones(2, 3, 1, 1)}, about)
    resnet = save({"layer1.0.conv1.weight": torch.ones(2), "x": torch.ones(2, dtype=torch.float16)}, about)
    names = ("coef", "intercept", "mean", "scale")
    arrays = {name: torch.ones(2, 3) for name in names} | {"classes": torch.arange(2)}
    probe = save(arrays, {"C": "1.0", "iterations": "3", "chosen": "True"})
    return [Seed(data, "safetensors", ".safetensors") for data in (fits, resnet, probe)]


def _resnet(value: Any) -> dict[str, Any]:
    """A ResNet-18's names and shapes, all weights one value stored once."""
    import torch

    from simclr_engine.model import build_encoder

    with torch.device("meta"):
        state = build_encoder("resnet18", "small").state_dict()
    return {name: value.expand(tensor.shape) for name, tensor in state.items() if tensor.dim()}


def _torch_bytes(state: object, **options: Any) -> bytes:
    import torch

    buffer = io.BytesIO()
    torch.save(state, buffer, **options)
    return buffer.getvalue()


def _entries(raw: bytes) -> dict[str, bytes]:
    with zipfile.ZipFile(io.BytesIO(raw)) as file:
        return {name: file.read(name) for name in file.namelist()}


def _stored(entries: Mapping[str, bytes], method: int = zipfile.ZIP_STORED) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", method) as file:
        for name, data in entries.items():
            file.writestr(zipfile.ZipInfo(name), data, method)
    return buffer.getvalue()


def _deflated(state: object) -> bytes:
    return _stored(_entries(_torch_bytes(state)), zipfile.ZIP_DEFLATED)


def footed(body: bytes) -> bytes:
    from simclr_engine.checkpoint import FOOTER

    return body + FOOTER + hashlib.sha256(body).digest()


def about_onnx() -> Any:
    """The metadata of the tiny model."""
    from simclr_engine.export.metadata import SCHEMA, ModelMetadata

    return ModelMetadata(
        schema=SCHEMA,
        project_version="0.1.0",
        architecture="resnet18",
        stem="small",
        feature_dim=2,
        image_size=8,
        mean=(0.5, 0.5, 0.5),
        std=(0.25, 0.25, 0.25),
        interpolation="bilinear",
        class_names=("ant", "bee"),
        data_fingerprint="cd" * 32,
        recipe="tiny",
        recipe_hash="ef" * 32,
        parity={"max_abs": 1e-5, "max_relative": 1e-5, "min_cosine": 0.999, "images": 74, "batches": [1, 2]},
    )


def onnx_seeds() -> list[Seed]:
    """A tiny model that is sealed anew after every change, with and without a probe, a sidecar, weights elsewhere."""
    from simclr_engine.export.metadata import PREFIX

    properties = about_onnx().to_properties()
    old = {key: value for key, value in properties.items() if key not in (PREFIX + "precision", PREFIX + "probe")}
    old[PREFIX + "schema"] = "1"
    probe = {
        "id": "x",
        "data": "d",
        "accuracy": 0.5,
        "train_images": 2,
        "test_images": 2,
        "class_names": ["ant", "bee"],
    }
    probed = properties | {PREFIX + "probe": json.dumps(probe)}
    outside = [(2, 1), (8, b"w"), (13, message([(1, b"location"), (2, b"../outside.bin")])), (14, 1)]
    inside = [(1, 2), (2, 1), (8, b"w"), (9, b"\0\0\0\0\0\0\x80?")]
    graphs = {name: _graph(message(tensor)) for name, tensor in (("inside", inside), ("outside", outside))}
    models = [_model(graphs["inside"], p) for p in (properties, probed, old)]
    hidden = _graph(message(inside), [(5, message([(1, b"g"), (20, 5), (6, graphs["outside"])]))])
    models += [_model(graphs["outside"], properties), _model(hidden, properties)]
    seeds = [Seed(model, "protobuf", ".onnx", _sealed) for model in models for _ in range(2)]
    whole = _sealed(models[0])
    digest = hashlib.sha256(whole).hexdigest().encode()
    return [*seeds, Seed(whole, "bytes", ".onnx"), Seed(whole + PART + digest + b"  x.onnx\n", "bytes", ".summed.onnx")]


def _graph(tensor: bytes, attributes: list[tuple[int, int | bytes]] = []) -> bytes:  # noqa: B006  # never changed
    """The mean colour of images of 8 pixels, cut to two channels; `attributes` are put to its first node."""
    axes, few = np.array([1, 2], "<i8").tobytes(), np.array([2], "<i8").tobytes()
    zero = np.array([0], "<i8").tobytes()
    number = message([(1, b"to"), (3, 1), (20, 2)])
    kept = message([(1, b"keepdims"), (3, 0), (20, 2)])
    nodes = [
        message([(1, b"images"), (2, b"x"), (4, b"Cast"), (5, number), *attributes]),
        message([(1, b"x"), (1, b"axes"), (2, b"m"), (4, b"ReduceMean"), (5, kept)]),
        message([(1, b"m"), *((1, name) for name in (b"zero", b"few", b"one")), (2, b"features"), (4, b"Slice")]),
    ]
    tensors = [(b"axes", 2, axes), (b"few", 1, few), (b"zero", 1, zero), (b"one", 1, np.array([1], "<i8").tobytes())]
    held = [message([(1, count), (2, 7), (8, name), (9, raw)]) for name, count, raw in tensors]
    ends = [_value_info(b"images", 2, [8, 8, 3]), _value_info(b"features", 1, [2])]
    rows = [*((1, node) for node in nodes), (2, b"tiny"), *((5, one) for one in (tensor, *held) if one)]
    return message([*rows, (11, ends[0]), (12, ends[1])])


def _value_info(name: bytes, kind: int, sides: list[int]) -> bytes:
    dims = [message([(2, b"batch")]), *(message([(1, side)]) for side in sides)]
    tensor = message([(1, kind), (2, message([(1, dim) for dim in dims]))])
    return message([(1, name), (2, message([(1, tensor)]))])


def onnx_of(nodes: list[bytes], tensors: list[bytes], outputs: Sequence[bytes] = ()) -> bytes:
    """A sealed model with these nodes and tensors, serialised, before and among its own, and more outputs of fp32."""
    fields = [*((1, node) for node in nodes), *(parsed(_graph(b"")) or []), *((5, tensor) for tensor in tensors)]
    kind = message([(1, message([(1, 1)]))])
    fields += [(12, message([(1, name), (2, kind)])) for name in outputs]
    return _sealed(_model(message(fields), about_onnx().to_properties()))


def _model(graph: bytes, properties: Mapping[str, str]) -> bytes:
    entries = [(14, message([(1, key.encode()), (2, value.encode())])) for key, value in properties.items()]
    return message([(1, 10), (8, message([(2, 20)])), (7, graph), *entries])


def _sealed(model: bytes) -> bytes:
    """With the digest that its content has now, where it still is a message."""
    from simclr_engine.export.metadata import DIGEST

    if parsed(model) is None:
        return model
    digest = json.dumps(hashlib.sha256(model).hexdigest())
    return model + message([(14, message([(1, DIGEST.encode()), (2, digest.encode())]))])


def result_seeds() -> list[Seed]:
    """What an evaluation leaves on disk, and a packed source in the cache."""
    from scipy.sparse import csr_array

    from simclr_engine.evaluation.metrics import score
    from simclr_engine.evaluation.records import Neighbours, Predictions
    from simclr_engine.evaluation.result import EvaluationResult, FoldScores

    confusion = csr_array(np.array([[3, 1], [0, 4]]))
    result = EvaluationResult.from_scores(
        score(confusion, ("ant", "bee")),
        method="linear",
        init="pretrained",
        protocol="p",
        confusion=confusion,
        ece=0.1,
        seconds=1.0,
        data="photos",
        also={"weighted": 0.5},
        folds=(FoldScores(1, 0.5, 1.0, 0.5, 4, 4), FoldScores(2, 0.6, 1.0, 0.5, 4, 4)),
        history=({"epoch": 1, "train_loss": 1.0},),
    )
    rows, small = np.arange(2), noise(1, 8, 8)
    images = np.stack([small, small])
    predictions = Predictions(rows, rows, np.ones(2, dtype=np.float32), rows, images)
    shown = images[:, None].repeat(2, 1)
    neighbours = Neighbours(
        images, rows, shown, rows[:, None].repeat(2, 1), np.ones((2, 2), np.float32), np.array(["a", "b"])
    )
    arrays = {"features": np.ones((2, 3), np.float32)}
    labels = {"labels": rows, "class_names": np.array(b'["a", "b"]'), "data": np.str_("photos")}
    seeds = [Seed(result.to_json().encode(), "json", ".json") for _ in range(2)]
    for suffix, record in ((".predictions", _fields(predictions)), (".neighbours", _fields(neighbours))):
        packed = _packed(record)
        seeds += [Seed(packed, "zip", suffix), Seed(_joined(packed), "npy", suffix, _rejoined)]
    embedded = _npy_bytes(arrays["features"]) + PART + _packed(labels)
    return [*seeds, Seed(embedded, "npy", ".embeddings"), *_cache_seeds(images, rows)]


def index_seeds() -> list[Seed]:
    """An index of four vectors: the vectors, the manifest and the table."""
    from simclr_engine.export.index import EmbeddingIndex

    with tempfile.TemporaryDirectory() as folder:
        index = EmbeddingIndex.build(np.eye(4, 3, dtype=np.float32) + 1, list("abcd"), ["x", "y", "", "x"])
        vectors = index.save(Path(folder) / "v.npy")
        parts = [
            vectors.read_bytes(),
            vectors.with_suffix(".json").read_bytes(),
            vectors.with_suffix(".csv").read_bytes(),
        ]
    rest = PART + PART.join(parts[1:])
    first, last = parts[0] + PART, PART + parts[2]
    return [
        Seed(parts[0], "npy", ".index", lambda d: d + rest),
        Seed(parts[1], "json", ".index", lambda d: first + d + last),
        Seed(PART.join(parts), "bytes", ".index"),
    ]


def _cache_seeds(images: Any, labels: Any) -> list[Seed]:
    from simclr_engine.data.cache import FORMAT
    from simclr_engine.data.store import fingerprint

    pixels = _npy_bytes(images)
    split = {
        "images": 2,
        "labelled": True,
        "fingerprint": fingerprint(images, labels),
        "shard_images": 2,
        "bytes": [len(pixels)],
        "mtime_ns": [1],
    }
    meta = {"source": "s", "kind": "archive", "image_size": 8, "class_names": ["a", "b"], "skipped": [["x.png", "why"]]}
    meta |= {"splits": {"all": split}, "format": FORMAT}
    said = json.dumps(meta).encode()
    files = PART + pixels + PART + _npy_bytes(labels)
    return [Seed(said, "json", ".cache", lambda d: d + files), Seed(files, "npy", ".cache", lambda d: said + d)]


def _fields(record: Any) -> dict[str, Any]:
    return {field.name: getattr(record, field.name) for field in fields(record)}


def _packed(arrays: Mapping[str, Any]) -> bytes:
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)
    return buffer.getvalue()


def _npy_bytes(array: Any) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=False)
    return buffer.getvalue()


def _joined(npz: bytes) -> bytes:
    return PART.join(part for item in _entries(npz).items() for part in (item[0].encode(), item[1]))


def _rejoined(data: bytes) -> bytes:
    parts = data.split(PART)
    names = (part.decode("latin-1") or "x" for part in parts[::2])
    return _stored(dict(zip(names, parts[1::2], strict=False)), zipfile.ZIP_DEFLATED)


@cache
def seeds_of(reader: str, outside: str) -> tuple[Seed, ...]:
    """The seeds of a reader, in an order that never changes."""
    makers: dict[str, Callable[[], list[Seed]]] = {
        "archive": lambda: archive_seeds(outside),
        "image": image_seeds,
        "recipe": recipe_seeds,
        "checkpoint": checkpoint_seeds,
        "onnx": onnx_seeds,
        "result": result_seeds,
        "table": table_seeds,
        "index": index_seeds,
    }
    return tuple(makers[reader]())
