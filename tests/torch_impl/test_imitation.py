"""Imitation of hand-made optimizers: their trajectory, the loss, and its gradient by plain autograd."""

import dataclasses

import numpy as np
import pytest

from common.tables.problems import PROBLEMS, Instance
from common.tables.teachers import TEACHERS, initial_weights
from interchange.meta.config import TrainConfig

torch = pytest.importorskip("torch")

from interchange.meta.schedule import EXPERTS  # noqa: E402
from interchange.meta.trainer import make_trainer  # noqa: E402
from torch_impl.meta import imitation, unroll  # noqa: E402
from torch_impl.meta.learner import Learner  # noqa: E402
from torch_impl.networks.teacher import TeacherNetwork  # noqa: E402
from torch_impl.problems.tasks import ProblemTask, value_and_gradient  # noqa: E402

STEPS = 12
OPTIMIZERS = {
    "adam": lambda theta: torch.optim.Adam([theta], lr=0.01),
    "rmsprop": lambda theta: torch.optim.RMSprop([theta], lr=0.01),
    "nesterov": lambda theta: torch.optim.SGD([theta], lr=0.01, momentum=0.9, nesterov=True),
}


def task() -> ProblemTask:
    return ProblemTask(Instance(PROBLEMS["digits-mlp"], 3, batch_size=16), torch.float64)


def network(name: str = "rp_s") -> TeacherNetwork:
    return TeacherNetwork(TEACHERS[name], initial_weights(TEACHERS[name], 2), torch.float64)


def trajectory(expert: str) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """Parameters before and after every step of torch.optim's own, and the gradients it saw."""
    optimizee, theta = task(), task().initial().clone().requires_grad_()
    optimizer, thetas, gradients = OPTIMIZERS[expert](theta), [theta.detach().clone()], []
    for step in range(STEPS):
        theta.grad = value_and_gradient(optimizee, theta.detach(), step)[1]
        gradients.append(theta.grad.clone())
        optimizer.step()
        thetas.append(theta.detach().clone())
    return thetas, gradients


@pytest.mark.parametrize("expert", OPTIMIZERS)
def test_the_optimizee_goes_the_experts_way(expert):
    assert set(EXPERTS) == set(OPTIMIZERS) and EXPERTS[expert] == 0.01
    at = imitation.start(task(), network(), expert, EXPERTS[expert])
    end, losses, _, _ = imitation.advance(task(), network(), at, STEPS)
    assert (end.step, len(losses)) == (STEPS, STEPS)
    np.testing.assert_allclose(end.theta, trajectory(expert)[0][-1], rtol=0, atol=1e-12)


@pytest.mark.parametrize("teacher", ["dm", "rp_s", "rnnprop"])
@pytest.mark.parametrize("expert", OPTIMIZERS)
def test_losses_and_meta_gradient_are_autograds(teacher, expert):
    """Over two unrolls, the second with the state that the first left."""
    net, optimizee = network(teacher), task()
    thetas, gradients = trajectory(expert)
    at = imitation.start(optimizee, net, expert, EXPERTS[expert])
    state = net.initial_state(thetas[0])
    for part in (range(5), range(5, STEPS)):
        leaves = {name: w.detach().clone().requires_grad_() for name, w in net.weights.items()}
        expected = []
        for step in part:
            x, state = net.inputs(gradients[step], state)
            out, hidden = net.step(leaves, x, state.network, state.t)
            state = dataclasses.replace(state, network=hidden)
            move = thetas[step + 1] - thetas[step]
            expected.append(0.5 * (move - net.scale * out).square().sum() / len(move))
        wanted = torch.autograd.grad(sum(expected), list(leaves.values()))
        state = dataclasses.replace(state, network=tuple(a.detach() for a in state.network))
        end, losses, inputs, c = imitation.advance(optimizee, net, at, len(part))
        grads = unroll.meta_gradient(net, at.state, inputs, c)
        np.testing.assert_allclose(losses, torch.stack(expected).detach(), rtol=1e-7)
        for (name, got), want in zip(grads.items(), wanted, strict=True):
            np.testing.assert_allclose(
                got, want, rtol=1e-7, atol=1e-9 * float(want.abs().max()), err_msg=name
            )
        at = end


def test_training_by_imitation_alone_learns_the_experts_steps():
    config = TrainConfig(
        problem="digits-mlp", teacher="rp_s", epochs=12, epoch_length=40, lr=0.01, imitation=1.0,
        batch_size=32, validate_every=0, dtype="float64",
    )  # fmt: skip
    trainer = make_trainer(Learner(network(), config))
    trainer.schedule.expert = lambda epoch, stage: "adam"
    trainer.run(label="", quiet=True)
    losses = [row["loss"] for row in trainer.state.history]
    assert all(row["imitates"] == "adam" for row in trainer.state.history)
    assert np.mean(losses[-3:]) < 0.5 * losses[0]
