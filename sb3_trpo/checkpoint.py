"""Checkpoints from which an interrupted training continues as if nothing had happened."""

import io
import math
import os
import pathlib
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch as th
from stable_baselines3.common.base_class import maybe_make_env
from stable_baselines3.common.callbacks import BaseCallback, CallbackList, ConvertCallback
from stable_baselines3.common.type_aliases import GymEnv, MaybeCallback

from sb3_trpo._checkpoint_file import (
    Checkpoint,
    Found,
    find_checkpoint,
    new_run,
    parse_checkpoint,
    path_in,
    remove_older,
    remove_temporary,
    write_checkpoint,
)
from sb3_trpo._data_parallel import seed_of
from sb3_trpo._environment_state import Resumable
from sb3_trpo._hyperparameters import Ranges, check_values, is_integer, is_number
from sb3_trpo._plain_data import NotPlainError
from sb3_trpo._processes import processes_of
from sb3_trpo._random_states import random_states
from sb3_trpo._saved_model import read_model
from sb3_trpo._training_state import (
    check_environment,
    put_training_state,
    put_wrapper_states,
    training_state,
)
from sb3_trpo.maskable import MaskableTRPO
from sb3_trpo.maskable_recurrent import MaskableRecurrentTRPO
from sb3_trpo.recurrent import RecurrentTRPO
from sb3_trpo.trpo import TRPO

__all__ = ["Resumable", "TrainingCheckpoint", "resume_training"]

_ALGORITHMS = {kind.__name__: kind for kind in (TRPO, MaskableTRPO, RecurrentTRPO)}
_ALGORITHMS[MaskableRecurrentTRPO.__name__] = MaskableRecurrentTRPO

_RANGES: Ranges = {
    "save_path": ("a path", lambda value: isinstance(value, (str, os.PathLike))),
    "save_freq": (
        "a number of environment steps of at least 1",
        lambda value: value == math.inf or is_number(lambda number: number >= 1)(value),
    ),
    "keep": ("an integer of at least 1, as the newest file is kept", is_integer(1)),
}

# Arguments of the interrupted `learn` that the resumed one gets, too, and what is kept of them.
_LEARN_ARGUMENTS: dict[str, Callable[[Any], Any]] = {
    "log_interval": lambda value: value,
    "tb_log_name": str,
    "progress_bar": bool,
    "use_masking": bool,
}


