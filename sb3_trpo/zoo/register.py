"""Register our TRPO and its variants with the RL Zoo; ``--algo trpo`` then means our TRPO.

The Zoo's modules share three dictionaries by algorithm, so these are changed in place. To add an
algorithm, add a line to ``ALGORITHMS``.
"""

import warnings
from typing import Any, cast

from rl_zoo3 import ALGOS
from rl_zoo3.hyperparams_opt import HYPERPARAMS_CONVERTER, HYPERPARAMS_SAMPLER
from stable_baselines3.common.base_class import BaseAlgorithm

import sb3_trpo
from sb3_trpo import MaskableRecurrentTRPO, MaskableTRPO, RecurrentTRPO
from sb3_trpo.zoo.search_space import convert, sample

_TRUST_REGION = {"target_kl", "cg_damping"}


class TRPO(sb3_trpo.TRPO):
    """TRPO for the RL Zoo, where hyperparameters without ``kl_reduction`` are sb3-contrib's.

    A configuration in the Zoo's format that does not set ``kl_reduction`` was written for
    ``sb3_contrib.TRPO``, as the Zoo's own ``trpo.yml`` was. A trained model is one of
    :class:`sb3_trpo.TRPO`, whose name its checkpoints have.

    :param arguments: as for ``TRPO``
    :param options: as for ``TRPO``
    """

    def __init__(self, *arguments: Any, **options: Any) -> None:
        # `load` builds an empty model first and then sets the saved values.
        if options.get("_init_setup_model", True):
            options = _as_contrib_means_them(options)
        super().__init__(*arguments, **options)

    @classmethod
    def load(cls, *arguments: Any, **options: Any) -> "TRPO":
        """
        Load a model; the hyperparameters of a continued run replace the saved ones.

        :param arguments: as for ``TRPO.load``
        :param options: as for ``TRPO.load``
        :return: the model
        """
        if _TRUST_REGION & set(options):
            options = _as_contrib_means_them(options)
        return super().load(*arguments, **options)


def _as_contrib_means_them(hyperparameters: dict[str, Any]) -> dict[str, Any]:
    """Add sb3-contrib's reduction of the KL divergence unless one is given."""
    if "kl_reduction" in hyperparameters:
        return hyperparameters
    warnings.warn(
        "These hyperparameters do not set kl_reduction, so target_kl and cg_damping are taken as "
        "sb3_contrib.TRPO and the RL Zoo's trpo.yml mean them: kl_reduction='mean'. Set "
        "kl_reduction in the configuration or with --hyperparams to choose.",
        stacklevel=3,
    )
    return hyperparameters | {"kl_reduction": "mean"}


ALGORITHMS: dict[str, type[BaseAlgorithm]] = {
    "trpo": TRPO,
    "trpo_lstm": RecurrentTRPO,
    "trpo_mask": MaskableTRPO,
    "trpo_mask_lstm": MaskableRecurrentTRPO,
}

ALGOS.update(ALGORITHMS)
HYPERPARAMS_SAMPLER.update(dict.fromkeys(ALGORITHMS, sample))
HYPERPARAMS_CONVERTER.update(dict.fromkeys(ALGORITHMS, cast(Any, convert)))
