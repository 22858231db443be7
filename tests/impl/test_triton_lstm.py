"""The fused kernels without a GPU: their numbers in Triton's interpreter, and that they compile for one."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")

from common.teachers import TEACHERS, initial_weights  # noqa: E402
from torch_impl import triton_network  # noqa: E402
from torch_impl.teachers import TeacherNetwork  # noqa: E402

needs_triton = pytest.mark.skipif(
    importlib.util.find_spec("triton") is None,
    reason="fused kernels not tried: triton is not installed (it comes with torch's builds for GPUs)",
)

ROOT = Path(__file__).parents[2]
COMPILE = """
import sys
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from common.teachers import TeacherRow
from torch_impl import triton_lstm
from torch_impl.triton_network import launched

NUMBERS = "first low steps n columns apart after hop kept size".split()
teacher = {
    "one": TeacherRow("one", ("g",), (7,), pre=6),
    "two": TeacherRow("two", ("g", "m_tilde"), (7, 20), output="linear"),
}[sys.argv[1]]
sizes = launched(teacher)
options = {name: sizes.pop(name) for name in ("num_warps", "num_stages")}
for kernel in (triton_lstm.roll, triton_lstm.pull):
    names = kernel.arg_names
    kinds = {a: "constexpr" if a in sizes else "i32" if a in NUMBERS else "*fp32" for a in names}
    source = ASTSource(kernel, kinds, {(names.index(a),): value for a, value in sizes.items() if a in names})
    found = triton.compile(source, target=GPUTarget("cuda", int(sys.argv[2]), 32), options=options)
    print(len(found.asm["cubin"]) > 1000, ".f64" in found.asm["ptx"])
"""


def child(*arguments: str, **environment: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.slow
@needs_triton
def test_kernels_are_right_in_the_interpreter():
    """In a child: whether to interpret is settled when Triton is imported, and torch may have done that."""
    cases = str(Path(__file__).with_name("triton_cases.py"))
    ran = child("-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", cases, TRITON_INTERPRET="1")
    assert ran.returncode == 0, ran.stdout[-4000:] + ran.stderr[-2000:]


@pytest.mark.slow
@needs_triton
@pytest.mark.parametrize("capability", ["80", "90"])
@pytest.mark.parametrize("teacher", ["one", "two"])
def test_kernels_compile_for_a_gpu_that_is_not_there(teacher, capability, tmp_path):
    """To machine code by Triton's own assembler, all in float32."""
    ran = child("-c", COMPILE, teacher, capability, TRITON_INTERPRET="0", TRITON_CACHE_DIR=str(tmp_path))
    assert ran.stdout.split() == ["True", "False"] * 2, ran.stdout + ran.stderr[-2000:]


def test_no_kernels_on_a_cpu_or_without_triton(monkeypatch):
    """And nothing is said about it, a warning being an error here."""
    teacher = TEACHERS["rp_s"]
    network = TeacherNetwork(teacher, initial_weights(teacher, 0))
    assert network._fused is None
    triton_network.checked.cache_clear()
    monkeypatch.setenv("L2O_TRITON", "1")
    monkeypatch.setattr(triton_network, "capable", lambda device: True)
    monkeypatch.setitem(sys.modules, "torch_impl.triton_lstm", None)
    assert triton_network.fused_network(network) is None
    triton_network.checked.cache_clear()
