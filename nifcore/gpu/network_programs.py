"""Triton programs for networks: forward, loss and backward on one block of pixels.

A program takes a block of pixels 16 columns wide of one network and walks down it in strips of a
few rows. Every layer is a matrix product over (pixels, features), widths padded to powers of two of
at least 16; weights come from the nearest cache and pass through shared memory into the tensor
cores. Phases are float32 with a range reduction of their own.

Registers are what is short. The first layer, the widest, is worked through in chunks of features
and never kept: its sums are two loads and an addition. Of the others only the sums before the sines
are kept for the backward pass; sines and cosines are computed again. Gradients of the inner layers
gather in registers over the strips and are written once per program; those of the first layer are
sums over rows and over columns, each written by the one program that owns them. No two programs
write to one place, so the same input gives the same bits.

Padded features have zero weights: their sums are zero, their sines too, and nothing comes back
through them. Pixels outside the picture get a zero slope.
"""

# ruff: noqa: RUF005  Triton adds tuples; it does not unpack them.
import triton
import triton.language as tl

COLUMNS = 16
"""Columns of a block: the first layer's column sums are kept for so many."""
LOSS_GIVEN, RENDER = 3, 4
"""What a launch does, besides the pixel losses 0 (MSE), 1 (L1) and 2 (log cosh)."""


@triton.jit
def _turned(x):
    """Return (s, r) with ``sin x = s sin r`` and r within pi/2, to 2e-7 for |x| up to 400."""
    k = tl.floor(x * 0.3183098861837907 + 0.5)
    # pi in three parts, the first two short enough for exact products
    r = x - k * 3.140625
    r = r - k * 9.67502593994140625e-4
    r = r - k * 1.509957990978376432e-7
    half = k * 0.5
    return 1.0 - 4.0 * (half - tl.floor(half)), r


@triton.jit
def _sine(x):
    s, r = _turned(x)
    t = r * r
    p = 2.590408257674426e-06 * t - 0.00019800857990048826
    p = (p * t + 0.00833289884030819) * t - 0.16666647791862488
    return s * (r + r * t * p)


@triton.jit
def _cosine(x):
    s, r = _turned(x)
    t = r * r
    q = -2.6050761903206876e-07 * t + 2.476012014085427e-05
    q = ((q * t - 0.0013888360699638724) * t + 0.04166663438081741) * t - 0.5
    return s * (1.0 + q * t)


@triton.jit
def _product(a, b, c, PRECISION: tl.constexpr):
    """Return ``a @ b + c``."""
    if PRECISION == "bf16":
        d = tl.dot(a.to(tl.bfloat16), b.to(tl.bfloat16), c)
    else:
        d = tl.dot(a, b, c, input_precision=PRECISION)
    return d


@triton.jit
def _matrix(weights, AT: tl.constexpr, OUT: tl.constexpr, IN: tl.constexpr, PADS: tl.constexpr):
    """Load a weight matrix, (out, in) padded with zeros."""
    o = tl.arange(0, PADS[1])[:, None]
    f = tl.arange(0, PADS[0])[None, :]
    return tl.load(weights + AT + o * IN + f, mask=(o < OUT) & (f < IN), other=0.0)


@triton.jit
def _bias(weights, AT: tl.constexpr, OUT: tl.constexpr, PAD: tl.constexpr):
    o = tl.arange(0, PAD)
    return tl.load(weights + AT + o, mask=o < OUT, other=0.0)


@triton.jit
def _chunk(weights, k: tl.constexpr, WIDTHS: tl.constexpr, PADS: tl.constexpr):
    """Load the matrix that chunk ``k`` of the first features feeds, (second width, chunk)."""
    o = tl.arange(0, PADS[1])[:, None]
    f = k * PADS[0] + tl.arange(0, PADS[0])[None, :]
    inside = (o < WIDTHS[1]) & (f < WIDTHS[0])
    return tl.load(weights + o * WIDTHS[0] + f, mask=inside, other=0.0)


