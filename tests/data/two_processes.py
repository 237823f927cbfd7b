"""One process of two on loopback: `python -m tests.data.two_processes I PORT ROOT AXIS`.

All devices lie along the mesh axis AXIS. Prints a JSON line for each of 11 batches: its own rows,
and shape and sum of the global frames.
"""

import json
import sys

import jax
import numpy as np

from roam_jax.contracts import ArraySpec, TimeSpec
from roam_jax.data.cached_statistics import compute_statistics
from roam_jax.data.dataset import EpisodeReader
from roam_jax.data.loader import make_loader
from roam_jax.data.options import WindowOptions
from roam_jax.data.position import Process
from roam_jax.data.windows import WindowSource
from roam_jax.train.sharding import batch_shapes, make_mesh, put_batch
from roam_jax.train.shares import share_of


def main(number, port, root, axis):
    jax.distributed.initialize(f"localhost:{port}", num_processes=2, process_id=number)
    reader = EpisodeReader(root, "train")
    options = WindowOptions(time=TimeSpec(frames=5, t_current=1), image_size=(8, 8))
    source = WindowSource(reader, options, statistics=compute_statistics(reader))
    mesh = make_mesh(**{"data": 1, axis: -1})
    loader = make_loader(source, batch_size=4, seed=7, process=Process(*share_of(mesh)))
    spec = {n: ArraySpec((4, *np.shape(x)), np.asarray(x).dtype) for n, x in source[0].items()}
    shapes = batch_shapes(spec, mesh)
    add = jax.jit(lambda frames: frames.astype("int32").sum())
    for _ in range(11):
        batch = next(loader)
        frames = put_batch(batch, shapes)["frames"]
        rows = np.stack([batch["episode"], batch["start"]], axis=1)
        told = {"rows": rows.tolist(), "shape": frames.shape, "total": int(add(frames))}
        print(f"\n{json.dumps(told)}", flush=True)


if __name__ == "__main__":
    main(int(sys.argv[1]), *sys.argv[2:])
