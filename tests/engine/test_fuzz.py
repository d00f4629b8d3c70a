"""A bounded part of the fuzz campaign, and proof that it notices what it is there for. `make fuzz` runs all of it."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path
from random import Random

import pytest

from fixtures import TESTS
from fuzz import campaign, readers, worker
from fuzz.campaign import FIVE, READERS
from fuzz.mutation import STRUCTURED, changed, message, parsed
from fuzz.scaled import scaled
from simclr_engine.errors import DataError

INPUTS = 300  # of each reader: 1,800 inputs


def test_no_reader_is_brought_down_by_changed_files(tmp_path: Path) -> None:
    tallies = campaign.run(dict.fromkeys(READERS, INPUTS), seed=20, corpus=tmp_path / "corpus")
    print(campaign.table(tallies))
    assert {reader: tally.inputs for reader, tally in tallies.items()} == dict.fromkeys(READERS, INPUTS)
    assert {reader: tally.failures for reader, tally in tallies.items()} == {reader: {} for reader in READERS}
    for reader, tally in tallies.items():  # neither all good nor all refused at the door
        assert tally.outcomes["accepted"] >= 4, reader
        assert tally.refused() >= INPUTS // 4, reader


@pytest.fixture
def room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> readers.Room:
    for name in ("SIMCLR_ENGINE_CACHE", "HOME", "TMPDIR"):
        monkeypatch.setenv(name, os.environ.get(name, str(tmp_path)))
    monkeypatch.chdir(tmp_path)
    return readers.Room(tmp_path / "room")


def feed(room: readers.Room, reader: object, monkeypatch: pytest.MonkeyPatch) -> readers.Outcome:
    """The outcome of an input for a reader of the test's own."""
    monkeypatch.setitem(readers.READERS, "image", reader)
    return readers.run_input("image", b"x", ".png", room)


def test_what_a_reader_does_wrong_is_a_failure(room: readers.Room, monkeypatch: pytest.MonkeyPatch) -> None:
    def raising(error: BaseException) -> object:
        def reader(path: Path, room: readers.Room) -> None:
            raise error

        return reader

    def writing(place: str) -> object:
        return lambda path, room: (room.root / place).write_bytes(b"x")

    assert feed(room, lambda path, room: None, monkeypatch) == readers.Outcome("accepted")
    assert feed(room, raising(DataError("bad", saw="\x1b")), monkeypatch).kind == "DataError"
    assert not feed(room, raising(DataError("bad", saw="\x1b")), monkeypatch).failure  # it is shown escaped
    for error in (KeyError("x"), MemoryError(), RecursionError(), SystemExit(), readers.Broken("x"), OSError("x")):
        assert type(error).__name__ in feed(room, raising(error), monkeypatch).failure
    assert not feed(room, raising(DataError("x" * 30_000, saw="x" * 30_000)), monkeypatch).failure  # shown shortened
    endless = type("Endless", (DataError,), {"__str__": lambda self: "x" * 30_000})("bad")
    assert "too long" in feed(room, raising(endless), monkeypatch).failure
    for n, place in enumerate(
        ("in/outside.png", "outside", "home/x", "tmp/x", "cwd/x", "in/side/second", "in/guard.png")
    ):
        fresh = readers.Room(room.root.parent / f"room{n}")
        assert "written outside" in feed(fresh, writing(place), monkeypatch).failure, place


def test_memory_beyond_the_bound_is_a_failure(tmp_path: Path) -> None:
    if not worker._status("VmHWM"):
        pytest.skip("this system does not say how much memory a process had at its peak (/proc/self/status)")
    # A process of its own: what other tests have freed, this one would fill without growing.
    script = """
import sys
from pathlib import Path
from fuzz import readers, worker
room = readers.Room(Path(sys.argv[1]) / "room")
worker.MEMORY = 32 << 20
readers.READERS["image"] = lambda path, room: b"x" * (96 << 20) and None
one = worker.make_input("image", 0, 0, str(room.outside))
outcome, grown = worker.judged("image", one, room)
print(grown >> 20, outcome.failure)
"""
    known = {"PYTHONPATH": os.pathsep.join([str(TESTS), os.environ.get("PYTHONPATH", "")])}
    known |= {name: str(tmp_path) for name in ("SIMCLR_ENGINE_CACHE", "HOME", "TMPDIR")}
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path)],
        cwd=tmp_path,
        env=os.environ | known,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    grown, _, failure = done.stdout.partition(" ")
    assert int(grown) > 90 and "MB of memory" in failure


