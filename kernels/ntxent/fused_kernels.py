"""The device code of fused NT-Xent: what one Triton program computes. `fused` says how many run, and how large.

Notation and formulas are those of `chunked`: M = V·B rows, ẑ normalised rows, s_ij = ẑ_i·ẑ_j. Because |s| ≤ 1 the
maximum of the logits is known, so with E_ij = exp((s_ij − 1)/τ) every sum is additive and takes no running maximum:

    ℓ_i  = Σ_{j≠i} E_ij                                     loss_i = log ℓ_i − (mean_{p ∈ pos(i)} s_ip − 1)/τ
    g_i  = Σ_j W_ij ẑ_j                                     W_ij = E_ij (1/ℓ_i + 1/ℓ_j) − 2·1(j ∈ pos(i))/(V−1)
    dz_i = (g_i − ẑ_i (ẑ_i·g_i)) / (M τ ‖z_i‖)

No program waits for another, none adds to what another wrote, and every cell is written once: the result is the same
bit for bit every time, and nothing has to be zeroed first.

`unit` holds ẑ, rounded to the type of the products, in rows padded with zeros to PADDED numbers. The positives are
computed from these rounded vectors too, or they would not cancel against the same pairs in ℓ late in training.
"""

# Triton reads annotations itself: constants are annotated, and nothing else may be.
# mypy: disallow-untyped-defs=False, disallow-incomplete-defs=False

from __future__ import annotations

import triton
import triton.language as tl

EPSILON = tl.constexpr(1e-12)  # as torch.nn.functional.normalize


@triton.jit
def normalise_rows(z):
    """ẑ, max(‖z‖, ε) and whether ‖z‖ is less than ε, for rows `[R, PADDED]` in float32, as `chunked.normalise`."""
    # A maximum drops NaN; comparisons let it through to the result.
    largest = tl.max(tl.abs(z), 1)
    scale = tl.where(largest > 1.0, largest, 1.0)  # keeps the squares finite
    scaled = z / scale[:, None]
    norm = tl.sqrt(tl.sum(scaled * scaled, 1))
    floor = EPSILON / scale
    short = norm < floor
    norm = tl.where(short, floor, norm)
    return scaled / norm[:, None], scale * norm, short


@triton.jit
def round_to_tf32(x):
    """To the nearest number of ten mantissa bits: tensor cores would cut the other bits off, which biases sums."""
    bits = (x.to(tl.int32, bitcast=True) + 0x1000) & -0x2000
    return tl.where(x == x, bits.to(tl.float32, bitcast=True), x)  # a NaN of all ones would wrap around to −0


@triton.jit(do_not_specialize=["batch", "views"])
def prepare(
    z, unit, positive, batch, views,
    WIDTH: tl.constexpr, PADDED: tl.constexpr, SAMPLES: tl.constexpr, ROUND_TO_TF32: tl.constexpr,
):  # fmt: skip
    """z `[V·B, WIDTH]` → ẑ `[V·B, PADDED]`, and for each sample the mean of s over its pairs of views `[B]`.

    One program: all views of SAMPLES samples.
    """
    sample = tl.program_id(0) * SAMPLES + tl.arange(0, SAMPLES)
    d = tl.arange(0, PADDED)[None, :]
    inside = (sample < batch)[:, None]
    before = tl.zeros((SAMPLES, PADDED), dtype=tl.float32)
    pairs = tl.zeros((SAMPLES,), dtype=tl.float32)
    for view in range(views):
        row = (view * batch + sample).to(tl.int64)[:, None]
        vector, _, _ = normalise_rows(tl.load(z + row * WIDTH + d, mask=inside & (d < WIDTH), other=0.0).to(tl.float32))
        if ROUND_TO_TF32:
            vector = round_to_tf32(vector)
        rounded = vector.to(unit.dtype.element_ty)
        tl.store(unit + row * PADDED + d, rounded, mask=inside)
        # Each view against the sum of those before it: every pair once, and nothing cancels.
        pairs += tl.sum(before * rounded.to(tl.float32), 1)
        before += rounded.to(tl.float32)
    tl.store(positive + sample, pairs / (views * (views - 1) / 2), mask=sample < batch)


@triton.jit
def unit_rows(unit, start, end, COUNT: tl.constexpr, PADDED: tl.constexpr):
    """ẑ of COUNT rows from `start` on, zeros from `end` on. Only the scalar part of the address takes 64 bits."""
    offset = tl.arange(0, COUNT)
    block = unit + tl.cast(start, tl.int64) * PADDED
    inside = (start + offset < end)[:, None]
    return tl.load(block + offset[:, None] * PADDED + tl.arange(0, PADDED)[None, :], mask=inside, other=0.0)


