"""A page on this machine: drop an image, see its classes, its nearest neighbours and its place among them.

`Service` answers; it knows nothing of the page. `start_page` builds the page with Gradio (extra `[serve]`). Neither
imports torch. The page asks for nothing outside its own address, and reads no file but those that are uploaded to it.
"""

from __future__ import annotations

import base64
import io
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from simclr_engine.command_line import command_here
from simclr_engine.data.decode import decode_image
from simclr_engine.errors import DataError, EngineError, PlatformError, UsageError, counted, plain
from simclr_engine.evaluation.metrics import one_thread
from simclr_engine.run import unfinished_notes

from .embedder import Embedder
from .index import NO_CLASS, EmbeddingIndex, default_index, without_itself
from .predict import no_probe

MAX_BYTES = 10 << 20
UPLOAD_BYTES = 64 << 20  # what Gradio takes: a larger file is refused by the page itself, which then shows nothing else
SHOWN_CLASSES = 5
NEIGHBOURS = 8
THUMBNAIL = 96  # pixels of a neighbour's picture, at most
MAP_POINTS = 2_000
MAP_CLASSES = 20  # with more, the largest are coloured and the rest stays grey
COLOURS = 10  # of serve.css; further classes have them again, in larger and fainter dots
MAP_WIDTH, MAP_HEIGHT, MAP_MARGIN = 640.0, 420.0, 16.0
FORMATS = "PNG, JPEG, WebP or BMP"
LOOPBACK = ("127.0.0.1", "localhost", "::1")
STYLE = Path(__file__).with_name("serve.css")
INSTALL = "pip install 'simclr-engine[serve]' (in a checkout: pip install '.[serve]')"
# The browser itself refuses whatever a library's page might ask for elsewhere: fonts, scripts, counters.
CONTENT_POLICY = (
    "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval'; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data: blob:; font-src 'self' data:; connect-src 'self'; worker-src 'self' blob:; "
    "object-src 'none'; base-uri 'self'; form-action 'self'; frame-ancestors 'none'"
)


@dataclass(frozen=True, eq=False)
class Answer:
    """What the page shows of one image.

    Attributes:
        seen: uint8 `[S, S, 3]`, the pixels that the encoder gets.
        classes: the most probable ones with their probabilities, best first; empty without a probe.
        neighbours: pictures uint8 `[S, S, 3]` with captions, nearest first; empty without an index.
        place: position on the map; None without an index.
        itself: path of this very picture in the index; "" where it is not there.
    """

    seen: NDArray[np.uint8]
    classes: Mapping[str, float]
    neighbours: tuple[tuple[NDArray[np.uint8], str], ...]
    place: tuple[float, float] | None
    itself: str = ""


@dataclass(frozen=True, eq=False)
class EmbeddingMap:
    """The index along the two directions in which a sample of it varies most (PCA).

    Attributes:
        points: float64 `[n, 2]`, n at most `MAP_POINTS`; `labels` int64 `[n]`.
        mean, directions: float64 `[D]` and `[D, 2]`: a vector's place is `(vector − mean) · directions`.
        share: of the variance that the two directions hold, 0..1.
    """

    points: NDArray[np.float64]
    labels: NDArray[np.int64]
    mean: NDArray[np.float64]
    directions: NDArray[np.float64]
    share: float

    @classmethod
    def of(cls, index: EmbeddingIndex) -> EmbeddingMap:
        """The map of an index, from a random sample that is always the same."""
        rows = np.sort(np.random.default_rng(0).permutation(len(index))[:MAP_POINTS])
        sample = np.asarray(index.vectors[rows], dtype=np.float64)
        mean = sample.mean(0)
        with one_thread():
            values, vectors = np.linalg.eigh((sample - mean).T @ (sample - mean))
        directions = np.zeros((index.dim, 2))
        top = vectors[:, ::-1][:, :2]
        directions[:, : top.shape[1]] = top
        share = float(values[::-1][:2].sum() / max(float(values.sum()), 1e-300))
        return cls((sample - mean) @ directions, index.labels[rows], mean, directions, min(1.0, max(0.0, share)))

    def place(self, vector: NDArray[np.float32]) -> tuple[float, float]:
        """Where a vector float32 `[D]` falls."""
        x, y = (vector.astype(np.float64) - self.mean) @ self.directions
        return float(x), float(y)


