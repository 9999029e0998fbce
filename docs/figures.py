"""
Draw the figures of "How the update works" from one real update.

Trains Hopper-v5 and takes one of its updates to pieces: everything that is drawn was computed by
the package's own functions on that update's rollout.

    python docs/figures.py [update]
"""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch as th
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import VecNormalize

from sb3_trpo import TRPO
from sb3_trpo._actor import Actor, LinearizedActor, read_actor
from sb3_trpo._batch import ActorBatch
from sb3_trpo._conjugate_gradient import conjugate_gradient
from sb3_trpo._fisher import FisherProduct
from sb3_trpo._read_buffer import read_rollout
from sb3_trpo._surrogate import Surrogate, improvement_and_kl, surrogate_at
from sb3_trpo._trust_region import NaturalStep, natural_step
from sb3_trpo._vectors import flatten
from sb3_trpo.zoo.figure_style import COLORS, new_figure, set_style

IMAGES = Path(__file__).parent / "pages" / "images"
UPDATE = 20
TARGET_KL, DAMPING, SHRINK, CG_STEPS = 0.03, 0.1, 0.8, 15
BLUE, RED, _, _, ORANGE, _, GREY = COLORS

Array = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Update:
    """
    One update, at θ_k.

    :param actor: the policy as the update reads it
    :param batch: the rollout's states
    :param surrogate: objective and gradient
    :param step: the full step
    """

    actor: Actor
    batch: ActorBatch
    surrogate: Surrogate
    step: NaturalStep

    def fisher(self, damping: float) -> FisherProduct:
        """Give the Fisher matrix at θ_k."""
        chunks = (self.batch,)
        return FisherProduct(LinearizedActor(self.actor, chunks), chunks, damping)

    def at(self, change: th.Tensor) -> tuple[float, float]:
        """Measure improvement and KL at θ_k + change, and go back to θ_k."""
        parameters = self.actor.parameters
        original = flatten(parameters).detach().clone()
        th.nn.utils.vector_to_parameters(original + change, parameters)
        measured = improvement_and_kl(self.actor, self.surrogate.old)
        th.nn.utils.vector_to_parameters(original, parameters)
        return measured


class DrawOneUpdate(BaseCallback):
    """
    Draw all figures from the rollout of one update, before the update is made.

    :param update: its number
    """

    def __init__(self, update: int) -> None:
        super().__init__()
        self.update = update

    def _on_step(self) -> bool:
        return True

    def _on_rollout_end(self) -> None:
        assert isinstance(self.model, TRPO)
        if self.model._n_updates == self.update:
            update = read_update(self.model)
            draw_line_search(update)
            draw_plane(update)
            draw_conjugate_gradient(update)


def main() -> None:
    """Train up to the update that is drawn."""
    number = int(sys.argv[1]) if len(sys.argv) > 1 else UPDATE
    env = VecNormalize(make_vec_env("Hopper-v5", n_envs=2, seed=0))
    radius: Any = {"target_kl": TARGET_KL, "kl_reduction": "sum"}
    model = TRPO("MlpPolicy", env, n_steps=1024, **radius, seed=0, device="cpu")
    model.learn(2048 * number + 1, callback=DrawOneUpdate(number))


def read_update(model: TRPO) -> Update:
    """
    Take the first half of ``TRPO.train``.

    :param model: with a full rollout buffer
    :return: the update
    """
    rollout = read_rollout(model.rollout_buffer, model.device, th.float32)
    batch = rollout.actor_batch.normalized()
    actor = read_actor(model.policy, batch, model.kl_reduction, len(batch.advantages))
    linearized = LinearizedActor(actor, (batch,))
    surrogate = surrogate_at(linearized, (batch,))
    fisher = FisherProduct(linearized, (batch,), DAMPING)
    step = natural_step(fisher, surrogate.gradient, TARGET_KL, CG_STEPS)
    return Update(actor, batch, surrogate, step)


def draw_line_search(update: Update) -> None:
    """Draw improvement and KL along the step, as modelled and as they are."""
    step = update.step.step
    fractions = np.linspace(0, 1.15, 60)
    improvement, kl = np.array([update.at(float(t) * step) for t in fractions]).T
    half_curvature = 0.5 * float(th.dot(step, update.fisher(0.0)(step)))
    slope = update.step.expected_improvement
    figure, (upper, lower) = _panels(rows=2, size=(7, 6), sharex=True)
    upper.plot(fractions, slope * fractions, "--", color=GREY, label="linear model  t·gᵀs")
    upper.plot(fractions, improvement, color=BLUE, label="realised  L(θₖ + ts) − L(θₖ)")
    upper.set_ylabel("improvement of the surrogate\n(standardised advantages)")
    model = half_curvature * fractions**2
    lower.plot(fractions, model, "--", color=GREY, label="quadratic model  ½t²·sᵀFs")
    lower.plot(fractions, kl, color=BLUE, label="true mean KL  D(θₖ + ts)")
    lower.axhline(TARGET_KL, color=RED, label=f"δ = {TARGET_KL}")
    lower.set_ylabel("mean KL divergence (nats)")
    lower.set_xlabel("fraction t of the full step s")
    _mark_candidates(update, upper, lower)
    for axes in (upper, lower):
        axes.legend(fontsize="small", frameon=False)
    figure.savefig(IMAGES / "line_search.png")


