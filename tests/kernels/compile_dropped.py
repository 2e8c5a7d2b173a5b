"""Compiles our Triton kernels for a GPU that is not there: python compile_dropped.py COMPUTE_CAPABILITY"""

import sys

from triton import compile
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from moslora.kernels import dropped

X, SUMS = "*bf16", "*fp32"
COMMON = {"seed": "i32", "limit": "i32", "rows": "i32", "columns": "i32", "rank": "i32"}
TILES = {"ROWS": 16, "COLUMNS": 128, "RANK": 64}
BACK = {"ROWS": 64, "COLUMNS": 32, "RANK": 64}
KERNELS = (
    (dropped._project, {"x": X, "a": X, "sums": SUMS, **COMMON, "tiles": "i32"}, TILES),
    (dropped._project, {"x": X, "a": X, "sums": X, **COMMON, "tiles": "i32"}, TILES),
    (dropped._add, {"sums": SUMS, "h": X, "count": "i32", "parts": "i32"}, {"SIZE": 1024}),
    (dropped._project_backward, {name: X for name in ("g", "a", "x", "of_x", "d_a", "d_x")} | COMMON, BACK),
)

for kernel, types, sizes in KERNELS:
    signature = types | dict.fromkeys(sizes, "constexpr")
    source = ASTSource(kernel, signature, constexprs={(kernel.arg_names.index(n),): size for n, size in sizes.items()})
    made = compile(source, target=GPUTarget("cuda", int(sys.argv[1]), 32), options={"num_warps": dropped.WARPS})
    print(kernel.__name__, len(made.asm["cubin"]), made.metadata.shared)
