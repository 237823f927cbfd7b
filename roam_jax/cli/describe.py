"""`python -m roam_jax describe`: what a config builds and what a step of it costs, or its data.

Of the model it opens neither data nor weights beyond their headers, so it works before either is
there.
"""

from __future__ import annotations

import json
import pathlib
from collections.abc import Sequence

import ml_collections

from roam_jax.cli.arguments import load_config, make_parser, override, parse


def main(argv: Sequence[str]) -> None:
    """Parses the command line, prints the report, writes it and its pictures."""
    parser = make_parser(
        "Print regions, edges, parameters, FLOPs and bytes of a config. Needs no data and no "
        "weights: where the config names none, the published CogVideoX-2B is assumed. With --what "
        "data, print what its episodes hold.",
        example="python -m roam_jax describe --config configs/bridge_3loop.py:tiny --out out "
        "--config.loop.rounds=4\n  python -m roam_jax describe --config "
        "configs/bridge_3loop.py:tiny --what data --out out",
    )
    parser.prog = "python -m roam_jax describe"
    parser.add_argument("--config", required=True, metavar="FILE[:VARIANT]")
    parser.add_argument(
        "--out",
        type=pathlib.Path,
        metavar="DIR",
        help="also write the report as JSON, and pictures, there",
    )
    parser.add_argument(
        "--what",
        choices=("model", "data"),
        default="model",
        help="what is described: the model and its costs, or the episodes (default: %(default)s)",
    )
    parser.add_argument(
        "--compile",
        action="store_true",
        help="also compile the step for one device of this machine and ask XLA for its memory "
        "(takes minutes)",
    )
    options, overrides = parse(parser, argv)
    if options.compile and options.what == "data":
        parser.error("--compile asks what a model needs: expected --what model with it")
    config = load_config(options.config)
    override(config, overrides)

    # Imported late, so that --help and a mistyped key answer at once.
    if options.what == "data":
        from roam_jax.cli.describe_data import describe_data

        if options.out:
            make_folder(options.out)
        describe_data(options.config, config, options.out)
    else:
        describe_model(options.config, config, options.out, compile_step=options.compile)


def describe_model(
    name: str, config: ml_collections.ConfigDict, out: pathlib.Path | None, *, compile_step: bool
) -> None:
    """Prints what a config builds and costs; with a folder, writes it and pictures there.

    Args:
        name: of the config, for the report.
        config: the whole config.
        out: the folder, or None.
        compile_step: whether XLA is asked as well.
    """
    from roam_jax.cli.describe_text import report_lines
    from roam_jax.evaluate.description import describe
    from roam_jax.evaluate.step_cost import compiled_bytes
    from roam_jax.tasks.sketch import sketch

    sketched = sketch(config)
    if out:
        make_folder(out)  # tracing takes its time
    report = {"name": name, **describe(sketched)}
    if compile_step:
        report["bytes"]["compiled"] = compiled_bytes(
            sketched.task, config, rules=sketched.rules, rounds=config.loop.rounds
        )
    print("\n".join(report_lines(report)))
    if out:
        write_report(out, report, sketched.model)


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
