"""Compile every kernel of ``saescope.kernels.gpu`` to machine code for two generations of GPUs, without having one.

Prints the kernels' names. Run by ``test_gpu.py`` in a process where Triton does not interpret.
"""

from __future__ import annotations

from typing import Any

import triton.language as tl
from triton import compile as compiled
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from saescope.kernels import gpu

KINDS = {"KEY": tl.int32, "FLOAT": tl.float32, "BITS": 31}
FLOORS = {"LANES": 1024, "FLOAT": tl.float32}
# types of what is no constant, in order; constants; warps
KERNELS: list[tuple[str, str, dict[str, Any], int]] = [
    ("_select", "*{pre} *i32 *i32 *i32 *fp32 *i32 i32 i32", {"LANES": 2048, "ROOM": 256, **KINDS}, 8),
    ("_choose_rows", "*i32 *fp32 *i32 *i32 *fp32 *i32 i32 i32", {"ROOM": 128, **KINDS}, 4),
    ("_count", "*{pre} *fp32 *i64 i32", {**FLOORS, "EQUAL": False, "ONE_FLOOR": True}, 4),
    ("_write", "*{pre} *fp32 *i64 *fp32 *i32 i32 i32", {**FLOORS, "EQUAL": True, "ONE_FLOOR": False}, 4),
    ("_decode", "*i64 *i64 *i32 *fp32 *fp32 *fp32 *fp32 i32 i32 i32", {"E": 8, "D": 256}, 4),
    ("_dot_rows", "*fp32 *fp32 *i64 *i32 *fp32 i32 i32", {"E": 16, "D": 128, "SPAN": 512}, 4),
    (
        "_add_rows", "*fp32 *fp32 *i64 *fp32 *i64 *i64 *fp32 *i64 *i64 *u8 *fp32 i32 i32 i32 i32",
        {"WHOLE": True, "E": 8, "D": 256}, 4,
    ),
    (
        "_add_rows", "*fp32 *fp32 *i64 *fp32 *i64 *i64 *i64 *i64 *i64 *i64 *i64 i32 i32 i32 i32",
        {"WHOLE": False, "E": 8, "D": 512}, 4,
    ),
    ("_add_numbers", "*fp32 *fp32 *i64 *i64 *u8", {"E": 128}, 4),
    ("_settle", "*fp32 *fp32 *fp32 i32", {"UNIT_NORM": True, "D": 256}, 2),
    (
        "_ordered_errors", "*i64 *i32 *fp32 *fp32 *fp32 *fp32 *fp32 *fp32 *fp32 i32 i32", {"D": 256}, 2,
    ),
    (
        "_ordered_gradients", "*i64 *i32 *fp32 *fp32 *fp32 *fp32 *fp32 *fp32 *fp32 *fp32 i32 i32 i32", {"D": 256}, 2,
    ),
    (
        "_adam", "*fp32 *fp32 *fp32 *fp32 *fp32 fp32 fp32 fp32 fp32 fp32 fp32 fp32 i32 i32",
        {"UNIT_NORM": True, "D": 256}, 2,
    ),
]  # fmt: skip


def main() -> None:
    for name, types, constants, num_warps in KERNELS:
        kernel = getattr(gpu, name)
        for capability in (80, 90):
            for pre in ("bf16", "fp32") if "{pre}" in types else ("",):
                given = iter(types.format(pre=pre).split())
                signature = {arg: "constexpr" if arg in constants else next(given) for arg in kernel.arg_names}
                assert not list(given), f"{name}: more types than arguments"
                values = {(kernel.arg_names.index(arg),): value for arg, value in constants.items()}
                compiled(
                    ASTSource(kernel, signature, values),
                    target=GPUTarget("cuda", capability, 32),
                    options={"num_warps": num_warps, "enable_fp_fusion": True},
                )
        print(name)


if __name__ == "__main__":
    main()
