"""The programs pass Triton's compiler for a GPU that need not be here.

The interpreter accepts programs that the compiler refuses, and knows no limit of shared memory.
"""

import json
import os
import subprocess
import sys

import pytest

pytest.importorskip("triton", reason="Triton has no build for this machine")

SHARED_MEMORY_BYTES = 227 * 1024
"""What one program may use on compute capability 9.0."""

SCRIPT = """
import json, sys, traceback
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from nifcore.architecture import Architecture
from nifcore.gpu.basis_programs import orthonormal_panel
from nifcore.gpu.fused import FusedKernel, Tuning
from nifcore.gpu.network_programs import network
from nifcore.header import NetShape

def compiled(program, constants, warps):
    kinds = {"rows": "i32", "cols": "i32", "columns": "i32", "across": "i32", "strips": "i32",
             "valid_rows": "*i32", "valid_cols": "*i32"}
    signature = {
        name: "constexpr" if name in constants else kinds.get(name, "*fp32")
        for name in program.arg_names
    }
    source = ASTSource(program, signature=signature, constexprs=constants)
    options = {"num_warps": warps, "num_stages": 1, "enable_fp_fusion": True}
    made = triton.compile(source, target=GPUTarget("cuda", 90, 32), options=options)
    return {"shared": made.metadata.shared, "cubin": len(made.asm["cubin"])}

def tried(task, precision):
    if precision == "basis":
        return compiled(orthonormal_panel, {"ROWS": 128, "COLUMNS": 32, "PASSES": 3}, 4)
    kernel = FusedKernel(Architecture(NetShape((40, 18), 4), NetShape((9, 5), 2), 3))
    return compiled(
        network,
        {**kernel._genesis.constants, "TASK": task, "PRECISION": precision},
        kernel._genesis.tuning.warps,
    )

for name, (task, precision) in json.loads(sys.argv[1]).items():
    try:
        found = tried(task, precision)
    except Exception:
        found = {"error": traceback.format_exc()}
    print(json.dumps({name: found}), flush=True)
"""

PROGRAMS = {
    "fit": (0, "tf32"),
    "fit in bfloat16": (2, "bf16"),
    "slope given": (3, "tf32"),
    "render": (4, "tf32x3"),
    "basis": (0, "basis"),
}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """The compiler's run over all programs, in a process without the interpreter."""
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    return subprocess.run(
        [sys.executable, "-c", SCRIPT, json.dumps(PROGRAMS)],
        env={**environment, "TRITON_CACHE_DIR": str(tmp_path_factory.mktemp("triton"))},
        capture_output=True,
        text=True,
    )


@pytest.mark.parametrize("name", PROGRAMS)
def test_the_programs_compile_for_a_gpu(name, run):
    made = {key: one for line in run.stdout.splitlines() for key, one in json.loads(line).items()}

    assert name in made, (run.returncode, run.stderr[-2000:])
    found = made[name]
    assert "error" not in found, found["error"][-2000:]
    assert found["cubin"] > 0
    assert found["shared"] <= SHARED_MEMORY_BYTES
