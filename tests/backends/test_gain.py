"""A trained factor before tanh: the network it makes, its meta-gradient, and the files that hold it."""

import numpy as np
import pytest

from common import reference
from common.errors import L2OError
from common.tables.problems import PROBLEMS, Instance
from common.tables.teachers import TEACHERS, TeacherRow, initial_weights, variant
from interchange.emit import TARGETS
from interchange.files.weights import Teacher, load_weights, save_weights
from interchange.meta.config import TrainConfig
from tests.helpers.evolving import by_constants, evolution, learner_of

ROW = variant(TEACHERS["rp_s"], pre_tanh_scale=3.0)
WEIGHTS = {name: 2.0 * w for name, w in initial_weights(ROW, 1).items()}
PLAIN = {n: w * (6.0 if n.startswith("out/") else 1.0) for n, w in WEIGHTS.items() if n != "out/gain"}


def network(impl, row: TeacherRow = ROW, weights=WEIGHTS):
    return impl.module("backend").teacher_network(row, weights, "float64", "cpu")


def digits(impl):
    instance = Instance(PROBLEMS["digits-mlp"], 0, batch_size=16)
    return impl.module("problems.tasks").ProblemTask(instance, impl.DTYPES["float64"])


def test_it_begins_at_the_rows_and_is_the_last_weight():
    assert list(ROW.weight_shapes())[-1] == "out/gain" and initial_weights(ROW, 5)["out/gain"] == 3.0
    assert (
        WEIGHTS["out/gain"] == 6.0
        and "out/gain" not in PLAIN
        and "pre_tanh_scale" not in TEACHERS["rp_s"].to_dict()
    )
    assert TeacherRow.from_dict(ROW.to_dict()) == ROW


def test_its_meta_gradients_are_those_of_the_whole_graph(impl, code):
    task, net = digits(impl), network(impl)
    unroll, learner = impl.module("meta.unroll"), learner_of(net)
    at = unroll.advance(task, net, unroll.start(task, net), 3)[0]
    for method, second in ((learner.first_order, False), (learner.second_order, True)):
        got, expected = method(task, at, 6, None)[2], impl.whole_graph(task, net, at, 6, "sum", second=second)
        assert list(got) == list(expected) == list(WEIGHTS)
        got, expected = by_constants(net, got), by_constants(net, expected)
        assert abs(expected["out/gain"]).max() > 1e-6
        for name, want in expected.items():
            np.testing.assert_allclose(got[name], want, rtol=0, atol=1e-9 * np.abs(want).max(), err_msg=name)


def test_it_is_the_network_whose_last_layer_holds_it(impl, code):
    """Rollouts, perturbed ones side by side too, and the optimizer."""
    task, net, plain = digits(impl), network(impl), network(impl, TEACHERS["rp_s"], PLAIN)
    rollout = impl.module("meta.unroll").rollout
    np.testing.assert_allclose(rollout(task, net, 8), rollout(task, plain, 8), rtol=1e-12)
    _, losses = evolution(lambda k: task, net, 6, {}, np.random.default_rng(0), 2, 1e-12)
    np.testing.assert_allclose(losses, rollout(task, plain, 6)[:-1], rtol=1e-8)
    start = [np.random.default_rng(0).normal(size=(4, 3))]
    both = []
    for row, weights in ((ROW, WEIGHTS), (TEACHERS["rp_s"], PLAIN)):
        params = impl.parameters(start)
        one = impl.teacher(params, Teacher(row, weights, "", ""))
        for seed in range(3):
            impl.feed(one, params, [np.random.default_rng(seed).normal(size=(4, 3))])
        both.append(impl.value(params[0]))
    np.testing.assert_allclose(both[0], both[1], rtol=0, atol=1e-13)
    assert np.abs(both[0] - start[0]).max() > 1e-3


def test_training_moves_it_and_the_file_has_it(impl, tmp_path):
    config = TrainConfig(
        pre_tanh_scale=3.0, problem="digits-mlp", epochs=1, epoch_length=4, unroll=2, batch_size=8, lr=0.1,
        validate_every=0, out=str(tmp_path / "run"), quiet=True,
    )  # fmt: skip
    impl.module("train").train(config)
    found = load_weights(tmp_path / "run")
    assert found.row == ROW and 0.01 < abs(found.weights["out/gain"].item() - 3.0) < 1.0


def test_its_onnx_file_computes_the_oracles_step(tmp_path):
    onnxruntime = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed: extra [onnx]")
    save_weights(tmp_path / "t.h5", ROW, WEIGHTS, "")
    content = TARGETS["onnx"].emit(load_weights(tmp_path / "t.h5"), double=True)
    runner = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    g = np.random.default_rng(0).normal(size=5)
    values = reference.Features(ROW.beta1, ROW.beta2, ROW.eps, ROW.p).step(g)
    x = np.stack([values[name] for name in ROW.inputs], axis=1)
    expected = reference.teacher_step(ROW, WEIGHTS, x, reference.zero_cells(ROW, 5))[0]
    zeros = {
        value.name: np.zeros([5 if d == "N" else d for d in value.shape])
        for value in runner.get_inputs() if value.name not in ("g", "t")
    }  # fmt: skip
    u = runner.run(None, {"g": g, "t": np.array(1), **zeros})[0]
    np.testing.assert_allclose(u / ROW.scale, expected, rtol=0, atol=1e-12)


def test_a_gain_without_tanh_is_refused():
    with pytest.raises(
        L2OError, match=r"pre_tanh_scale: expected a number above 0 before tanh, got 2\.0 before linear"
    ):
        variant(TEACHERS["dm"], pre_tanh_scale=2.0)
