"""Evolution strategies, whole and persistent, against what they estimate."""

import os
import signal
import subprocess
import sys

import numpy as np
import pytest

from common.run.shelf import Shelf
from common.tables.problems import PROBLEMS, Instance
from interchange import Rule
from interchange.backend import Half
from interchange.meta import evolution as shared
from interchange.meta.evolution import objective

torch = pytest.importorskip("torch")

from tests.helpers.evolving import Persistent, evolution, here  # noqa: E402
from torch_impl.meta import unroll  # noqa: E402
from torch_impl.networks.rule import RuleNetwork  # noqa: E402
from torch_impl.problems.tasks import ProblemTask  # noqa: E402

STEPS, SIGMA = 10, 0.1
SCALES = {"c0": 0.05, "c1": 1.0}


def task(number: int) -> ProblemTask:
    return ProblemTask(Instance(PROBLEMS["quadratic"], number), torch.float64)


def network() -> RuleNetwork:
    return RuleNetwork(Rule.from_text("c0 * ema(g, c1)", constants={"c0": -0.05, "c1": 0.5}))


def copies(net: RuleNetwork) -> dict[str, torch.Tensor]:
    return {name: w.clone() for name, w in net.weights.items()}


def assert_same(weights: dict[str, torch.Tensor], others: dict[str, torch.Tensor]) -> None:
    assert all(torch.equal(weights[name], others[name]) for name in weights)


def mean_and_error(draws: list[list[float]]) -> tuple[np.ndarray, np.ndarray]:
    return np.mean(draws, 0), np.std(draws, 0, ddof=1) / np.sqrt(len(draws))


def value_at(moves: dict[str, float]) -> float:
    net = network()
    for name, w in net.weights.items():
        w += moves[name]
    return objective(unroll.rollout(task(0), net, STEPS)[:-1])


def test_evolution_estimates_the_slope_of_the_smoothed_objective():
    net = network()
    draws = []
    for draw in range(100):
        grads, _ = evolution(lambda pair: task(0), net, STEPS, SCALES, np.random.default_rng(draw), 2, SIGMA)
        draws.append([float(grads[name]) for name in SCALES])
    mean, error = mean_and_error(draws)
    # d/dw E f(w + sigma s e) by Gauss-Hermite quadrature over both perturbations, differences outside.
    nodes, weights = np.polynomial.hermite_e.hermegauss(9)
    for k, name in enumerate(SCALES):
        slope, h = 0.0, 1e-4 * SCALES[name]
        for a, wa in zip(nodes, weights, strict=True):
            for b, wb in zip(nodes, weights, strict=True):
                at = {"c0": SIGMA * SCALES["c0"] * a, "c1": SIGMA * SCALES["c1"] * b}
                up, down = ({**at, name: at[name] + sign * h} for sign in (1.0, -1.0))
                slope += wa * wb * (value_at(up) - value_at(down)) / (2.0 * h)
        slope /= weights.sum() ** 2
        assert abs(mean[k] - slope) < 4.0 * error[k]
    assert abs(mean[0]) > 10.0 * error[0]  # the slope itself is seen, not only noise around it


def test_evolution_leaves_the_weights_as_they_were_and_repeats_itself():
    net = network()
    before = copies(net)
    first, _ = evolution(task, net, STEPS, SCALES, np.random.default_rng(0), 3, SIGMA)
    again, _ = evolution(task, net, STEPS, SCALES, np.random.default_rng(0), 3, SIGMA)
    assert_same(net.weights, before)
    assert_same(first, again)


def test_a_rollout_that_diverges_counts_as_ten_times_its_first_loss():
    net = network()
    net.weights["c0"].fill_(1e12)
    losses = unroll.rollout(task(0), net, 60)
    assert not np.isfinite(losses).all()
    assert objective(losses) == pytest.approx(10.0 * losses[0])
    grads, losses = evolution(task, net, 60, SCALES, np.random.default_rng(0), 1, SIGMA)
    assert not np.isfinite(losses).all()
    assert all(bool(torch.isfinite(g)) for g in grads.values())


def test_persistent_evolution_estimates_the_slope_of_the_mean_loss_of_a_whole_epoch():
    net, length, piece = network(), 12, 3
    draws = []
    for draw in range(20):
        particles = Persistent(task, net, SCALES, 1e-3, 8, np.random.default_rng(draw), horizon=length)
        pieces = [particles.advance(piece)[0] for _ in range(0, length, piece)]
        draws.append([sum(float(g[name]) for g in pieces) for name in SCALES])
    mean, error = mean_and_error(draws)

    def value(name, h):
        moved = network()
        moved.weights[name] += h
        return np.mean([unroll.rollout(task(pair), moved, length)[1:].mean() for pair in range(8)])

    for k, name in enumerate(SCALES):
        h = 1e-4 * SCALES[name]
        slope = (value(name, h) - value(name, -h)) / (2.0 * h)
        assert abs(mean[k] - slope) < 3.5 * error[k]
    assert abs(mean[0]) > 5.0 * error[0]


