"""Trust Region Policy Optimization for Stable-Baselines3."""

from sb3_contrib.trpo.policies import CnnPolicy, MlpPolicy, MultiInputPolicy

from sb3_trpo._vec_normalize import load_vec_normalize
from sb3_trpo.checkpoint import TrainingCheckpoint, resume_training
from sb3_trpo.maskable import MaskableTRPO
from sb3_trpo.maskable_recurrent import MaskableRecurrentTRPO
from sb3_trpo.recurrent import RecurrentTRPO
from sb3_trpo.trpo import TRPO

__version__ = "0.1.0"

__all__ = [
    "TRPO",
    "CnnPolicy",
    "MaskableRecurrentTRPO",
    "MaskableTRPO",
    "MlpPolicy",
    "MultiInputPolicy",
    "RecurrentTRPO",
    "TrainingCheckpoint",
    "__version__",
    "load_vec_normalize",
    "resume_training",
]
