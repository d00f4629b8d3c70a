"""Metrics equal scikit-learn's, on random and on degenerate input."""

from __future__ import annotations

import math
import warnings
from fractions import Fraction
from random import Random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.sparse import csr_array
from sklearn import metrics as sk

from simclr_engine.evaluation.metrics import (
    Scores,
    confusion_matrix,
    expected_calibration_error,
    feature_statistics,
    score,
)

Labels = NDArray[np.int64]


@st.composite
def guesses(draw: st.DrawFn) -> tuple[Labels, Labels, int]:
    """Labels, predictions and C, where any set of classes may be empty or never predicted, down to one alone."""
    classes = draw(st.integers(1, 7))
    size = draw(st.integers(1, 40))
    columns = []
    for _ in range(2):
        used = draw(st.lists(st.integers(0, classes - 1), min_size=1, max_size=classes, unique=True))
        columns.append(draw(st.lists(st.sampled_from(used), min_size=size, max_size=size)))
    return np.array(columns[0]), np.array(columns[1]), classes


@st.composite
def many_guesses(draw: st.DrawFn) -> tuple[Labels, Labels, int]:
    """Hundreds of images and up to sixty classes, of any frequency and any accuracy."""
    classes, size = draw(st.integers(2, 60)), draw(st.integers(100, 2000))
    rng = np.random.default_rng(draw(st.integers(0, 2**31)))
    frequency = rng.dirichlet(np.full(classes, draw(st.sampled_from([0.05, 1.0, 100.0]))))
    labels = rng.choice(classes, size, p=frequency)
    right = rng.random(size) < draw(st.floats(0, 1))
    return labels, np.where(right, labels, rng.integers(0, classes, size)), classes


def compare_with_sklearn(labels: Labels, guess: Labels, classes: int) -> Scores:
    confusion = confusion_matrix(labels, guess, classes)
    every = {"labels": list(range(classes)), "zero_division": 0.0}
    present = {"labels": np.unique(labels).tolist(), "zero_division": 0.0}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # scikit-learn warns of single-class input
        np.testing.assert_array_equal(confusion.toarray(), sk.confusion_matrix(labels, guess, labels=range(classes)))
        ours = score(confusion, [str(i) for i in range(classes)])
        precision, recall, f1, support = sk.precision_recall_fscore_support(labels, guess, **every)
        iou = sk.jaccard_score(labels, guess, average=None, **every)
        for average, value in (("micro", ours.f1_micro), ("weighted", ours.f1_weighted)):
            assert value == pytest.approx(sk.f1_score(labels, guess, average=average, **every), abs=1e-12)
        assert ours.f1_macro == pytest.approx(sk.f1_score(labels, guess, average="macro", **present), abs=1e-12)
        assert ours.mean_iou == pytest.approx(sk.jaccard_score(labels, guess, average="macro", **present), abs=1e-12)
    assert ours.accuracy == pytest.approx(sk.accuracy_score(labels, guess), abs=1e-12)
    np.testing.assert_allclose([row.accuracy for row in ours.per_class], recall, atol=1e-12)
    np.testing.assert_allclose([row.precision for row in ours.per_class], precision, atol=1e-12)
    np.testing.assert_allclose([row.f1 for row in ours.per_class], f1, atol=1e-12)
    np.testing.assert_allclose([row.iou for row in ours.per_class], iou, atol=1e-12)
    assert [row.support for row in ours.per_class] == support.tolist()
    return ours


def assert_defined_and_noted(ours: Scores, labels: Labels, guess: Labels, classes: int) -> None:
    """No NaN anywhere, and the notes name exactly the classes that had nothing to divide by."""
    averages = (ours.accuracy, ours.f1_micro, ours.f1_macro, ours.f1_weighted, ours.mean_iou)
    values = [v for row in ours.per_class for v in (row.accuracy, row.precision, row.f1, row.iou)]
    assert all(math.isfinite(v) and 0 <= v <= 1 for v in (*averages, *values))
    noted = {note.split(":")[0]: note.split(": ")[1].split(" and ") for note in ours.notes}
    for what, seen in (
        (
            f"no test images, so macro figures are over the other {len(np.unique(labels))} of {classes} classes",
            labels,
        ),
        ("never predicted, so precision is set to 0", guess),
    ):
        absent = [str(i) for i in range(classes) if i not in seen]
        assert (what in noted) == bool(absent)
        if absent:
            assert noted[what][0].split(", ") == absent[:5]
            assert noted[what][1:] == ([f"{len(absent) - 5} more"] if len(absent) > 5 else [])


