"""Command line of the weight conversion; `python -m convert VERB --help` has an example each."""

from __future__ import annotations

import argparse
import contextlib
import pathlib
import sys
from collections.abc import Iterator, Sequence

from roam_jax.cogvideox.importing import import_diffusers
from roam_jax.cogvideox.load import fingerprint


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one verb; returns the exit code, 0 only on success."""
    args = _parser().parse_args(argv)
    try:
        args.run(args)
    except (ValueError, OSError, ImportError) as error:
        print(f"convert {args.verb}: {error}", file=sys.stderr)
        return 1
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m convert", description=__doc__)
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")
    for add in (_add_import, _add_verify, _add_text, _add_prompts, _add_export):
        add(verbs)
    return parser


def _add_import(verbs) -> None:
    add = verbs.add_parser(
        "import",
        help="transformer and VAE from a diffusers directory",
        description="Converts the safetensors of transformer/ and vae/, whichever are there. "
        "dtypes are kept, every tensor is accounted for, pickles are refused.",
        epilog="example: python -m convert import --src CogVideoX-2b --dst weights/cogvideox-2b",
    )
    add.add_argument("--src", type=pathlib.Path, required=True, metavar="DIFFUSERS_DIR")
    add.add_argument("--dst", type=pathlib.Path, required=True, metavar="DIR", help="new folder")
    add.set_defaults(run=_import)


def _add_verify(verbs) -> None:
    add = verbs.add_parser(
        "verify",
        help="a conversion against diffusers, module by module (needs torch and diffusers)",
        description="Compares the stored tensors, every module and the whole of transformer/ and "
        "vae/, whichever are there, in float32 on seeded random inputs. Exit code 0: all within "
        "their bounds.",
        epilog="example: python -m convert verify --src CogVideoX-2b --dst weights/cogvideox-2b",
    )
    add.add_argument("--src", type=pathlib.Path, required=True, metavar="DIFFUSERS_DIR")
    add.add_argument(
        "--dst",
        type=pathlib.Path,
        metavar="DIR",
        help="its conversion (default: one is made in a temporary folder)",
    )
    add.add_argument(
        "--bound",
        type=float,
        metavar="ERROR",
        help="relative L2 error that a module may have (default: 1e-5 in the transformer, 3e-5 in "
        "the VAE); stored tensors must be equal",
    )
    add.set_defaults(run=_verify)


def _add_text(verbs) -> None:
    add = verbs.add_parser(
        "text",
        help="T5 embeddings of prompts (needs torch and transformers)",
        description="Writes a safetensors file with `embeddings` (prompts, 226, D) float16 and the "
        "prompts as JSON in its metadata. Prompts are padded to 226 tokens and padding is "
        "attended, as CogVideoX was trained.",
        epilog="example: python -m convert text --model CogVideoX-2b --prompts prompts.txt "
        "--out text.safetensors",
    )
    add.add_argument("--model", type=pathlib.Path, required=True, metavar="DIFFUSERS_DIR")
    add.add_argument(
        "--prompts",
        type=pathlib.Path,
        required=True,
        metavar="FILE",
        help="one prompt a line; an empty line is the empty prompt",
    )
    add.add_argument("--out", type=pathlib.Path, required=True, metavar="FILE", help="new file")
    add.add_argument(
        "--dtype",
        choices=("float32", "bfloat16"),
        default="float32",
        help="compute dtype: 19 GB of memory for T5-XXL, or 9.5 GB (default: %(default)s)",
    )
    add.set_defaults(run=_text)


def _add_prompts(verbs) -> None:
    add = verbs.add_parser(
        "prompts",
        help="the distinct instructions of a robot dataset, one a line",
        description="Writes what `convert text` wants for a dataset: every instruction of its "
        "training and validation splits once. A prompt's embedding takes 1.85 MB.",
        epilog="example: python -m convert prompts --data bridge_dataset/1.0.0 --out prompts.txt",
    )
    add.add_argument("--data", type=pathlib.Path, required=True, metavar="ROOT")
    add.add_argument(
        "--declaration",
        default="auto",
        metavar="FILE",
        help="what describes a dataset that the package does not know (docs/data.md)",
    )
    add.add_argument("--out", type=pathlib.Path, required=True, metavar="FILE", help="new file")
    add.set_defaults(run=_prompts)


def _add_export(verbs) -> None:
    add = verbs.add_parser(
        "export",
        help="a pretrained transformer or VAE as a diffusers directory",
        description="Writes what a run with train.task = video or vae trained, in float16.",
        epilog="example: python -m convert export --workdir runs/tiny_backbone --dst exported",
    )
    add.add_argument("--workdir", type=pathlib.Path, required=True, metavar="DIR")
    add.add_argument("--dst", type=pathlib.Path, required=True, metavar="DIR", help="new folder")
    add.add_argument("--step", type=int, help="which checkpoint (default: the latest)")
    add.set_defaults(run=_export)


def _import(args: argparse.Namespace) -> None:
    for name, manifest in import_diffusers(args.src, args.dst).items():
        dtypes = ", ".join(f"{count} {dtype}" for dtype, count in manifest.dtypes.items())
        size = f"{manifest.bytes / 1e6:,.1f} MB"
        print(
            f"{args.dst / name}: {manifest.parameters:,} parameters in {manifest.tensors} tensors "
            f"({dtypes}), {size}, fingerprint {fingerprint(args.dst / name)}"
        )


def _verify(args: argparse.Namespace) -> None:
    with _extra_needed():
        from convert.verify import table, verify
    rows = verify(args.src, args.dst, bound=args.bound)
    print(table(rows))
    wrong = [row for row in rows if not row.ok]
    if wrong:
        raise ValueError(f"{len(wrong)} of {len(rows)} comparisons are beyond their bounds")
    print(f"all {len(rows)} comparisons are within their bounds")


@contextlib.contextmanager
def _extra_needed() -> Iterator[None]:
    """Says how to install what an import lacks."""
    try:
        yield
    except ImportError as error:
        hint = "`pip install -e '.[convert]'` in the checkout installs it"
        raise ImportError(f"{error}; {hint}") from error


def _text(args: argparse.Namespace) -> None:
    with _extra_needed():
        from convert.text import write_embeddings
    shape = write_embeddings(args.model, args.prompts, args.out, dtype=args.dtype)
    print(f"{args.out}: embeddings {shape} float16")


def _prompts(args: argparse.Namespace) -> None:
    from roam_jax.data.dataset import EpisodeReader
    from roam_jax.data.declaration import load_declaration

    if args.out.exists():
        raise FileExistsError(f"{args.out} exists: remove it, or choose another file")
    chosen, split = {}, "train"
    if declaration := load_declaration(args.declaration):
        cameras = tuple(declaration.cameras)[:1]
        chosen, split = {"declaration": declaration, "cameras": cameras}, declaration.splits[0]
    train = EpisodeReader(args.data, split, **chosen)
    val = EpisodeReader(args.data, train.declaration.splits[1], **chosen)
    prompts = sorted({*train.headers.instructions, *val.headers.instructions})
    broken = [prompt for prompt in prompts if "\n" in prompt]
    if broken:
        raise ValueError(f"{args.data}: instruction {broken[0]!r} has more than one line")
    args.out.write_text("".join(f"{prompt}\n" for prompt in prompts), encoding="utf-8")
    print(f"{args.out}: {len(prompts)} prompts")


def _export(args: argparse.Namespace) -> None:
    from convert.export import export_run  # builds data and model: not needed by the other verbs

    print(export_run(args.workdir, args.dst, step=args.step))


if __name__ == "__main__":
    sys.exit(main())
