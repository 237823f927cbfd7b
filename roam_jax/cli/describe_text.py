"""Reports on a config as aligned text of at most 100 columns."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from roam_jax.contracts import ArraySpec
from roam_jax.viz.edges import kind_label

WIDTH = 100
MIB = 2**20


def report_lines(report: Mapping[str, Any]) -> Iterator[str]:
    """The report of `evaluate.description.describe`, section by section."""
    config = report["config"]
    yield f"{report['name']}: task {config['train']['task']}, batch {config['train']['batch_size']}"
    for sentence in report["assumed"]:
        yield f"  assumed: {sentence}"
    for title, canvas in _canvases(report):
        yield ""
        if title:
            yield f"{title}:"
        yield from region_lines(canvas["canvas"])
        yield from cell_lines(canvas["canvas"].get("cells_of", ()))
        yield ""
        yield from topology_lines(canvas)
    yield ""
    yield from parameter_lines(report["parameters"]["groups"])
    if "policies" in report["parameters"]:
        yield from policy_lines(report["parameters"]["policies"], chosen=config["freeze"])
    yield ""
    yield from flop_lines(report["flops"], config)
    yield ""
    kept = {row["rounds"]: row["kept_bytes"] for row in report["flops"]["rounds"]}
    encodes = report["flops"]["vae_encoding"] > 0
    yield from byte_lines(report["bytes"], report["backend"], kept=kept, encodes=encodes)


def _canvases(report: Mapping[str, Any]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Title and report of each canvas: of none, of the one, or of every body."""
    if "canvas" in report:
        yield "", report
    yield from report.get("bodies", {}).items()


def topology_lines(report: Mapping[str, Any]) -> Iterator[str]:
    """Edges, plan and slices of a report with a canvas and a topology."""
    topology = report["topology"]
    yield from edge_lines(topology, [region["name"] for region in report["canvas"]["regions"]])
    yield ""
    yield from plan_lines(topology["plan"])
    if "slices" in topology:  # a canvas model always computes all its cells
        yield from slice_lines(topology["slices"])


def region_lines(canvas: Mapping[str, Any]) -> Iterator[str]:
    """A line for each region."""
    grid = " x ".join(map(str, canvas["grid"]))
    name_width = _width(region["name"] for region in canvas["regions"])
    yield f"canvas {grid} (t, h, w), width {canvas['width']:,}: {canvas['cells']:,} cells"
    yield (
        f"  {'region':<{name_width}}{'cells':>7}  {'box t, h, w':<20}{'period':>6}  "
        f"{'real frames':<14}{'predicted from':<16}{'loss weight':>11}"
    )
    for region in canvas["regions"]:
        box = ", ".join(f"{a}:{b}" for a, b in zip(*[iter(region["bounds"])] * 2, strict=True))
        predicted = region["predicted_frames"]
        start = f"frame {predicted[0]}" if predicted else "-"
        weight = f"{region['loss_weight']:g}" if predicted else "-"
        yield (
            f"  {region['name']:<{name_width}}{region['cells']:>7,}  {box:<20}"
            f"{region['period']:>6}  {_frames(region['real_frames']):<14}{start:<16}{weight:>11}"
        )


