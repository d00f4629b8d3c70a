"""The command: `PYTHONPATH=tests python -m fuzz --inputs 100000 --seconds 600`."""

from __future__ import annotations

import argparse
import sys
import tempfile
import traceback
from pathlib import Path

from . import campaign


def main() -> int:
    """Runs the campaign, or one input of the corpus again; exit code 1 if anything failed."""
    parser = argparse.ArgumentParser(prog="python -m fuzz", description="Feeds changed files to every reader.")
    add = parser.add_argument
    add("--inputs", type=int, default=100_000, help="over the five readers; the others take a fifth each on top")
    add("--seconds", type=float, help="stop after so long")
    add("--wall", type=float, default=campaign.WALL, help="seconds without an answer that count as a hang")
    add("--seed", type=int, default=0, help="of all changes: the same seed gives the same inputs")
    add("--reader", action="append", choices=campaign.READERS, help="only this one; may be repeated")
    add("--corpus", type=Path, default=Path("build/fuzz"), help="where failing inputs are kept")
    add("--replay", type=Path, help="run one file of the corpus again and show what happens")
    options = parser.parse_args()
    if options.replay:
        return _replay(options.replay)
    counts = dict.fromkeys(options.reader or campaign.READERS, options.inputs // 5)
    tallies = campaign.run(
        counts,
        seed=options.seed,
        seconds=options.seconds,
        corpus=options.corpus,
        wall=options.wall,
        progress=_show_progress,
    )
    print("\r" + campaign.table(tallies))
    return int(any(tally.failures for tally in tallies.values()))


def _show_progress(tallies: dict[str, campaign.Tally]) -> None:
    if sys.stderr.isatty():
        print(f"\r{sum(tally.inputs for tally in tallies.values()):,} inputs", end="", file=sys.stderr, flush=True)


def _replay(file: Path) -> int:
    """The reader and the suffix are told from the file's name."""
    from . import readers, worker

    raw, name = file.read_bytes(), file.name
    reader = name.split("-")[0]
    if reader not in readers.READERS:
        sys.exit(f"{name}: the name must begin with the reader, such as archive-0-1.tar")
    with tempfile.TemporaryDirectory(prefix="fuzz-") as folder:
        room = readers.Room(Path(folder) / "room")
        worker.prepare()
        worker.limit_memory()
        try:
            outcome = readers.run_input(reader, raw, name[name.find(".") :], room)
            if outcome.failure:  # once more, with the whole traceback
                path = room.input / f"input{name[name.find('.') :]}"
                path.write_bytes(raw)
                readers.READERS[reader](path, room)
        except Exception:
            traceback.print_exc()
    print(outcome)
    return int(bool(outcome.failure))


if __name__ == "__main__":
    sys.exit(main())
