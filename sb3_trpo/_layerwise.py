"""
Derivatives of networks of linear and convolutional layers, layer by layer.

A layer's output is linear in the layer's weights. The network's output therefore changes by the
change of the layer's output times a slope, which does not depend on the change. These slopes are
computed once. Every further product then costs one forward pass and one weight gradient per layer,
half of what two backward passes through the network cost. For a convolution with fewer weights than
outputs, the usual first layer, the Jacobian itself is kept: it is smaller than the slopes, and a
product is a single matrix multiplication.

All of this pays on a CPU. A GPU does the multiplications faster than it reads the slopes, so there
autograd takes over, with the convolutions' own backward kernels.

====  ====================================================================================
h_l   input of layer l
o_l   output of layer l, W_l h_l + b_l, a convolution included
S_la  slope of the a-th output of the network with respect to o_l, for every state
J_la  slope of the a-th output of the network with respect to (W_l, b_l), for every state
====  ====================================================================================

Only the differences of the logits to the last one matter, so there is one output fewer.

The slopes of all states come from one backward pass, as if row i of every o_l moved the outputs of
state i alone. A network may mix its rows: sort them, or read a table of as many rows as there are
states. A backward pass with random weights detects that; then autograd computes the products.
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from typing import Any, NamedTuple, cast

import torch as th
from torch import nn
from torch.autograd.graph import GradientEdge, Node, get_gradient_edge
from torch.nn import functional as F
from torch.nn.grad import conv2d_weight

from sb3_trpo._distributions import ActionDistribution, Outputs
from sb3_trpo._linearization import (
    AutogradLinearization,
    Linearization,
    differentiable,
    views_by_id,
)
from sb3_trpo._plain import has_global_hooks, is_plain
from sb3_trpo._vectors import flatten

# Number of Fisher products in an update, to estimate its cost.
_PRODUCTS = 15

# Time that one entry of a slope takes in a product, in multiplications of a layer. Measured on one
# core: fully connected layers of 64 break even at one output, those of 256 at six.
SLOPE_COST = 20.0


class Call(NamedTuple):
    """
    One run of a layer.

    :param layer: linear or convolutional
    :param inputs: h_l
    :param version: of ``inputs``, to see whether something wrote into it later
    :param edge: o_l in the graph
    :param n_outputs: size of o_l for one state
    """

    layer: nn.Linear | nn.Conv2d
    inputs: th.Tensor
    version: int
    edge: GradientEdge
    n_outputs: int

    @property
    def multiplications(self) -> int:
        """Count the multiplications for one state."""
        return self.n_outputs * self.layer.weight[0].numel()


@contextmanager
def recording_layers(policy: nn.Module) -> Iterator[list[Call]]:
    """
    Record the linear and convolutional layers that run in a block.

    :param policy: the policy whose layers are recorded
    :return: context manager that gives the list they are added to
    """
    calls: list[Call] = []

    def note(layer: nn.Module, args: tuple[Any, ...], output: th.Tensor) -> None:
        # Mixed precision would have to be repeated in the products.
        is_uniform = output.dtype == layer.weight.dtype
        is_used = output.requires_grad and output.numel() > 0
        if th.is_grad_enabled() and is_used and len(args) == 1 and is_uniform:
            inputs = args[0].detach()
            edge, n_outputs = get_gradient_edge(output), output[0].numel()
            calls.append(Call(cast(nn.Linear, layer), inputs, args[0]._version, edge, n_outputs))

    kinds = () if has_global_hooks() else (nn.Linear, nn.Conv2d)
    layers = [m for m in policy.modules() if type(m) in kinds and is_plain(m)]
    handles = [layer.register_forward_hook(note) for layer in layers]
    try:
        yield calls
    finally:
        for handle in handles:
            handle.remove()


def layerwise(
    policy: nn.Module,
    distribution: ActionDistribution,
    parameters: Sequence[nn.Parameter],
    calls: Sequence[Call],
) -> "LayerwiseLinearization | None":
    """
    Linearise a policy layer by layer.

    :param policy: any policy
    :param distribution: evaluated with gradients
    :param parameters: θ
    :param calls: the policy's layers that ran
    :return: the linearization; ``None`` where autograd is cheaper, as always on a GPU, or if a
        parameter is neither the policy's log std nor the weight or bias of a layer that ran once
    """
    if not parameters[0].is_cpu:
        return None
    nodes, uses = _walk(distribution)
    # Leave out layers that z does not depend on.
    calls = [call for call in calls if call.edge.node in nodes]
    layered = {id(p) for call in calls for p in (call.layer.weight, call.layer.bias)}
    rest = [parameter for parameter in parameters if id(parameter) not in layered]
    is_known = all(parameter is getattr(policy, "log_std", None) for parameter in rest)
    enter_once = all(uses[id(parameter)] == 1 for parameter in parameters)
    if is_known and enter_once and _are_simple(calls, distribution):
        linearization = LayerwiseLinearization(distribution, parameters, calls, rest)
        return linearization if _is_cheaper(calls, sum(directions(distribution))) else None
    return None


def _is_cheaper(calls: Sequence[Call], n_directions: int) -> bool:
    """
    Compare the multiplications of an update with those of autograd.

    Layer by layer, every direction takes a backward pass once. A product then runs each layer twice
    and reads all slopes twice; by autograd it runs each layer four times.
    """
    runs = sum(call.multiplications for call in calls)
    slopes = n_directions * sum(call.n_outputs for call in calls)
    setup = n_directions * runs
    product = 2 * runs + 2 * SLOPE_COST * slopes
    return setup + _PRODUCTS * product < _PRODUCTS * 4 * runs


def _walk(distribution: ActionDistribution) -> tuple[set[Node], Counter[int]]:
    """List the nodes that z depends on, and count how often each leaf, by identity, enters."""
    uses: Counter[int] = Counter()
    waiting = [cast(Node, z.grad_fn) for z in distribution.outputs if z.requires_grad]
    nodes = set(waiting)
    while waiting:
        for node, _ in waiting.pop().next_functions:
            if node is not None and hasattr(node, "variable"):
                uses[id(node.variable)] += 1
            elif node is not None and node not in nodes:
                nodes.add(node)
                waiting.append(node)
    return nodes, uses


def _are_simple(calls: Sequence[Call], distribution: ActionDistribution) -> bool:
    """Return whether each layer ran once, on one row or image per state."""
    outputs = distribution.outputs
    n_states = len(outputs[0])
    return (
        all(z.dim() == 2 for z in outputs)
        and min(directions(distribution)) > 0
        and len({call.layer for call in calls}) == len(calls) > 0
        and all(_is_simple(call, n_states) for call in calls)
    )


def directions(distribution: ActionDistribution) -> list[int]:
    """
    Count the directions in which each output can change the distribution.

    :param distribution: at n states
    :return: number of columns, one fewer of logits
    """
    is_relative = distribution.family.is_shift_invariant
    return [z.shape[1] - is_relative for z in distribution.outputs]


def _is_simple(call: Call, n_states: int) -> bool:
    """Return whether a layer saw one row or image per state, and nothing wrote into it since."""
    layer, h = call.layer, call.inputs
    if isinstance(layer, nn.Conv2d) and (
        layer.padding_mode != "zeros" or isinstance(layer.padding, str)
    ):
        return False
    dimensions = 4 if isinstance(layer, nn.Conv2d) else 2
    return h.dim() == dimensions and len(h) == n_states and h._version == call.version


class LayerwiseLinearization(Linearization):
    r"""
    Derivatives of a policy whose parameters are weights of layers.

    .. math:: (J v)_a = \sum_l \langle S_{la}, dW_l h_l + db_l \rangle, \quad J^T u = \Big(
        \big(\textstyle\sum_a u_a S_{la}\big) h_l^T \Big)_l

    :param distribution: evaluated with gradients
    :param parameters: θ
    :param calls: the layers that ran
    :param rest: the parameters outside of the layers, such as a Gaussian's log std, which autograd
        differentiates
    """

    def __init__(
        self,
        distribution: ActionDistribution,
        parameters: Sequence[nn.Parameter],
        calls: Sequence[Call],
        rest: Sequence[nn.Parameter],
    ) -> None:
        super().__init__(distribution)
        self._parameters = parameters
        self._rest = rest
        self._all_by_autograd = AutogradLinearization(distribution, parameters)
        self._by_autograd = AutogradLinearization(distribution, rest)
        self._calls = calls
        self._widths = directions(distribution)

    def gradient(self, value: th.Tensor) -> th.Tensor:
        """Differentiate with respect to θ."""
        return self._all_by_autograd.gradient(value)

    def jacobian_product(self, vector: th.Tensor) -> Outputs:
        """Add up what the layers' changes do to z."""
        if not self._layers:
            return self._with_mixed_rows.jacobian_product(vector)
        changes = views_by_id(vector, self._parameters)
        if self._rest:
            rest = flatten([changes[id(parameter)] for parameter in self._rest])
            tangents = self._by_autograd.jacobian_product(rest)
        else:
            tangents = tuple(th.zeros_like(z) for z in self.distribution.outputs)
        with th.no_grad():
            moved = self._cut(tangents)
            for layer in self._layers:
                moved = layer.push(changes, moved)
            return tuple(
                th.cat([some, tangent[:, some.shape[1] :]], dim=1)
                for some, tangent in zip(moved, tangents, strict=True)
            )

    def transposed_product(self, tangent: Outputs) -> th.Tensor:
        """Pull a change of z back to every layer's weights."""
        if not self._layers:
            return self._with_mixed_rows.transposed_product(tangent)
        result = tangent[0].new_empty(sum(parameter.numel() for parameter in self._parameters))
        gradients = views_by_id(result, self._parameters)
        if self._rest:
            rest = self._by_autograd.transposed_product(tangent)
            for key, part in views_by_id(rest, self._rest).items():
                gradients[key].copy_(part)
        with th.no_grad():
            for layer in self._layers:
                layer.pull(self._cut(tangent), gradients)
        return result

    def _cut(self, tangent: Outputs) -> Outputs:
        """Drop each output's reference column."""
        return tuple(u[:, :width] for u, width in zip(tangent, self._widths, strict=True))

    @cached_property
    def _with_mixed_rows(self) -> Linearization:
        """Leave all to autograd."""
        return differentiable(self._all_by_autograd)

    @cached_property
    def _layers(self) -> list["_Layer | _SmallLayer"]:
        """
        Compute the slopes S of every layer, one backward pass for each output.

        :return: the layers; none if a row of some layer moves the outputs of another state
        """
        layers = [_Layer(call, self._widths) for call in self._calls]
        edges = [call.edge for call in self._calls]
        for i, (z, width) in enumerate(zip(self.distribution.outputs, self._widths, strict=True)):
            for a in range(width if z.requires_grad else 0):
                direction = th.zeros_like(z)
                direction[:, a] = 1
                direction[:, width:] = -1
                slopes = th.autograd.grad(z, edges, direction, retain_graph=True, allow_unused=True)
                if all(slope is None for slope in slopes):
                    break  # these outputs depend on no layer, as a log std usually
                for layer, slope in zip(layers, slopes, strict=True):
                    layer.keep(i, a, slope)
        if not self._are_by_state(layers):
            return []
        return [_SmallLayer(layer) if layer.is_small else layer for layer in layers]

    def _are_by_state(self, layers: Sequence["_Layer"]) -> bool:
        """Compare the slopes of a random sum of the outputs with the same sum of the slopes."""
        outputs, generator = self.distribution.outputs, th.Generator().manual_seed(0)
        weights = [
            th.randn(z.shape, generator=generator, dtype=th.float64).to(z.dtype) for z in outputs
        ]
        for weight, width in zip(weights, self._widths, strict=True):
            weight[:, width:] = -weight[:, :width].sum(dim=1, keepdim=True)
        attached = [i for i, z in enumerate(outputs) if z.requires_grad]
        slopes = th.autograd.grad(
            [outputs[i] for i in attached],
            [call.edge for call in self._calls],
            [weights[i] for i in attached],
            retain_graph=True,
            allow_unused=True,
        )
        cut = self._cut(tuple(weights))
        return all(
            layer.has_weighted_slope(cut, slope)
            for layer, slope in zip(layers, slopes, strict=True)
            if slope is not None
        )