@triton.jit
def _no_gradients(WIDTHS: tl.constexpr, PADS: tl.constexpr, COLUMNS: tl.constexpr):
    """Return zeros for the gradients that a program gathers.

    By chunk of the first features: of the matrix that they feed, and the sums over rows. Then
    the other matrices, and all biases.
    """
    chunks = ()
    columns = ()
    for _ in tl.static_range((WIDTHS[0] + PADS[0] - 1) // PADS[0]):
        chunks = chunks + (tl.zeros((PADS[1], PADS[0]), tl.float32),)
        columns = columns + (tl.zeros((COLUMNS, PADS[0]), tl.float32),)
    matrices = ()
    biases = (tl.zeros((PADS[1],), tl.float32),)
    for i in tl.static_range(1, len(PADS) - 1):
        matrices = matrices + (tl.zeros((PADS[i + 1], PADS[i]), tl.float32),)
        biases = biases + (tl.zeros((PADS[i + 1],), tl.float32),)
    return chunks, columns, matrices, biases


@triton.jit
def _first_sums(
    y_terms, x_terms, r, c, inside, k: tl.constexpr, WIDTH: tl.constexpr, CHUNK: tl.constexpr
):
    """Return chunk ``k`` of the first sums, (pixels, chunk): the row's term plus the column's."""
    f = k * CHUNK + tl.arange(0, CHUNK)[None, :]
    seen = inside[:, None] & (f < WIDTH)
    a = tl.load(y_terms + r[:, None] * WIDTH + f, mask=seen, other=0.0)
    return a + tl.load(x_terms + c[:, None] * WIDTH + f, mask=seen, other=0.0)


@triton.jit
def _forward(
    y_terms,
    x_terms,
    r,
    c,
    inside,
    period,
    weights,
    WIDTHS: tl.constexpr,
    PADS: tl.constexpr,
    PLACES: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Return the sums of all layers after the first, the output last; ``period`` (pixels, 1)."""
    z = tl.zeros((r.shape[0], PADS[1]), tl.float32)
    z += _bias(weights, PLACES[0][1], WIDTHS[1], PADS[1])[None, :]
    for k in tl.static_range((WIDTHS[0] + PADS[0] - 1) // PADS[0]):
        first = _first_sums(y_terms, x_terms, r, c, inside, k, WIDTHS[0], PADS[0])
        matrix = _chunk(weights, k, WIDTHS, PADS)
        z = _product(_sine(period * first), tl.trans(matrix), z, PRECISION)
    sums = (z,)
    for i in tl.static_range(1, len(WIDTHS) - 1):
        matrix = _matrix(weights, PLACES[i][0], WIDTHS[i + 1], WIDTHS[i], (PADS[i], PADS[i + 1]))
        bias = _bias(weights, PLACES[i][1], WIDTHS[i + 1], PADS[i + 1])
        start = tl.zeros((z.shape[0], PADS[i + 1]), tl.float32) + bias[None, :]
        z = _product(_sine(period * z), tl.trans(matrix), start, PRECISION)
        sums = sums + (z,)
    return sums


@triton.jit
def _backward(
    dz,
    period,
    sums,
    y_terms,
    x_terms,
    r,
    c,
    inside,
    weights,
    chunks,
    columns,
    matrices,
    biases,
    row_sums,
    strip_row,
    rows,
    WIDTHS: tl.constexpr,
    PADS: tl.constexpr,
    PLACES: tl.constexpr,
    STRIP: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Return the gradients grown by one strip, and that of the period (pixels,).

    The strip's sums over its columns of the first layer's gradient go to ``row_sums``, as rows from
    ``strip_row`` on.
    """
    grown_matrices = ()
    grown_biases = ()
    d_period = tl.zeros((dz.shape[0],), tl.float32)
    for i in tl.static_range(len(WIDTHS) - 2, 0, -1):
        phase = period * sums[i - 1]
        grown = _product(tl.trans(dz), _sine(phase), matrices[i - 1], PRECISION)
        grown_matrices = (grown,) + grown_matrices
        grown_biases = (biases[i] + tl.sum(dz, 0),) + grown_biases
        matrix = _matrix(weights, PLACES[i][0], WIDTHS[i + 1], WIDTHS[i], (PADS[i], PADS[i + 1]))
        start = tl.zeros((dz.shape[0], PADS[i]), tl.float32)
        dy = _product(dz, matrix, start, PRECISION) * _cosine(phase)
        d_period += tl.sum(sums[i - 1] * dy, 1)
        dz = dy * period
    grown_biases = (biases[0] + tl.sum(dz, 0),) + grown_biases
    grown_chunks = ()
    grown_columns = ()
    row = strip_row + tl.arange(0, STRIP)[:, None]
    for k in tl.static_range((WIDTHS[0] + PADS[0] - 1) // PADS[0]):
        first = _first_sums(y_terms, x_terms, r, c, inside, k, WIDTHS[0], PADS[0])
        phase = period * first
        grown = _product(tl.trans(dz), _sine(phase), chunks[k], PRECISION)
        grown_chunks = grown_chunks + (grown,)
        start = tl.zeros((dz.shape[0], PADS[0]), tl.float32)
        dy = _product(dz, _chunk(weights, k, WIDTHS, PADS), start, PRECISION) * _cosine(phase)
        d_period += tl.sum(first * dy, 1)
        cube = tl.reshape(dy * period, (STRIP, dz.shape[0] // STRIP, PADS[0]))
        grown_columns = grown_columns + (columns[k] + tl.sum(cube, 0),)
        f = k * PADS[0] + tl.arange(0, PADS[0])[None, :]
        mask = (row < rows) & (f < WIDTHS[0])
        tl.store(row_sums + row * WIDTHS[0] + f, tl.sum(cube, 1), mask=mask)
    return grown_chunks, grown_columns, grown_matrices, grown_biases, d_period


@triton.jit
def _store(
    at,
    column_sums,
    chunks,
    columns,
    matrices,
    biases,
    first_column,
    cols,
    WIDTHS: tl.constexpr,
    PADS: tl.constexpr,
    PLACES: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """Store gradients where the weights are found, and the sums over rows by column."""
    column = first_column + tl.arange(0, COLUMNS)[:, None]
    o = tl.arange(0, PADS[1])[:, None]
    for k in tl.static_range(len(chunks)):
        f = k * PADS[0] + tl.arange(0, PADS[0])[None, :]
        mask = (o < WIDTHS[1]) & (f < WIDTHS[0])
        tl.store(at + o * WIDTHS[0] + f, chunks[k], mask=mask)
        mask = (column < cols) & (f < WIDTHS[0])
        tl.store(column_sums + column * WIDTHS[0] + f, columns[k], mask=mask)
    for i in tl.static_range(len(WIDTHS) - 1):
        o = tl.arange(0, PADS[i + 1])
        tl.store(at + PLACES[i][1] + o, biases[i], mask=o < WIDTHS[i + 1])
        if i > 0:
            f = tl.arange(0, PADS[i])[None, :]
            mask = (o[:, None] < WIDTHS[i + 1]) & (f < WIDTHS[i])
            tl.store(at + PLACES[i][0] + o[:, None] * WIDTHS[i] + f, matrices[i - 1], mask=mask)


@triton.jit
def network(
    weights,  # (B, SIZE)
    y_terms,  # (B, rows, first width): of the first layer
    x_terms,  # (B, cols, first width)
    shift,  # (B, rows, cols): output of the Modulation network, if SHIFTED
    picture,  # (B, outputs, rows, cols): target, or slope of the loss, or where to render
    valid_rows,  # (B,)
    valid_cols,
    scale,  # (B,): 1 / samples
    partials,  # (B, programs, INNER): out
    d_y_terms,  # (B, blocks across, rows, first width): out
    d_x_terms,  # (B, blocks down, cols, first width): out
    d_shift,  # (B, rows, cols): out, if SHIFTED
    account,  # (B, programs, 2): out, sums of loss and squared error
    rows,
    cols,
    across,  # blocks side by side
    strips,  # of each block
    WIDTHS: tl.constexpr,  # of the hidden layers and the output
    PADS: tl.constexpr,  # features of a chunk, then padded widths
    PLACES: tl.constexpr,  # of every matrix and bias, from the first inner layer on
    AT: tl.constexpr,  # where the inner layers begin in the weights
    SIZE: tl.constexpr,  # weights of one item, all its networks together
    INNER: tl.constexpr,  # weights after the first layer
    SHIFTED: tl.constexpr,
    OMEGA: tl.constexpr,
    SIGMA: tl.constexpr,
    TASK: tl.constexpr,  # pixel loss, LOSS_GIVEN or RENDER
    STRIP: tl.constexpr,  # rows of a strip
    COLUMNS: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Evaluate one block of one network: program (block, item)."""
    program = tl.program_id(0)
    item = tl.program_id(1).to(tl.int64)
    down = program // across
    side = program % across
    WIDTH: tl.constexpr = WIDTHS[0]
    OUTPUTS: tl.constexpr = WIDTHS[len(WIDTHS) - 1]
    PIXELS: tl.constexpr = STRIP * COLUMNS

    weights += item * SIZE + AT
    y_terms += item * rows * WIDTH
    x_terms += item * cols * WIDTH
    shift += item * rows * cols
    picture += item * OUTPUTS * rows * cols
    last_row = tl.load(valid_rows + item)
    last_col = tl.load(valid_cols + item)

    pixel = tl.arange(0, PIXELS)
    channel = tl.arange(0, PADS[len(WIDTHS) - 1])[None, :]
    c = side * COLUMNS + pixel % COLUMNS
    if TASK != 4:
        unit = tl.load(scale + item)
        chunks, columns, matrices, biases = _no_gradients(WIDTHS, PADS, COLUMNS)
        loss = tl.zeros((PIXELS,), tl.float32)
        error = tl.zeros((PIXELS,), tl.float32)
        d_y_terms += (item * across + side) * rows * WIDTH
        d_shift += item * rows * cols

    for strip in range(0, strips):
        first = (down * strips + strip) * STRIP
        r = first + pixel // COLUMNS
        inside = (r < last_row) & (c < last_col)
        period = tl.full((PIXELS, 1), OMEGA, tl.float32)
        if SHIFTED:
            period += SIGMA * tl.load(shift + r * cols + c, mask=inside, other=0.0)[:, None]
        sums = _forward(
            y_terms, x_terms, r, c, inside, period, weights, WIDTHS, PADS, PLACES, PRECISION
        )
        output = sums[len(WIDTHS) - 2]

        at = picture + (channel * rows + r[:, None]) * cols + c[:, None]
        seen = inside[:, None] & (channel < OUTPUTS)
        if TASK == 4:
            tl.store(at, output, mask=seen)
        else:
            given = tl.load(at, mask=seen, other=0.0)
            if TASK == 3:
                slope = given
            else:
                d = tl.where(seen, output - given, 0.0)
                error += tl.sum(d * d, 1)
                if TASK == 0:
                    loss += tl.sum(d * d, 1)
                    slope = 2.0 * d
                elif TASK == 1:
                    loss += tl.sum(tl.abs(d), 1)
                    slope = tl.where(d > 0.0, 1.0, tl.where(d < 0.0, -1.0, 0.0))
                else:
                    # log cosh and its slope tanh, without overflow
                    e = tl.exp(-2.0 * tl.abs(d))
                    cosh = tl.abs(d) + tl.log(1.0 + e) - 0.6931471805599453
                    loss += tl.sum(tl.where(seen, cosh, 0.0), 1)
                    slope = tl.where(d < 0.0, -1.0, 1.0) * (1.0 - e) / (1.0 + e)
                slope = slope * unit
            chunks, columns, matrices, biases, d_period = _backward(
                slope,
                period,
                sums,
                y_terms,
                x_terms,
                r,
                c,
                inside,
                weights,
                chunks,
                columns,
                matrices,
                biases,
                d_y_terms,
                first,
                rows,
                WIDTHS,
                PADS,
                PLACES,
                STRIP,
                PRECISION,
            )
            if SHIFTED:
                tl.store(d_shift + r * cols + c, SIGMA * d_period, mask=(r < rows) & (c < cols))

    if TASK != 4:
        index = item * tl.num_programs(0) + program
        _store(
            partials + index * INNER,
            d_x_terms + (item * (tl.num_programs(0) // across) + down) * cols * WIDTH,
            chunks,
            columns,
            matrices,
            biases,
            side * COLUMNS,
            cols,
            WIDTHS,
            PADS,
            PLACES,
            COLUMNS,
        )
        tl.store(account + 2 * index, tl.sum(loss, 0))
        tl.store(account + 2 * index + 1, tl.sum(error, 0))
