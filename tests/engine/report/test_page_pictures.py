"""Which pictures a run gives, and what their captions say."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.figure import Figure
from numpy.typing import NDArray

from fixtures.synthetic_run import (
    neighbours,
    predictions,
    random_confusion,
    result,
    write_evaluation,
    write_metrics,
    write_neighbours,
    write_predictions,
    write_run,
    write_training,
)
from simclr_engine import report
from simclr_engine.evaluation.records import load_predictions, result_id, save_predictions, save_result
from simclr_engine.report import feature_figures, result_figures
from simclr_engine.report.content import load_content
from simclr_engine.report.page import run_pictures
from simclr_engine.report.style import DARK, LIGHT, Picture
from simclr_engine.run import Run


@pytest.fixture(autouse=True)
def no_tsne(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first two columns instead of a t-SNE, which takes a second."""

    def quick(features: NDArray[np.float32], limit: int, seed: int) -> tuple[Any, Any]:
        return np.ascontiguousarray(features[:limit, :2]), np.arange(min(limit, len(features)))

    monkeypatch.setattr(feature_figures, "tsne", quick)


def of(run: Run, **options: Any) -> dict[str, Picture]:
    pictures = run_pictures(load_content(run), **options)
    assert len({picture.name for picture in pictures}) == len(pictures)  # a file each
    return {picture.name: picture for picture in pictures}


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """With everything that an evaluation writes."""
    run = write_run(tmp_path / "run")
    write_metrics(run)
    write_evaluation(run)
    write_predictions(run)
    write_training(run)
    write_neighbours(run)
    return run


def test_an_evaluated_run_gives_every_picture(run: Run) -> None:
    found = of(run)
    assert set(found) >= {
        "methods",
        "confusion-photos-linear-pretrained",
        "per-class-photos-finetune-pretrained-30pct-3folds",
        "predictions-photos-linear-pretrained",
        "predictions-photos-linear-scratch",
        "reliability-photos-knn-pretrained",
        "training-photos-head-pretrained",
        "training-photos-finetune-pretrained-30pct-3folds",
        "embedding-pca-random",
        "embedding-tsne-pretrained",
        "neighbours-pretrained",
        "neighbours-random",
        "spectrum",
        "named-classes",
        "loss",
    }
    assert not any("reliability" in name and "scratch" in name for name in found)
    assert list(dict.fromkeys(one.section for one in found.values())) == [
        "Methods",
        "Predictions",
        "Learning from labels",
        "Features",
        "Pretraining",
    ]
    drawn = ("methods", "training-photos-finetune-pretrained-30pct-3folds", "spectrum", "neighbours-random")
    assert all(isinstance(found[name].draw(theme=theme), Figure) for name in drawn for theme in (LIGHT, DARK))


def test_captions_say_what_was_counted(run: Run) -> None:
    found = of(run, images=5, seed=3)
    stored = load_predictions(run.directory / "evaluation", "photos-linear-pretrained")
    assert stored is not None
    rows = stored.rows[result_figures.pick(5, 3, len(stored.rows))]
    right = int((stored.truth == stored.predicted)[rows].sum())
    gallery = found["predictions-photos-linear-pretrained"]
    assert "drawn at random (seed 3; the same for every method)" in gallery.note
    assert f"{right} of these 5 are right" in gallery.caption and "of all 300 test images" in gallery.caption
    figure = gallery.draw(theme=LIGHT)
    shown = [np.asarray(axes.images[0].get_array()) for axes in figure.axes if axes.images]
    np.testing.assert_array_equal(shown, stored.images[result_figures.pick(5, 3, len(stored.rows))])
    assert "training from the pretrained one is after epoch 3" in found["training-photos-head-pretrained"].caption
    assert "all 300 through 8 principal components" in found["embedding-tsne-random"].caption
    assert "named at all: 3 of 3 on the pretrained encoder" in found["named-classes"].caption


