"""The runs of all processes but the first, which train without writing or printing anything."""

from typing import Any, ClassVar

from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.vec_env import VecEnv

from sb3_trpo.zoo.manager import RunManager


class OtherProcess(RunManager):
    """
    The manager of a process that leaves logs, evaluations and files to the first one.

    :param arguments: as for ``ExperimentManager``
    :param options: as for ``ExperimentManager``
    """

    reports: ClassVar[bool] = False

    def create_log_folder(self) -> None:
        """Leave the folder to the first process."""

    def _save_config(self, saved_hyperparams: dict[str, Any]) -> None:
        """Leave the settings to the first process."""

    def create_callbacks(self) -> None:
        """Keep the callbacks of the configuration only."""

    def create_envs(self, n_envs: int, eval_env: bool = False, no_log: bool = False) -> VecEnv:
        """Create environments whose episodes are not logged in files.

        :param n_envs: as for ``ExperimentManager``
        :param eval_env: as for ``ExperimentManager``
        :param no_log: as for ``ExperimentManager``
        :return: the environments
        """
        return super().create_envs(n_envs, eval_env, no_log=True)

    def save_trained_model(self, model: BaseAlgorithm) -> None:
        """Leave model, evaluation and pictures to the first process.

        :param model: the trained model
        :raises KeyboardInterrupt: after an interrupted run
        """
        if self.interruption is not None:
            raise self.interruption


def in_other_process(kind: type[RunManager]) -> type[RunManager]:
    """Make the manager of a process that is not the first.

    :param kind: manager of the first process
    :return: a class that trains as that one does
    """
    return type(f"Other{kind.__name__}", (OtherProcess, kind), {})
