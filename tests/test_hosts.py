"""Training on two hosts: network namespaces of one machine, joined by a virtual cable."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch as th

# Everything in it, the processes included, ends with the first process.
ISOLATED = "unshare --map-root-user --net --mount --pid --fork --kill-child --mount-proc"

# Each host knows itself and the other by the cable only.
HOSTS = """
set -e
mount -t tmpfs none /run
ip netns add host1
ip netns add host2
ip link add cable netns host1 type veth peer name cable netns host2
for i in 1 2; do
    ip -n host$i address add 10.0.0.$i/24 dev cable
    ip -n host$i link set cable up
    ip -n host$i link set lo up
done
"""
TRAIN = """
for i in 1 2; do
    ip netns exec host$i "$PYTHON" -m torch.distributed.run --nnodes 2 --nproc-per-node 1 \\
        --rdzv-backend c10d --rdzv-id test --rdzv-endpoint 10.0.0.1:29500 \\
        --rdzv-conf is_host=$((i == 1)) --local-addr 10.0.0.$i "$SCRIPT" &
    launched+=($!)
done
wait "${launched[0]}"
wait "${launched[1]}"
"""
SCRIPT = """
import os
from pathlib import Path

import torch as th
from torch import distributed as dist

from sb3_trpo import TRPO

dist.init_process_group("gloo")
settings = {"n_steps": 64, "batch_size": 64, "seed": 1, "device": "cpu"}
model = TRPO("MlpPolicy", "CartPole-v1", data_parallel=True, **settings)
model.learn(5 * 128)
flat = th.cat([parameter.detach().flatten() for parameter in model.policy.parameters()])
dist.destroy_process_group()
sent = int(Path("/sys/class/net/cable/statistics/tx_bytes").read_text())
th.save({"parameters": flat, "updates": model._n_updates, "sent": sent}, os.environ["GROUP_RANK"])
"""


def reason_to_skip() -> str | None:
    """Say why this machine cannot have two hosts, if it cannot."""
    missing = [name for name in ("unshare", "ip") if shutil.which(name) is None]
    if missing:
        return f"needs {' and '.join(missing)}"
    probe = subprocess.run([*ISOLATED.split(), "sh", "-c", HOSTS], capture_output=True, text=True)
    return None if probe.returncode == 0 else f"no rights for namespaces: {probe.stderr.strip()}"


@pytest.mark.slow
@pytest.mark.long
def test_two_hosts_train_one_policy(tmp_path: Path) -> None:
    reason = reason_to_skip()
    if reason is not None:
        pytest.skip(reason)
    script = tmp_path / "train.py"
    script.write_text(SCRIPT)
    own = {"PYTHON": sys.executable, "SCRIPT": str(script), "OMP_NUM_THREADS": "1"}
    own |= {"GLOO_SOCKET_IFNAME": "cable", "PYTHONPATH": str(Path(__file__).parents[1])}
    result = subprocess.run(
        [*ISOLATED.split(), "bash", "-c", HOSTS + TRAIN],
        env=os.environ | own,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert result.returncode == 0, result.stderr
    first, second = (th.load(tmp_path / rank) for rank in "01")
    assert th.equal(first["parameters"], second["parameters"])
    assert first["updates"] == 5
    # The critic, half of the parameters, sends ten times two gradients in an update.
    least = 5 * 20 * 4 * len(first["parameters"]) / 2
    assert min(first["sent"], second["sent"]) > least