def test_a_sample_of_the_features_is_stated(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(feature_figures.cached_tsne, "__defaults__", (120, 0))
    found = of(run)
    assert "120 of the 300, at even distances along the file" in found["embedding-tsne-random"].caption
    assert "All 300 test images" in found["embedding-pca-random"].caption
    figure = found["embedding-tsne-random"].draw(theme=LIGHT)
    assert figure.get_suptitle() == "t-SNE, random encoder (n = 120 of 300)"
    assert sum(len(c.get_offsets()) for c in figure.axes[0].collections) == 120


def test_a_method_on_several_shares_of_the_labels_has_a_curve(run: Run) -> None:
    for fraction, images in ((0.01, 3), (0.1, 30)):
        one = result(
            random_confusion(3, 300, fraction), method="finetune", label_fraction=fraction, train_images=images
        )
        save_result(run.directory / "evaluation", one)
    found = of(run)
    (name,) = [name for name in found if name.startswith("labels-")]
    assert name == "labels-photos-finetune"
    axes = found[name].draw(theme=LIGHT).axes[0]
    np.testing.assert_array_equal(axes.containers[0].lines[0].get_xdata(), [0.01, 0.1, 1.0])
    assert "1 % to 100 % of the train labels" in found[name].caption


def test_many_comparisons_share_one_gallery_per_method(run: Run) -> None:
    for fraction in (0.1, 0.2, 0.5):
        confusion = random_confusion(3, 300, 0.5)
        one = result(confusion, method="finetune", label_fraction=fraction)
        save_predictions(
            run.directory / "evaluation", save_result(run.directory / "evaluation", one), predictions(confusion)
        )
    galleries = {name for name in of(run) if name.startswith("predictions-")}
    assert galleries == {
        f"predictions-photos-{method}-{init}"
        for method in ("linear", "head", "finetune")
        for init in ("pretrained", "scratch")
    }


def test_a_run_of_an_older_version_still_has_its_pictures(tmp_path: Path) -> None:
    run = write_run(tmp_path / "old")
    write_evaluation(run)
    for path in (run.directory / "evaluation").glob("*.json"):
        plain = json.loads(path.read_text())
        for name in ("loss", "label_fraction", "folds", "history", "seal"):
            del plain[name]
        path.write_text(json.dumps(plain))
    found = of(run)
    assert {"methods", "confusion-photos-knn-pretrained", "embedding-pca-pretrained", "spectrum"} <= set(found)
    assert not any(name.startswith(("predictions", "training", "neighbours", "reliability")) for name in found)


def test_a_run_without_anything_has_no_pictures(tmp_path: Path) -> None:
    assert of(write_run(tmp_path / "bare")) == {}


def test_predictions_of_other_classes_than_the_results_are_left_out(run: Run) -> None:
    name = result_id(result(random_confusion(3, 300, 0.5)))
    save_predictions(run.directory / "evaluation", name, predictions(random_confusion(4, 90, 0.5)))
    assert f"predictions-{name}" not in of(run)


def test_features_that_are_not_finite_are_not_mapped(run: Run) -> None:
    path = run.directory / "embeddings" / "test.npy"
    features = np.load(path)
    features[3, 1] = np.nan
    np.save(path, features)
    found = of(run)
    assert "embedding-pca-pretrained" not in found
    assert "embedding-tsne-pretrained" not in found
    assert {"embedding-pca-random", "embedding-tsne-random", "spectrum"} <= set(found)
    assert "(random)" in found["spectrum"].caption
    assert "(pretrained)" not in found["spectrum"].caption


def test_supervised_training_is_not_called_an_encoder(run: Run) -> None:
    confusion = random_confusion(3, 300, 0.9)
    one = result(confusion, method="supervised", init="scratch")
    name = save_result(run.directory / "evaluation", one)
    save_predictions(run.directory / "evaluation", name, predictions(confusion))
    found = of(run)
    assert found[f"confusion-{name}"].caption.startswith("Supervised: ")
    assert "random encoder" not in found[f"per-class-{name}"].caption


def test_one_image_with_sixteen_views_fills_the_augmentation_sheet(run: Run) -> None:
    rng = np.random.default_rng(0)
    originals = rng.integers(0, 256, (4, 8, 8, 3), dtype=np.uint8)
    views = rng.integers(0, 256, (4, 16, 8, 8, 3), dtype=np.uint8)
    np.savez(run.directory / "views.npz", originals=originals, views=views)
    picture = of(run)["augmentation"]
    shown = [np.asarray(axes.images[0].get_array()) for axes in picture.draw(theme=LIGHT).axes if axes.images]
    np.testing.assert_array_equal(shown, [originals[0], *views[0]])
    assert "an image as stored (framed), and 16 of its views" in picture.caption
    np.savez(run.directory / "views.npz", originals=originals, views=views[:, :8])
    assert "images as stored (framed), and 8 views of each" in of(run)["augmentation"].caption


def test_every_picture_is_reached_from_the_package() -> None:
    for name in report.__all__:
        assert getattr(report, name) is not None
    figures = {"gallery_figure", "neighbours_figure", "training_figure", "accuracy_bars", "collapse_figure", "tsne"}
    assert figures | {"reliability_figure", "label_efficiency_figure", "augmentation_sheet"} <= set(report.__all__)
    with pytest.raises(AttributeError):
        _ = report.no_such_picture


def test_the_effective_rank_is_drawn_only_where_every_deviation_has_one(run: Run) -> None:
    assert len(of(run)["feature-spread"].draw().axes) == 2
    path = run.directory / "metrics.jsonl"
    path.write_text(path.read_text().replace(', "rankme": 40.0', "", 1))
    assert len(of(run)["feature-spread"].draw().axes) == 1


def test_a_sheet_has_the_images_and_words_of_its_picture(run: Run) -> None:
    found = of(run, images=6)
    stored = load_predictions(run.directory / "evaluation", "photos-linear-pretrained")
    assert stored is not None
    sheet, chosen = found["predictions-photos-linear-pretrained"].sheet, result_figures.pick(6, 0, len(stored.rows))
    assert sheet is not None and len(sheet.tiles) == 6
    names = ("ant", "bee", "cat")
    for tile, i in zip(sheet.tiles, chosen, strict=True):
        row = stored.rows[i]
        said, true = names[stored.predicted[row]], names[stored.truth[row]]
        np.testing.assert_array_equal(tile.image, stored.images[i])
        right = ("right", "") if said == true else ("wrong", true)
        assert (tile.kind, tile.truth) == right
        assert (tile.name, tile.value) == (said, f"{100 * stored.confidence[row]:.0f} %")
    near, shown = found["neighbours-random"].sheet, neighbours(names, seed=1)
    assert near is not None
    assert [tile.kind == "query" for tile in near.tiles[:10]] == [True, *[False] * 8, True]
    assert [tile.kind == "right" for tile in near.tiles[1:9]] == (shown.labels[0] == shown.query_labels[0]).tolist()
    np.testing.assert_array_equal(near.tiles[1].image, shown.images[0, 0])
    assert near.tiles[1].value == f"{shown.cosines[0, 0]:.2f}"
