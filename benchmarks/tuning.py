"""
Try changes of a shipped configuration on a few seeds, and keep an account of all of them.

Every setting and its returns (means of 30 deterministic episodes of the final model) become a line
of ``results/tuning.jsonl``, whatever they are. Seeds 0 to 4 are for choosing; what ``learning.py``
reports comes from seeds that had no part in it.

    python benchmarks/tuning.py Pendulum-v1 --seeds 0 1 --try '{gamma: 0.95}' '{n_envs: 4}'
    python benchmarks/tuning.py --table
"""

import argparse
import json
from collections.abc import Sequence
from typing import Any

import numpy as np
import yaml
from machine import RESULTS
from training import ALGORITHMS, final_return, shipped_hyperparameters

ACCOUNT = RESULTS / "tuning.jsonl"
EPISODES = 30
SAME_IN_ALL = {"policy", "n_timesteps", "kl_reduction"}


def main() -> None:
    """Run the settings one after the other, or print the account."""
    parser = argparse.ArgumentParser(description=__doc__.strip().splitlines()[0])
    parser.add_argument("env", nargs="?")
    parser.add_argument("--algo", choices=ALGORITHMS, default="trpo")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--try", dest="changes", nargs="+", type=yaml.safe_load, default=[{}])
    parser.add_argument("--table", action="store_true", help="print the account in Markdown")
    arguments = parser.parse_args()
    if arguments.table:
        print(table([json.loads(line) for line in ACCOUNT.read_text().splitlines()]))
        return
    for change in arguments.changes:
        record = attempt(arguments.algo, arguments.env, arguments.seeds, change)
        with ACCOUNT.open("a") as account:
            account.write(json.dumps(record) + "\n")
        print(json.dumps(record), flush=True)


def attempt(algo: str, env: str, seeds: Sequence[int], change: dict[str, Any]) -> dict[str, Any]:
    """
    Train one setting on every seed.

    :param algo: key of ``ALGORITHMS``
    :param env: name of the environment
    :param seeds: one run each
    :param change: hyperparameters that replace the shipped ones
    :return: a line of the account
    """
    shipped = shipped_hyperparameters(algo, env)
    returns = {seed: round(final_return(algo, env, seed, EPISODES, change), 1) for seed in seeds}
    return {"env": env, "setting": shipped | change, "episodes": EPISODES, "returns": returns}


def table(records: Sequence[dict[str, Any]]) -> str:
    """
    Write the account as Markdown.

    :param records: lines of the account
    :return: one table per environment, in the order in which the settings were tried
    """
    lines: list[str] = []
    for env in dict.fromkeys(record["env"] for record in records):
        lines += [
            "",
            f"## {env}",
            "",
            "| setting | mean | returns by seed | episodes |",
            "|---|---|---|---|",
        ]
        lines += [row(record) for record in records if record["env"] == env]
    return "\n".join(lines).strip()


def row(record: dict[str, Any]) -> str:
    """
    Write a line of the account as a row of a table.

    :param record: the line
    :return: the row
    """
    setting = ", ".join(
        f"{name} {value}" for name, value in record["setting"].items() if name not in SAME_IN_ALL
    )
    returns = ", ".join(f"{seed}: {value:.1f}" for seed, value in record["returns"].items())
    mean = np.mean(list(record["returns"].values()))
    return f"| {setting} | {mean:.1f} | {returns} | {record['episodes']} |"


if __name__ == "__main__":
    main()