@settings(max_examples=100, deadline=None)
@given(guesses())
def test_all_scores_equal_scikit_learn(case: tuple[Labels, Labels, int]) -> None:
    assert_defined_and_noted(compare_with_sklearn(*case), *case)


@settings(max_examples=40, deadline=None)
@given(many_guesses())
def test_all_scores_equal_scikit_learn_over_many_classes(case: tuple[Labels, Labels, int]) -> None:
    assert_defined_and_noted(compare_with_sklearn(*case), *case)


# Which class is alone must not matter, nor whether the classifier knows of others.
@settings(max_examples=15, deadline=None)
@given(st.integers(1, 6), st.integers(0, 5), st.integers(0, 5), st.integers(1, 20))
def test_a_single_class_of_images_or_of_answers_scores_as_in_scikit_learn(
    classes: int, truth: int, answer: int, size: int
) -> None:
    one, other = np.full(size, truth % classes), np.full(size, answer % classes)
    spread = np.arange(size) % classes
    for labels, guess in ((one, one), (one, other), (one, spread), (spread, one)):
        assert_defined_and_noted(compare_with_sklearn(labels, guess, classes), labels, guess, classes)


@settings(max_examples=60, deadline=None)
@given(guesses(), st.randoms(use_true_random=False))
def test_the_order_of_images_does_not_matter_and_classes_keep_their_scores_under_another_number(
    case: tuple[Labels, Labels, int], random: Random
) -> None:
    labels, guess, classes = case
    order, number = list(range(len(labels))), list(range(classes))
    random.shuffle(order)
    random.shuffle(number)
    names = np.array([f"class {i}" for i in range(classes)])
    first = score(confusion_matrix(labels, guess, classes), names.tolist())
    renumber = np.array(number)
    shuffled = confusion_matrix(renumber[labels][order], renumber[guess][order], classes)
    second = score(shuffled, names[np.argsort(renumber)].tolist())
    assert sorted(second.per_class, key=lambda row: row.name) == sorted(first.per_class, key=lambda row: row.name)
    for name in ("accuracy", "f1_micro", "f1_macro", "f1_weighted", "mean_iou"):
        assert getattr(second, name) == pytest.approx(getattr(first, name), abs=1e-12)


