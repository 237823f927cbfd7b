"""`python -m roam_jax describe`: what a config builds and what a step of it costs.

Opens neither data nor weights beyond their headers, so it works before either is there.
"""

from __future__ import annotations

import json
import pathlib
from collections.abc import Sequence

from roam_jax.cli.arguments import load_config, make_parser, override, parse


def main(argv: Sequence[str]) -> None:
    """Parses the command line, prints the report, writes it and its pictures."""
    parser = make_parser(
        "Print regions, edges, parameters, FLOPs and bytes of a config. Needs no data and no "
        "weights: where the config names none, the published CogVideoX-2B is assumed.",
        example="python -m roam_jax describe --config configs/bridge_3loop.py:tiny --out out "
        "--config.loop.rounds=4",
    )
    parser.prog = "python -m roam_jax describe"
    parser.add_argument("--config", required=True, metavar="FILE[:VARIANT]")
    parser.add_argument(
        "--out",
        type=pathlib.Path,
        metavar="DIR",
        help="also write describe.json, canvas.png and topology.png there",
    )
    parser.add_argument(
        "--compile",
        action="store_true",
        help="also compile the step for one device of this machine and ask XLA for its memory "
        "(takes minutes)",
    )
    options, overrides = parse(parser, argv)
    config = load_config(options.config)
    override(config, overrides)

    # Imported late, so that --help and a mistyped key answer at once.
    from roam_jax.cli.describe_text import report_lines
    from roam_jax.evaluate.description import describe
    from roam_jax.evaluate.step_cost import compiled_bytes
    from roam_jax.tasks.sketch import sketch

    sketched = sketch(config)
    if options.out:
        make_folder(options.out)  # tracing takes its time
    report = {"name": options.config, **describe(sketched)}
    if options.compile:
        report["bytes"]["compiled"] = compiled_bytes(
            sketched.task, config, rules=sketched.rules, rounds=config.loop.rounds
        )
    print("\n".join(report_lines(report)))
    if options.out:
        write_report(options.out, report, sketched.model)


def make_folder(out: pathlib.Path) -> None:
    """Makes the folder that `--out` names.

    Raises:
        ValueError: it, or one that it would lie in, is a file or may not be written.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(f"--out {out}: expected a folder; {error.strerror}") from error


def write_report(out: pathlib.Path, report: dict, model) -> None:
    """Writes JSON and, for a model on a canvas, pictures into a folder; prints their paths."""
    from roam_jax.files import write_atomically
    from roam_jax.tasks.graft import GraftModel
    from roam_jax.viz.canvas import draw_layout
    from roam_jax.viz.topology import draw_topology

    write_atomically(out / "describe.json", json.dumps(report, indent=2) + "\n")
    print(f"report:  {out / 'describe.json'}")
    if isinstance(model, GraftModel):
        draw_layout(out / "canvas.png", model.module.layout)
        draw_topology(out / "topology.png", model.module.layout, model.module.topology)
        for name in ("canvas.png", "topology.png"):
            print(f"picture: {out / name}")
