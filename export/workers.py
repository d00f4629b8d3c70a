"""The processes in which `serve` decodes pictures and runs the encoder, each within bounds of memory and time.

Two of them, so that a picture that takes long holds up no other: the quick worker takes small files and hands back
pictures of more than `QUICK_PIXELS`, which the patient worker answers; each takes the smallest first. A worker that
does not answer in time is killed and replaced, as is one that died; only the client that it worked for is told so.
Nothing is written to disk. This is the server's side, which reads no image; `answering.py` is the other one.
"""

from __future__ import annotations

import asyncio
import json
import math
import os
import sys
from collections.abc import AsyncIterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any

from simclr_engine import errors
from simclr_engine.errors import EngineError, PlatformError

MAX_BYTES = 10 << 20  # of an upload
HELD_BYTES = 64 << 20  # of all uploads that are being received or wait; beyond it the largest of them is refused
QUICK_BYTES = QUICK_PIXELS = 1 << 20  # of a picture that the quick worker answers
QUICK_SECONDS, PATIENT_SECONDS = 3.0, 10.0  # for one picture
START_SECONDS = 120.0  # until a worker has opened encoder and index; a run imports torch
WAITING = 8  # pictures that wait for the patient worker; beyond it the largest of them is refused
PACE = 16 << 20  # bytes a second of all uploads together beyond the first `QUICK_BYTES` of each, taken in turns
PIECE = 64 << 10  # bytes of a message that are handed to a pipe at once
# One picture at a time has little use for more threads; and glibc gives back what is freed of a mebibyte or more.
ENVIRONMENT = {"OMP_NUM_THREADS": "1", "MALLOC_MMAP_THRESHOLD_": str(1 << 20)}
REPLY_BYTES = 16 << 20  # far above any answer: more is not taken from a worker
BUSY = "The page is busy. Try again in a moment."
SLOW = f"The picture takes longer than {PATIENT_SECONDS:.0f} seconds. Shrink it first."
LARGE = "The picture takes too much memory. Shrink it first."


class Upload:
    """The bytes of an upload, what it may cost to answer it, and the answer as soon as that is known."""

    def __init__(self) -> None:
        self.body, self.cost = bytearray(), 0.0
        self.answer: asyncio.Future[dict[str, Any]] = asyncio.get_running_loop().create_future()

    def settle(self, said: dict[str, Any]) -> None:
        """Says this of the upload, if nothing was said yet, and forgets its bytes."""
        self.body = bytearray()
        if not self.answer.done():
            self.answer.set_result(said)


class Worker:
    """A process that is started when it is needed and answers one message at a time, and the uploads that wait for it.

    Args:
        settings: what `answering.main` takes.
        seconds: for one answer.
        most: uploads that may wait.
    """

    def __init__(self, settings: Mapping[str, Any], seconds: float, most: float = math.inf) -> None:
        self.settings, self._seconds, self._most = dict(settings), seconds, most
        self.waiting: list[Upload] = []
        self._came = asyncio.Event()
        self._process: asyncio.subprocess.Process | None = None

    def put(self, upload: Upload) -> None:
        """Lets an upload wait for `next`, behind those of the same cost; of more than `most` the dearest is refused."""
        self.waiting = sorted([*self.waiting, upload], key=lambda one: one.cost)
        if len(self.waiting) > self._most:
            self.waiting.pop().settle({"refused": BUSY})
        self._came.set()

    async def next(self) -> Upload:
        """The cheapest of the uploads that wait."""
        while not self.waiting:
            self._came.clear()
            await self._came.wait()
        return self.waiting.pop(0)

    async def start(self) -> dict[str, Any]:
        """Starts the process; returns what it says of encoder and index. EngineError if it cannot open them."""
        self._process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-P", "-m", "simclr_engine.export.answering"),  # -P: nothing is imported from here
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            env={**ENVIRONMENT, **os.environ},
            process_group=0,  # a Ctrl-C is for the server, whose end ends the worker
        )
        try:
            about = await self._exchange(self._process, json.dumps(self.settings).encode(), START_SECONDS)
        except (TimeoutError, EOFError, OSError) as error:
            saw = str(error) or type(error).__name__
            raise PlatformError("the process that answers could not be started", saw=saw) from error
        if "error" in about:
            await self.stop()
            raise getattr(errors, about["error"], EngineError)(about["cause"], saw=about["saw"], fix=about["fix"])
        self.settings["identity"] = about["identity"]  # one that replaces it must open the same file
        return about

    async def answer(self, body: bytes | bytearray) -> dict[str, Any]:
        """What the process says of an upload; TimeoutError if it does not in time, EOFError or OSError if it died."""
        if self._process is None:
            await self.start()
        assert self._process is not None
        return await self._exchange(self._process, body, self._seconds)

    async def _exchange(
        self, process: asyncio.subprocess.Process, message: bytes | bytearray, seconds: float
    ) -> dict[str, Any]:
        assert process.stdin is not None and process.stdout is not None
        try:
            async with asyncio.timeout(seconds):
                process.stdin.write(len(message).to_bytes(4, "big"))
                for at in range(0, len(message), PIECE):
                    process.stdin.write(message[at : at + PIECE])
                    await process.stdin.drain()
                length = int.from_bytes(await process.stdout.readexactly(4), "big")
                if length > REPLY_BYTES:
                    raise EOFError(f"{length:,} bytes were announced")
                said: dict[str, Any] = json.loads(await process.stdout.readexactly(length))
                return said
        except BaseException:
            await self.stop()
            raise

    async def stop(self) -> None:
        """Kills the process; the next answer starts another."""
        process, self._process = self._process, None
        if process is not None:
            assert process.stdin is not None
            with suppress(OSError):  # it has ended already
                process.kill()
            with suppress(OSError):
                process.stdin.close()
                await process.stdin.wait_closed()
            await process.wait()