class _Layer:
    """
    A layer at n states: its input, and the slopes of the network's outputs.

    Images are kept with their channels last, the layout in which convolutions are fastest.

    :param call: one run of the layer
    :param widths: number of slopes for each tensor of z
    """

    def __init__(self, call: Call, widths: Sequence[int]) -> None:
        self.layer = call.layer
        is_image = call.inputs.dim() == 4
        layout = th.channels_last if is_image else th.contiguous_format
        self.input = call.inputs.contiguous(memory_format=layout)
        self.slopes: list[th.Tensor | None] = [None for _ in widths]
        self._widths = widths
        self._shape = th.Size()

    @property
    def is_small(self) -> bool:
        """Return whether its Jacobian takes less memory than its slopes."""
        layer = self.layer
        is_plain_convolution = isinstance(layer, nn.Conv2d) and layer.groups == 1
        return is_plain_convolution and layer.weight.numel() < self._shape[1:].numel()

    def keep(self, i: int, a: int, slope: th.Tensor | None) -> None:
        """Store the slopes of output a of z_i with respect to the layer's output."""
        if slope is None:
            return
        self._shape = slope.shape
        rows = self._to_rows(slope)
        slopes = self.slopes[i]
        if slopes is None:
            slopes = self.slopes[i] = rows.new_zeros(len(rows), self._widths[i], rows.shape[1])
        slopes[:, a] = rows

    def has_weighted_slope(self, weights: Outputs, slope: th.Tensor) -> bool:
        """
        Return whether the slope of a sum of the outputs is the sum of the slopes.

        :param weights: of the outputs in the sum, for every state
        :param slope: of the sum, with respect to the layer's output
        """
        rows = self._to_rows(slope)
        error = rows - self._weighted(weights)
        # Rounding stays far below, rows of another state are far above.
        tolerance = th.finfo(rows.dtype).eps ** 0.5
        return bool(error.norm() <= tolerance * rows.norm())

    def _weighted(self, weights: Outputs) -> th.Tensor:
        """Add up the slopes of the outputs with weights, to one row per state."""
        rows = [
            th.bmm(u.unsqueeze(1), slopes).squeeze(1)
            for u, slopes in zip(weights, self.slopes, strict=True)
            if slopes is not None
        ]
        return sum(rows[1:], rows[0])

    def push(self, changes: Mapping[int, th.Tensor], tangents: Outputs) -> Outputs:
        """Add what a change of the layer's parameters does to z."""
        weight, bias = changes.get(id(self.layer.weight)), changes.get(id(self.layer.bias))
        if weight is None and bias is None:
            return tangents
        moved = self._run(th.zeros_like(self.layer.weight) if weight is None else weight, bias)
        # MKL takes five times as long for the product with a column.
        row = self._to_rows(moved).unsqueeze(1)
        return tuple(
            tangent if slopes is None else tangent + th.bmm(row, slopes.transpose(1, 2)).squeeze(1)
            for tangent, slopes in zip(tangents, self.slopes, strict=True)
        )

    def pull(self, tangent: Outputs, gradients: Mapping[int, th.Tensor]) -> None:
        """Write the layer's gradients into place."""
        slope = self._from_rows(self._weighted(tangent))
        weight, bias = gradients.get(id(self.layer.weight)), gradients.get(id(self.layer.bias))
        if weight is not None:
            self._weight_gradient(slope, weight)
        if bias is not None:
            th.sum(slope, [d for d in range(slope.dim()) if d != 1], out=bias)

    def _run(self, weight: th.Tensor, bias: th.Tensor | None) -> th.Tensor:
        """Run the layer with other weights."""
        layer = self.layer
        if isinstance(layer, nn.Linear):
            return F.linear(self.input, weight, bias)
        weight = weight.contiguous(memory_format=th.channels_last)
        return F.conv2d(self.input, weight, bias, **_geometry(layer))

    def _weight_gradient(self, slope: th.Tensor, gradient: th.Tensor) -> None:
        """Compute the weight's gradient from that of the layer's output."""
        layer = self.layer
        if isinstance(layer, nn.Linear):
            th.mm(slope.T, self.input, out=gradient)
        else:
            weight = conv2d_weight(  # type: ignore[no-untyped-call] # torch has no annotation
                self.input, layer.weight.shape, slope, **_geometry(layer)
            )
            gradient.copy_(weight)

    def _to_rows(self, output: th.Tensor) -> th.Tensor:
        """Reshape the layer's output to one row per state."""
        return (output.movedim(1, -1) if output.dim() == 4 else output).flatten(1)

    def _from_rows(self, rows: th.Tensor) -> th.Tensor:
        """Undo :meth:`_to_rows`."""
        if len(self._shape) == 2:
            return rows
        n, channels, height, width = self._shape
        return rows.view(n, height, width, channels).movedim(-1, 1)


