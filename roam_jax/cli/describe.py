"""`python -m roam_jax describe`: what a config builds and what a step of it costs, or its data.

Of the model it opens neither data nor weights beyond their headers, so it works before either is
there. A canvas of one's own, in a schema file, is described without any config.
"""

from __future__ import annotations

import argparse
import pathlib
from collections.abc import Sequence

import ml_collections

from roam_jax.cli.arguments import load_config, make_parser, override, parse

# Applications of a block, blocks x rounds, where --applications does not say.
APPLICATIONS = 6
SCHEMA_NUMBERS = {
    "heads": "heads of attention (default: the canvas' width in heads of 64)",
    "width": "width of a head (default: what the heads leave)",
    "applications": f"blocks x rounds, for what slices leave (default: {APPLICATIONS})",
}


def main(argv: Sequence[str]) -> None:
    """Parses the command line, prints the report, writes it and its pictures."""
    parser = _parser()
    options, overrides = parse(parser, argv)
    if options.schema:
        _require_no_config(parser, options, overrides)
        from roam_jax.cli.describe_schema import describe_schema

        if options.out:
            make_folder(options.out)
        describe_schema(
            options.schema,
            options.out,
            heads=options.heads,
            width=options.width,
            applications=APPLICATIONS if options.applications is None else options.applications,
        )
        return
    if given := [f"--{name}" for name in SCHEMA_NUMBERS if getattr(options, name) is not None]:
        parser.error(f"{given[0]} is for --schema: a config has numbers of its own")
    if options.compile and options.what == "data":
        parser.error("--compile asks what a model needs: expected --what model with it")
    config = load_config(options.config)
    override(config, overrides)

    # Imported late, so that --help and a mistyped key answer at once.
    if options.what == "data":
        if options.out:
            make_folder(options.out)
        if config.train.task == "canvas":
            from roam_jax.cli.describe_scene import describe_scene

            describe_scene(options.config, config, options.out)
            return
        if config.train.task == "clone":
            from roam_jax.cli.describe_clone import describe_clone

            describe_clone(options.config, config, options.out)
            return
        from roam_jax.cli.describe_data import describe_data

        describe_data(options.config, config, options.out)
    else:
        describe_model(options.config, config, options.out, compile_step=options.compile)


def _parser() -> argparse.ArgumentParser:
    parser = make_parser(
        "Print regions, edges, parameters, FLOPs and bytes of a config. Needs no data and no "
        "weights: where the config names none, the published CogVideoX-2B is assumed. With --what "
        "data, print what its episodes hold. With --schema, print regions, edges and costs of the "
        "canvas in a schema file.",
        example="python -m roam_jax describe --config configs/bridge_3loop.py:tiny --out out "
        "--config.loop.rounds=4\n  python -m roam_jax describe --config "
        "configs/bridge_3loop.py:tiny --what data --out out\n  python -m roam_jax describe "
        "--schema robot.json --heads 8 --out out",
    )
    parser.prog = "python -m roam_jax describe"
    described = parser.add_mutually_exclusive_group(required=True)
    described.add_argument("--config", metavar="FILE[:VARIANT]")
    described.add_argument(
        "--schema", metavar="FILE", help="a canvas of this package or of canvas-engineering, JSON"
    )
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
    for name, about in SCHEMA_NUMBERS.items():
        parser.add_argument(f"--{name}", type=int, metavar="N", help=f"with --schema: {about}")
    return parser


def _require_no_config(
    parser: argparse.ArgumentParser, options: argparse.Namespace, overrides: Sequence[str]
) -> None:
    """Ends the command where --schema stands beside what only a config has."""
    if overrides:
        parser.error(f"{overrides[0]}: --schema has no config: expected --config with it")
    if options.compile or options.what == "data":
        asked = "--compile" if options.compile else "--what data"
        parser.error(f"{asked} is about a config: expected --config with it")


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
    from roam_jax.cli.describe_pictures import draw_canvas, write_json
    from roam_jax.cli.describe_text import report_lines
    from roam_jax.evaluate.description import describe
    from roam_jax.evaluate.step_cost import compiled_bytes
    from roam_jax.tasks.canvas import SceneModel
    from roam_jax.tasks.clone import CloneModel
    from roam_jax.tasks.graft import GraftModel
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
        write_json(out, report)
        if isinstance(sketched.model, GraftModel | SceneModel):
            module = sketched.model.module
            draw_canvas(out, module.layout, module.topology, report)
        if isinstance(sketched.model, CloneModel):
            for body, model in sketched.model.bodies.items():
                make_folder(out / body)
                module, own = model.module, report["bodies"][body]
                draw_canvas(out / body, module.layout, module.topology, own)


def make_folder(out: pathlib.Path) -> None:
    """Makes the folder that `--out` names.

    Raises:
        ValueError: it, or one that it would lie in, is a file or may not be written.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(f"--out {out}: expected a folder; {error.strerror}") from error
