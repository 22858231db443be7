"""The fused kernels in Triton's interpreter, on CPU tensors; ``test_triton_lstm`` runs this in a process."""

import warnings

import numpy as np
import pytest
import torch

from common.teachers import TEACHERS, TeacherRow
from torch_impl import triton_lstm, triton_network
from torch_impl.teachers import TeacherNetwork
from torch_impl.tensors import State
from torch_impl.triton_network import FusedNetwork
from torch_impl.unroll import meta_gradient

N = 67  # no whole number of blocks
ODD = [
    TeacherRow("uneven", ("g",), (4, 17), pre=1, output="linear"),
    TeacherRow("wide", ("m_tilde", "g"), (32,), pre=17),
]
ROWS = [*(TEACHERS[name] for name in TEACHERS), *ODD]


def case(teacher: TeacherRow, steps: int, n: int = N, seed: int = 0):
    """Weights, inputs [T, F, n] over three orders of magnitude, c [T, n], and a state, as float32 numbers."""
    generator = np.random.default_rng(seed)

    def draw(*shape: int) -> torch.Tensor:
        return torch.from_numpy(generator.normal(size=shape).astype(np.float32))

    weights = {name: 0.5 * draw(*shape).numpy() for name, shape in teacher.weight_shapes().items()}
    x = draw(steps, len(teacher.inputs), n) * torch.logspace(-3, 0.5, n)
    return weights, x, draw(steps, n), tuple(0.5 * draw(u, n) for u in teacher.lstm for _ in ("h", "c"))


def reference(teacher: TeacherRow, weights, x, c, start):
    """Outputs [T, n], the last state and the gradient of every weight in float64 by ``step`` and autograd."""
    network = TeacherNetwork(teacher, weights, torch.float64)
    leaves = {name: w.requires_grad_() for name, w in network.weights.items()}
    outs, state = [], tuple(a.double() for a in start)
    for t in range(len(x)):
        out, state = network.step(leaves, x[t].double(), state, t + 1)
        outs.append(out)
    total = torch.stack(outs)
    grads = torch.autograd.grad(total, list(leaves.values()), c.double())
    return total.detach(), [a.detach() for a in state], dict(zip(leaves, grads, strict=True))


def with_kernels(teacher: TeacherRow, weights, **sizes: int) -> TeacherNetwork:
    network = TeacherNetwork(teacher, weights)
    network._fused = FusedNetwork(teacher, **sizes)
    network.__dict__["compiled"] = None
    return network


def close(got: torch.Tensor, expected: torch.Tensor, tolerance: float, least: float = 0.0) -> None:
    """Equal up to ``tolerance`` of the largest number, or of ``least`` if that is larger."""
    assert got.shape == expected.shape and got.dtype == torch.float32
    error = float((got.double() - expected).abs().max()) / max(float(expected.abs().max()), least)
    assert error <= tolerance, error


