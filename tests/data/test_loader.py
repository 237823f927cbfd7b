"""Batches: their order, their resume, workers, processes and mixtures."""

import dataclasses
import itertools
import json
import os
import socket
import subprocess
import sys

import numpy as np
import psutil
import pytest
from absl import logging
from safetensors.numpy import save_file

from roam_jax.contracts import TimeSpec
from roam_jax.data.cached_statistics import compute_statistics
from roam_jax.data.dataset import EpisodeReader
from roam_jax.data.loader import HEEDED_BY_RUNS, make_loader
from roam_jax.data.options import WindowOptions
from roam_jax.data.position import Process
from roam_jax.data.windows import WindowSource
from tests.conftest import ROOT
from tests.data import rlds

TIME = TimeSpec(frames=5, t_current=1)


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("ROAM_CACHE", str(tmp_path / "cache"))


def open_windows(root, *, steps=(8, 8, 10), first=0, member=0, goal="none"):
    episodes = [rlds.StoredEpisode.random(i, n) for i, n in enumerate(steps, start=first)]
    reader = EpisodeReader(rlds.write_dataset(root, {"train": episodes}), "train")
    options = WindowOptions(time=TIME, image_size=(8, 8), goal=goal)
    return WindowSource(reader, options, statistics=compute_statistics(reader), member=member)


@pytest.fixture
def train(tmp_path):
    """11 windows: 3, 3 and 5 of three episodes."""
    return open_windows(tmp_path / "toy")


@pytest.fixture
def mixture(tmp_path):
    """5 windows with a share of 0.25, 11 with 0.75."""
    small = open_windows(tmp_path / "small", steps=(10,), first=20)
    large = open_windows(tmp_path / "large", member=1)
    return [(small, 0.25), (large, 0.75)]


def identities(batch):
    fields = (batch[name].tolist() for name in ("dataset", "episode", "start"))
    return list(zip(*fields, strict=True))


def take(loader, count):
    return [identities(batch) for batch in itertools.islice(loader, count)]


def windows_of(source):
    return [identities({k: v[None] for k, v in source[i].items()})[0] for i in range(len(source))]


def test_a_batch_is_the_windows_stacked(train):
    batch = next(make_loader(train, batch_size=4, seed=0))
    for row, (_, episode, start) in enumerate(identities(batch)):
        window = train[train.window_index(episode, start)]
        assert batch.keys() == window.keys()
        for name, array in window.items():
            np.testing.assert_array_equal(batch[name][row], array)
            assert batch[name].dtype == array.dtype


def test_batch_k_depends_on_seed_and_k_alone(train):
    first = take(make_loader(train, batch_size=3, seed=1), 12)
    assert take(make_loader(train, batch_size=3, seed=1), 12) == first
    assert take(make_loader(train, batch_size=3, seed=2), 12) != first