class Service:
    """Answers for one image at a time.

    Raises:
        UsageError: the encoder has no probe and there is no index: there would be nothing to show.
    """

    def __init__(self, embedder: Embedder, index: EmbeddingIndex | None) -> None:
        if embedder.predict is None and index is None:
            where = default_index(embedder.path)
            raise no_probe(
                embedder, f"make an index first: {command_here('embed', embedder.path, 'DATA', '--out', where)}"
            )
        self.embedder, self.index = embedder, index
        self.map = EmbeddingMap.of(index) if index is not None else None

    def answer(self, source: bytes | Path) -> Answer:
        """What is said of an encoded image.

        Raises:
            DataError: it cannot be read, or has more than `MAX_BYTES` bytes.
        """
        count = len(source) if isinstance(source, bytes) else source.stat().st_size
        if count > MAX_BYTES:
            raise DataError(
                f"the file has {count / (1 << 20):.1f} MiB; at most {MAX_BYTES >> 20} MiB are taken",
                fix="shrink the image first",
            )
        pixels = decode_image(source, self.embedder.image_size, self.embedder.levels)
        classes: dict[str, float] = {}
        if self.embedder.predict is not None:
            row = self.embedder.predict(pixels[None])[0]
            best = np.argsort(-row, kind="stable")[:SHOWN_CLASSES]
            classes = {plain(self.embedder.class_names[i]): float(row[i]) for i in best}
        if self.index is None or self.map is None:
            return Answer(pixels, classes, (), None)
        vector = self.embedder.embed(pixels[None])
        cosines, rows = self.index.search(vector, NEIGHBOURS + 1)
        stored = self.index.images
        equal = None if stored is None else [np.array_equal(stored[row], pixels) for row in rows[0]]
        near, at, itself = without_itself(cosines[0], rows[0], NEIGHBOURS, equal)
        shown = [(self._picture(r), self._caption(r, c)) for r, c in zip(at.tolist(), near.tolist(), strict=True)]
        path = "" if itself is None else self.index.paths[itself]
        return Answer(pixels, classes, tuple(shown), self.map.place(vector[0]), path)

    def _picture(self, row: int) -> NDArray[np.uint8]:
        """The picture of a row; a grey square where the index was made without pictures."""
        assert self.index is not None
        if self.index.images is None:
            return np.full((8, 8, 3), 128, dtype=np.uint8)
        return np.asarray(self.index.images[row])

    def _caption(self, row: int, cosine: float) -> str:
        assert self.index is not None
        name, file = self.index.class_of(row), Path(self.index.paths[row]).name
        return f"{name + ', ' if name else ''}{file} · {cosine:.3f}"

    def draw_map(self, place: tuple[float, float] | None = None) -> str:
        """The map as SVG, in colours that the page's theme decides; `place` is marked. "" without an index."""
        return "" if self.map is None or self.index is None else _svg(self.map, self.index.class_names, place)


