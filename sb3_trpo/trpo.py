"""Trust Region Policy Optimization as a Stable-Baselines3 algorithm."""

import math
import pathlib
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from io import BufferedIOBase, BytesIO
from typing import Any, ClassVar, TypeVar, cast

import numpy as np
import torch as th
from gymnasium import spaces
from sb3_contrib.common.recurrent.policies import RecurrentActorCriticPolicy
from sb3_contrib.trpo.policies import CnnPolicy, MlpPolicy, MultiInputPolicy
from stable_baselines3.common.buffers import DictRolloutBuffer, RolloutBuffer
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from stable_baselines3.common.policies import ActorCriticPolicy, BasePolicy
from stable_baselines3.common.preprocessing import get_obs_shape
from stable_baselines3.common.type_aliases import GymEnv, MaybeCallback, Schedule, TensorDict
from stable_baselines3.common.utils import obs_as_tensor
from stable_baselines3.common.vec_env import VecEnv

from sb3_trpo._actor import Actor, LinearizedActor, dtype_of, read_actor
from sb3_trpo._atomic import saving_path, write_atomically
from sb3_trpo._batch import ActorBatch, Minibatch, Rollout
from sb3_trpo._critic import Critic, CriticFit, fit_critic, read_critic
from sb3_trpo._data_parallel import (
    ProgressBar,
    StartingTogether,
    check_equal_parameters,
    explained_variance,
    joined_rollout,
    merged_statistics,
    seed_of,
    silent_logger,
    start_equal,
)
from sb3_trpo._environment import NamingThePlace, discard_interrupted_step
from sb3_trpo._finite import NormalizationStatistics, Reading, check_finite
from sb3_trpo._fisher import FisherProduct, for_one_solve
from sb3_trpo._hyperparameters import (
    KL_REDUCTIONS,
    RANGES,
    check_learn,
    check_ranges,
    check_values,
    parse_schedule,
    plain_options,
    value_at,
)
from sb3_trpo._interrupts import deferring_interrupts
from sb3_trpo._merged_weights import weights_apart
from sb3_trpo._processes import Processes, processes_of
from sb3_trpo._read_buffer import (
    check_size,
    is_sb3_buffer,
    minibatches,
    minibatches_per_epoch,
    read_rollout,
)
from sb3_trpo._rollout_forward import fast_forward
from sb3_trpo._saved_model import fitting, read_model, read_parameters, reason_to_refuse
from sb3_trpo._saved_weights import check_parameters
from sb3_trpo._surrogate import Surrogate, improvement_and_kl, surrogate_at
from sb3_trpo._trust_region import (
    Candidate,
    LineSearch,
    NaturalStep,
    backtrack,
    inside_trust_region,
    natural_step,
)
from sb3_trpo.rollout_buffer import fastest

SelfTRPO = TypeVar("SelfTRPO", bound="TRPO")

# sb3-contrib's, per dimension of Box and MultiBinary actions.
DEFAULT_TARGET_KL = 0.01
DEFAULT_CG_DAMPING = 0.1

# Outcomes of an actor update; the log has the position in this list.
ACTOR_UPDATES = (
    "accepted",
    "target_kl_is_zero",
    "line_search_failed",
    "zero_gradient",
    "not_finite",
    "non_positive_curvature",
    "kl_is_nan",
)

_USUAL_ADVICE = (
    "If the policy is not nearly deterministic already, try a larger cg_damping or a smaller "
    "target_kl."
)
_ADVICE = {
    "zero_gradient": "All advantages are 0, or the policy has one action only: check the rewards "
    "and the action space.",
    "kl_is_nan": "The KL divergence of every candidate is NaN: check the parameters that the "
    "policy gives its action distribution.",
    "not_finite": "The gradient or a Fisher product is not finite: check the observations, the "
    "rewards and the policy's layers.",
}

# Warn after this many updates in a row that left the policy unchanged.
_SKIPS_BEFORE_WARNING = 10

# Mean of |ρ_θk - 1|: rounding leaves 1e-6 of it, bfloat16 0.01, and σ = 2e-9 some 0.2.
_LARGEST_RATIO_ERROR = 0.3