@pytest.mark.parametrize("batch_size", [1, 4, 16])
def test_every_epoch_holds_every_window_once_in_another_order(train, batch_size):
    # 16 exceeds the 11 windows: batches run on into the next epoch and no window is lost.
    batches = take(make_loader(train, batch_size=batch_size, seed=5), 33 // batch_size + 1)
    order = list(itertools.chain(*batches))
    epochs = [order[:11], order[11:22], order[22:33]]
    assert all(sorted(epoch) == windows_of(train) for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2]


def test_without_shuffling_the_order_is_the_source(train):
    order = itertools.chain(*take(make_loader(train, batch_size=2, seed=0, shuffle=False), 11))
    assert list(order) == windows_of(train) * 2


def test_members_are_mixed_in_their_proportions(mixture):
    order = list(itertools.chain(*take(make_loader(mixture, batch_size=4, seed=3), 22)))
    chosen = np.array([member for member, *_ in order])
    # At no time is a member more than one window from its share.
    wanted = 0.75 * np.arange(1, len(chosen) + 1)
    assert np.abs(np.cumsum(chosen) - wanted).max() <= 1
    # Each member goes through its own epochs, every window once, each time in another order.
    for member, (source, _) in enumerate(mixture):
        own, length = [w for w in order if w[0] == member], len(source)
        epochs = [own[i : i + length] for i in range(0, len(own) - length + 1, length)]
        assert len(epochs) >= 4
        assert all(sorted(epoch) == windows_of(source) for epoch in epochs)
        assert epochs[0] != epochs[1]


def test_resume_gives_the_same_batches(mixture):
    loader = make_loader(mixture, batch_size=4, seed=3)
    expected = take(loader, 9)
    for done in (0, 1, 5, 8):
        loader = make_loader(mixture, batch_size=4, seed=3)
        take(loader, done)
        state = json.loads(json.dumps(loader.get_state()))
        resumed = make_loader(mixture, batch_size=4, seed=3)
        take(resumed, 2)
        resumed.set_state(state)
        assert take(resumed, 9 - done) == expected[done:]


def test_random_goals_are_drawn_anew_and_repeat_on_resume(tmp_path):
    source = open_windows(tmp_path / "toy", goal="uniform")
    loader = make_loader(source, batch_size=11, seed=0)
    goals = []
    for batch in itertools.islice(loader, 3):
        order = np.lexsort((batch["start"], batch["episode"]))
        goals.append(batch["goal_frame"][order])
    assert (goals[0] != goals[1]).any() and (goals[1] != goals[2]).any()
    again = make_loader(source, batch_size=11, seed=0)
    next(again)
    state = again.get_state()
    again = make_loader(source, batch_size=11, seed=0)
    again.set_state(state)
    batch = next(again)
    order = np.lexsort((batch["start"], batch["episode"]))
    np.testing.assert_array_equal(batch["goal_frame"][order], goals[1])


def test_workers_change_nothing_and_may_change(tmp_path, monkeypatch):
    """Bit for bit the same batches from threads, two and three workers, also half-way through."""
    said = []
    monkeypatch.setattr(logging, "info", lambda text, *values: said.append(text % values))
    source = open_windows(tmp_path / "toy", goal="uniform")
    expected = list(itertools.islice(make_loader(source, batch_size=4, seed=3), 10))
    loader = make_loader(source, batch_size=4, seed=3, workers=2)
    found = list(itertools.islice(loader, 4))
    state = json.loads(json.dumps(loader.get_state()))
    assert (state["workers"], state["processes"], state["position"]) == (2, 1, 4)
    loader.close()
    resumed = make_loader(source, batch_size=4, seed=3, workers=3)
    resumed.set_state(state)
    found += list(itertools.islice(resumed, 3))
    state = resumed.get_state()
    resumed.close()
    assert "data goes on with 3 workers where 2 were: batches are the same" in said
    alone = make_loader(source, batch_size=4, seed=3)
    alone.set_state(state)
    found += list(itertools.islice(alone, 3))
    for one, other in zip(expected, found, strict=True):
        assert one.keys() == other.keys()
        for name, array in one.items():
            np.testing.assert_array_equal(other[name], array)


def test_signals_to_a_run_do_not_end_its_workers(tmp_path):
    """Terminals and schedulers signal all processes: the run ends itself, its batches whole."""
    source = open_windows(tmp_path / "toy")
    loader = make_loader(source, batch_size=4, seed=3, workers=1)
    expected = take(make_loader(source, batch_size=4, seed=3), 8)
    found = take(loader, 1)
    children = psutil.Process().children(recursive=True)
    workers = [child for child in children if "resource_tracker" not in str(child.cmdline())]
    assert workers
    for worker, number in itertools.product(workers, HEEDED_BY_RUNS):
        worker.send_signal(number)
    found += take(loader, 7)
    loader.close()
    assert found == expected


ORPHANS = """
import pathlib
import sys
import time

from roam_jax.data.loader import make_loader
from roam_jax.data.position import Process
from tests.data.test_loader import open_windows

if __name__ == "__main__":
    loader = make_loader(open_windows(pathlib.Path(sys.argv[1])), batch_size=4, seed=0, workers=1)
    next(loader)
    print("ready", flush=True)
    time.sleep(60)
"""


def test_workers_do_not_outlive_a_killed_run(tmp_path):
    script = tmp_path / "orphans.py"
    script.write_text(ORPHANS)
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, str(script), str(tmp_path / "toy")]
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as run:
        while run.stdout.readline() != "ready\n":
            assert run.poll() is None
        children = psutil.Process(run.pid).children(recursive=True)
        run.kill()
    _, alive = psutil.wait_procs(children, timeout=20)
    assert children and not alive


@pytest.mark.parametrize("count", [2, 4])
def test_processes_share_every_batch(mixture, count):
    whole = take(make_loader(mixture, batch_size=8, seed=1), 6)
    loaders = [
        make_loader(mixture, batch_size=8, seed=1, process=Process(i, count)) for i in range(count)
    ]
    parts = [take(loader, 6) for loader in loaders]
    for number, batch in enumerate(whole):
        assert list(itertools.chain(*(part[number] for part in parts))) == batch
    # Another number of processes goes on with the same global batches.
    other = make_loader(mixture, batch_size=8, seed=1)
    other.set_state(loaders[0].get_state())
    assert take(other, 2) == take(make_loader(mixture, batch_size=8, seed=1), 8)[6:]


