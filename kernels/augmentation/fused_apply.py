"""The augmentation kernel: one program makes one view, from the stored bytes to the finished numbers.

A view lives in registers as three planes, flat, so that any size wastes little of a power of two. Large views are made
window by window; the mean gray that contrast needs is then found in a first round over the same windows. That computes
the crop twice, and needs neither a second launch nor memory between two.

`eager` says what each operation is; here is only what differs.
"""

# mypy: disallow-untyped-defs=False, disallow-incomplete-defs=False
# (Triton gives the arguments of a kernel their types.)
from __future__ import annotations

import triton
import triton.language as tl

from .eager import GRAY_WEIGHTS
from .fused_draw import BRIGHTNESS, FLIP, GRAY, JITTER_ON, ORDER, ROW, SIGMA, H, W, X, Y
from .table import JITTER_ORDERS

RED, GREEN, BLUE = map(tl.constexpr, GRAY_WEIGHTS)


def _packed(numbers: list[int]) -> tl.constexpr:
    """Numbers below 4, two bits each: a table that is one constant."""
    return tl.constexpr(sum(number << 2 * k for k, number in enumerate(numbers)))


FIRST, SECOND, THIRD, FOURTH = (_packed(list(step)) for step in zip(*JITTER_ORDERS, strict=True))
BEFORE_CONTRAST = _packed([order.index(1) for order in JITTER_ORDERS])  # how many operations come before it


@triton.jit
def _unit(x):
    return tl.minimum(tl.maximum(x, 0.0), 1.0)


@triton.jit
def _gray(r, g, b):
    return r * RED + g * GREEN + b * BLUE


@triton.jit
def _looked_up(PACKED: tl.constexpr, place):
    return ((tl.full((), PACKED, tl.int64) >> (2 * place)) & 3).to(tl.int32)


@triton.jit
def _two_taps(out, length, SIZE: tl.constexpr):
    """Which two pixels of the crop an output pixel lies between, and the share of the second.

    Positions are whole numbers of 1 / (2 · SIZE) pixels, so that the share is exact at any size.
    """
    position = (2 * out + 1) * length - SIZE  # above −2 · SIZE
    below = (position + 2 * SIZE) // (2 * SIZE) - 1
    share = (position - below * (2 * SIZE)).to(tl.float32) * (1 / (2 * SIZE))
    return tl.maximum(below, 0), tl.minimum(below + 1, length - 1), share


@triton.jit
def _enlarged_channel(upper, lower, left, right, down, across, inside):
    a = tl.load(upper + left, mask=inside, other=0).to(tl.float32)
    b = tl.load(upper + right, mask=inside, other=0).to(tl.float32)
    c = tl.load(lower + left, mask=inside, other=0).to(tl.float32)
    d = tl.load(lower + right, mask=inside, other=0).to(tl.float32)
    top = a + (b - a) * across
    bottom = c + (d - c) * across
    return (top + (bottom - top) * down) * (1 / 255)


@triton.jit
def _enlarged(corner, h, w, out_y, out_x, inside, IMAGE: tl.constexpr, SIZE: tl.constexpr):
    """A crop no larger than the view: two taps per axis, the same as torchvision's with or without antialiasing."""
    upper, lower, down = _two_taps(out_y, h, SIZE)
    left, right, across = _two_taps(out_x, w, SIZE)
    upper, lower = corner + upper * (3 * IMAGE), corner + lower * (3 * IMAGE)
    left, right = left * 3, right * 3
    r = _enlarged_channel(upper, lower, left, right, down, across, inside)
    g = _enlarged_channel(upper + 1, lower + 1, left, right, down, across, inside)
    b = _enlarged_channel(upper + 2, lower + 2, left, right, down, across, inside)
    return r, g, b


@triton.jit
def _first_tap(out, length, IMAGE: tl.constexpr, SIZE: tl.constexpr):
    """The first pixel of the crop (perhaps before its edge) that the triangle over an output pixel reaches.

    Pixel j counts where |(2j + 1) · SIZE − centre| < 2 · max(length, SIZE), centre = (2 · out + 1) · length: whole
    numbers again. At most ⌈2 · max(length, SIZE) / SIZE⌉ pixels do.
    """
    centre = (2 * out + 1) * length
    start = centre - 2 * tl.maximum(length, SIZE) + SIZE
    return (start + 2 * SIZE * IMAGE) // (2 * SIZE) - IMAGE, centre  # IMAGE: no division of a negative number


