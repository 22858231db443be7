"""Training as networks are trained, by both backends: the same losses, scores and figures along the way."""

from typing import Any

import numpy as np
import pytest

from common.tables.baselines import parse_spec
from interchange.commands.optimize import OptimizeConfig
from interchange.rollout import Rollout
from tests.conftest import need_half_products
from tests.parity.backends import BACKENDS, torch, torch_impl

for backend, _ in BACKENDS:
    pytest.importorskip(f"{backend.__name__}.rollout")


def rollouts(text: str, problem: str = "digits-mlp", steps: int = 6, **options: Any) -> list[Rollout]:
    """A rollout of one optimizer, torch's and TensorFlow's, trained with options of ``OptimizeConfig``."""
    config = OptimizeConfig(problem=problem, **{"dtype": "float64", "batch_size": 8, "seed": 3} | options)
    spec, found = parse_spec(text), []
    for backend, _ in BACKENDS:
        task = backend.problems.tasks.table_task(config, "a stream", 0)
        source, lr, schedule = backend.sources.load(spec), spec.lr or spec.middle, spec.schedule or "constant"
        found.append(backend.rollout.rollout(source, lr, task, steps, schedule, training=config.training))
    return found


def assert_same(got: Rollout, want: Rollout) -> None:
    np.testing.assert_allclose(got.losses, want.losses, rtol=1e-9)
    assert got.outcome == want.outcome and got.accuracy == pytest.approx(want.accuracy, nan_ok=True)
    assert got.test_loss == pytest.approx(want.test_loss, rel=1e-9, nan_ok=True)


def test_figures_along_the_way_are_the_same_and_end_with_those_of_the_end():
    got, want = rollouts("adam", test_every=2, steps=5)
    np.testing.assert_allclose(got.curve, want.curve, rtol=1e-9)
    assert got.curve[:, 0].tolist() == [2, 4, 5]
    assert got.curve[-1, 1:].tolist() == [got.test_loss, got.accuracy]
    (two, _), (none, _) = rollouts("adam", steps=2), rollouts("adam", "quadratic", test_every=1, steps=2)
    assert two.curve.shape == (0, 3) and two.test_loss == pytest.approx(got.curve[0, 1], rel=1e-9)
    assert np.isnan(none.curve[:, 1:]).all() and len(none.curve) == 2


def by_torch_alone(make: Any, clip: float = 0.0, loss: Any = None, **options: Any) -> np.ndarray:
    """Losses of torch's own optimizer in a loop as it is written in books."""
    config = OptimizeConfig(problem="digits-mlp", dtype="float64", batch_size=8, seed=3, **options)
    task = torch_impl.problems.tasks.table_task(config, "a stream", 0)
    parameters = torch_impl.rollout.leaves(task)
    optimizer, losses = make(parameters), []
    for step in range(6):
        value = task.loss(parameters, step) if loss is None else loss(task, parameters, step)
        losses.append(value.item())
        optimizer.zero_grad()
        value.backward()
        if clip:
            torch.nn.utils.clip_grad_norm_(parameters, clip)
        optimizer.step()
    return np.array(losses)


def test_gradients_are_clipped_by_their_norm_as_torch_does():
    plain, large = rollouts("sgd:lr=0.5"), rollouts("sgd:lr=0.5", clip_norm=1e9)
    got, want = rollouts("sgd:lr=0.5,l2=0.1", clip_norm=0.7)
    assert_same(got, want)
    np.testing.assert_array_equal(plain[0].losses, large[0].losses)
    alone = by_torch_alone(lambda p: torch.optim.SGD(p, 0.5, weight_decay=0.1), 0.7)  # decay is not clipped
    np.testing.assert_allclose(got.losses, alone, rtol=1e-12)
    assert abs(got.losses[-1] - plain[0].losses[-1]) > 1e-3


def test_a_step_of_several_batches_takes_the_mean_of_their_gradients():
    def two(task: Any, parameters: list, step: int) -> Any:
        return 0.5 * (task.loss(parameters, 2 * step) + task.loss(parameters, 2 * step + 1))

    got, want = rollouts("momentum:lr=0.1", accumulate=2)
    assert_same(got, want)
    np.testing.assert_allclose(
        got.losses, by_torch_alone(lambda p: torch.optim.SGD(p, 0.1, 0.9), loss=two), rtol=1e-12
    )
    assert_same(
        *rollouts("momentum:lr=0.1", "mnist-conv", 2, accumulate=3, dataset="synthetic")
    )  # batch norm