class _SmallLayer:
    """
    A convolution with few weights at n states: the Jacobian of z with respect to them.

    :param layer: with the slopes of all outputs
    """

    def __init__(self, layer: _Layer) -> None:
        convolution = cast(nn.Conv2d, layer.layer)
        self._weight, self._bias = convolution.weight, convolution.bias
        sizes = convolution.kernel_size, convolution.dilation
        padding = cast(tuple[int, ...], convolution.padding)  # in words is refused above
        patches = F.unfold(layer.input, *sizes, padding, convolution.stride)
        self._jacobians = [
            None if slopes is None else self._jacobian(slopes, patches) for slopes in layer.slopes
        ]

    def _jacobian(self, slopes: th.Tensor, patches: th.Tensor) -> th.Tensor:
        """Compute J, shape ``(n, a, weights and biases)``, from S in rows and the n inputs."""
        n, a, _ = slopes.shape
        slopes = slopes.view(n, a, patches.shape[2], len(self._weight))
        weight = th.einsum("nalc,nkl->nack", slopes, patches).flatten(2)
        return th.cat([weight, slopes.sum(dim=2)], dim=2)

    def push(self, changes: Mapping[int, th.Tensor], tangents: Outputs) -> Outputs:
        """Add what a change of the layer's parameters does to z."""
        weight, bias = changes.get(id(self._weight)), changes.get(id(self._bias))
        change = th.cat(
            [
                (th.zeros_like(self._weight) if weight is None else weight).flatten(),
                self._weight.new_zeros(len(self._weight)) if bias is None else bias,
            ]
        )
        return tuple(
            tangent if jacobian is None else tangent + jacobian @ change
            for tangent, jacobian in zip(tangents, self._jacobians, strict=True)
        )

    def pull(self, tangent: Outputs, gradients: Mapping[int, th.Tensor]) -> None:
        """Write the layer's gradients into place."""
        parts = [
            jacobian.flatten(0, 1).T @ u.flatten()
            for u, jacobian in zip(tangent, self._jacobians, strict=True)
            if jacobian is not None
        ]
        sizes = [self._weight.numel(), len(self._weight)]
        split = th.split(sum(parts[1:], parts[0]), sizes)
        for parameter, part in zip((self._weight, self._bias), split, strict=True):
            if id(parameter) in gradients:
                gradients[id(parameter)].view(-1).copy_(part)


def _geometry(layer: nn.Conv2d) -> dict[str, Any]:
    """Return the options with which a convolution was called."""
    names = ("stride", "padding", "dilation", "groups")
    return {name: getattr(layer, name) for name in names}