def run_two_processes(tmp_path, train, axis):
    """What each process of a cluster of two says of its batches."""
    environment = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": "--xla_force_host_platform_device_count=2",
        "ROAM_CACHE": str(tmp_path / "cache"),
    }
    arguments = [str(free_port()), str(train.reader.root), axis]
    children = [
        subprocess.Popen(
            [sys.executable, "-m", "tests.data.two_processes", str(i), *arguments],
            cwd=ROOT,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for i in range(2)
    ]
    outputs = [child.communicate(timeout=120) for child in children]
    assert [child.returncode for child in children] == [0, 0], outputs
    return [[json.loads(x) for x in out.splitlines() if x.startswith("{")] for out, _ in outputs]


@pytest.mark.parametrize("axis", ["data", "tensor"])
def test_two_processes_on_loopback_make_the_rows_that_their_devices_need(tmp_path, train, axis):
    """Each reads half of every global batch, or all of it; the devices see all of it."""
    told = run_two_processes(tmp_path, train, axis)
    reference = make_loader(train, batch_size=4, seed=7)
    for number, (first, second) in enumerate(zip(*told, strict=True)):
        batch = next(reference)
        rows = [[episode, start] for _, episode, start in identities(batch)]
        expected = (rows[:2], rows[2:]) if axis == "data" else (rows, rows)
        assert (first["rows"], second["rows"]) == expected, number
        total = int(batch["frames"].astype(np.int64).sum())
        assert first["shape"] == second["shape"] == [4, 5, 8, 8, 3]
        assert first["total"] == second["total"] == total
    # 11 batches of 4 are four epochs of 11 windows; together they hold each window four times.
    makers = told if axis == "data" else told[:1]
    every = [tuple(row) for lines in makers for line in lines for row in line["rows"]]
    assert sorted(every) == sorted([window[1:] for window in windows_of(train)] * 4)


def free_port():
    with socket.socket() as listening:
        listening.bind(("localhost", 0))
        return listening.getsockname()[1]


def test_a_state_of_other_data_is_refused(train, tmp_path):
    state = make_loader(train, batch_size=4, seed=3).get_state()
    with pytest.raises(ValueError, match="seed: saved 3, now 4; batch_size: saved 4, now 2"):
        make_loader(train, batch_size=2, seed=4).set_state(state)
    other = open_windows(tmp_path / "other", first=30)
    with pytest.raises(ValueError, match="fingerprint: saved"):
        make_loader(other, batch_size=4, seed=3).set_state(state)
    with pytest.raises(ValueError, match="no position in"):
        make_loader(train, batch_size=4, seed=3).set_state(
            {k: v for k, v in state.items() if k != "position"}
        )


@pytest.mark.parametrize(
    "change",
    [
        {"cameras": {"image_0": "steps/observation/image_1"}},
        {"reward": None},
        {"embedding": None},
        {"instruction": "episode_metadata/file_path"},
    ],
)
def test_a_declaration_that_reads_something_else_is_other_data(train, change):
    """The same records and the same numbers, but other frames, rewards or texts of them."""
    declaration = dataclasses.replace(train.reader.declaration, **change)
    reader = EpisodeReader(train.reader.root, "train", declaration=declaration)
    options = train.options
    if "embedding" in change:
        texts = np.zeros((3, 1, 8), np.float16)
        path = train.reader.root / "text.safetensors"
        prompts = json.dumps([f"do thing {i}" for i in range(3)])
        save_file({"embeddings": texts}, path, metadata={"prompts": prompts})
        options = dataclasses.replace(options, text=path)
    other = WindowSource(reader, options, statistics=train.statistics)
    state = make_loader(train, batch_size=4, seed=3).get_state()
    with pytest.raises(ValueError, match="fingerprint: saved"):
        make_loader(other, batch_size=4, seed=3).set_state(state)


def test_another_mixture_is_refused(mixture):
    state = make_loader(mixture, batch_size=4, seed=3).get_state()
    reweighted = [(source, 0.5) for source, _ in mixture]
    with pytest.raises(ValueError, match=r"weights: saved \[0.25, 0.75\], now \[0.5, 0.5\]"):
        make_loader(reweighted, batch_size=4, seed=3).set_state(state)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"batch_size": 0}, "train.batch_size = 0: expected at least 1"),
        ({"seed": -1}, "seed = -1: expected"),
        ({"seed": 1 << 32}, "expected 0 <= seed"),
        ({"workers": -1}, "data.workers = -1: expected 0 or more"),
        ({"process": Process(2, 2)}, "process 2 of 2: expected"),
        (
            {"batch_size": 7, "process": Process(0, 4)},
            r"train.batch_size = 7 does not divide by 4 processes \(nearest: 4 or 8\)",
        ),
    ],
)
def test_bad_settings(train, settings, message):
    with pytest.raises(ValueError, match=message):
        make_loader(train, **{"batch_size": 4, "seed": 0, **settings})
