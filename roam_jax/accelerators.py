"""What accelerators can do, by their vendors' data sheets: rates of products, memory, links.

Rates are those of dense products (no structured sparsity) at boost clocks; no program reaches them.
They are the denominators of MFU and the ceilings of a roofline. Sources: NVIDIA's data sheets of
A100, H100, H200, HGX B200, A10, L4, L40S and RTX A6000, the Ada and GA102 architecture papers for
RTX 4090 and 3090; the network of the DGX (HGX) system of each generation.
"""

from __future__ import annotations

import dataclasses

from roam_jax.spelling import check_choice

GB, TERA = 10**9, 1e12


@dataclasses.dataclass(frozen=True)
class Accelerator:
    """One kind of device.

    Args:
        name: short name for command lines, such as "a100-40".
        device_kinds: what `jax.Device.device_kind` says of it.
        bf16_flops: FLOP/s of bfloat16 products that accumulate in float32.
        float32_flops: FLOP/s of float32 products at JAX's default precision, which is TF32 on
            these devices.
        memory: bytes of device memory by its label, 10^9 a gigabyte.
        bandwidth: bytes/s from and to device memory.
        link: bytes/s in one direction, from a device to others of its node: NVLink, or PCIe where
            there is none.
        network: bytes/s of a device to other nodes: its share of what the vendor's system has, or
            of 100 Gbit/s among four devices where there is no such system.
    """

    name: str
    device_kinds: tuple[str, ...]
    bf16_flops: float
    float32_flops: float
    memory: int
    bandwidth: float
    link: float
    network: float


def _accelerator(
    name: str,
    kinds: tuple[str, ...],
    *,
    bf16: float,
    tf32: float,
    gigabytes: int,
    bandwidth: float,
    link: float = 32.0,
    network: float = 3.125,
) -> Accelerator:
    """From teraFLOP/s and gigabytes (a second); a link of 32 GB/s is PCIe 4.0 x16."""
    return Accelerator(
        name=name,
        device_kinds=kinds,
        bf16_flops=bf16 * TERA,
        float32_flops=tf32 * TERA,
        memory=gigabytes * GB,
        bandwidth=float(bandwidth * GB),
        link=float(link * GB),
        network=network * GB,
    )


# Of HDR, 200 Gbit/s a device, and of NDR, 400 Gbit/s, in GB/s.
HDR, NDR = 25.0, 50.0

ACCELERATORS = (
    _accelerator(
        "a100-40",
        ("NVIDIA A100-SXM4-40GB", "A100-SXM4-40GB"),
        bf16=312,
        tf32=156,
        gigabytes=40,
        bandwidth=1555,
        link=300,
        network=HDR,
    ),
    _accelerator(
        "a100-80",
        ("NVIDIA A100-SXM4-80GB", "A100-SXM4-80GB"),
        bf16=312,
        tf32=156,
        gigabytes=80,
        bandwidth=2039,
        link=300,
        network=HDR,
    ),
    _accelerator(
        "a100-40-pcie",
        ("NVIDIA A100-PCIE-40GB", "A100-PCIE-40GB"),
        bf16=312,
        tf32=156,
        gigabytes=40,
        bandwidth=1555,
    ),
    _accelerator(
        "a100-80-pcie",
        ("NVIDIA A100 80GB PCIe",),
        bf16=312,
        tf32=156,
        gigabytes=80,
        bandwidth=1935,
    ),
    _accelerator(
        "h100",
        ("NVIDIA H100 80GB HBM3",),
        bf16=989,
        tf32=494,
        gigabytes=80,
        bandwidth=3350,
        link=450,
        network=NDR,
    ),
    _accelerator(
        "h100-pcie",
        ("NVIDIA H100 PCIe",),
        bf16=756,
        tf32=378,
        gigabytes=80,
        bandwidth=2000,
        link=64,
    ),
    _accelerator(
        "h200",
        ("NVIDIA H200",),
        bf16=989,
        tf32=494,
        gigabytes=141,
        bandwidth=4800,
        link=450,
        network=NDR,
    ),
    _accelerator(
        "b200",
        ("NVIDIA B200",),
        bf16=2250,
        tf32=1125,
        gigabytes=180,
        bandwidth=7700,
        link=900,
        network=NDR,
    ),
    _accelerator("l40s", ("NVIDIA L40S",), bf16=362, tf32=183, gigabytes=48, bandwidth=864),
    _accelerator("l4", ("NVIDIA L4",), bf16=121, tf32=60, gigabytes=24, bandwidth=300),
    _accelerator("a10g", ("NVIDIA A10G",), bf16=70, tf32=35, gigabytes=24, bandwidth=600),
    _accelerator("a10", ("NVIDIA A10",), bf16=125, tf32=62.5, gigabytes=24, bandwidth=600),
    _accelerator(
        "a6000", ("NVIDIA RTX A6000",), bf16=154.8, tf32=77.4, gigabytes=48, bandwidth=768
    ),
    _accelerator(
        "rtx4090",
        ("NVIDIA GeForce RTX 4090",),
        bf16=165.2,
        tf32=82.6,
        gigabytes=24,
        bandwidth=1008,
    ),
    _accelerator(
        "rtx3090",
        ("NVIDIA GeForce RTX 3090",),
        bf16=71,
        tf32=35.6,
        gigabytes=24,
        bandwidth=936,
    ),
)


def by_device_kind(kind: str) -> Accelerator | None:
    """The accelerator that JAX names so; None of kinds that the table lacks, CPUs among them.

    Args:
        kind: `jax.Device.device_kind`.
    """
    return next((each for each in ACCELERATORS if kind in each.device_kinds), None)


def by_name(name: str) -> Accelerator:
    """The accelerator of a short name.

    Args:
        name: such as "a100-40".

    Raises:
        ValueError: no accelerator has this name.
    """
    known = {each.name: each for each in ACCELERATORS}
    check_choice("accelerator", name, known)
    return known[name]
