"""The command: `PYTHONPATH=tests python -m chaos --kills 200`."""

from __future__ import annotations

import os

os.environ["OMP_NUM_THREADS"] = "1"  # a forked process has none of its parent's threads

import argparse
import sys
import tempfile
from pathlib import Path

import torch

from . import campaign


def main() -> int:
    """Runs the campaign and prints its counts; exit code 1 if anything was lost, unreadable or different."""
    parser = argparse.ArgumentParser(prog="python -m chaos", description="Kills processes that train or pack.")
    add = parser.add_argument
    add("--kills", type=int, default=200)
    add("--seed", type=int, default=0, help="of what is killed and where; times are never the same twice")
    add("--case", type=int, help="only the case of this number, as a failure names it")
    add("--folder", type=Path, help="where the runs are made; a failing case stays there  [default: a temporary one]")
    options = parser.parse_args()
    torch.set_num_threads(1)
    folder = options.folder or Path(tempfile.mkdtemp(prefix="chaos-"))
    folder.mkdir(parents=True, exist_ok=True)
    tally = campaign.run(options.kills, folder.resolve(), options.seed, options.case, _show_progress)
    print("\r" + "\n".join(tally.lines()))
    if tally.wrong:
        print(f"kept: {folder}; again: python -m chaos --seed {options.seed} --case N")
    elif options.folder is None:
        campaign.shutil.rmtree(folder)
    return int(bool(tally.wrong))


def _show_progress(tally: campaign.Tally) -> None:
    if sys.stderr.isatty():
        print(f"\r{sum(tally.kills.values())} kills, {len(tally.wrong)} wrong ", end="", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