def close_gradients(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert list(found) == list(expected)
    least = 0.1 * max(float(a.abs().max()) for a in expected.values())  # sums may cancel
    for name in expected:
        close(found[name], expected[name], 3e-6, least)


@pytest.mark.parametrize("steps", [1, 5, 23])
@pytest.mark.parametrize("teacher", ROWS, ids=lambda row: row.name)
def test_steps_and_gradient_are_those_of_step_and_autograd(teacher, steps):
    given = case(teacher, steps)
    weights, x, c, start = given
    outs, last, grads = reference(teacher, *given)
    network, state = with_kernels(teacher, weights), start
    for t in range(steps):
        out, state = network.roll(x[t], state, t + 1)
        close(out, outs[t], 3e-6)
    for got, expected in zip(state, last, strict=True):
        close(got, expected, 3e-6)
    close_gradients(network.pull(State(0, (), start), x, c), grads)


@pytest.mark.parametrize("name", ["rp_s", "rnnprop"])
def test_small_outputs_keep_their_digits(name):
    teacher = TEACHERS[name]
    weights, x, c, start = case(teacher, 1)
    weights["out/w"], weights["out/b"] = 1e-4 * weights["out/w"], 0.0 * weights["out/b"]
    expected, *_ = reference(teacher, weights, x, c, start)
    got, _ = with_kernels(teacher, weights).roll(x[0], start, 1)
    torch.testing.assert_close(got.double(), expected[0], rtol=1e-4, atol=1e-10)


@pytest.mark.parametrize("name", ["rp_s", "dm"])
def test_the_new_state_takes_the_old_ones_place_only_where_told(name):
    teacher = TEACHERS[name]
    weights, x, _, start = case(teacher, 1)
    before = [a.clone() for a in start]
    network = with_kernels(teacher, weights)
    out, apart = network.roll(x[0], start, 1)
    assert all(torch.equal(a, b) for a, b in zip(start, before, strict=True))
    assert not {a.data_ptr() for a in apart} & {a.data_ptr() for a in start}
    again, same = network.roll(x[0], start, 1, reuse=True)
    assert [a.data_ptr() for a in same] == [a.data_ptr() for a in start]
    assert torch.equal(out, again)
    assert all(torch.equal(a, b) for a, b in zip(apart, same, strict=True))


@pytest.mark.parametrize("sizes", [{"window": 3, "scratch": 1}, {"window": 40}, {"window": 1}], ids=str)
def test_windows_and_chunks_change_nothing_but_rounding(sizes):
    teacher = TEACHERS["rnnprop"]
    weights, x, c, start = case(teacher, 7, n=131)
    *_, grads = reference(teacher, weights, x, c, start)
    close_gradients(with_kernels(teacher, weights, **sizes).pull(State(0, (), start), x, c), grads)


def test_scratch_stays_below_its_bound(monkeypatch):
    """All that a gradient keeps of a chunk, counted where it is made."""
    teacher, made, real = TEACHERS["rp_s"], [], triton_network._Scratch
    monkeypatch.setattr(triton_network, "_Scratch", lambda *args: made.append(real(*args)) or made[-1])
    weights, x, c, start = case(teacher, 7, n=300)
    with_kernels(teacher, weights, window=2, scratch=1 << 17).pull(State(0, (), start), x, c)
    (scratch,) = made
    arrays = [*scratch.kept, *scratch.behind, *(a for mark in scratch.marks for a in mark)]
    arrays += {id(a): a for a in scratch.given()}.values()
    assert scratch.size == 128
    assert (1 << 16) < 4 * sum(a.numel() for a in arrays) <= 1 << 17


@pytest.mark.parametrize("coordinates", [None, np.arange(1, N, 2)], ids=["all", "subset"])
def test_the_meta_gradient_of_the_unroll_goes_through_the_kernels(coordinates, monkeypatch):
    teacher = TEACHERS["rp_si"]
    weights, x, c, start = case(teacher, 4)
    plain = TeacherNetwork(teacher, weights, torch.float64)
    plain.__dict__["compiled"] = None
    doubles = State(0, (), tuple(a.double() for a in start))
    expected = meta_gradient(plain, doubles, x.double(), c.double(), coordinates)
    network = with_kernels(teacher, weights)
    monkeypatch.setattr(network, "step", None)
    close_gradients(meta_gradient(network, State(0, (), start), x, c, coordinates), expected)


def test_no_coordinates():
    teacher = TEACHERS["rp_s"]
    weights, x, c, start = case(teacher, 2, n=0)
    network = with_kernels(teacher, weights)
    out, _ = network.roll(x[0], start, 1)
    assert out.shape == (0,)
    assert not any(a.any() for a in network.pull(State(0, (), start), x, c).values())


@pytest.fixture
def anywhere(monkeypatch):
    """CPU tensors taken for a GPU's, nothing tried before."""
    monkeypatch.setenv("L2O_TRITON", "1")
    monkeypatch.setattr(triton_network, "capable", lambda device: True)
    triton_network.checked.cache_clear()
    yield
    triton_network.checked.cache_clear()


class Spoiled:
    """A kernel that changes one of its arguments, or raises, after it has run."""

    def __init__(self, kernel, position: int | None) -> None:
        self.kernel, self.position = kernel, position

    def __getitem__(self, grid):
        def launch(*arguments, **options):
            self.kernel[grid](*arguments, **options)
            if self.position is None:
                raise RuntimeError("no such instruction\non this GPU")
            arguments[self.position].mul_(1.001)

        return launch


# Positions in the kernels' arguments: new h, new c, output; gates' derivatives, the output's.
@pytest.mark.parametrize(
    ("kernel", "position", "said"),
    [
        ("roll", 6, "is .* off"),
        ("roll", 7, "is .* off"),
        ("roll", 10, "the output is .* off"),
        ("roll", None, "RuntimeError: no such instruction"),
        ("pull", 14, "the gradient of lstm_0/w_input is .* off"),
        ("pull", 16, "the gradient of out/w is .* off"),
        ("pull", None, "RuntimeError: no such instruction"),
    ],
)
def test_a_wrong_kernel_is_found_out_and_plain_torch_used(kernel, position, said, anywhere, monkeypatch):
    teacher = TEACHERS["rp_s"]
    given = case(teacher, 2)
    weights, x, c, start = given
    monkeypatch.setattr(triton_lstm, kernel, Spoiled(getattr(triton_lstm, kernel), position))
    network = TeacherNetwork(teacher, weights)
    network.__dict__["compiled"] = None
    with pytest.warns(RuntimeWarning, match=f"rp_s on cpu are not used, plain torch is: .*{said}") as warned:
        out, _ = network.roll(x[0], start, 1)
    assert len(warned) == 1 and "\n" not in str(warned[0].message)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert TeacherNetwork(teacher, weights)._fused is None  # not tried again, not said again
        found = meta_gradient(network, State(0, (), start), x, c)
    outs, _, grads = reference(teacher, *given)
    close(out, outs[0], 3e-6)
    close_gradients(found, {name: teacher.scale * a for name, a in grads.items()})


@pytest.mark.parametrize("name", TEACHERS)
def test_right_kernels_are_used(name, anywhere):
    teacher = TEACHERS[name]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert isinstance(TeacherNetwork(teacher, case(teacher, 1)[0])._fused, FusedNetwork)


def test_what_has_no_kernels(anywhere, monkeypatch):
    def found(teacher, dtype=torch.float32):
        return TeacherNetwork(teacher, case(teacher, 1)[0], dtype)._fused

    assert found(TEACHERS["rp_s"], torch.float64) is None
    narrow = TeacherNetwork(TEACHERS["rp_s"], case(TEACHERS["rp_s"], 1)[0], state_dtype=torch.bfloat16)
    assert narrow._fused is None
    assert found(TeacherRow("deep", ("g",), (3, 3, 3))) is None
    assert found(TeacherRow("broad", ("g",), (33,))) is None
    assert found(TEACHERS["rp_s"]) is not None
    monkeypatch.setenv("L2O_TRITON", "0")
    assert found(TEACHERS["rp_s"]) is None
