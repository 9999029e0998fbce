"""Features extractors that a test puts together, and a table of them."""

from collections.abc import Callable
from typing import Any

import torch as th
from gymnasium import spaces
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from torch import nn
from torch.nn import functional as F

from tests.cases import Case
from tests.environments import DISCRETE_ACTIONS, TINY_IMAGE, VECTOR

# A dictionary of layers, and the features of n observations.
Make = Callable[[], dict[str, nn.Module]]
Run = Callable[[Any, th.Tensor], th.Tensor]


class Extractor(BaseFeaturesExtractor):
    """
    A network of layers that a test puts together.

    :param make: returns a dictionary of layers
    :param run: computes the features from the layers and the observations
    """

    def __init__(self, observation_space: spaces.Box, make: Make, run: Run) -> None:
        super().__init__(observation_space, features_dim=1)
        self.layers = nn.ModuleDict(make())
        self.run = run
        with th.no_grad():  # to count the features
            two = th.ones(2, *observation_space.shape)
            self._features_dim = self.eval()(two).shape[1]
        self.train()

    def forward(self, observations: th.Tensor) -> th.Tensor:
        return self.run(self.layers, observations)


def case_of(
    make: Make,
    run: Run,
    observations: spaces.Box = VECTOR,
    actions: spaces.Space[Any] = DISCRETE_ACTIONS,
) -> Case:
    """Make the row of the table of cases that has this features extractor."""
    policy = "CnnPolicy" if observations is TINY_IMAGE else "MlpPolicy"
    options = {
        "features_extractor_class": Extractor,
        "features_extractor_kwargs": {"make": make, "run": run},
        "net_arch": [5],
    }
    return Case(policy, observations, actions, options)


class Doubled(th.autograd.Function):
    """A function whose author did not think of second derivatives."""

    @staticmethod
    def forward(ctx: Any, x: th.Tensor) -> th.Tensor:
        return 2 * x

    @staticmethod
    @th.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: th.Tensor) -> th.Tensor:
        return 2 * gradient


class Detached(th.autograd.Function):
    """A function whose backward pass leaves autograd, so that its second derivative is wrong."""

    @staticmethod
    def forward(ctx: Any, x: th.Tensor) -> th.Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, gradient: th.Tensor) -> th.Tensor:
        return gradient.detach().clone()


class Graph(nn.Module):
    """
    A product with a constant sparse matrix, as graph networks have it.

    :param layout: of the matrix
    :param as_buffer: whether the matrix is a buffer
    """

    def __init__(self, layout: str, as_buffer: bool) -> None:
        super().__init__()
        dense = th.eye(6) + th.eye(6).roll(1, 0)
        matrix = getattr(dense, f"to_sparse_{layout}")() if layout != "coo" else dense.to_sparse()
        if as_buffer:
            self.register_buffer("matrix", matrix, persistent=False)
        else:
            self.matrix = matrix

    def forward(self, x: th.Tensor) -> th.Tensor:
        matrix: Any = self.matrix
        product: th.Tensor = matrix.to(x.dtype) @ x.T
        return product.T


