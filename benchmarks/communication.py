"""
What the processes of a data-parallel training send, and a model of the time that this takes.

    python benchmarks/communication.py      # the tables of docs/pages/scaling.md

The tables take the messages and the time of one process from ``scaling.py``'s result, and the
network from its latency and bandwidth.
"""

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
from machine import RESULTS

FLOAT32, FLOAT64 = 4, 8
GATHERED_NUMBERS = 2  # a checksum of the parameters, and the sizes of the rollouts
# Another one than speed_scaling.json, which is about larger batches in one process.
RESULT = RESULTS / "scaling_processes.json"


class Messages(NamedTuple):
    """Equal all-reduces: how often, and the bytes that each process puts into one."""

    times: float
    size: int


@dataclass(frozen=True)
class Update:
    """
    What an update consists of; the numbers may be averages over several.

    :param actor: P, the number of parameters of the actor
    :param critic: the number of parameters of the critic
    :param products: Fisher products
    :param candidates: of the line search
    :param minibatches: of the critic, over all epochs
    """

    actor: int
    critic: int
    products: float
    candidates: float
    minibatches: float

    @property
    def messages(self) -> dict[str, Messages]:
        """List the all-reduces of ``train()``; a mean is a sum and, behind it, its weight."""
        means = {
            "advantages": Messages(2, 2),  # mean, variance
            "surrogate": Messages(1, self.actor + 4),  # value, entropy, ratios, gradient
            "Fisher products": Messages(self.products, self.actor + 1),
            "line search": Messages(self.candidates, 3),  # improvement, KL divergence
            "critic": Messages(self.minibatches, self.critic + 2),  # loss, gradient
        }
        numbers = {
            # on faults, states, divergence, and whether actor and critic are in closed form
            "agreement": Messages(5, FLOAT64),
            "explained variance": Messages(2, 3 * FLOAT64),  # two means, two variances
        }
        return numbers | {part: Messages(n, FLOAT32 * size) for part, (n, size) in means.items()}

    @property
    def bytes(self) -> float:
        """Return the bytes that each process puts into the all-reduces of an update."""
        return sum(times * size for times, size in self.messages.values())


class Network(NamedTuple):
    """
    A network between processes.

    :param latency: seconds that a message of no bytes takes from one process to another
    :param bandwidth: bytes per second of a process
    """

    latency: float
    bandwidth: float


# (network, processes, bytes) -> seconds of an all-reduce
AllReduce = Callable[[Network, int, float], float]


def ring(network: Network, processes: int, size: float) -> float:
    r"""
    Time an all-reduce along a ring, gloo's.

    .. math:: 2 (n - 1) \Big(\alpha + \frac{m}{n \beta}\Big)

    :param network: α and β
    :param processes: n
    :param size: m, bytes
    :return: seconds

    Source: Thakur, Rabenseifner and Gropp (2005), Optimization of Collective Communication
    Operations in MPICH, section 4.5, without the time of the additions.
    """
    return 2 * (processes - 1) * (network.latency + size / processes / network.bandwidth)


def tree(network: Network, processes: int, size: float) -> float:
    r"""
    Time an all-reduce by halving and doubling, which MPI and NCCL's trees come close to.

    .. math:: 2 \lceil \log_2 n \rceil \alpha + 2 \frac{n - 1}{n} \frac{m}{\beta}

    :param network: α and β
    :param processes: n
    :param size: m, bytes
    :return: seconds

    Source: as :func:`ring`.
    """
    transfer = 2 * (processes - 1) / processes * size / network.bandwidth
    return 2 * math.ceil(math.log2(processes)) * network.latency + transfer


def fit_network(times: Mapping[int, float], processes: int) -> Network:
    """
    Find the network whose ring takes the given times.

    :param times: seconds of an all-reduce by bytes, of at least two sizes
    :param processes: their number
    :return: latency and bandwidth of the least relative squared error
    """
    seconds = np.array(list(times.values()))
    latencies = [ring(Network(1.0, math.inf), processes, size) for size in times]
    transfers = [ring(Network(0.0, 1.0), processes, size) for size in times]
    columns = np.array([latencies, transfers]).T / seconds[:, None]
    latency, per_byte = np.linalg.lstsq(columns, np.ones(len(seconds)), rcond=None)[0]
    return Network(float(latency), float(1 / per_byte))


def number_of(update: Update) -> float:
    """
    Count the messages of an update.

    Collecting a number from every process (twice in an update) takes two passes around the ring,
    as an all-reduce does.

    :param update: the update
    :return: all-reduces, and what takes as long as one
    """
    return sum(times for times, _ in update.messages.values()) + GATHERED_NUMBERS


