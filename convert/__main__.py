"""`python -m convert VERB`: weights from elsewhere, and back."""

from __future__ import annotations

import argparse
import contextlib
import functools
import pathlib
import shlex
from collections.abc import Iterator, Sequence

from roam_jax.cli.arguments import make_parser, override, parse, run_command
from roam_jax.spelling import did_you_mean

CE = "canvas-engineering"


def main(argv: Sequence[str]) -> None:
    """Hands the rest of the command line to a verb; lists the verbs where there is none.

    Raises:
        ValueError: no such verb.
    """
    width = max(map(len, VERBS))
    listed = "\n".join(f"  {verb:<{width}}  {about}" for verb, (about, _) in VERBS.items())
    parser = make_parser(
        "Conversion of weights; each verb has a --help of its own.",
        example="python -m convert import --src CogVideoX-2b --dst weights/cogvideox-2b",
    )
    parser.prog, parser.epilog = "python -m convert", f"verbs:\n{listed}\n\n{parser.epilog}"
    parser.add_argument("verb", metavar="VERB")
    verb = parser.parse_args(argv[:1]).verb
    if verb not in VERBS:
        raise ValueError(f"no verb {verb!r}: {did_you_mean(verb, VERBS)}")
    VERBS[verb][1](argv[1:])


def _parser(verb: str, description: str, *, example: str) -> argparse.ArgumentParser:
    parser = make_parser(description, example=f"python -m convert {verb} {example}")
    parser.prog = f"python -m convert {verb}"
    return parser


@contextlib.contextmanager
def _extra_needed() -> Iterator[None]:
    """Says how to install what an import lacks."""
    try:
        yield
    except ImportError as error:
        hint = "`pip install -e '.[convert]'` in the checkout installs it"
        raise ValueError(f"{error}; {hint}") from error


def _import(argv: Sequence[str]) -> None:
    parser = _parser(
        "import",
        "Convert the safetensors of transformer/, vae/ and text_encoder/, whichever are there, and "
        "copy tokenizer/ and scheduler/. dtypes are kept, every tensor is accounted for, pickles "
        f"are refused. Or, with --ce, loop parameters and action head of a {CE} .pt (needs torch).",
        example="--src CogVideoX-2b --dst weights/cogvideox-2b",
    )
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--src", type=pathlib.Path, metavar="DIFFUSERS_DIR")
    source.add_argument("--ce", type=pathlib.Path, metavar="FILE.pt", help=f"of {CE}")
    parser.add_argument("--dst", type=pathlib.Path, required=True, metavar="DIR", help="new folder")
    options = parser.parse_args(argv)
    if options.ce is not None:
        _import_ce(options.ce, options.dst)
        return

    from convert.loops import LOOPS_FILE
    from roam_jax.cogvideox.importing import companion_files, import_diffusers, not_imported
    from roam_jax.cogvideox.load import written_fingerprint

    for name, manifest in import_diffusers(options.src, options.dst).items():
        dtypes = ", ".join(f"{count} {dtype}" for dtype, count in manifest.dtypes.items())
        size = f"{manifest.bytes / 1e6:,.1f} MB"
        print(
            f"{options.dst / name}: {manifest.parameters:,} parameters in {manifest.tensors} "
            f"tensors ({dtypes}), {size}, "
            f"fingerprint {written_fingerprint(options.dst / name, manifest)}"
        )
    for file in companion_files(options.dst):
        print(f"{options.dst / file}: copied")
    if others := not_imported(options.src):
        hint = f"; `export --src {options.src} --as ce` and convert.loops read {LOOPS_FILE}"
        print(f"not imported: {', '.join(others)}{hint if LOOPS_FILE in others else ''}")


def _import_ce(src: pathlib.Path, dst: pathlib.Path) -> None:
    with _extra_needed():
        from convert.canvas_engineering import read_checkpoint
    from convert.loops import LOOPS_FILE, write_loops
    from roam_jax.cogvideox.importing import new_directory

    loops = read_checkpoint(src)
    with new_directory(dst) as folder:
        write_loops(folder, loops)
    print(
        f"{dst / LOOPS_FILE}: {len(loops.parameters)} parameters of {loops.notes['rounds']} rounds"
    )