def _svg(chart: EmbeddingMap, names: tuple[str, ...], place: tuple[float, float] | None) -> str:
    every = chart.points if place is None else np.vstack([chart.points, place])
    low, high = every.min(0), every.max(0)
    spread = np.where(high > low, high - low, 1.0)
    room = np.array([MAP_WIDTH, MAP_HEIGHT]) - 2 * MAP_MARGIN

    def at(points: NDArray[np.float64]) -> NDArray[np.float64]:
        xy = (points - low) / spread * room + MAP_MARGIN
        return np.stack([xy[..., 0], MAP_HEIGHT - xy[..., 1]], axis=-1)

    counts = np.bincount(chart.labels[chart.labels != NO_CLASS], minlength=len(names))
    coloured = sorted(np.argsort(-counts, kind="stable")[:MAP_CLASSES].tolist()) if names else []
    rest = ~np.isin(chart.labels, coloured)
    parts, legend = [_dots(at(chart.points[rest]), "dots rest")] if rest.any() else [], []
    for k, label in enumerate(i for i in coloured if counts[i]):
        parts.append(
            _dots(at(chart.points[chart.labels == label]), f"dots c{k % COLOURS}{' ring' if k >= COLOURS else ''}")
        )
        mark = f'<i class="c{k % COLOURS}{" ring" if k >= COLOURS else ""}"></i>'
        legend.append(f"<span>{mark}{_text(names[label])}</span>")
    if place is not None:
        x, y = at(np.array(place)).round(1).tolist()
        rings = "".join(f'<path class="{css}" d="M{x} {y}l0 0"/>' for css in ("rim", "gap", "core"))
        parts.append(f'<g class="you">{rings}</g>')
        legend.insert(0, '<span><i class="mark"></i><b>your image</b></span>')
    said = f"{counted(len(chart.points), 'image')} of the index, {100 * chart.share:.0f} % of their variance"
    return (
        f'<figure class="map"><svg viewBox="0 0 {MAP_WIDTH:g} {MAP_HEIGHT:g}" preserveAspectRatio="none" role="img" '
        f'aria-label="map of the index">{"".join(parts)}</svg>'
        f'<figcaption><div class="legend">{"".join(legend)}</div><p>{said} (PCA)</p></figcaption></figure>'
    )


def _dots(points: NDArray[np.float64], css: str) -> str:
    """Points as one path of strokes without length, which round caps make dots: ten bytes each."""
    steps = "".join(f"M{x:.0f} {y:.0f}h0" for x, y in points)
    return f'<path class="{css}" d="{steps}"/>'


def notice(message: str) -> str:
    """A line that says what is wrong, as HTML."""
    return f'<p class="notice" role="alert">{_text(message)}</p>'


def _text(words: str) -> str:
    """Text from outside as HTML."""
    return escape(plain(words))


def gallery(neighbours: tuple[tuple[NDArray[np.uint8], str], ...], itself: str = "") -> str:
    """Pictures with their captions, as HTML, and where `itself`, the picture that was asked about, is in the index."""
    cells = [
        f'<figure><img src="{_data_address(image)}" alt=""><figcaption>{_text(caption)}</figcaption></figure>'
        for image, caption in neighbours
    ]
    said = f"<p>The index holds this very picture: {_text(itself)}</p>" if itself else ""
    return said + (f'<h2>Nearest in the index, by cosine</h2><div class="near">{"".join(cells)}</div>' if cells else "")


def _data_address(image: NDArray[np.uint8]) -> str:
    picture, buffer = Image.fromarray(image), io.BytesIO()
    picture.thumbnail((THUMBNAIL, THUMBNAIL))
    picture.save(buffer, "PNG")
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"


def headline(embedder: Embedder, index: EmbeddingIndex | None) -> str:
    """What the page says of itself, as HTML."""
    facts = []
    if embedder.about is not None:
        m = embedder.about
        facts.append(f"{m.architecture}, {m.image_size} × {m.image_size} pixels, {m.precision}")
    if embedder.predict is not None:
        facts.append(f"{len(embedder.class_names):,} classes" + _stated_accuracy(embedder))
    if index is not None:
        facts.append(f"an index of {counted(len(index), 'image')}")
    facts += unfinished_notes(embedder.unfinished)
    return (
        f"<header><h1>{_text(embedder.path.name)}</h1><p>{escape(' · '.join(facts))}</p>"
        f"<p>Drop a {FORMATS} of up to {MAX_BYTES >> 20} MiB. It stays on this machine.</p></header>"
    )


def _stated_accuracy(embedder: Embedder) -> str:
    probe = embedder.about.probe if embedder.about is not None else {}
    accuracy = probe.get("accuracy")
    return f", {100 * accuracy:.1f}\u00a0% right on its test images" if isinstance(accuracy, float) else ""


