"""The policy as an actor: its parameters, and how it evaluates and linearises a batch."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from itertools import accumulate
from typing import Any

import torch as th
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.torch_layers import NatureCNN
from torch import nn

from sb3_trpo._batch import ActorBatch, SequenceBatch
from sb3_trpo._distributions import ActionDistribution, Outputs
from sb3_trpo._layerwise import Call, directions, layerwise, recording_layers
from sb3_trpo._linearization import (
    AutogradLinearization,
    Linearization,
    RowwiseLinearization,
    differentiable,
    linearize_mlp,
)
from sb3_trpo._merged_weights import has_modes_of_its_own, unmerge
from sb3_trpo._plain import read_plain, read_plain_recurrent
from sb3_trpo._processes import ALONE, Processes
from sb3_trpo._recurrence import linearize_recurrent
from sb3_trpo._running_statistics import Buffers, training_mode
from sb3_trpo._sequences import Observations
from sb3_trpo._twice_differentiable import twice_differentiable

# States that are evaluated to find the actor's parts and the memory that a state takes.
_PROBE_STATES = 16

# States in a chunk where all are evaluated before it is known what memory a state takes.
_TRIED_STATES = 256

# Memory that graphs may take where the user sets no number of states: in bytes on the CPU, and as a
# share of all the memory of a GPU. Free memory changes from run to run, and with it the chunk size
# and the rounding would. A network of convolutions takes about half of the share.
_MEMORY_BUDGET = 480_000_000
_SHARE_OF_GPU = 0.2

# Memory of the graph of one chunk of images on the CPU, in bytes. Large tensors are slow there:
# they leave the caches, and the allocator returns their pages to the system.
_CHUNK_BUDGET = 64_000_000

# Chunks of images that a GPU holds at a time: a product needs as much memory as their graphs, but
# for one of them only.
_CHUNKS_ON_GPU = 4

# States in a chunk where every state and output takes a backward pass of its own.
_FEW_STATES = 8

# Memory that a state is taken to need where it cannot be measured: that of some large layers.
_UNMEASURED_BYTES = 100_000

# Memory of a Fisher product's graphs, as a multiple of what one forward pass saves.
_GRAPHS_PER_FORWARD = 4


@dataclass(frozen=True, eq=False)
class Actor:
    """
    A policy as the trust-region update sees it. Made for one update by :func:`read_actor`.

    :param policy: in evaluation mode
    :param parameters: θ, what the action distribution depends on and what is not frozen, in the
        policy's order
    :param modules: the modules that the action distribution runs through
    :param kl_scale: factor on the KL divergence of the joint action
    :param max_states_per_chunk: number of states that are evaluated at a time
    :param max_states_in_memory: number of states whose graphs may be in memory at a time
    :param is_differentiable_once: whether the policy runs operations that torch cannot
        differentiate twice
    """

    policy: ActorCriticPolicy
    parameters: tuple[nn.Parameter, ...]
    modules: frozenset[nn.Module]
    kl_scale: float
    max_states_per_chunk: int
    max_states_in_memory: int
    is_differentiable_once: bool = False

    def distribution(self, batch: ActorBatch) -> ActionDistribution:
        """
        Evaluate the action distribution at the current θ.

        :param batch: n states
        :return: their distribution
        """
        return read_distribution(self.policy, batch)

    def linearize(self, batch: ActorBatch) -> Linearization:
        """
        Evaluate the actor for derivatives at the current θ.

        :param batch: a chunk
        :return: the fastest linearization that is right for the policy
        """
        in_closed_form = self._in_closed_form(batch)
        if in_closed_form is not None:
            return in_closed_form
        with th.enable_grad(), recording_layers(self.policy) as calls:
            distribution = self.distribution(batch)
        if self.is_differentiable_once:
            return RowwiseLinearization(distribution, self.parameters)
        by_layers = layerwise(self.policy, distribution, self.parameters, calls)
        return by_layers or AutogradLinearization(distribution, self.parameters)

    def _in_closed_form(self, batch: ActorBatch) -> Linearization | None:
        """Linearise a policy that is exactly SB3's or sb3-contrib's."""
        if isinstance(batch, SequenceBatch):
            sequences, observations = batch.sequences, batch.observations
            return linearize_recurrent(self.policy, self.parameters, observations, sequences)
        return linearize_mlp(self.policy, self.parameters, batch.observations)

    def kl(self, new: ActionDistribution, old: Outputs) -> th.Tensor:
        """
        Compute KL(new ‖ old) of every state.

        :param new: distribution at n states
        :param old: outputs of the other distribution at the same states
        :return: shape ``(n,)``, in nats
        """
        return self.kl_scale * new.family.kl(new.outputs, old).sum(dim=1)

    def refresh_running_statistics(
        self, batches: Sequence[ActorBatch], processes: Processes = ALONE
    ) -> bool:
        """
        Update the buffers that the actor's layers change in training mode, once per rollout.

        :param batches: minibatches; single states are skipped because they have no variance
        :param processes: over which the buffers are averaged afterwards
        :return: whether the actor has such layers
        """
        buffers = Buffers(self.policy, self.modules)
        if not buffers.owners:
            return False
        with training_mode(buffers.owners), th.no_grad():
            for batch in batches:
                for part in _without_padding(batch) if len(batch) > 1 else ():
                    read_distribution(self.policy, part)
        return buffers.average(processes)


def dtype_of(policy: nn.Module) -> th.dtype:
    """
    Return the precision in which a policy is trained.

    :param policy: any policy
    :return: the dtype of its first trainable parameter; a frozen part may have another one
    """
    trained = (p.dtype for p in policy.parameters() if p.requires_grad and p.is_floating_point())
    return next(trained, th.float32)


class LinearizedActor:
    """
    The actor at θ_k, linearised chunk by chunk.

    Keeps as many linearizations in memory as fit, those of the chunks in ``stay``, for later
    passes. θ must not change meanwhile.

    :param actor: at θ_k
    :param chunks: the chunks that later passes visit again
    """

    def __init__(self, actor: Actor, chunks: Sequence[ActorBatch]) -> None:
        self.actor = actor
        self.stay = _first_in_memory(chunks, actor.max_states_in_memory)
        self._built: dict[ActorBatch, Linearization] = {}

    def at(self, chunk: ActorBatch) -> Linearization:
        """
        Return the linearization at a chunk, from memory if it is there.

        :param chunk: any states
        :return: their linearization
        """
        if chunk not in self._built:
            # Free what does not stay before the next graph is built.
            for other in self._built.keys() - self.stay:
                del self._built[other]
            self._built[chunk] = self.actor.linearize(chunk)
        return self._built[chunk]


def _first_in_memory(chunks: Sequence[ActorBatch], max_states: int) -> frozenset[ActorBatch]:
    """Choose as many chunks as fit; if not all do, leave room for one of the others."""
    sizes = list(map(len, chunks))
    room = max_states if sum(sizes) <= max_states else max_states - max(sizes)
    pairs = zip(chunks, accumulate(sizes), strict=True)
    return frozenset(chunk for chunk, total in pairs if total <= room)


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
    with twice_differentiable(policy), _keeping_state(getattr(policy, "action_dist", None)):
        answer: Any = policy.get_distribution(observations, *others, **options)
        # A recurrent policy returns the states of its LSTM too.
        return ActionDistribution(answer[0] if isinstance(answer, tuple) else answer)


def _without_padding(batch: ActorBatch) -> list[ActorBatch]:
    """Divide sequences into groups of one length, which need no padding."""
    if not isinstance(batch, SequenceBatch):
        return [batch]
    lengths = batch.sequences.lengths
    groups = [lengths == length for length in set(lengths.tolist())]
    return [batch.select(group.nonzero().flatten()) for group in groups]


@contextmanager
def _keeping_state(distribution: object) -> Iterator[None]:
    """Restore an object's attributes after the block."""
    if not hasattr(distribution, "__dict__"):  # a policy may keep none, or a dictionary of them
        yield
        return
    attributes = dict(vars(distribution))
    try:
        yield
    finally:
        vars(distribution).clear()
        vars(distribution).update(attributes)


