"""
Derivatives of a policy with an LSTM in closed form.

The gates do not depend on the direction of a derivative. After one forward pass a tangent is a
linear recurrence over the steps, and a cotangent the same recurrence backwards. Each has one small
matrix product per step; the rest are large products over all steps. Padding is left out: the states
are stored step by step, those of the longest sequences first.

=============  ==========================================================================
x_t, h_t, c_t  input, output and cell state at step t; h_0, c_0 come from the rollout
a_t            W x_t + U h_{t-1} + b, for the gates i, f, g, o
c_t            f c_{t-1} + i g, with i, f = σ(a) and g = tanh(a)
h_t            o tanh(c_t), with o = σ(a)
K              ∂c_t/∂a_t for i, f, g and ∂h_t/∂a_t for o
p              ∂h_t/∂c_t
=============  ==========================================================================
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch as th
from stable_baselines3.common.policies import ActorCriticPolicy
from torch import nn

from sb3_trpo._linearization import ClosedForm, by_layer
from sb3_trpo._mlp import Tape, flat_features
from sb3_trpo._plain import PlainRecurrent, read_plain_recurrent
from sb3_trpo._sequences import Observations, Sequences, select

# W, U and the biases that torch adds to each other; None for one that is not involved.
LstmWeights = Sequence[th.Tensor | None]
_N_WEIGHTS = 4


@dataclass(frozen=True, eq=False)
class Packing:
    """
    The N states of n sequences, step by step and without padding.

    :param order: the sequences, longest first, shape ``(n,)``
    :param sizes: number of sequences that have a state at each step
    :param places: place of every state among the n · L padded ones, shape ``(N,)``
    :param states: the state at every place, for padding the sequence's last, shape ``(n · L,)``
    :param previous: for every state the row of the one before it, in a table of the n states before
        the sequences followed by all N, shape ``(N,)``
    """

    order: th.Tensor
    sizes: list[int]
    places: th.Tensor
    states: th.Tensor
    previous: th.Tensor


def pack(sequences: Sequences) -> Packing:
    """
    Arrange the states of padded sequences step by step.

    :param sequences: n sequences padded to L states
    :return: the arrangement, on the sequences' device
    """
    n, longest = sequences.rows.shape
    order = th.argsort(sequences.lengths, descending=True, stable=True)
    lengths = sequences.lengths[order]
    steps = th.arange(longest)
    sizes = (lengths > steps[:, None]).sum(dim=1)
    first = sizes.cumsum(dim=0) - sizes
    step, rank = (lengths > steps[:, None]).nonzero(as_tuple=True)
    # A sequence's last step stands for its padding.
    last = th.minimum(steps, lengths[:, None] - 1)
    states = th.empty(n, longest, dtype=th.int64)
    states[order] = first[last] + th.arange(n)[:, None]
    before = th.cat([th.zeros(1, dtype=th.int64), n + first[:-1]])
    tensors = order, order[rank] * longest + step, states.flatten(), before[step] + rank
    order, places, states, previous = (tensor.to(sequences.rows.device) for tensor in tensors)
    return Packing(order, sizes.tolist(), places, states, previous)


class LstmTape:
    """
    One layer of an LSTM at N packed states: its activations, and products with its Jacobian.

    The tensors that are returned are overwritten by the next call of the same method.

    :param weights: W, U and both biases, detached
    :param packing: the states
    :param memory: h_0 and c_0 of the sequences in the packing's order, shape ``(n, hidden)`` each
    :param inputs: x, shape ``(N, inputs)``
    """

    def __init__(
        self,
        weights: Sequence[th.Tensor],
        packing: Packing,
        memory: tuple[th.Tensor, th.Tensor],
        inputs: th.Tensor,
    ) -> None:
        self._w, self._u, *biases = weights
        self._packing, self._input = packing, inputs
        gates = th.addmm(biases[0] + biases[1], inputs, self._w.T)
        self.outputs, cells = self._run(gates, memory)
        self._h_before, c_before = (
            th.cat([start, states]).index_select(0, packing.previous)
            for start, states in zip(memory, (self.outputs, cells), strict=True)
        )
        i, self._f, g, o = gates.chunk(4, dim=1)
        tanh_c = cells.tanh_()
        self._p = o * (1 - tanh_c.square())
        slopes = [
            i * (1 - i) * g,
            self._f * (1 - self._f) * c_before,
            (1 - g.square()) * i,
            o * (1 - o) * tanh_c,
        ]
        self._k = th.cat(slopes, dim=1)
        self._d_gates, self._d_outputs = th.empty_like(gates), th.empty_like(self.outputs)
        self._d_inputs = th.empty_like(inputs)

    def _run(
        self, gates: th.Tensor, memory: tuple[th.Tensor, th.Tensor]
    ) -> tuple[th.Tensor, th.Tensor]:
        """Run all steps; turn W x + b into the gates in place, and return all h and c."""
        h, c = memory
        outputs, cells = (gates.new_empty(len(gates), h.shape[1]) for _ in range(2))
        steps = map(self._steps, (gates, outputs, cells))
        for a, h_next, c_next in zip(*steps, strict=True):
            a.addmm_(h[: len(a)], self._u.T)
            i, f, g, o = a.chunk(4, dim=1)
            a[:, : 2 * h.shape[1]].sigmoid_()
            g.tanh_()
            o.sigmoid_()
            c = th.mul(f, c[: len(a)], out=c_next).addcmul_(i, g)
            h = th.mul(o, c.tanh(), out=h_next)
        return outputs, cells

    def tangent(self, changes: LstmWeights, inputs: th.Tensor | None) -> th.Tensor:
        """
        Compute Jv: da = K (dW x + W dx + dU h_{t-1} + U dh_{t-1} + db), dc = f dc_{t-1} + Σ da.

        :param changes: v, as dW, dU and the changes of both biases
        :param inputs: dx; ``None`` for 0
        :return: dh = da_o + p dc, shape ``(N, hidden)``
        """
        d_w, d_u, *d_biases = changes
        gates = self._d_gates.zero_()
        for d_bias in d_biases:
            if d_bias is not None:
                gates.add_(d_bias)
        sources = (self._input, d_w), (self._h_before, d_u), (inputs, self._w)
        for h, weight in sources:
            if h is not None and weight is not None:
                gates.addmm_(h, weight.T)
        return self._recur(gates)

    def _recur(self, gates: th.Tensor) -> th.Tensor:
        """Carry the tangents of hidden and cell state from step to step."""
        size = self.outputs.shape[1]
        parts = gates, self._k, self._f, self._p, self._d_outputs
        d_h = d_c = self.outputs.new_zeros(self._packing.sizes[0], size)
        for a, k, f, p, d_out in zip(*map(self._steps, parts), strict=True):
            n = len(a)
            a.addmm_(d_h[:n], self._u.T).mul_(k)
            d_c = th.addcmul(a.view(n, 4, size)[:, :3].sum(dim=1), f, d_c[:n])
            d_h = th.addcmul(a[:, 3 * size :], p, d_c, out=d_out)
        return self._d_outputs

    def cotangent(
        self, cotangent: th.Tensor, gradients: LstmWeights, needs_input: bool
    ) -> th.Tensor | None:
        """
        Compute Jᵀu, the recurrence backwards: dh = u + Uᵀ da_{t+1}, dc = f_{t+1} dc_{t+1} + p dh.

        :param cotangent: u, shape ``(N, hidden)``
        :param gradients: where to write those of W, U and both biases
        :param needs_input: whether to compute the cotangent of x
        :return: it, shape ``(N, inputs)``; ``None`` if it is not needed
        """
        gates = self._recur_backwards(self._d_outputs.copy_(cotangent))
        for gradient, h in zip(gradients[:2], (self._input, self._h_before), strict=True):
            if gradient is not None:
                th.mm(gates.T, h, out=gradient)
        for gradient in gradients[2:]:
            if gradient is not None:
                th.sum(gates, 0, out=gradient)
        return th.mm(gates, self._w, out=self._d_inputs) if needs_input else None

    def _recur_backwards(self, d_outputs: th.Tensor) -> th.Tensor:
        """Carry the cotangents of hidden and cell state back; return that of a."""
        size = self.outputs.shape[1]
        parts = self._d_gates, self._k, self._f, self._p, d_outputs
        d_cells = self.outputs.new_zeros(self._packing.sizes[0], size)
        after = self._d_gates[:0]
        for a, k, f, p, d_h in reversed(list(zip(*map(self._steps, parts), strict=True))):
            n = len(a)
            d_h[: len(after)].addmm_(after, self._u)
            d_c = d_cells[:n].addcmul_(d_h, p)
            th.mul(k.view(n, 4, size)[:, :3], d_c[:, None], out=a.view(n, 4, size)[:, :3])
            th.mul(k[:, 3 * size :], d_h, out=a[:, 3 * size :])
            d_c.mul_(f)
            after = a
        return self._d_gates

    def _steps(self, states: th.Tensor) -> tuple[th.Tensor, ...]:
        """Cut a tensor into one part per step."""
        return th.split(states, self._packing.sizes)


class RecurrentLinearization(ClosedForm):
    """
    Derivatives of an LSTM followed by a plain multi-layer perceptron.

    At padding, which has no weight, z and its tangent are those of the sequence's last state.

    :param policy: its ``action_dist`` makes the distribution
    :param plain: its actor
    :param parameters: θ
    :param sequences: n sequences padded to L states
    :param features: the LSTM's input at the n · L places
    """

    def __init__(
        self,
        policy: ActorCriticPolicy,
        plain: PlainRecurrent,
        parameters: Sequence[nn.Parameter],
        sequences: Sequences,
        features: th.Tensor,
    ) -> None:
        self._packing = packing = pack(sequences)
        self._mlp = plain.mlp
        self._weights = list(plain.lstm.parameters())
        h = features.index_select(0, packing.places)
        first = sequences.rows[:, 0].index_select(0, packing.order)
        self._lstm: list[LstmTape] = []
        for layer in range(plain.lstm.num_layers):
            hidden, cell = (state[first, layer].to(h.dtype) for state in sequences.memory)
            weights = [weight.detach() for weight in self._of_layer(layer)]
            self._lstm.append(LstmTape(weights, packing, (hidden, cell), h))
            h = self._lstm[-1].outputs
        self._tape = Tape(plain.mlp, plain.mlp.weights, len(h))
        self._d_latent = th.empty_like(h)
        outputs = self._tape.forward(h).index_select(0, packing.states)
        super().__init__(policy, plain.head, parameters, outputs)

    def _of_layer(self, layer: int) -> list[nn.Parameter]:
        """List W, U and both biases of a layer."""
        return self._weights[_N_WEIGHTS * layer : _N_WEIGHTS * (layer + 1)]

    def _push(self, changes: dict[int, th.Tensor]) -> th.Tensor:
        """Push a change of θ through LSTM and network."""
        h: th.Tensor | None = None
        for layer, tape in enumerate(self._lstm):
            h = tape.tangent([changes.get(id(weight)) for weight in self._of_layer(layer)], h)
        raw = self._tape.tangent(by_layer(self._mlp, changes), h)
        return raw.index_select(0, self._packing.states)

    def _pull(self, raw: th.Tensor, gradients: dict[int, th.Tensor]) -> None:
        """Pull a change of the outputs back through network and LSTM."""
        packed = raw.new_zeros(len(self._d_latent), raw.shape[1])
        packed.index_add_(0, self._packing.states, raw)
        self._tape.cotangent(packed, by_layer(self._mlp, gradients), self._d_latent)
        u: th.Tensor | None = self._d_latent
        for layer, tape in reversed(list(enumerate(self._lstm))):
            assert u is not None
            views = [gradients.get(id(weight)) for weight in self._of_layer(layer)]
            u = tape.cotangent(u, views, needs_input=layer > 0)


@th.no_grad()
def linearize_recurrent(
    policy: ActorCriticPolicy,
    parameters: Sequence[nn.Parameter],
    observations: Observations,
    sequences: Sequences,
) -> RecurrentLinearization | None:
    """
    Linearise sb3-contrib's ``MlpLstmPolicy`` in closed form.

    :param policy: any policy
    :param parameters: θ
    :param observations: of the rollout
    :param sequences: n sequences padded to L states
    :return: the linearization; ``None`` if anything in the policy is not as sb3-contrib builds it
    """
    plain = read_plain_recurrent(policy)
    if plain is None:
        return None
    features = flat_features(policy, select(observations, sequences.rows.flatten()))
    return RecurrentLinearization(policy, plain, parameters, sequences, features)
