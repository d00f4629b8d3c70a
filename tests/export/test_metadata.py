"""A file that is not ours, newer, altered, cut short or inconsistent is refused, and the error says which."""

from __future__ import annotations

import contextlib
import hashlib
import subprocess
from pathlib import Path

import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import helper

from fixtures.forgery import rewrite
from fixtures.tiny_model import TINY, MakeTiny, tiny_model
from simclr_engine.errors import DataError, PlatformError
from simclr_engine.evaluation.encoders import open_target
from simclr_engine.export import metadata
from simclr_engine.export.embedder import open_embedder
from simclr_engine.export.metadata import MalformedError, ModelMetadata, read_metadata, read_model, scan, sidecar_path
from simclr_engine.export.runtime import OnnxEncoder


def test_metadata_comes_back_equal(make_tiny: MakeTiny) -> None:
    names = ("žluťoučký", 'a"b\n', "", "caf\udce9")  # the last is not UTF-8 in its file system
    assert read_metadata(make_tiny(class_names=names)) == ModelMetadata(**{**TINY.__dict__, "class_names": names})


def test_class_names_that_no_reader_would_take_are_refused_before_a_file_is_written(make_tiny: MakeTiny) -> None:
    names = ("x" * (2 << 20), "é" * (1 << 20))  # 4 MiB as UTF-8, and some marks
    with pytest.raises(DataError, match="too long for an ONNX file") as caught:
        make_tiny(class_names=names)
    assert "bytes in " in str(caught.value)
    assert read_metadata(make_tiny(class_names=(names[0], names[1][:-64]))).class_names[1] == names[1][:-64]


def test_a_file_of_a_finished_run_says_nothing_of_its_end(make_tiny: MakeTiny) -> None:
    for unfinished in ("", "46 of 380 steps"):
        path = make_tiny(unfinished=unfinished)
        found = read_metadata(path)
        assert found.unfinished == open_embedder(path).unfinished == unfinished
        assert ("simclr_engine.unfinished" in found.to_properties()) == bool(unfinished)
        assert any("46 of 380 steps are done" in note for note in open_target(path).notes) == bool(unfinished)


def test_the_sha256_is_the_file_s(make_tiny: MakeTiny) -> None:
    path = make_tiny()
    assert read_model(path).sha256 == hashlib.sha256(path.read_bytes()).hexdigest()


def test_another_program_s_model_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "foreign.onnx"
    onnx.save(tiny_model(), path)
    with pytest.raises(DataError, match="not written by simclr-engine"):
        read_model(path)


def test_a_newer_schema_is_refused_by_its_number(make_tiny: MakeTiny) -> None:
    path = make_tiny()
    rewrite(path, schema="3", mean='"of a kind this version does not know"')
    with pytest.raises(DataError, match="newer simclr-engine") as caught:
        read_model(path)
    assert "schema 3" in str(caught.value) and caught.value.exit_code == 4


def test_a_file_of_the_first_schema_is_fp32_without_a_probe(make_tiny: MakeTiny) -> None:
    path = make_tiny()
    rewrite(path, schema="1", precision=None, probe=None)
    assert read_metadata(path) == ModelMetadata(**{**TINY.__dict__, "schema": 1, "precision": "fp32", "probe": {}})
    rewrite(path, schema="2")
    with pytest.raises(DataError, match="precision"):
        read_model(path)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("precision", '"int4"'),
        ("precision", "8"),
        ("probe", "[]"),
        ("probe", '{"class_names": ["bee", "ant"]}'),
        ("image_size", None),
        ("image_size", "true"),
        ("image_size", '"32"'),
        ("mean", "0.5"),
        ("mean", "[0.5, null, 0.5]"),
        ("class_names", "[1, 2]"),
        ("architecture", "{"),
        ("parity", "[]"),
        ("Image__NominalPixelRange", "Normalized_0_1"),
        ("Image__BitmapPixelFormat", None),
    ],
)
def test_a_field_that_cannot_be_is_named(make_tiny: MakeTiny, key: str, value: str | None) -> None:
    path = make_tiny()
    rewrite(path, **{key: value})
    with pytest.raises(DataError, match=key.replace("__", ".")):
        read_model(path)


@pytest.mark.parametrize(("key", "value"), [("image_size", 5), ("feature_dim", 3)])
def test_a_field_that_contradicts_the_graph_is_named(make_tiny: MakeTiny, key: str, value: int) -> None:
    path = make_tiny(**{key: value})
    with pytest.raises(DataError, match=f"{key} = {value}"):
        OnnxEncoder(path)


