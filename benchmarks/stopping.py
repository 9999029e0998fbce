"""A callback that ends a run early and leaves its schedules as they are."""

from stable_baselines3.common.callbacks import BaseCallback


class StopAt(BaseCallback):
    """
    Stop training at a number of steps; schedules still run to the ``n_timesteps`` of the run.

    :param steps: environment steps, over all environments
    """

    def __init__(self, steps: int) -> None:
        super().__init__()
        self.steps = steps

    def _on_step(self) -> bool:
        return self.num_timesteps < self.steps
