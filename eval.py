"""Says how good a trained run is, from its workdir alone.

python eval.py --workdir runs/tiny
python eval.py --workdir runs/tiny --step 100 --rounds 1,2,3 --config.eval.windows=0
python eval.py --workdir runs/tiny --rounds 1,2,3,4,6 --extrapolate last
python eval.py --workdir runs/tiny --metrics actions,video
python eval.py --workdir runs/reach --metrics rollout    (plays what was trained, in closed loop)
python eval.py --workdir runs/seeds    (of `train.py --seeds`: every seed, and one table of them)
"""

import argparse
import functools
import json
import pathlib
from collections.abc import Sequence

from roam_jax.cli.arguments import make_parser, override, parse, run_command


def rounds_list(text: str) -> tuple[int, ...]:
    """Parses "1,2,3"."""
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r}: expected numbers such as 1,2,3") from error


def main(argv: Sequence[str]) -> None:
    """Parses the command line and evaluates one checkpoint."""
    parser = make_parser(
        "Evaluate a trained run; writes WORKDIR/eval/STEP.json and pictures beside it.",
        example="python eval.py --workdir runs/tiny --rounds 1,2,3",
    )
    parser.add_argument(
        "--workdir",
        required=True,
        type=pathlib.Path,
        help="folder of a run or of its seeds, or a model directory",
    )
    parser.add_argument("--step", type=int, help="which checkpoint (default: the latest)")
    parser.add_argument(
        "--rounds", type=rounds_list, help="numbers of rounds (default: 1 to the trained one)"
    )
    parser.add_argument(
        "--extrapolate",
        choices=["last"],
        help="rounds above the trained number reuse the parameters of the last one "
        "(default: they are refused)",
    )
    parser.add_argument(
        "--metrics",
        type=lambda text: tuple(text.split(",")),
        default=("actions",),
        help="what is measured: actions (with velocity errors and round measures), video (sampled "
        "continuations), rollout (episodes that the policy plays), or several as actions,video "
        "(default: actions)",
    )
    options, overrides = parse(parser, argv)

    # Imported late, so that --help answers at once.
    from roam_jax.evaluate.run import metric_of
    from roam_jax.evaluate.seeds import evaluate_folder, format_seeds

    path = evaluate_folder(
        options.workdir,
        step=options.step,
        rounds=options.rounds,
        extrapolate=options.extrapolate,
        metrics=options.metrics,
        overrides=functools.partial(override, arguments=overrides),
    )
    report = json.loads(path.read_text())
    print(format_seeds(report))
    print(f"report:   {path}")
    for kind, ending in (("picture", "png"), ("video", "mp4")):
        for file in sorted(path.parent.glob(f"{report['step']}_*.{ending}")):
            # Pictures of another report of this step may lie here as well.
            if metric_of(file.name) in options.metrics:
                print(f"{kind + ':':<9} {file}")


if __name__ == "__main__":
    run_command(main)