@dataclass
class _Probe:
    """What a forward pass of a few states used: sizes in bytes, of all states together."""

    n_states: int
    modules: set[nn.Module] = field(default_factory=set)
    saved_bytes: dict[int, int] = field(default_factory=dict)
    layer_bytes: int = 0

    @property
    def is_of_images(self) -> bool:
        """Return whether the states are images and not sequences."""
        kinds = [type(module) for module in self.modules]
        return nn.Conv2d in kinds and not any(issubclass(kind, nn.RNNBase) for kind in kinds)

    def bytes_per_state(self, linearization: Linearization) -> float:
        """Estimate the memory that such a linearization keeps."""
        distribution = linearization.distribution
        if isinstance(linearization, RowwiseLinearization):
            columns = sum(z[0].numel() for z in distribution.outputs)
            return columns * sum(p.numel() * p.element_size() for p in linearization.parameters)
        saved, slopes = sum(self.saved_bytes.values()), 0
        if not isinstance(linearization, AutogradLinearization):
            slopes = sum(directions(distribution)) * self.layer_bytes
        return max(_GRAPHS_PER_FORWARD * saved, saved + slopes) / self.n_states


def read_actor(
    policy: ActorCriticPolicy,
    batch: ActorBatch,
    kl_reduction: str = "sum",
    max_states_per_chunk: int | None = None,
    processes: Processes = ALONE,
) -> Actor:
    """
    Run the policy once to find which parts belong to the actor.

    :param policy: in evaluation mode, which layers that merge their weights in it are taken out of
    :param batch: the states of the update; a few of them are evaluated, and all if parts of the
        policy run for none of these
    :param kl_reduction: ``sum`` for the KL divergence of the joint action, ``mean`` for its average
        over the action dimensions
    :param max_states_per_chunk: states whose graphs are in memory at a time; ``None`` for as many
        as take about half a GB, on a GPU up to a fifth of its memory
    :param processes: that train the policy together, each on states of its own
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
    if any(map(has_modes_of_its_own, policy.modules())):
        chunks = batch.chunks(max_states_per_chunk or _TRIED_STATES)
        with th.enable_grad(), twice_differentiable(policy):
            unmerge(policy, partial(_outputs_and_values, policy), few, chunks, processes)
    distribution, calls, probe = _evaluate(policy, few)
    parameters = _parameters_of(
        policy, batch, few, distribution, probe, max_states_per_chunk, processes
    )
    linearization: Linearization | None = layerwise(policy, distribution, parameters, calls)
    if linearization is None:
        linearization = AutogradLinearization(distribution, parameters)
        if not _has_closed_form(policy):
            linearization = differentiable(linearization)
    sizes = _chunk_sizes(probe, linearization, max_states_per_chunk)
    modules = frozenset(probe.modules | _modules_with(policy, parameters))
    kl_scale = 1.0 if kl_reduction == "sum" else 1.0 / _action_dimensions(distribution)
    is_rowwise = isinstance(linearization, RowwiseLinearization)
    return Actor(policy, parameters, modules, kl_scale, *sizes, is_rowwise)


def _outputs_and_values(policy: ActorCriticPolicy, batch: ActorBatch) -> Outputs:
    """Evaluate all that a policy computes."""
    return (*read_distribution(policy, batch).outputs, policy.predict_values(*batch.inputs))


def _evaluate(
    policy: ActorCriticPolicy, few: ActorBatch
) -> tuple[ActionDistribution, list[Call], _Probe]:
    """Evaluate a few states, and measure what their graph takes where torch has a way to."""
    try:
        return _recorded(policy, few, _measuring)
    except RuntimeError:
        pass  # of torch.func or forward mode; any other error is raised again below
    distribution, calls, probe = _recorded(policy, few, lambda *_: nullcontext())
    probe.saved_bytes[0] = _UNMEASURED_BYTES * len(few)
    return distribution, calls, probe


def _recorded(
    policy: ActorCriticPolicy, few: ActorBatch, measuring: Callable[..., Any]
) -> tuple[ActionDistribution, list[Call], _Probe]:
    """Evaluate a few states, and record the modules and layers that run."""
    probe = _Probe(len(few))
    # In this order: layers that have a hook already are not recorded.
    with (
        th.enable_grad(),
        recording_layers(policy) as calls,
        _recording(probe, policy),
        measuring(probe, policy),
    ):
        return read_distribution(policy, few), calls, probe


def _chunk_sizes(
    probe: _Probe, linearization: Linearization, max_states_per_chunk: int | None
) -> tuple[int, int]:
    """Choose how many states are in a chunk, and in memory at a time."""
    device = linearization.distribution.outputs[0].device
    bytes_per_state = probe.bytes_per_state(linearization)
    budget = _memory_budget(device)
    in_memory = max_states_per_chunk or _states_in(budget, bytes_per_state)
    if isinstance(linearization, RowwiseLinearization):
        return min(in_memory, _FEW_STATES), in_memory
    if probe.is_of_images:
        of_chunk = _CHUNK_BUDGET if device.type == "cpu" else budget // _CHUNKS_ON_GPU
        return min(in_memory, _states_in(of_chunk, bytes_per_state)), in_memory
    return in_memory, in_memory


def _has_closed_form(policy: ActorCriticPolicy) -> bool:
    """Return whether the actor is a plain network, with or without LSTM, under an SB3 head."""
    plain = read_plain(policy)
    is_plain = plain is not None and plain.actor is not None and plain.head is not None
    return is_plain or read_plain_recurrent(policy) is not None


def _parameters_of(
    policy: ActorCriticPolicy,
    batch: ActorBatch,
    few: ActorBatch,
    distribution: ActionDistribution,
    probe: _Probe,
    max_states_per_chunk: int | None,
    processes: Processes,
) -> tuple[nn.Parameter, ...]:
    """
    Return θ: the parameters for which the outputs at any state have a gradient.

    Parts that did not run for the few states are added to the probe's modules.
    """
    candidates = [parameter for parameter in policy.parameters() if parameter.requires_grad]
    reached = _reached(distribution.outputs, candidates)
    if not processes.all(_has_closed_form(policy)):  # in one process something may watch a module
        reached = _in_any(processes, reached)
        with th.enable_grad(), twice_differentiable(policy):
            critics = _reached((policy.predict_values(*few.inputs),), candidates)
        if len(reached | _in_any(processes, critics)) < len(candidates):
            saved = sum(probe.saved_bytes.values()) / probe.n_states
            budget = _memory_budget(distribution.outputs[0].device)
            chunks = batch.chunks(max_states_per_chunk or _states_in(budget, saved))
            reached = _in_any(processes, _reached_by_all(policy, chunks, candidates, probe))
        everything = list(policy.modules())
        ran = {position for position, m in enumerate(everything) if m in probe.modules}
        probe.modules = {everything[position] for position in _in_any(processes, ran)}
    if not reached:
        raise ValueError(
            "The policy has nothing to train: no parameter with requires_grad=True has an effect "
            "on its action distribution in evaluation mode. Set requires_grad of some that have."
        )
    parameters = tuple(candidates[position] for position in sorted(reached))
    _check_real(policy, parameters)
    return parameters


def _check_real(policy: nn.Module, parameters: Sequence[nn.Parameter]) -> None:
    """Refuse complex weights: a step is a vector of real numbers."""
    of_complex = {id(parameter) for parameter in parameters if parameter.is_complex()}
    for name, parameter in policy.named_parameters():
        if id(parameter) in of_complex:
            raise ValueError(
                f"The policy's parameter {name} is complex ({parameter.dtype}), and the actor's "
                f"step is real. Make its real view the parameter: "
                f"nn.Parameter(torch.view_as_real(...)), and torch.view_as_complex in forward."
            )


def _reached_by_all(
    policy: ActorCriticPolicy,
    chunks: Sequence[ActorBatch],
    candidates: Sequence[nn.Parameter],
    probe: _Probe,
) -> set[int]:
    """Evaluate all states: some parts, such as the head of a rare task, run for few of them."""
    reached: set[int] = set()
    for chunk in chunks:
        found = _Probe(len(chunk))
        with th.enable_grad(), _recording(found, policy):
            reached |= _reached(read_distribution(policy, chunk).outputs, candidates)
        probe.modules |= found.modules
    return reached


def _reached(outputs: Outputs, candidates: Sequence[nn.Parameter]) -> set[int]:
    """List the positions of the parameters for which outputs have a gradient."""
    attached = [z.sum() for z in outputs if z.requires_grad]
    if not attached:
        return set()
    slopes = th.autograd.grad(attached, candidates, allow_unused=True, retain_graph=True)
    return {position for position, slope in enumerate(slopes) if slope is not None}


def _in_any(processes: Processes, positions: set[int]) -> set[int]:
    """Add what the other processes have found, on other states."""
    return set[int]().union(*processes.gather(positions))


def _memory_budget(device: th.device) -> int:
    """Return the memory that graphs may take on a device, in bytes."""
    if device.type != "cuda":
        return _MEMORY_BUDGET
    return int(_SHARE_OF_GPU * th.cuda.get_device_properties(device).total_memory)


def _states_in(budget: int, bytes_per_state: float) -> int:
    """Return how many states fit into the budget, at least one."""
    return max(1, int(budget / max(bytes_per_state, 1)))


def in_fast_layout(policy: ActorCriticPolicy, observations: Observations) -> Observations:
    """
    Lay images out with their channels last, in which convolutions are fastest.

    :param policy: any policy; a features extractor that is not SB3's may rely on the usual layout
    :param observations: n states
    :return: the same numbers
    """
    extractor = getattr(policy, "pi_features_extractor", None)  # a policy may have parts of its own
    if type(extractor) is not NatureCNN or isinstance(observations, dict):
        return observations
    return observations.contiguous(memory_format=th.channels_last)


def _modules_with(policy: ActorCriticPolicy, parameters: Sequence[nn.Parameter]) -> set[nn.Module]:
    """List the modules that own an actor parameter or are inside the actor's features extractor."""
    actors = set(map(id, parameters))
    owners = {m for m in policy.modules() if any(id(p) in actors for p in m.parameters(False))}
    extractor = getattr(policy, "pi_features_extractor", None)
    return owners if extractor is None else owners | set(extractor.modules())


