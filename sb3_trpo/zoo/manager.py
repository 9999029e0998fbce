"""The RL Zoo's ``ExperimentManager`` with our configuration, evaluations, folders and report."""

import inspect
import math
import shlex
import shutil
import sys
import warnings
from contextlib import AbstractContextManager, ExitStack, suppress
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import gymnasium as gym
import numpy as np
import numpy.typing as npt
import optuna
import rl_zoo3.exp_manager
import rl_zoo3.train
from filelock import BaseFileLock
from rl_zoo3 import ALGOS
from rl_zoo3.exp_manager import ExperimentManager
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.callbacks import CheckpointCallback
from stable_baselines3.common.vec_env import SubprocVecEnv, VecEnv, sync_envs_normalization

import sb3_trpo.zoo.register  # noqa: F401 (imported for its effect)
from sb3_trpo import TRPO
from sb3_trpo._data_parallel import ProgressBar
from sb3_trpo._environment import let_close
from sb3_trpo.checkpoint import Resumable
from sb3_trpo.zoo.builder import Builder
from sb3_trpo.zoo.checkpoints import RunCheckpoint
from sb3_trpo.zoo.choice import add_environment, check_environment, check_model, statistics_of
from sb3_trpo.zoo.entry import entry_text
from sb3_trpo.zoo.errors import (
    CONFIGURATION_ERRORS,
    UsageError,
    making_errors,
    missing_package,
    user_errors,
)
from sb3_trpo.zoo.interruptions import (
    Interruptions,
    in_processes,
    kill_workers,
    left_to_this_process,
)
from sb3_trpo.zoo.learning_curve import draw_learning_curve
from sb3_trpo.zoo.lock import lock_run
from sb3_trpo.zoo.masks import evaluate_policy, masks_in_evaluations
from sb3_trpo.zoo.normalization import BestStatistics, Normalization
from sb3_trpo.zoo.processes import current_processes, is_torchrun, launch_name
from sb3_trpo.zoo.progress import ProgressFile
from sb3_trpo.zoo.runs import PROCESSES, save_final_evaluation
from sb3_trpo.zoo.script import AddOptions, Parser, asks_for_help, replaced, run_script
from sb3_trpo.zoo.stored_options import needs_trust, repeated
from sb3_trpo.zoo.trust_region_figure import draw_trust_region
from sb3_trpo.zoo.workers import worker_context

CONFIGURATION = "configuration"  # of a trial: the hyperparameters that are not searched for
NO_TRIALS = "no trial finished: add trials, or see with --jobs 1 --verbose 2 why they stop"
RUN_NUMBER = "--run-number"
LAUNCH = "launch"  # among the arguments that a run keeps: which call of torchrun started it
EVALUATIONS = 20
FINAL_EPISODES = 20
# Stands for "no --eval-freq given"; every negative number means "never" to the Zoo.
UNSET_EVAL_FREQ = -(2**31)
# The periodic evaluations start from the run's own seed; the final one must not.
FINAL_SEED_OFFSET = 10_000