def require_gradio() -> Any:
    """The gradio module; PlatformError with the line that installs it."""
    try:
        import gradio
    except ImportError as error:
        raise PlatformError("the page needs gradio, which is not installed", saw=str(error), fix=INSTALL) from error
    return gradio


@contextmanager
def start_page(service: Service, host: str = "127.0.0.1", port: int = 7860) -> Iterator[str]:
    """Serves the page while the context lasts; gives its address. Uploads go into a folder that ends with it.

    Raises:
        PlatformError: gradio is missing, or the port is taken.
        UsageError: a port that cannot be.
    """
    if not 0 < port < 1 << 16:
        raise UsageError("a port is 1 to 65535", saw=port, fix="--port 7860")
    with tempfile.TemporaryDirectory(prefix="simclr-engine-serve-") as folder, _own_environment(folder):
        gradio = require_gradio()
        page, look = _build(gradio, service, Path(folder).resolve())
        try:
            _, address, _ = page.launch(
                server_name=host,
                server_port=port,
                share=False,
                inbrowser=False,
                quiet=True,
                prevent_thread_lock=True,
                show_error=True,
                allowed_paths=[],
                max_file_size=UPLOAD_BYTES,
                footer_links=[],
                run_history=False,
                enable_monitoring=False,
                ssr_mode=False,
                pwa=False,
                mcp_server=False,
                app_kwargs={"middleware": _middleware(host), "docs_url": None, "redoc_url": None, "openapi_url": None},
                **look,
            )
        except OSError as error:
            page.close(verbose=False)
            raise PlatformError(
                "the page cannot be served there", saw=f"{host}:{port}: {error}", fix="choose another with --port"
            ) from error
        try:
            yield address
        finally:
            page.close(verbose=False)


@contextmanager
def _own_environment(folder: str) -> Iterator[None]:
    """Gradio's settings are ours alone inside: no variable of the user's opens a path or a tunnel."""
    before = {k: v for k, v in os.environ.items() if k.startswith("GRADIO_") or k == "HF_HUB_DISABLE_TELEMETRY"}
    for name in before:
        del os.environ[name]
    ours = {"GRADIO_ANALYTICS_ENABLED": "False", "HF_HUB_DISABLE_TELEMETRY": "1", "GRADIO_TEMP_DIR": folder}
    os.environ.update(ours)
    try:
        yield
    finally:
        for name in ours:
            os.environ.pop(name, None)
        os.environ.update(before)


def _middleware(host: str) -> list[Any]:
    """The content policy on every answer, and no answer under a foreign name where only this machine is served."""
    from starlette.middleware import Middleware
    from starlette.middleware.trustedhost import TrustedHostMiddleware

    found = [Middleware(_WithPolicy)]
    if host in LOOPBACK:
        found.append(Middleware(TrustedHostMiddleware, allowed_hosts=["127.0.0.1", "localhost", "[::1]"]))
    return found


class _WithPolicy:
    """Adds headers to every HTTP answer (ASGI)."""

    HEADERS = (
        (b"content-security-policy", CONTENT_POLICY.encode()),
        (b"x-content-type-options", b"nosniff"),
        (b"referrer-policy", b"no-referrer"),
    )

    def __init__(self, app: Any) -> None:
        self._app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        async def with_policy(message: Any) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message.get("headers", []), *self.HEADERS]
            await send(message)

        await self._app(scope, receive, with_policy if scope["type"] == "http" else send)


