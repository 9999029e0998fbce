"""
Try changes of a shipped configuration on a few seeds, and keep an account of all of them.

Every setting and its returns become a line of ``results/tuning.jsonl``, whatever they are. Seeds 0
to 4 are for choosing; what ``learning.py`` reports comes from seeds that had no part in it.

    python benchmarks/tuning.py Pendulum-v1 --seeds 0 1 --try '{target_kl: lin_0.04}' '{gamma: 0.95}'
    python benchmarks/tuning.py --table
"""

import argparse
import json
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import yaml
from learning import score
from machine import RESULTS

from sb3_trpo.zoo.train import packaged_config

ACCOUNT = RESULTS / "tuning.jsonl"


def main() -> None:
    """Run the settings one after the other, or print the account."""
    parser = argparse.ArgumentParser(description=__doc__.strip().splitlines()[0])
    parser.add_argument("env", nargs="?")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--try", dest="changes", nargs="+", type=yaml.safe_load, default=[{}])
    parser.add_argument("--table", action="store_true", help="print the account in Markdown")
    arguments = parser.parse_args()
    if arguments.table:
        print(table([json.loads(line) for line in ACCOUNT.read_text().splitlines()]))
        return
    for change in arguments.changes:
        record = attempt(arguments.env, arguments.seeds, change)
        with ACCOUNT.open("a") as account:
            account.write(json.dumps(record) + "\n")
        print(json.dumps(record), flush=True)


def attempt(env: str, seeds: Sequence[int], change: dict[str, Any]) -> dict[str, Any]:
    """
    Train one setting on every seed.

    :param env: name of the environment
    :param seeds: one run each
    :param change: hyperparameters that replace the shipped ones
    :return: a line of the account
    """
    with open(str(packaged_config("trpo"))) as file:
        shipped = yaml.safe_load(file)[env]
    words = [f"{name}:{value!r}" for name, value in change.items()]
    start = time.perf_counter()
    returns = {seed: round(score(env, seed, words), 1) for seed in seeds}
    seconds = round((time.perf_counter() - start) / len(seeds))
    return {"env": env, "setting": shipped | change, "returns": returns, "seconds": seconds}


def table(records: Sequence[dict[str, Any]]) -> str:
    """
    Write the account as Markdown.

    :param records: lines of the account
    :return: one table per environment, in the order in which the settings were tried
    """
    lines: list[str] = []
    for env in dict.fromkeys(record["env"] for record in records):
        lines += ["", f"## {env}", "", "| setting | mean | returns by seed |", "|---|---|---|"]
        lines += [row(record) for record in records if record["env"] == env]
    return "\n".join(lines).strip()


def row(record: dict[str, Any]) -> str:
    """
    Write a line of the account as a row of a table.

    :param record: the line
    :return: the row
    """
    setting = ", ".join(f"{name} {value}" for name, value in record["setting"].items())
    returns = ", ".join(f"{seed}: {value:.1f}" for seed, value in record["returns"].items())
    return f"| {setting} | {np.mean(list(record['returns'].values())):.1f} | {returns} |"


if __name__ == "__main__":
    main()
