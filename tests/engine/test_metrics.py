"""Metrics equal scikit-learn's, on random and on degenerate input."""

from __future__ import annotations

import math
import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from sklearn import metrics as sk

from simclr_engine.evaluation.metrics import Scores, confusion_matrix, expected_calibration_error, score

Labels = NDArray[np.int64]


@st.composite
def guesses(draw: st.DrawFn) -> tuple[Labels, Labels, int]:
    """Labels, predictions and C; classes without images and never predicted ones are frequent."""
    classes = draw(st.integers(1, 7))
    size = draw(st.integers(1, 40))
    used = draw(st.integers(1, classes)), draw(st.integers(1, classes))
    columns = [draw(st.lists(st.integers(0, n - 1), min_size=size, max_size=size)) for n in used]
    return np.array(columns[0]), np.array(columns[1]), classes


def compare_with_sklearn(labels: Labels, guess: Labels, classes: int) -> Scores:
    confusion = confusion_matrix(labels, guess, classes)
    every = {"labels": list(range(classes)), "zero_division": 0.0}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # scikit-learn warns of single-class input
        np.testing.assert_array_equal(confusion, sk.confusion_matrix(labels, guess, labels=range(classes)))
        ours = score(confusion, [str(i) for i in range(classes)])
        precision, recall, f1, support = sk.precision_recall_fscore_support(labels, guess, **every)
        iou = sk.jaccard_score(labels, guess, average=None, **every)
        for average, value in (("micro", ours.f1_micro), ("macro", ours.f1_macro), ("weighted", ours.f1_weighted)):
            assert value == pytest.approx(sk.f1_score(labels, guess, average=average, **every), abs=1e-12)
    assert ours.accuracy == pytest.approx(sk.accuracy_score(labels, guess), abs=1e-12)
    assert ours.mean_iou == pytest.approx(iou.mean(), abs=1e-12)
    np.testing.assert_allclose([row.accuracy for row in ours.per_class], recall, atol=1e-12)
    np.testing.assert_allclose([row.precision for row in ours.per_class], precision, atol=1e-12)
    np.testing.assert_allclose([row.f1 for row in ours.per_class], f1, atol=1e-12)
    np.testing.assert_allclose([row.iou for row in ours.per_class], iou, atol=1e-12)
    assert [row.support for row in ours.per_class] == support.tolist()
    return ours


@settings(max_examples=150, deadline=None)
@given(guesses())
def test_all_scores_equal_scikit_learn(case: tuple[Labels, Labels, int]) -> None:
    ours = compare_with_sklearn(*case)
    assert all(math.isfinite(v) for row in ours.per_class for v in (row.accuracy, row.precision, row.f1, row.iou))


def test_a_class_without_images_and_one_never_predicted_score_zero_and_are_named() -> None:
    ours = compare_with_sklearn(np.array([0, 0, 1, 1]), np.array([0, 0, 0, 2]), 3)
    assert ours.per_class[2].accuracy == ours.per_class[2].f1 == 0.0
    assert ours.per_class[1].precision == 0.0
    assert ours.notes == (
        "no test images, so accuracy is set to 0: 2",
        "never predicted, so precision is set to 0: 1",
    )


def test_a_perfect_classifier_scores_one_without_notes() -> None:
    labels = np.array([0, 1, 2, 2])
    ours = compare_with_sklearn(labels, labels, 3)
    assert (ours.accuracy, ours.f1_macro, ours.mean_iou, ours.notes) == (1.0, 1.0, 1.0, ())


def test_a_long_list_of_empty_classes_is_cut_in_the_note() -> None:
    ours = score(confusion_matrix(np.array([0]), np.array([0]), 9), list("abcdefghi"))
    assert ours.notes[0].endswith("b, c, d, e, f and 3 more")


@settings(max_examples=60, deadline=None)
@given(
    st.integers(1, 60), st.integers(1, 6), st.integers(1, 20), st.sampled_from([0.3, 3.0, 30.0]), st.integers(0, 2**31)
)
def test_calibration_error_equals_a_loop_over_bins(
    size: int, classes: int, bins: int, concentration: float, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    probabilities = rng.dirichlet(np.full(classes, concentration), size)
    labels = rng.integers(0, classes, size)
    confidence, hit = probabilities.max(1), probabilities.argmax(1) == labels
    expected = 0.0
    for i in range(bins):
        inside = (confidence > i / bins) & (confidence <= (i + 1) / bins)
        if inside.any():
            expected += inside.mean() * abs(hit[inside].mean() - confidence[inside].mean())
    assert expected_calibration_error(probabilities, labels, bins) == pytest.approx(expected, abs=1e-9)


def test_calibration_error_of_certain_answers_is_their_error_rate() -> None:
    probabilities = np.eye(4)[[0, 1, 2, 3]]
    assert expected_calibration_error(probabilities, np.array([0, 1, 2, 0])) == pytest.approx(0.25)


def test_a_confidence_on_the_edge_belongs_to_the_bin_below() -> None:
    # Two bins, (0, 0.5] and (0.5, 1]: |0 − 0.5| · 1/2 + |1 − 0.9| · 1/2. In one bin it would be |1 − 1.4| / 2.
    probabilities = np.array([[0.5, 0.5], [0.1, 0.9]])
    assert expected_calibration_error(probabilities, np.array([1, 1]), bins=2) == pytest.approx(0.3)


@pytest.mark.parametrize(
    ("labels", "guess", "message"),
    [([0, 1], [0], "must both be"), ([], [], "nothing to score"), ([0, 3], [0, 0], "labels must lie in 0..2, saw 0..3"),
     ([0, 0], [0, -1], "predictions must lie")],
)  # fmt: skip
def test_input_that_cannot_be_counted_is_refused(labels: list[int], guess: list[int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        confusion_matrix(np.array(labels, dtype=np.int64), np.array(guess, dtype=np.int64), 3)
