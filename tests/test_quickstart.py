"""docs/quickstart.ipynb runs from top to bottom, shows its progress and its pictures, and fits what is committed."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from fixtures import ROOT

NOTEBOOK = ROOT / "docs" / "quickstart.ipynb"
PICTURES = 4

nbformat = pytest.importorskip("nbformat", reason="the extra `dev` has nbformat, which reads the notebook")


def outputs(notebook: Any, kind: str) -> list[Any]:
    return [out for cell in notebook.cells for out in cell.get("outputs", ()) if out.output_type == kind]


def pictures(notebook: Any) -> list[str]:
    shown = outputs(notebook, "execute_result") + outputs(notebook, "display_data")
    return [out.data["image/png"] for out in shown if "image/png" in out.data]


def text(notebook: Any) -> str:
    return "".join(out.text for out in outputs(notebook, "stream"))


@pytest.mark.slow
def test_it_runs_and_shows_progress_pictures_and_accuracies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    client = pytest.importorskip("nbclient", reason="the extra `dev` has nbclient, which runs the notebook")
    pytest.importorskip("ipykernel", reason="the extra `dev` has ipykernel, in which the notebook runs")
    for name in ("JUPYTER_RUNTIME_DIR", "JUPYTER_DATA_DIR", "JUPYTER_CONFIG_DIR", "IPYTHONDIR"):  # not the user's own
        monkeypatch.setenv(name, str(tmp_path / name))
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    client.NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(tmp_path)}}).execute()

    said = text(notebook)
    assert "[100%] epoch 2.00  loss" in said and "\x1b" not in said and "Traceback" not in said
    shares = {name: float(share) for name, share in re.findall(r"^(\w+ +\w+) +([\d.]+)%$", said, re.MULTILINE)}
    assert len(shares) == 4 and all(0 < share <= 100 for share in shares.values())
    assert len(pictures(notebook)) == PICTURES and min(map(len, pictures(notebook))) > 5_000
    assert (tmp_path / "encoder.onnx").is_file() and (tmp_path / "runs" / "quickstart" / "metrics.jsonl").is_file()


def test_what_is_committed_was_run_from_top_to_bottom() -> None:
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    assert len(pictures(notebook)) == PICTURES and "[100%] epoch 2.00  loss" in text(notebook)
    assert NOTEBOOK.stat().st_size < 500_000
    held = NOTEBOOK.read_text("utf-8")
    assert not [place for place in (str(ROOT), str(Path.home()), "/tmp/") if place in held]
