"""`python -m roam_jax report`: runs as one HTML page."""

from __future__ import annotations

import pathlib
from collections.abc import Sequence

from roam_jax.cli.arguments import make_parser

OUT = pathlib.Path("report.html")


def main(argv: Sequence[str]) -> None:
    """Parses the command line, writes the page, prints what it is of."""
    parser = make_parser(
        "Write one self-contained HTML page about runs: curves with seeds as bands, differences of "
        "configs, figures, pictures and videos of evaluations, incidents, checkpoints. Runs that "
        "differ in their seed alone are drawn as one band. Nothing in the folders is changed; runs "
        "may still go on.",
        example="python -m roam_jax report runs/toy runs/toy_1round --out compare.html",
    )
    parser.prog = "python -m roam_jax report"
    parser.add_argument(
        "folders", nargs="+", type=pathlib.Path, metavar="DIR", help="workdir, or one of --seeds"
    )
    parser.add_argument(
        "--out", type=pathlib.Path, default=OUT, metavar="FILE", help="the page (%(default)s)"
    )
    parser.add_argument(
        "--all_steps",
        action="store_true",
        help="figures and pictures of every evaluated step, not of the last alone",
    )
    options = parser.parse_args(argv)
    if options.out.is_dir() or options.out.suffix != ".html":
        raise ValueError(f"--out {options.out}: expected a file that ends in .html")

    # Imported late, so that --help and a mistyped option answer at once.
    from roam_jax.evaluate.run_report import write_report

    for group in write_report(options.folders, options.out, all_steps=options.all_steps):
        seeds = ", ".join(str(run.seed) for run in group.runs)
        print(f"runs:   {group.name}: seed{'s' if len(group.runs) > 1 else ''} {seeds}")
    print(f"report: {options.out} ({options.out.stat().st_size / 2**20:.1f} MiB)")
