"""How a policy is read as an actor: which parameters are its, and what it does with a batch."""

import warnings
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch as th
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.torch_layers import NatureCNN
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.modules.batchnorm import _NormBase

from sb3_trpo.batch import ActorBatch
from sb3_trpo.distributions import ActionDistribution, Outputs
from sb3_trpo.layerwise import MOST_DIRECTIONS, directions, linearize, recording_layers
from sb3_trpo.linearization import (
    Linearization,
    MlpLinearization,
    RowwiseLinearization,
    bytes_of_rows,
    read_plain_actor,
    second_derivative_fault,
)
from sb3_trpo.sequences import Observations
from sb3_trpo.vectors import flatten

# States that are run through the policy to find out what belongs to the actor and how much memory a
# state takes.
_PROBE_STATES = 16

# Memory that graphs may take where the user sets no number of states, in bytes.
_MEMORY_BUDGET = 480_000_000

# Memory of the graph of one chunk of images on the CPU, in bytes. Large tensors are slow there:
# they leave the caches, and the allocator returns their pages to the system.
_CHUNK_BUDGET = 64_000_000

# States in a chunk where every state and output takes a backward pass of its own.
_FEW_STATES = 8

# The Fisher product's two backward passes keep about as much again, twice, as the forward pass
# saved.
_GRAPHS_PER_FORWARD = 4


class Actor:
    """
    A policy as the trust-region update sees it. Made for one update by :func:`read_actor`.

    :param policy: in evaluation mode
    :param parameters: θ, what the action distribution depends on and what is not frozen, in the
        policy's order
    :param modules: the modules that the action distribution runs through
    :param kl_scale: what the KL divergence of the joint action is multiplied by
    :param max_states_per_chunk: number of states that are evaluated at a time
    :param max_states_in_memory: number of states whose graphs may be in memory at a time
    :param is_differentiable_once: whether the policy runs operations that torch cannot
        differentiate twice
    """

    def __init__(
        self,
        policy: ActorCriticPolicy,
        parameters: Sequence[nn.Parameter],
        modules: frozenset[nn.Module],
        kl_scale: float,
        max_states_per_chunk: int,
        max_states_in_memory: int,
        is_differentiable_once: bool = False,
    ) -> None:
        self.policy = policy
        self.parameters = tuple(parameters)
        self.modules = modules
        self.kl_scale = kl_scale
        self.max_states_per_chunk = max_states_per_chunk
        self.max_states_in_memory = max_states_in_memory
        self.is_differentiable_once = is_differentiable_once
        self._plain = read_plain_actor(policy, self.parameters)
        self._latest: tuple[ActorBatch, Linearization] | None = None
        self._latest_features: tuple[ActorBatch, th.Tensor] | None = None

    def distribution(self, batch: ActorBatch) -> ActionDistribution:
        """
        Evaluate the action distribution at the current θ.

        :param batch: n states
        :return: their distribution
        """
        if self._plain is not None:
            return self._plain.evaluate(self._features(batch))
        return read_distribution(self.policy, batch)

    def linearize(self, batch: ActorBatch) -> Linearization:
        """
        Evaluate the actor for derivatives at the current θ.

        The latest one is kept: an update that fits into one chunk runs the network once for all its
        derivatives.

        :param batch: a chunk; θ must not have moved since the last call with the same one
        :return: what derivatives are taken from
        """
        if self._latest is None or self._latest[0] is not batch:
            self._latest = None  # free the graph before the next one is built
            self._latest = batch, self._linearize(batch)
        return self._latest[1]

    def _linearize(self, batch: ActorBatch) -> Linearization:
        """Choose closed forms where the policy allows them."""
        if self._plain is not None:
            return MlpLinearization(self._plain, self._features(batch))
        with th.enable_grad(), recording_layers(self.policy) as calls:
            distribution = self.distribution(batch)
        if self.is_differentiable_once:
            return RowwiseLinearization(distribution, self.parameters)
        return linearize(self.policy, distribution, self.parameters, calls)

    def _features(self, batch: ActorBatch) -> th.Tensor:
        """Compute a plain network's input, once for a batch that is in use."""
        assert self._plain is not None
        if self._latest_features is None or self._latest_features[0] is not batch:
            self._latest_features = batch, self._plain.features(batch.observations)
        return self._latest_features[1]

    def kl(self, new: ActionDistribution, old: Outputs) -> th.Tensor:
        """
        Compute KL(new ‖ old) of every state.

        :param new: distribution at n states
        :param old: outputs of the other distribution at the same states
        :return: shape ``(n,)``, in nats
        """
        return self.kl_scale * new.family.kl(new.outputs, old).sum(dim=1)

    def refresh_running_statistics(self, batches: Sequence[ActorBatch]) -> bool:
        """
        Let the actor's batch normalisation see the rollout once.

        :param batches: minibatches; single states are passed over, they have no variance
        :return: whether the actor has such layers
        """
        layers = [m for m in self.modules if isinstance(m, _NormBase) and m.track_running_stats]
        if not layers:
            return False
        with training_mode(layers), th.no_grad():
            for batch in batches:
                if len(batch) > 1:
                    read_distribution(self.policy, batch)
        return True