class RunManager(ExperimentManager):
    """The manager of a training run.

    :param arguments: as for ``ExperimentManager``
    :param options: as for ``ExperimentManager``
    """

    # Whether this process prints, logs and saves for all.
    reports: ClassVar[bool] = True

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.n_processes = current_processes().size
        if self.args.conf_file is None:
            self.config = packaged_config(self.algo) or self.config
        number = vars(self.args).get("run_number")
        if number is not None:
            self.save_path = f"{self.log_path}{self.env_name}_{number}"
        self.is_trusted: bool = vars(self.args).get("trust_checkpoint", False)
        self.given: dict[str, Any] = {}  # the hyperparameters, once they are read
        self.checkpoint: RunCheckpoint | None = None
        self.interruption: KeyboardInterrupt | None = None
        self.trained: BaseAlgorithm | None = None  # if another model was trained than was built
        self._made_in_setup: list[VecEnv] | None = None
        self._made: Path | None = None  # the run's folder, once this run has created it
        self._lock: BaseFileLock | None = None  # of the run's folder

    def read_hyperparameters(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """Read the configuration.

        :return: the hyperparameters, and a copy to save
        :raises UsageError: if the configuration cannot be read or has no entry for the environment
        """
        with user_errors(*CONFIGURATION_ERRORS):
            hyperparameters, saved = super().read_hyperparameters()
        self.given = dict(saved)
        for name in ("n_envs", "frame_stack"):
            number = saved.get(name, 1)
            if not (isinstance(number, int) and number >= 1):
                raise UsageError(f"{name}={number!r}: it has to be an integer of at least 1")
        return hyperparameters, saved

    def _preprocess_hyperparams(self, hyperparams: dict[str, Any]) -> Any:
        """Turn the configuration's values into Python objects."""
        with user_errors(*CONFIGURATION_ERRORS):
            preprocessed = super()._preprocess_hyperparams(hyperparams)
        if self._eval_env_kwargs_args is None:  # the Zoo forgets those of the configuration
            self.eval_env_kwargs = self.env_kwargs
        return preprocessed

    def setup_experiment(self) -> tuple[BaseAlgorithm, dict[str, Any]] | None:
        """Set up the run; if that fails, close its environments and remove its folder.

        :return: the model and its hyperparameters; None when hyperparameters are optimized
        """
        results = None
        self._made_in_setup = []
        try:
            with self._builder():
                results = super().setup_experiment()
        except BaseException:
            for env in self._made_in_setup:
                with suppress(EOFError, ConnectionError):  # of processes that have ended
                    env.close()
            raise
        finally:
            self._made_in_setup = None
            if results is None:
                self.unlock()
                if self._made is not None:
                    shutil.rmtree(self._made)
        return results

    def lock(self) -> None:
        """Keep other processes from training in the run's folder.

        :raises UsageError: if one of them does
        """
        self._lock = lock_run(Path(self.save_path))

    def unlock(self) -> None:
        """Let other processes train in the run's folder again."""
        if self._lock is not None:
            self._lock.release()

    def _builder(self) -> AbstractContextManager[None]:
        """Let the Zoo build and load models with :class:`Builder`."""
        builder = Builder(self.algo, self.is_trusted, self.process_options())
        return replaced(rl_zoo3.exp_manager, "ALGOS", {self.algo: builder})

    def process_options(self) -> dict[str, Any]:
        """Return the arguments of a model that several processes train."""
        return {"data_parallel": True} if is_torchrun() else {}

    def _maybe_normalize(self, env: VecEnv, eval_env: bool) -> VecEnv:
        """Normalise an environment, with the statistics of a model whose training continues.

        :raises UsageError: if these are missing, as the model knows no other observations
        """
        if self._made_in_setup is not None:
            self._made_in_setup.append(env)
        if not self.continue_training:
            with replaced(rl_zoo3.exp_manager, "VecNormalize", Normalization(self.is_trusted)):
                return super()._maybe_normalize(env, eval_env)
        path = statistics_of(Path(self.trained_agent), self.env_name)
        if path.is_file():
            print("Loading saved VecNormalize stats")  # as the Zoo says
            normalized = Normalization(self.is_trusted).load(str(path), env)
            if eval_env:
                normalized.training = normalized.norm_reward = False
            return normalized
        if self.normalize:
            raise UsageError(
                f"there are no statistics of the normalisation in '{path}', with which the model "
                f"was trained: put the file there, or leave the normalisation out with "
                f"--hyperparams normalize:False"
            )
        return env

    def create_log_folder(self) -> None:
        """Claim the next free run number, safe against parallel starts.

        :raises UsageError: if the folder cannot be created
        """
        with user_errors(OSError):
            while self._made is None:
                self._claim(Path(self.save_path))
            self.lock()
            self.params_path = f"{self.save_path}/{self.env_name}"
            Path(self.params_path).mkdir()

    def _save_config(self, saved_hyperparams: dict[str, Any]) -> None:
        """Save the run's settings and, among its arguments, how it was started."""
        started = {"words": sys.argv[1:], PROCESSES: self.n_processes}
        vars(self.args).update(started, **({LAUNCH: launch_name()} if is_torchrun() else {}))
        super()._save_config(saved_hyperparams)

    def _claim(self, folder: Path) -> None:
        """Create the run's folder, or go to the next number if another run has taken it."""
        try:
            folder.mkdir(parents=True)
            self._made = folder
        except FileExistsError:
            stem, _, number = self.save_path.rpartition("_")
            self.save_path = f"{stem}_{int(number) + 1}"

    def create_callbacks(self) -> None:
        """Spread the evaluations over the run, whose length is known by now, and log to a file."""
        if self.eval_freq == UNSET_EVAL_FREQ:
            self.eval_freq = max(self.n_timesteps // EVALUATIONS, self.steps_per_rollout(), 1)
            self.args.eval_freq = self.eval_freq  # what args.yml will say
        # By which the Zoo divides a number of steps: its callbacks count those of one environment.
        everywhere = replaced(self, "n_envs", self.n_envs * self.n_processes)
        zoo = rl_zoo3.exp_manager
        with (
            masks_in_evaluations(self.algo),
            everywhere,
            replaced(zoo, "ProgressBarCallback", ProgressBar),
            replaced(zoo, "SaveVecNormalizeCallback", BestStatistics),
            replaced(
                zoo, "CheckpointCallback", partial(CheckpointCallback, save_vecnormalize=True)
            ),
        ):
            super().create_callbacks()  # type: ignore[no-untyped-call] # the Zoo's
        self.callbacks.append(ProgressFile(Path(self.save_path)))
        if issubclass(ALGOS[self.algo], TRPO):
            save_freq = vars(self.args).get("checkpoint_freq") or math.inf
            self.checkpoint = RunCheckpoint(Path(self.save_path), save_freq)
            self.callbacks.append(self.checkpoint)
        elif vars(self.args).get("checkpoint_freq"):
            raise UsageError(
                f"--checkpoint-freq keeps trainings of sb3_trpo, and not of '{self.algo}': "
                f"--save-freq saves its models"
            )

    def steps_per_rollout(self) -> int:
        """Count the steps between two updates, between which evaluations would be the same.

        :return: environment steps of all environments; 0 for an algorithm without ``n_steps``
        """
        kinds = ALGOS[self.algo].__mro__  # ours pass their arguments on to a base class
        arguments = (inspect.signature(kind).parameters.get("n_steps") for kind in kinds)
        default = next((argument.default for argument in arguments if argument), 0)
        n_steps = self.given.get("n_steps", default)
        return int(n_steps) * self.n_envs * self.n_processes

    def create_envs(self, *arguments: Any, **options: Any) -> VecEnv:
        """Create environments.

        :param arguments: as for ``ExperimentManager``
        :param options: as for ``ExperimentManager``
        :return: the environments
        :raises UsageError: if the environment does not take ``--env-kwargs``
        """
        wrapper = self.env_wrapper

        def resumable(env: gym.Env[Any, Any]) -> Resumable:
            return Resumable(wrapper(env) if wrapper else env)

        with ExitStack() as stack:
            if self.vec_env_class is SubprocVecEnv:
                self.vec_env_kwargs["start_method"] = worker_context().get_start_method()
                stack.enter_context(left_to_this_process())
                stack.enter_context(replaced(self, "vec_env_class", in_processes))
                stack.enter_context(replaced(self, "env_wrapper", resumable))
            with user_errors(*making_errors(self.env_kwargs or self.eval_env_kwargs)):
                return super().create_envs(*arguments, **options)

    def objective(self, trial: optuna.Trial) -> float:
        """Train with sampled hyperparameters.

        :param trial: a trial of a study
        :return: mean return of the last evaluation
        """
        of_environment = {"env_kwargs": self.env_kwargs} if self.env_kwargs else {}
        configuration = entry_text(self.env_name.gym_id, self.given | of_environment)
        trial.set_user_attr(CONFIGURATION, configuration)
        with masks_in_evaluations(self.algo):
            return super().objective(trial)

    def hyperparameters_optimization(self) -> None:
        """Run the trials of a search.

        :raises UsageError: if none of the study's trials finished
        """
        try:
            with self._builder():
                super().hyperparameters_optimization()
        except ValueError as error:
            if str(error) != "No trials are completed yet.":
                raise
            raise UsageError(NO_TRIALS) from error

    def learn(self, model: BaseAlgorithm) -> None:
        """Train, and note whether the user interrupts it.

        :param model: the model
        """

        def learn(*arguments: Any, **options: Any) -> None:
            try:
                with interruptions:
                    self.trained = self.train(model, *arguments, **options)
            except KeyboardInterrupt as interruption:
                self.trained = interruptions.model_or(model)
                self.interruption = interruption
            except Exception as error:
                if interruptions.received is None:
                    raise
                # A terminal sends Ctrl-C to all processes, also to those that environments need.
                print(f"The last rollout was not completed: {error!r}")
                self.trained = interruptions.model_or(model)
                self.interruption = interruptions.exception()

        save = self.checkpoint.write if self.checkpoint else lambda: None
        interruptions = Interruptions(save, self.reports)
        self.callbacks.append(interruptions)
        # The Zoo swallows the interruption; of the model it uses these three attributes.
        env = SimpleNamespace(close=lambda: close_after_training(model.env))
        watched: Any = SimpleNamespace(learn=learn, env=env, policy=model.policy)
        super().learn(watched)
        if interruptions.received is not None:  # if it came during the last update, too
            self.interruption = interruptions.exception()

    def train(self, model: BaseAlgorithm, *arguments: Any, **options: Any) -> Any:
        """Train.

        :param model: that was just built
        :param arguments: of ``learn``
        :param options: of ``learn``
        :return: the trained model
        """
        return model.learn(*arguments, **options)

    def save_trained_model(self, model: BaseAlgorithm) -> None:
        """Save the model, then evaluate it, draw the run and print where the files are.

        :param model: the trained model
        :raises KeyboardInterrupt: if training or evaluation was interrupted, once the run is drawn
        """
        model = self.trained or model
        file = f"{self.params_path}.zip"
        # By the file's name: the Zoo's ends before a dot in the environment's.
        named: Any = SimpleNamespace(
            save=lambda _: model.save(file), get_vec_normalize_env=model.get_vec_normalize_env
        )
        super().save_trained_model(named)
        title = f"{self.algo.upper()} on {self.env_name.gym_id}, seed {self.seed}"
        if self.interruption is None:
            try:
                returns = self.evaluate(model)
            except KeyboardInterrupt as interruption:
                self.interruption = interruption
        if self.interruption is not None:
            progress = f"after {model.num_timesteps} of {self.n_timesteps} steps"
            self.draw(title, f"interrupted {progress}")
            message = f"{progress}; the model is saved in {self.params_path}.zip{self.remedy()}"
            self.interruption.args = (message,)
            raise self.interruption
        save_final_evaluation(Path(self.save_path), returns)
        kind = "deterministic" if self.deterministic_eval else "stochastic"
        score = f"{returns.mean():.1f} +/- {returns.std():.1f}"
        print(f"Final evaluation: mean return {score} over {FINAL_EPISODES} {kind} episodes")
        print(f"Model:   {self.params_path}.zip")
        self.draw(title, f"final policy, {FINAL_EPISODES} episodes: {score}")

    def remedy(self) -> str:
        """Say how to resume an interrupted run, if there is a checkpoint.

        :return: a clause of a sentence
        """
        if self.checkpoint is None or self.checkpoint.latest is None:
            return ""
        words = ["sb3-trpo", "train", "--resume", self.save_path, *repeated(self.args)]
        trust = ["--trust-checkpoint"] if needs_trust(Path(self.save_path), words) else []
        return f"; resume with '{shlex.join([*words, *trust])}'"

    def draw(self, title: str, result: str) -> None:
        """Draw the run and print where the pictures are.

        :param title: what was trained
        :param result: how the run ended
        """
        run = Path(self.save_path)
        curve = draw_learning_curve(run, f"{title}\n{result}")
        print(f"Picture: {curve}")
        if draw_trust_region(run, title):
            print(f"Picture: {run / 'trust_region.png'}")

    def evaluate(self, model: BaseAlgorithm) -> npt.NDArray[np.float64]:
        """Evaluate a model on new episodes, without normalised rewards.

        :param model: the trained model
        :return: returns of the episodes, shape (FINAL_EPISODES,)
        """
        env = self.create_envs(1, eval_env=True)
        env.seed(self.seed + FINAL_SEED_OFFSET)
        training_env = model.get_env()
        if training_env is not None:
            sync_envs_normalization(training_env, env)
        try:
            returns = evaluate_policy(model, env, FINAL_EPISODES, self.deterministic_eval)
        except BaseException:
            kill_workers(env)
            raise
        env.close()
        return returns


def close_after_training(env: VecEnv | None) -> None:
    """Close environments, of which a step may have failed.

    Neither their error nor that of a process which has ended is what should end the command.

    :param env: training environment
    """
    assert env is not None
    let_close(env)
    try:
        env.close()
    except (EOFError, ConnectionError):
        pass
    except Exception as error:  # which would cost the model
        warnings.warn(f"the environments were not closed: {error!r}", stacklevel=2)


def run_manager(
    manager_class: type[RunManager],
    prog: str,
    help_text: str,
    words: list[str],
    add_options: AddOptions,
) -> RunManager:
    """Run the RL Zoo's training script with a manager of ours.

    :param manager_class: what takes the place of the Zoo's ``ExperimentManager``
    :param prog: program name in the script's help
    :param help_text: head of the script's help
    :param words: command line
    :param add_options: adds options that the script lacks to its help
    :return: the manager, after the run
    """
    if not asks_for_help(words):
        check_words(prog, words)
    managers: list[RunManager] = []

    def make_manager(*arguments: Any, **options: Any) -> RunManager:
        managers.append(manager_class(*arguments, **options))
        return managers[0]

    try:
        with replaced(rl_zoo3.train, "ExperimentManager", make_manager):
            run_script(rl_zoo3.train.train, prog, help_text, words, add_options)
    finally:
        for manager in managers:
            manager.unlock()
    return managers[0]


def check_words(prog: str, words: list[str]) -> None:
    """Check what the RL Zoo's training script would report with a traceback.

    :param prog: the command
    :param words: command line of the script
    :raises UsageError: if the environment, the algorithm, the model or a package does not exist
    """
    parser = Parser(prog, "", add_help=False)
    add_environment(parser)
    parser.add_argument("-i", "--trained-agent", type=Path)
    parser.add_argument("--track", action="store_true")
    choice, _ = parser.parse_known_args(words)
    check_environment(choice)
    if choice.trained_agent is not None:
        check_model(choice.trained_agent)
    if choice.track and find_spec("wandb") is None:
        raise UsageError(missing_package(f"{prog} --track", "wandb", "zoo,wandb"))


def packaged_config(algo: str) -> str | None:
    """Find the hyperparameter file that comes with the package.

    :param algo: the algorithm's key in ``rl_zoo3.ALGOS``
    :return: path of the file; None if the package has none for this algorithm
    """
    package = Path(__file__).resolve().parents[1]
    # An installed package contains the files; in the repository they lie beside it.
    for folder in (package, package.parent):
        path = folder / "zoo_configs" / f"{algo}.yml"
        if path.is_file():
            return str(path)
    return None
