"""The probe in the graph: which one is taken, what it computes, and that the file says so."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from scipy.sparse import csr_array

from fixtures.tiny_model import tiny_features, tiny_model
from simclr_engine.cli.export import command
from simclr_engine.data import load_data
from simclr_engine.errors import CheckFailed, DataError, UsageError
from simclr_engine.evaluation.linear import LinearProbe
from simclr_engine.evaluation.metrics import score
from simclr_engine.evaluation.result import EvaluationResult
from simclr_engine.export import OnnxEncoder, export_onnx, probe, writer
from simclr_engine.export.probe import ChosenProbe, attach_probe, choose_probe, fold_standardiser
from simclr_engine.export.runtime import open_session
from simclr_engine.run import Run

NAMES = ("ant", "bee", "cat", "dog")


def _chosen(classes: tuple[int, ...] = (0, 2, 3), mean: float = 64.0) -> ChosenProbe:
    """A probe for the tiny model's two features that has seen some of four classes."""
    random = np.random.default_rng(1)
    rows = len(classes)
    fitted = LinearProbe(
        coef=random.standard_normal((rows, 2)).astype(np.float32),
        intercept=random.standard_normal(rows).astype(np.float32),
        mean=np.array([mean, 2.5 * mean], dtype=np.float32),
        scale=np.array([40.0, 90.0], dtype=np.float32),
        classes=np.array(classes, dtype=np.int64),
        C=1.0,
        iterations=3,
        chosen=False,
    )
    scores = score(confusion := csr_array(np.eye(4, dtype=np.int64)), NAMES)
    result = EvaluationResult.from_scores(
        scores,
        confusion=confusion,
        method="linear",
        init="pretrained",
        protocol="",
        ece=0.0,
        seconds=0.0,
        data="/home/me/ants.zip",
    )
    return ChosenProbe("ants-linear-pretrained", fitted, result)


def _by_hand(chosen: ChosenProbe, features: NDArray[np.float64]) -> NDArray[np.float64]:
    """Probabilities in float64, class by class."""
    p, wide = chosen.probe, np.zeros((len(features), len(NAMES)))
    logits = (features - p.mean.astype(float)) / p.scale.astype(float) @ p.coef.astype(float).T + p.intercept
    e = np.exp(logits - logits.max(1, keepdims=True))
    wide[:, p.classes] = e / e.sum(1, keepdims=True)
    return wide


@pytest.mark.parametrize("classes", [(0, 1, 2, 3), (0, 2, 3), (1, 3)])
def test_the_graph_gives_the_probe_s_probabilities_and_labels(classes: tuple[int, ...]) -> None:
    chosen, model = _chosen(classes), tiny_model()
    attach_probe(model, chosen)
    onnx.checker.check_model(model, full_check=True)
    assert {node.domain for node in model.graph.node} == {""}
    random = np.random.default_rng(0)
    images = random.integers(0, 100, (30, 4, 4, 3), dtype=np.uint8)
    images += random.integers(0, 156, (30, 1, 1, 3), dtype=np.uint8)  # a colour each
    probabilities, label = open_session(model.SerializeToString()).run(["probabilities", "label"], {"images": images})
    exact = _by_hand(chosen, tiny_features(images))
    assert probabilities.dtype == np.float32 and label.dtype == np.int64 and label.shape == (30,)
    np.testing.assert_allclose(probabilities, exact, atol=1e-5)
    unseen = sorted(set(range(4)) - set(classes))
    assert not probabilities[:, unseen].any() and np.array_equal(label, probabilities.argmax(1))
    assert len(set(label.tolist())) > 1


def test_the_standardiser_is_folded_in_float64() -> None:
    chosen = _chosen((0, 1, 2, 3), mean=1e4)
    weight, bias = fold_standardiser(chosen.probe, 4)
    p = chosen.probe
    exact = p.intercept.astype(float) - (p.coef.astype(float) / p.scale.astype(float)) @ p.mean.astype(float)
    np.testing.assert_array_equal(weight, (p.coef.astype(float) / p.scale.astype(float)).astype(np.float32))
    np.testing.assert_array_equal(bias, exact.astype(np.float32))