class Unused(nn.Module):
    """A sparse buffer that nothing uses."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("matrix", th.eye(3).to_sparse(), persistent=False)

    def forward(self, x: th.Tensor) -> th.Tensor:
        return x


def _tokens(x: th.Tensor) -> th.Tensor:
    """Read six numbers as three tokens of four."""
    pairs = x.view(-1, 3, 2)
    return th.cat([pairs, pairs.sin()], dim=2)


def _encoder(causal: bool = False, padded: bool = False, **options: Any) -> tuple[Make, Run]:
    """Make a transformer of one layer."""

    def make() -> dict[str, nn.Module]:
        layer = nn.TransformerEncoderLayer(4, 2, 3, batch_first=True, **options)
        nested = not options.get("norm_first", False)
        return {"layer": nn.TransformerEncoder(layer, 1, enable_nested_tensor=nested)}

    def run(layer: Any, x: th.Tensor) -> th.Tensor:
        mask = nn.Transformer.generate_square_subsequent_mask(3, dtype=x.dtype) if causal else None
        padding = th.tensor([[False, False, True]] * len(x)) if padded else None
        tokens = _tokens(x)
        return layer(tokens, mask, src_key_padding_mask=padding)[:, :2].flatten(1)  # type: ignore[no-any-return]

    return make, run


def _attention(**options: Any) -> tuple[Make, Run]:
    """Make a layer of attention between three tokens."""

    def make() -> dict[str, nn.Module]:
        return {"layer": nn.MultiheadAttention(4, 2, batch_first=True)}

    def run(layer: Any, x: th.Tensor) -> th.Tensor:
        tokens = _tokens(x)
        return layer(tokens, tokens, tokens, **options)[0].flatten(1)  # type: ignore[no-any-return]

    return make, run


def _function(function: Callable[[th.Tensor], th.Tensor]) -> tuple[Make, Run]:
    """Make a layer without parameters."""
    return dict, lambda layer, x: function(x)


def _prelu_and(function: Callable[[th.Tensor], th.Tensor]) -> tuple[Make, Run]:
    """Make a function of an activation with a parameter, which is not differentiated by layers."""
    return (lambda: {"layer": nn.PReLU()}), (lambda layer, x: function(layer(x)))


def _module(make: Callable[[], nn.Module]) -> tuple[Make, Run]:
    """Make a layer that takes six numbers."""
    return (lambda: {"layer": make()}), (lambda layer, x: layer(x))


def _image(make: Callable[[], nn.Module]) -> tuple[Make, Run]:
    """Make a layer that takes images: two channels of 6 x 6."""

    def run(layer: Any, x: th.Tensor) -> th.Tensor:
        image = (x[:, :, None] * x[:, None, :]).unsqueeze(1)
        return layer(th.cat([image, image.flip(2).sin()], dim=1)).flatten(1)  # type: ignore[no-any-return]

    return (lambda: {"layer": make()}), run


def _sequence(make: Callable[[], nn.Module]) -> tuple[Make, Run]:
    """Make a recurrent layer that takes three steps of two numbers."""
    return (lambda: {"layer": make()}), (lambda layer, x: layer(x.view(-1, 3, 2))[0][:, -1])


def _sdpa(**options: Any) -> tuple[Make, Run]:
    """Make attention without parameters."""

    def attend(x: th.Tensor) -> th.Tensor:
        q = x.view(-1, 1, 3, 2)
        return F.scaled_dot_product_attention(q, q, q.sin(), **options).flatten(1)

    return _function(attend)


def _bag(mode: str, weighted: bool = False) -> tuple[Make, Run]:
    """Make a bag of embeddings of the signs of the observation."""

    def run(layer: Any, x: th.Tensor) -> th.Tensor:
        index = (x[:, :3].detach() > 0).long() + 2 * th.arange(3)
        weights = x[:, 3:].contiguous() if weighted else None
        return th.cat([layer(index, per_sample_weights=weights), x[:, 3:]], dim=1)

    return (lambda: {"layer": nn.EmbeddingBag(6, 3, mode=mode)}), run


def _embedding(layer: Any, x: th.Tensor) -> th.Tensor:
    """Add the embeddings of the signs of the observation."""
    return layer((x.detach() > 0).long()).sum(1) + x  # type: ignore[no-any-return]


def _segments(x: th.Tensor) -> th.Tensor:
    """Add up two groups of the numbers."""
    return th.segment_reduce(x.T.contiguous(), "sum", lengths=th.tensor([2, 4])).T


def _grid(x: th.Tensor) -> th.Tensor:
    """Look at a picture at places that depend on the observation."""
    picture, places = x.view(-1, 1, 2, 3), 0.5 * x[:, :4].view(-1, 1, 2, 2).tanh()
    return F.grid_sample(picture, places, align_corners=False).flatten(1)


def _activation(name: str, *arguments: Any) -> tuple[Make, Run]:
    """Make one of torch's activations."""
    return _module(lambda: getattr(nn, name)(*arguments))


_conv = nn.utils.parametrizations