def cell_lines(cells: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """A line for what each region of a canvas model holds; none of a graft."""
    if not cells:
        return
    width = _width(row["name"] for row in cells)
    yield f"  {'region':<{width}}{'cells of':<12}{'numbers':>8}  {'learned by':<16}{'decoder':<11}"
    for row in cells:
        yield (
            f"  {row['name']:<{width}}{row['kind']:<12}{row['features'] or '-':>8}  "
            f"{row['objective'] or '-':<16}{row['decoder'] or '-':<11}"
        ).rstrip()


def _frames(frames: Sequence[int]) -> str:
    """Such as "0-4", or "0-8 by 2"."""
    if len(frames) == 1:
        return str(frames[0])
    step = frames[1] - frames[0]
    return f"{frames[0]}-{frames[-1]}" + (f" by {step}" if step > 1 else "")


def edge_lines(topology: Mapping[str, Any], regions: Sequence[str]) -> Iterator[str]:
    """A line for each reader and way of reading; edges that differ in `dst` alone share it."""
    ways: dict[tuple, list] = {}
    for edge in topology["edges"]:
        notes = edge["times"], edge["fill"], kind_label(edge["kind"])
        ways.setdefault((edge["src"], edge["weight"], notes), []).append(edge)
    name_width = _width(regions)
    yield f"topology: {len(topology['edges'])} edges; a reader attends to what it reads"
    yield (
        f"  {'reader':<{name_width}}{'reads':<{62 - name_width}}{'weight':>8}{'pairs':>14}"
        f"{'share':>8}"
    )
    for (src, weight, notes), edges in ways.items():
        names = [edge["dst"] for edge in edges]
        reads = "every region" if names == list(regions) else ", ".join(names)
        said = ", ".join(note for note in notes if note)
        wrapped = textwrap.wrap(f"{reads} ({said})", 61 - name_width)
        share = sum(edge["share"] for edge in edges)
        pairs = sum(edge["pairs"] for edge in edges)
        yield (
            f"  {src:<{name_width}}{wrapped[0]:<{62 - name_width}}{weight:>8g}{pairs:>14,}"
            f"{share:>8.1%}"
        )
        yield from (f"  {'':<{name_width}}{line}" for line in wrapped[1:])
    yield f"  {'allowed in all':<70}{topology['pairs']:>14,}{topology['share']:>8.1%}"
    changes = topology.get("changes_to_backbone")
    if changes == []:
        yield "  at initialisation the grafted model equals the backbone, whatever its rounds"
    elif changes:
        yield "  at initialisation the grafted model does NOT equal the backbone:"
        for reason in changes:
            yield from textwrap.wrap(f"    {reason}", WIDTH, subsequent_indent="      ")


def plan_lines(plan: Mapping[str, Any]) -> Iterator[str]:
    """What the attention of a block computes, beside all pairs."""
    if "refused" in plan:
        yield "plan: none, attention cannot run this topology:"
        yield from textwrap.wrap(
            plan["refused"], WIDTH, initial_indent="  ", subsequent_indent="  "
        )
        return
    loops = "1 loop" if plan["loops"] == 1 else f"{plan['loops']} loops"
    how = f"{plan['tiles']:,} {'tile' if plan['tiles'] == 1 else 'tiles'} in {loops}"
    if plan["dense"]:
        how = "all scores, under a mask"
    heads = "1 head" if plan["heads"] == 1 else f"{plan['heads']} heads"
    yield f"plan of a block's attention, {heads} x {plan['width']}, a window: {how}"
    yield f"  {'':<38}{'all pairs':>16}{'planned':>16}{'share':>10}"
    rows = {
        "scores of a head": ("scores", "{:,.0f}".format),
        "FLOPs of both products, forward": ("flops", _si),
        "float32 scores at once, at most, MiB": ("score_bytes", lambda n: f"{n / MIB:,.1f}"),
    }
    for name, (field, written) in rows.items():
        every, planned = plan[field]["all"], plan[field]["planned"]
        yield f"  {name:<38}{written(every):>16}{written(planned):>16}{planned / every:>10.1%}"
    blocks = plan["live_blocks"]
    name = f"blocks of {' x '.join(map(str, blocks['size']))} with a pair"
    yield (
        f"  {name:<38}{blocks['all']:>16,}{blocks['live']:>16,}"
        f"{blocks['live'] / blocks['all']:>10.1%}"
    )
    yield f"  (softmax edges alone, which allow {plan['pairs']:,} pairs)"
    kinds: dict[str, list] = {}
    for edge in plan["edges"]:
        kinds.setdefault(edge["kind"], []).append(edge)
    for kind, edges in kinds.items():
        count = "1 edge" if len(edges) == 1 else f"{len(edges)} edges"
        yield f"  {kind}: {count} beside them, {sum(e['pairs'] for e in edges):,} pairs"


def slice_lines(slices: Mapping[str, Any]) -> Iterator[str]:
    """What the wanted outputs need of all applications of a block."""
    if not slices["wanted"]:
        yield "nothing is left out: the decoder reads blocks on the way, or no loss weighs anything"
        return
    yield (
        f"what is left to compute, of {slices['applications']} applications of a block, "
        "if this is wanted:"
    )
    for row in slices["wanted"]:
        name, regions = row["name"], ", ".join(row["regions"])
        name = name if name == regions else f"{name} ({regions})"
        shares = f"{row['cell_share']:>8.1%} of the cells{row['pair_share']:>8.1%} of the pairs"
        *before, last = textwrap.wrap(name, 50) or [""]
        yield from (f"  {line}" for line in before)
        yield f"  {last:<50}{shares}"


def parameter_lines(groups: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """A line for each group's trained and frozen parameters."""
    yield f"{'parameters':<14}{'':<9}{'count':>15}{'MiB':>11}"
    for row in groups:
        state = "trained" if row["trains"] else "frozen"
        yield f"  {row['group']:<12}{state:<9}{row['count']:>15,}{row['bytes'] / MIB:>11,.1f}"
    yield "  (trained: float32 with gradient and two moments; frozen: as stored)"


def batch_lines(spec: Mapping[str, ArraySpec]) -> Iterator[str]:
    """A line for each field of a batch."""
    yield "batch"
    for name, field in spec.items():
        yield f"  {name:<18}{np.dtype(field.dtype).name:<9}{field.shape}"
    yield f"  {sum(field.nbytes for field in spec.values()) / MIB:.1f} MiB"


def policy_lines(policies: Mapping[str, Mapping[str, int]], *, chosen: str) -> Iterator[str]:
    """What each freeze policy would train, by group."""
    groups = sorted({group for counts in policies.values() for group in counts})
    head = "".join(f"{group:>15}" for group in groups)
    yield f"  {'freeze':<14}{head}{'trained':>16}"
    for policy, counts in policies.items():
        cells = "".join(f"{counts.get(group, 0):>15,}" for group in groups)
        mark = "*" if policy == chosen else ""
        yield f"  {policy + mark:<14}{cells}{sum(counts.values()):>16,}"
    yield "  (* this config)"


def flop_lines(flops: Mapping[str, Any], config: Mapping[str, Any]) -> Iterator[str]:
    """FLOPs of a step by pass, for each number of rounds, and by part for the last."""
    batch, canvas = config["train"]["batch_size"], config["train"]["task"] == "canvas"
    rows = "examples" if canvas else "windows"
    yield f"FLOPs of a training step of {batch} {rows}: matrix products and convolutions, traced"
    columns = ("forward", "recomputed", "backward", "step", "an example" if canvas else "a window")
    yield f"  {'rounds':<8}{''.join(f'{name:>14}' for name in columns)}"
    for row in flops["rounds"]:
        passes = [row["passes"].get(name, 0) for name in columns[:3]]
        numbers = [*passes, row["total"], row["total"] / batch]
        yield f"  {row['rounds'] or '-':<8}{''.join(f'{_si(n):>14}' for n in numbers)}"
    last = flops["rounds"][-1]
    parts = sorted(last["parts"].items(), key=lambda item: -item[1])
    shares = [f"{part} {count / last['total']:.1%}" for part, count in parts]
    yield from textwrap.wrap("  last line: " + "; ".join(shares), WIDTH, subsequent_indent="    ")
    if flops["vae_encoding"]:
        encoding = _si(flops["vae_encoding"])
        data, when = config["data"], ""
        if data["latents"]:
            when = f"; none here, windows come from {data['latents']}"
        elif data["encode_once"]:
            when = f"; none where all windows, at most {data['encode_once']:,}, are encoded once"
        yield f"  VAE encoding adds {encoding} a step{when}"


def byte_lines(
    sizes: Mapping[str, Any], backend: str, *, kept: Mapping[int | None, int], encodes: bool
) -> Iterator[str]:
    """Bytes of a step on each device.

    Args:
        sizes: of the report.
        backend: that the step was traced for.
        kept: number of rounds -> kept for the backward pass by all devices.
        encodes: whether a step may encode videos.
    """
    mesh, device = sizes["mesh"], sizes["device"]
    shape = " x ".join(f"{axis} {size}" for axis, size in mesh.items())
    yield f"bytes on each device of a mesh {shape} (an axis of -1 counts as 1)"
    meaning = {
        "frozen": "frozen weights",
        "trained": "weights that train, float32",
        "gradients": "their gradients",
        "moments": "their two moments",
        "batch": "one batch as it is sent",
        "kept": f"kept for the backward pass, traced for {backend}",
    }
    for name, about in meaning.items():
        yield f"  {about:<48}{device[name] / MIB:>12,.1f} MiB"
    yield f"  {'together':<48}{sum(device.values()) / MIB:>12,.1f} MiB"
    if len(kept) > 1:
        devices = math.prod(mesh.values())
        by_rounds = "; ".join(f"{r}: {size / devices / MIB:,.1f}" for r, size in kept.items())
        yield from textwrap.wrap(
            f"  kept by rounds, MiB: {by_rounds}", WIDTH, subsequent_indent="    "
        )
    vae = ", and the VAE's encoding" if encodes else ""
    yield f"  (on top: what one block and one attention tile recompute{vae})"
    if "compiled" in sizes:
        compiled = sizes["compiled"]
        yield (
            f"  compiled by XLA for one {backend} device: arguments "
            f"{compiled['arguments'] / MIB:,.1f} MiB, temporaries "
            f"{compiled['temporaries'] / MIB:,.1f} MiB"
        )


def _width(names) -> int:
    """Of a column of names, with a gap."""
    return 2 + max(map(len, names))


def _si(number: float) -> str:
    """Three digits and a prefix: 349 T."""
    if number < 1:
        return "0"
    *prefixes, last = "", "k", "M", "G", "T", "P", "E"
    for prefix in prefixes:
        if round(number, 1) < 1000:
            return f"{number:.1f} {prefix}".rstrip()
        number /= 1000
    return f"{number:.1f} {last}"