def read_distribution(policy: ActorCriticPolicy, batch: ActorBatch) -> ActionDistribution:
    """
    Ask a policy for its action distribution, in a form that can be differentiated twice.

    The form is the same with and without a graph, so that all parts of an update see the same
    numbers. The policy's own distribution object is left as it was: a graph on it would keep the
    policy from being copied.

    :param policy: feed-forward, maskable or recurrent
    :param batch: states, or sequences of them
    :return: their distribution
    """
    options = {} if batch.masks is None else {"action_masks": batch.masks}
    observations, *others = batch.inputs
    observations = in_fast_layout(policy, observations)
    with _twice_differentiable(policy), _keeping_state(policy.action_dist):
        answer: Any = policy.get_distribution(observations, *others, **options)
        # A recurrent policy returns the states of its LSTM too.
        return ActionDistribution(answer[0] if isinstance(answer, tuple) else answer)


@contextmanager
def _keeping_state(distribution: object) -> Iterator[None]:
    """Give an object the attributes back that it had before the block."""
    attributes = dict(vars(distribution))
    try:
        yield
    finally:
        vars(distribution).clear()
        vars(distribution).update(attributes)


@contextmanager
def training_mode(modules: Sequence[nn.Module]) -> Iterator[None]:
    """
    Put modules, and not what is inside them, into training mode for the duration of a block.

    :param modules: in evaluation mode
    :return: context manager
    """
    for module in modules:
        module.training = True
    try:
        yield
    finally:
        for module in modules:
            module.training = False


@dataclass
class _Probe:
    """What a forward pass through the actor touched: sizes in bytes, of all states together."""

    modules: set[nn.Module]
    saved_bytes: dict[int, int]
    layer_bytes: int = 0

    @property
    def is_of_images(self) -> bool:
        """Tell whether states are images, and each is read for itself."""
        kinds = [type(module) for module in self.modules]
        return nn.Conv2d in kinds and not any(issubclass(kind, nn.RNNBase) for kind in kinds)

    def bytes_of_graphs(self, n_directions: int) -> int:
        """Estimate what derivatives keep, for so many directions of the action distribution."""
        saved = sum(self.saved_bytes.values())
        slopes = n_directions * self.layer_bytes if n_directions <= MOST_DIRECTIONS else 0
        return max(_GRAPHS_PER_FORWARD * saved, saved + slopes)