def test_persistent_particles_go_on_where_they_stood_and_leave_the_weights_alone():
    net = network()
    before = copies(net)
    particles = Persistent(task, net, SCALES, 1e-12, 2, np.random.default_rng(0))
    losses = np.concatenate([particles.advance(steps)[1] for steps in (4, 4, 2)])
    np.testing.assert_allclose(losses, unroll.rollout(task(1), net, 10)[:-1], rtol=1e-9)
    assert_same(net.weights, before)
    net.weights["c0"].fill_(0.0)  # the next piece is around the weights as they are then
    _, stands = particles.advance(3)
    np.testing.assert_allclose(stands, stands[0], rtol=1e-9)


def test_positions_of_large_optimizees_wait_in_a_file(monkeypatch):
    """Twice in each place: of four halves, the gradients of three pieces are those of positions in memory."""

    def pieces():
        particles = Persistent(task, network(), SCALES, 0.01, 2, np.random.default_rng(0), horizon=8)
        found = [particles.advance(steps)[0] for steps in (3, 3, 2)]
        return [float(grads[name]) for grads in found for name in SCALES]

    in_memory, laid, put = pieces(), [], Shelf.put
    monkeypatch.setattr(shared, "_MOST_COORDINATES", 0)
    monkeypatch.setattr(Shelf, "put", lambda self, key, arrays: laid.append(key) or put(self, key, arrays))
    assert pieces() == pytest.approx(in_memory, rel=1e-9)
    assert laid == 3 * [0, 1, 2, 3]


def test_an_error_on_the_way_leaves_the_weights_as_they_were():
    net = network()
    before = copies(net)

    def fails(pair):
        if pair == 1:
            raise ValueError("no such optimizee")
        return task(pair)

    with pytest.raises(ValueError, match="no such optimizee"):
        evolution(fails, net, STEPS, SCALES, np.random.default_rng(0), 2, SIGMA)
    assert_same(net.weights, before)


def test_halves_are_grouped_by_what_they_run_on_and_their_sizes_only():
    def groups(*pairs: tuple[object, int]) -> list[list[int]]:
        halves = [Half(k // 2, {}) for k in range(2 * len(pairs))]
        return [[half.pair for half in group] for group in shared.groups(halves, lambda k: pairs[k])]

    assert groups(*[("a", 10)] * 3) == [[0, 0, 1, 1, 2, 2]]
    assert groups(*[("a", 10)] * 6) == [[0, 0, 1, 1, 2, 2], [3, 3, 4, 4, 5, 5]]
    assert groups(("a", 10), ("b", 10), ("b", 10)) == [[0, 0], [1, 1, 2, 2]]
    assert groups((None, 10), ("a", 10), (None, 10)) == [[0], [0], [1, 1], [2], [2]]
    assert groups(*[("a", 2**17)] * 2) == [[0, 0], [1, 1]]
    assert groups(("a", 2**18), ("b", 10)) == [[0], [0], [1, 1]]


def test_what_cannot_run_in_lanes_runs_alone(monkeypatch):
    """Constants by the kind of a tensor, and optimizees that are no networks of dense layers."""
    seen = []
    real = shared.groups
    monkeypatch.setattr(
        shared, "groups", lambda *given: (seen.append(len(group)) or group for group in real(*given))
    )
    nesterov, digits = Rule.named("nesterov"), PROBLEMS["digits-mlp"]
    for kinds, problem in ((True, digits), (False, PROBLEMS["quadratic"]), (False, digits)):
        net = RuleNetwork(nesterov, kinds=kinds)
        halves = [Half(k // 2, {name: w.numpy().copy() for name, w in net.weights.items()}) for k in range(4)]
        tasks = lambda k, p=problem: ProblemTask(Instance(p, k, batch_size=16), torch.float64)  # noqa: E731
        list(here(tasks, net)(halves, 2, False))
    assert seen == [1] * 8 + [4]


@pytest.mark.slow
def test_ctrl_c_reaches_the_workers_too_and_still_leaves_a_checkpoint(tmp_path):
    """A terminal sends it to the whole group; a worker that died of it would take the epoch with it."""
    flags = "--problem digits-mlp --estimator es --pairs 2 --jobs 2 --epochs 9999 --epoch-length 20"
    line = [sys.executable, "-m", "torch_impl.train", *flags.split(), "--validate-every", "0", "--out", "run"]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    run = subprocess.Popen(line, cwd=tmp_path, start_new_session=True, **pipes)
    try:
        assert any("1/9999" in line for line in run.stdout)
        os.killpg(run.pid, signal.SIGINT)
        told, _ = run.communicate(timeout=60)
    finally:
        if run.poll() is None:
            os.killpg(run.pid, signal.SIGKILL)
    assert run.returncode == 130
    assert "--resume run" in told
