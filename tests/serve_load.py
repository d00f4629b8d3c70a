"""100 connections to the page of `serve`, hostile ones among them: `PYTHONPATH=tests python -m serve_load`.

The same honest clients ask twice, alone and among the hostile ones. Prints both 95th percentiles, the memory of all
processes of the page and what is left in its temporary folder; ends with 1 if one of them is beyond its bound.
"""

from __future__ import annotations

import argparse
import asyncio
import multiprocessing
import os
import random
import re
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
import zlib
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass, field
from io import BytesIO
from multiprocessing.sharedctypes import Synchronized
from pathlib import Path

import numpy as np
from PIL import Image

from fixtures.serving import free_port
from fixtures.tiny_probe import write_tiny_probe

RATIO, MEMORY = 2.0, 1 << 30


def transparent_png(width: int, height: int) -> bytes:
    """A picture of these sides, whose bytes are a thousandth of its pixels'."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return len(data).to_bytes(4, "big") + name + data + zlib.crc32(name + data).to_bytes(4, "big")

    packer, row = zlib.compressobj(9), bytes(1 + 4 * width)
    data = b"".join([*(packer.compress(row) for _ in range(height)), packer.flush()])
    head = width.to_bytes(4, "big") + height.to_bytes(4, "big") + b"\x08\x06\0\0\0"
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


def encoded(width: int, height: int, form: str, **how: object) -> bytes:
    """Noise of these sides, so that it does not compress."""
    noise = np.random.default_rng(0).integers(0, 256, (height, width, 3)).astype(np.uint8)
    file = BytesIO()
    Image.fromarray(noise).save(file, form, **how)
    return file.getvalue()


@dataclass
class Page:
    """A page that is being served by another process."""

    port: int
    token: str
    pid: int
    peak: int = 0  # bytes of all its processes
    seconds: list[float] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)

    def head(self, length: int | None, *more: str) -> bytes:
        body = "Transfer-Encoding: chunked" if length is None else f"Content-Length: {length}"
        lines = ["POST /classify HTTP/1.1", f"Host: 127.0.0.1:{self.port}", f"X-Token: {self.token}", body, *more]
        return "\r\n".join([*lines, "", ""]).encode()

    async def ask(self, *parts: bytes, pause: float = 0) -> bytes:
        """Sends the parts; what comes back until the connection ends."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        try:
            for part in parts:
                writer.write(part)
                await writer.drain()
                await asyncio.sleep(pause)
            return await reader.read()
        finally:
            writer.transport.abort()

    def memory(self) -> int:
        """Resident bytes of the server and its workers now."""
        children = Path(f"/proc/{self.pid}/task").glob("*/children")
        found = [self.pid, *(int(child) for file in children for child in file.read_text().split())]
        total = 0
        for one in found:
            with suppress(OSError):
                total += int(Path(f"/proc/{one}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
        return total


async def honest(page: Page, picture: bytes, pause: float) -> None:
    await asyncio.sleep(random.random() * pause)
    while True:
        began = time.monotonic()
        said = await page.ask(page.head(len(picture)) + picture)
        page.seconds.append(time.monotonic() - began)
        if b'"classes"' not in said:
            page.failed.append(said[:200].decode(errors="replace"))
        await asyncio.sleep(pause)


def hostile(page: Page) -> list[Callable[[], Awaitable[bytes]]]:
    """What the hostile connections do, one each."""
    bomb, forest = transparent_png(9400, 9400), encoded(3000, 2200, "JPEG", progressive=True, quality=92)
    garbage, zeros = random.randbytes(8 << 20), bytes(1 << 20)

    async def gone() -> bytes:
        _, writer = await asyncio.open_connection("127.0.0.1", page.port)
        writer.write(page.head(len(bomb)) + bomb)
        await asyncio.sleep(0.1)
        writer.transport.abort()
        return b""

    return [
        lambda: page.ask(page.head(len(bomb)) + bomb),
        lambda: page.ask(page.head(len(forest)) + forest),
        lambda: page.ask(page.head(len(garbage)) + garbage),
        lambda: page.ask(page.head(4) + b"text"),
        lambda: page.ask(page.head(270 << 20), *[zeros] * 270),
        lambda: page.ask(page.head(None), *[b"100000\r\n" + zeros + b"\r\n"] * 300),
        lambda: page.ask(page.head(len(bomb), "Origin: http://evil.example") + bomb),
        lambda: page.ask(b"POST /classify HTTP/1.1\r\nHo"),
        lambda: page.ask(page.head(1 << 20), *[b"x"] * 1000, pause=0.1),
        gone,
    ]


async def watched(page: Page) -> None:
    while True:
        page.peak = max(page.peak, page.memory())
        await asyncio.sleep(0.05)


def attack(page: Page, connections: int, count: Synchronized[int]) -> None:
    """Sends what is hostile until the process is killed; counts it. It would be another machine, so it is a process of
    its own that takes no time from the page."""
    if hasattr(os, "SCHED_IDLE"):
        os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))

    async def again(act: Callable[[], Awaitable[bytes]]) -> None:
        while True:
            with suppress(OSError):
                await act()
            count.value += 1
            await asyncio.sleep(0.05)

    async def all_of_them() -> None:
        acts = hostile(page)
        await asyncio.gather(*(again(acts[i % 10]) for i in range(connections)))

    asyncio.run(all_of_them())


