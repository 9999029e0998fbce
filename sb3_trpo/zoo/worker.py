"""What the server of ``sb3_trpo.zoo.workers`` imports before it forks."""

import os

import numpy as np
import torch as th

import sb3_trpo.zoo.manager  # noqa: F401 (imported for those that are forked)


def draw_own_numbers() -> None:
    """Seed the global generators, whose state all forked processes would share."""
    np.random.seed()
    th.seed()


os.register_at_fork(after_in_child=draw_own_numbers)