@triton.jit
def similarities(
    held, others, unit, row_start, row_end, column_start, column_end,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, PADDED: tl.constexpr, CHUNK: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """s of ROWS rows from row_start on and COLUMNS columns from column_start on; 0 from row_end and column_end on.

    Tensor cores take the product of `held` and `others`, the ẑ of these rows and columns. Without them operands live in
    registers, where only CHUNK of the PADDED numbers fit at a time: these are read again, from the caches.
    """
    if CHUNK == PADDED:
        s = tl.dot(held, tl.trans(others), input_precision=PRECISION)
    else:
        r = tl.arange(0, ROWS)[:, None]
        c = tl.arange(0, COLUMNS)[:, None]
        left = unit + tl.cast(row_start, tl.int64) * PADDED + r * PADDED
        right = unit + tl.cast(column_start, tl.int64) * PADDED + c * PADDED
        s = tl.zeros((ROWS, COLUMNS), dtype=tl.float32)
        for k in range(0, PADDED, CHUNK):
            d = k + tl.arange(0, CHUNK)[None, :]
            a = tl.load(left + d, mask=row_start + r < row_end, other=0.0)
            b = tl.load(right + d, mask=column_start + c < column_end, other=0.0)
            s = tl.dot(a, tl.trans(b), s, input_precision=PRECISION)
    return s


@triton.jit(do_not_specialize=["rows", "tiles"])
def symmetric_sums(
    unit, part, rows, tiles, sharpness,
    BLOCK: tl.constexpr, PADDED: tl.constexpr, CHUNK: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Sums of E over BLOCK columns at a time, `part[tiles, M]`: ℓ_i = Σ_t part[t, i]. sharpness = log2(e)/τ.

    One program: one unordered pair {i, j} of the `tiles` blocks. E is symmetric, so its row sums belong to the rows of
    i (cell j) and its column sums to the rows of j (cell i): half the products, half the exponentials, each cell once.
    """
    # Blocks on a circle: i and the one `distance` further on, for distances up to half the circle, where for an even
    # number of blocks the grid stops half-way round, or each pair would come twice.
    i = tl.program_id(0) % tiles
    j = (i + tl.program_id(0) // tiles) % tiles
    held = unit_rows(unit, i * BLOCK, rows, BLOCK, PADDED)
    others = unit_rows(unit, j * BLOCK, rows, BLOCK, PADDED)
    s = similarities(
        held, others, unit, i * BLOCK, rows, j * BLOCK, rows, BLOCK, BLOCK, PADDED, CHUNK, PRECISION
    )  # fmt: skip
    r = i * BLOCK + tl.arange(0, BLOCK)
    c = j * BLOCK + tl.arange(0, BLOCK)
    e = tl.exp2(s * sharpness - sharpness)
    if (i == j) | (tl.maximum(i, j) == tiles - 1):  # only these tiles hold what does not count
        e = tl.where((r[:, None] != c[None, :]) & (r < rows)[:, None] & (c < rows)[None, :], e, 0.0)
    tl.store(part + tl.cast(j, tl.int64) * rows + r, tl.sum(e, 1), mask=r < rows)
    if i != j:
        tl.store(part + tl.cast(i, tl.int64) * rows + c, tl.sum(e, 0), mask=c < rows)


@triton.jit(do_not_specialize=["rows", "columns", "first"])
def row_sums(
    unit, part, rows, columns, first, sharpness,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, PADDED: tl.constexpr, CHUNK: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """ℓ of `rows` rows from `first` on against all `columns`, `[rows]`: for many rows, or for one rank's.

    One program: ROWS rows, COLUMNS columns at a time.
    """
    start = tl.program_id(0) * ROWS
    r = start + tl.arange(0, ROWS)
    held = unit_rows(unit, first + start, first + rows, ROWS, PADDED)
    total = tl.zeros((ROWS,), dtype=tl.float32)
    for column in range(0, columns, COLUMNS):
        others = unit_rows(unit, column, columns, COLUMNS, PADDED)
        s = similarities(
            held, others, unit, first + start, first + rows, column, columns,
            ROWS, COLUMNS, PADDED, CHUNK, PRECISION,
        )  # fmt: skip
        e = tl.exp2(s * sharpness - sharpness)
        # Only tiles on the diagonal and at the end hold what does not count.
        if ((column + COLUMNS > first + start) & (column < first + start + ROWS)) | (column + COLUMNS > columns):
            c = column + tl.arange(0, COLUMNS)
            e = tl.where((first + r[:, None] != c[None, :]) & (c < columns)[None, :], e, 0.0)
        total += tl.sum(e, 1)
    tl.store(part + r, total, mask=r < rows)


@triton.jit(do_not_specialize=["batch", "views", "parts"])
def finish(
    part, positive, inverse, loss, batch, views, parts, inverse_temperature,
    SAMPLES: tl.constexpr, PARTS: tl.constexpr,
):  # fmt: skip
    """part `[parts, V·B]`, positive `[B]` → inverse `[V·B]`, which is 1/ℓ, and each program's share of the mean loss.

    One program: SAMPLES samples at a time, and so on by the number of programs.
    """
    rows = views * batch
    t = tl.arange(0, PARTS)[:, None]
    total = tl.zeros((SAMPLES,), dtype=tl.float32)
    for start in range(tl.program_id(0) * SAMPLES, batch, tl.num_programs(0) * SAMPLES):
        sample = start + tl.arange(0, SAMPLES)
        inside = sample < batch
        logarithms = tl.zeros((SAMPLES,), dtype=tl.float32)
        for view in range(views):
            row = view * batch + sample
            sums = tl.zeros((SAMPLES,), dtype=tl.float32)
            for first in range(0, parts, PARTS):
                cell = part + (first + t).to(tl.int64) * rows + row[None, :]
                sums += tl.sum(tl.load(cell, mask=(first + t < parts) & inside[None, :], other=0.0), 0)
            tl.store(inverse + row, 1.0 / sums, mask=inside)
            logarithms += tl.log(sums)
        similarity = tl.load(positive + sample, mask=inside, other=0.0)
        total += tl.where(inside, logarithms / views - (similarity - 1.0) * inverse_temperature, 0.0)
    tl.store(loss + tl.program_id(0), tl.sum(total, 0) / batch)


@triton.jit(do_not_specialize=["batch", "rows", "columns", "first"])
def gradients(
    z, unit, inverse, grad_output, gradient, batch, rows, columns, first, sharpness, pull, factor,
    WIDTH: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, PADDED: tl.constexpr, CHUNK: tl.constexpr,
    PRECISION: tl.constexpr, WEIGHT_SCALE: tl.constexpr,
):  # fmt: skip
    """dz of `rows` rows `[rows, WIDTH]`, which are those from `first` on in unit `[columns, PADDED]` and in inverse.

    pull is 2/(V−1), factor 1/(M τ) divided by WEIGHT_SCALE: |W| ≤ 2 almost always falls into the subnormal numbers of
    fp16 when M is large, so the weights are made larger there (a power of two: exact).

    One program: ROWS rows, COLUMNS columns at a time. Rows from the own `first` to `first + rows` are of one rank: only
    among these are positives.
    """
    start = tl.program_id(0) * ROWS
    r = start + tl.arange(0, ROWS)
    held = unit_rows(unit, first + start, first + rows, ROWS, PADDED)
    row_inverse = tl.load(inverse + first + r, mask=r < rows, other=0.0) * WEIGHT_SCALE
    sums = tl.zeros((ROWS, PADDED), dtype=tl.float32)
    for column in range(0, columns, COLUMNS):
        others = unit_rows(unit, column, columns, COLUMNS, PADDED)
        s = similarities(
            held, others, unit, first + start, first + rows, column, columns,
            ROWS, COLUMNS, PADDED, CHUNK, PRECISION,
        )  # fmt: skip
        c = column - first + tl.arange(0, COLUMNS)
        column_inverse = tl.load(inverse + first + c, mask=first + c < columns, other=0.0) * WEIGHT_SCALE
        weights = tl.exp2(s * sharpness - sharpness) * (row_inverse[:, None] + column_inverse[None, :])
        # Nearly all tiles hold no pair of one sample, itself included, and are spared the comparisons: among their
        # differences c − r, the largest of which is `last`, is no multiple of B.
        last = column - first - start + COLUMNS - 1
        own = (column + COLUMNS > first) & (column < first + rows)
        if (own & ((last + rows) % batch < ROWS + COLUMNS - 1)) | (column + COLUMNS > columns):
            sample = tl.where((c >= 0) & (c < rows), c % batch, -1)
            # The pull is subtracted in fp32: late in training the difference is far below either.
            weights = tl.where((r % batch)[:, None] == sample[None, :], weights - pull * WEIGHT_SCALE, weights)
            # Past the end too, where s is 0 and not the least there is: 1/ℓ_i may be large enough for 0 · ∞ in fp16.
            counts = (r[:, None] != c[None, :]) & (first + c < columns)[None, :]
            weights = tl.where(counts, weights, 0.0)
        sums = tl.dot(weights.to(others.dtype), others, sums, input_precision=PRECISION)
    # Through the normalisation with the vectors that were not rounded: most of g lies along ẑ late in training.
    d = tl.arange(0, PADDED)[None, :]
    place = r.to(tl.int64)[:, None] * WIDTH + d
    inside = (r < rows)[:, None] & (d < WIDTH)
    vector, norm, short = normalise_rows(tl.load(z + place, mask=inside, other=0.0).to(tl.float32))
    g = sums * (tl.load(grad_output).to(tl.float32) * factor)
    along = tl.where(short, 0.0, tl.sum(g * vector, 1))
    tl.store(
        gradient + place, ((g - vector * along[:, None]) / norm[:, None]).to(gradient.dtype.element_ty), mask=inside
    )
