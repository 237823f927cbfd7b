"""The published size on a CPU: `python benchmarks/full_size.py [--parts import,forward,gradient]`.

diffusers itself writes random float16 weights of the 2B transformer (3.4 GB). Then each part runs
in a process of its own, on two cores, in float32:

- import: `import_diffusers`, its time and memory; source in the page cache, result on the disk;
- forward: 226 text and 48 video tokens against diffusers in torch, the two alternated;
- gradient: of the loop parameters and the pooled decoder of a graft with 3 rounds, same tokens.

Memory is read from /proc while a part runs: anonymous memory (RssAnon) is what the process holds
itself, mapped memory (RssFile) are pages of the weights files, which the system takes back when it
needs them. Prints a line of JSON a part, then a table; the exit code is 1 where a figure is beyond
what is required. 24 GB of memory are needed for torch's float32 copy beside ours, 7 GB of disk.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import dataclasses
import json
import multiprocessing
import os
import pathlib
import platform
import re
import resource
import shutil
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from importlib import metadata
from typing import Any

THREADS = 2
SOURCE, CONVERTED = "diffusers", "converted"
# Two latent frames of 8x12 pixels: 2 x 4 x 6 video tokens.
LATENTS, TEXT = (1, 2, 16, 8, 12), (1, 226, 4096)
ROUNDS = 3
GB = 1e9
# part -> figure -> the most that it may be.
REQUIRED = {
    "import": {"seconds": 20, "anonymous_gb": 5},
    "forward": {"relative_l2": 5e-6, "time_ratio": 1.0},
    "gradient": {"resident_gb": 12, "not_finite": 0},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--parts", default=",".join(REQUIRED), help="default: %(default)s")
    parser.add_argument("--dir", type=pathlib.Path, help="where weights are kept; default: removed")
    parser.add_argument("--repeats", type=int, default=5, help="of every timing")
    args = parser.parse_args()
    parts = args.parts.split(",")
    if unknown := set(parts) - REQUIRED.keys():
        parser.error(f"--parts {', '.join(unknown)}: expected some of {', '.join(REQUIRED)}")

    # Before anything starts its threads; the processes of the parts inherit it.
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:THREADS])
    print(json.dumps({"machine": machine()}), flush=True)
    with tempfile.TemporaryDirectory() as temporary:
        folder = args.dir or pathlib.Path(temporary)
        if not (folder / SOURCE).exists():
            alone(write_weights, folder)
        if "import" not in parts and not (folder / CONVERTED).exists():
            alone(measure_import, folder, 1)
        found = {}
        for part in parts:
            found[part] = alone(PARTS[part], folder, args.repeats)
            print(json.dumps({"part": part, **found[part]}), flush=True)
    sys.exit(0 if report(found) else 1)


def alone(function: Callable, *args) -> Any:
    """What the function returns in a fresh process."""
    context = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(1, mp_context=context) as pool:
        return pool.submit(function, *args).result()


def machine() -> dict[str, Any]:
    lines = pathlib.Path("/proc/cpuinfo").read_text().splitlines()
    cpu = [line for line in lines if line.startswith("model name")]
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return {
        "cpu": cpu[0].split(":")[1].strip() if cpu else platform.processor(),
        "threads": THREADS,
        "memory_gb": round(memory / GB, 1),
        **{name: metadata.version(name) for name in ("jax", "torch", "diffusers")},
    }


def report(found: dict[str, dict[str, Any]]) -> bool:
    """Prints every required figure; whether all are reached."""
    print(f"{'part':<10}{'figure':<16}{'measured':>12}{'required':>12}")
    reached = True
    for part, figures in found.items():
        for name, limit in REQUIRED[part].items():
            ok = figures[name] <= limit
            reached &= ok
            mark = "" if ok else "  beyond"
            print(f"{part:<10}{name:<16}{figures[name]:>12.4g}{limit:>12.4g}{mark}")
    return reached


@dataclasses.dataclass
class Watch:
    """Largest resident memory while it is entered, in bytes, sampled; what else kept cores busy.

    `resident` is the largest sum of the two at one moment; `other_cores` is the time that other
    processes computed for, over the time that passed; far from 0, timings are worth little.
    """

    anonymous: int = 0
    mapped: int = 0
    resident: int = 0
    other_cores: float = 0.0
    every_s: float = 0.02

    def __enter__(self) -> Watch:
        self._left = threading.Event()
        self._thread = threading.Thread(target=self._sample, daemon=True)
        self._thread.start()
        self._began, self._others = time.perf_counter(), _seconds_of_others()
        return self

    def __exit__(self, *_) -> None:
        passed = time.perf_counter() - self._began
        self.other_cores = max(0.0, (_seconds_of_others() - self._others) / passed)
        self._left.set()
        self._thread.join()

    def _sample(self) -> None:
        while True:
            status = pathlib.Path("/proc/self/status").read_text()
            anonymous, mapped = (
                int(re.search(rf"{name}:\s*(\d+) kB", status)[1]) << 10
                for name in ("RssAnon", "RssFile")
            )
            self.anonymous = max(self.anonymous, anonymous)
            self.mapped = max(self.mapped, mapped)
            self.resident = max(self.resident, anonymous + mapped)
            if self._left.wait(self.every_s):
                return

    def figures(self) -> dict[str, float]:
        """The three sizes in GB, and the cores."""
        names = ("anonymous", "mapped", "resident")
        sizes = {f"{name}_gb": round(getattr(self, name) / GB, 3) for name in names}
        return {**sizes, "other_cores": round(self.other_cores, 2)}


def _seconds_of_others() -> float:
    """CPU seconds of every process but this one, since the machine started."""
    user, nice, system, _, _, *interrupts = map(
        int, pathlib.Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:8]
    )
    busy = (user + nice + system + sum(interrupts)) / os.sysconf("SC_CLK_TCK")
    return busy - time.process_time()


def spread(name: str, seconds: Sequence[float]) -> dict[str, Any]:
    """Median under `name`, and the range."""
    return {
        name: round(statistics.median(seconds), 3),
        f"{name}_range": [round(min(seconds), 3), round(max(seconds), 3)],
    }


def write_weights(folder: pathlib.Path) -> None:
    """Random float16 weights with which activations stay about as large as with trained ones."""
    import diffusers
    import torch

    with torch.device("meta"):
        model = diffusers.CogVideoXTransformer3DModel()
    generator = torch.Generator().manual_seed(0)

    def draw(name: str, shape: torch.Size) -> torch.Tensor:
        values = torch.randn(shape, generator=generator)
        if values.ndim == 1:
            values = 0.1 * values + (1 if "norm" in name and name.endswith("weight") else 0)
        else:
            # Modulations are small: adaLN-Zero starts them at 0.
            values *= 0.02 if "norm" in name else (values[0].numel()) ** -0.5
        return values.half()

    weights = {name: draw(name, tensor.shape) for name, tensor in model.state_dict().items()}
    model.load_state_dict(weights, assign=True)
    model.save_pretrained(folder / SOURCE / "transformer")


def measure_import(folder: pathlib.Path, repeats: int) -> dict[str, Any]:
    from roam_jax.cogvideox.importing import import_diffusers

    def convert():
        shutil.rmtree(folder / CONVERTED, ignore_errors=True)
        began = time.perf_counter()
        import_diffusers(folder / SOURCE, folder / CONVERTED)
        return time.perf_counter() - began

    with Watch() as watch:
        seconds = [convert() for _ in range(repeats)]
    cpu = resource.getrusage(resource.RUSAGE_SELF)
    return {
        **spread("seconds", seconds),
        "user_seconds": round(cpu.ru_utime / repeats, 3),
        "system_seconds": round(cpu.ru_stime / repeats, 3),
        **watch.figures(),
    }


def inputs() -> tuple:
    import numpy as np

    rng = np.random.default_rng(0)
    latents, text = (rng.standard_normal(shape, np.float32) for shape in (LATENTS, TEXT))
    return latents, text, np.array([500])


def mapped_params(folder: pathlib.Path) -> tuple:
    """Config and parameters of the transformer; on a CPU the device's arrays are the file's."""
    import jax

    from roam_jax.cogvideox.load import load_transformer

    module, params = load_transformer(folder / CONVERTED)
    return module, jax.device_put(params)


def measure_forward(folder: pathlib.Path, repeats: int) -> dict[str, Any]:
    import jax
    import numpy as np
    import torch
    from against_torch import alternate, relative_error

    torch.set_num_threads(THREADS)
    with Watch() as watch:
        began = time.perf_counter()
        module, params = mapped_params(folder)
        loaded = time.perf_counter()
        arguments = {"params": params}, *inputs()
        apply = jax.jit(module.apply).lower(*arguments).compile()
        compiled = time.perf_counter()
        ours = np.asarray(apply(*arguments))
        first = time.perf_counter()
    model, tensors = torch_model(folder / SOURCE), [torch.from_numpy(x) for x in inputs()]
    with torch.inference_mode(), Watch() as timing:
        theirs = model(*tensors).sample.numpy()
        runs = [lambda: apply(*arguments).block_until_ready(), lambda: model(*tensors)]
        (our_times, their_times), _ = alternate(runs, repeats=repeats)
    pairs = zip(our_times.seconds, their_times.seconds, strict=True)
    return {
        "relative_l2": relative_error([ours], [theirs]),
        **spread("time_ratio", [mine / other for mine, other in pairs]),
        **spread("ours_seconds", our_times.seconds),
        **spread("torch_seconds", their_times.seconds),
        "load_seconds": round(loaded - began, 3),
        "compile_seconds": round(compiled - loaded, 3),
        "first_call_seconds": round(first - compiled, 3),
        "temporary_gb": round(apply.memory_analysis().temp_size_in_bytes / GB, 3),
        **watch.figures(),
        "other_cores": round(timing.other_cores, 2),
    }


def torch_model(source: pathlib.Path) -> Any:
    """diffusers' transformer in float32, without the time that its own initialisation takes."""
    import diffusers
    import safetensors
    import torch

    with torch.device("meta"):
        model = diffusers.CogVideoXTransformer3DModel()
    weights = {}
    for path in sorted((source / "transformer").glob("*.safetensors")):
        with safetensors.safe_open(path, "pt") as file:
            weights |= {key: file.get_tensor(key).float() for key in file.keys()}  # noqa: SIM118
    model.load_state_dict(weights, assign=True)
    return model.eval()


