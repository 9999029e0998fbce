"""
Throughput of data-parallel training in several processes, what they send, and how long that takes.

    python benchmarks/scaling.py --processes 2

One process and groups of processes take turns. A time is the shortest of all rounds: processes that
wait for each other hundreds of times suffer from every interruption, and the same work is never
done too fast. Speed is a ratio to one process.
"""

import argparse
import functools
import json
import os
import socket
import statistics
import time
import warnings
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NamedTuple

import torch as th
from communication import RESULT, Network, Update, fit_network, latency_of, seconds_of
from machine import provenance
from speed import make, wrapped
from torch import distributed as dist

import sb3_trpo
from sb3_trpo import _critic, trpo
from sb3_trpo._fisher import FisherProduct
from sb3_trpo._processes import processes_of

ENVIRONMENTS = ("Hopper-v5", "CartPole-v1")
N_STEPS, BATCH_SIZE = 2048, 128
ROLLOUTS = 2
MESSAGE_SIZES = tuple(4**power for power in range(2, 11))


class Share(NamedTuple):
    """
    What each process of a group trains on.

    :param env: its environment, one of it
    :param n_steps: of its rollout
    :param batch_size: of the critic, states of all processes together
    """

    env: str
    n_steps: int
    batch_size: int


class Scaling(NamedTuple):
    """
    A way to divide the work among n processes.

    :param name: what stays the same
    :param share: n -> what each of them trains on
    :param alone: n -> the same share in a single process
    """

    name: str
    share: Callable[[str, int], Share]
    alone: Callable[[str, int], Share]


