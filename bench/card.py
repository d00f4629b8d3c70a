"""The card of an export: speed, memory, size, start-up and accuracy of each file beside PyTorch. Needs no torch."""

from __future__ import annotations

import json
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from simclr_engine.export.metadata import ModelMetadata
    from simclr_engine.run import Run
    from simclr_engine.timing import Timing

    Embed = Callable[[NDArray[np.uint8]], object]

BATCHES = (1, 64)
EAGER = "PyTorch eager"  # fp32, channels_last
SECONDS = 10.0
SHARES = {1: 0.12, 64: 0.38}  # of those seconds, for timing a batch size; the rest is for fresh processes
ROUNDS = (3, 15)
CALLS = {1: 10, 64: 1}  # per timed round: one image takes milliseconds, in which a contender still meets the last one's
PATIENCE = 300  # seconds that a fresh process gets


@dataclass(frozen=True)
class Rate:
    """Images per second; p20 is the slow end."""

    median: float
    p20: float
    p80: float


@dataclass(frozen=True)
class Fresh:
    """What a process of its own says of one way to run the encoder.

    Attributes:
        start_up: seconds for imports, opening the model and the features of a first image.
        resident_bytes: of the process after batches of 64; None where the system does not tell.
        peak_bytes: the most it has held; None likewise.
    """

    start_up: float
    resident_bytes: int | None
    peak_bytes: int | None


@dataclass(frozen=True)
class StatedDifference:
    """What was measured when the file was written.

    Attributes:
        max_abs: bound of the difference of a feature to PyTorch's.
        accuracy: of the file minus that of fp32 on the same images; None where that was not compared (fp32 itself) or
            labels were not known.
        agreement: fraction of images that get the same label as in fp32; None likewise.
        images: number of images for the last two.
    """

    max_abs: float
    accuracy: float | None = None
    agreement: float | None = None
    images: int | None = None

    @classmethod
    def of(cls, metadata: ModelMetadata) -> StatedDifference:
        """As a file says it."""
        p = metadata.parity
        accuracy = p["accuracy"] - p["accuracy_fp32"] if {"accuracy", "accuracy_fp32"} <= p.keys() else None
        return cls(float(p["max_abs"]), accuracy, p.get("agreement"), p.get("images_compared"))


@dataclass(frozen=True)
class CardRow:
    """One way to run the encoder.

    Attributes:
        name: what is shown.
        precision: `fp32`, `fp16` or `int8`.
        file: the ONNX file; None for PyTorch.
        file_bytes: its size; of PyTorch's, the weights file.
        rates: by batch size; empty where it could not be timed.
        fresh: of a fresh process; None where that failed.
        accuracy: of the probe on the test split by PyTorch, between 0 and 1, where a file holds a probe.
        difference: what the file's features cost, as its metadata say; None of PyTorch.
        note: why something is missing.
    """

    name: str
    precision: str
    file: str | None
    file_bytes: int | None
    rates: Mapping[int, Rate] = field(default_factory=dict)
    fresh: Fresh | None = None
    accuracy: float | None = None
    difference: StatedDifference | None = None
    note: str = ""


@dataclass(frozen=True)
class Card:
    """The measurements of one export on this machine, interleaved in `rounds` rounds by batch size."""

    device: str
    threads: int
    image_size: int
    versions: Mapping[str, str]
    rounds: Mapping[int, int]
    rows: tuple[CardRow, ...]
    seconds: float

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        rows = []
        for row in self.rows:
            plain = asdict(row)
            fresh = plain.pop("fresh") or dict.fromkeys(("start_up", "resident_bytes", "peak_bytes"))
            rates = plain.pop("rates")
            plain["images_per_second"] = {str(batch): rate for batch, rate in rates.items()}
            plain["start_up_seconds"] = fresh.pop("start_up")
            plain["accuracy_difference"] = row.difference.accuracy if row.difference else None
            rows.append(plain | fresh)
        return {
            "device": self.device,
            "threads": self.threads,
            "image_size": self.image_size,
            "versions": dict(self.versions),
            "rounds": {str(batch): rounds for batch, rounds in self.rounds.items()},
            "rows": rows,
            "seconds": round(self.seconds, 2),
        }