def test_an_altered_weight_is_detected_without_the_sidecar(little_file: Path) -> None:
    sidecar_path(little_file).unlink()
    raw = bytearray(little_file.read_bytes())
    raw[len(raw) // 2] ^= 1  # in the middle of the weights
    little_file.write_bytes(raw)
    with pytest.raises(DataError, match="altered after its export"):
        read_model(little_file)


def test_altered_metadata_is_detected(make_tiny: MakeTiny) -> None:
    path = make_tiny()
    path.write_bytes(path.read_bytes().replace(b'["ant", "bee"]', b'["bee", "ant"]'))
    with pytest.raises(DataError, match="altered after its export"):
        read_model(path)


def test_a_file_and_a_sidecar_that_disagree_are_refused(make_tiny: MakeTiny) -> None:
    path = make_tiny()
    read_model(path)
    for text in ("0" * 64 + "  tiny.onnx\n", "", "\x00\xff"):
        sidecar_path(path).write_text(text, "utf-8")
        with pytest.raises(DataError, match="checksum disagree"):
            read_model(path)


def test_the_sidecar_is_what_sha256sum_reads(little_file: Path) -> None:
    done = subprocess.run(["sha256sum", "-c", "encoder.onnx.sha256"], cwd=little_file.parent, capture_output=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9, 0.9999])
def test_a_truncated_file_is_called_truncated(little_file: Path, share: float) -> None:
    raw = little_file.read_bytes()
    little_file.write_bytes(raw[: int(len(raw) * share)])
    with pytest.raises(DataError, match="truncated or damaged"):
        read_model(little_file)


@pytest.mark.parametrize(
    "content", [b"", b"\x89PNG\r\n\x1a\n" + bytes(100), b"version https://git-lfs.github.com/spec/v1\n", b"PK\x03\x04"]
)
def test_what_is_no_onnx_file_is_called_so(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "encoder.onnx"
    path.write_bytes(content)
    with pytest.raises(DataError, match="not an ONNX file"):
        read_model(path)


def test_weights_outside_the_file_are_refused_and_never_opened(make_tiny: MakeTiny, tmp_path: Path) -> None:
    path = make_tiny()
    model = onnx.load(path)
    (tmp_path / "secret.bin").write_bytes(bytes(24))
    weight = next(t for t in model.graph.initializer if t.name == "weight")
    weight.ClearField("raw_data")
    weight.data_location = onnx.TensorProto.EXTERNAL
    weight.external_data.add(key="location", value="secret.bin")
    path.write_bytes(model.SerializeToString())
    with pytest.raises(DataError, match="weights in other files") as caught:
        OnnxEncoder(path)
    assert "weight" in str(caught.value.saw)


def test_an_absent_file_a_directory_and_a_forbidden_one_are_told_apart(
    tmp_path: Path, make_tiny: MakeTiny, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(DataError, match="no such file"):
        read_model(tmp_path / "none.onnx")
    with pytest.raises(DataError, match="directory"):
        read_model(tmp_path)
    path = make_tiny()

    def refuse(path: Path, largest: int) -> bytes:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(metadata, "read_bytes", refuse)
    with pytest.raises(PlatformError, match="cannot be read"):
        read_model(path)


def test_a_file_too_large_for_onnx_is_refused_before_it_is_read(tmp_path: Path) -> None:
    path = tmp_path / "huge.onnx"
    with path.open("wb") as file:
        file.truncate(2**31)  # sparse
    with pytest.raises(DataError, match="cannot be an ONNX file") as caught:
        read_model(path)
    assert "2,147,483,648 bytes" in str(caught.value.saw)


def test_properties_are_those_that_onnx_reads() -> None:
    model = tiny_model()
    helper.set_model_props(model, {"a": "1", "ключ": "značka", "empty": ""})
    found = scan(model.SerializeToString(), without="none")
    assert found.properties == {p.key: p.value for p in model.metadata_props}


def test_the_digest_covers_every_byte_but_the_property_that_holds_it() -> None:
    model = tiny_model()
    helper.set_model_props(model, {"a": "1"})
    plain = model.SerializeToString()
    model.metadata_props.add(key="digest", value="anything")
    assert scan(model.SerializeToString(), without="digest").digest == hashlib.sha256(plain).hexdigest()
    assert scan(model.SerializeToString(), without="a").digest != hashlib.sha256(plain).hexdigest()


def test_a_file_cut_short_anywhere_is_malformed() -> None:
    data = tiny_model().SerializeToString()
    whole = scan(data, without="")
    for length in range(len(data)):
        try:
            assert scan(data[:length], without="").digest != whole.digest
        except MalformedError:
            continue


def test_a_property_that_stands_twice_is_refused() -> None:
    model = tiny_model()
    for value in ("1", "2"):
        model.metadata_props.add(key="a", value=value)
    with pytest.raises(MalformedError, match="twice"):
        scan(model.SerializeToString(), without="")


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=200))
def test_arbitrary_bytes_give_a_malformed_error_and_no_other(data: bytes) -> None:
    with contextlib.suppress(MalformedError):
        scan(data, without="")


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_no_single_flipped_bit_passes_unseen(data: st.DataObject) -> None:
    model = tiny_model()
    helper.set_model_props(model, {"a": "1"})
    raw = bytearray(model.SerializeToString())
    whole = scan(bytes(raw), without="digest")
    position = data.draw(st.integers(0, len(raw) - 1))
    raw[position] ^= 1 << data.draw(st.integers(0, 7))
    with contextlib.suppress(MalformedError):
        assert scan(bytes(raw), without="digest").digest != whole.digest