class TRPO(OnPolicyAlgorithm):
    r"""
    Trust Region Policy Optimization (TRPO).

    Maximises the surrogate advantage under a bound on the mean KL divergence between the new and
    the old policy:

    .. math:: \max_\theta E\Big[\frac{\pi_\theta(a|s)}{\pi_{\theta_k}(a|s)} A(s, a)\Big]
        \quad \text{subject to} \quad E_s[KL(\pi_\theta(\cdot|s) \|
        \pi_{\theta_k}(\cdot|s))] \le \delta

    :param policy: policy class, or its name: ``MlpPolicy``, ``CnnPolicy``, ``MultiInputPolicy``
    :param env: environment, or its registered name
    :param learning_rate: of the critic's optimizer; a number or a function of the remaining
        progress (from 1 to 0)
    :param n_steps: steps per environment and update; n_steps · n_envs must be greater than 1
        if the advantages are normalised
    :param batch_size: states in a minibatch of the critic's fit
    :param gamma: discount factor, from 0 to 1
    :param cg_max_steps: largest number of conjugate gradient steps, at least 1
    :param cg_damping: λ ≥ 0, added to the Fisher matrix's diagonal; number, schedule or
        ``"lin_0.1"``; ``None`` for 0.1 per dimension of Box and MultiBinary actions, 0.1 for others
    :param line_search_shrinking_factor: α, by which a rejected step is multiplied, between 0 and 1
    :param line_search_max_iter: largest number of candidates; 0 takes the full step untested
        (natural policy gradient)
    :param n_critic_updates: epochs of the critic's fit per update
    :param gae_lambda: λ of generalized advantage estimation, from 0 to 1
    :param use_sde: whether to explore with generalized state-dependent exploration (gSDE) instead
        of action noise
    :param sde_sample_freq: steps between two samples of the gSDE noise matrix; -1 for once per
        rollout
    :param rollout_buffer_class: rollout buffer; ``None`` for SB3's
    :param rollout_buffer_kwargs: keyword arguments of the rollout buffer
    :param normalize_advantage: whether to shift and scale the advantages to mean 0 and standard
        deviation 1
    :param target_kl: δ ≥ 0, radius of the trust region in nats per state (with ``kl_reduction``
        ``mean``, per state and action dimension); number, schedule or ``"lin_0.02"``; 0 leaves the
        actor alone; ``None`` for 0.01 per dimension of Box and MultiBinary actions, 0.01 for others
    :param sub_sampling_factor: use only every k-th state for the whole actor update (the critic
        uses all)
    :param stats_window_size: episodes that the logged return, length and success rate are averaged
        over
    :param tensorboard_log: folder of the TensorBoard logs; ``None`` for no logs
    :param policy_kwargs: keyword arguments of the policy
    :param verbose: 0 for no output, 1 for information, 2 for debugging
    :param seed: seed of all pseudo-random generators
    :param device: ``cpu``, ``cuda`` or ``auto``
    :param _init_setup_model: whether to build the networks at construction
    :param kl_reduction: ``sum``: the KL divergence of the joint action, the correct one; ``mean``:
        its average over the action dimensions, as sb3-contrib has it for Box and MultiBinary
        actions; ``None``: ``sum``, with a warning where the two differ and ``target_kl`` or
        ``cg_damping`` is a number, which may have been written for sb3-contrib
    :param ent_coef: weight of the policy's entropy in the surrogate objective
    :param fisher_sub_sampling_factor: use only every k-th state for the Fisher products
    :param cg_residual_tol: relative residual at which the conjugate gradient method stops, from 0
        to below 1; it also stops where the numbers' precision does
    :param damped_step_size: whether the damping shortens the full step, as in sb3-contrib; without,
        the full step's KL divergence is ``target_kl`` in the quadratic model
    :param line_search_accept_ratio: least ratio of realised to expected improvement, from 0 to
        below 1
    :param max_states_per_chunk: states whose graphs are in memory at a time; ``None`` for as many
        as take about half a GB, on a GPU a fifth of its memory. Bounds the memory of the update,
        whose step stays the same to rounding
    :param data_parallel: whether all processes of torch's default process group train this policy
        together; ``n_steps`` and ``env`` are those of each, ``batch_size``, ``total_timesteps`` and
        what is logged count all. It is not saved
    :raises ValueError: if an argument is out of its range, or ``data_parallel`` is True and there
        is no process group
    :raises AssertionError: as sb3-contrib, if there is one state per update, whose advantage cannot
        be normalised

    Source: Schulman et al. (2015), Trust Region Policy Optimization,
    https://arxiv.org/abs/1502.05477
    """

    policy_aliases: ClassVar[dict[str, type[BasePolicy]]] = {
        "MlpPolicy": MlpPolicy,
        "CnnPolicy": CnnPolicy,
        "MultiInputPolicy": MultiInputPolicy,
    }
    # For one observation, and for dict observations.
    buffer_classes: ClassVar[tuple[Any, Any]] = (RolloutBuffer, DictRolloutBuffer)
    # Whether the buffer has to be one of these, as masks and LSTM states are stored in it.
    needs_own_buffer: ClassVar[bool] = False
    supported_action_spaces: ClassVar[tuple[Any, ...]] = (
        *(spaces.Box, spaces.Discrete, spaces.MultiDiscrete, spaces.MultiBinary),
    )

    # Whether its policies know gSDE.
    has_sde: ClassVar[bool] = True

    # The base class of its policies, and base classes that it refuses.
    policy_family: ClassVar[type[BasePolicy]] = ActorCriticPolicy
    other_families: ClassVar[tuple[type[BasePolicy], ...]] = (RecurrentActorCriticPolicy,)

    # The LSTM's states after the last step; there are none without an LSTM.
    _last_lstm_states: Any = None

    # Whether the rate was a function in a file that is not trusted: then it is good for prediction.
    _needs_learning_rate = False

    # Of a `learn` that was interrupted and is resumed.
    _iterations_before = 0
    _log_interval = 1

    # Where sb3-contrib averages the KL divergence over action dimensions.
    averaged_action_spaces: ClassVar[tuple[Any, ...]] = (spaces.Box, spaces.MultiBinary)

    def __init__(
        self,
        policy: str | type[ActorCriticPolicy],
        env: GymEnv | str,
        learning_rate: float | Schedule = 1e-3,
        n_steps: int = 2048,
        batch_size: int = 128,
        gamma: float = 0.99,
        cg_max_steps: int = 15,
        cg_damping: float | str | Schedule | None = None,
        line_search_shrinking_factor: float = 0.8,
        line_search_max_iter: int = 10,
        n_critic_updates: int = 10,
        gae_lambda: float = 0.95,
        use_sde: bool = False,
        sde_sample_freq: int = -1,
        rollout_buffer_class: type[RolloutBuffer] | None = None,
        rollout_buffer_kwargs: dict[str, Any] | None = None,
        normalize_advantage: bool = True,
        target_kl: float | str | Schedule | None = None,
        sub_sampling_factor: int = 1,
        stats_window_size: int = 100,
        tensorboard_log: str | None = None,
        policy_kwargs: dict[str, Any] | None = None,
        verbose: int = 0,
        seed: int | None = None,
        device: th.device | str = "auto",
        _init_setup_model: bool = True,
        *,
        kl_reduction: str | None = None,
        ent_coef: float = 0.0,
        fisher_sub_sampling_factor: int = 1,
        cg_residual_tol: float = 1e-5,
        damped_step_size: bool = True,
        line_search_accept_ratio: float = 0.0,
        max_states_per_chunk: int | None = None,
        data_parallel: bool = False,
    ) -> None:
        # SB3 uses these before `_setup_model` checks all.
        early: dict[str, Any] = {
            "policy_kwargs": policy_kwargs,
            "rollout_buffer_kwargs": rollout_buffer_kwargs,
            "use_sde": use_sde,
            "stats_window_size": stats_window_size,
            "verbose": verbose,
            "device": device,
            "data_parallel": data_parallel,
        }
        check_values(RANGES, early)
        is_first = processes_of(data_parallel, th.device("cpu")).rank == 0
        super().__init__(
            policy,
            env,
            learning_rate=learning_rate,
            n_steps=n_steps,
            gamma=gamma,
            gae_lambda=gae_lambda,
            ent_coef=ent_coef,
            vf_coef=0.0,  # the critic has a fit of its own
            max_grad_norm=0.0,
            use_sde=use_sde,
            sde_sample_freq=sde_sample_freq,
            rollout_buffer_class=rollout_buffer_class,
            rollout_buffer_kwargs=plain_options(rollout_buffer_kwargs),
            stats_window_size=int(stats_window_size),
            tensorboard_log=tensorboard_log,
            policy_kwargs=plain_options(policy_kwargs),
            verbose=verbose if is_first else 0,
            device=device,
            seed=seed,
            _init_setup_model=False,
            supported_action_spaces=self.supported_action_spaces,
        )
        self.batch_size = batch_size
        self.cg_max_steps = cg_max_steps
        self.cg_damping = cg_damping
        self.line_search_shrinking_factor = line_search_shrinking_factor
        self.line_search_max_iter = line_search_max_iter
        self.n_critic_updates = n_critic_updates
        self.normalize_advantage = normalize_advantage
        self.target_kl = target_kl
        self.sub_sampling_factor = sub_sampling_factor
        self.kl_reduction = "sum" if kl_reduction is None else kl_reduction
        self.fisher_sub_sampling_factor = fisher_sub_sampling_factor
        self.cg_residual_tol = cg_residual_tol
        self.damped_step_size = damped_step_size
        self.line_search_accept_ratio = line_search_accept_ratio
        self.max_states_per_chunk = max_states_per_chunk
        self.data_parallel = data_parallel
        self._last_own_update = 0
        self._skipped_updates = 0
        self._skipped_in_a_row = 0

        if _init_setup_model:
            self._setup_model()
            if kl_reduction is None:
                self._warn_of_contribs_unit(target_kl=target_kl, cg_damping=cg_damping)

    def _setup_model(self) -> None:
        """Check all hyperparameters, then build buffer and policy."""
        self._check_hyperparameters()
        # Python's `random` does not take NumPy's integers.
        self.seed = None if self.seed is None else int(self.seed)
        self.learning_rate = parse_schedule("learning_rate", self.learning_rate)
        self._set_trust_region()
        self._setup_lr_schedule()
        self.set_random_seed(
            None if self.seed is None else seed_of(self._processes.rank, self.seed)
        )
        options = {**({"use_sde": self.use_sde} if self.has_sde else {}), **self.policy_kwargs}
        space: Any = self.observation_space
        with th.no_grad():  # with a graph, gSDE's first noise could not be copied
            policy: Any = self.policy_class(space, self.action_space, self.lr_schedule, **options)
        self.policy = policy.to(self.device)
        self._build_buffer()
        self._maybe_recommend_cpu()

    @property
    def _processes(self) -> Processes:
        """Return the processes that train this model."""
        return processes_of(self.data_parallel, self.device)

    def _set_trust_region(self) -> None:
        """Parse radius and damping; None means the equivalent of sb3-contrib's default."""
        dimensions = self._averaged_dimensions() if self.kl_reduction == "sum" else 1
        if self.target_kl is None:
            self.target_kl = DEFAULT_TARGET_KL * dimensions
        if self.cg_damping is None:
            self.cg_damping = DEFAULT_CG_DAMPING * dimensions
        self.target_kl = parse_schedule("target_kl", self.target_kl)
        self.cg_damping = parse_schedule("cg_damping", self.cg_damping)

    def _averaged_dimensions(self) -> int:
        """Count the action dimensions that sb3-contrib averages the KL divergence over."""
        is_averaged = isinstance(self.action_space, self.averaged_action_spaces)
        return math.prod(self.action_space.shape or ()) if is_averaged else 1

    def _warn_of_contribs_unit(self, **values: Any) -> None:
        """Warn that numbers written for ``sb3_contrib.TRPO`` mean less here."""
        dimensions = self._averaged_dimensions()
        given = {
            name: value
            for name, value in values.items()
            if isinstance(value, (int, float, np.number)) and value > 0
        }
        if dimensions == 1 or not given:
            return
        here, there = (
            ", ".join(f"{name}={factor * value:g}" for name, value in given.items())
            for factor in (1, dimensions)
        )
        warnings.warn(
            f"{here}: that is for the KL divergence of the joint action, the sum over {dimensions} "
            f"dimensions; in sb3_contrib.TRPO it is for their average, which makes it {dimensions} "
            f"times as much. Pass kl_reduction='mean' to keep what target_kl and cg_damping mean "
            f"in sb3_contrib, or kl_reduction='sum' if you mean the sum (sb3_contrib's are then "
            f"{there}).",
            stacklevel=3,
        )

    def _build_buffer(self, **options: Any) -> None:
        """Build the rollout buffer; variants pass the further options of its class."""
        space: Any = self.observation_space
        if self.rollout_buffer_class is None:
            self.rollout_buffer_class = self.buffer_classes[isinstance(space, spaces.Dict)]
        if self.needs_own_buffer and not issubclass(self.rollout_buffer_class, self.buffer_classes):
            raise ValueError(
                f"{type(self).__name__} cannot fill a {self.rollout_buffer_class.__name__}. Pass a "
                f"subclass of {' or '.join(kind.__name__ for kind in self.buffer_classes)}."
            )
        shared = {name: getattr(self, name) for name in ("device", "gamma", "gae_lambda", "n_envs")}
        options = {**shared, **options, **self.rollout_buffer_kwargs}
        sizes = self.n_steps, space, self.action_space
        self.rollout_buffer = self.rollout_buffer_class(*sizes, **options)
        if self.data_parallel and not is_sb3_buffer(self.rollout_buffer):
            raise ValueError(
                f"data_parallel=True cannot share the minibatches of a "
                f"{self.rollout_buffer_class.__name__} among processes, because it overrides get, "
                f"_get_samples or to_torch. Leave them as they are in SB3."
            )

    def _check_hyperparameters(self) -> None:
        """Raise if a hyperparameter cannot work, before anything is built."""
        check_ranges(self)
        processes_of(self.data_parallel, self.device)
        self._check_observation_space()
        self._check_policy_family()
        self._check_overrides()
        if "use_sde" in self.policy_kwargs:
            raise ValueError(
                f"policy_kwargs has use_sde={self.policy_kwargs['use_sde']}. Pass use_sde to the "
                f"algorithm itself, which has to draw the noise."
            )
        size = self.n_steps * self.n_envs
        if self.normalize_advantage:
            assert size > 1, (
                "`n_steps * n_envs` must be greater than 1, or pass normalize_advantage=False: one "
                f"advantage cannot be normalised. Currently n_steps={self.n_steps} and "
                f"n_envs={self.n_envs}"
            )
        self._check_sub_sampling(size)
        if self.env is not None and size % self.batch_size > 0 and not self.data_parallel:
            warnings.warn(
                f"The critic's batch_size={self.batch_size} does not divide the rollout of "
                f"n_steps * n_envs = {self.n_steps} * {self.n_envs} = {size} states: the last "
                f"minibatch of every epoch is truncated to {size % self.batch_size} states. A "
                f"batch_size that is a factor of {size} avoids that.",
                stacklevel=4,
            )

    def _check_observation_space(self) -> None:
        """Refuse a space that is missing, or that a buffer of SB3 would refuse."""
        space = getattr(self, "observation_space", None)
        if space is None:
            raise ValueError(
                "env=None: there are no spaces to build the policy for. Pass an environment or its "
                "registered name."
            )
        if self.rollout_buffer_class is None:
            get_obs_shape(space)

    def _check_policy_family(self) -> None:
        """Refuse a policy of another algorithm."""
        policy, family = self.policy_class, self.policy_family
        is_class = isinstance(policy, type)
        if not (is_class and issubclass(policy, family)) or issubclass(policy, self.other_families):
            others = " or ".join(kind.__name__ for kind in self.other_families)
            raise ValueError(
                f"{type(self).__name__} cannot use the policy {getattr(policy, '__name__', policy)}"
                f". Pass a subclass of {family.__name__}{f' that is no {others}' if others else ''}"
                f", or one of {', '.join(self.policy_aliases)}."
            )

    def _check_overrides(self) -> None:
        """Refuse a class that changes a part of sb3-contrib's update, which nothing would call."""
        for name in ("hessian_vector_product", "_compute_actor_grad"):
            if hasattr(type(self), name):
                raise ValueError(
                    f"{type(self).__name__} has a method {name}, which sb3_contrib.TRPO calls and "
                    f"sb3_trpo does not: its update has other parts. Override train, or derive the "
                    f"class from sb3_contrib.TRPO."
                )

    def _check_sub_sampling(self, size: int) -> None:
        """Refuse factors that leave too few of the rollout's states."""
        least = 2 if self.normalize_advantage else 1
        fewest = size // self.sub_sampling_factor
        if fewest < least:
            raise ValueError(
                f"sub_sampling_factor={self.sub_sampling_factor} leaves {fewest} of the rollout's "
                f"n_steps * n_envs = {size} states, and the actor's update needs {least}. It can "
                f"be at most {size // least}."
            )
        if fewest < self.fisher_sub_sampling_factor:
            raise ValueError(
                f"fisher_sub_sampling_factor={self.fisher_sub_sampling_factor} leaves none of the "
                f"{fewest} states of an actor update for the Fisher products. It can be at most "
                f"{fewest}."
            )

    def _check_learning_rate(self) -> None:
        """Refuse to train with what stands for a learning rate that was left in its file."""
        if self._needs_learning_rate:
            raise ValueError(
                "The learning_rate of this model was a function, which is not taken from a file "
                "that is not trusted. To train on, pass learning_rate=... to load or "
                "resume_training (a number, SB3's LinearSchedule or 'lin_0.001') or, if you made "
                "the file yourself, trust_checkpoint=True, which lets the file run any code."
            )

    def _setup_learn(
        self,
        total_timesteps: int,
        callback: MaybeCallback = None,
        reset_num_timesteps: bool = True,
        tb_log_name: str = "run",
        progress_bar: bool = False,
    ) -> tuple[int, BaseCallback]:
        """Prepare training as SB3 does, with no step pending and finite VecNormalize statistics."""
        processes = self._processes
        with processes.together():
            self._check_learning_rate()
            # Again: another word that was set since would train as "mean".
            check_values(RANGES, {"kl_reduction": self.kl_reduction})
        self._iterations_before, self._log_interval = 0, 1
        settings = {"total_timesteps": total_timesteps, "reset_num_timesteps": reset_num_timesteps}
        start_equal(self, settings, processes)
        is_custom = self._custom_logger
        if processes.rank > 0:
            self.set_logger(silent_logger())
            is_custom = progress_bar = False
        if processes.size > 1:
            together = StartingTogether(callback, processes)
            if progress_bar:
                together.callbacks.append(ProgressBar())
            callback, progress_bar = together, False
        options = callback, reset_num_timesteps, tb_log_name, progress_bar
        with merged_statistics(self.env, processes), processes.together():
            prepared = self._setup_own(total_timesteps, *options)
        self._custom_logger = is_custom
        return prepared

    def _setup_own(self, *arguments: Any) -> tuple[int, BaseCallback]:
        """Prepare the environments, logger and callbacks of this process."""
        with NamingThePlace(self.env), NormalizationStatistics(self.env) as statistics:
            if discard_interrupted_step(self.env):
                self._last_obs = None  # for which SB3 resets
            prepared = super()._setup_learn(*arguments)
            statistics.check(step=0)
        return prepared

    def collect_rollouts(
        self,
        env: VecEnv,
        callback: BaseCallback,
        rollout_buffer: RolloutBuffer,
        n_rollout_steps: int,
    ) -> bool:
        """
        Collect a rollout as SB3 does, and refuse numbers that are not finite where they are used.

        :param env: training environment
        :param callback: called at every step, and at the start and the end of the rollout
        :param rollout_buffer: buffer to fill
        :param n_rollout_steps: steps per environment
        :return: ``False`` if the callback stopped the rollout early
        :raises ValueError: at the step whose reward is not finite, or whose observation makes the
            policy's answer or VecNormalize's statistics not finite
        """
        takes_gradients = th.is_grad_enabled()
        processes = self._processes
        n_envs = int(processes.total(env.num_envs))
        try:
            with processes.together():
                check_size(rollout_buffer, n_rollout_steps)
                self._start_rollout(env, callback, rollout_buffer)
            with joined_rollout(self, env, processes), NamingThePlace(env, rollout_buffer):
                is_complete = self._collect(env, callback, rollout_buffer, n_rollout_steps, n_envs)
            return processes.all(is_complete)
        except BaseException:
            # The environment may be a step ahead. Without an observation, `learn` resets it.
            self._last_obs = None
            th.set_grad_enabled(takes_gradients)  # an interrupt may have come inside of no_grad
            raise

    def _collect(
        self,
        env: VecEnv,
        callback: BaseCallback,
        rollout_buffer: RolloutBuffer,
        n_rollout_steps: int,
        n_envs: int,
    ) -> bool:
        """
        Collect a rollout: SB3's loop, with the checks.

        :param n_envs: environments of all processes, whose steps count
        """
        n_steps, policy = 0, None
        add = fastest(rollout_buffer, "add")
        statistics = NormalizationStatistics(env)
        while n_steps < n_rollout_steps:
            if self.policy is not policy:  # a callback may put another one in its place
                policy = self.policy
                act = partial(self._act, env, fast_forward(policy) or policy)
            with th.no_grad(), Reading(self._last_obs, n_steps) as reading:
                if self.use_sde and self.sde_sample_freq > 0 and not n_steps % self.sde_sample_freq:
                    self.policy.reset_noise(env.num_envs)
                obs_tensor = obs_as_tensor(cast(Any, self._last_obs), self.device)
                sampled, values, log_probs, lstm_states, stored = act(obs_tensor)
            actions = sampled.cpu().numpy()
            reading.check(action=actions, value=values, log_probability=log_probs)
            clipped_actions = self._actions_in_space(actions)
            action_masks = stored.get("action_masks")

            episode_starts = self._last_episode_starts
            with statistics:
                new_obs, rewards, dones, infos = env.step(clipped_actions)
                statistics.check(n_steps + 1)
                check_finite("reward", np.asarray(rewards), n_steps + 1)
            self.num_timesteps += n_envs
            callback.update_locals(locals())
            if not callback.on_step():
                self._remember_step(new_obs, dones, lstm_states)
                return False
            self._update_info_buffer(infos, dones)
            n_steps += 1
            if isinstance(self.action_space, spaces.Discrete):
                actions = actions.reshape(-1, 1)
            rewards = self._bootstrapped(rewards, dones, infos, lstm_states, n_steps)
            add(self._last_obs, actions, rewards, episode_starts, values, log_probs, **stored)
            self._remember_step(new_obs, dones, lstm_states)

        values = self._last_values(lstm_states, n_steps)
        fastest(rollout_buffer, "compute_returns_and_advantage")(last_values=values, dones=dones)
        callback.update_locals(locals())
        callback.on_rollout_end()
        return True

    def _remember_step(self, new_obs: Any, dones: np.ndarray, lstm_states: Any) -> None:
        """Note from what the next step starts; a step that a callback stopped at was taken, too."""
        self._last_obs, self._last_episode_starts = new_obs, dones
        self._last_lstm_states = lstm_states

    def _start_rollout(
        self, env: VecEnv, callback: BaseCallback, rollout_buffer: RolloutBuffer
    ) -> None:
        """Empty the buffer and sample gSDE's noise; the callback may restore a training."""
        assert self._last_obs is not None, "No previous observation was provided"
        self.policy.set_training_mode(False)
        rollout_buffer.reset()
        if self.use_sde:
            with th.no_grad():  # with a graph the policy could not be copied
                self.policy.reset_noise(env.num_envs)
        callback.on_rollout_start()

    def _act(
        self, env: VecEnv, forward: Callable[..., Any], obs_tensor: Any, **context: Any
    ) -> tuple[th.Tensor, th.Tensor, th.Tensor, Any, dict[str, Any]]:
        """
        Sample actions for the last observations.

        :param env: training environment
        :param forward: the policy, or its fast forward pass
        :param obs_tensor: the last observations
        :param context: what else the policy reads and the buffer stores: masks, LSTM states
        :return: actions, values, log-probabilities, the LSTM's next states (``None`` without an
            LSTM), and what else the buffer stores
        """
        actions, values, log_probs, *lstm_states = forward(obs_tensor, **context)
        return actions, values, log_probs, lstm_states[0] if lstm_states else None, context

    def _values(
        self,
        obs_tensor: Any,
        lstm_states: Any,
        episode_starts: np.ndarray,
        envs: slice | Sequence[int],
    ) -> th.Tensor:
        """
        Predict the values of observations that the actor does not see.

        :param obs_tensor: observations of the environments ``envs``
        :param lstm_states: of all environments
        :param episode_starts: whether an observation is an episode's first
        :param envs: the environments
        :return: shape ``(n, 1)``
        """
        return self.policy.predict_values(obs_tensor)

    def _actions_in_space(self, actions: np.ndarray) -> np.ndarray:
        """Scale squashed actions to the bounds of the action space, and clip others to them."""
        if not isinstance(self.action_space, spaces.Box):
            return actions
        if self.policy.squash_output:
            return self.policy.unscale_action(actions)
        clipped: np.ndarray = np.clip(actions, self.action_space.low, self.action_space.high)
        return clipped

    def _bootstrapped(
        self, rewards: Any, dones: Any, infos: Any, lstm_states: Any, step: int
    ) -> Any:
        """Add the value of an episode's last state to its reward where a time limit ended it."""
        last = {
            env: infos[env].get("terminal_observation")
            for env, done in enumerate(dones)
            if done and infos[env].get("TimeLimit.truncated", False)
        }
        envs = [env for env, observation in last.items() if observation is not None]
        if not envs:
            return rewards
        terminal_obs = _joined([self.policy.obs_to_tensor(last[env])[0] for env in envs])
        with th.no_grad(), Reading(terminal_obs, step, "terminal observation", envs) as reading:
            starts = np.zeros(len(envs), dtype=bool)
            values = self._values(terminal_obs, lstm_states, starts, envs)
        reading.check(value=values)
        # The environment's own array may be of integers, or read-only.
        kind = np.result_type(np.asarray(rewards), np.float32)
        bootstrapped: np.ndarray = np.array(rewards, dtype=kind)
        bootstrapped[envs] += self.gamma * values.flatten().cpu().numpy()
        return bootstrapped

    def _last_values(self, lstm_states: Any, step: int) -> th.Tensor:
        """Predict the values of the observations after the last step."""
        starts = np.asarray(self._last_episode_starts)
        with th.no_grad(), Reading(self._last_obs, step) as reading:
            obs_tensor = obs_as_tensor(cast(Any, self._last_obs), self.device)
            values = self._values(obs_tensor, lstm_states, starts, slice(None))
        reading.check(value=values)
        return values

    def _update_current_progress_remaining(self, num_timesteps: int, total_timesteps: int) -> None:
        """Compute the remaining progress, at least 0: SB3's falls below when steps overshoot."""
        super()._update_current_progress_remaining(num_timesteps, total_timesteps)
        self._current_progress_remaining = max(self._current_progress_remaining, 0.0)

    def _excluded_save_params(self) -> list[str]:
        """List what is not saved."""
        return [*super()._excluded_save_params(), "_last_lstm_states", "data_parallel"]

    def train(self) -> None:
        """
        Update the actor within the trust region, then fit the critic, on the rollout buffer.

        Ctrl-C waits for the end of the update; a second one does not.
        """
        with deferring_interrupts():
            self.policy.set_training_mode(False)
            self._update_learning_rate(self.policy.optimizer)
            dtype = dtype_of(self.policy)
            processes = self._processes
            with processes.together():
                rollout = read_rollout(self.rollout_buffer, self.device, dtype)
            actor = self._update_actor(rollout)
            self._update_critic(rollout, actor)
            check_equal_parameters(self.policy, processes)
            self._n_updates += 1
            self._last_own_update = self._n_updates
            self.policy.set_training_mode(True)  # as SB3's algorithms leave it, for what comes next
        self.logger.record("train/n_updates", self._n_updates, exclude="tensorboard")

    def _update_actor(self, rollout: Rollout) -> Actor:
        """
        Take a natural-gradient step that a line search keeps in the trust region.

        :param rollout: the collected rollout
        :return: the actor at its new parameters
        """
        progress, processes = self._current_progress_remaining, self._processes
        target_kl = value_at("target_kl", self.target_kl, progress)
        damping = value_at("cg_damping", self.cg_damping, progress)
        batch = self._actor_batch(rollout)
        actor = read_actor(
            self.policy, batch, self.kl_reduction, self.max_states_per_chunk, processes
        )
        chunks = fisher_chunks = batch.chunks(actor.max_states_per_chunk)
        if self.fisher_sub_sampling_factor > 1:
            fisher_chunks = self._fisher_batch(batch).chunks(actor.max_states_per_chunk)
        # L, g and F at the old parameters
        linearized = LinearizedActor(actor, fisher_chunks)
        surrogate = surrogate_at(linearized, chunks, self.ent_coef, processes)
        _check_ratios(surrogate.ratio_error, self.action_space)
        fisher = FisherProduct(linearized, fisher_chunks, damping, processes)
        # x = (F + λI)⁻¹g and the full step βx
        step = natural_step(
            for_one_solve(fisher, surrogate.gradient),
            surrogate.gradient,
            target_kl,
            self.cg_max_steps,
            self.cg_residual_tol,
            subtract_damping=0.0 if self.damped_step_size else damping,
        )
        # the first αʲβx that improves L inside the trust region
        search = backtrack(
            actor.parameters,
            step,
            lambda: Candidate(*improvement_and_kl(actor, surrogate.old, self.ent_coef, processes)),
            inside_trust_region(target_kl, self.line_search_accept_ratio),
            self.line_search_shrinking_factor,
            self.line_search_max_iter,
        )
        self._refresh_running_statistics(actor, surrogate, batch)
        self.logger.record("train/target_kl", target_kl)
        self.logger.record("train/cg_damping", damping)
        self._count_skips(search)
        self._log_actor(surrogate, step, search)
        return actor

    def _update_critic(self, rollout: Rollout, actor: Actor) -> None:
        """
        Fit the critic to the returns without moving the actor.

        :param rollout: the collected rollout
        :param actor: at its new parameters
        """
        memory, processes = actor.max_states_in_memory, self._processes
        critic = read_critic(self.policy, actor.parameters, actor.modules, memory, processes)
        fit = fit_critic(critic, self._minibatches(rollout, critic), processes)
        self._log_critic(rollout, fit)

    def _actor_batch(self, rollout: Rollout) -> ActorBatch:
        """Select the states of the actor's update; the offset of a sub-sample rotates."""
        batch = self._every(self.sub_sampling_factor, rollout.actor_batch, self._n_updates)
        return batch.normalized(self._processes) if self.normalize_advantage else batch

    def _fisher_batch(self, batch: ActorBatch) -> ActorBatch:
        """Select the states of the Fisher products among those of the update."""
        # With the batch's own turns the two would stay in step, and leave some states out.
        turn = self._n_updates // self.sub_sampling_factor
        return self._every(self.fisher_sub_sampling_factor, batch, turn)

    def _every(self, k: int, batch: ActorBatch, turn: int) -> ActorBatch:
        """Take every k-th state, counted through all processes, another one each turn."""
        return batch if k == 1 else batch.every(k, turn - self._processes.before(len(batch)))

    def _minibatches(self, rollout: Rollout, critic: Critic) -> Iterator[Minibatch]:
        """Iterate over the rollout in minibatches for the critic."""
        n_parts = minibatches_per_epoch(
            rollout, self.batch_size, self._processes, critic.least_states
        )
        sizes = self.batch_size, self.n_critic_updates
        return minibatches(self.rollout_buffer, rollout, *sizes, critic.features, n_parts)

    def _refresh_running_statistics(
        self, actor: Actor, surrogate: Surrogate, batch: ActorBatch
    ) -> None:
        """Update the actor's running statistics on its states, and log the KL afterwards."""
        processes = self._processes
        if actor.refresh_running_statistics(batch.chunks(self.batch_size), processes):
            _, kl = improvement_and_kl(actor, surrogate.old, self.ent_coef, processes)
            self.logger.record("train/kl_after_running_statistics", kl)

    def _count_skips(self, search: LineSearch) -> None:
        """Count updates that left the policy unchanged unintentionally; warn of many in a row."""
        outcome = search.failure or "accepted"
        if outcome in ("accepted", "target_kl_is_zero"):
            self._skipped_in_a_row = 0
        else:
            self._skipped_updates += 1
            self._skipped_in_a_row += 1
            if self._skipped_in_a_row % _SKIPS_BEFORE_WARNING == 0:
                warnings.warn(
                    f"The last {self._skipped_in_a_row} updates have left the policy unchanged "
                    f"({outcome}). {_ADVICE.get(outcome, _USUAL_ADVICE)}",
                    stacklevel=4,
                )
        self.logger.record("train/actor_update", ACTOR_UPDATES.index(outcome))
        self.logger.record("train/skipped_updates", self._skipped_updates)

    def _log_actor(self, surrogate: Surrogate, step: NaturalStep, search: LineSearch) -> None:
        """Log objective, step and line search."""
        self.logger.record("train/policy_objective", surrogate.value + search.improvement)
        self.logger.record("train/kl_divergence_loss", search.kl)
        if search.failure != "target_kl_is_zero":  # else nothing was searched, and nothing failed
            self.logger.record("train/is_line_search_success", float(search.accepted))
        self.logger.record("train/entropy", surrogate.entropy)
        self.logger.record("train/grad_norm", step.gradient_norm)
        self.logger.record("train/step_size", search.shrinkage * step.max_step_size)
        self.logger.record("train/backtracks", search.backtracks)
        self.logger.record(
            "train/expected_improvement", search.shrinkage * step.expected_improvement
        )
        self.logger.record("train/actual_improvement", search.improvement)
        if step.cg is not None:
            self.logger.record("train/cg_iterations", step.cg.iterations)
            self.logger.record("train/cg_residual", step.cg.residual)
        if hasattr(self.policy, "log_std"):
            self.logger.record("train/std", th.exp(self.policy.log_std).mean().item())

    def _log_critic(self, rollout: Rollout, fit: CriticFit) -> None:
        """Log the critic's fit, and warn if it was undone."""
        values, returns = rollout.old_values.cpu().numpy(), rollout.returns.cpu().numpy()
        explained = explained_variance(values, returns, self._processes)
        self.logger.record("train/explained_variance", explained)
        if self.n_critic_updates > 0:
            self.logger.record("train/value_loss", fit.loss)
        if fit.diverged:
            warnings.warn(
                f"The critic's fit produced numbers that are not finite and was undone (loss "
                f"{fit.loss}). Use a smaller learning_rate, normalise the rewards, or check the "
                f"observations for infinities.",
                stacklevel=3,
            )

    def learn(
        self: SelfTRPO,
        total_timesteps: int,
        callback: MaybeCallback = None,
        log_interval: int = 1,
        tb_log_name: str = "TRPO",
        reset_num_timesteps: bool = True,
        progress_bar: bool = False,
    ) -> SelfTRPO:
        """
        Train.

        :param total_timesteps: environment steps, rounded up to whole rollouts
        :param callback: called at every step
        :param log_interval: updates between two dumps of the log
        :param tb_log_name: name of the run in TensorBoard
        :param reset_num_timesteps: whether to count the steps from 0 again
        :param progress_bar: whether to show a progress bar (needs tqdm and rich)
        :return: the trained model
        :raises ValueError: if an argument or a hyperparameter is out of its range
        """
        with self._processes.together():
            check_learn(total_timesteps, log_interval)
        return super().learn(
            total_timesteps, callback, log_interval, tb_log_name, reset_num_timesteps, progress_bar
        )

    def dump_logs(self, iteration: int = 0) -> None:
        """
        Write the log, in a resumed ``learn`` at the iterations of the interrupted one.

        :param iteration: of this ``learn``
        """
        iteration += self._iterations_before
        if iteration % self._log_interval == 0:
            super().dump_logs(iteration)

    def save(
        self,
        path: str | pathlib.Path | BufferedIOBase,
        exclude: Iterable[str] | None = None,
        include: Iterable[str] | None = None,
    ) -> None:
        """
        Save the model as SB3 does, but replace a file that exists only when the new one is whole.

        If there is a path, a warning says once if ``load`` will not take the file unless it is
        trusted.

        :param path: path, to which ``.zip`` is added if it has no suffix, or a stream
        :param exclude: further attributes to leave out
        :param include: attributes to save that are left out by default
        :raises ValueError: if ``path`` has no name, as ``"."`` has none
        :raises OSError: if the file cannot be written; the one that was there is as before
        """
        if not isinstance(path, (str, pathlib.Path)):
            with weights_apart(self.policy):
                super().save(path, exclude, include)
            return
        content = BytesIO()
        with weights_apart(self.policy):
            super().save(content, exclude, include)
        write_atomically(saving_path(pathlib.Path(path)), content.getvalue())
        reason = reason_to_refuse(content, type(self))
        if reason is not None:
            # Without the path, so that Python shows it once and not for every file.
            warnings.warn(f"The saved model is one that load will refuse: {reason}", stacklevel=2)

    def set_parameters(
        self,
        load_path_or_dict: str | TensorDict,
        exact_match: bool = True,
        device: th.device | str = "auto",
    ) -> None:
        """
        Load parameters into the policy and its optimizer; hyperparameters stay.

        A compiled policy takes what it gives in ``get_parameters``, and what is in its zip file. Of
        a file, only the weights are read.

        :param load_path_or_dict: zip file, or parameters by the names of ``get_parameters``
        :param exact_match: whether every parameter has to be given
        :param device: where to put them
        """
        if not isinstance(load_path_or_dict, dict):
            names, _ = self._get_torch_save_params()
            load_path_or_dict = cast(Any, read_parameters(load_path_or_dict, names, exact_match))
        compiled = self.policy
        self.policy = getattr(compiled, "_orig_mod", compiled)
        try:
            with weights_apart(self.policy):
                super().set_parameters(load_path_or_dict, exact_match, device)
        finally:
            self.policy = compiled

    @classmethod
    def load(
        cls: type[SelfTRPO],
        path: str | pathlib.Path | BufferedIOBase,
        env: GymEnv | None = None,
        device: th.device | str = "auto",
        custom_objects: dict[str, Any] | None = None,
        print_system_info: bool = False,
        force_reset: bool = True,
        trust_checkpoint: bool = False,
        **kwargs: Any,
    ) -> SelfTRPO:
        """
        Load a model that was saved by this class or by ``sb3_contrib.TRPO``.

        No code of the file runs: it gives weights, numbers, spaces, schedules of SB3 and names of
        classes that are imported already. What a model can do without is left out if it is anything
        else; the rest is refused by name.

        A file that sb3-contrib trained last does not say how its target_kl and cg_damping are
        meant; it continues with ``kl_reduction="mean"``, as it was trained, unless told otherwise.

        :param path: path, or a stream
        :param env: environment to train in; may be missing for prediction
        :param device: where to put the policy
        :param custom_objects: replacements for saved objects, by attribute name
        :param print_system_info: whether to print the saved and the current system
        :param force_reset: whether to reset the environment before training
        :param trust_checkpoint: whether the file may run any code, as in SB3; for a file that you
            made yourself
        :param kwargs: attributes to change; the unit of ``target_kl`` and ``cg_damping`` is that of
            ``kl_reduction``, so change all three together
        :return: the model
        :raises ValueError: if the file is damaged, does not describe a model of this class, or
            holds something that cannot be loaded safely; with its name and the remedy
        """
        model = read_model(path, cls, custom_objects, kwargs, trust_checkpoint)
        saved = model.kl_reduction
        if "kl_reduction" not in kwargs and saved is None:
            kwargs["kl_reduction"] = "mean"
            warnings.warn(
                "This model was not last trained by sb3_trpo: it continues with "
                "kl_reduction='mean', which is what target_kl and cg_damping mean in "
                "sb3_contrib.TRPO. Pass kl_reduction to load to choose.",
                stacklevel=2,
            )
        elif saved is not None and _changes_unit(saved, kwargs):
            warnings.warn(
                f"The saved target_kl and cg_damping were meant for kl_reduction={saved!r} and are "
                f"taken for kl_reduction={kwargs['kl_reduction']!r} as they are, which is another "
                f"trust region for Box and MultiBinary actions. Pass both to load, too.",
                stacklevel=2,
            )
        if "learning_rate" in {**kwargs, **(custom_objects or {})}:
            kwargs["_needs_learning_rate"] = False
        options = env, device, model.objects, print_system_info, force_reset
        if trust_checkpoint:
            return super().load(model.file, *options, **kwargs)
        with fitting(path, model, env, kwargs):
            loaded = super().load(model.file, *options, **kwargs)
            check_parameters(loaded.policy)
        return loaded