async def measure(page: Page, connections: int, seconds: float, picture: bytes, pause: float) -> tuple[float, float]:
    """The 95th percentiles of honest clients, a third of the connections: alone, and among the others."""
    tasks = [asyncio.create_task(watched(page))]
    tasks += [asyncio.create_task(honest(page, picture, pause)) for _ in range(connections // 3)]
    context = multiprocessing.get_context("spawn")
    count = context.Value("q")
    others = context.Process(target=attack, args=(page, connections - connections // 3, count))
    found: list[float] = []
    try:
        while len(found) < 2:
            if found:
                others.start()
            await asyncio.sleep(min(2.0, seconds / 4))
            page.seconds.clear()
            before = count.value
            await asyncio.sleep(seconds)
            found.append(float(np.percentile(page.seconds, 95)))
            times = f"p50 {1e3 * np.median(page.seconds):.1f} ms, p95 {1e3 * found[-1]:.1f} ms"
            print(f"{len(page.seconds):6} honest requests among {count.value - before} hostile ones: {times}")
    finally:
        if others.pid:
            others.kill()
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    return found[0], found[1]


def run(connections: int, seconds: float, model: Path, pause: float, side: int) -> tuple[float, int, list[str]]:
    """Ratio of both percentiles, peak memory in bytes, and what went wrong or was left."""
    with tempfile.TemporaryDirectory() as folder:
        call = [sys.executable, "-m", "simclr_engine", "serve", str(model), "--port", str(free_port())]
        environment = {**os.environ, "TMPDIR": folder}
        process = subprocess.Popen(call, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=environment)
        assert process.stdout is not None
        address = process.stdout.readline().decode().split()[0]
        html = urllib.request.urlopen(address).read().decode()
        token = re.findall(r'data-token="([^"]+)"', html)[0]
        page = Page(int(re.findall(r":(\d+)", address)[0]), token, process.pid)
        try:
            quiet, loud = asyncio.run(measure(page, connections, seconds, encoded(side, side, "JPEG"), pause))
        finally:
            left = [f"left: {path}" for path in Path(folder).iterdir()]
            process.send_signal(signal.SIGTERM)
            process.wait(30)
            left += [f"left: {path}" for path in Path(folder).iterdir()]
    return loud / quiet, page.peak, page.failed + left


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--connections", type=int, default=100)
    parser.add_argument("--seconds", type=float, default=30, help="of each part")
    parser.add_argument("--model", type=Path, help="an exported file; a tiny one by default")
    parser.add_argument("--pause", type=float, default=1.0, help="of an honest client between two requests")
    parser.add_argument("--side", type=int, default=256, help="pixels of an honest picture")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        model = options.model or write_tiny_probe(Path(folder) / "encoder.onnx", image_size=8)
        ratio, memory, wrong = run(options.connections, options.seconds, model, options.pause, options.side)
    print(f"ratio {ratio:.2f} (bound {RATIO}), memory {memory >> 20} MiB (bound {MEMORY >> 20}), wrong {len(wrong)}")
    print(*wrong[:5], sep="\n")
    sys.exit(ratio > RATIO or memory > MEMORY or bool(wrong))


if __name__ == "__main__":
    main()
