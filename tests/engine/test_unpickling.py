"""The reader of foreign checkpoints imports nothing, calls nothing and takes little, whatever the pickle says."""

from __future__ import annotations

import builtins
import copyreg
import io
import os
import pickle
import sys
import time
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from fixtures.hostile import Calls, little_memory
from simclr_engine import unpickling
from simclr_engine.torchvision_shim import import_torchvision
from simclr_engine.unpickling import StandIn, UnreadableError, read_checkpoint, read_state

# `os.system("exit 1")` in every way that a pickle can call something.
COMMAND = b"X\x06\x00\x00\x00exit 1"
HOSTILE = {
    "REDUCE": b"cos\nsystem\n" + COMMAND + b"\x85R.",
    "REDUCE by STACK_GLOBAL": b"\x8c\x02os\x8c\x06system\x93" + COMMAND + b"\x85R.",
    "INST": b"(" + COMMAND + b"ios\nsystem\n.",
    "OBJ": b"(cos\nsystem\n" + COMMAND + b"o.",
    "NEWOBJ": b"cos\nsystem\n" + COMMAND + b"\x85\x81.",
    "NEWOBJ_EX": b"cos\nsystem\n" + COMMAND + b"\x85}\x92.",
    "BUILD": b"cbuiltins\nset\n)\x81}X\x0c\x00\x00\x00__setstate__cos\nsystem\nsb" + COMMAND + b"b.",
    "EXT1": b"\x82\x01" + COMMAND + b"\x85R.",
    "EXT4": b"\x84\x01\x00\x00\x00" + COMMAND + b"\x85R.",
    "BINPERSID": COMMAND + b"\x85Q.",
    "a name with dots": b"\x80\x04\x8c\x02os\x8c\x10path.os.system.x\x93" + COMMAND + b"\x85R.",
    "getattr": b"cbuiltins\ngetattr\n(cos\n__dict__\nX\x06\x00\x00\x00systemtR" + COMMAND + b"\x85R.",
    "eval in a rebuilder": b"ctorch._tensor\n_rebuild_from_type_v2\n(cos\nsystem\ncos\nsystem\n"
    + COMMAND
    + b"\x85}tR.",
    "a wrapper of a call": b"ctorch._utils\n_rebuild_parameter\n(cos\nsystem\n" + COMMAND + b"\x85R\x89}tR.",
    "copyreg": b"ccopyreg\n_reconstructor\n(cos\nsystem\ncbuiltins\nobject\nNtR.",
    "a class of ours": b"csimclr_engine.unpickling\nread_checkpoint\nX\x0b\x00\x00\x00/etc/passwd\x85R.",
    "a module that prints when it is imported": b"cthis\ns\n)R.",
}


def zipped(folder: Path, pickled: bytes, **members: bytes) -> Path:
    """torch.save's archive around any pickle."""
    with zipfile.ZipFile(folder / "file.pt", "w") as archive:
        archive.writestr("archive/data.pkl", pickled)
        for name, content in members.items():
            archive.writestr(f"archive/data/{name}", content)
    return folder / "file.pt"