def _mark_candidates(update: Update, upper: Axes, lower: Axes) -> None:
    """Mark what the search tries: hollow if rejected, full where it ends."""
    for fraction in SHRINK ** np.arange(10.0):
        improvement, kl = update.at(float(fraction) * update.step.step)
        accepted = improvement > 0 and kl <= TARGET_KL
        style: dict[str, Any] = {"color": RED, "mfc": RED if accepted else "white", "ls": "none"}
        label = "accepted" if accepted else "rejected"
        upper.plot(fraction, improvement, "o", **style)
        lower.plot(fraction, kl, "o", label=f"candidate, {label}", **style)
        if accepted:
            return


def draw_plane(update: Update) -> None:
    """Draw the plane of natural and plain gradient: objective, true trust region, its model."""
    step, gradient = update.step.step, update.surrogate.gradient
    fisher = update.fisher(DAMPING)
    plain = _to_boundary(gradient, fisher)
    across = plain - step * float(th.dot(plain, step) / th.dot(step, step))
    x_axis, y_axis = step / step.norm(), across / across.norm()
    # The region is far longer than wide, so each axis has a scale of its own.
    xs = np.linspace(-1.6, 1.6, 61) * float(step.norm())
    ys = np.linspace(-2.2, 2.2, 61) * float(_to_boundary(y_axis, fisher).norm())
    values = np.array([[update.at(float(x) * x_axis + float(y) * y_axis) for x in xs] for y in ys])
    model = _quadratic_model(fisher, x_axis, y_axis, xs, ys)
    figure, (axes,) = _panels(rows=1, size=(7, 5.2))
    axes.grid(visible=False)
    limit = float(np.abs(values[..., 0]).max())
    colours = axes.contourf(xs, ys, values[..., 0], np.linspace(-limit, limit, 25), cmap="RdBu")
    figure.colorbar(colours, label="improvement of the surrogate", format="%.2f")
    axes.contour(xs, ys, values[..., 1], [TARGET_KL], colors="black", linewidths=2)
    axes.contour(xs, ys, model, [TARGET_KL], colors="black", linestyles="dashed")
    _arrow(axes, (float(step.norm()), 0.0), "natural step")
    _arrow(axes, (float(plain @ x_axis), float(plain @ y_axis)), "plain gradient")
    axes.plot([], [], "k-", lw=2, label=f"true region  D ≤ {TARGET_KL}")
    axes.plot([], [], "k--", label="its quadratic model, damping included")
    axes.set(xlabel="parameter change along s", ylabel="parameter change across s")
    axes.legend(loc="lower left", fontsize="small")
    figure.savefig(IMAGES / "plane.png")


def _to_boundary(direction: th.Tensor, fisher: FisherProduct) -> th.Tensor:
    """Scale a direction to the boundary of the modelled region."""
    curvature = th.dot(direction, fisher(direction))
    return direction * th.sqrt(2 * TARGET_KL / curvature)


def _quadratic_model(
    fisher: FisherProduct, x_axis: th.Tensor, y_axis: th.Tensor, xs: Array, ys: Array
) -> Array:
    """Evaluate ½ vᵀ(F + λI)v on the plane's grid."""
    basis = th.stack([x_axis, y_axis])
    small = np.array((basis @ th.stack([fisher(axis) for axis in basis]).T).tolist())
    points = np.stack(np.meshgrid(xs, ys), axis=-1)
    model: Array = 0.5 * np.einsum("...i,ij,...j->...", points, small, points)
    return model


def _arrow(axes: Axes, end: tuple[float, float], text: str) -> None:
    """Draw an arrow from θ_k and say what it is."""
    axes.annotate("", end, (0.0, 0.0), arrowprops={"arrowstyle": "-|>", "lw": 2, "color": ORANGE})
    axes.annotate(text, end, (6, 6), textcoords="offset points", fontsize="small")


def draw_conjugate_gradient(update: Update) -> None:
    """Draw the relative residual against the number of Fisher products, for several dampings."""
    unit = update.surrogate.gradient / update.surrogate.gradient.norm()
    figure, (axes,) = _panels(rows=1, size=(7, 4))
    counts = range(1, 26)
    for damping in (0.0, 0.01, 0.1, 1.0):
        fisher = update.fisher(damping)
        residuals = [conjugate_gradient(fisher, unit, n, 0.0).residual for n in counts]
        axes.semilogy(counts, residuals, ".-", label=f"λ = {damping:g}")
    axes.axvline(CG_STEPS, color=GREY, ls=":", label=f"cg_max_steps = {CG_STEPS}")
    axes.set_xlabel("Fisher products")
    axes.set_ylabel("relative residual  ‖g − (F + λI)x‖ / ‖g‖")
    axes.legend(fontsize="small", frameon=False, title="cg_damping")
    figure.savefig(IMAGES / "conjugate_gradient.png")


def _panels(rows: int, size: tuple[float, float], **options: Any) -> tuple[Figure, list[Axes]]:
    """Make a figure of axes above one another."""
    figure = new_figure(*size)
    panels = list(np.ravel(figure.subplots(rows, **options)))
    for axes in panels:
        set_style(axes)
    return figure, panels


if __name__ == "__main__":
    main()