def _export(argv: Sequence[str]) -> None:
    parser = _parser(
        "export",
        "Write a converted folder (--src), or what a run trained (--workdir), for other programs. "
        "A run's --config.backbone.path=... says where its frozen weights are now.",
        example="--src weights/cogvideox-2b --dst CogVideoX-2b\n"
        "  python -m convert export --workdir runs/bridge --as base+loops --dst exported",
    )
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument(
        "--src",
        type=pathlib.Path,
        metavar="DIR",
        help="converted folder; with --as ce, one with loops.safetensors",
    )
    source.add_argument("--workdir", type=pathlib.Path, metavar="DIR", help="folder of a run")
    parser.add_argument("--dst", type=pathlib.Path, required=True, metavar="DIR", help="new folder")
    parser.add_argument(
        "--as",
        dest="form",
        metavar="FORM",
        help="diffusers: for diffusers' from_pretrained (default of a converted folder, and of "
        "runs that pretrain); model: a folder to pass on, with a card (default of a graft); "
        "base+loops: the graft's backbone as diffusers reads it, and the graft's own parameters "
        f"beside it; ce: its loops and action head as FILE.pt of {CE}",
    )
    parser.add_argument("--step", type=int, help="which checkpoint (default: the latest)")
    options, overrides = parse(parser, argv)
    if options.dst.exists():
        raise FileExistsError(f"{options.dst} exists: remove it, or choose another folder")
    if options.src is not None:
        if options.step is not None or overrides:
            given = "--step" if options.step is not None else overrides[0]
            raise ValueError(f"{given} with --src: expected it with --workdir")
        with _extra_needed():
            print(_export_folder(options.src, options.dst, form=options.form))
        return
    from convert.export_run import export_run  # builds the model: not needed by the other verbs

    with _extra_needed():
        written = export_run(
            options.workdir,
            options.dst,
            command=f"python -m convert export {shlex.join(argv)}",
            form=options.form,
            step=options.step,
            overrides=functools.partial(override, arguments=overrides),
        )
    print(written)


def _export_folder(src: pathlib.Path, dst: pathlib.Path, *, form: str | None) -> str:
    from convert.export import export_converted
    from convert.export_graft import export_loops

    forms = {"diffusers": export_converted, "ce": export_loops}
    if (form or "diffusers") not in forms:
        raise ValueError(f"--as {form} with --src: expected {' or '.join(forms)}")
    return forms[form or "diffusers"](src, dst)


def _inspect(argv: Sequence[str]) -> None:
    parser = _parser(
        "inspect",
        "Show every tensor of a diffusers directory, a converted folder, an export or one file: "
        "shape, dtype, bytes, where it goes, what is left over. Reads headers only. Exit code 0: "
        "all is accounted for.",
        example="CogVideoX-2b",
    )
    parser.add_argument("path", type=pathlib.Path, metavar="DIR|FILE")
    parser.add_argument("--all", action="store_true", help="a line for each key of each layer")
    options = parser.parse_args(argv)

    from convert import inspection

    with _extra_needed():
        parts = inspection.inspect(options.path)
    for part in parts:
        print(inspection.table(part, every_key=options.all), end="\n\n")
    for line in inspection.companions(options.path):
        print(line)
    if others := inspection.unread(options.path):
        print(f"not read: {', '.join(others)}")
    size = sum(tensor.header.bytes for part in parts for tensor in part.tensors)
    print(f"{sum(len(part.tensors) for part in parts)} tensors, {size:,} bytes in all")
    wrong = [line for part in parts for line in part.problems]
    wrong += [f"LEFT OVER {key}" for part in parts for key in part.left_over]
    if wrong:
        raise ValueError(
            f"{options.path}: not all is accounted for: {'; '.join(wrong[:5])}"
            + (f" and {len(wrong) - 5} more" if len(wrong) > 5 else "")
        )