class TrainingCheckpoint(BaseCallback):
    """
    Save everything that a training depends on, between two updates.

    A file holds the model, VecNormalize's statistics, the progress of ``learn``, the states of the
    environments and of all random generators. It replaces no file until it is on the disk as a
    whole, and is verified before an older one is removed. If it cannot be written, training
    continues with a warning. :func:`resume_training` continues from it.

    :param save_path: folder of the files; it is made if it is missing
    :param save_freq: environment steps, of all environments together, after which the next
        update's end writes a file
    :param keep: how many files to keep; older ones are removed
    :param verbose: 1 to print the path of each file
    :raises ValueError: if an argument has a wrong value, or, when training starts, the model is of
        another package, the callback is inside another one that calls it at events only, the
        folder cannot be made or the model cannot be saved
    """

    def __init__(
        self,
        save_path: str | os.PathLike[str],
        save_freq: float,
        keep: int = 3,
        verbose: int = 0,
    ) -> None:
        super().__init__(verbose)
        check_values(_RANGES, {"save_path": save_path, "save_freq": save_freq, "keep": keep})
        self.save_path = pathlib.Path(save_path)
        self.save_freq = save_freq
        self.keep = keep
        self.latest: pathlib.Path | None = None  # the latest file of this object
        self._runs = [new_run()]  # whose files are removed; those that it continues come first
        self._due = math.inf
        self._in_rollout = False
        self._rollouts = 0  # of this `learn`, those before it was interrupted included
        self._learn_arguments: dict[str, Any] = {}

    def _init_callback(self) -> None:
        """Make the folder, before training starts."""
        if not isinstance(self.model, TRPO):
            raise ValueError(
                f"TrainingCheckpoint cannot save a {type(self.model).__name__}: it supports "
                f"{', '.join(_ALGORITHMS)} and classes derived from them. SB3's CheckpointCallback "
                f"saves the models of other algorithms."
            )
        self._check_place()
        try:
            self.save_path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ValueError(
                f"Checkpoints cannot be written to save_path={str(self.save_path)!r}: {error}. "
                f"Pass a folder that can be written to."
            ) from error
        remove_temporary(self.save_path)

    def _check_place(self) -> None:
        """Refuse to be in another callback, which passes on events, but no rollout's start."""
        if self.parent is not None:
            raise ValueError(
                f"TrainingCheckpoint cannot write between two updates inside of "
                f"{type(self.parent).__name__}. Pass it to learn directly, in a list with others."
            )

    def _on_training_start(self) -> None:
        """Note how ``learn`` was called, and try what the first file will need."""
        self._check_place()  # again, as a list passes on its parent late
        self._learn_arguments = {
            name: kept(self.locals[name])
            for name, kept in _LEARN_ARGUMENTS.items()
            if name in self.locals
        }
        self._in_rollout, self._rollouts = False, 0
        # Not later: `learn` may be called for a few steps at a time.
        self._due = min(self._due, self.model.num_timesteps + self.save_freq)
        checkpoint = self._checkpoint()
        self._check_state(checkpoint)
        self._check_resumable(checkpoint.model)
        reason = checkpoint.state["environments"]["reason"]
        if reason is not None and self.save_freq < math.inf:
            warnings.warn(
                f"Training that is resumed from these checkpoints will start new episodes, as the "
                f"environments cannot be copied: {reason}. All else will be as it was.",
                stacklevel=2,
            )

    def _check_state(self, checkpoint: Checkpoint) -> None:
        """Warn if no file of this training would be read."""
        try:
            parse_checkpoint(checkpoint.to_bytes())
        except ValueError as error:
            warnings.warn(
                f"resume_training will not continue this training: {error} Change that, or do "
                f"without checkpoints.",
                stacklevel=3,
            )

    def _check_resumable(self, model: bytes) -> None:
        """Warn if :func:`resume_training` will not take the model as it is."""
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # the error below says more
                saved = read_model(io.BytesIO(model), type(self.model), None, (), is_trusted=False)
            is_complete = not (saved.objects or {}).get("_needs_learning_rate")
            why = "" if is_complete else "its learning_rate is a function"
        except ValueError as error:
            why = str(error)
        if why:
            warnings.warn(
                f"resume_training will not take this model from its checkpoints as it is: {why}. "
                f"Use a number, SB3's LinearSchedule or 'lin_...' for a schedule; or pass "
                f"trust_checkpoint=True to resume_training, as the files are your own.",
                stacklevel=3,
            )

    def _on_rollout_start(self) -> None:
        """Write a file if it is time: the update before is complete."""
        if self.model.num_timesteps >= self._due:
            self.write()
        self._in_rollout = True

    def _on_step(self) -> bool:
        """Continue training."""
        self._check_place()  # again, as a list in some callbacks is not told of the start
        return True

    def _on_rollout_end(self) -> None:
        """Note that an update follows."""
        self._in_rollout = False
        self._rollouts += 1

    def _on_training_end(self) -> None:
        """Write a file if it is time, unless a callback stopped in the middle of a rollout."""
        if self.model.num_timesteps >= self._due and not self._in_rollout:
            self.write()

    def write(self) -> pathlib.Path | None:
        """
        Write a file now. Call it between two updates only: from ``on_rollout_start``.

        :return: its path; ``None`` if it could not be written, of which a warning says why, or if
            another process of a data-parallel training writes it
        """
        if self._is_of_another_process():
            return None
        path = path_in(self.save_path, self.model.num_timesteps, self._runs[-1])
        try:
            write_checkpoint(path, self._checkpoint().to_bytes())
        except (OSError, NotPlainError) as error:
            latest = f"The latest is {self.latest}." if self.latest else "There is none yet."
            warnings.warn(
                f"The checkpoint {path} could not be written: {error}. Training continues, and "
                f"the next update's end tries again. {latest}",
                stacklevel=2,
            )
            return None
        self.latest = path
        self._due = self.model.num_timesteps + self.save_freq
        if self.verbose >= 1:
            print(f"Saved the checkpoint {path}")
        try:
            remove_older(path, self.keep, self._runs)
        except OSError as error:
            warnings.warn(
                f"An older checkpoint could not be removed: {error}. Training continues, and the "
                f"next checkpoint tries again.",
                stacklevel=2,
            )
        return path

    def _is_of_another_process(self) -> bool:
        """Return whether another process writes the files."""
        return isinstance(self.model, TRPO) and self.model._processes.rank > 0

    def _extra(self) -> Any:
        """Return plain data that a subclass wants to keep."""

    def _checkpoint(self) -> Checkpoint:
        """Copy the training."""
        assert isinstance(self.model, TRPO)
        model = io.BytesIO()
        self.model.save(model)
        learn = {"arguments": self._learn_arguments, "n_calls": self.n_calls}
        state = training_state(self.model) | learn | {"rollouts": self._rollouts}
        state |= {"runs": self._runs, "extra": self._extra()}
        return Checkpoint(model.getvalue(), state)