def test_smoothed_labels_are_torchs_and_of_the_training_alone():
    def smoothed(task: Any, parameters: list, step: int) -> Any:
        images, labels = task._data
        rows = torch.from_numpy(task.instance.batch_indices(step))
        scores = task.logits(parameters, task._seen(images[rows]), True)
        return torch.nn.functional.cross_entropy(scores, labels[rows], label_smoothing=0.2)

    got, want = rollouts("sgd:lr=0.1", label_smoothing=0.2)
    assert_same(got, want)
    alone = by_torch_alone(lambda p: torch.optim.SGD(p, 0.1), loss=smoothed)
    np.testing.assert_allclose(got.losses, alone, rtol=1e-12)
    still, plain = (rollouts("sgd:lr=1e-30", steps=1, **one)[0] for one in ({"label_smoothing": 0.2}, {}))
    assert still.test_loss == plain.test_loss and still.losses[0] != plain.losses[0]


def test_sgd_takes_nesterovs_momentum():
    got, want = rollouts("sgd:momentum=0.9,nesterov=1,lr=0.1")
    assert_same(got, want)
    alone = by_torch_alone(lambda p: torch.optim.SGD(p, 0.1, 0.9, nesterov=True))
    np.testing.assert_allclose(got.losses, alone, rtol=1e-12)
    assert abs(got.losses[-1] - rollouts("momentum:lr=0.1")[0].losses[-1]) > 1e-6


def test_the_average_of_the_parameters_is_torchs_and_what_is_tested():
    got, want = rollouts("sgd:lr=0.1", average=0.7, test_every=1)
    assert_same(got, want)
    np.testing.assert_allclose(got.curve, want.curve, rtol=1e-9)
    config = OptimizeConfig(problem="digits-mlp", dtype="float64", batch_size=8, seed=3)
    task = torch_impl.problems.tasks.table_task(config, "a stream", 0)
    net = torch.nn.ParameterList(torch_impl.rollout.leaves(task))
    average = torch.optim.swa_utils.get_ema_multi_avg_fn(0.7)
    theirs = torch.optim.swa_utils.AveragedModel(net, multi_avg_fn=average)
    optimizer = torch.optim.SGD(net.parameters(), 0.1)
    for step in range(6):
        optimizer.zero_grad()
        task.loss(list(net), step).backward()
        optimizer.step()
        theirs.update_parameters(net)
        scores = task.test_scores(torch_impl.rollout.flat(list(theirs.module)))
        np.testing.assert_allclose(got.curve[step, 1:], scores, rtol=1e-12)
    plain = rollouts("sgd:lr=0.1")[0]
    np.testing.assert_array_equal(got.losses, plain.losses)
    assert got.test_loss != plain.test_loss


@pytest.mark.slow  # whether TensorFlow can is asked in a child, which takes as long as most of a file
@pytest.mark.parametrize("problem", ["digits-mlp", "digits-conv"])
def test_products_in_bfloat16_are_as_close_as_its_rounding(problem):
    need_half_products("bfloat16")
    plain = rollouts("sgd:lr=0.05", problem, dtype="float32")[0]
    for found in rollouts("sgd:lr=0.05", problem, dtype="float32", bfloat16=True):
        assert 1e-5 < np.abs(found.losses / plain.losses - 1.0).max() < 0.03
        assert found.losses.dtype == np.float64 and found.outcome == "ok"


DECAYED = ["sgd", "adam", "lion", "schedule-free", "muon", "teacher:rp_s", "rule:rnnprop_tuned"]


@pytest.mark.parametrize("text", DECAYED)
def test_weight_decay_is_the_same_of_every_optimizer(text):
    more = f"{text}{',' if ':' in text else ':'}weight_decay=0.3,l2=0.2"
    plain, spared = rollouts(text), rollouts(more, decay_vectors=False)
    assert_same(*spared)
    assert spared[0].losses[0] == plain[0].losses[0] and spared[0].losses[5] != plain[0].losses[5]
    assert_same(*rollouts(more))
