"""Products of adapters with dropout within them, by Triton: random numbers are drawn where they are used, and once more
in the backward pass, so that neither x after dropout nor a mask is ever in memory.

    h = (x ∘ m) Aᵀ;   with G the gradient of h and G' of x elsewhere: dA = Gᵀ (x ∘ m), dx = (G A) ∘ m + G'

Entry i of m is 0 with probability p, and 1 otherwise: by word i mod 4 of Philox (SC 2011, 7 rounds) at the counter
i div 4, under a seed. `moslora.kernels.liger` imports this where Triton is installed. Each program takes some of x's
rows forwards, and some of its columns backwards, so every sum has one order.
"""

import triton
from torch import Tensor
from triton import language as tl

WARPS = 8


@triton.jit
def _load(matrix, row, column, rows, columns):
    """Entries of a matrix, and zeros beside it."""
    there = (row < rows)[:, None] & (column < columns)[None, :]
    return tl.load(matrix + row.to(tl.int64)[:, None] * columns + column[None, :], mask=there, other=0.0)


@triton.jit
def _store(matrix, row, column, rows, columns, values):
    there = (row < rows)[:, None] & (column < columns)[None, :]
    tl.store(matrix + row.to(tl.int64)[:, None] * columns + column[None, :], values, mask=there)


@triton.jit
def _kept(seed, limit, row, begin, columns, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """m, as bool, of the columns from ``begin`` on, a multiple of 4; ``limit`` is 2³¹ p."""
    four = begin // 4 + tl.arange(0, COLUMNS // 4)
    a, b, c, d = tl.randint4x(seed, row[:, None] * tl.cdiv(columns, 4) + four[None, :], 7)
    words = tl.reshape(tl.join(tl.join(a, c), tl.join(b, d)), (ROWS, COLUMNS))
    return (words >> 1) >= limit


@triton.jit(do_not_specialize=["seed", "rows"])
def _project(x, a, h, seed, limit, rows, columns, rank, ROWS: tl.constexpr, COLUMNS: tl.constexpr, RANK: tl.constexpr):
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    of_rank = tl.arange(0, RANK)
    found = tl.zeros((ROWS, RANK), tl.float32)
    for begin in range(0, columns, COLUMNS):
        column = begin + tl.arange(0, COLUMNS)
        kept = _kept(seed, limit, row, begin, columns, ROWS, COLUMNS)
        left = tl.where(kept, _load(x, row, column, rows, columns), 0.0)
        found += tl.dot(left, tl.trans(_load(a, of_rank, column, rank, columns)), input_precision="ieee")
    _store(h, row, of_rank, rows, rank, found)


@triton.jit(do_not_specialize=["seed", "rows"])
def _project_backward(
    g,
    a,
    x,
    of_x,
    d_a,
    d_x,
    seed,
    limit,
    rows,
    columns,
    rank,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    RANK: tl.constexpr,
):
    begin = tl.program_id(0) * COLUMNS
    column = begin + tl.arange(0, COLUMNS)
    of_rank = tl.arange(0, RANK)
    factor = _load(a, of_rank, column, rank, columns)
    found = tl.zeros((RANK, COLUMNS), tl.float32)
    for first in range(0, rows, ROWS):
        row = first + tl.arange(0, ROWS)
        gradient = _load(g, row, of_rank, rows, rank)
        kept = _kept(seed, limit, row, begin, columns, ROWS, COLUMNS)
        if x is not None:
            left = tl.where(kept, _load(x, row, column, rows, columns), 0.0)
            found += tl.dot(tl.trans(gradient), left, input_precision="ieee")
        if of_x is not None:
            back = tl.where(kept, tl.dot(gradient, factor, input_precision="ieee"), 0.0)
            _store(d_x, row, column, rows, columns, back + _load(of_x, row, column, rows, columns))
    if x is not None:
        _store(d_a, of_rank, column, rank, columns, found)


def project(x: Tensor, a: Tensor, h: Tensor, seed: float, p: float) -> None:
    """Writes h ``(..., r)`` of x ``(..., in_features)`` and A ``(r, in_features)``; all contiguous."""
    rank, columns = a.shape
    rows = x.numel() // columns
    size = _power_of_2(rank)
    tile = {"ROWS": 16, "COLUMNS": max(16, min(128, 2**13 // size)), "RANK": size}
    _project[triton.cdiv(rows, 16),](x, a, h, int(seed), _limit(p), rows, columns, rank, num_warps=WARPS, **tile)


def project_backward(
    g: Tensor,
    a: Tensor,
    x: Tensor | None,
    of_x: Tensor | None,
    d_a: Tensor | None,
    d_x: Tensor | None,
    seed: float,
    p: float,
) -> None:
    """Writes dA, where x is given, and dx, where G' is."""
    rank, columns = a.shape
    rows = g.numel() // rank
    size = _power_of_2(rank)
    tile = {"ROWS": max(16, min(128, 2**12 // size)), "COLUMNS": 32, "RANK": size}
    _project_backward[triton.cdiv(columns, 32),](
        g, a, x, of_x, d_a, d_x, int(seed), _limit(p), rows, columns, rank, num_warps=WARPS, **tile
    )


def _limit(p: float) -> int:
    return round(p * 2**31)


def _power_of_2(rank: int) -> int:
    """The rows of A that Triton takes, at least 16."""
    return max(16, triton.next_power_of_2(rank))
