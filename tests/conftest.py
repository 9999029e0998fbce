"""What all tests share: one thread, the same seed before each, torch's checks of distributions."""

import itertools
from typing import Any

import numpy as np
import pytest
import torch as th
from gymnasium.utils import seeding
from hypothesis import settings
from stable_baselines3.common.utils import set_random_seed

th.set_num_threads(1)

# The same examples every time; with `--hypothesis-profile thorough` many others.
settings.register_profile("few", max_examples=25, derandomize=True, database=None, deadline=None)
settings.register_profile("thorough", max_examples=600, deadline=None)
settings.load_profile("few")


@pytest.fixture(autouse=True)
def _seeded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Seed all generators, those of environments and spaces that nobody seeds included."""
    set_random_seed(0)
    seeds = itertools.count()
    np_random = seeding.np_random

    def seeded(seed: int | None = None) -> tuple[Any, int]:
        return np_random(next(seeds) if seed is None else seed)

    monkeypatch.setattr(seeding, "np_random", seeded)


@pytest.fixture(autouse=True)
def _validated(monkeypatch: pytest.MonkeyPatch) -> None:
    """Undo what the first use of torch.compile does to the whole process."""
    monkeypatch.setattr(th.distributions.Distribution, "_validate_args", True)


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)
