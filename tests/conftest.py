"""What all tests share: one thread, and the same seed before each."""

import numpy as np
import pytest
import torch as th
from stable_baselines3.common.utils import set_random_seed

th.set_num_threads(1)


@pytest.fixture(autouse=True)
def _seeded() -> None:
    set_random_seed(0)


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)
