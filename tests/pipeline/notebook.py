# %% [markdown]
# From an LSTM to an equation to an optimizer, cell by cell, as in a notebook. Small, so that it takes half a
# minute; test_whole_path.py runs it.

# %%
import matplotlib.pyplot as plt
import torch

from common.metrics import summarise, summary_text
from interchange import Rule, Teacher, distill, load_trajectories
from interchange.commands.optimize import OptimizeConfig
from interchange.commands.record import RecordConfig
from interchange.commands.select import SelectConfig
from interchange.distill.config import DistillConfig
from interchange.evaluation.config import EvaluateConfig
from interchange.meta.config import TrainConfig, TuneConfig
from torch_impl import (
    LearnedOptimizer,
    Recorder,
    SymbolicOptimizer,
    evaluate,
    optimize,
    record,
    select,
    train,
    tune,
)

digits = {"problem": "digits-mlp", "quiet": True}

# %% Meta-train a teacher.
small = {"epoch_length": 40, "lr": 5e-3}
run = train(TrainConfig(teacher="rp_s", epochs=12, validate_every=4, out="runs/rp", **small, **digits))
print(run)

# %%
plt.plot([row["loss"] for row in run.history])
plt.savefig("training.png")

# %% Or take one that ships trained.
shipped = Teacher.named("rp_s")
print(shipped)

# %% What does it see and do?
file = record(RecordConfig(source="teacher:rp_s", runs=5, steps=60, samples=6000, **digits))
trajectories = load_trajectories(file)
print(trajectories)

# %% As an equation.
config = DistillConfig(trajectories=str(file), time=8, max_size=25, out="runs/rules", quiet=True)
front, best = distill(config)
print(front)
front  # noqa: B018  # a notebook shows it as a table

# %% Which of them optimizes best?
best, *_ = select(SelectConfig(front="runs/rules", steps=60, tasks=2, **digits))
print(best)
best  # noqa: B018  # a notebook shows it as an equation

# %% Its constants, tuned.
small = {"epochs": 3, "epoch_length": 40, "pairs": 2, "validate_every": 3}
tuned = tune(TuneConfig(rule="runs/rules/best.json", out="runs/tuned.json", **small, **digits))
print(tuned, tuned.provenance["tuned"]["validation"])

# %% Against optimizers tuned with the same number of trials.
optimizers = ("adam", "nesterov", "teacher:rp_s", "rule:runs/tuned.json")
small = {"steps": (60,), "seeds": 2, "validation_seeds": 1, "trials": 3}
rows = evaluate(EvaluateConfig(optimizers=optimizers, out="runs/evaluation", **small, **digits))
print(summary_text(summarise(rows, (60,))))

# %% One plain training, its losses kept.
config = OptimizeConfig(
    optimizer="rule:runs/tuned.json", problem="digits-conv", steps=60, out="runs/net", quiet=True
)
print(optimize(config))

# %% In a training loop of your own, recorded.
data = torch.randn(200, 3, generator=torch.Generator().manual_seed(0))
target = data.sum(1, keepdim=True).tanh()
for make in (
    lambda params: SymbolicOptimizer(params, tuned, center=True),
    lambda params: LearnedOptimizer(params, "rp_s"),
    lambda params: torch.optim.Adam(params, lr=0.02),
):
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(3, 16), torch.nn.ReLU(), torch.nn.Linear(16, 1))
    optimizer = make(model.parameters())
    recorder = Recorder(optimizer)
    for _ in range(100):
        optimizer.zero_grad()
        loss = (model(data) - target).square().mean()
        loss.backward()
        recorder.loss(loss)
        optimizer.step()
    recorder.save(f"runs/{type(optimizer).__name__}.h5")
    print(type(optimizer).__name__, loss.item())

# %% The equation in other notations, and back from its file.
again = Rule.load("runs/tuned.json")
assert again == tuned
print(again.latex(), again.sympy(), sep="\n")
