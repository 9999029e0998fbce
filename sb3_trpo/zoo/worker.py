"""What the server of ``sb3_trpo.zoo.workers`` imports before it forks."""

import os

import numpy as np
import torch as th

SERVER = os.getpid()


def draw_own_numbers() -> None:
    """Seed the global generators, whose state all processes forked from the server would share."""
    if os.getppid() == SERVER:  # not in what one of these forks, after it was seeded
        np.random.seed()
        th.seed()


# Before the imports that follow: it has to hold for what is forked even if one of them fails.
os.register_at_fork(after_in_child=draw_own_numbers)

import sb3_trpo.zoo.manager  # noqa: E402, F401 (imported for those that are forked)
from sb3_trpo.zoo.workers import restore_environment  # noqa: E402

restore_environment()
