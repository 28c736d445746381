"""The inner tile of a matrix product C += A B, whose sums stay in vector registers.

Numba's own loops keep C in memory and reach half the speed; a BLAS call on small matrices, about a third. So the
tile is written in LLVM's vector instructions, and everything around it is ordinary Numba.

Every element of C is one sum in the order of the inner index, each term one fused multiply-add: the result does not
depend on the tile, the vector width or the number of rows.
"""

from llvmlite import binding, ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

VECTOR_BYTES = 64 if binding.get_host_cpu_features().get("avx512f") else 32

_SCALAR = {types.float32: ir.FloatType(), types.float64: ir.DoubleType()}
_INT = ir.IntType(64)


def lanes(itemsize: int) -> int:
    """Numbers in a vector; columns of B and C come in multiples of it."""
    return VECTOR_BYTES // itemsize


def padded(width: int, itemsize: int) -> int:
    """`width` rounded up to whole vectors."""
    return -(-width // lanes(itemsize)) * lanes(itemsize)


class _Tile:
    """The instructions of one tile of `rows` times `vectors` vectors."""

    def __init__(self, builder, dtype, rows: int, vectors: int):
        self.builder, self.rows, self.vectors = builder, rows, vectors
        self.count, self.align = lanes(dtype.bitwidth // 8), dtype.bitwidth // 8
        self.vector = ir.VectorType(_SCALAR[dtype], self.count)
        kind = ir.FunctionType(self.vector, [self.vector] * 3)
        self.fma = cgutils.get_or_insert_function(builder.module, kind, f"llvm.fma.v{self.count}f{dtype.bitwidth}")

    def each(self, function) -> list[list]:
        """function(row, vector) for the whole tile."""
        return [[function(r, v) for v in range(self.vectors)] for r in range(self.rows)]

    def load(self, pointer):
        """A vector from an address of its element type."""
        return self.builder.load(self.as_vector(pointer), align=self.align)

    def as_vector(self, pointer):
        return self.builder.bitcast(pointer, self.vector.as_pointer())

    def at(self, pointer, index, *factors):
        """pointer + index * product of factors."""
        for factor in factors:
            index = self.builder.mul(index, factor)
        return self.builder.gep(pointer, [index])

    def broadcast(self, number):
        """The number on every lane."""
        nothing = ir.Constant(self.vector, ir.Undefined)
        first = self.builder.insert_element(nothing, number, ir.IntType(32)(0))
        lane = ir.Constant(ir.VectorType(ir.IntType(32), self.count), [0] * self.count)
        return self.builder.shuffle_vector(first, nothing, lane)

    def products(self, a, a_row, b, sums) -> list[list]:
        """The sums with one more term: a[r] b[v]."""
        rows = [self.broadcast(self.builder.load(self.at(a, _INT(r), a_row))) for r in range(self.rows)]
        columns = [self.load(self.at(b, _INT(v * self.count))) for v in range(self.vectors)]
        return self.each(lambda r, v: self.builder.call(self.fma, [rows[r], columns[v], sums[r][v]]))

    def add(self, a, a_row, a_depth, b, b_depth, c, c_row, depth) -> None:
        """C += A B over `depth` > 0 terms; a, b and c point to the tile's first elements."""
        builder = self.builder
        places = self.each(lambda r, v: self.at(self.at(c, _INT(r), c_row), _INT(v * self.count)))
        start = self.each(lambda r, v: self.load(places[r][v]))
        before, loop, after = builder.block, builder.append_basic_block("terms"), builder.append_basic_block("sums")
        builder.branch(loop)
        builder.position_at_end(loop)
        k, sums = builder.phi(_INT), self.each(lambda r, v: builder.phi(self.vector))
        longer = self.products(self.at(a, k, a_depth), a_row, self.at(b, k, b_depth), sums)
        following = builder.add(k, _INT(1))
        for value, first, then in [
            (k, _INT(0), following),
            *((sums[r][v], start[r][v], longer[r][v]) for r in range(self.rows) for v in range(self.vectors)),
        ]:
            value.add_incoming(first, before)
            value.add_incoming(then, loop)
        builder.cbranch(builder.icmp_signed("<", following, depth), loop, after)
        builder.position_at_end(after)
        self.each(lambda r, v: builder.store(longer[r][v], self.as_vector(places[r][v]), align=self.align))


def make_tile(rows: int, vectors: int):
    """Compiled (a, a_first, a_row, a_depth, b, b_first, b_depth, c, c_first, c_row, depth): C += A B for one tile.

    Element (row r, term k) of A is number a_first + r a_row + k a_depth of the array a; of B, term k begins at
    b_first + k b_depth; of C, row r at c_first + r c_row. Arrays are in C order, of any shape and one dtype; nothing
    is checked. depth > 0.
    """

    @intrinsic
    def tile(context, a, a_first, a_row, a_depth, b, b_first, b_depth, c, c_first, c_row, depth):
        index = types.int64
        signature = types.void(a, index, index, index, b, index, index, c, index, index, index)

        def generate(context, builder, signature, args):
            a, a_first, a_row, a_depth, b, b_first, b_depth, c, c_first, c_row, depth = args
            kinds = signature.args
            a, b, c = (
                builder.gep(context.make_array(kind)(context, builder, array).data, [first])
                for kind, array, first in ((kinds[0], a, a_first), (kinds[4], b, b_first), (kinds[7], c, c_first))
            )
            code = _Tile(builder, kinds[0].dtype, rows, vectors)
            code.add(a, a_row, a_depth, b, b_depth, c, c_row, depth)
            return context.get_dummy_value()

        return signature, generate

    return tile
