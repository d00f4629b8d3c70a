"""A run's linear probe: which one, and as two nodes of the graph behind the features."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from simclr_engine.command_line import command_here
from simclr_engine.errors import DataError, UsageError
from simclr_engine.evaluation.linear import LinearProbe
from simclr_engine.evaluation.records import load_result, numbers
from simclr_engine.evaluation.result import EvaluationResult
from simclr_engine.run import Run
from simclr_engine.sealing import NewerError

from .runtime import LABEL, OUTPUT, PROBABILITIES

SUFFIX = "-linear-pretrained"  # of an ID that stands for a probe of the trained encoder on all labels
LOGITS = "probe_logits"
UNSEEN = -1e30  # logit of a class that the probe never saw; its exponential is exactly 0 in float32
MAKE_ONE = "simclr-engine evaluate RUN --method linear"


@dataclass(frozen=True, eq=False)
class ChosenProbe:
    """A probe with the result that it got.

    Attributes:
        id: name of its files under `RUN/evaluation`.
        probe: coefficients and standardiser.
        result: what it was trained on and how well it did.
        data_fingerprint: sha256 of the images that it was trained on; "" if not known.
    """

    id: str
    probe: LinearProbe
    result: EvaluationResult
    data_fingerprint: str = ""

    @property
    def class_names(self) -> tuple[str, ...]:
        """In label order, those that the probe never saw among them."""
        return self.result.class_names

    def probabilities(self, features: NDArray[np.float32]) -> NDArray[np.float32]:
        """Float32 `[N, C]` in label order, without the graph."""
        return self.probe.predict_proba(features, len(self.class_names))

    def logits(self, features: NDArray[np.float32]) -> NDArray[np.float64]:
        """Float64 `[N, C]` in label order, NaN for a class that the probe never saw."""
        p, wide = self.probe, np.full((len(features), len(self.class_names)), np.nan)
        wide[:, p.classes] = ((features.astype(np.float64) - p.mean) / p.scale) @ p.coef.T + p.intercept
        return wide

    def about(self) -> dict[str, Any]:
        """What the file says of it."""
        known = {"data_fingerprint": self.data_fingerprint} if self.data_fingerprint else {}
        return known | {
            "id": self.id,
            "data": Path(self.result.data).name,  # the file tells nothing of where it was made
            "accuracy": self.result.accuracy,
            "train_images": self.result.train_images,
            "test_images": self.result.test_images,
            "class_names": list(self.class_names),
        }


def saved_probes(run_directory: Path) -> list[tuple[str, Path]]:
    """IDs and files of the run's linear probes of its trained encoder: those fitted on all images first, newest first.

    A limit on the images stands in the ID as `-nN`. The newest is the one that was written last, as `numbers` says.
    """
    found, number = (run_directory / "evaluation").glob(f"*{SUFFIX}.safetensors"), numbers(run_directory / "evaluation")
    ordered = sorted(found, key=lambda p: (not is_limited(p.stem), number.get(p.stem, 0), p.name), reverse=True)
    return [(path.stem, path) for path in ordered]


def is_limited(name: str) -> bool:
    """Whether the ID is of a probe that was fitted on some of the images only."""
    return re.search(rf"-n\d+{SUFFIX}$", name) is not None


def choose_probe(run: Run, wanted: str | None, feature_dim: int, encoder_hash: str) -> ChosenProbe:
    """The probe of that ID; for None the newest that was fitted on all images.

    Args:
        run: its probes lie in `evaluation/`.
        wanted: an ID such as `cifar10-linear-pretrained`.
        feature_dim: width of the encoder's features.
        encoder_hash: of the encoder's weights and buffers; a probe that was fitted on others is refused.

    Raises:
        UsageError: there is none, or none of that ID.
        DataError: its files cannot be read, or it is for another encoder.
    """
    saved = dict(saved_probes(run.directory))
    choice = wanted or next((name for name in saved if not is_limited(name)), None)
    if choice is None or choice not in saved:
        raise UsageError(
            "the run has no such linear probe" if wanted else "the run has no linear probe fitted on all images",
            saw=f"{wanted or '--probe'}; in {run.directory / 'evaluation'}: {', '.join(saved) or 'no probe'}",
            fix=(f"--probe {next(iter(saved))}, or " if saved else "")
            + f"export again after: {command_here('evaluate', run.directory, '--method', 'linear')}",
        )
    probe, result = LinearProbe.load(saved[choice]), _result(saved[choice])
    _check(choice, probe, result, feature_dim)
    if result.encoder not in ("", encoder_hash):
        raise DataError(
            "the probe was fitted on other weights than the run has now",
            saw=f"{choice}: encoder {result.encoder[:16]}…, the run has {encoder_hash[:16]}…",
            fix=MAKE_ONE,
        )
    about = run.data
    same = result.data == about.get("name") and result.limit == about.get("limit")
    return ChosenProbe(choice, probe, result, str(about.get("fingerprint") or "") if same else "")


def _result(file: Path) -> EvaluationResult:
    path = file.with_suffix(".json")
    try:
        return load_result(path)
    except NewerError:
        raise
    except DataError as error:
        raise DataError("the probe's result cannot be read", saw=error.saw, fix=MAKE_ONE) from error


def _check(name: str, probe: LinearProbe, result: EvaluationResult, feature_dim: int) -> None:
    rows, width = probe.coef.shape
    sound = probe.mean.shape == probe.scale.shape == (width,) and probe.intercept.shape == probe.classes.shape == (
        rows,
    )
    if width != feature_dim or not sound:
        raise DataError(
            "the probe is not for this encoder",
            saw=f"{name}: features of width {width}, the encoder gives {feature_dim}",
            fix=MAKE_ONE,
        )
    names = result.class_names
    if not rows or not names or int(probe.classes.min()) < 0 or int(probe.classes.max()) >= len(names):
        raise DataError(
            "the probe and its result do not fit together",
            saw=f"{name}: labels up to {int(probe.classes.max(initial=-1))}, {len(names)} class names",
            fix=MAKE_ONE,
        )


def fold_standardiser(probe: LinearProbe, class_count: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """`((x − mean) / scale) · coefᵀ + intercept` as `x · weightᵀ + bias`, computed in float64.

    Returns:
        weight float32 `[C, D]` and bias float32 `[C]` in label order; a class that the probe never saw has weights of
        0 and the bias `UNSEEN`, so that its probability is 0.
    """
    seen = probe.coef.astype(np.float64) / probe.scale.astype(np.float64)
    weight = np.zeros((class_count, seen.shape[1]))
    bias = np.full(class_count, UNSEEN)
    weight[probe.classes] = seen
    bias[probe.classes] = probe.intercept.astype(np.float64) - seen @ probe.mean.astype(np.float64)
    return weight.astype(np.float32), bias.astype(np.float32)


def attach_probe(model: onnx.ModelProto, chosen: ChosenProbe) -> None:
    """Adds the outputs `probabilities` float32 `[batch, C]` and `label` int64 `[batch]` to a graph with `features`.

    Plain operators: Gemm, Softmax, ArgMax. `ai.onnx.ml` has a LinearClassifier that GPU providers do not know.
    """
    graph, count = model.graph, len(chosen.class_names)
    weight, bias = fold_standardiser(chosen.probe, count)
    graph.initializer.extend(
        [numpy_helper.from_array(weight, "probe.weight"), numpy_helper.from_array(bias, "probe.bias")]
    )
    graph.node.extend(
        [
            helper.make_node("Gemm", [OUTPUT, "probe.weight", "probe.bias"], [LOGITS], "probe_gemm", transB=1),
            helper.make_node("Softmax", [LOGITS], [PROBABILITIES], "probe_softmax", axis=1),
            helper.make_node("ArgMax", [PROBABILITIES], [LABEL], "probe_argmax", axis=1, keepdims=0),
        ]
    )
    batch = graph.output[0].type.tensor_type.shape.dim[0].dim_param
    graph.output.extend(
        [
            helper.make_tensor_value_info(PROBABILITIES, onnx.TensorProto.FLOAT, [batch, count]),
            helper.make_tensor_value_info(LABEL, onnx.TensorProto.INT64, [batch]),
        ]
    )