@pytest.fixture
def nothing_happens(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fails where something is imported or called."""

    def refuse(*_: object, **__: object) -> Any:
        raise AssertionError("called")

    "".encode("cp437")  # of names in zip archives: Python imports it when it is first used
    monkeypatch.setattr(os, "system", refuse)
    monkeypatch.setattr(builtins, "eval", refuse)
    monkeypatch.setattr(builtins, "exec", refuse)
    monkeypatch.setattr(pickle, "Unpickler", refuse)
    monkeypatch.setitem(copyreg._inverted_registry, 1, ("os", "system"))  # type: ignore[attr-defined]  # EXT1's table


@pytest.mark.parametrize("name", HOSTILE)
@pytest.mark.usefixtures("nothing_happens")
def test_no_instruction_calls_or_imports_anything(tmp_path: Path, name: str) -> None:
    before = set(sys.modules)
    found: object = None
    for raw in (HOSTILE[name], b"\x80\x02" + HOSTILE[name]):
        for path in (zipped(tmp_path, raw), tmp_path / "plain.pkl"):
            if path.name == "plain.pkl":
                path.write_bytes(raw)
            found = read_checkpoint(path)
            assert isinstance(found, StandIn | list | tuple | str | dict)
    assert {module for module in set(sys.modules) - before if not module.startswith("encodings")} == set()


@pytest.mark.parametrize(
    "raw",
    [
        b"\x80\x02}q\x00r\xff\xff\xff\xff.",  # LONG_BINPUT far away: the C reader takes 64 GB for it
        b"\x80\x02}p99999999999999\n.",
        b"\x80\x04\x8d\x00\x00\x00\x00\x00\x00\x00\x10x.",  # text of 2⁶⁰ bytes
        b"\x80\x05\x96\x00\x00\x00\x00\x00\x00\x00\x10x.",  # a bytearray of 2⁶⁰
        b"\x80\x02\x8b\xff\xff\xff\x7fx.",  # a number of 2 GB
        b"\x80\x02I" + b"9" * 100_000 + b"\n.",  # a number of 100,000 digits, which takes quadratic time
        b"\x80\x02cbuiltins\nbytearray\n\x8a\x07\xff\xff\xff\xff\xff\xff\x7f\x85R.",
        b"\x80\x02]" + b"(" * 100_000 + b".",
        b"\x80\x02" + b"\x85" * 10 + b".",  # tuples of nothing
    ],
    ids=lambda raw: repr(raw[:12]),
)
def test_a_pickle_that_asks_for_much_gets_little(tmp_path: Path, raw: bytes) -> None:
    path = zipped(tmp_path, raw)
    with little_memory(64 << 20):
        try:
            found = read_checkpoint(path)
        except (ValueError, LookupError, MemoryError, OverflowError):
            return
    assert isinstance(found, dict | StandIn | list)


def test_a_pickle_of_endless_instructions_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert unpickling.MOST_INSTRUCTIONS == 1 << 22
    monkeypatch.setattr(unpickling, "MOST_INSTRUCTIONS", 1000)
    assert read_checkpoint(zipped(tmp_path, b"\x80\x02" + b"N0" * 498 + b"N.")) is None
    with pytest.raises(ValueError, match="more than 1,000 instructions"):
        read_checkpoint(zipped(tmp_path, b"\x80\x02" + b"N0" * 500 + b"N."))


def test_keys_that_hash_for_ever_are_left_out(tmp_path: Path) -> None:
    # Tuples of themselves, 40 deep: hashing the last one visits 2⁴⁰.
    nested = b")q\x000" + b"".join(b"h%ch%c\x86q%c0" % (i, i, i + 1) for i in range(40))
    found = read_checkpoint(zipped(tmp_path, b"\x80\x02" + nested + b"}h\x28\x88sX\x01\x00\x00\x00aK\x01s."))
    assert found == {"a": 1}


def storage(key: str, count: int, kind: str = "FloatStorage") -> bytes:
    """The instructions for a persistent id of a storage."""

    def text(word: str) -> bytes:
        return b"X" + len(word).to_bytes(4, "little") + word.encode()

    number = b"\x8a\x08" + count.to_bytes(8, "little", signed=True)
    return b"(" + text("storage") + f"ctorch\n{kind}\n".encode() + text(key) + text("cpu") + number + b"tQ"


@pytest.mark.parametrize(
    ("offset", "size", "stride"),
    [(0, (5,), (1,)), (3, (2,), (1,)), (0, (2,), (4,)), (-1, (2,), (1,)), (0, (2,), (-1,)), (0, (-2,), (1,)),
     (0, (2, 2), (1,)), (0, (1,) * 65, (0,) * 65), (2**62, (1,), (1,)), (0, (2**40, 2**40), (0, 0)),
     (0, ("4",), (1,)), (0, (4.0,), (1,))],
)  # fmt: skip
def test_no_tensor_reaches_beyond_its_storage(
    tmp_path: Path, offset: int, size: tuple[int, ...], stride: tuple[int, ...]
) -> None:
    raw = b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n(" + storage("0", 4)
    raw += b"".join(pickle.dumps(part, protocol=2)[2:-1] for part in (offset, size, stride, False, {})) + b"tR."
    for padding in range(16):  # aligned, the storage is a view of the file, and torch would allow its neighbours
        with pytest.raises((ValueError, TypeError, RuntimeError)):
            read_checkpoint(zipped(tmp_path, raw + bytes(padding), **{"0": bytes(16)}))


def test_a_storage_read_again_and_again_is_held_once(tmp_path: Path) -> None:
    # At an odd place in the file it is copied: a thousand tensors of 1 MB would be a thousand copies.
    one = b"ctorch._utils\n_rebuild_tensor_v2\n(" + storage("0", 4) + b"K\x00K\x04\x85K\x01\x85\x89}tRa"
    path = zipped(
        tmp_path, b"\x80\x02]" + one * 1000 + b".", **{"0": np.arange(4, dtype=np.float32).tobytes() + bytes(1 << 20)}
    )
    found = read_checkpoint(path)
    assert isinstance(found, list) and len(found) == 1000
    assert all(torch.equal(tensor, torch.arange(4.0)) for tensor in found)
    assert len({tensor.untyped_storage().data_ptr() for tensor in found}) == 1


def test_writing_into_what_was_read_leaves_the_file_alone(tmp_path: Path) -> None:
    torch.save({"a": torch.ones(4)}, tmp_path / "a.pt")
    before = (tmp_path / "a.pt").read_bytes()
    found: Any = read_checkpoint(tmp_path / "a.pt")
    found["a"].zero_()
    assert (tmp_path / "a.pt").read_bytes() == before


def same(ours: object, theirs: object) -> bool:
    if isinstance(theirs, Tensor):
        return isinstance(ours, Tensor) and ours.dtype == theirs.dtype and torch.equal(ours.float(), theirs.float())
    if isinstance(theirs, dict):
        return isinstance(ours, dict) and ours.keys() == theirs.keys() and all(same(ours[k], theirs[k]) for k in theirs)
    if isinstance(theirs, list | tuple):
        return type(ours) is type(theirs) and all(same(a, b) for a, b in zip(ours, theirs, strict=True))
    return ours == theirs


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@pytest.mark.parametrize("new", [True, False])
def test_plain_states_are_what_torch_reads(tmp_path: Path, protocol: int, new: bool) -> None:
    base = torch.arange(24.0).view(2, 3, 4)
    network = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
    optimizer = torch.optim.Adam(network.parameters())
    network(torch.ones(5, 3)).sum().backward()
    optimizer.step()
    state = {
        "base": base, "view": base[1, :, ::2], "turned": base.permute(2, 0, 1), "empty": torch.zeros(0, 3),
        "scalar": torch.tensor(3), "half": torch.ones(3).half(), "brain": torch.ones(3).bfloat16(),
        "long": torch.arange(5), "bool": torch.tensor([True, False]), "bytes": torch.arange(7, dtype=torch.uint8),
        "parameter": nn.Parameter(torch.ones(3)), "eight": torch.ones(3).to(torch.float8_e4m3fn),
        "network": network.state_dict(), "optimizer": optimizer.state_dict(), "text": "ü", "none": None,
        "numbers": [1, -2, 2**70, 0.5, True], "tuple": (1, ("a",)), "raw": b"\x00\xff",
    }  # fmt: skip
    if not new:
        del state["eight"]  # which torch does not read in the older format
    torch.save(state, tmp_path / "a.pt", pickle_protocol=protocol, _use_new_zipfile_serialization=new)
    theirs = torch.load(tmp_path / "a.pt", weights_only=False)
    ours: Any = read_checkpoint(tmp_path / "a.pt")
    differing = [key for key in state if not same(ours[key], theirs[key])]
    assert differing == ([] if protocol > 2 else ["raw"])  # which protocol 2 writes as a call of _codecs.encode


def test_tensors_keep_sharing_their_memory(tmp_path: Path) -> None:
    base = torch.zeros(4, 4)
    torch.save({"a": base, "b": base[1]}, tmp_path / "a.pt")
    found: Any = read_checkpoint(tmp_path / "a.pt")
    found["a"].fill_(3)
    assert torch.equal(found["b"], torch.full((4,), 3.0))


def test_a_hostile_file_of_torch_save_does_nothing(tmp_path: Path) -> None:
    mark = tmp_path / "owned"
    for new in (True, False):
        torch.save(
            {"a": Calls(os.system, f"touch {mark}"), "w": torch.ones(2)},
            tmp_path / "a.pt",
            _use_new_zipfile_serialization=new,
        )
        found: Any = read_checkpoint(tmp_path / "a.pt")
        assert found["a"].name.endswith("system") and torch.equal(found["w"], torch.ones(2))
    assert not mark.exists()


def test_a_pickled_module_becomes_a_stand_in_with_its_tensors(tmp_path: Path) -> None:
    network = import_torchvision().models.resnet18()
    buffer = io.BytesIO()
    torch.save(network, buffer)
    (tmp_path / "a.pt").write_bytes(buffer.getvalue())
    found: Any = read_checkpoint(tmp_path / "a.pt")
    assert found.name == "torchvision.models.resnet.ResNet"
    conv = found.entries["_modules"]["conv1"]
    assert torch.equal(conv.entries["_parameters"]["weight"], network.conv1.weight)
    assert conv.entries["padding"] == (3, 3)


# Each item is one instruction, but a call would copy all of them, again and again.
MANY = b"](" + b"N" * 100_000 + b"eq\x00"
COPIES = {
    "pairs": MANY + b"0](" + b"h\x00" * 1000 + b"eq\x01ccollections\nOrderedDict\nh\x01\x85R.",
    "sizes": MANY + b"](" + b"ctorch\nSize\nh\x00\x85R" * 1000 + b"e.",
    "storages": MANY + b"](" + b"(X\x07\x00\x00\x00storage" + b"N" * 100_000 + b"tq\x020" + b"h\x02Q" * 1000 + b"e.",
    "keys": b")q\x000" + b"".join(b"h%ch%c\x86q%c0" % (i, i, i + 1) for i in range(40))
    + b"(X\x07\x00\x00\x00storagectorch\nFloatStorage\nh\x28X\x03\x00\x00\x00cpuK\x01tQ.",
}  # fmt: skip


@pytest.mark.parametrize("kind", COPIES)
def test_what_calls_copy_is_counted(tmp_path: Path, kind: str) -> None:
    begin = time.process_time()
    with little_memory(64 << 20):
        try:
            read_checkpoint(zipped(tmp_path, b"\x80\x02" + COPIES[kind]))
        except ValueError as error:
            assert any(word in str(error) for word in ("with more than 4,194,304 items", "without a name"))
    assert time.process_time() - begin < 10


def test_a_checkpoint_of_ours_may_call_nothing_but_torch(tmp_path: Path) -> None:
    """torch's own reader makes a bytearray of any size, and other objects that no checkpoint has."""
    for name in ("builtins bytearray", "collections Counter", "_codecs encode", "torch.nn.modules Linear"):
        raw = b"\x80\x02c" + name.replace(" ", "\n").encode() + b"\n\x8a\x05\x00\x94\x35\x77\x01\x85R."
        with pytest.raises(UnreadableError, match="which no checkpoint needs"):
            read_state(zipped(tmp_path, raw).read_bytes())


def test_a_state_comes_back_as_torch_gives_it(tmp_path: Path) -> None:
    network = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
    state = {"model": network.state_dict(), "step": 3, "rng": torch.get_rng_state(), "none": None, "t": (1, 0.5)}
    torch.save(state, tmp_path / "a.pt")
    ours: Any = read_state((tmp_path / "a.pt").read_bytes())
    theirs = torch.load(tmp_path / "a.pt", weights_only=True)
    assert same(ours, theirs) and ours["model"]._metadata == theirs["model"]._metadata
    ours["rng"].zero_()  # its own memory, not the file's