def test_a_class_that_no_probe_saw_has_no_logit_but_a_probability_of_zero() -> None:
    chosen = _chosen((0, 2, 3))
    features = np.array([[1.0, 2.0]], dtype=np.float32)
    assert np.isnan(chosen.logits(features)[0]).tolist() == [False, True, False, False]
    assert chosen.probabilities(features)[0, 1] == 0


def _copy(run: Run, folder: Path) -> Run:
    """The run with results of its own."""
    shutil.copytree(run.directory, folder, symlinks=True)
    return Run.open(folder)


def _hash(run: Run) -> str:
    return json.loads((run.directory / "evaluation" / "digits-linear-pretrained.json").read_text())["encoder"]


def test_without_an_id_the_newest_probe_on_all_images_is_taken(
    digits_run: Run, tmp_path: Path, write_probe: Callable[..., str]
) -> None:
    run = _copy(digits_run, tmp_path / "run")
    limited = write_probe(run, load_data("digits"), limit=300)
    assert limited == "digits-n300-linear-pretrained"
    found = choose_probe(run, None, 8, _hash(run))
    assert found.id == "digits-linear-pretrained" and found.class_names == load_data("digits").class_names
    assert found.data_fingerprint == run.environment["data"]["fingerprint"]
    by_id = choose_probe(run, limited, 8, _hash(run))
    assert by_id.id == limited and by_id.data_fingerprint == ""
    (run.directory / "evaluation" / "digits-linear-pretrained.safetensors").unlink()
    with pytest.raises(UsageError, match="no linear probe fitted on all images") as caught:
        choose_probe(run, None, 8, _hash(run))
    assert "evaluate" in str(caught.value.fix) and "--method linear" in str(caught.value.fix)
    assert limited in str(caught.value.fix)


@pytest.mark.parametrize(
    "wanted", ["nothing", "../digits/evaluation/digits-linear-pretrained", "digits-knn-pretrained"]
)
def test_an_id_that_is_no_probe_of_the_run_is_refused(digits_run: Run, wanted: str) -> None:
    with pytest.raises(UsageError, match="no such linear probe") as caught:
        choose_probe(digits_run, wanted, 8, _hash(digits_run))
    assert caught.value.exit_code == 2 and "digits-linear-pretrained" in str(caught.value.saw)


def test_a_probe_of_another_encoder_is_refused(digits_run: Run, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="not for this encoder"):
        choose_probe(digits_run, None, 512, _hash(digits_run))
    with pytest.raises(DataError, match="other weights"):
        choose_probe(digits_run, None, 8, "0" * 64)
    run = _copy(digits_run, tmp_path / "run")
    result = run.directory / "evaluation" / "digits-linear-pretrained.json"
    document = json.loads(result.read_text())
    del document["seal"]  # as an earlier version wrote it
    result.write_text(json.dumps(document | {"per_class": document["per_class"][:3], "confusion": [[1] * 3] * 3}))
    with pytest.raises(DataError, match="do not fit together"):
        choose_probe(run, None, 8, _hash(run))
    result.unlink()
    with pytest.raises(DataError, match="result cannot be read"):
        choose_probe(run, None, 8, _hash(digits_run))