def _build(gradio: Any, service: Service, uploads: Path) -> tuple[Any, dict[str, Any]]:
    """The page, and what `launch` takes of its look."""
    named, compared = service.embedder.predict is not None, service.index is not None
    with gradio.Blocks(title="simclr-engine", analytics_enabled=False, delete_cache=(60, 300)) as page:
        gradio.HTML(headline(service.embedder, service.index), elem_id="head", padding=False)
        with gradio.Row(equal_height=False):
            with gradio.Column(min_width=280):
                upload = _upload_box(gradio, uploads)(
                    label="Your image", sources=["upload", "clipboard"], buttons=[], height=320, elem_id="upload"
                )
                said = gradio.HTML("", elem_id="said", padding=False, visible=False)
            with gradio.Column(min_width=280):
                classes = gradio.Label(label="Class", num_top_classes=SHOWN_CLASSES, elem_id="classes", visible=named)
        near = gradio.HTML("", elem_id="near", padding=False, visible=False)
        chart = gradio.HTML(service.draw_map(), elem_id="map", padding=False, visible=compared)
        outputs = [upload, said, classes, near, chart]
        how = {"show_progress": "minimal", "concurrency_limit": 1}
        respond = _respond(service, gradio)
        upload.upload(respond, upload, outputs, api_name="classify", **how)
        upload.clear(lambda: respond(None), None, outputs, api_name=False, **how)
    return page, {"theme": _theme(gradio), "css": STYLE.read_text("utf-8")}


def _respond(service: Service, gradio: Any) -> Callable[[str | None], tuple[Any, ...]]:
    def block(html: str) -> Any:
        """An HTML block that takes no room while it is empty."""
        return gradio.HTML(html, visible=bool(html))

    def respond(path: str | None) -> tuple[Any, ...]:
        """What the page shows of an uploaded file; of one that cannot be read, the reason and nothing else."""
        cause = ""
        if path is not None:
            try:
                answer = service.answer(Path(path))
            except EngineError as error:
                cause = f"{error.cause[:1].upper()}{error.cause[1:]}."
            else:
                near = block(gallery(answer.neighbours, answer.itself))
                return gradio.skip(), block(""), dict(answer.classes) or None, near, service.draw_map(answer.place)
        return None, block(notice(cause) if cause else ""), None, block(""), service.draw_map()

    return respond


def _upload_box(gradio: Any, uploads: Path) -> type[Any]:
    """Gradio's image box that hands `decode_image` the file as it came, and nothing else that is on the machine or not.

    A class, since Gradio makes the box anew from its class whenever an answer has touched it.
    """
    # Gradio writes a stub file beside the module of any class derived from its components; ours would be in a package.
    with mock.patch("gradio.component_meta.create_or_modify_pyi"):

        class UploadBox(gradio.Image):
            is_template = True  # in the browser it is what its parent is

            def preprocess(self, payload: Any) -> str | None:
                if payload is None:
                    return None
                path = Path(payload.path or "/").resolve()
                if not path.is_relative_to(uploads) or not path.is_file():
                    raise gradio.Error("Only an uploaded file is read.")
                return str(path)

            async def async_move_resource_to_block_cache(self, address: Any) -> Any:
                if str(address).lower().startswith(("http:", "https:", "data:")):
                    raise gradio.Error("Addresses are not fetched: upload the file itself.")
                if (
                    address is not None and Path(address).is_dir()
                ):  # Gradio would note it as a file to tidy up, and fail
                    raise gradio.Error("Only an uploaded file is read.")
                return await super().async_move_resource_to_block_cache(address)

    return UploadBox


def _theme(gradio: Any) -> Any:
    """The report's colours and the system's own fonts: none is fetched."""
    sans = ["system-ui", "-apple-system", "Segoe UI", "Roboto", "Noto Sans", "DejaVu Sans", "sans-serif"]
    mono = ["ui-monospace", "SFMono-Regular", "Menlo", "Consolas", "DejaVu Sans Mono", "monospace"]
    return gradio.themes.Default(primary_hue="blue", neutral_hue="slate", font=sans, font_mono=mono).set(
        body_background_fill="#f5f7fa",
        body_background_fill_dark="#0d1117",
        block_background_fill="#ffffff",
        block_background_fill_dark="#161b22",
        block_border_color="#dfe4eb",
        block_border_color_dark="#2b333e",
        block_radius="14px",
        block_label_background_fill="#ffffff",
        block_label_background_fill_dark="#161b22",
    )
