"""Triton kernels of adapter products with dropout: random numbers are drawn within the product, and again in the
backward pass, so that neither a mask nor x after dropout is ever in memory.

    h = (x ∘ m) Aᵀ,   dA = Gᵀ (x ∘ m),   dx = (G A) ∘ m + G'

with G the gradient of h, and G' that of x from other products.

Entry i of m is 0 with probability p, and 1 otherwise: by word i mod 4 of Philox (SC 2011, 7 rounds) at the counter i
div 4, under a seed. `moslora.kernels.liger` imports this module if Triton is installed. A program computes some of x's
rows and columns in the forward pass, and some of its columns in the backward pass. Another kernel adds the sums of the
programs of a row, so that the order of additions is fixed.
"""

import torch
import triton
from torch import Tensor
from triton import language as tl

from moslora.processes.devices import multiprocessors

WARPS = 8
TILE = (16, 128)
"""Number of rows, and maximum number of columns, of x that a program of the forward product computes at a time."""

PROGRAMS = 2
"""Minimum number of programs of the forward product for each multiprocessor."""

ADDED = 1024
"""Number of entries of h that a program of :func:`_add` adds up."""


@triton.jit
def _load(matrix, row, column, rows, columns):
    """Load entries of a matrix ``(rows, columns)``; zeros outside of it."""
    there = (row < rows)[:, None] & (column < columns)[None, :]
    return tl.load(matrix + row.to(tl.int64)[:, None] * columns + column[None, :], mask=there, other=0.0)


@triton.jit
def _store(matrix, row, column, rows, columns, values):
    there = (row < rows)[:, None] & (column < columns)[None, :]
    tl.store(matrix + row.to(tl.int64)[:, None] * columns + column[None, :], values, mask=there)


@triton.jit
def _kept(seed, limit, row, begin, columns, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """Mask m, bool of shape ``(ROWS, COLUMNS)``, of the columns from ``begin`` on, a multiple of 4; ``limit`` is 2³¹
    p."""
    four = begin // 4 + tl.arange(0, COLUMNS // 4)
    a, b, c, d = tl.randint4x(seed, row[:, None] * tl.cdiv(columns, 4) + four[None, :], 7)
    words = tl.reshape(tl.join(tl.join(a, c), tl.join(b, d)), (ROWS, COLUMNS))
    return (words >> 1) >= limit


@triton.jit(do_not_specialize=["seed", "rows", "tiles"])
def _project(
    x, a, sums, seed, limit, rows, columns, rank, tiles, ROWS: tl.constexpr, COLUMNS: tl.constexpr, RANK: tl.constexpr
):
    """Write h into ``sums (parts, rows, rank)``: part p is the sum over the p-th group of ``tiles`` tiles of
    columns."""
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    part = tl.program_id(1)
    of_rank = tl.arange(0, RANK)
    found = tl.zeros((ROWS, RANK), tl.float32)
    for tile in range(part * tiles, tl.minimum((part + 1) * tiles, tl.cdiv(columns, COLUMNS))):
        begin = tile * COLUMNS
        column = begin + tl.arange(0, COLUMNS)
        kept = _kept(seed, limit, row, begin, columns, ROWS, COLUMNS)
        left = tl.where(kept, _load(x, row, column, rows, columns), 0.0)
        found += tl.dot(left, tl.trans(_load(a, of_rank, column, rank, columns)), input_precision="ieee")
    _store(sums + part.to(tl.int64) * rows * rank, row, of_rank, rows, rank, found)


@triton.jit(do_not_specialize=["count", "parts"])
def _add(sums, h, count, parts, SIZE: tl.constexpr):
    entry = tl.program_id(0).to(tl.int64) * SIZE + tl.arange(0, SIZE)
    found = tl.zeros((SIZE,), tl.float32)
    for part in range(parts):
        found += tl.load(sums + part * count + entry, mask=entry < count, other=0.0)
    tl.store(h + entry, found, mask=entry < count)


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
    """Write (x ∘ m) Aᵀ into ``h (..., r)``, from ``x (..., in_features)`` and ``a (r, in_features)``, all
    contiguous."""
    rank, columns = a.shape
    rows = x.numel() // columns
    size = _power_of_2(rank)
    height, width = TILE
    tile = {"ROWS": height, "COLUMNS": max(16, min(width, 2**13 // size)), "RANK": size}
    programs = triton.cdiv(rows, tile["ROWS"])
    wanted = triton.cdiv(PROGRAMS * multiprocessors(x.device), programs)
    tiles = triton.cdiv(columns, tile["COLUMNS"])
    of_part = triton.cdiv(tiles, min(wanted, tiles))
    parts = triton.cdiv(tiles, of_part)
    sums = h if parts == 1 else x.new_empty((parts, rows, rank), dtype=torch.float32)
    _project[programs, parts](x, a, sums, int(seed), _limit(p), rows, columns, rank, of_part, num_warps=WARPS, **tile)
    if parts > 1:
        _add[triton.cdiv(h.numel(), ADDED),](sums, h, h.numel(), parts, SIZE=ADDED)


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
    """Write dA ``(r, in_features)`` if x is given, and dx ``(..., in_features)`` if G' is given.

    ``g`` is G, ``(..., r)``, ``of_x`` is G', with the shape of ``x (..., in_features)``; all are contiguous.
    """
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
    """Smallest power of 2 that is not below ``rank``, and at least 16: a size of Triton's products."""
    return max(16, triton.next_power_of_2(rank))