class Workers:
    """Both workers and the uploads that they answer.

    Args:
        settings: what `answering.main` takes, without `patient`.
    """

    def __init__(self, settings: Mapping[str, Any]) -> None:
        self._quick = Worker({**settings, "patient": False}, QUICK_SECONDS)
        self._patient = Worker({**settings, "patient": True}, PATIENT_SECONDS, WAITING)
        self._uploads: set[Upload] = set()
        self._turn = asyncio.Lock()
        self._tasks: list[asyncio.Task[None]] = []

    async def start(self) -> dict[str, Any]:
        """Starts them; returns what they say of encoder and index. EngineError if these cannot be opened."""
        about = await self._quick.start()
        self._patient.settings["identity"] = about["identity"]
        self._tasks = [asyncio.create_task(self._work(worker)) for worker in (self._quick, self._patient)]
        return about

    @contextmanager
    def uploading(self) -> Iterator[Upload]:
        """An upload, which counts and waits until the context ends."""
        upload = Upload()
        self._uploads.add(upload)
        try:
            yield upload
        finally:
            self._uploads.remove(upload)
            for worker in (self._quick, self._patient):
                worker.waiting = [one for one in worker.waiting if one is not upload]

    async def receive(self, chunks: AsyncIterable[bytes], upload: Upload) -> None:
        """Takes the bytes of an upload, at most `MAX_BYTES`, and lets it wait for its answer."""
        async for chunk in chunks:
            upload.body += chunk
            while sum(len(one.body) for one in self._uploads) > HELD_BYTES:
                max(self._uploads, key=lambda one: len(one.body)).settle({"refused": BUSY})
            if upload.answer.done():
                return
            if len(upload.body) > QUICK_BYTES:
                async with self._turn:
                    await asyncio.sleep(len(chunk) / PACE)
        quick = len(upload.body) <= QUICK_BYTES
        upload.cost = len(upload.body) * (1 if quick else 4)  # so many pixels, about, if it is a large photo
        if upload.body:
            (self._quick if quick else self._patient).put(upload)
        else:
            upload.settle({"refused": "The file is empty."})

    async def _work(self, worker: Worker) -> None:
        if worker is self._patient:
            with suppress(EngineError):  # whoever asks for it next is told
                await worker.start()
        while True:
            upload = await worker.next()
            if upload.answer.done():
                continue
            try:
                said = await worker.answer(upload.body)
            except TimeoutError:
                said = {"later": math.inf} if worker is self._quick else {"refused": SLOW}
            except (EOFError, OSError):
                said = {"refused": LARGE}
            except EngineError as error:
                said = {"refused": f"The page cannot answer any more: {error.cause}."}
            if "later" not in said:
                upload.settle(said)
            elif upload in self._uploads:
                upload.cost = said["later"]
                self._patient.put(upload)

    async def stop(self) -> None:
        """Ends them, at once."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for worker in (self._quick, self._patient):
            await worker.stop()
