"""How all pictures look: colours, axes, legends, files."""

from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter

from sb3_trpo.zoo.errors import UsageError, user_errors

# Colour-blind readers can distinguish these (Paul Tol's bright scheme).
COLORS = ("#4477aa", "#cc3311", "#228833", "#aa3377", "#ee9900", "#44aaaa", "#777777")
TRAINING, EVALUATION = COLORS[:2]
RETURN_LABEL = "return per episode (sum of rewards)"
STEPS_LABEL = "environment steps"


def new_figure(width: float = 8, height: float = 5) -> Figure:
    """Make an empty figure.

    :param width: in inches
    :param height: in inches
    :return: the figure
    """
    return Figure(figsize=(width, height), dpi=150, layout="constrained")


def set_style(axes: Axes) -> None:
    """Give axes a light grid and the colours of all pictures.

    :param axes: axes on which nothing is drawn yet
    """
    axes.grid(alpha=0.3)
    axes.set_prop_cycle(color=COLORS)


def label_steps(axes: Axes) -> None:
    """Label the horizontal axis as environment steps.

    :param axes: axes of any figure against steps
    """
    axes.set_xlabel(STEPS_LABEL)
    axes.set_xlim(left=0)
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))


def add_legend(axes: Axes, columns: int = 2, title: str | None = None) -> None:
    """Put a legend above the panel, where it hides no data; none if there is nothing to name.

    :param axes: axes with everything on them
    :param columns: entries beside each other
    :param title: what the panel shows
    """
    if axes.get_legend_handles_labels()[0]:
        place: dict[str, Any] = {"loc": "lower center", "bbox_to_anchor": (0.5, 1)}
        legend = axes.legend(ncols=columns, fontsize="small", frameon=False, title=title, **place)
        legend.get_title().set_multialignment("center")


def save_figure(figure: Figure, path: Path, **options: Any) -> None:
    """Write a figure to a file that the user has named.

    :param figure: the figure
    :param path: of the file
    :param options: as for ``Figure.savefig``
    :raises UsageError: if the format is unknown or the file cannot be written
    """
    formats = figure.canvas.get_supported_filetypes()
    if path.suffix.removeprefix(".") not in formats:
        raise UsageError(f"the picture '{path}' has to end in one of .{', .'.join(formats)}")
    with user_errors(OSError):
        figure.savefig(path, **options)