def make_card(fp32: Path, run: Run | None, others: Sequence[Path] = (), seconds: float = SECONDS) -> Card:
    """Measures the files of one export, beside PyTorch where its run is at hand.

    Args:
        fp32: the file that `export` wrote.
        run: the run it came from; None leaves PyTorch out, and torch is not imported.
        others: further files of the same encoder (int8, fp16).
        seconds: about how long it may take; three rounds are made in any case.

    Raises:
        DataError: a file is not usable, or takes images of another size than the first.
    """
    import numpy as np

    from simclr_engine.errors import DataError
    from simclr_engine.export.runtime import OnnxEncoder, available_threads

    begin = time.perf_counter()
    threads = available_threads()
    encoders = [OnnxEncoder(path, threads=threads) for path in (fp32, *others)]
    size = encoders[0].image_size
    for other in encoders[1:]:
        if other.image_size != size:
            raise DataError(
                "the files take images of different sizes", saw=f"{size} px, {other.image_size} px in {other.path}"
            )
    calls: dict[str, Embed] = {}
    if run is not None:
        calls[EAGER] = torch_eager(run)
    calls |= {_name(e.metadata): onnx_embed(e.path, threads) for e in encoders}
    images = np.random.default_rng(0).integers(0, 256, (max(BATCHES), size, size, 3), dtype=np.uint8)
    with torch_threads(threads if run is not None else None):
        timed = {batch: _rates(calls, images[:batch], SHARES[batch] * seconds) for batch in BATCHES}
    rates = {name: {batch: found[0][name] for batch, found in timed.items()} for name in calls}
    stated = encoders[0].metadata.probe.get("accuracy")
    rows: list[CardRow] = []
    if run is not None:
        weights = run.directory / "encoder.safetensors"
        length = weights.stat().st_size if weights.is_file() else None
        row = CardRow(EAGER, "fp32", None, length, rates[EAGER], accuracy=stated)
        rows.append(_with_fresh(row, TORCH_SCRIPT, run.directory, threads))
    for encoder in encoders:
        about, length = encoder.metadata, encoder.path.stat().st_size
        row = CardRow(_name(about), about.precision, str(encoder.path), length, rates[_name(about)], accuracy=stated)
        if run is not None or encoder is not encoders[0]:  # said once: by PyTorch, else by the first file
            row = replace(row, accuracy=None)
        rows.append(
            _with_fresh(replace(row, difference=StatedDifference.of(about)), ONNX_SCRIPT, encoder.path, threads)
        )
    rounds = {batch: found[1] for batch, found in timed.items()}
    return Card(
        device_name(), threads, size, versions(run is not None), rounds, tuple(rows), time.perf_counter() - begin
    )


def onnx_embed(file: Path, threads: int) -> Embed:
    """The file as a call: single images by threads that spin, as `predict` runs them; batches by threads that sleep, so
    that the next contender does not meet them."""
    from simclr_engine.export.runtime import OnnxEncoder

    single, batches = OnnxEncoder(file, threads=threads, spin=True), OnnxEncoder(file, threads=threads)
    return lambda images: (single if len(images) == 1 else batches).embed(images)


def _with_fresh(row: CardRow, script: str, target: Path, threads: int) -> CardRow:
    """The row with what a fresh process says; a process that fails costs its figures, not the card."""
    try:
        return replace(row, fresh=fresh_process(script, target, threads))
    except (OSError, ValueError, subprocess.SubprocessError) as error:
        said = str(getattr(error, "stderr", None) or error).strip().splitlines()
        return replace(row, note=f"memory and start-up not measured: {said[-1][:200] if said else 'no reason given'}")


def _name(metadata: ModelMetadata) -> str:
    return f"ONNX Runtime {metadata.precision}"


def _rates(calls: Mapping[str, Embed], images: NDArray[np.uint8], seconds: float) -> tuple[dict[str, Rate], int]:
    """Images per second of each call, and in how many rounds that was measured."""
    from simclr_engine.timing import interleave

    per_round = CALLS[len(images)]

    def repeated(call: Embed) -> Callable[[], object]:
        return lambda: [call(images) for _ in range(per_round)]

    contenders = {name: repeated(call) for name, call in calls.items()}
    once = sum(first.median for first in interleave(contenders, 1, warmup=0).values())  # first calls are the slowest
    rounds = max(ROUNDS[0], min(ROUNDS[1], int(seconds / once) - 1))
    timings = interleave(contenders, rounds, warmup=0)
    return {name: rate(len(images) * per_round, timing) for name, timing in timings.items()}, rounds


def rate(images: int, timing: Timing) -> Rate:
    """Images per second of a call that takes `images`."""
    return Rate(images / timing.median, images / timing.p80, images / timing.p20)


def torch_eager(run: Run) -> Embed:
    """The run's encoder in eager PyTorch, fp32, channels_last, from the same uint8 `[B, S, S, 3]`."""
    import torch

    from simclr_engine.checkpoint import load_encoder

    spec = run.recipe.augment
    encoder = load_encoder(run).to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # not in torch's hints
    spread = torch.tensor(list(spec.std)).view(1, 3, 1, 1)
    scale, offset = 1 / (255 * spread), torch.tensor(list(spec.mean)).view(1, 3, 1, 1) / spread

    def embed(images: NDArray[np.uint8]) -> object:
        with torch.inference_mode():
            return encoder(torch.from_numpy(images).permute(0, 3, 1, 2).float() * scale - offset).numpy()

    return embed


@contextmanager
def torch_threads(threads: int | None) -> Iterator[None]:
    """Gives torch as many threads as the files get, and afterwards what it had; None leaves torch alone."""
    if threads is None:
        yield
        return
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)


