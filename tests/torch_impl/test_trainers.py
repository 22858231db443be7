"""Lightning, accelerate, Hugging Face's Trainer, timm: the steps of a loop by hand, resumed and recorded."""

import copy

import numpy as np
import pytest

from interchange.files.trajectories import load_trajectories

torch = pytest.importorskip("torch")

from torch_impl import LearnedOptimizer, Recorder, SymbolicOptimizer  # noqa: E402

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]  # of which theirs are many
X = torch.randn(32, 4, generator=torch.Generator().manual_seed(0))
Y = X.sum(1, keepdim=True).tanh()
MAKE = {
    "rule": lambda params: SymbolicOptimizer(params, "rnnprop_tuned", weight_decay=0.01),
    "teacher": lambda params: LearnedOptimizer(params, "rp_s"),
}


class Regression(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.net = torch.nn.Linear(4, 1)

    def forward(self, x, labels):
        return {"loss": (self.net(x) - labels).square().mean()}


def by_hand(make, steps: int) -> list[np.ndarray]:
    """The weights after some steps on all of the data."""
    model = Regression()
    optimizer = make(model.parameters())
    for _ in range(steps):
        optimizer.zero_grad()
        model(X, Y)["loss"].backward()
        optimizer.step()
    return weights(model)


def weights(model: torch.nn.Module) -> list[np.ndarray]:
    return [p.detach().numpy().copy() for p in model.parameters()]


def recorded(path) -> int:
    """How many steps a recording has."""
    return len(next(iter(load_trajectories(path).runs.values())).loss)


def same(got: list[np.ndarray], want: list[np.ndarray]) -> None:
    for a, b in zip(got, want, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("make", MAKE.values(), ids=MAKE)
def test_lightning(make, tmp_path):
    lightning = pytest.importorskip("lightning", reason="lightning is not installed")

    class Module(lightning.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.model = Regression()

        def training_step(self, batch, index):
            return self.model(*batch)["loss"]

        def configure_optimizers(self):
            optimizer = make(self.parameters())
            self.recorder = Recorder(optimizer)
            return optimizer

    data = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(X, Y), batch_size=len(X))
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    quiet |= {"accelerator": "cpu", "default_root_dir": tmp_path, "enable_checkpointing": False}
    first = Module()
    trainer = lightning.Trainer(max_epochs=3, **quiet)
    trainer.fit(first, data)
    trainer.save_checkpoint(tmp_path / "three.ckpt")
    same(weights(first), by_hand(make, 3))
    first.recorder.save(tmp_path / "recorded.h5")
    assert recorded(tmp_path / "recorded.h5") == 3
    again = Module()
    lightning.Trainer(max_epochs=6, **quiet).fit(again, data, ckpt_path=tmp_path / "three.ckpt")
    same(weights(again), by_hand(make, 6))


@pytest.mark.parametrize("make", MAKE.values(), ids=MAKE)
def test_accelerate(make, tmp_path):
    accelerate = pytest.importorskip("accelerate", reason="accelerate is not installed")

    def trained(steps: int, start: str = "") -> torch.nn.Module:
        model = Regression()
        accelerator = accelerate.Accelerator(cpu=True, gradient_accumulation_steps=2)
        model, optimizer = accelerator.prepare(model, make(model.parameters()))
        recorder = Recorder(optimizer)
        if start:
            accelerator.load_state(start)
        for _ in range(2 * steps):  # halves of the data: the mean of two gradients is that of all
            for half in (slice(0, 16), slice(16, 32)):
                with accelerator.accumulate(model):
                    accelerator.backward(model(X[half], Y[half])["loss"])
                    optimizer.step()
                    optimizer.zero_grad()
        accelerator.save_state(str(tmp_path / "state"))
        recorder.save(tmp_path / f"{start != ''}.h5")
        assert recorded(tmp_path / f"{start != ''}.h5") == 2 * steps
        return model

    same(weights(trained(2)), by_hand(make, 4))
    same(weights(trained(1, str(tmp_path / "state"))), by_hand(make, 6))


@pytest.mark.parametrize("make", MAKE.values(), ids=MAKE)
def test_the_trainer_of_hugging_face(make, tmp_path):
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    pytest.importorskip("accelerate", reason="accelerate is not installed, which transformers.Trainer needs")
    data = [{"x": x, "labels": y} for x, y in zip(X, Y, strict=True)]

    def trained(epochs: int, **resume: str) -> torch.nn.Module:
        model = Regression()
        arguments = transformers.TrainingArguments(
            str(tmp_path / "run"), num_train_epochs=epochs, per_device_train_batch_size=len(X), use_cpu=True,
            lr_scheduler_type="constant", max_grad_norm=0.0, report_to=[], disable_tqdm=True,
            save_strategy="epoch",
        )  # fmt: skip
        optimizers = (make(model.parameters()), None)
        trainer = transformers.Trainer(model, arguments, train_dataset=data, optimizers=optimizers)
        trainer.train(**resume)
        return model

    same(weights(trained(3)), by_hand(make, 3))
    same(weights(trained(5, resume_from_checkpoint=str(tmp_path / "run/checkpoint-3"))), by_hand(make, 5))


def test_groups_and_wrappers_of_timm(tmp_path):
    pytest.importorskip("timm", reason="timm is not installed")
    from timm.optim import Lookahead, param_groups_weight_decay
    from timm.scheduler import StepLRScheduler

    torch.manual_seed(2)
    model = torch.nn.Sequential(
        torch.nn.BatchNorm1d(4), torch.nn.Linear(4, 8), torch.nn.Tanh(), torch.nn.Linear(8, 1)
    )
    plain = copy.deepcopy(model)
    groups = param_groups_weight_decay(model, weight_decay=0.05)
    assert [group["weight_decay"] for group in groups] == [0.0, 0.05]
    twins = dict(zip(model.parameters(), plain.parameters(), strict=True))
    own = [
        {"params": [twins[p] for p in group["params"]], "weight_decay": group["weight_decay"]}
        for group in groups
    ]
    adamw = torch.optim.AdamW(own, lr=0.1)
    wrapped = Lookahead(SymbolicOptimizer(groups, "adam", lr=0.1), alpha=1.0, k=2)  # 1: as without it
    recorder = Recorder(wrapped)
    scheduler = StepLRScheduler(wrapped, decay_t=1, decay_rate=0.5)
    for epoch in range(4):
        for net, optimizer in ((model, wrapped), (plain, adamw)):
            optimizer.zero_grad()
            (net(X) - Y).square().mean().backward()
            optimizer.step()
        scheduler.step(epoch + 1)
        for group in adamw.param_groups:
            group["lr"] *= 0.5
    same(weights(model), weights(plain))
    recorder.save(tmp_path / "recorded.h5")
    assert recorded(tmp_path / "recorded.h5") == 4
