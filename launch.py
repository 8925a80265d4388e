"""Runs an experiment: `python launch.py --config=configs/cart.py[:PRESET] [--workdir=DIR] [--config.KEY=VALUE ...]`."""

from __future__ import annotations

import sys
from pathlib import Path

from rcmnet_jax import runtime
from rcmnet_jax.background import end_with
from rcmnet_jax.cli import CONFIG_FAULTS, check_words, config_fault, guarded

if __name__ == "__main__":
    runtime.use_huge_pages()

from absl import flags  # isort: skip  # rcmnet_jax comes first: it sets XLA's flags
from ml_collections import config_flags

from rcmnet_jax.checks import check
from rcmnet_jax.config import ExperimentConfig
from rcmnet_jax.errors import UserError
from rcmnet_jax.settings import config_hash, from_dict

_CONFIG = config_flags.DEFINE_config_file("config", None, "Config file, with :PRESET if it has any.")
_WORKDIR = flags.DEFINE_string("workdir", "", "Where the run lives; by default runs/CONFIG-HASH.")
_COORDINATOR = flags.DEFINE_string("coordinator", "", "host:port of process 0, where several processes train together.")
_PROCESSES = flags.DEFINE_integer("num_processes", 0, "How many processes there are.")
_PROCESS = flags.DEFINE_integer("process_id", -1, "Which of them this is, from 0.")


def parse(argv: list[str]) -> tuple[ExperimentConfig, Path]:
    """The checked config and the workdir of a command line; absl's own ways of failing become UserErrors."""
    if any(word in ("-h", "--help", "-help") for word in argv[1:]):
        print(__doc__, flags.FLAGS.main_module_help(), sep="\n\n")
        raise SystemExit(0)
    check_words(argv[1:])
    try:
        strays = flags.FLAGS(argv)[1:]
        values = _CONFIG.value.to_dict()
    except (flags.Error, *CONFIG_FAULTS) as error:
        raise config_fault(error) from error
    if strays:
        raise UserError(f"Command line: '{strays[0]}' belongs to no flag. Write --config.KEY=VALUE, without a space.")
    config: ExperimentConfig = from_dict(values)
    check(config)
    name = Path(config_flags.get_config_filename(flags.FLAGS["config"]).split(":")[0]).stem
    return config, Path(_WORKDIR.value or Path("runs") / f"{name}-{config_hash(config)}")


def main() -> None:
    config, workdir = parse(sys.argv)
    from rcmnet_jax import experiment
    from rcmnet_jax.training.sharding import Cluster, join_cluster

    join_cluster(Cluster(_COORDINATOR.value, _PROCESSES.value, _PROCESS.value))
    experiment.run(config, workdir)


if __name__ == "__main__":
    end_with(lambda: guarded(main))
