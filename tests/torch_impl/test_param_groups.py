"""Groups of a model's parameters: which are matrices, which decay, and that they travel as groups do."""

import copy
import io
import pickle

import pytest

from interchange.rule.rule import Rule

torch = pytest.importorskip("torch")

from torch import nn  # noqa: E402

from torch_impl import SymbolicOptimizer, param_groups  # noqa: E402

RULE = Rule.from_text("by_matrix(-polar(g) - 0.1 * ema(row_mean(g), 0.9), -ema(g, 0.9))")
WHOLE, NONE = True, False


class Model(nn.Module):
    """A layer of every kind."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embedding = nn.Embedding(10, 8)
        self.bag = nn.EmbeddingBag(10, 8)
        self.linear = nn.Linear(8, 6)
        self.alone = nn.Linear(8, 1)
        self.bilinear = nn.Bilinear(3, 4, 5)
        self.conv = nn.Conv2d(4, 6, 3)
        self.grouped = nn.Conv2d(4, 6, 3, groups=2)
        self.depthwise = nn.Conv1d(4, 8, 3, groups=4)
        self.transposed = nn.ConvTranspose2d(4, 6, 3)
        self.both = nn.ConvTranspose1d(4, 6, 3, groups=2)
        self.attention = nn.MultiheadAttention(8, 2, add_bias_kv=True)
        self.cross = nn.MultiheadAttention(8, 2, kdim=6, vdim=5)
        self.norm = nn.LayerNorm((3, 8))
        self.batch = nn.BatchNorm2d(4)
        self.token = nn.Parameter(torch.zeros(1, 1, 8))
        self.positions = nn.Parameter(torch.zeros(5, 8))
        self.gain = nn.Parameter(torch.zeros(()))


SEEN = {
    "embedding.weight": NONE,
    "bag.weight": NONE,
    "linear.weight": WHOLE,
    "alone.weight": NONE,
    "bilinear.weight": WHOLE,
    "conv.weight": WHOLE,
    "grouped.weight": ((0,), (1, 2, 3), 2, 0),
    "depthwise.weight": NONE,
    "transposed.weight": ((1,), (0, 2, 3)),
    "both.weight": ((1,), (0, 2), 2, 0),
    "attention.in_proj_weight": ((0,), (1,), 3, 0),
    "attention.out_proj.weight": WHOLE,
    "attention.bias_k": NONE,
    "cross.q_proj_weight": WHOLE,
    "cross.k_proj_weight": WHOLE,
    "cross.v_proj_weight": WHOLE,
    "cross.out_proj.weight": WHOLE,
    "norm.weight": NONE,
    "batch.weight": NONE,
    "token": NONE,
    "positions": WHOLE,
    "gain": NONE,
}
SPARED = ("attention.bias_k", "norm.weight", "norm.bias", "batch.weight", "gain")


def settings(model: nn.Module, **options) -> dict[str, dict]:
    """The group of every parameter by name."""
    names = {p: name for name, p in model.named_parameters()}
    return {names[p]: group for group in param_groups(model, **options) for p in group["params"]}


def fed(optimizer, params) -> None:
    generator = torch.Generator().manual_seed(len(optimizer.state))
    for p in params:
        p.grad = torch.randn(p.shape, generator=generator)
    optimizer.step()


def test_every_layer_is_seen_as_what_it_is():
    found = settings(Model())
    assert found.keys() == dict(Model().named_parameters()).keys()
    for name, group in found.items():
        assert group["matrix"] == SEEN.get(name, NONE), name


def test_biases_norms_and_what_has_fewer_than_two_axes_do_not_decay_and_embeddings_do():
    found = settings(Model(), weight_decay=0.1)
    for name, group in found.items():
        spared = name in SPARED or name.endswith(("bias", "bias_k", "bias_v"))
        assert group["weight_decay"] == (0.0 if spared else 0.1), name
    optimizer = SymbolicOptimizer(param_groups(Model()), RULE, weight_decay=0.3)
    assert {group["weight_decay"] for group in optimizer.param_groups} == {0.0, 0.3}


def test_matrices_of_a_packed_tensor_are_stepped_each_by_itself():
    """Three as three layers would be, of grouped convolutions one for every group."""
    model = Model()
    rule = Rule.from_text("by_matrix(-polar(g) - 0.1 * col_mean(g) / cols - g / rows, g)")
    optimizer = SymbolicOptimizer(param_groups(model), rule, 1.0)
    before = copy.deepcopy(dict(model.named_parameters()))
    fed(optimizer, list(model.parameters()))

    def alone(piece, g) -> torch.Tensor:
        p = nn.Parameter(piece.detach().clone())
        p.grad = g
        SymbolicOptimizer([p], rule, 1.0).step()
        return p.detach()

    cases = {  # how each matrix comes to lie as a layer's
        "attention.in_proj_weight": [(slice(8 * k, 8 * k + 8),) for k in range(3)],
        "grouped.weight": [(slice(3 * k, 3 * k + 3),) for k in range(2)],
        "both.weight": [(slice(2 * k, 2 * k + 2),) for k in range(2)],
        "transposed.weight": [(slice(None),)],
    }
    for name, places in cases.items():
        p = model.get_parameter(name)
        for place in places:
            piece, g = before[name][place], p.grad[place]
            if name in ("both.weight", "transposed.weight"):
                expected = alone(piece.transpose(0, 1).contiguous(), g.transpose(0, 1)).transpose(0, 1)
            else:
                expected = alone(piece, g)
            torch.testing.assert_close(p.detach()[place], expected, rtol=0, atol=1e-5)


def test_shared_parameters_come_once_and_frozen_ones_not():
    model = Model()
    model.head = nn.Linear(8, 10)
    model.head.weight = model.embedding.weight
    model.linear.requires_grad_(False)
    params = [p for group in param_groups(model) for p in group["params"]]
    assert len(params) == len(set(params)) and model.linear.weight not in set(params)
    assert settings(model)["embedding.weight"]["matrix"] is False


def test_a_parametrized_layer_is_that_layer():
    layer = torch.nn.utils.parametrizations.weight_norm(nn.ConvTranspose2d(4, 6, 3))
    found = settings(layer)
    assert found["parametrizations.weight.original1"]["matrix"] == ((1,), (0, 2, 3))
    assert found["parametrizations.weight.original0"]["matrix"] is False


@pytest.mark.parametrize("way", ["file", "pickle"])
def test_groups_are_kept_by_every_way_of_saving(way):
    model = Model()
    optimizer = SymbolicOptimizer(param_groups(model, weight_decay=0.1), RULE, 0.1)
    fed(optimizer, list(model.parameters()))
    others = copy.deepcopy(model)
    if way == "file":
        file = io.BytesIO()
        torch.save(optimizer.state_dict(), file)
        file.seek(0)
        other = SymbolicOptimizer(param_groups(others), RULE)
        other.load_state_dict(torch.load(file, weights_only=True))
    else:
        others, other = pickle.loads(pickle.dumps((model, optimizer)))
    assert [g["matrix"] for g in other.param_groups] == [g["matrix"] for g in optimizer.param_groups]
    fed(optimizer, list(model.parameters()))
    fed(other, list(others.parameters()))
    assert all(map(torch.equal, model.parameters(), others.parameters()))


def test_other_optimizers_take_the_groups_too():
    groups = param_groups(Model(), weight_decay=0.1)
    optimizer = torch.optim.AdamW(groups, 1e-3)
    fed(optimizer, [p for group in groups for p in group["params"]])
    assert {group["weight_decay"] for group in optimizer.param_groups} == {0.0, 0.1}
