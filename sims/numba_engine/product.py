"""The one matrix product of the engine, C += A B, tile by tile.

Every element of C is one sum in the order of the inner index, whatever the number of rows.
"""

from numba import njit

from entropy_theory.compiled.tile import VECTOR_BYTES, make_tile

ROWS = 4
"""Rows of a tile."""
VECTORS = 4 if VECTOR_BYTES == 64 else 2
"""Vectors of a tile: ROWS * VECTORS sums, VECTORS loads and one broadcast fit 32 (or 16) registers."""

_whole, _narrow = make_tile(ROWS, VECTORS), make_tile(ROWS, 1)
_row, _row_narrow = make_tile(1, VECTORS), make_tile(1, 1)


@njit(nogil=True)
def _add(a, a_row, a_depth, b, c):
    rows, columns = c.shape
    depth, lane = len(b), VECTOR_BYTES // c.itemsize
    wide = columns // (VECTORS * lane) * VECTORS * lane
    whole = rows // ROWS * ROWS
    for row in range(0, whole, ROWS):
        first, start = row * a_row, row * columns
        for column in range(0, wide, VECTORS * lane):
            _whole(a, first, a_row, a_depth, b, column, columns, c, start + column, columns, depth)
        for column in range(wide, columns, lane):
            _narrow(a, first, a_row, a_depth, b, column, columns, c, start + column, columns, depth)
    for row in range(whole, rows):
        first, start = row * a_row, row * columns
        for column in range(0, wide, VECTORS * lane):
            _row(a, first, a_row, a_depth, b, column, columns, c, start + column, columns, depth)
        for column in range(wide, columns, lane):
            _row_narrow(a, first, a_row, a_depth, b, column, columns, c, start + column, columns, depth)


@njit(nogil=True)
def add_product(a, b, c):
    """C += A B, in place, with 2-D arrays in C order.

    Args:
      a: [rows, at least depth]; b: [depth > 0, columns]; c: [rows, columns], columns a multiple of `lanes`.
    """
    _add(a, a.shape[1], 1, b, c)


@njit(nogil=True)
def add_transposed_product(a, b, c):
    """C += A^T B as `add_product`, with a: [depth, at least rows]."""
    _add(a, 1, a.shape[1], b, c)
