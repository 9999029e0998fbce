"""
An environment of ``sb3-trpo train`` under torchrun, with a fault in one process.

``FAULT`` names the fault. It does not occur after a restart.
"""

import os
import signal
import time
from typing import Any

import gymnasium as gym
from gymnasium.envs.classic_control.cartpole import CartPoleEnv

from sb3_trpo import TRPO

FAULT = os.environ.get("FAULT", "")
RANK = os.environ.get("RANK")
IS_FIRST_ATTEMPT = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") == "0"
STEP = 2000  # of one environment


class FaultyCartPole(CartPoleEnv):
    """CartPole, until the fault."""

    steps = 0

    def step(self, action: Any) -> Any:
        """Step, with the fault at one step."""
        self.steps += 1
        result: Any = super().step(action)  # type: ignore[no-untyped-call]
        if self.steps == STEP and RANK == "1" and IS_FIRST_ATTEMPT:
            FAULTS.get(FAULT, lambda: None)()
        return result


def kill(*_: Any) -> None:
    """End this process as the system does when memory is short."""
    os.kill(os.getpid(), signal.SIGKILL)


def lose_the_simulator() -> None:
    """Raise in the environment."""
    raise LookupError("the simulator is gone")


FAULTS = {"rollout": kill, "hang": lambda: time.sleep(1000), "exception": lose_the_simulator}


def kill_in_update(model: TRPO, *arguments: Any) -> None:
    """Fit the critic, but not at the third update."""
    if model._n_updates == 2:
        kill()
    fit_critic(model, *arguments)


def kill_in_save(source: Any, target: Any) -> None:
    """Rename a file, unless it is the second checkpoint."""
    if "checkpoint_2048" in str(target):
        kill()
    replace(source, target)


fit_critic, replace = TRPO._update_critic, os.replace
if FAULT == "update" and RANK == "1" and IS_FIRST_ATTEMPT:
    TRPO._update_critic = kill_in_update  # type: ignore[assignment]
if FAULT == "save" and RANK == "0" and IS_FIRST_ATTEMPT:
    os.replace = kill_in_save  # type: ignore[assignment]
gym.register("FaultyCartPole-v0", entry_point="tests.faulty:FaultyCartPole", max_episode_steps=100)