def _joined(observations: Sequence[Any]) -> Any:
    """Join observations of one environment each."""
    if isinstance(observations[0], dict):
        return {key: th.cat([each[key] for each in observations]) for key in observations[0]}
    return th.cat(list(observations))


def _check_ratios(ratio_error: float, action_space: spaces.Space[Any]) -> None:
    """Warn if the old policy's ratios, which are 1, show that another policy has acted."""
    if not ratio_error > _LARGEST_RATIO_ERROR:
        return
    if isinstance(action_space, spaces.Box) and action_space.dtype.kind in "iu":
        warnings.warn(
            f"The rollout buffer rounds actions to the action space's {action_space.dtype}, which "
            f"are others than the policy has drawn: the ratio of their probabilities differs from "
            f"1 by {ratio_error:.2g} on average. Give the Box a floating-point type and round in "
            f"the environment, or use MultiDiscrete actions.",
            stacklevel=5,
        )
    else:
        warnings.warn(
            f"The rollout's actions were not drawn from what policy.get_distribution returns, "
            f"unless the policy was changed meanwhile or its standard deviation is of the size of "
            f"rounding errors: the ratio of their probabilities to the recorded ones is not 1, but "
            f"differs from it by {ratio_error:.2g} on average. TRPO optimizes what "
            f"get_distribution returns, and PPO uses evaluate_actions: override both. If you "
            f"replaced features_extractor, replace pi_features_extractor and "
            f"vf_features_extractor, too.",
            stacklevel=5,
        )


def _changes_unit(saved: str, changes: dict[str, Any]) -> bool:
    """Return whether a saved radius or damping would change its unit."""
    reduction = changes.get("kl_reduction", saved)
    is_other = reduction in KL_REDUCTIONS and reduction != saved
    return is_other and not {"target_kl", "cg_damping"} <= changes.keys()
