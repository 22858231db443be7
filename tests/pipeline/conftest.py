"""What the tests of the commands share."""

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.helpers.commands import call


@pytest.fixture
def refused(capsys) -> Callable[..., str]:
    """refused(LINE, *MORE): ``python -m LINE`` run here must end with 2 and one line on stderr, returned."""

    def run(line: str, *more: object) -> str:
        code = call(line, *more)
        out, err = capsys.readouterr()
        assert code == 2 and out == ""
        assert err.startswith(f"python -m {line.split()[0]}: error: ")
        assert err.endswith("\n") and err.count("\n") == 1
        return err

    return run


@pytest.fixture(scope="session")
def trained(tmp_path_factory) -> Path:
    """A training run of ``rp_s`` on the quadratic; to be read only."""
    pytest.importorskip("torch")
    from interchange.meta.config import TrainConfig
    from torch_impl.train import train

    folder = tmp_path_factory.mktemp("trained") / "run"
    tiny = {"epochs": 2, "epoch_length": 10, "unroll": 5, "validate_every": 0, "lr": 0.01}
    train(TrainConfig(problem="quadratic", teacher="rp_s", **tiny, out=str(folder), quiet=True))
    return folder
