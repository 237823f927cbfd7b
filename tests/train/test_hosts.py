"""Two processes on loopback train as one does, stop together, and refuse what does not fit."""

import argparse
import concurrent.futures
import json
import os
import pathlib
import signal
import socket
import subprocess
import sys

import numpy as np
import pytest

from roam_jax.train import cluster, meeting
from roam_jax.train.cluster import Place, find_place
from roam_jax.train.interrupts import REQUEUE
from roam_jax.train.metrics import read_metrics
from roam_jax.train.shares import share_among
from roam_jax.train.workdir import Workdir

ROOT = pathlib.Path(__file__).resolve().parents[2]


def free_port():
    with socket.socket() as listening:
        listening.bind(("localhost", 0))
        return listening.getsockname()[1]


def start_child(chosen, flags, *, devices):
    environment = os.environ | {
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices} "
        "--xla_backend_optimization_level=0 --xla_cpu_use_fusion_emitters=false",
    }
    command = [sys.executable, "-m", "tests.train.host_child", json.dumps(chosen), *flags]
    return subprocess.Popen(
        command,
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(children):
    """[(exit code, standard error)] of each."""
    try:
        errors = [child.communicate(timeout=180)[1] for child in children]
    finally:
        for child in children:
            child.kill()
    return [(child.returncode, error) for child, error in zip(children, errors, strict=True)]


def run_two(**chosen):
    """Two processes with four fake devices each."""
    port = free_port()
    flags = ["--coordinator", f"localhost:{port}", "--processes", "2", "--process"]
    return finish([start_child(chosen, [*flags, str(i)], devices=4) for i in range(2)])


def run_one(**chosen):
    """One process with eight."""
    (found,) = finish([start_child(chosen, [], devices=8)])
    return found


def losses(workdir):
    rows = read_metrics(Workdir(workdir).metrics_file)
    assert [row["step"] for row in rows] == list(range(1, 13))
    return np.array([row["loss"] for row in rows])


def sizes(workdir):
    rows = read_metrics(Workdir(workdir).metrics_file)
    return [row["eval/size"] for row in rows if "eval/size" in row]


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """Losses of one process with eight devices, and what its evaluations found."""
    workdir = tmp_path_factory.mktemp("alone") / "run"
    code, error = run_one(workdir=[str(workdir)], mesh=[1, 8])
    assert code == 0, error
    return losses(workdir), sizes(workdir)


@pytest.mark.parametrize("mesh", [[8, 1], [1, 8]], ids=["data", "fsdp"])
def test_two_processes_train_as_one_and_one_reads_their_checkpoint(tmp_path, alone, mesh):
    """The second host is told to stop; both stop after one step, and one process goes on."""
    workdir = tmp_path / "run"
    chosen = {"workdir": [str(workdir)], "mesh": mesh}
    stopped = run_two(**chosen, signals={8: signal.SIGTERM})
    assert [code for code, _ in stopped] == [REQUEUE, REQUEUE], stopped
    saved = max(int(path.name) for path in Workdir(workdir).checkpoints.iterdir())
    assert 6 <= saved < 12
    assert len(read_metrics(Workdir(workdir).metrics_file)) == saved
    np.testing.assert_allclose(sizes(workdir), alone[1][:1], rtol=1e-6)
    code, error = run_one(**chosen)
    assert code == 0, error
    np.testing.assert_allclose(losses(workdir), alone[0], rtol=0, atol=1e-6)


def test_two_processes_train_to_the_end(tmp_path, alone):
    workdir = tmp_path / "run"
    found = run_two(workdir=[str(workdir)], mesh=[2, 4])
    assert [code for code, _ in found] == [0, 0], found
    np.testing.assert_allclose(losses(workdir), alone[0], rtol=0, atol=1e-6)
    np.testing.assert_allclose(sizes(workdir), alone[1], rtol=1e-6)


def test_hosts_that_disagree_stop_with_one_message(tmp_path):
    workdir = tmp_path / "run"
    found = run_two(workdir=[str(workdir)], mesh=[1, 8], seeds=[3, 4])
    message = "error: the 2 processes do not run the same: seed: 3 in process 0, 4 in process 1"
    for code, error in found:
        assert code == 2 and message in error, found
    assert not workdir.exists()


def test_hosts_without_a_shared_folder_stop_with_one_message(tmp_path):
    folders = [str(tmp_path / "first"), str(tmp_path / "second")]
    found = run_two(workdir=folders, mesh=[1, 8], shared_seconds=0.5)
    for code, error in found:
        assert code == 2 and "process 1 does not see what process 0 wrote there" in error, found


def test_one_that_fails_takes_the_other_with_it(tmp_path):
    """Which waits within a step, where no exception reaches it."""
    (first, error), (second, other) = run_two(
        workdir=[str(tmp_path / "run")], mesh=[1, 8], broken=5
    )
    assert (first, second) == (2, 2), (error, other)
    assert "process 1 stopped: a broken record" in error
    assert "error: a broken record" in other


def test_one_that_is_killed_ends_the_other(tmp_path):
    chosen = {"workdir": [str(tmp_path / "run")], "mesh": [1, 8], "heartbeat_seconds": 10}
    (first, error), (second, _) = run_two(**chosen, signals={7: signal.SIGKILL})
    assert first not in (0, REQUEUE) and second == -signal.SIGKILL, error


def options(**given):
    parser = argparse.ArgumentParser()
    cluster.add_options(parser)
    return parser.parse_args([f"--{name}={value}" for name, value in given.items()])


SLURM = {
    "SLURM_JOB_ID": "4100",
    "SLURM_STEP_NODELIST": "gpu[007-009,012]",
    "SLURM_STEP_NUM_TASKS": "4",
    "SLURM_STEP_TASKS_PER_NODE": "1(x4)",
    "SLURM_NTASKS": "4",
    "SLURM_NODEID": "2",
    "SLURM_PROCID": "2",
    "SLURM_LOCALID": "0",
    "CUDA_VISIBLE_DEVICES": "0,1,2,3",
}
OPEN_MPI = {
    "OMPI_MCA_orte_hnp_uri": "1314521088.0;tcp://10.96.0.1,10.148.0.1:34911",
    "OMPI_COMM_WORLD_SIZE": "8",
    "OMPI_COMM_WORLD_RANK": "5",
    "OMPI_COMM_WORLD_LOCAL_RANK": "1",
    "OMPI_COMM_WORLD_LOCAL_SIZE": "4",
    "CUDA_VISIBLE_DEVICES": "0,1,2,3",
}


@pytest.mark.parametrize(
    "environment, given, place",
    [
        ({}, {}, None),
        ({}, {"coordinator": "a:1", "processes": 1, "process": 0}, None),
        ({}, {"coordinator": "a:1", "processes": 3, "process": 2}, Place("a:1", 3, 2)),
        (SLURM, {}, Place("gpu007:61444", 4, 2)),
        (SLURM, {"coordinator": "ib007:8476"}, Place("ib007:8476", 4, 2)),
        (SLURM | {"SLURM_STEP_NODELIST": "n1,n2"}, {}, Place("n1:61444", 4, 2)),
        (SLURM | {"SLURM_STEP_NODELIST": "n[1-4]-ib"}, {}, Place("n1-ib:61444", 4, 2)),
        # Four tasks a node: each has a device of its own, unless it sees one alone.
        (
            SLURM | {"SLURM_STEP_TASKS_PER_NODE": "1(x2),4", "SLURM_LOCALID": "3"},
            {},
            Place("gpu007:61444", 4, 2, (3,)),
        ),
        (OPEN_MPI, {}, Place("10.96.0.1:62880", 8, 5, (1,))),
        (OPEN_MPI | {"CUDA_VISIBLE_DEVICES": "1"}, {}, Place("10.96.0.1:62880", 8, 5)),
        (
            {k: v for k, v in OPEN_MPI.items() if not k.startswith("CUDA")},
            {},
            Place("10.96.0.1:62880", 8, 5, (1,)),
        ),
        (SLURM | OPEN_MPI, {}, Place("10.96.0.1:62880", 8, 5, (1,))),
        # In a batch script without srun, and in a step of one task.
        ({k: v for k, v in SLURM.items() if "STEP" not in k}, {}, None),
        (SLURM | {"SLURM_STEP_NUM_TASKS": "1", "SLURM_PROCID": "0"}, {}, None),
    ],
)
def test_the_place_of_a_process(environment, given, place):
    assert find_place(options(**given), environment) == place


@pytest.mark.parametrize(
    "environment, given, message",
    [
        ({}, {"coordinator": "a:1"}, "--coordinator a:1: expected --processes and --process with"),
        ({}, {"processes": 2, "process": 0}, "--process 0: expected --coordinator with it"),
        ({}, {"coordinator": "a", "processes": 2, "process": 0}, "a: expected HOST:PORT"),
        ({}, {"coordinator": "a:0", "processes": 2, "process": 0}, "a:0: expected HOST:PORT"),
        (
            {},
            {"coordinator": "a:1", "processes": 2, "process": 2},
            "--process 2 .* expected 0 to 1",
        ),
        ({}, {"coordinator": "a:1", "processes": 0, "process": 0}, "--processes 0: expected at"),
        ({}, {"wait_seconds": 0}, "--wait_seconds 0: expected more than 0"),
        (
            {k: v for k, v in OPEN_MPI.items() if "uri" not in k},  # as Open MPI 5 has it
            {},
            "Open MPI: expected --coordinator with it",
        ),
    ],
)
def test_a_place_that_cannot_be(environment, given, message):
    with pytest.raises(ValueError, match=message):
        find_place(options(**given), environment)


def meet_all(places, *, seconds=10.0):
    """What each process gets out of a meeting: None, or its error."""

    def one(place):
        try:
            meeting.meet(place, seconds)
        except (ValueError, TimeoutError) as error:
            return error

    with concurrent.futures.ThreadPoolExecutor(len(places)) as pool:
        return list(pool.map(one, places))


def test_all_meet():
    port = free_port()
    places = [Place(f"localhost:{port}", 4, process) for process in (2, 0, 3, 1)]
    assert meet_all(places) == [None] * 4


def test_a_coordinator_out_of_reach_is_waited_for_and_named():
    address = f"localhost:{free_port()}"
    with pytest.raises(
        TimeoutError, match=rf"{address}: process 1 waited 0.6 s .*\(Connection ref"
    ):
        meeting.meet(Place(address, 2, 1), 0.6)


def test_a_stranger_at_the_port_is_no_coordinator():
    with socket.create_server(("localhost", 0)) as stranger:
        address = f"localhost:{stranger.getsockname()[1]}"
        with pytest.raises(TimeoutError, match="reached but gave no answer"):
            meeting.meet(Place(address, 2, 1), 0.5)
        with pytest.raises(ValueError, match="process 0 cannot listen on port"):
            meeting.meet(Place(address, 2, 0), 0.5)


def test_processes_that_do_not_come_are_named_to_all():
    address = f"localhost:{free_port()}"
    found = meet_all([Place(address, 4, 0), Place(address, 4, 2)], seconds=1.0)
    assert all(isinstance(error, TimeoutError) for error in found), found
    message = f"coordinator {address}: processes 1, 3 of 4 did not come within 1 s"
    assert all(message in str(error) for error in found)


@pytest.mark.parametrize(
    "others, message",
    [
        ([(3, 1)], "--processes differ: 2 in process 0, 3 in process 1"),
        ([(2, 1)], None),
    ],
)
def test_other_numbers_of_processes_are_refused(others, message):
    address = f"localhost:{free_port()}"
    places = [Place(address, 2, 0), *(Place(address, n, i) for n, i in others)]
    assert [error and str(error) for error in meet_all(places)] == [message] * 2


def test_a_number_that_comes_twice_is_refused():
    address = f"localhost:{free_port()}"
    found = meet_all([Place(address, 3, 0), Place(address, 3, 1), Place(address, 3, 1)])
    assert {str(error) for error in found} == {
        "two processes were started as --process 1: expected each number once"
    }


@pytest.mark.parametrize(
    "owners, shares",
    [
        # Parts of a batch on two hosts, on hosts that hold half of the heads of a part, on one.
        ([{0}, {0}, {1}, {1}], {0: (0, 2), 1: (1, 2)}),
        ([{0, 1}, {2, 3}], {0: (0, 2), 1: (0, 2), 2: (1, 2), 3: (1, 2)}),
        ([{0, 1}], {0: (0, 1), 1: (0, 1)}),
        ([{1}, {0}], {0: (1, 2), 1: (0, 2)}),
    ],
)
def test_the_rows_that_a_process_makes(owners, shares):
    assert {process: share_among(owners, process) for process in shares} == shares


@pytest.mark.parametrize(
    "owners", [[{0}, {0, 1}, {1}], [{0}, {1}, {0}, {1}], [{0}, {0}, {1}], [{0, 1}, {1}]]
)
def test_rows_that_overlap_in_part_are_refused(owners):
    with pytest.raises(ValueError, match="are needed by processes .* expected equal shares"):
        share_among(owners, 0)