def test_an_export_with_a_probe_says_what_it_holds(little_digits: Run, tmp_path: Path) -> None:
    result = export_onnx(little_digits, tmp_path / "e.onnx", probe=True)
    store = load_data("digits")
    encoder = OnnxEncoder(result.file)
    probabilities, labels = encoder.predict(store.images[:50])
    saved = LinearProbe.load(little_digits.directory / "evaluation" / "digits-linear-pretrained.safetensors")
    exact = saved.predict_proba(encoder.embed(store.images[:50]), 10)
    np.testing.assert_allclose(probabilities, exact, atol=1e-5)
    assert np.array_equal(labels, exact.argmax(1))
    said = encoder.metadata
    assert said.class_names == store.class_names and said.precision == "fp32" and said.schema == 2
    stated = json.loads((little_digits.directory / "evaluation" / "digits-linear-pretrained.json").read_text())
    assert said.probe == {
        "id": "digits-linear-pretrained",
        "data": "digits",
        "data_fingerprint": store.fingerprint,
        "accuracy": stated["accuracy"],
        "train_images": 300,
        "test_images": 300,
        "class_names": list(store.class_names),
    }
    assert result.parity.max_probability is not None and result.parity.max_probability <= 1e-5
    assert said.parity["max_probability"] >= result.parity.max_probability
    assert "label int64 [batch]" in result.to_json()["output"]
    assert export_onnx(little_digits, tmp_path / "again.onnx", probe=True).sha256 == result.sha256
    assert not OnnxEncoder(export_onnx(little_digits, tmp_path / "e.onnx", probe=False).file).has_probe


def test_the_file_does_not_tell_where_the_probe_s_data_lay() -> None:
    assert _chosen().about()["data"] == "ants.zip"


@pytest.mark.parametrize("spoilt", ["probe.weight", "probe.bias", "argmax"])
def test_a_fault_in_the_probe_is_named_and_leaves_no_file(
    little_digits: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, spoilt: str
) -> None:
    real = probe.attach_probe

    def attach(model: onnx.ModelProto, chosen: ChosenProbe) -> None:
        real(model, chosen)
        if spoilt == "argmax":
            model.graph.node[-1].op_type = "ArgMin"
            return
        tensor = next(t for t in model.graph.initializer if t.name == spoilt)
        values = onnx.numpy_helper.to_array(tensor).copy()
        values[4] += 0.05
        tensor.CopyFrom(onnx.numpy_helper.from_array(values, tensor.name))

    monkeypatch.setattr(writer, "attach_probe", attach)
    where = "74 wrong labels" if spoilt == "argmax" else "first divergent node: probe_gemm"
    with pytest.raises(CheckFailed, match=where):
        export_onnx(little_digits, tmp_path / "e.onnx", probe=True)
    assert list(tmp_path.iterdir()) == []


def test_a_missing_probe_is_told_before_the_encoder_is_traced(
    little_run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(writer, "trace_encoder", lambda *_: pytest.fail("work was begun"))
    with pytest.raises(UsageError, match="no linear probe"):
        export_onnx(little_run, tmp_path / "e.onnx", probe=True)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("given", "wanted"),
    [
        ([], None),
        (["--no-probe"], None),
        (["--probe"], True),
        (["--probe", "--int8"], True),
        (["--probe", "--int8", "--fp16"], True),
        (["--probe", "x-y"], "x-y"),
    ],
)
def test_the_command_takes_the_probe_with_or_without_an_id(
    digits_run: Run, monkeypatch: pytest.MonkeyPatch, given: list[str], wanted: bool | str | None
) -> None:
    seen: dict[str, object] = {}
    monkeypatch.setattr(writer, "export_onnx", lambda run, file, **options: seen.update(options) or 1 / 0)
    with pytest.raises(ZeroDivisionError):
        command.main(["e.onnx", "--run", str(digits_run.directory), *given], standalone_mode=False)
    assert seen["probe"] == wanted and type(seen["probe"]) is type(wanted)
    assert seen["precision"] == ([name[2:] for name in ("--int8", "--fp16") if name in given] or "fp32")


@pytest.mark.parametrize("given", [["--probe", "e.onnx"], ["--probe", "a", "--no-probe"]])
def test_options_that_cannot_be_meant_are_refused(digits_run: Run, given: list[str]) -> None:
    with pytest.raises(UsageError):
        command.main(["--run", str(digits_run.directory), *given], standalone_mode=False)
