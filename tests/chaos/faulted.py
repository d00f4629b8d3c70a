"""The commands of the fault campaign: what they read, what they must leave, and how the next run goes on."""

from __future__ import annotations

import hashlib
import json
import os
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

from fixtures.image_files import class_tree, tar_bytes, write_tree, zip_bytes
from fixtures.synthetic_run import write_evaluation, write_metrics, write_neighbours, write_run
from fixtures.tiny_probe import write_tiny_probe
from simclr_engine import model, recording
from simclr_engine.data import load_splits
from simclr_engine.report import feature_figures, page, style

from . import training
from .faults import Case, Ended
from .kills import Outcome

# What the commands import while they run, which takes seconds in each process.
MODULES = (
    *(f"simclr_engine.cli.{name}" for name in ("main", "pretrain", "data", "embed", "report")),
    *(f"simclr_engine.{name}" for name in ("pretraining", "report.page", "export.embed", "export.embedder")),
    *("onnxruntime", "jinja2", "matplotlib.backends.backend_agg", "rich.console", "rich.table", "torch.utils.data"),
    *(f"tensorboard.compat.proto.{name}_pb2" for name in ("event", "summary")),
    "tensorboard.summary.writer.record_writer",
)
TRAIN = ("pretrain", "--recipe", "recipe.toml", "--data", "set", "--out", "run", "--device", "cpu", "--no-fused")


def cases() -> list[Case]:
    """All of them; what they import is loaded."""
    for name in MODULES:
        import_module(name)
    model.build_encoder = training.narrow_encoder
    # What is read and written is tested, not what is drawn, which takes most of the time.
    page.to_png = lambda figure: style.image_png(np.zeros((1, 1, 3), np.uint8))
    feature_figures.tsne = lambda features, *_: (features[:, :2], np.arange(len(features)))
    saving, keeping = recording.save_last, recording.keep_last_as

    def save_last(folder: Any, state: dict[str, Any]) -> None:
        saving(folder, state)
        os.write(2, b"saved %d\n" % state["step"])

    def keep_last_as(folder: Any, name: str) -> None:
        keeping(folder, name)
        os.write(2, b"kept %d\n" % int(name[6:10]))

    recording.save_last, recording.keep_last_as = save_last, keep_last_as
    pack = ("data", "pack", "--size", "8", "--json")
    embed = ("embed", "encoder.onnx", "set", "--out", "out/set.npy", "--images", "--json")
    return [
        Case("pack-folder", (*pack, "set"), ("set", "cache"), _folder, _packed),
        Case("pack-archive", (*pack, "set.tar"), ("set.tar", "cache"), _archive, _packed),
        Case("pack-zip", (*pack, "set.zip"), ("set.zip", "cache"), _zip, _packed),
        Case("embed", embed, ("set", "cache", "out", "encoder.onnx"), _embedded, _index),
        Case("report", ("report", "run"), ("run", "cache"), _evaluated, _page),
        Case("pretrain", TRAIN, ("run", "cache"), _trained, _run, _resumed, _checkpoints),
    ]


def _folder(at: Path) -> None:
    write_tree(at / "set", class_tree(("ant", "bee"), each=6))


def _archive(at: Path) -> None:
    (at / "set.tar").write_bytes(tar_bytes(class_tree(("ant", "bee"), each=6)))


def _zip(at: Path) -> None:
    (at / "set.zip").write_bytes(zip_bytes(class_tree(("ant", "bee"), each=6)))


def _packed(at: Path, ended: Ended) -> object:
    about = json.loads(ended.out)
    return about["splits"], about["skipped"]


def _embedded(at: Path) -> None:
    _folder(at)
    (at / "out").mkdir()
    write_tiny_probe(at / "encoder.onnx", image_size=8)


def _index(at: Path, ended: Ended) -> object:
    names = ("set.npy", "set.csv", "set.images.npy", "set.json")
    return {name: hashlib.sha256((at / "out" / name).read_bytes()).hexdigest() for name in names}


def _evaluated(at: Path) -> None:
    run = write_run(at / "run")
    write_metrics(run)
    write_evaluation(run)
    write_neighbours(run)


def _page(at: Path, ended: Ended) -> object:
    names = (path.name for path in (at / "run").rglob("*") if path.is_file())
    # A map that cannot be kept is drawn again; a fault when a temporary file is removed leaves it.
    return sorted(name for name in names if not name.startswith("tsne-") and not name.endswith(".tmp"))


def _trained(at: Path) -> None:
    write_tree(at / "set", class_tree(("ant", "bee"), each=12))
    (at / "recipe.toml").write_text(training.Training("narrow", often=False).recipe().to_toml(), "utf-8")
    os.environ["SIMCLR_ENGINE_CACHE"] = str(at / "cache")
    load_splits(at / "set", size=8)


def _run(at: Path, ended: Ended) -> object:
    reference = at.with_name("pretrain-undisturbed")
    return [] if at == reference else training.compare(at / "run", reference / "run")


def _checkpoints(at: Path, ended: Ended) -> list[str]:
    return training.examine(at / "run", Outcome(killed=False, reports=ended.said.splitlines()))[1]


def _resumed(at: Path, ended: Ended) -> tuple[str, ...]:
    return (*TRAIN, "--resume" if any((at / "run" / "checkpoints").glob("*.pt")) else "--overwrite")
