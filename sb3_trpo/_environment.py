"""Faults of the training environment: where they happened, and steps that were interrupted."""

import warnings
from contextlib import suppress
from multiprocessing.connection import wait
from types import TracebackType
from typing import Any

import gymnasium as gym
from gymnasium import spaces
from stable_baselines3.common.buffers import RolloutBuffer
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv, VecEnv, VecEnvWrapper

from sb3_trpo._processes import add_note

# Seconds for which a worker that has answered something else than its spaces may answer once more.
_PATIENCE = 1.0


class NamingThePlace:
    """
    Add a note with the step and the environment to an exception of a block.

    The exception is the same one, so that code which handles it still does. One that takes no
    attributes gets no note; a context manager made of a generator would replace it.

    :param env: training environment
    :param filled: the rollout buffer that the block fills; ``None`` if it resets the environment
    """

    def __init__(self, env: VecEnv | None, filled: RolloutBuffer | None = None) -> None:
        self._env, self._filled = env, filled

    def __enter__(self) -> None:
        pass

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: Any
    ) -> None:
        if not isinstance(error, Exception):
            return
        dead = _dead_workers(self._env) if isinstance(error, (EOFError, OSError)) else []
        envs = _in_words(dead or _envs_in(error.__traceback__, self._env))
        note = f"This happened {self._when()}{envs}. Parameters and optimizer are as before."
        add_note(error, note)

    def _when(self) -> str:
        """Say how far the block came."""
        if self._filled is None:
            return "before the first step of a rollout"
        if self._filled.full:
            return "at the end of a rollout"
        return f"in step {self._filled.pos + 1} of a rollout"


def _envs_in(traceback: TracebackType | None, env: VecEnv | None) -> list[int]:
    """List the environment at which the loop of a DummyVecEnv stood, not that of an evaluation."""
    _, inner = vector_layers(env)
    while traceback is not None:
        local = traceback.tb_frame.f_locals
        if isinstance(inner, DummyVecEnv) and local.get("self") is inner and "env_idx" in local:
            return [local["env_idx"]]
        traceback = traceback.tb_next
    return []


def _dead_workers(env: VecEnv | None) -> list[int]:
    """List the environments whose worker process has ended."""
    _, inner = vector_layers(env)
    if not isinstance(inner, SubprocVecEnv):
        return []
    wait([process.sentinel for process in inner.processes], timeout=0.5)  # for an exit that began
    return [i for i, process in enumerate(inner.processes) if not process.is_alive()]


def _in_words(envs: list[int]) -> str:
    """Name environments at the end of a sentence."""
    if not envs:
        return ""
    return f", in environment{'s' * (len(envs) > 1)} {', '.join(map(str, envs))}"


def vector_layers(env: Any) -> tuple[list[VecEnvWrapper], Any]:
    """
    Split a vectorised environment.

    :param env: any vectorised environment; may be missing
    :return: its wrappers from the outside in, and what they wrap
    """
    wrappers = []
    while isinstance(env, VecEnvWrapper):
        wrappers.append(env)
        env = env.venv
    return wrappers, env


def discard_interrupted_step(env: VecEnv | None) -> bool:
    """
    Take out what the workers of a SubprocVecEnv have sent and nobody has received.

    If an interrupt falls between the two halves of a step, every later answer would be that of the
    step before.

    :param env: training environment
    :return: whether there was anything, in which case the environment has to be reset
    """
    _, inner = vector_layers(env)
    if not isinstance(inner, SubprocVecEnv) or inner.closed:
        return False
    is_pending = any([_is_behind(remote) for remote in inner.remotes]) or inner.waiting
    inner.waiting = False
    if is_pending:
        warnings.warn(
            "An interrupted step of the SubprocVecEnv was discarded. The environments are reset.",
            stacklevel=4,
        )
    return is_pending


def let_close(env: VecEnv) -> None:
    """
    Let the ``close`` of a SubprocVecEnv find what it waits for, after a step that failed.

    It receives one answer from every worker: for ever, from those whose answers to the step were
    received. So all are asked something more, with an answer that fits into any pipe.

    :param env: training environment
    """
    _, inner = vector_layers(env)
    if isinstance(inner, SubprocVecEnv) and inner.waiting:
        for remote in inner.remotes:
            with suppress(OSError):  # of a worker that has ended
                remote.send(("is_wrapped", gym.Wrapper))


def _is_behind(remote: Any) -> bool:
    """Ask a worker for its spaces, and discard what it answers before."""
    remote.send(("get_spaces", None))
    answers = [remote.recv()]
    # The worker of a subclass may answer something else.
    while not _are_spaces(answers[-1]) and remote.poll(_PATIENCE):
        answers.append(remote.recv())
    return len(answers) > 1


def _are_spaces(answer: Any) -> bool:
    """Return whether an answer is that to the question for the spaces."""
    return isinstance(answer, tuple) and all(isinstance(part, spaces.Space) for part in answer)