@triton.jit
def _tap(j, centre, length, SIZE: tl.constexpr):
    """The triangle's height over pixel j, not normalised: a whole number, 0 outside the crop."""
    height = 2 * tl.maximum(length, SIZE) - tl.abs((2 * j + 1) * SIZE - centre)
    return tl.where((j >= 0) & (j < length), tl.maximum(height, 0), 0).to(tl.float32)


@triton.jit
def _shrunk(corner, h, w, out_y, out_x, inside, IMAGE: tl.constexpr, SIZE: tl.constexpr):
    """A crop of any size: antialiased along the axes that are shrunk. The number of taps is the crop's own."""
    first_y, centre_y = _first_tap(out_y, h, IMAGE, SIZE)
    first_x, centre_x = _first_tap(out_x, w, IMAGE, SIZE)
    taps_y = (2 * tl.maximum(h, SIZE) + SIZE - 1) // SIZE
    taps_x = (2 * tl.maximum(w, SIZE) + SIZE - 1) // SIZE
    nothing = tl.zeros_like(centre_x).to(tl.float32)
    r, g, b, weights_y, weights_x = nothing, nothing, nothing, nothing, nothing
    for k in range(taps_x):
        weights_x += _tap(first_x + k, centre_x, w, SIZE)
    for n in range(taps_y):
        j = first_y + n
        weight_y = _tap(j, centre_y, h, SIZE)
        weights_y += weight_y
        line = corner + tl.minimum(tl.maximum(j, 0), h - 1) * (3 * IMAGE)
        row_r, row_g, row_b = nothing, nothing, nothing
        for k in range(taps_x):
            i = first_x + k
            weight_x = _tap(i, centre_x, w, SIZE)
            at = line + tl.minimum(tl.maximum(i, 0), w - 1) * 3
            row_r += weight_x * tl.load(at, mask=inside, other=0).to(tl.float32)
            row_g += weight_x * tl.load(at + 1, mask=inside, other=0).to(tl.float32)
            row_b += weight_x * tl.load(at + 2, mask=inside, other=0).to(tl.float32)
        r += weight_y * row_r
        g += weight_y * row_g
        b += weight_y * row_b
    scale = 1 / (tl.maximum(weights_y * weights_x, 1.0) * 255)  # below 1 only beside the window
    return r * scale, g * scale, b * scale


@triton.jit
def _hue(r, g, b, turn):
    """`eager.hue_`, by comparisons."""
    upper, lower = tl.maximum(g, b), tl.minimum(g, b)
    high, middle = tl.maximum(r, upper), tl.minimum(r, upper)
    low = tl.minimum(middle, lower)
    chroma = high - low
    sector = tl.where(r < upper, tl.where(g < b, 4.0, -2.0), tl.where(g < b, -6.0, 0.0))
    hue = tl.abs((middle - lower) / tl.maximum(chroma, 1e-30) + sector) + 6 * turn
    hue -= 6 * tl.floor(hue * (1 / 6))
    r = low + chroma * _unit(tl.abs(hue - 3) - 1)
    g = low + chroma * _unit(2 - tl.abs(hue - 2))
    b = low + chroma * _unit(2 - tl.abs(hue - 4))
    return r, g, b


@triton.jit
def _jittered(r, g, b, factors, operations, steps, pivot, counted, SIZE: tl.constexpr, PIVOT_KNOWN: tl.constexpr):
    """The first `steps` operations of an order. A program has one view, so its branches are uniform.

    Args:
        factors: where the row's brightness is; contrast, saturation and hue follow.
        operations: two bits for each step: which operation.
        pivot: of contrast, if PIVOT_KNOWN; otherwise it is the mean gray of the pixels `counted`, all the view has.
    """
    for step in range(steps):
        operation = (operations >> (2 * step)) & 3
        factor = tl.load(factors + operation)
        if operation == 0:
            r, g, b = _unit(r * factor), _unit(g * factor), _unit(b * factor)
        elif operation == 1:
            if PIVOT_KNOWN:
                rest = (1 - factor) * pivot
            else:
                rest = (1 - factor) * (tl.sum(tl.where(counted, _gray(r, g, b), 0.0)) * (1 / (SIZE * SIZE)))
            r, g, b = _unit(r * factor + rest), _unit(g * factor + rest), _unit(b * factor + rest)
        elif operation == 2:
            gray = (1 - factor) * _gray(r, g, b)
            r, g, b = _unit(r * factor + gray), _unit(g * factor + gray), _unit(b * factor + gray)
        else:
            r, g, b = _hue(r, g, b, factor)
    return r, g, b


