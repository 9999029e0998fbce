"""The states of the random generators that a process shares."""

import random
from typing import Any

import numpy as np
import torch as th


def random_states() -> dict[str, Any]:
    """
    Copy the states of the generators of Python, NumPy and torch, on the CPU and on all GPUs.

    :return: plain data
    """
    gpus = th.cuda.get_rng_state_all() if th.cuda.is_available() else []
    return {
        "python": random.getstate(),
        "numpy": np.random.get_state(legacy=False),
        "torch": th.get_rng_state(),
        "gpus": gpus,
    }


def set_random_states(states: dict[str, Any]) -> None:
    """
    Restore the states of the generators. A GPU that is missing here is left out.

    :param states: from :func:`random_states`
    """
    random.setstate(states["python"])
    np.random.set_state(states["numpy"])
    th.set_rng_state(states["torch"])
    here = th.cuda.device_count() if th.cuda.is_available() else 0
    for gpu, state in enumerate(states["gpus"][:here]):
        th.cuda.set_rng_state(state, gpu)


def are_random_states(states: Any) -> bool:
    """
    Return whether states can be restored, by setting generators that nothing else uses.

    :param states: of any kind
    :return: whether they are like those of :func:`random_states`
    """
    try:
        random.Random().setstate(states["python"])
        np.random.RandomState().set_state(states["numpy"])
        th.Generator().set_state(states["torch"])
        gpus = states["gpus"]
    except (TypeError, ValueError, LookupError, RuntimeError, AttributeError, OverflowError):
        return False
    is_list = isinstance(gpus, list)
    return is_list and all(th.is_tensor(state) and state.dtype == th.uint8 for state in gpus)