class _Restore(BaseCallback):
    """
    Restore a training at the moment of ``learn`` at which it was copied, once.

    :param found: the checkpoint, which errors name
    :param state: of it
    :param callbacks: that count on from where those of the interrupted training were
    """

    def __init__(self, found: Found, state: dict[str, Any], callbacks: list[BaseCallback]) -> None:
        super().__init__()
        self._path = found.path
        self._state: dict[str, Any] | None = state
        self._callbacks = callbacks

    def _on_rollout_start(self) -> None:
        """Restore before the first step."""
        state, self._state = self._state, None
        if state is None:
            return
        assert isinstance(self.model, TRPO)
        self.model._iterations_before = state["rollouts"]
        self.model._log_interval = state["arguments"].get("log_interval") or 1
        for callback in self._callbacks:
            callback.n_calls = state["n_calls"]
            if isinstance(callback, TrainingCheckpoint):
                callback._rollouts = state["rollouts"]
                callback._learn_arguments = state["arguments"]
                callback._runs = [*state["runs"], callback._runs[-1]]
        with _naming(self._path):
            reason = put_training_state(self.model, state)
        if reason is not None:
            warnings.warn(
                f"The environments start new episodes, as theirs could not be copied: {reason}. "
                f"All else is as it was.",
                stacklevel=2,
            )

    def _on_step(self) -> bool:
        """Continue training."""
        return True

    def _on_training_end(self) -> None:
        """Restore if there was nothing left to train."""
        self._on_rollout_start()


def resume_training(
    path: str | os.PathLike[str],
    env: GymEnv | str,
    callback: MaybeCallback = None,
    device: th.device | str = "auto",
    *,
    algorithm: type[TRPO] | None = None,
    **load_options: Any,
) -> TRPO:
    """
    Finish the ``learn`` that was interrupted.

    With environments that can be copied, the model ends bitwise as it would have without the
    interruption, on the same machine with the same versions and number of threads. Other
    environments start new episodes, of which a warning says why; all else is as it was.

    :param path: a file that :class:`TrainingCheckpoint` wrote, or the folder of several, of which
        the newest that is whole is taken; others are named in a warning
    :param env: environment, built as that of the interrupted training was
    :param callback: as for ``learn``; pass a :class:`TrainingCheckpoint` to keep writing files.
        The ``n_calls`` of callbacks continue from the checkpoint; anything else that they count
        starts anew
    :param device: where to put the policy
    :param algorithm: class of the model; needed if it is not one of this package
    :param load_options: further arguments of ``load``, such as ``data_parallel=True`` in every
        process of a group, of which only process 0 continues its episodes. Pass
        ``tensorboard_log`` again: without ``trust_checkpoint=True`` the file does not choose it
    :return: the trained model
    :raises ValueError: if there is no checkpoint that is whole, it is of another class or
        environment, or it would write its log elsewhere and is not trusted
    """
    found = find_checkpoint(path)
    for skipped, why in found.skipped.items():
        warnings.warn(f"Skipped the checkpoint {skipped}: {why}.", stacklevel=2)
    model = load_training(found, env, device, algorithm, **load_options)
    return finish_training(model, found, callback)


def load_training(
    found: Found,
    env: GymEnv | str,
    device: th.device | str,
    algorithm: type[TRPO] | None,
    **load_options: Any,
) -> TRPO:
    """
    Load the model of a checkpoint, and the states of its environment's wrappers.

    :param found: the checkpoint
    :param env: as for :func:`resume_training`
    :param device: as for :func:`resume_training`
    :param algorithm: as for :func:`resume_training`
    :param load_options: as for :func:`resume_training`
    :return: the model, for :func:`finish_training`
    :raises ValueError: as :func:`resume_training` does
    """
    state = found.checkpoint.state
    kind = _algorithm(found, algorithm)
    _check_log_name(found, load_options.get("trust_checkpoint", False))
    venv = kind._wrap_env(maybe_make_env(env, 0))
    rank = processes_of(load_options.get("data_parallel", False), th.device("cpu")).rank
    environments = _environments(state, venv, rank)
    check_environment(venv, environments)
    file = _NamedStream(found.checkpoint.model, str(found.path))
    model = kind.load(file, venv, device, **load_options)
    _choose_log_folder(model, found, load_options)
    model._check_learning_rate()
    with _naming(found.path):
        put_wrapper_states(venv, environments)
    if model.seed is not None:  # for new episodes that are not those of the training's start
        venv.seed(seed_of(rank, (model.seed + model.num_timesteps) % 2**32))
    return model