def seconds_of(update: Update, network: Network, processes: int, reduce: AllReduce = ring) -> float:
    """
    Add up the time of an update's messages.

    :param update: the update
    :param network: between the processes
    :param processes: their number
    :param reduce: how a message is reduced
    :return: seconds; linear in the size of the messages, so their mean size is enough
    """
    messages = number_of(update)
    return messages * reduce(network, processes, update.bytes / messages)


def latency_of(
    updates: Sequence[tuple[Update, float, float]], bandwidth: float, processes: int
) -> float:
    """
    Find the latency with which the model explains updates best.

    :param updates: each with its seconds without other processes, and with them
    :param bandwidth: bytes per second
    :param processes: their number
    :return: seconds of the least relative squared error
    """
    rows = [
        (
            seconds_of(update, Network(1.0, math.inf), processes) / together,
            (together - alone - seconds_of(update, Network(0.0, bandwidth), processes)) / together,
        )
        for update, alone, together in updates
    ]
    return sum(x * y for x, y in rows) / sum(x * x for x, _ in rows)


@dataclass(frozen=True)
class Training:
    """
    A training whose processes have each a share of the same size.

    :param update: of each process
    :param rollout_seconds: without other processes
    :param update_seconds: without other processes
    """

    update: Update
    rollout_seconds: float
    update_seconds: float

    def efficiency(self, network: Network, processes: int, reduce: AllReduce) -> float:
        """
        Compare the time of a process by itself with the time among others.

        The waiting for the slowest rollout is left out, and so are the few small messages between
        rollouts.

        :param network: between the processes
        :param processes: their number
        :param reduce: how a message is reduced
        :return: share of the time that is not spent on messages
        """
        alone = self.rollout_seconds + self.update_seconds
        return alone / (alone + seconds_of(self.update, network, processes, reduce))


NETWORKS = {
    "10 Gbit/s, 50 µs": Network(50e-6, 10e9 / 8),
    "100 Gbit/s, 10 µs": Network(10e-6, 100e9 / 8),
}
PROCESSES = (2, 8, 64, 1000)
ALGORITHMS: dict[str, AllReduce] = {"ring": ring, "tree": tree}


def changed(
    training: Training, states: int = 1, minibatches: int = 1, products: int = 1
) -> Training:
    """
    Change what a training computes and sends.

    :param training: the training; the time of its updates is proportional to the states
    :param states: factor by which rollouts, and with them minibatches, grow
    :param minibatches: factor by which there are fewer minibatches, each larger
    :param products: factor by which there are fewer Fisher products; what this saves is left out
    :return: the changed training
    """
    update = training.update
    return Training(
        replace(
            update,
            minibatches=update.minibatches / minibatches,
            products=update.products / products,
        ),
        states * training.rollout_seconds,
        states * training.update_seconds,
    )


def read_training(env: str) -> Training:
    """
    Take a training from the result, with rollouts and minibatches of the same size per process.

    :param env: name of the environment
    :return: the training
    """
    entries = json.loads(RESULT.read_text())["entries"]
    entry = next(e for e in entries if e["env"] == env and e["scaling"].startswith("weak"))
    seconds = (entry[f"{part}_seconds"]["alone"] for part in ("rollout", "update"))
    return Training(Update(**entry["update"]), *seconds)


def efficiency_table(env: str) -> str:
    """
    Carry the model to many processes.

    :param env: name of the environment
    :return: Markdown; efficiency by network, algorithm and number of processes
    """
    training = read_training(env)
    rows = [
        [network, algorithm] + [f"{training.efficiency(which, n, reduce):.0%}" for n in PROCESSES]
        for network, which in NETWORKS.items()
        for algorithm, reduce in ALGORITHMS.items()
    ]
    return _markdown(["network", "all-reduce", *(f"{n:,} processes" for n in PROCESSES)], rows)


def remedies_table(env: str, processes: int = 1000) -> str:
    """
    Show what a change helps.

    :param env: name of the environment
    :param processes: their number
    :return: Markdown; efficiency by change and algorithm, on the slower network
    """
    training = read_training(env)
    network = NETWORKS["10 Gbit/s, 50 µs"]
    changes = {
        "as it is": training,
        "half as many Fisher products": changed(training, products=2),
        "a fifth of the critic's minibatches": changed(training, minibatches=5),
        "4 times the rollout, as many minibatches": changed(training, states=4),
        "both of the last two": changed(training, states=4, minibatches=5),
    }
    rows = [
        [name] + [f"{each.efficiency(network, processes, r):.0%}" for r in ALGORITHMS.values()]
        for name, each in changes.items()
    ]
    return _markdown([f"{processes:,} processes", *ALGORITHMS], rows)


def _markdown(header: list[str], rows: list[list[str]]) -> str:
    """Write a table."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def main() -> None:
    """Print the tables."""
    print(efficiency_table("Hopper-v5"), remedies_table("Hopper-v5"), sep="\n\n")


if __name__ == "__main__":
    main()