def read_actor(
    policy: ActorCriticPolicy,
    batch: ActorBatch,
    kl_reduction: str = "sum",
    max_states_per_chunk: int | None = None,
) -> Actor:
    """
    Find out by running it what in a policy is the actor.

    :param policy: in evaluation mode
    :param batch: the states of the update; a few of them are evaluated
    :param kl_reduction: ``sum`` for the KL divergence of the joint action, ``mean`` for its average
        over the action dimensions
    :param max_states_per_chunk: states whose graphs are in memory at a time; ``None`` for as many
        as take about half a GB
    :return: the actor
    :raises ValueError: if no parameter that may be trained has an influence on the action
        distribution, or in torch's inference mode
    """
    if th.is_inference_mode_enabled():
        raise ValueError(
            "The policy cannot be trained inside torch.inference_mode(), which turns gradients "
            "off. Call learn() outside of it."
        )
    few = batch.every(-(-len(batch) // _PROBE_STATES), 0)
    candidates = [parameter for parameter in policy.parameters() if parameter.requires_grad]
    probe = _Probe(set(), {})
    with th.enable_grad(), _recording(probe, policy), recording_layers(policy) as calls:
        distribution = read_distribution(policy, few)
    attached = [z for z in distribution.outputs if z.requires_grad]
    if not attached:
        raise ValueError(
            "The policy has nothing to train: every parameter of its action distribution is "
            "frozen. Set requires_grad of at least one to True."
        )
    slopes = th.autograd.grad(
        [z.sum() for z in attached], candidates, allow_unused=True, retain_graph=True
    )
    parameters = [p for p, slope in zip(candidates, slopes, strict=True) if slope is not None]
    gradient = flatten([slope for slope in slopes if slope is not None])
    fault = second_derivative_fault(linearize(policy, distribution, parameters, calls), gradient)
    if fault is None:
        bytes_per_state = probe.bytes_of_graphs(sum(directions(distribution))) / len(few)
    else:
        _warn_of_first_derivatives(fault)
        bytes_per_state = bytes_of_rows(distribution, gradient)
    in_memory = max_states_per_chunk or _states_in(_MEMORY_BUDGET, bytes_per_state)
    per_chunk = in_memory
    if fault is not None:
        per_chunk = min(in_memory, _FEW_STATES)
    elif probe.is_of_images and attached[0].is_cpu:
        per_chunk = min(in_memory, _states_in(_CHUNK_BUDGET, bytes_per_state))
    modules = probe.modules | _modules_with(policy, parameters)
    kl_scale = 1.0 if kl_reduction == "sum" else 1.0 / _action_dimensions(distribution)
    return Actor(
        policy,
        parameters,
        frozenset(modules),
        kl_scale,
        per_chunk,
        in_memory,
        is_differentiable_once=fault is not None,
    )


def _warn_of_first_derivatives(fault: str) -> None:
    """Say why the update is slow."""
    warnings.warn(
        f"The policy runs an operation that torch cannot differentiate twice ({fault}). The "
        f"actor's update is right but slow: it takes one backward pass for every state and output. "
        f"An operation with a second derivative, like Embedding with a sum for EmbeddingBag, "
        f"avoids that.",
        stacklevel=4,
    )


def _states_in(budget: int, bytes_per_state: float) -> int:
    """Count the states whose graphs take so much memory, and at least one."""
    return max(1, int(budget / max(bytes_per_state, 1)))


def in_fast_layout(policy: ActorCriticPolicy, observations: Observations) -> Observations:
    """
    Lay images out with their channels last, in which convolutions are fastest.

    :param policy: any policy; a features extractor that is not SB3's may rely on the usual layout
    :param observations: n states
    :return: the same numbers
    """
    if type(policy.features_extractor) is not NatureCNN or isinstance(observations, dict):
        return observations
    return observations.contiguous(memory_format=th.channels_last)


def _modules_with(policy: ActorCriticPolicy, parameters: Sequence[nn.Parameter]) -> set[nn.Module]:
    """List the modules that own an actor parameter or are inside the actor's features extractor."""
    actors = set(map(id, parameters))
    owners = {m for m in policy.modules() if any(id(p) in actors for p in m.parameters(False))}
    return owners | set(policy.pi_features_extractor.modules())


def _action_dimensions(distribution: ActionDistribution) -> int:
    """Count the dimensions that contrib averages the KL divergence over."""
    z = tuple(output.detach() for output in distribution.outputs)
    return distribution.family.kl(z, z).shape[1]


@contextmanager
def _twice_differentiable(policy: nn.Module) -> Iterator[None]:
    """
    Run a policy without the kernels that have no second derivative.

    These are cuDNN's recurrent layers, fused attention, torch's fast path of transformers in
    evaluation mode, and compiled code.
    """
    is_recurrent = any(isinstance(module, nn.RNNBase) for module in policy.modules())
    cudnn, fast_path = th.backends.cudnn.enabled, th.backends.mha.get_fastpath_enabled()
    th.backends.cudnn.enabled = cudnn and not is_recurrent
    th.backends.mha.set_fastpath_enabled(False)
    try:
        with sdpa_kernel(SDPBackend.MATH), _uncompiled(policy):
            yield
    finally:
        th.backends.cudnn.enabled = cudnn
        th.backends.mha.set_fastpath_enabled(fast_path)


def _uncompiled(policy: nn.Module) -> AbstractContextManager[Any]:
    """Run compiled parts as they were written: most backends have no second derivative."""
    is_compiled = any(
        "_orig_mod" in module._modules or module._compiled_call_impl is not None
        for module in policy.modules()
    )
    stance: AbstractContextManager[Any] = (
        th.compiler.set_stance("force_eager") if is_compiled else nullcontext()
    )
    return stance


@contextmanager
def _recording(probe: _Probe, policy: nn.Module) -> Iterator[None]:
    """Record the modules that are called and the size of what is saved for the backward pass."""
    own = {_memory_of(tensor)[0] for tensor in [*policy.parameters(), *policy.buffers()]}

    def note(tensor: th.Tensor) -> th.Tensor:
        address, size = _memory_of(tensor)
        if address not in own:
            probe.saved_bytes[address] = size
        return tensor

    def called(module: nn.Module, args: Any, output: Any) -> None:
        probe.modules.add(module)
        if isinstance(module, (nn.Linear, nn.Conv2d)):
            probe.layer_bytes += output.numel() * output.element_size()

    handles = [module.register_forward_hook(called) for module in policy.modules()]
    try:
        with th.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
            yield
    finally:
        for handle in handles:
            handle.remove()


def _memory_of(tensor: th.Tensor) -> tuple[int, int]:
    """Return where a tensor's numbers are in memory, and how many bytes they take."""
    if tensor.layout is th.sparse_coo:
        tensor = tensor._values()
    elif tensor.layout is not th.strided:  # compressed rows, columns or blocks
        tensor = tensor.values()
    storage = tensor.untyped_storage()
    return storage.data_ptr(), storage.nbytes()
