"""A Triton program that orthonormalises the columns of tall panels, one panel per program."""

import triton
import triton.language as tl


@triton.jit
def orthonormal_panel(
    panels,  # (B, rows, columns), overwritten
    rows,
    columns,
    ROWS: tl.constexpr,  # rows, padded
    COLUMNS: tl.constexpr,  # columns, padded
    PASSES: tl.constexpr,
):
    """Gram-Schmidt, column by column, each against all before it ``PASSES`` times.

    Between passes the rest is normalised: where next to nothing of a column is left, a pass turns
    rounding noise into a unit vector and the following passes make that one orthogonal. A column
    of zeros is replaced by fixed noise.
    """
    item = tl.program_id(0).to(tl.int64)
    r = tl.arange(0, ROWS)
    c = tl.arange(0, COLUMNS)
    at = panels + item * rows * columns + r[:, None] * columns + c[None, :]
    inside = (r[:, None] < rows) & (c[None, :] < columns)
    given = tl.load(at, mask=inside, other=0.0)
    done = tl.zeros((ROWS, COLUMNS), tl.float32)
    for column in range(0, columns):
        here = c[None, :] == column
        v = tl.sum(tl.where(here, given, 0.0), 1)
        noise = ((r * 40503 + column * 30011 + 12345) % 65521).to(tl.float32) / 32768.0 - 1.0
        noise = tl.where(r < rows, noise, 0.0)
        for _ in tl.static_range(PASSES):
            size = tl.sqrt(tl.sum(v * v, 0))
            v = tl.where(size > 1e-18, v / tl.maximum(size, 1e-18), noise)
            shares = tl.sum(done * v[:, None], 0)
            v -= tl.sum(done * shares[None, :], 1)
        v /= tl.sqrt(tl.sum(v * v, 0))
        done = tl.where(here, v[:, None], done)
    tl.store(at, done, mask=inside)
