"""Products of matrices for the compiled blocks: C += A B by tiles, with weights laid out in panels.

A panel is a strip of columns of B, as wide as a tile, whose rows stand one behind the other: a tile reads it in
one run, wherever the rows of B would lie. Widths are multiples of `lanes`. Every element of C is one sum in the order
of the inner index, so that no row's numbers depend on the rows beside it.
"""

import numpy as np
from numba import njit

from entropy_theory.compiled.elementary import FLAGS
from entropy_theory.compiled.tile import VECTOR_BYTES, make_tile, padded

ROWS = 8 if VECTOR_BYTES == 64 else 4
"""Rows of the largest tile; those left over are taken by 4, 2 and 1."""
VECTORS = 2
"""Vectors of a tile: ROWS * VECTORS sums, VECTORS loads and one broadcast fit 32 (or 16) registers."""


def _strip(vectors: int):
    """Compiled: C's columns from `column` on, as wide as a tile, of all rows."""
    whole, four, two, one = (make_tile(rows, vectors) for rows in (ROWS, 4, 2, 1))

    def strip(a, a_row, a_depth, rows, depth, b, b_first, b_depth, c, column):
        width = c.shape[1]
        row = 0
        while row + ROWS <= rows:
            whole(a, row * a_row, a_row, a_depth, b, b_first, b_depth, c, row * width + column, width, depth)
            row += ROWS
        if row + 4 <= rows:
            four(a, row * a_row, a_row, a_depth, b, b_first, b_depth, c, row * width + column, width, depth)
            row += 4
        if row + 2 <= rows:
            two(a, row * a_row, a_row, a_depth, b, b_first, b_depth, c, row * width + column, width, depth)
            row += 2
        if row < rows:
            one(a, row * a_row, a_row, a_depth, b, b_first, b_depth, c, row * width + column, width, depth)

    # code kept on disk is linked by name: two functions of one name would be taken for each other
    strip.__qualname__ = f"strip_of_{vectors}_vectors"
    return njit(**FLAGS)(strip)


_wide, _narrow = _strip(VECTORS), _strip(1)


@njit(**FLAGS)
def fill_panels(part, turned, first, columns, panels):
    """Lay out a part of B [depth, columns] in panels.

    Args:
      part: matrix [m, n]. B has it at rows `first` to first + m; turned, its transposed at columns first to first + m.
      panels: [depth columns] flat, filled.
    """
    lane = VECTOR_BYTES // part.itemsize
    wide, depth = VECTORS * lane, panels.size // columns
    for i in range(part.shape[0]):
        for start in range(0, part.shape[1] if not turned else 1, wide):
            if turned:
                column = first + i
                strip = column // wide * wide
                width = wide if strip + wide <= columns else lane
                if width == lane:
                    strip = column // lane * lane
                at = strip * depth + column - strip
                for j in range(part.shape[1]):
                    panels[at + j * width] = part[i, j]
            else:
                end = min(start + wide, columns)
                width = wide if start + wide <= columns else lane
                for strip in range(start, end, width):
                    at = strip * depth + (first + i) * width
                    for j in range(width):
                        panels[at + j] = part[i, strip + j]


@njit(**FLAGS)
def add_panels(a, panels, c):
    """C += A B.

    Args: a: [rows, depth]; panels: of B, as `fill_panels` lays them out; c: [rows, columns].
    """
    rows, depth = a.shape
    columns, lane = c.shape[1], VECTOR_BYTES // c.itemsize
    wide = columns // (VECTORS * lane) * VECTORS * lane
    for column in range(0, wide, VECTORS * lane):
        _wide(a, depth, 1, rows, depth, panels, column * depth, VECTORS * lane, c, column)
    for column in range(wide, columns, lane):
        _narrow(a, depth, 1, rows, depth, panels, column * depth, lane, c, column)


@njit(**FLAGS)
def _add(a, a_row, a_depth, depth, b, c, columns):
    """A and its steps as `make_tile` has them; b: [at least depth, at least columns]; c: [rows, at least columns]."""
    rows, lane, width = len(c), VECTOR_BYTES // c.itemsize, b.shape[1]
    wide = columns // (VECTORS * lane) * VECTORS * lane
    for column in range(0, wide, VECTORS * lane):
        _wide(a, a_row, a_depth, rows, depth, b, column, width, c, column)
    for column in range(wide, columns, lane):
        _narrow(a, a_row, a_depth, rows, depth, b, column, width, c, column)


@njit(**FLAGS)
def add_product(a, b, c):
    """C += A B of a B that is used once. a: [rows, at least depth]; b: [depth, columns]; c: [rows, columns]."""
    _add(a, a.shape[1], 1, len(b), b, c, c.shape[1])


@njit(**FLAGS)
def add_columns(a, b, c, columns):
    """As `add_product`, the first columns only, a multiple of `lanes`."""
    _add(a, a.shape[1], 1, len(b), b, c, columns)


@njit(**FLAGS)
def add_transposed(a, b, c):
    """C += A^T B. a: [depth, rows]; b: [depth, columns]; c: [rows, columns]."""
    _add(a, 1, a.shape[1], len(a), b, c, c.shape[1])


def panels(parts: list[np.ndarray], turned: bool) -> np.ndarray:
    """Panels of the parts one under the other, or of the transposed of that, with columns of 0 to whole vectors."""
    total, other = sum(len(part) for part in parts), parts[0].shape[1]
    columns, depth = (total, other) if turned else (other, total)
    whole = padded(columns, parts[0].itemsize)
    found, first = (np.empty if whole == columns else np.zeros)(whole * depth, parts[0].dtype), 0
    for part in parts:
        fill_panels(part, turned, first, whole, found)
        first += len(part)
    return found