class Experts(nn.Module):
    """Four experts, of which each state goes to one and the last sees none."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = nn.Linear(6, 3)
        self.experts = nn.ModuleList(nn.Linear(6, 3) for _ in range(4))

    def forward(self, x: th.Tensor) -> th.Tensor:
        shares = self.gate(x).softmax(1)
        result = x.new_zeros(len(x), 3)
        for i, expert in enumerate(self.experts):
            chosen = shares.argmax(1) == i
            result[chosen] = expert(x[chosen]) * shares.max(1, keepdim=True).values[chosen]
        return result


class Pair(nn.Linear):
    """A linear layer that returns two results."""

    def forward(self, x: th.Tensor) -> Any:
        return super().forward(x), None


class Own(nn.Module):
    """A network that differentiates its layers itself."""

    def __init__(self, differentiate: Callable[..., th.Tensor]) -> None:
        super().__init__()
        self.differentiate = differentiate
        self.net = nn.Sequential(nn.Linear(6, 5), nn.Softplus(), nn.Linear(5, 3))

    def forward(self, x: th.Tensor) -> th.Tensor:
        return self.differentiate(self.net, x)


def _own_gradient(net: nn.Module, x: th.Tensor) -> th.Tensor:
    gradient: th.Tensor = th.func.vmap(th.func.grad(lambda row: net(row).sum()))(x)
    return gradient


def _own_tangent(net: nn.Module, x: th.Tensor) -> th.Tensor:
    tangent: th.Tensor = th.func.jvp(net, (x,), (th.ones_like(x),))[1]
    return tangent


# What runs between a linear layer of six outputs and the policy's networks.
LAYERS: dict[str, tuple[Make, Run]] = {
    "TransformerEncoder": _encoder(),
    "TransformerEncoder, no dropout": _encoder(dropout=0.0),
    "TransformerEncoder, causal": _encoder(causal=True),
    "TransformerEncoder, padded": _encoder(padded=True),
    "TransformerEncoder, norm first": _encoder(norm_first=True, activation="gelu"),
    "MultiheadAttention": _attention(),
    "MultiheadAttention, fused": _attention(need_weights=False),
    "MultiheadAttention, masked": _attention(
        need_weights=False, attn_mask=th.ones(3, 3).triu(1).bool()
    ),
    "scaled_dot_product_attention": _sdpa(),
    "scaled_dot_product_attention, causal": _sdpa(is_causal=True),
    "EmbeddingBag, sum": _bag("sum"),
    "EmbeddingBag, mean": _bag("mean"),
    "EmbeddingBag, max": _bag("max"),
    "EmbeddingBag, weighted": _bag("sum", weighted=True),
    "Embedding": ((lambda: {"layer": nn.Embedding(2, 6)}), _embedding),
    "segment_reduce": _function(_segments),
    "segment_reduce, PReLU": _prelu_and(_segments),
    "grid_sample": _function(_grid),
    "once differentiable": _prelu_and(lambda x: Doubled.apply(x)),
    "backward outside autograd": _prelu_and(lambda x: Detached.apply(x)),
    "TorchScript": _module(lambda: th.jit.script(nn.Sequential(nn.Linear(6, 3), nn.Tanh()))),
    "sparse COO buffer": _module(lambda: Graph("coo", as_buffer=True)),
    "sparse COO attribute": _module(lambda: Graph("coo", as_buffer=False)),
    "sparse CSR buffer": _module(lambda: Graph("csr", as_buffer=True)),
    "sparse CSR attribute": _module(lambda: Graph("csr", as_buffer=False)),
    "unused sparse buffer": _module(Unused),
    "LSTM": _sequence(lambda: nn.LSTM(2, 3, batch_first=True)),
    "GRU": _sequence(lambda: nn.GRU(2, 3, batch_first=True)),
    "RNN": _sequence(lambda: nn.RNN(2, 3, batch_first=True)),
    "GRUCell": _module(lambda: nn.GRUCell(6, 3)),
    "Bilinear": (lambda: {"layer": nn.Bilinear(6, 6, 2)}, lambda layer, x: layer(x, x)),
    "LayerNorm": _module(lambda: nn.LayerNorm(6)),
    "RMSNorm": _module(lambda: nn.RMSNorm(6)),
    "GroupNorm": _module(lambda: nn.GroupNorm(2, 6)),
    "BatchNorm1d": _module(lambda: nn.BatchNorm1d(6)),
    "weight norm": _module(lambda: _conv.weight_norm(nn.Linear(6, 3))),
    "spectral norm": _module(lambda: _conv.spectral_norm(nn.Linear(6, 3))),
    "orthogonal": _module(lambda: _conv.orthogonal(nn.Linear(6, 3))),
    "Conv2d": _image(lambda: nn.Conv2d(2, 2, 3, stride=2)),
    "Conv2d, groups": _image(lambda: nn.Conv2d(2, 2, 3, groups=2)),
    "Conv2d, circular": _image(lambda: nn.Conv2d(2, 1, 3, padding=1, padding_mode="circular")),
    "ConvTranspose2d": _image(lambda: nn.ConvTranspose2d(2, 1, 2)),
    "MaxPool2d": _image(lambda: nn.MaxPool2d(2)),
    "AvgPool2d": _image(lambda: nn.AvgPool2d(2)),
    "AdaptiveAvgPool2d": _image(lambda: nn.AdaptiveAvgPool2d(2)),
    "AdaptiveMaxPool2d": _image(lambda: nn.AdaptiveMaxPool2d(2)),
    "Upsample": _image(lambda: nn.Upsample(size=4, mode="bilinear")),
    "LocalResponseNorm": _image(lambda: nn.LocalResponseNorm(2)),
    "PReLU": _activation("PReLU"),
    "GELU": _activation("GELU"),
    "Mish": _activation("Mish"),
    "Hardswish": _activation("Hardswish"),
    "GLU": _activation("GLU"),
    "Softmax": _activation("Softmax", 1),
    "AlphaDropout": _activation("AlphaDropout"),
    "RReLU": _activation("RReLU"),
    "experts": _module(Experts),
    "two results": ((lambda: {"layer": Pair(6, 3)}), lambda layer, x: layer(x)[0].tanh()),
    "torch.func.grad": _module(lambda: Own(_own_gradient)),
    "torch.func.jvp": _module(lambda: Own(_own_tangent)),
    "cdist": _function(lambda x: th.cdist(x[:, None], x[:, None] + th.eye(6).to(x))[:, 0]),
    "rfft": _function(lambda x: th.fft.rfft(x).abs()),
}


def behind_a_linear_layer(name: str) -> Case:
    """Make the case of one layer of the table as features extractor, behind a linear layer."""
    make, run = LAYERS[name]

    def make_all() -> dict[str, nn.Module]:
        return {"first": nn.Linear(3, 6), "layer": nn.Identity(), **make()}

    def run_all(layers: Any, x: th.Tensor) -> th.Tensor:
        return run(layers["layer"], layers["first"](x))

    return case_of(make_all, run_all)