def _verify(argv: Sequence[str]) -> None:
    parser = _parser(
        "verify",
        "Compare the stored tensors, every module and the whole of transformer/, vae/ and "
        "text_encoder/, whichever are there, in float32 on seeded random inputs with diffusers and "
        "transformers (needs torch); and the copies of tokenizer/ and scheduler/. Exit code 0: all "
        "within their bounds.",
        example="--src CogVideoX-2b --dst weights/cogvideox-2b",
    )
    parser.add_argument("--src", type=pathlib.Path, required=True, metavar="DIFFUSERS_DIR")
    parser.add_argument(
        "--dst",
        type=pathlib.Path,
        metavar="DIR",
        help="its conversion (default: one is made in a temporary folder)",
    )
    parser.add_argument(
        "--bound",
        type=float,
        metavar="ERROR",
        help="relative L2 error that a module may have (default: 1e-5 in transformer and text "
        "encoder, 3e-5 in the VAE); stored tensors must be equal",
    )
    options = parser.parse_args(argv)
    with _extra_needed():
        from convert.verify import table, verify
    rows = verify(options.src, options.dst, bound=options.bound)
    print(table(rows))
    wrong = [row for row in rows if not row.ok]
    if wrong:
        raise ValueError(f"{len(wrong)} of {len(rows)} comparisons are beyond their bounds")
    print(f"all {len(rows)} comparisons are within their bounds")


def _text(argv: Sequence[str]) -> None:
    parser = _parser(
        "text",
        "Write a safetensors file with `embeddings` (prompts, 226, D) float16 and the prompts as "
        "JSON in its metadata. Prompts are padded to 226 tokens and padding is attended, as "
        "CogVideoX was trained.",
        example="--model weights/cogvideox-2b --prompts prompts.txt --out text.safetensors",
    )
    parser.add_argument(
        "--model",
        type=pathlib.Path,
        required=True,
        metavar="DIR",
        help="converted folder with text_encoder/ and tokenizer/",
    )
    parser.add_argument(
        "--prompts",
        type=pathlib.Path,
        required=True,
        metavar="FILE",
        help="one prompt a line; an empty line is the empty prompt",
    )
    parser.add_argument("--out", type=pathlib.Path, required=True, metavar="FILE", help="new file")
    parser.add_argument(
        "--dtype",
        choices=("float32", "bfloat16"),
        default="float32",
        help="compute dtype (default: %(default)s)",
    )
    options = parser.parse_args(argv)
    from convert.text import write_embeddings

    shape = write_embeddings(options.model, options.prompts, options.out, dtype=options.dtype)
    print(f"{options.out}: embeddings {shape} float16")


def _prompts(argv: Sequence[str]) -> None:
    parser = _parser(
        "prompts",
        "Write what `convert text` wants for a dataset: every instruction of its training and "
        "validation splits once. A prompt's embedding takes 1.85 MB.",
        example="--data bridge_dataset/1.0.0 --out prompts.txt",
    )
    parser.add_argument("--data", type=pathlib.Path, required=True, metavar="ROOT")
    parser.add_argument(
        "--declaration",
        default="auto",
        metavar="FILE",
        help="what describes a dataset that the package does not know (docs/data.md)",
    )
    parser.add_argument("--out", type=pathlib.Path, required=True, metavar="FILE", help="new file")
    options = parser.parse_args(argv)
    from convert.prompts import write_prompts

    count = write_prompts(options.data, options.out, declaration=options.declaration)
    print(f"{options.out}: {count} prompts")


VERBS = {
    "import": ("networks, tokenizer and scheduler of a diffusers directory", _import),
    "verify": ("a conversion against diffusers, module by module (needs torch)", _verify),
    "export": ("a converted folder or a trained run for other programs", _export),
    "inspect": ("every tensor of a folder or file, and where it goes", _inspect),
    "prompts": ("the distinct instructions of a robot dataset, one a line", _prompts),
    "text": ("text embeddings of prompts", _text),
}

if __name__ == "__main__":
    run_command(main)