@triton.jit
def _reflected(position, SIZE: tl.constexpr):
    """−1 is 1, SIZE is SIZE − 2."""
    return (SIZE - 1) - tl.abs((SIZE - 1) - tl.abs(position))


@triton.jit
def _bell(offset, sigma):
    ratio = offset / tl.maximum(sigma, 1e-3)
    return tl.exp(-0.5 * ratio * ratio)


@triton.jit
def _blurred(
    r, g, b, sigma, y, x, top, left,
    SIZE: tl.constexpr, WINDOW: tl.constexpr, BLOCK: tl.constexpr, REACH: tl.constexpr,
):  # fmt: skip
    """Along x and then along y. Neighbours come through shared memory (`tl.gather`).

    Right for the pixels whose neighbours, reflected at the view's edges, lie in the window; the others are not kept.
    """
    row, column = y - top, x - left
    weights = 0.0
    for offset in range(-REACH, REACH + 1):
        weights += _bell(offset, sigma)
    across_r, across_g, across_b = tl.zeros_like(r), tl.zeros_like(r), tl.zeros_like(r)
    for offset in range(-REACH, REACH + 1):
        weight = _bell(offset, sigma) / weights
        near = tl.minimum(tl.maximum(_reflected(x + offset, SIZE) - left, 0), WINDOW - 1)
        at = tl.minimum(row * WINDOW + near, BLOCK - 1)
        across_r += weight * tl.gather(r, at, 0)
        across_g += weight * tl.gather(g, at, 0)
        across_b += weight * tl.gather(b, at, 0)
    r, g, b = tl.zeros_like(r), tl.zeros_like(r), tl.zeros_like(r)
    for offset in range(-REACH, REACH + 1):
        weight = _bell(offset, sigma) / weights
        near = tl.minimum(tl.maximum(_reflected(y + offset, SIZE) - top, 0), WINDOW - 1)
        at = near * WINDOW + column
        r += weight * tl.gather(across_r, at, 0)
        g += weight * tl.gather(across_g, at, 0)
        b += weight * tl.gather(across_b, at, 0)
    return r, g, b


@triton.jit
def _along(number, INNER: tl.constexpr, REACH: tl.constexpr, ROOM: tl.constexpr):
    """Along one axis: the first pixel that window `number` keeps, and the first that it computes.

    It computes REACH pixels more on either side, but none outside the view (ROOM is SIZE − WINDOW).
    """
    kept = number * INNER
    return kept, tl.minimum(tl.maximum(kept - REACH, 0), ROOM)


