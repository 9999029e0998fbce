"""Trust Region Policy Optimization for Stable-Baselines3."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
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

_MODULES = {
    "TRPO": "sb3_trpo.trpo",
    "MaskableRecurrentTRPO": "sb3_trpo.maskable_recurrent",
    "MaskableTRPO": "sb3_trpo.maskable",
    "RecurrentTRPO": "sb3_trpo.recurrent",
    "TrainingCheckpoint": "sb3_trpo.checkpoint",
    "load_vec_normalize": "sb3_trpo._vec_normalize",
    "resume_training": "sb3_trpo.checkpoint",
    **dict.fromkeys(("CnnPolicy", "MlpPolicy", "MultiInputPolicy"), "sb3_contrib.trpo.policies"),
}


def __getattr__(name: str) -> Any:
    """Import a public name at its first use: the command must start before torch is imported."""
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(_MODULES[name]), name)
    return value


def __dir__() -> list[str]:
    """List the public names before their first use, too."""
    return sorted({*globals(), *__all__})
