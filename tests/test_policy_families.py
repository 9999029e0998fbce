"""Every class takes the policies of its family, and refuses others by name at construction."""

from typing import Any

import pytest
from sb3_contrib.common.envs import InvalidActionEnvDiscrete
from sb3_contrib.common.maskable.policies import MaskableActorCriticPolicy
from sb3_contrib.common.recurrent.policies import RecurrentActorCriticPolicy
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.sac.policies import SACPolicy

from sb3_trpo import TRPO, MaskableRecurrentTRPO, MaskableTRPO, RecurrentTRPO
from sb3_trpo.maskable_recurrent import MaskableMlpLstmPolicy

FAMILIES: dict[type[TRPO], Any] = {
    TRPO: ActorCriticPolicy,
    MaskableTRPO: MaskableActorCriticPolicy,
    RecurrentTRPO: RecurrentActorCriticPolicy,
    MaskableRecurrentTRPO: MaskableMlpLstmPolicy,
}


def make(algorithm: type[TRPO], policy: Any) -> TRPO:
    return algorithm(policy, InvalidActionEnvDiscrete(4), n_steps=8, batch_size=8)


@pytest.mark.parametrize("algorithm", FAMILIES)
def test_subclass_of_the_family_is_taken(algorithm: type[TRPO]) -> None:
    policy = type("Own", (FAMILIES[algorithm],), {})
    assert isinstance(make(algorithm, policy).policy, policy)


@pytest.mark.parametrize("algorithm", [TRPO, RecurrentTRPO])
def test_policy_is_told_whether_gsde_is_used(algorithm: type[TRPO]) -> None:
    def init(self: Any, *arguments: Any, use_sde: bool, **options: Any) -> None:
        """Name the argument, which SB3 always passes."""
        super(own, self).__init__(*arguments, use_sde=use_sde, **options)

    own: Any = type("Own", (FAMILIES[algorithm],), {"__init__": init})
    assert not make(algorithm, own).policy.use_sde


@pytest.mark.parametrize("algorithm", FAMILIES)
def test_policy_of_another_family_is_refused_by_name(algorithm: type[TRPO]) -> None:
    others = {*FAMILIES.values(), SACPolicy} - {FAMILIES[algorithm]}
    if algorithm is RecurrentTRPO:
        others -= {MaskableMlpLstmPolicy}  # without masks it allows every action
    for policy in others:
        with pytest.raises(ValueError, match=rf"{algorithm.__name__} .* {policy.__name__}"):
            make(algorithm, policy)