@triton.jit
def _window(
    number, corner, h, w, flip, pixel, inside, IMAGE: tl.constexpr, SIZE: tl.constexpr,
    WINDOW: tl.constexpr, INNER: tl.constexpr, REACH: tl.constexpr,
):  # fmt: skip
    """The crop in one window: its colours, each pixel's place in the view, the window's corner, and which are kept."""
    COUNT: tl.constexpr = (SIZE + INNER - 1) // INNER
    kept_y, top = _along(number // COUNT, INNER, REACH, SIZE - WINDOW)
    kept_x, left = _along(number % COUNT, INNER, REACH, SIZE - WINDOW)
    y, x = top + pixel // WINDOW, left + pixel % WINDOW
    out_x = tl.where(flip, SIZE - 1 - x, x)
    if IMAGE > SIZE:
        r, g, b = _shrunk(corner, h, w, y, out_x, inside, IMAGE, SIZE)
    else:
        r, g, b = _enlarged(corner, h, w, y, out_x, inside, IMAGE, SIZE)
    kept = inside & (y >= kept_y) & (y < kept_y + INNER) & (x >= kept_x) & (x < kept_x + INNER)
    return r, g, b, y, x, top, left, kept


@triton.jit(
    # A last, smaller batch, or a table at an odd address, must not compile again: least of all within a graph capture.
    do_not_specialize=["batch"],
    do_not_specialize_on_alignment=["images", "drawn", "views"],
)
def apply(
    images, drawn, views, batch, mean_r, mean_g, mean_b, scale_r, scale_g, scale_b,
    IMAGE: tl.constexpr, SIZE: tl.constexpr, WINDOW: tl.constexpr, INNER: tl.constexpr, BLOCK: tl.constexpr,
    REACH: tl.constexpr, WITH_JITTER: tl.constexpr, WITH_GRAY: tl.constexpr,
):  # fmt: skip
    """View `program_id(0)`.

    Args:
        images: uint8 `[batch, IMAGE, IMAGE, 3]`, contiguous.
        drawn: float32 `[V·batch, ROW]`, contiguous.
        views: `[V·batch, SIZE, SIZE, 3]`, contiguous: what is called `[V·batch, 3, SIZE, SIZE]`, channels_last.
        mean_r … scale_b: of the normalisation (x − mean) · scale.
        WINDOW: side of the square that is computed at once; SIZE if that is the view.
        INNER: side of the part that is kept: SIZE, or at most WINDOW − 2 · REACH.
        BLOCK: the power of two from WINDOW².
        REACH: of the blur on either side, 0 without blur.
    """
    COUNT: tl.constexpr = (SIZE + INNER - 1) // INNER
    number = tl.program_id(0)
    row = drawn + number.to(tl.int64) * ROW
    view = views + number.to(tl.int64) * (SIZE * SIZE * 3)
    h, w = tl.load(row + H).to(tl.int32), tl.load(row + W).to(tl.int32)
    corner = images + (number % batch).to(tl.int64) * (IMAGE * IMAGE * 3)
    corner += (tl.load(row + Y).to(tl.int32) * IMAGE + tl.load(row + X).to(tl.int32)) * 3
    flip = tl.load(row + FLIP) > 0

    pixel = tl.arange(0, BLOCK)
    inside = pixel < WINDOW * WINDOW
    steps, operations, pivot = 0, 0, 0.0
    if WITH_JITTER:
        order = tl.load(row + ORDER).to(tl.int32)
        operations = _looked_up(FIRST, order) | (_looked_up(SECOND, order) << 2)
        operations |= (_looked_up(THIRD, order) << 4) | (_looked_up(FOURTH, order) << 6)
        jitter_on = tl.load(row + JITTER_ON) > 0
        steps = tl.where(jitter_on, 4, 0)
        if COUNT > 1:
            before = _looked_up(BEFORE_CONTRAST, order)
            grays = tl.zeros((BLOCK,), tl.float32)
            for window in range(tl.where(jitter_on, COUNT * COUNT, 0)):
                r, g, b, y, x, top, left, kept = _window(
                    window, corner, h, w, flip, pixel, inside, IMAGE, SIZE, WINDOW, INNER, REACH
                )
                r, g, b = _jittered(r, g, b, row + BRIGHTNESS, operations, before, pivot, inside, SIZE, True)
                grays += tl.where(kept, _gray(r, g, b), 0.0)
            pivot = tl.sum(grays) * (1 / (SIZE * SIZE))

    for window in range(COUNT * COUNT):
        r, g, b, y, x, top, left, kept = _window(
            window, corner, h, w, flip, pixel, inside, IMAGE, SIZE, WINDOW, INNER, REACH
        )
        if WITH_JITTER:
            r, g, b = _jittered(r, g, b, row + BRIGHTNESS, operations, steps, pivot, inside, SIZE, COUNT > 1)
        if WITH_GRAY:  # noqa: SIM102 (known when compiled, unlike the next)
            if tl.load(row + GRAY) > 0:
                r = _gray(r, g, b)
                g, b = r, r
        if REACH > 0:
            sigma = tl.load(row + SIGMA)
            if sigma > 0:
                r, g, b = _blurred(r, g, b, sigma, y, x, top, left, SIZE, WINDOW, BLOCK, REACH)
        # Channels lie side by side, and every thread has all three of its pixel: three stores, each of a third of the
        # same sectors, which the L2 cache puts together before they go to memory. Exchanging them through shared
        # memory first would cost two barriers per view to save cache traffic that is no bottleneck.
        at = view + (y * SIZE + x) * 3
        tl.store(at, ((r - mean_r) * scale_r).to(views.dtype.element_ty), mask=kept)
        tl.store(at + 1, ((g - mean_g) * scale_g).to(views.dtype.element_ty), mask=kept)
        tl.store(at + 2, ((b - mean_b) * scale_b).to(views.dtype.element_ty), mask=kept)
