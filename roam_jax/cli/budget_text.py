"""The budget of a step as aligned text."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

GB = 1e9
# What a device holds through the step, as it is spelt out.
HELD = {
    "frozen": "frozen parameters",
    "trained": "trained parameters, float32",
    "optimizer": "optimizer",
    "average": "average of what trains",
    "counters": "counters",
    "batch": "batch",
}


def budget_lines(found: Mapping[str, Any]) -> Iterator[str]:
    """The report of `cli.budget`, section by section."""
    yield f"{found['name']}: {_setting(found)}"
    for sentence in found["assumed"]:
        yield f"  assumed: {sentence}"
    yield ""
    yield from byte_lines(found["bytes"])
    yield ""
    yield from flop_lines(found["flops"], found["devices"])
    if found["collectives"] is not None:
        yield ""
        yield from collective_lines(found["collectives"], found["bytes"]["compiled"]["platform"])
    yield ""
    yield from time_lines(found["seconds"], compiled=found["collectives"] is not None)
    if (change := found.get("change")) is not None:
        yield ""
        yield from change_lines(change)


def _setting(found: Mapping[str, Any]) -> str:
    mesh = ", ".join(f"{axis} {size}" for axis, size in found["mesh"].items() if size > 1)
    parts = f" in {found['accumulate']} parts" if found["accumulate"] > 1 else ""
    return (
        f"{found['devices']} x {found['accelerator']['name']}, mesh {mesh or 'of one'}; "
        f"rounds {found['rounds']}, rows a device {found['rows']}{parts}, remat {found['remat']}"
    )


def byte_lines(found: Mapping[str, Any]) -> Iterator[str]:
    """Bytes on each device."""
    yield "on each device                         GB"
    for name, size in found["held"].items():
        if size:
            yield f"  {HELD[name]:<32}{size / GB:9.3f}"
    held = sum(found["held"].values())
    yield f"  {'held through the step, exact':<32}{held / GB:9.3f}"
    kept = found["temporaries"]
    yield (
        f"  {'temporaries, analytic':<32}{kept['analytic'] / GB:9.3f}"
        f"  ({kept['least'] / GB:.2f} to {kept['most'] / GB:.2f})"
    )
    if (compiled := found["compiled"]) is not None:
        note = "the accelerator's dtypes"
        if compiled["platform"] == "cpu":
            note = "CPUs compute in float32: an upper bound of their kind, see docs/scaling.md"
        label = f"temporaries, XLA for {compiled['platform']}"
        yield f"  {label:<32}{compiled['temporaries'] / GB:9.3f}  ({note})"
        yield f"  {'arguments, XLA':<32}{compiled['arguments'] / GB:9.3f}"
        yield f"  {'outputs beside the state, XLA':<32}{compiled['outputs'] / GB:9.3f}"
    yield f"  {'reserved (CUDA, NCCL)':<32}{found['reserved'] / GB:9.3f}"
    verdict = "fits" if found["fits"] else "does not fit"
    yield (
        f"  {'at most, by the analytic account':<32}{found['most'] / GB:9.3f}"
        f"  of {found['memory'] / GB:.1f}: {verdict}"
    )


def flop_lines(found: Mapping[str, Any], devices: int) -> Iterator[str]:
    """FLOPs of a step."""
    units = {"TFLOP": 1e12, "GFLOP": 1e9, "MFLOP": 1e6}
    unit, size = next(((u, n) for u, n in units.items() if found["step"] >= n), ("MFLOP", 1e6))

    def listed(counts: Mapping[str, float]) -> str:
        return ", ".join(f"{name} {count / size:.1f}" for name, count in counts.items())

    yield f"a step: {found['step'] / size:,.1f} {unit} ({listed(found['passes'])})"
    yield f"  {listed(found['parts'])}"
    yield f"  {found['step'] / devices / size:,.1f} {unit} a device, where all is shared evenly"


def collective_lines(found: list[Mapping[str, Any]], platform: str) -> Iterator[str]:
    """What is sent between devices."""
    yield f"sent by each device in a step, as compiled for {platform}"
    if not found:
        yield "  nothing"
        return
    yield f"  {'operation':<20}{'along':<18}{'times':>9}{'GB brought':>13}{'GB sent':>10}"
    for row in found:
        along = " x ".join(row["axes"]) + (" (nodes)" if row["between_nodes"] else "")
        yield (
            f"  {row['operation']:<20}{along:<18}{row['times']:>9,}"
            f"{row['bytes'] / GB:>13.3f}{row['sent'] / GB:>10.3f}"
        )


def time_lines(found: Mapping[str, Any], *, compiled: bool) -> Iterator[str]:
    """Step time and MFU."""
    sent, hidden, bare = "links not known: not compiled", "without links", "without links"
    if compiled:
        sent = f"{_milliseconds(sum(found['links'].values()))} links"
        hidden, bare = "all sending hidden", "nothing hidden"
    yield (
        f"roofline, ms: {_milliseconds(found['products'])} products, "
        f"{_milliseconds(found['memory'])} memory, {sent}"
    )
    yield (
        f"  {_milliseconds(found['roofline'])} ms a step, {hidden}: MFU "
        f"{100 * found['mfu_roofline']:.1f} %"
    )
    yield (
        f"  {_milliseconds(found['expected'])} ms at the share of the roofline that was measured, "
        f"{bare}: MFU {100 * found['mfu_expected']:.1f} %"
    )


def _milliseconds(seconds: float) -> str:
    """Whole ones, or two digits of what is short."""
    return f"{1e3 * seconds:,.0f}" if seconds >= 0.01 or not seconds else f"{1e3 * seconds:.2g}"


def change_lines(change: Mapping[str, Any]) -> Iterator[str]:
    """The smallest change that fits."""
    if change["flags"] is None:
        yield (
            "nothing that was tried fits (parts of the batch, remat, fsdp, sequence, tensor): "
            "expected more devices or memory, or a smaller batch"
        )
        return
    yield f"the smallest change that fits: {change['flags']}"
    yield f"with it: {_setting(change)}"
    yield from byte_lines(change["bytes"])
    if change["collectives"] is not None:
        yield from collective_lines(change["collectives"], change["bytes"]["compiled"]["platform"])
    yield from time_lines(change["seconds"], compiled=change["collectives"] is not None)