def test_a_class_without_images_and_one_never_predicted_score_zero_and_are_named() -> None:
    ours = compare_with_sklearn(np.array([0, 0, 1, 1]), np.array([0, 0, 0, 2]), 3)
    assert ours.per_class[2].accuracy == ours.per_class[2].f1 == 0.0
    assert ours.per_class[1].precision == 0.0
    assert ours.notes == (
        "no test images, so macro figures are over the other 2 of 3 classes: 2",
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


@settings(max_examples=80, deadline=None)
@given(
    st.lists(st.tuples(st.integers(4, 8), st.booleans()), min_size=1, max_size=40),
    st.sampled_from([1, 2, 4, 8, 16]),
    st.sampled_from([np.float32, np.float64]),
)
def test_calibration_error_equals_exact_fractions_where_every_confidence_lies_on_an_edge(
    answers: list[tuple[int, bool]], bins: int, dtype: type[np.floating]
) -> None:
    """Eighths are exact in binary, and so are the edges of 1, 2, 4, 8 or 16 bins."""
    confidence = [Fraction(eighths, 8) for eighths, _ in answers]
    probabilities = np.array([[float(c), float(1 - c)] for c in confidence], dtype=dtype)
    # Of two equal probabilities the first is the answer, so right is class 0 throughout.
    labels = np.array([0 if right else 1 for _, right in answers])
    expected = Fraction(0)
    for i in range(bins):
        inside = [k for k, c in enumerate(confidence) if Fraction(i, bins) < c <= Fraction(i + 1, bins)]
        expected += abs(sum((answers[k][1] - confidence[k] for k in inside), Fraction(0)))
    assert expected_calibration_error(probabilities, labels, bins) == pytest.approx(
        float(expected / len(answers)), abs=1e-12
    )


def test_calibration_error_with_a_single_class_or_one_never_predicted() -> None:
    assert expected_calibration_error(np.ones((5, 1)), np.zeros(5, dtype=np.int64)) == 0.0
    never = np.tile([0.75, 0.25, 0.0], (4, 1))  # class 0 always, right in one of four
    assert expected_calibration_error(never, np.array([0, 1, 2, 1])) == pytest.approx(0.5)


def test_a_confidence_that_rounding_took_out_of_0_to_1_counts_in_the_bin_at_that_end() -> None:
    # In float32 a softmax may be 1.0000001: one bin with 0.95, so |(0 − 1.0000001) + (1 − 0.95)| / 2.
    above = np.array([[1.0000001, 0.0], [0.95, 0.05]], dtype=np.float32)
    assert expected_calibration_error(above, np.array([1, 0]), bins=10) == pytest.approx(0.475, abs=1e-6)
    nothing = np.array([[0.0, 0.0], [0.05, 0.0]])
    assert expected_calibration_error(nothing, np.array([0, 1]), bins=2) == pytest.approx(0.475)


@pytest.mark.parametrize(
    ("probabilities", "labels", "bins"),
    [(np.zeros((0, 2)), [], 5), (np.ones((2, 2)), [0], 5), (np.ones(2), [0, 0], 5), (np.ones((2, 2)), [0, 0], 0)],
)
def test_calibration_of_what_does_not_belong_together_is_refused(
    probabilities: NDArray[np.float64], labels: list[int], bins: int
) -> None:
    with pytest.raises(ValueError, match="need probabilities"):
        expected_calibration_error(probabilities, np.array(labels, dtype=np.int64), bins)


@pytest.mark.parametrize(
    ("confusion", "message"),
    [
        (np.ones((2, 3), int), r"must be \[2, 2\]"),
        (np.ones((3, 3), int), r"must be \[2, 2\]"),
        (np.zeros((2, 2), int), "nothing to score"),
    ],
)
def test_a_confusion_that_is_not_square_or_empty_is_refused(confusion: NDArray[np.int64], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        score(csr_array(confusion), "ab")


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


def test_effective_rank_equals_rankme_from_a_full_svd() -> None:
    rng = np.random.default_rng(0)
    features = (rng.normal(size=(400, 32)) * np.geomspace(1, 1e-3, 32) + 0.3).astype(np.float32)
    share = np.linalg.svd(features.astype(np.float64), compute_uv=False)
    share = share / share.sum() + 1e-12
    assert feature_statistics(features).effective_rank == pytest.approx(
        np.exp(-(share * np.log(share)).sum()), rel=1e-6
    )


@pytest.mark.parametrize("rank", [1, 3, 20])
def test_effective_rank_counts_equal_orthogonal_directions(rank: int) -> None:
    features = np.zeros((60, 20), np.float32)
    features[np.arange(60), np.arange(60) % rank] = 2.0
    assert feature_statistics(features).effective_rank == pytest.approx(rank, rel=1e-6)


def test_spread_of_isotropic_features_is_one_over_root_d() -> None:
    statistics = feature_statistics(np.random.default_rng(0).normal(size=(5000, 64)).astype(np.float32))
    assert statistics.std == pytest.approx(1 / 8, rel=0.02)
    assert not statistics.collapsed
    assert statistics.note() is None


def test_features_that_hardly_differ_are_called_collapsed() -> None:
    rng = np.random.default_rng(0)
    features = (rng.normal(size=64) + 1e-3 * rng.normal(size=(500, 64))).astype(np.float32)
    statistics = feature_statistics(features)
    assert statistics.collapsed
    assert "nearly constant" in str(statistics.note())
    assert statistics.std == pytest.approx(
        (features / np.linalg.norm(features, axis=1, keepdims=True)).astype(np.float64).std(0).mean(), rel=1e-3
    )


def test_all_zero_features_give_numbers() -> None:
    statistics = feature_statistics(np.zeros((10, 4), np.float32))
    assert np.isfinite([statistics.std, statistics.effective_rank]).all()
    assert statistics.collapsed


def test_statistics_of_many_features_are_those_of_an_even_sample(monkeypatch: pytest.MonkeyPatch) -> None:
    features = np.random.default_rng(0).normal(size=(41, 4)).astype(np.float32)
    expected = feature_statistics(features[::10])
    monkeypatch.setattr("simclr_engine.evaluation.metrics.SAMPLE", 5)
    assert feature_statistics(features) == expected
