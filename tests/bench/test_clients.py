"""`bench clients` compares with our own runtime, says who is missing or failed, and holds fp32 to its limit."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from numpy.typing import NDArray

from fixtures.tiny_probe import write_tiny_probe
from simclr_engine.bench import clients as subject
from simclr_engine.bench.clients import Client, Outputs, Unavailable, check, markdown
from simclr_engine.cli.bench import command
from simclr_engine.errors import CheckFailed
from simclr_engine.export import OnnxEncoder
from simclr_engine.sealing import read_json


def _client(name: str, change: Callable[[dict[str, NDArray[Any]]], None], most: int = 1000) -> Client:
    """Our own runtime with changed outputs."""

    def opener(file: Path, _: object) -> Callable[[NDArray[np.uint8]], Outputs]:
        encoder = OnnxEncoder(file)

        def run(images: NDArray[np.uint8]) -> Outputs:
            outputs = {"features": encoder.embed(images), "label": encoder.predict(images)[1]}
            change(outputs)
            return outputs

        return run

    return Client(name, opener, lambda: "1.2", most)


def _off(outputs: dict[str, NDArray[Any]]) -> None:
    outputs["features"] = outputs["features"] + np.float32(0.5)
    outputs["label"][:1] += 1  # of the first image, and of the first of those that come together


def _nan(outputs: dict[str, NDArray[Any]]) -> None:
    outputs["features"][-1, 0] = np.nan


def _refuse(outputs: dict[str, NDArray[Any]]) -> None:
    raise RuntimeError("no such operator\nat line 7")


def _absent() -> str:
    raise Unavailable("not installed: pip install other")


@pytest.fixture
def measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, dict[str, Any]]:
    """Rows of clients whose faults are known, by their name, on ten images."""
    contenders = (
        _client("same", lambda _: None, most=4),
        _client("off", _off),
        _client("nan", _nan),
        _client("refuses", _refuse),
        Client("absent", lambda *_: pytest.fail("opened"), _absent),
    )
    monkeypatch.setattr(subject, "clients", lambda _: contenders)
    file = write_tiny_probe(tmp_path / "encoder.onnx", image_size=16)
    return {row["contender"]: row for row in subject.rows([file], images=10)}


def test_difference_and_labels_are_those_of_the_client(measured: dict[str, dict[str, Any]]) -> None:
    same, off = measured["same"], measured["off"]
    assert (same["median"], same["label_agreement"], same["images"]) == (0, 1, 4)
    assert off["median"] == pytest.approx(0.5, abs=1e-4) and off["label_agreement"] == 0.8 and off["images"] == 10
    assert {row["name"] for row in measured.values()} == {"fp32"} and same["client_version"] == "1.2"


def test_a_client_that_is_absent_or_fails_is_named_with_its_reason(measured: dict[str, dict[str, Any]]) -> None:
    assert measured["absent"]["note"] == "not installed: pip install other"
    assert measured["refuses"]["note"] == "RuntimeError: no such operator"
    assert "not finite" in measured["nan"]["note"] and measured["nan"]["median"] is None


def test_the_check_names_installed_clients_that_miss(measured: dict[str, dict[str, Any]]) -> None:
    check([measured["same"], measured["absent"]])
    for name in ("off", "nan", "refuses"):
        with pytest.raises(CheckFailed, match=name):
            check([measured["same"], measured[name]])
    close = measured["same"] | {"median": 1e-5}
    check([close])
    with pytest.raises(CheckFailed):
        check([close | {"label_agreement": 0.99}])
    int8 = close | {"name": "int8", "median": 0.3, "label_agreement": 0.9}
    check([int8, close | {"contender": subject.AS_IT_COMES, "median": 0.05}])
    check([measured["refuses"] | {"name": "int8", "note": "NotImplementedError: QuantizeLinear"}])
    with pytest.raises(CheckFailed):
        check([measured["refuses"] | {"name": "int8"}])


def test_the_markdown_table_has_a_line_for_each_client(measured: dict[str, dict[str, Any]]) -> None:
    int8 = measured["same"] | {"name": "int8", "median": 0.03, "label_agreement": 0.95}
    lines = markdown([*measured.values(), int8]).splitlines()
    assert lines[0] == "| client | version | fp32 | int8 |" and len(lines) == 2 + len(measured)
    assert "| same (4 images) | 1.2 | 0.0e+00, 100% of labels | 3.0e-02, 95% of labels |" in lines
    assert "| absent | – | not installed: pip install other |  |" in lines


def test_the_command_prints_one_document_and_checks(measured: dict[str, dict[str, Any]], tmp_path: Path) -> None:
    out, file = tmp_path / "clients.json", str(tmp_path / "encoder.onnx")
    given = ["clients", file, "--n", "10", "--out", str(out)]
    result = CliRunner().invoke(command, [*given, "--json"], catch_exceptions=False)
    document = json.loads(result.stdout)
    assert document == read_json(out, "", needed=True) and {"device", "versions", "rows"} <= document.keys()
    assert {row["contender"] for row in document["rows"]} == measured.keys()
    shown = CliRunner().invoke(command, given).stdout
    assert all(words in shown for words in (*measured, "5.0e-01", "80%", "RuntimeError: no such operator"))
    assert isinstance(CliRunner().invoke(command, [*given, "--check"]).exception, CheckFailed)
    assert CliRunner().invoke(command, [*given, "--markdown"]).stdout == markdown([*measured.values()])