SCALINGS = (
    Scaling(
        "weak: rollout and minibatch per process",
        lambda env, n: Share(env, N_STEPS, BATCH_SIZE * n),
        lambda env, n: Share(env, N_STEPS, BATCH_SIZE),
    ),
    Scaling(
        "weak: rollout per process, minibatch of all",
        lambda env, n: Share(env, N_STEPS, BATCH_SIZE),
        lambda env, n: Share(env, N_STEPS, BATCH_SIZE // n),
    ),
    Scaling(
        "strong: rollout and minibatch of all",
        lambda env, n: Share(env, N_STEPS // n, BATCH_SIZE),
        lambda env, n: Share(env, N_STEPS // n, BATCH_SIZE // n),
    ),
)


class Group:
    """
    Processes that do the same work when they are asked to, and sleep in between.

    :param size: how many; a single one has no process group
    """

    def __init__(self, size: int) -> None:
        self.size = size
        context, port = get_context("spawn"), _free_port()
        self._pipes = []
        for rank in range(size):
            own, other = context.Pipe()
            context.Process(target=serve, args=(rank, size, port, other), daemon=True).start()
            self._pipes.append(own)

    def run(self, work: Callable[..., Any], *arguments: Any) -> list[Any]:
        """
        Call a function of this module in every process.

        :param work: the function
        :param arguments: its arguments
        :return: what it returns, by rank
        """
        for pipe in self._pipes:
            pipe.send((work, arguments))
        return [pipe.recv() for pipe in self._pipes]


def serve(rank: int, size: int, port: int, pipe: Connection) -> None:
    """
    Join the group, then work on demand until the other end of the pipe is closed.

    :param rank: of this process
    :param size: of its group
    :param port: where the processes meet
    :param pipe: brings functions and arguments, takes what they return
    """
    warnings.simplefilter("ignore")
    th.set_num_threads(1)
    if size > 1:
        address = f"tcp://127.0.0.1:{port}"
        dist.init_process_group("gloo", init_method=address, rank=rank, world_size=size)
    while True:
        try:
            work, arguments = pipe.recv()
        except EOFError:
            return
        pipe.send(work(*arguments))


def _free_port() -> int:
    """Find a port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@functools.cache
def model_of(share: Share) -> tuple[Any, dict[str, Any]]:
    """
    Make a model of this process once, with the parameters from which it starts every time.

    :param share: what it trains on
    :return: model and parameters
    """
    options = {"n_steps": share.n_steps, "batch_size": share.batch_size}
    parallel = {"data_parallel": dist.is_initialized()}
    model: Any = make("sb3_trpo", "MlpPolicy", share.env, options | parallel)
    state = {name: tensor.clone() for name, tensor in model.policy.state_dict().items()}
    return model, {"policy": state}


def learn(share: Share) -> dict[str, Any]:
    """
    Train for some rollouts from the initial parameters.

    :param share: what this process trains on
    :return: seconds of everything, of an update and of a rollout, and per update what it consisted
        of and how many messages of which size it sent
    """
    model, start = model_of(share)
    model.set_parameters(start, exact_match=False)
    size = dist.get_world_size() if dist.is_initialized() else 1
    if size > 1:
        dist.barrier()
    began = time.perf_counter()
    with recorded() as record:
        model.learn(ROLLOUTS * share.n_steps * size)
    return {
        "seconds": time.perf_counter() - began,
        "update_seconds": record.seconds["updates"] / ROLLOUTS,
        "rollout_seconds": record.seconds["rollouts"] / ROLLOUTS,
        "update": asdict(record.update(model.policy)),
        "sent": {size: count / ROLLOUTS for size, count in sorted(record.sent.items())},
    }


class Record:
    """What happens within updates: times and calls by name, and all-reduces by bytes."""

    def __init__(self) -> None:
        self.seconds: defaultdict[str, float] = defaultdict(float)
        self.calls: Counter[str] = Counter()
        self.sent: Counter[int] = Counter()
        self._is_update = False

    def around(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """
        Watch a function.

        :param name: key of ``WATCHED``
        :param function: the function
        :return: what is called in its place
        """

        def call(*arguments: Any, **options: Any) -> Any:
            self.calls[name] += 1
            if name == "all-reduces" and self._is_update:
                self.sent[arguments[0].nbytes] += 1
            return function(*arguments, **options)

        def timed(*arguments: Any, **options: Any) -> Any:
            self._is_update, start = name == "updates", time.perf_counter()
            result = call(*arguments, **options)
            self.seconds[name] += time.perf_counter() - start
            self._is_update = False
            return result

        return timed if name in ("updates", "rollouts") else call

    def update(self, policy: th.nn.Module) -> Update:
        """
        Describe the average update.

        :param policy: an ``MlpPolicy``
        :return: numbers of parameters, and what was counted
        """
        sizes = {name: parameter.numel() for name, parameter in policy.named_parameters()}
        critic = sum(size for name, size in sizes.items() if "value_net" in name)
        names = "Fisher products", "candidates", "minibatches"
        counts = (self.calls[name] / self.calls["updates"] for name in names)
        return Update(sum(sizes.values()) - critic, critic, *counts)


# Owner, and name of the function.
WATCHED: dict[str, list[tuple[Any, str]]] = {
    "updates": [(sb3_trpo.TRPO, "train")],
    "rollouts": [(sb3_trpo.TRPO, "collect_rollouts")],
    "all-reduces": [(dist, "all_reduce")],
    "Fisher products": [(FisherProduct, "__call__")],
    "candidates": [(trpo, "improvement_and_kl")],
    "minibatches": [(_critic, "_descend")],
}


@contextmanager
def recorded() -> Iterator[Record]:
    """
    Watch the updates of a block.

    :return: context manager; the record is complete after the block
    """
    record = Record()
    with wrapped(WATCHED, record.around):
        yield record


def time_messages(repeats: int = 100) -> dict[int, float]:
    """
    Time what means over all processes add to a loop of small matrix products.

    Alone they would take less: the processes would wait at the same moment, with warm caches.

    :param repeats: how often each size
    :return: seconds by bytes
    """
    mean = processes_of(True, th.device("cpu")).mean
    without = _time_loop(lambda: None, repeats)
    return {
        size: _time_loop(functools.partial(mean, th.zeros(size // 4 - 1), 1.0), repeats) - without
        for size in MESSAGE_SIZES
    }


def _time_loop(send: Callable[[], Any], repeats: int) -> float:
    """Time an iteration that multiplies, as a minibatch of the critic does, and sends."""
    states, weights = th.ones(BATCH_SIZE, 64), th.eye(64)
    dist.barrier()
    start = time.perf_counter()
    for _ in range(repeats):
        for _ in range(3):
            states = th.tanh(states @ weights)
            weights = th.mm(states.T, states) / len(states)
        send()
    return (time.perf_counter() - start) / repeats


def collect(sizes: list[int], rounds: int) -> dict[Any, list[Any]]:
    """
    Measure all shares in turn.

    :param sizes: numbers of processes, more than 1
    :param rounds: how often
    :return: what the processes returned in each round, by (number of processes, share); the times
        of messages have ``None`` in place of a share
    """
    groups = {size: Group(size) for size in (1, *sizes)}
    samples: dict[Any, list[Any]] = defaultdict(list)
    for turn in range(rounds + 1):
        for size, share in dict.fromkeys(_tasks(sizes)):
            work = (time_messages,) if share is None else (learn, share)
            results = groups[size].run(*work)
            if turn > 0:  # the first round builds the models
                samples[size, share].append(results)
    return samples


def _tasks(sizes: list[int]) -> Iterator[tuple[int, Share | None]]:
    """List what is measured in a round."""
    for size in sizes:
        yield size, None
        for env in ENVIRONMENTS:
            yield 1, Share(env, N_STEPS, BATCH_SIZE)
            for scaling in SCALINGS:
                yield 1, scaling.alone(env, size)
                yield size, scaling.share(env, size)


def report(samples: dict[Any, list[Any]], sizes: list[int]) -> dict[str, Any]:
    """
    Compare what was measured with one process and with the model.

    The model has the bandwidth of the loop of messages, and the latency that explains the updates
    of the first environment in the smallest group. Everything else is predicted.

    :param samples: see :func:`collect`
    :param sizes: numbers of processes
    :return: network, and an entry for every number of processes, environment and scaling
    """
    in_loop = _network(samples[sizes[0], None], sizes[0])
    entries = [
        _entry(samples, size, env, scaling)
        for size in sizes
        for env in ENVIRONMENTS
        for scaling in SCALINGS
    ]
    fitted = [
        (Update(**entry["update"]), *entry["update_seconds"].values())
        for entry in entries
        if (entry["processes"], entry["env"]) == (sizes[0], ENVIRONMENTS[0])
    ]
    latency = latency_of(fitted, in_loop.bandwidth, sizes[0])
    network = in_loop._replace(latency=latency)
    return {
        "latency_in_loop": in_loop.latency,
        "network": network._asdict(),
        "entries": [entry | _prediction(entry, network, in_loop) for entry in entries],
    }


def _prediction(entry: dict[str, Any], network: Network, in_loop: Network) -> dict[str, float]:
    """Return the model's relative errors, with the latency in updates and that in the loop."""
    update, n = Update(**entry["update"]), entry["processes"]
    alone, together = entry["update_seconds"].values()
    errors = {"prediction_error": network, "prediction_error_with_latency_in_loop": in_loop}
    return {
        name: (alone + seconds_of(update, which, n)) / together - 1
        for name, which in errors.items()
    }


def _network(samples: list[Any], size: int) -> Network:
    """Fit the network to the times of messages."""
    times = {
        message: min(max(times[message] for times in results) for results in samples)
        for message in MESSAGE_SIZES
    }
    return fit_network(times, size)


def _entry(samples: dict[Any, list[Any]], size: int, env: str, scaling: Scaling) -> dict[str, Any]:
    """Compare one way to scale with one process."""
    share, alone = scaling.share(env, size), scaling.alone(env, size)
    together = samples[size, share]
    one = _fastest(samples[1, Share(env, N_STEPS, BATCH_SIZE)], "seconds")
    speedup = size * share.n_steps / N_STEPS * one / _fastest(together, "seconds")
    update = _mean_update(together)
    return {
        "processes": size,
        "env": env,
        "scaling": scaling.name,
        "share": share._asdict(),
        "speedup": speedup,
        "efficiency": speedup / size,
        "median_over_fastest": _spread(together),
        "update": asdict(update),
        "bytes": {"counted": _bytes_sent(together), "formula": update.bytes},
        **{
            key: {"alone": _fastest(samples[1, alone], key), "together": _fastest(together, key)}
            for key in ("rollout_seconds", "update_seconds")
        },
    }


def _fastest(samples: list[Any], key: str) -> float:
    """Return the shortest of the rounds' times, each that of the slowest process."""
    return min(max(float(result[key]) for result in results) for results in samples)


def _spread(samples: list[Any]) -> float:
    """Compare the median time of the rounds with the shortest."""
    seconds = [max(result["seconds"] for result in results) for results in samples]
    return float(statistics.median(seconds) / min(seconds))


def _mean_update(samples: list[Any]) -> Update:
    """Average over rounds what an update consisted of, which is the same in all processes."""
    updates = [results[0]["update"] for results in samples]
    return Update(**{key: statistics.mean(u[key] for u in updates) for key in updates[0]})


def _bytes_sent(samples: list[Any]) -> float:
    """Average over rounds the bytes of an update's all-reduces."""
    sent = [results[0]["sent"] for results in samples]
    return float(statistics.mean(sum(size * n for size, n in each.items()) for each in sent))


def table(result: dict[str, Any]) -> str:
    """
    Write a result as Markdown.

    :param result: see :func:`report`
    :return: one row per entry
    """
    header = "| environment | processes | the same | times as fast | efficiency | bytes | model |"
    return "\n".join([header, "|---|---|---|---|---|---|---|", *map(row, result["entries"])])


def row(entry: dict[str, Any]) -> str:
    """
    Write an entry as a row of a Markdown table.

    :param entry: see :func:`report`
    :return: the row
    """
    cells = (
        entry["env"],
        str(entry["processes"]),
        entry["scaling"],
        f"{entry['speedup']:.2f}",
        f"{entry['efficiency']:.0%}",
        f"{entry['bytes']['counted'] / 1e6:.2f} MB",
        f"{entry['prediction_error']:+.0%}",
    )
    return f"| {' | '.join(cells)} |"


def _circumstances(rounds: int) -> dict[str, Any]:
    """Note how it was measured; ``chrt --fifo 1`` keeps other programs from interrupting."""
    is_first = os.sched_getscheduler(0) == os.SCHED_FIFO
    return {"rounds": rounds, "real_time_priority": is_first, "cores": os.cpu_count()}


def main() -> None:
    """Measure, print the table and write the result."""
    parser = argparse.ArgumentParser(description=__doc__.strip().splitlines()[0])
    parser.add_argument("--processes", type=int, nargs="+", default=[2])
    parser.add_argument("--rounds", type=int, default=14)
    parser.add_argument("--output", type=Path, default=RESULT)
    arguments = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"
    th.set_num_threads(1)
    samples = collect(arguments.processes, arguments.rounds)
    result = provenance() | _circumstances(arguments.rounds) | report(samples, arguments.processes)
    print(result["latency_in_loop"], result["network"], table(result), sep="\n")
    arguments.output.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
