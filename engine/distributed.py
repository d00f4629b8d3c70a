"""Data-parallel training: the processes that share a batch, their communication and their launch.

Every rank has the same weights and an equal share of the global batch. Only rank 0 writes checkpoints, logs and the
final weights; if it fails, all ranks fail. With one process, nothing here communicates.
"""

from __future__ import annotations

import os
import signal
import socket
import sys
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from .boundary import engine_error
from .command_line import launch_command, launcher_number
from .errors import EngineError, PlatformError, UsageError
from .flat import flattened, unflattened
from .recipe import TrainSpec

T = TypeVar("T")

# The other ranks give up on a rank that hangs after this time. One that dies is noticed immediately, by gloo or the
# launcher.
TIMEOUT = timedelta(minutes=10)
BUCKET_BYTES = 16 * 2**20  # of gradients in one message
# One process per machine packs a large data set while the others wait.
DATA_TIMEOUT = timedelta(hours=12)


class PeerFailed(EngineError):
    """Another rank failed; this one ends with the same exit code."""

    def __init__(self, rank: int, message: str, exit_code: int) -> None:
        super().__init__("another rank failed", saw=f"rank {rank}: {message}", fix="see the message of that rank")
        self.exit_code = exit_code


@dataclass(frozen=True)
class World:
    """The processes that share a batch, as seen by one of them; `World()` is a single process.

    Attributes:
        rank: 0 … size − 1 over all machines.
        size: number of processes.
        local_rank: 0 … on this machine.
        device: device of this process, as for `choose_platform`.
    """

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    device: str = "auto"

    @property
    def main(self) -> bool:
        """Whether this is the rank that writes."""
        return self.rank == 0

    @property
    def group(self) -> dist.ProcessGroup | None:
        """The `group` argument of `nt_xent`: all ranks, or None for a single process."""
        return dist.group.WORLD if self.size > 1 else None

    def share(self, batch: Tensor) -> Tensor:
        """This rank's share of the global batch `[B]`: B / size rows, from row rank·B/size on. The shares, in order of
        ranks, are the batch of a single process."""
        rows = len(batch) // self.size
        return batch[self.rank * rows : (self.rank + 1) * rows]

    @torch.no_grad()
    def average_(self, tensors: Sequence[Tensor]) -> None:
        """Replaces each tensor by its mean over the ranks, bitwise the same on every rank.

        In messages of BUCKET_BYTES, each as the tensors lie in memory: while one is under way, the next is gathered.
        All ranks must have the same tensors in the same order and memory format.
        """
        if self.size == 1:
            return
        sent = []
        for bucket in _buckets(tensors):
            vector = flattened(bucket)
            sent.append((bucket, vector, dist.all_reduce(vector, async_op=True)))
        for bucket, vector, message in sent:
            message.wait()
            torch._foreach_copy_(bucket, unflattened(vector.div_(self.size), bucket))

    @torch.no_grad()
    def broadcast_(self, tensors: Sequence[Tensor]) -> None:
        """Replaces each tensor by that of rank 0."""
        if self.size == 1:
            return
        for dtype in dict.fromkeys(t.dtype for t in tensors):
            same = [t for t in tensors if t.dtype == dtype]
            vector = flattened(same)
            dist.broadcast(vector, 0)
            torch._foreach_copy_(same, unflattened(vector, same))

    @torch.no_grad()
    def gather(self, mine: Tensor) -> Tensor:
        """`[n, …]`, of the same shape on every rank → `[size·n, …]`, rank by rank."""
        if self.size == 1:
            return mine
        everyone = mine.new_empty(self.size * len(mine), *mine.shape[1:])
        dist.all_gather(list(everyone.chunk(self.size)), mine.contiguous())
        return everyone

    def gather_views(self, z: Tensor, views: int) -> Tensor:
        """Rows `[V·b, D]` of each rank, view by view → `[V·B, D]` of the whole batch, in the same order."""
        if self.size == 1:
            return z
        by_rank = self.gather(z).view(self.size, views, len(z) // views, -1)
        return by_rank.transpose(0, 1).reshape(self.size * len(z), -1)

    def any(self, *flags: bool) -> tuple[bool, ...]:
        """Each flag, true if it is true on any rank. Called between two steps; only the hosts wait, not the devices."""
        if self.size == 1:
            return flags
        votes = torch.tensor(flags, dtype=torch.uint8)  # on the CPU, for gloo
        dist.all_reduce(votes, op=dist.ReduceOp.MAX)
        return tuple(bool(vote) for vote in votes.tolist())

    @contextmanager
    def fail_together(self, timeout: timedelta | None = None) -> Iterator[None]:
        """A context for work of some ranks only (`if world.main: …`): if one fails, all fail, and none waits for ever.

        Args:
            timeout: how long the ranks wait for each other; TIMEOUT by default.

        Raises:
            PeerFailed: on the ranks that did not fail, if another one did.
        """
        if self.size == 1:
            yield
            return
        failed: Exception | None = None
        try:
            yield
        except Exception as error:  # any error: the other ranks must not wait for ever
            failed = error
        group = dist.new_group(backend="gloo", timeout=timeout) if timeout else None
        reports: list[object] = [None] * self.size
        dist.all_gather_object(reports, _report(self.rank, failed), group=group)
        if group is not None:
            dist.destroy_process_group(group)
        if failed is not None:
            raise failed
        for report in reports:
            if isinstance(report, tuple):
                raise PeerFailed(*report)

    def same(self, value: T) -> T:
        """Rank 0's value."""
        if self.size == 1:
            return value
        values = [value]
        dist.broadcast_object_list(values, src=0)
        return values[0]

    def leaders_first(self, work: Callable[[], T]) -> T:
        """Runs `work` on every rank, first on one rank per machine: it fills the cache that the others read.

        Raises:
            PeerFailed: another rank failed.
        """
        leads = self.local_rank == 0
        with self.fail_together(DATA_TIMEOUT):
            if leads:
                result = work()
        with self.fail_together():
            if not leads:
                result = work()
        return result

    def agree(self, what: dict[str, object]) -> None:
        """Checks that all ranks have the same values.

        Raises:
            PlatformError: on every rank; names the first value that differs and its rank.
        """
        if self.size == 1:
            return
        everyone: list[dict[str, object]] = [{}] * self.size
        dist.all_gather_object(everyone, what)
        for rank, theirs in enumerate(everyone):
            for key, value in everyone[0].items():
                if theirs.get(key) != value:
                    raise PlatformError(
                        f"the ranks differ in {key}",
                        saw=f"rank 0: {value}, rank {rank}: {theirs.get(key)}",
                        fix="give every machine the same data, versions and kind of device",
                    )


def check_shares(train: TrainSpec, ranks: int) -> int:
    """Images of one rank in a step: the batch divided by the ranks.

    Raises:
        UsageError: the ranks do not divide the batch, or the micro-batch does not divide the share.
    """
    batch, micro = train.batch_size, train.micro_batch
    if batch % ranks:
        low, high = batch // ranks * ranks, (batch // ranks + 1) * ranks
        near = f"{low} or {high}" if low else f"{high}"
        raise UsageError(
            "the batch size must be divisible by the number of ranks",
            saw=f"train.batch_size = {batch}, {ranks} ranks",
            fix=f"--batch-size {near}",
        )
    share = batch // ranks
    if micro and share % micro:
        divisors = [d for d in range(1, share + 1) if share % d == 0]
        near = " or ".join(str(d) for d in sorted(sorted(divisors, key=lambda d: abs(d - micro))[:2]))
        raise UsageError(
            "the micro-batch must divide the share of a rank",
            saw=f"train.micro_batch = {micro}, {share} images a step" + (f" on each of {ranks} ranks" * (ranks > 1)),
            fix=f"--set train.micro_batch={near}",
        )
    return share


@contextmanager
def start_world(device: str = "auto", timeout: timedelta = TIMEOUT) -> Iterator[World]:
    """Joins the processes that torchrun started; without it, or with one process, `World()`.

    If torch.distributed is already initialised, it is used and left as it is.

    Args:
        device: auto | cuda | cpu; on CUDA each process uses the device of its local rank.
        timeout: how long a rank waits for another one before it gives up.

    Raises:
        UsageError: the environment does not name the address of rank 0, or the device does not support many processes.
        PlatformError: there are fewer devices than processes, or a rank has ended.
    """
    size = dist.get_world_size() if _initialised() else launcher_number("WORLD_SIZE", 1)
    rank = launcher_number("RANK", 0)  # `is_main` reads it after the run
    if size == 1:
        yield World(device=device)
        return
    if not _initialised() and not {"RANK", "MASTER_ADDR", "MASTER_PORT"} <= os.environ.keys():
        raise UsageError(
            "several processes need a launcher",
            saw=f"WORLD_SIZE={size} without RANK, MASTER_ADDR and MASTER_PORT",
            fix="torchrun --nproc-per-node N -m simclr_engine pretrain …, or unset WORLD_SIZE",
        )
    if not _initialised() and (rank >= size or not 0 < launcher_number("MASTER_PORT", 0) < 1 << 16):
        raise UsageError(
            "the variables of the launcher contradict each other",
            saw=f"RANK={rank}, WORLD_SIZE={size}, MASTER_PORT={os.environ['MASTER_PORT']}",
            fix="torchrun sets them; unset WORLD_SIZE for a single process",
        )
    local_rank = launcher_number("LOCAL_RANK", 0)
    device = _own_device(device, local_rank)
    ours = not _initialised()
    if ours:
        _prefer_loopback(size)
        # Both on CUDA: NCCL sends tensors, gloo sends what the hosts agree on without involving the device.
        backend = "cpu:gloo,cuda:nccl" if device.startswith("cuda") else "gloo"
        _meet(backend, timeout)
    world, ended_well = World(dist.get_rank(), size, local_rank, device), False
    try:
        yield world
        ended_well = True
    except RuntimeError as error:
        if not _is_about_ranks(error):
            raise
        raise PlatformError(
            "another rank has ended or does not answer",
            saw=str(error).strip().splitlines()[0][:300],
            fix="run the same command with --resume to continue; `torchrun --max-restarts N` does so automatically",
        ) from error
    finally:
        # After a failure NCCL may wait for ranks that have ended; the process ends without destroying the group.
        if ours and _initialised() and (ended_well or device == "cpu"):
            dist.destroy_process_group()


def launch(gpus: int, arguments: Sequence[str]) -> int:
    """Runs `python -m simclr_engine ARGUMENTS` in one process per device with torch's elastic launcher.

    Returns:
        The exit code: 0, or that of the first process that failed.

    Raises:
        UsageError: `gpus` is less than 1.
        PlatformError: there are fewer CUDA devices, or a process was killed.
    """
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    check_gpus(gpus)
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=gpus,
        run_id=uuid.uuid4().hex,
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        max_restarts=0,
        local_addr="localhost",
    )
    try:
        elastic_launch(config, sys.executable)("-m", "simclr_engine", *arguments)
    except ChildFailedError as error:
        rank, failure = error.get_first_failure()
        if failure.exitcode < 0:
            raise PlatformError(
                "a rank was killed",
                saw=f"rank {rank}: {signal.Signals(-failure.exitcode).name}",
                fix="run the same command with --resume to continue",
            ) from error
        return int(failure.exitcode)
    except SignalException:  # the launcher passed the signal on to the ranks, which saved before they ended
        return 130
    return 0


