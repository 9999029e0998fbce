"""Importing this module makes the RL Zoo's ``--algo trpo`` mean our TRPO, and adds its variants.

The Zoo's modules share one dictionary, so it is changed in place. The Zoo's hyperparameter
sampler for ``trpo`` stays as it is.
"""

from rl_zoo3 import ALGOS

from sb3_trpo import TRPO, MaskableTRPO, RecurrentTRPO

ALGOS.update(trpo=TRPO, trpo_lstm=RecurrentTRPO, trpo_mask=MaskableTRPO)