def _action_dimensions(distribution: ActionDistribution) -> int:
    """Count the dimensions that contrib averages the KL divergence over."""
    z = tuple(output.detach() for output in distribution.outputs)
    return distribution.family.kl(z, z).shape[1]


@contextmanager
def _recording(probe: _Probe, policy: nn.Module) -> Iterator[None]:
    """Record the modules that are called."""

    def called(module: nn.Module, args: Any, output: Any) -> None:
        probe.modules.add(module)
        if isinstance(module, (nn.Linear, nn.Conv2d)) and isinstance(output, th.Tensor):
            probe.layer_bytes += output.numel() * output.element_size()

    # Modules of TorchScript take no hooks.
    watched = [m for m in policy.modules() if not isinstance(m, th.jit.ScriptModule)]
    handles = [module.register_forward_hook(called) for module in watched]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _measuring(probe: _Probe, policy: nn.Module) -> AbstractContextManager[Any]:
    """Measure what is saved for the backward pass."""
    own = {_memory_of(tensor)[0] for tensor in [*policy.parameters(), *policy.buffers()]}

    def note(tensor: th.Tensor) -> th.Tensor:
        address, size = _memory_of(tensor)
        if address not in own:
            probe.saved_bytes[address] = size
        return tensor.detach()  # the tensor itself, if it is an output, would keep its graph alive

    return th.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor)


def _memory_of(tensor: th.Tensor) -> tuple[int, int]:
    """Return where a tensor's numbers are in memory, and how many bytes they take."""
    if tensor.layout is th.sparse_coo:
        tensor = tensor._values()
    elif tensor.layout is not th.strided:  # compressed rows, columns or blocks
        tensor = tensor.values()
    storage = tensor.untyped_storage()
    return storage.data_ptr(), storage.nbytes()
