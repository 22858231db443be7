"""An LSTM that has learned a moving average looks back as far as the average does."""

import numpy as np
import pytest

from common.reference import Features
from common.tables.teachers import TeacherRow, initial_weights
from interchange.analysis.measures.fit import fit
from interchange.analysis.measures.perception import perception
from interchange.analysis.recorded import Recorded, noise
from interchange.analysis.subjects import Subject
from interchange.files.weights import Teacher

BETA = 0.8
ROW = TeacherRow(name="imitator", inputs=("g_tilde",), lstm=(8,), output="linear", scale=1.0)


def average(data: Recorded) -> np.ndarray:
    """- ema_hat(g_tilde, BETA) along the sequences, [T, N]."""
    features = Features(ROW.beta1, ROW.beta2, ROW.eps, ROW.p)
    x = np.stack([features.step(g)["g_tilde"] for g in data.given["g"]])
    state, found = 0.0, np.empty_like(x)
    for t, now in enumerate(x, 1):
        state = BETA * state + (1 - BETA) * now
        found[t - 1] = -state / (1 - BETA**t)
    return found


def imitator(steps: int = 400) -> Teacher:
    """Trained by Adam in torch on whole sequences of noise."""
    torch = pytest.importorskip("torch")
    torch.manual_seed(0)
    data = noise(5)
    subject = Subject("row", Teacher(ROW, initial_weights(ROW, 0), "", ""))
    x = torch.tensor(subject.features(data.given)["g_tilde"][:80, :, None], dtype=torch.float32)
    y = torch.tensor(average(data)[:80], dtype=torch.float32)
    cell, out = torch.nn.LSTM(1, 8), torch.nn.Linear(8, 1)
    optimizer = torch.optim.Adam([*cell.parameters(), *out.parameters()], lr=0.02)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in range(steps):
        optimizer.zero_grad()
        (out(cell(x)[0])[..., 0] - y).square().mean().backward()
        optimizer.step()
        schedule.step()
    arrays = {name: p.detach().double().numpy() for name, p in [*cell.named_parameters()]}
    weights = {
        "lstm_0/w_input": arrays["weight_ih_l0"],
        "lstm_0/w_hidden": arrays["weight_hh_l0"],
        "lstm_0/bias": arrays["bias_ih_l0"] + arrays["bias_hh_l0"],
        "out/w": out.weight.detach().double().numpy(),
        "out/b": out.bias.detach().double().numpy(),
    }
    return Teacher(ROW, weights, "", "")


@pytest.mark.slow
def test_an_lstm_that_imitates_an_average_has_its_perception_field():
    data = noise(6)
    data = Recorded(data.given, average(data), data.tensors, data.tensor_names, source="ema_hat")
    subject = Subject("imitator", imitator())
    assert fit(subject, data).pooled > 0.98
    assert perception(subject, data).total == pytest.approx(1.0 / (1.0 - BETA), rel=0.1)