def test_time_beyond_the_bound_is_a_failure(room: readers.Room, monkeypatch: pytest.MonkeyPatch) -> None:
    def slow(path: Path, room: readers.Room) -> None:
        end = time.process_time() + 0.1
        while time.process_time() < end:
            pass

    one = worker.make_input("image", 0, 0, str(room.outside))
    monkeypatch.setitem(readers.READERS, "image", slow)
    for seconds, fails in ((0.05, True), (10.0, False)):
        monkeypatch.setattr(worker, "SECONDS", seconds)
        outcome, _ = worker.judged("image", one, room)
        assert ("s of processor time" in outcome.failure) == fails


@pytest.mark.parametrize("reader", READERS)
def test_files_that_scale_are_fed_to_every_reader(reader: str) -> None:
    rng = Random(1)
    sizes = {len(scaled(reader, rng).data) for _ in range(12)}
    assert len(sizes) > 6 and min(sizes) < 4096 and max(sizes) < 8 << 20


def worker_that(body: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, campaign.Tally]:
    """The tallies of three inputs for a process that runs `body` after it has read its job."""
    script = tmp_path / "worker.py"
    script.write_text(
        "import json, os, pathlib, sys, time\n"
        "job = json.loads(sys.argv[1])\n"
        "side = pathlib.Path(job['room'], 'in', 'side'); side.mkdir(parents=True)\n"
        "say = lambda text: print(text, flush=True)\n"
        "say('ready')\n"
        "for reader, first, end in job['slices']:\n"
        "    for index in range(first, end):\n"
        "        (side / 'input.png').write_bytes(b'bad %d' % index)\n" + body + "\n"
        "        say(json.dumps([reader, index, 'accepted', 0.1, 5, 0, '', '']))\n"
    )

    def start(job: dict[str, object]) -> object:
        import json
        import subprocess
        import sys

        return subprocess.Popen([sys.executable, str(script), json.dumps(job)], stdout=subprocess.PIPE)

    monkeypatch.setattr(campaign, "_start", start)
    return campaign.run({"image": 3}, seed=7, corpus=tmp_path / "corpus", wall=2.0)


@pytest.mark.parametrize(
    ("body", "why"),
    [
        ("        if index == 1: os.abort()", "ended with -6"),
        ("        if index == 1: time.sleep(99)", "no answer within 2 s"),
    ],
    ids=["killed", "hung"],
)
def test_an_input_that_kills_or_hangs_its_process_is_counted_kept_and_passed_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, body: str, why: str
) -> None:
    tally = worker_that(body, tmp_path, monkeypatch)["image"]
    assert (tally.inputs, tally.outcomes["accepted"], tally.outcomes["crash"]) == (3, 2, 1)
    assert [why in failure for failure in tally.failures] == [True]
    assert (tmp_path / "corpus" / "image-7-1.png").read_bytes() == b"bad 1"
    assert "--replay" in campaign.table({"image": tally}) and "1 crashes" in campaign.table({"image": tally})


def test_a_failing_input_is_made_smaller(room: readers.Room, monkeypatch: pytest.MonkeyPatch) -> None:
    def reader(path: Path, room: readers.Room) -> None:
        if b"IDAT" in path.read_bytes():
            raise KeyError("chunk")

    monkeypatch.setitem(readers.READERS, "image", reader)
    one = worker.make_input("image", 0, 0, str(room.outside))
    outcome = readers.run_input("image", one.raw, ".png", room)
    assert worker.smaller("image", one, outcome.failure, room) == b"IDAT"


def test_inputs_depend_on_seed_and_number_alone(room: readers.Room) -> None:
    def raw(reader: str, seed: int, index: int) -> bytes:
        return worker.make_input(reader, seed, index, "/outside").raw

    for reader in FIVE:
        numbers = range(100, 130)
        first = [raw(reader, 3, n) for n in numbers]
        assert first == [raw(reader, 3, n) for n in numbers]
        assert first != [raw(reader, 4, n) for n in numbers]
        assert len(set(first)) > 20


def test_a_changed_message_still_is_one_most_of_the_time() -> None:
    from random import Random

    model = message([(1, 10), (7, message([(1, b"x")])), (14, message([(1, b"k"), (2, b"[1]")]))])
    assert message(parsed(model) or []) == model
    rng = Random(0)
    whole = sum(parsed(STRUCTURED["protobuf"](model, rng)) is not None for _ in range(200))
    assert whole > 150
    assert len({changed(model, "protobuf", rng, [model]) for _ in range(100)}) > 60
