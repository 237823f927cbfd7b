"""Trains what a config describes, on all devices, resuming by itself.

python train.py --config configs/bridge_3loop.py:tiny --workdir runs/tiny
python train.py --config FILE[:VARIANT] --workdir DIR --config.optim.lr=3e-4
python train.py --config configs/canvas_toy.py --workdir runs/toy --seeds 0:8
srun python train.py --config FILE --workdir SHARED_DIR    (several hosts, see launch/)
"""

import contextlib
import pathlib
from collections.abc import Sequence

from roam_jax.cli.arguments import load_config, make_parser, override, parse, run_command
from roam_jax.cli.train_seeds import add_options, set_first_seed, train_seeds
from roam_jax.train import cluster


def main(argv: Sequence[str]) -> None:
    """Parses the command line, builds the experiment, trains it."""
    parser = make_parser(
        "Train what a config describes; an existing workdir is resumed.",
        example="python train.py --config configs/bridge_3loop.py:tiny --workdir runs/tiny "
        "--config.optim.lr=3e-4",
    )
    parser.add_argument("--config", required=True, metavar="FILE[:VARIANT]")
    parser.add_argument("--workdir", required=True, type=pathlib.Path, help="folder of the run")
    parser.add_argument(
        "--dry_run", action="store_true", help="print parameters, bytes and batch, and stop"
    )
    add_options(parser)
    cluster.add_options(parser)
    options, overrides = parse(parser, argv)
    config = load_config(options.config)
    override(config, overrides)
    set_first_seed(config, options, overrides)

    # Imported late, so that --help and a mistyped key answer at once.
    from roam_jax.cli.dry_run import dry_run
    from roam_jax.contracts import cache_dir
    from roam_jax.evaluate.run import make_evaluate_hook
    from roam_jax.evaluate.run_cost import flops_per_step, tokens_per_step
    from roam_jax.tasks.build import build
    from roam_jax.tasks.datasets import saved_statistics
    from roam_jax.train import compile_cache, hosts, loop
    from roam_jax.train.seeds_workdir import SeedsWorkdir
    from roam_jax.train.workdir import Workdir

    hosts.start(options)
    compile_cache.enable(config.train.compile_cache, cache_dir())
    workdir = Workdir(options.workdir)
    first = SeedsWorkdir(workdir.path).run(config.seed) if options.seeds else workdir
    before = first.read()[1] if first.config_file.exists() else {}
    experiment = build(config, saved_statistics(before))
    evaluate = make_evaluate_hook(experiment)
    if options.dry_run:
        dry_run(experiment, options.workdir)
        return
    common = {
        "config": config,
        "workdir": options.workdir,
        "rounds": experiment.rounds,
        "rules": experiment.rules,
        "evaluate": evaluate,
        "flops_per_step": flops_per_step(experiment),
        "tokens_per_step": tokens_per_step(experiment),
    }
    if options.seeds:
        train_seeds(experiment, options, **common)
        return
    provenance = experiment.provenance()
    workdir.require(config, provenance)  # before windows are encoded
    with contextlib.closing(experiment.batches()) as batches:
        loop.run(experiment.task, batches, provenance=provenance, **common)


if __name__ == "__main__":
    run_command(main)