def check_gpus(gpus: int) -> None:
    """Raises an error if `--gpus` is less than 1 or there are fewer devices."""
    if gpus < 1:
        raise UsageError("--gpus counts devices", saw=gpus, fix="1 or more")
    there = torch.cuda.device_count()
    if gpus > there:
        raise PlatformError(
            "there are fewer CUDA devices than --gpus",
            saw=f"--gpus {gpus}, {there} found",
            fix=f"on a CPU: {launch_command(gpus)}",
        )


def is_launched() -> bool:
    """Whether torchrun started this process."""
    return "TORCHELASTIC_RUN_ID" in os.environ


def is_main() -> bool:
    """Whether this process is rank 0 according to the environment, before and after `start_world`."""
    return launcher_number("RANK", 0) == 0


def run_id() -> str | None:
    """The id of a launch, the same over its restarts; None if there is no unique one."""
    name = os.environ.get("TORCHELASTIC_RUN_ID")
    return None if name in (None, "", "none") else name


def restarts() -> int:
    """How often the launcher has restarted this process after a failure."""
    return launcher_number("TORCHELASTIC_RESTART_COUNT", 0)


def _initialised() -> bool:
    return dist.is_available() and dist.is_initialized()


def _meet(backend: str, timeout: timedelta) -> None:
    """Calls `init_process_group` with a part of the store that belongs to this attempt.

    torchrun keeps one store over its restarts (seen in torch 2.13). Otherwise a rank that is early could read an
    address that a rank of the failed attempt left there.
    """
    store, rank, size = next(dist.rendezvous("env://", timeout=timeout))
    store.set_timeout(timeout)
    attempt = dist.PrefixStore(f"attempt {restarts()} of {size} ranks", store)
    dist.init_process_group(backend, store=attempt, rank=rank, world_size=size, timeout=timeout)


