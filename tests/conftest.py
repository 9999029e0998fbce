"""What all tests share: one thread, the same seed before each, torch's checks of distributions."""

import numpy as np
import pytest
import torch as th
from stable_baselines3.common.utils import set_random_seed

th.set_num_threads(1)


@pytest.fixture(autouse=True)
def _seeded() -> None:
    set_random_seed(0)


@pytest.fixture(autouse=True)
def _validated(monkeypatch: pytest.MonkeyPatch) -> None:
    """Undo what the first use of torch.compile does to the whole process."""
    monkeypatch.setattr(th.distributions.Distribution, "_validate_args", True)


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)