# What a fresh process runs: the clock starts before anything is imported.
_HEAD = """
import time
begin = time.perf_counter()
import sys
import numpy as np
target, threads = sys.argv[1], int(sys.argv[2])
"""
_TAIL = """
images = np.zeros((64, size, size, 3), np.uint8)
embed(images[:1])
start_up = time.perf_counter() - begin
embed(images)
import json
from simclr_engine.bench.card import memory
print(json.dumps({"start_up": start_up, **memory()}))
"""
ONNX_SCRIPT = (
    _HEAD
    + """
from simclr_engine.export.runtime import OnnxEncoder
encoder = OnnxEncoder(target, threads=threads, spin=True)
embed, size = encoder.embed, encoder.image_size
"""
    + _TAIL
)
TORCH_SCRIPT = (
    _HEAD
    + """
import torch
from simclr_engine.bench.card import torch_eager
from simclr_engine.run import Run
torch.set_num_threads(threads)
run = Run.open(target)
embed, size = torch_eager(run), run.image_size
"""
    + _TAIL
)


def fresh_process(script: str, target: Path, threads: int) -> Fresh:
    """Start-up and memory in a process of its own.

    Raises:
        subprocess.SubprocessError: it failed or took longer than `PATIENCE`.
        ValueError: it did not print its figures.
    """
    command = [sys.executable, "-P", "-c", script, str(target), str(threads)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=PATIENCE)
    return Fresh(**json.loads(done.stdout.splitlines()[-1]))


def memory() -> dict[str, int | None]:
    """Resident and peak bytes of this process.

    On Linux from /proc: `getrusage` there counts what the process was forked from, which may be far larger.
    """
    status = Path("/proc/self/status")
    if status.is_file():
        lines = dict(line.split(":", 1) for line in status.read_text().splitlines() if ":" in line)
        resident, peak = (int(lines[key].split()[0]) << 10 for key in ("VmRSS", "VmHWM"))
        return {"resident_bytes": resident, "peak_bytes": peak}
    try:
        import resource
    except ImportError:  # Windows
        return {"resident_bytes": None, "peak_bytes": None}
    return {"resident_bytes": None, "peak_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss}


def device_name() -> str:
    """The processor's name as the kernel gives it."""
    cpuinfo = Path("/proc/cpuinfo")
    for line in cpuinfo.read_text().splitlines() if cpuinfo.is_file() else ():
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def versions(with_torch: bool) -> dict[str, str]:
    """Of what the figures depend on."""
    from importlib.metadata import version

    names = ["onnxruntime", "numpy", *(["torch"] if with_torch else [])]
    return {"python": platform.python_version()} | {name: version(name) for name in names}


def show_card(card: Card) -> None:
    """Prints the card as a table."""
    from simclr_engine.errors import counted
    from simclr_engine.terminal import add, show, styled, table

    figures = (*(f"batch {batch}" for batch in BATCHES), "memory", "file", "start-up", "accuracy")
    made = table("images per second", *(f"#{name}" for name in figures), rule=False)
    for row in card.rows:
        rates = [_rate_text(row.rates.get(batch)) for batch in BATCHES]
        held = row.fresh.resident_bytes if row.fresh else None
        start_up = f"{row.fresh.start_up:.2f} s" if row.fresh else "–"
        cells = [row.name, *rates, _size(held), _size(row.file_bytes), start_up, _accuracy_text(row)]
        add(made, *cells)
    rounds = ", ".join(f"{n} rounds at batch {batch}" for batch, n in card.rounds.items())
    how = (
        f"median (p20–p80) of {rounds}, interleaved; {card.image_size} px, "
        f"{counted(card.threads, 'thread')} of {card.device}; "
        "memory and start-up of a fresh process"
    )
    if compared := next((row.difference.images for row in card.rows if row.difference and row.difference.images), None):
        how += f"; points and same labels: against fp32 on {counted(compared, 'image')}"
    if any(row.precision == "int8" for row in card.rows):
        how += "; int8: other programs than onnxruntime round elsewhere, and one image in twenty may get another label"
    notes = [styled(f"{row.name}: {row.note}", "yellow") for row in card.rows if row.note]
    show(made, styled(how, "dim"), *notes, width=110)


def _rate_text(rate: Rate | None) -> str:
    if rate is None:
        return "–"
    millions = rate.p80 >= 1e6  # of tiny encoders only; the column stays narrow
    median, p20, p80 = (f"{v / 1e6:.2f} M" if millions else f"{v:,.0f}" for v in (rate.median, rate.p20, rate.p80))
    return f"{median} ({p20}–{p80})"


def _size(count: int | None) -> str:
    return "–" if count is None else f"{count / 2**20:,.{0 if count >= 100 << 20 else 1}f} MiB"


def _accuracy_text(row: CardRow) -> str:
    if row.difference is None:
        return "–" if row.accuracy is None else f"{100 * row.accuracy:.2f} %"
    d = row.difference
    if d.accuracy is not None:
        return f"{100 * d.accuracy:+.1f} points".replace("-", "−").replace("+0.0", "±0")
    if d.agreement is not None:
        return f"{100 * d.agreement:.1f} % same label"
    return f"features ±{d.max_abs:.0e}" if row.accuracy is None else f"{100 * row.accuracy:.2f} %"