def _own_device(device: str, local_rank: int) -> str:
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if device.startswith("cuda"):
        count = torch.cuda.device_count()
        if local_rank >= count:
            raise PlatformError(
                "there are fewer CUDA devices than processes",
                saw=f"local rank {local_rank}, {count} devices",
                fix=f"--nproc-per-node {count}" if count else "--device cpu",
            )
        torch.cuda.set_device(local_rank)
        return f"cuda:{local_rank}"
    if device != "cpu":
        raise UsageError("several processes need CUDA or the CPU", saw=f"--device {device}", fix="--device cpu")
    return device


def _prefer_loopback(size: int) -> None:
    """Makes the ranks of one machine use its loopback interface, so that host names and firewalls do not matter."""
    alone = launcher_number("LOCAL_WORLD_SIZE", 0) == size
    names = [name for _, name in socket.if_nameindex()] if hasattr(socket, "if_nameindex") else []
    loopback = next((name for name in ("lo", "lo0") if name in names), None)
    if alone and loopback:
        os.environ.setdefault("GLOO_SOCKET_IFNAME", loopback)


def _is_about_ranks(error: RuntimeError) -> bool:
    """Whether the error comes from communication. gloo raises plain RuntimeErrors that name its source files."""
    return isinstance(error, dist.DistError) or "gloo" in str(error).lower()


def _report(rank: int, error: Exception | None) -> tuple[int, str, int] | None:
    if error is None:
        return None
    ours = engine_error(error)
    return rank, ours.lines()[0] if ours else f"{type(error).__name__}: {error}", ours.exit_code if ours else 1


def _buckets(tensors: Sequence[Tensor]) -> Iterator[list[Tensor]]:
    """The tensors in order, in lists of about BUCKET_BYTES and of one dtype."""
    bucket: list[Tensor] = []
    for tensor in tensors:
        if bucket and (tensor.dtype != bucket[0].dtype or sum(t.nbytes for t in bucket) >= BUCKET_BYTES):
            yield bucket
            bucket = []
        bucket.append(tensor)
    if bucket:
        yield bucket
