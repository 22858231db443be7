"""Whether TensorFlow multiplies numbers of half precision on this machine's processor.

Where it does not, some of its kernels end the whole process by a signal, so a child process is asked.
"""

import dataclasses
import functools
import itertools
import os
import re
import signal
import subprocess
import sys

import tensorflow as tf

from common.tables.problems import PROBLEMS, Instance
from tf_impl.problems.tasks import ProblemTask


@functools.cache
def fault(dtype: str) -> str:
    """How a training step with products in ``float16`` or ``bfloat16`` ends on the CPU; "" if well.

    The answer is that of a child process, some ten seconds, and is kept.
    """
    code = f"from tf_impl.problems.products import take_steps; take_steps({dtype!r})"
    # The child imports what this process can, and leaves the accelerators to it.
    given = {"PYTHONPATH": os.pathsep.join(filter(None, sys.path)), "CUDA_VISIBLE_DEVICES": "-1"}
    child = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=os.environ | given
    )
    if child.returncode == 0:
        return ""
    end = "fails"
    if child.returncode < 0:
        end = f"ends the process by {signal.Signals(-child.returncode).name}"
    # As oneDNN says it, or else Python.
    told = re.findall(r"could not create[^.\n]*|^\w+Error: .*", child.stderr, re.MULTILINE)
    return f"a training step with products in {dtype} {end}" + "".join(f": {line[:200]}" for line in told[:1])


def take_steps(dtype: str) -> None:
    """Loss and gradient of a network of matrices and of one of convolutions; the child process's part.

    In bfloat16 as ``--bfloat16`` computes them, and in either dtype as of parameters that are in it.
    """
    ways = [(tf.as_dtype(dtype), False)] + [(tf.float32, True)] * (dtype == "bfloat16")
    for name, (kept, low) in itertools.product(("digits-mlp", "digits-conv"), ways):
        row = dataclasses.replace(PROBLEMS[name], bfloat16=low)
        task = ProblemTask(Instance(row, seed=0), kept, "/CPU:0")
        task.value_and_gradient(task.initial(), 0)[0].numpy()