def finish_training(model: TRPO, found: Found, callback: MaybeCallback) -> TRPO:
    """
    Finish the ``learn`` of a checkpoint.

    :param model: from :func:`load_training`
    :param found: the checkpoint
    :param callback: as for :func:`resume_training`
    :return: the trained model
    """
    state, rank = found.checkpoint.state, model._processes.rank
    if rank > 0:
        environments = _environments(state, model.env, rank)
        state = state | {"environments": environments, "noise": {}, "random": random_states()}
    left = state["total_timesteps"] - state["num_timesteps"]
    if model.verbose >= 1 and rank == 0:
        total = state["total_timesteps"]
        print(f"Resuming from {found.path}: {max(left, 0)} of {total} steps left")
    callbacks = list(_callbacks(callback))
    restore = _Restore(found, state, callbacks)
    arguments = state["arguments"]
    if arguments.get("log_interval"):
        arguments = arguments | {"log_interval": 1}  # which would count from here: see `dump_logs`
    try:
        return model.learn(
            left, CallbackList([restore, *callbacks]), reset_num_timesteps=False, **arguments
        )
    finally:  # what is logged after it counts from there
        model._iterations_before, model._log_interval = 0, 1


@contextmanager
def _naming(path: pathlib.Path) -> Iterator[None]:
    """Name the checkpoint in an error about its state."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"{path} was not resumed: {error}") from error


class _NamedStream(io.BytesIO):
    """
    A part of a file, which errors name.

    :param content: the part
    :param name: of the file
    """

    def __init__(self, content: bytes, name: str) -> None:
        super().__init__(content)
        self.name = name


def _environments(state: dict[str, Any], venv: Any, rank: int) -> dict[str, Any]:
    """Leave out what only the process that wrote a checkpoint can continue with."""
    environments: dict[str, Any] = state["environments"]
    if rank == 0:
        return environments
    return environments | {
        "num_envs": venv.num_envs,
        "wrappers": [None] * len(environments["wrappers"]),
        "reason": f"those of the checkpoint are of process 0, and this is process {rank}",
    }


def _check_log_name(found: Found, is_trusted: bool) -> None:
    """Refuse a name with which TensorBoard's log would leave its folder."""
    name = pathlib.PurePath(found.checkpoint.state["arguments"].get("tb_log_name", ""))
    if not is_trusted and (name.is_absolute() or ".." in name.parts):
        raise ValueError(
            f"{found.path} was not resumed: its tb_log_name={str(name)[:80]!r} leaves the folder "
            f"of the log. If the file is your own, pass trust_checkpoint=True."
        )


def _choose_log_folder(model: TRPO, found: Found, options: dict[str, Any]) -> None:
    """Keep an untrusted checkpoint from choosing where TensorBoard's log is written."""
    is_given = "tensorboard_log" in {**options, **(options.get("custom_objects") or {})}
    folder = model.tensorboard_log
    if folder is None or is_given or options.get("trust_checkpoint", False):
        return
    model.tensorboard_log = None
    warnings.warn(
        f"TensorBoard's log does not continue in {str(folder)[:80]!r}, which {found.path} names. "
        f"Pass tensorboard_log to choose its folder.",
        stacklevel=4,
    )


def _algorithm(found: Found, given: Any) -> type[TRPO]:
    """Find the class of a checkpoint's model."""
    name = found.checkpoint.state["algorithm"]
    if given is not None:
        if not (isinstance(given, type) and issubclass(given, TRPO) and given.__name__ == name):
            raise ValueError(
                f"{found.path} was not resumed: it is of a {name}, and algorithm={given!r} is "
                f"another class, or not derived from TRPO. Pass the class of that model."
            )
        return given
    if name not in _ALGORITHMS:
        raise ValueError(
            f"{found.path} was not resumed: it is of a {name}, which sb3_trpo does not have. Pass "
            f"its class as algorithm."
        )
    return _ALGORITHMS[name]


def _callbacks(callback: MaybeCallback) -> Iterator[BaseCallback]:
    """List the callbacks of ``learn`` one by one."""
    if callback is None:
        return
    if isinstance(callback, CallbackList):
        callback = callback.callbacks
    if isinstance(callback, list):
        for each in callback:
            yield from _callbacks(each)
    else:
        yield callback if isinstance(callback, BaseCallback) else ConvertCallback(callback)