def measure_gradient(folder: pathlib.Path, repeats: int) -> dict[str, Any]:
    import jax
    import jax.numpy as jnp
    import numpy as np
    from against_torch import alternate, bare_graft

    from roam_jax.cogvideox.graft_config import trainable_patterns
    from roam_jax.train import names
    from roam_jax.train.state import merge, partition

    def loss(trainable, frozen, *arguments):
        outputs, _ = model.apply({"params": merge(trainable, frozen)}, *arguments, rounds=ROUNDS)
        return sum(jnp.square(value).mean() for value in outputs.values())

    with Watch() as watch:
        module, frozen = mapped_params(folder)
        model = bare_graft(module.config, LATENTS, rounds=ROUNDS, gate="identity")
        arguments = (*inputs(), {})
        shapes = jax.eval_shape(lambda: model.init(jax.random.key(0), *arguments, rounds=1))
        trainable, _ = partition(shapes["params"], trainable_patterns("full"))
        rng = np.random.default_rng(0)
        draw = lambda x: (0.1 * rng.standard_normal(x.shape)).astype(np.float32)  # noqa: E731
        trainable = jax.tree.map(draw, trainable)
        began = time.perf_counter()
        step = jax.jit(jax.value_and_grad(loss)).lower(trainable, frozen, *arguments).compile()
        compile_seconds = time.perf_counter() - began
        _, gradients = jax.block_until_ready(step(trainable, frozen, *arguments))
        run = lambda: jax.block_until_ready(step(trainable, frozen, *arguments))  # noqa: E731
        (times,), _ = alternate([run], repeats=repeats)
    gradients = names.flatten(gradients)
    analysis = step.memory_analysis()
    return {
        "parameters": {name: int(g.size) for name, g in gradients.items()},
        "gradient_norms": {name: float(jnp.linalg.norm(g)) for name, g in gradients.items()},
        "not_finite": int(sum((~np.isfinite(g)).sum() for g in gradients.values())),
        **spread("seconds", times.seconds),
        "compile_seconds": round(compile_seconds, 3),
        "temporary_gb": round(analysis.temp_size_in_bytes / GB, 3),
        "arguments_gb": round(analysis.argument_size_in_bytes / GB, 3),
        **watch.figures(),
    }


PARTS = {"import": measure_import, "forward": measure_forward, "gradient": measure_gradient}


if __name__ == "__main__":
    main()
