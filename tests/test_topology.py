"""Who shares the work: strategy, launchers' variables, batch arithmetic."""

import json

import pytest

from distgan.errors import UserError
from distgan.runtime import topology
from distgan.runtime.topology import Workers

HOSTS = ["a:2222", "b:2222"]


def tf_config(kind="worker", index=1, **cluster):
    return {"TF_CONFIG": json.dumps({"cluster": cluster or {"worker": HOSTS}, "task": {"type": kind, "index": index}})}


def horovodrun(rank, size, local_rank, local_size):
    names = ("HOROVOD_RANK", "HOROVOD_SIZE", "HOROVOD_LOCAL_RANK", "HOROVOD_LOCAL_SIZE")
    return dict(zip(names, map(str, (rank, size, local_rank, local_size)), strict=True))


def mpirun(rank, size, local_rank, local_size):
    names = ("RANK", "SIZE", "LOCAL_RANK", "LOCAL_SIZE")
    numbers = zip(names, (rank, size, local_rank, local_size), strict=True)
    return {f"OMPI_COMM_WORLD_{name}": str(number) for name, number in numbers}


@pytest.mark.parametrize(
    ("strategy", "gpus", "cpus", "expected"),
    [
        ("auto", 0, 1, ("single", 1)),
        ("auto", 1, 1, ("single", 1)),
        ("auto", 8, 1, ("mirrored", 8)),
        ("auto", 0, 4, ("mirrored", 4)),
        ("single", 8, 1, ("single", 1)),
        ("mirrored", 0, 1, ("mirrored", 1)),
        ("mirrored", 2, 4, ("mirrored", 2)),
    ],
)
def test_choose(strategy, gpus, cpus, expected):
    found = topology.choose(strategy, gpus, cpus)
    assert (found.strategy, found.num_replicas) == expected
    assert found.is_primary


def test_choose_among_workers():
    ranks = Workers("horovod", "started by horovodrun", 5, 8, 1, 4)
    found = topology.choose("auto", 4, 1, ranks)
    assert (found.strategy, found.num_replicas, found.local_replicas, found.local_rank) == (
        "horovod",
        8,
        range(5, 6),
        1,
    )
    assert not found.is_primary
    workers = Workers("multiworker", "TF_CONFIG is set", 1, 2, addresses=tuple(HOSTS))
    found = topology.choose("auto", 4, 1, workers)
    assert (found.strategy, found.num_replicas, found.local_replicas) == ("multiworker", 8, range(4, 8))
    # A single run beside a launcher is possible where it is asked for.
    assert topology.choose("single", 0, 1, workers).num_replicas == 1


@pytest.mark.parametrize(
    ("strategy", "gpus", "cpus", "workers", "message"),
    [
        ("horovod", 0, 1, None, "--strategy=horovod needs to be started by horovodrun or mpirun"),
        ("multiworker", 0, 1, None, "--strategy=multiworker needs TF_CONFIG"),
        ("horovod", 3, 1, Workers("horovod", "", 0, 4, 0, 4), "4 Horovod ranks on a host with 3 GPUs"),
        ("auto", 0, 2, Workers("horovod", "", 0, 2, 0, 2), "--runtime.logical_cpus=2 does not go with Horovod"),
    ],
)
def test_choose_refuses(strategy, gpus, cpus, workers, message):
    with pytest.raises(UserError, match=message):
        topology.choose(strategy, gpus, cpus, workers)


@pytest.mark.parametrize(
    ("environment", "flags", "expected"),
    [
        ({}, (), None),
        ({"SLURM_PROCID": "0"}, (), None),
        (horovodrun(3, 4, 1, 2), (), ("horovod", 3, 4, 1, 2, ())),
        (mpirun(3, 4, 1, 2), (), ("horovod", 3, 4, 1, 2, ())),
        (tf_config(), (), ("multiworker", 1, 2, 0, 1, ("a:2222", "b:2222"))),
        (tf_config(chief=["c:1"], worker=HOSTS), (), ("multiworker", 2, 3, 0, 1, ("c:1", "a:2222", "b:2222"))),
        (tf_config("chief", 0, chief=["c:1"], worker=HOSTS), (), ("multiworker", 0, 3, 0, 1, ("c:1", *HOSTS))),
        ({"JOB_COMPLETION_INDEX": "1"}, (2, "r-{index}.r:80"), ("multiworker", 1, 2, 0, 1, ("r-0.r:80", "r-1.r:80"))),
        ({"SLURM_PROCID": "0"}, (2, "a:2222,b:2222"), ("multiworker", 0, 2, 0, 1, ("a:2222", "b:2222"))),
    ],
)
def test_find_workers(environment, flags, expected):
    found = topology.find_workers(environment, *flags)
    if expected is None:
        assert found is None
        return
    what = (found.strategy, found.rank, found.world_size, found.local_rank, found.local_size, found.addresses)
    assert what == expected


@pytest.mark.parametrize(
    ("environment", "flags", "message"),
    [
        ({"TF_CONFIG": "worker"}, (), "TF_CONFIG is not .*JSONDecodeError"),
        ({"TF_CONFIG": "[]"}, (), "TF_CONFIG is not .*TypeError"),
        ({"TF_CONFIG": '{"cluster": {"worker": ["a:1"]}}'}, (), "TF_CONFIG is not .*KeyError: 'task'"),
        (tf_config("ps", 0), (), "task.type=ps is not chief or worker"),
        (tf_config(index=2), (), "task.index=2 is not one of the 2 of cluster.worker"),
        (tf_config(worker=["a", "b:1"]), (), "TF_CONFIG: a is not host:port"),
        (tf_config(worker=["a:1", "a:1"]), (), "TF_CONFIG: two workers have one address"),
        ({**horovodrun(0, 2, 0, 2), "HOROVOD_SIZE": "two"}, (), "HOROVOD_SIZE=two is not a whole number"),
        ({}, (2, "a:1,b:1"), "--runtime.workers=2 needs TF_CONFIG, or an index"),
        ({"JOB_COMPLETION_INDEX": "0"}, (2, ""), "--runtime.workers=2 needs --runtime.peers"),
        ({"JOB_COMPLETION_INDEX": "0"}, (3, "a:1,b:1"), "names 2 workers, and --runtime.workers=3"),
        ({"JOB_COMPLETION_INDEX": "2"}, (2, "a:1,b:1"), "JOB_COMPLETION_INDEX=2 is not below the 2 workers"),
    ],
)
def test_find_workers_refuses(environment, flags, message):
    with pytest.raises(UserError, match=message):
        topology.find_workers(environment, *flags)


def test_split_batch():
    assert topology.split_batch(256, 8, 2) == 16
    assert topology.describe_batch(256, 8, 2) == "global batch 256 = 8 replicas x 16 x 2 accumulation steps"
    with pytest.raises(UserError, match="nearest legal values are 96 or 104"):
        topology.split_batch(100, 8, 1)
    with pytest.raises(UserError, match="nearest legal values are 8$"):
        topology.split_batch(5, 8, 1)


def test_uneven_shares():
    assert topology.describe_batch(16, 3, 1) == ("global batch 16 = (2 replicas x 5 + 1 x 6) x 1 accumulation steps")
    topology.check_shares(16, 8, 2)
    with pytest.raises(UserError, match=r"9 workers cannot share the 8 images .* start at most 8 \(--max-np\)"):
        topology.check_shares(16, 9, 2)
    with pytest.raises(UserError, match="is not divisible"):
        topology.check_shares(15, 2, 2)


def test_elastic_slots_of_one_machine_have_a_gpu_each():
    ranks = {"HOROVOD_RANK": "2", "HOROVOD_SIZE": "3", "HOROVOD_LOCAL_RANK": "0", "HOROVOD_LOCAL_SIZE": "1"}
    third = topology.find_workers(ranks | {"HOROVOD_ELASTIC": "1", "HOROVOD_HOSTNAME": "127.001"})
    assert third.elastic
    assert third.local_rank == 2
    assert topology.choose("auto", 3, 1, third).local_rank == 2
    with pytest.raises(UserError, match="slot 3 of a host with 2 GPUs"):
        topology.choose("auto", 2, 1, third)
    other = topology.find_workers(ranks | {"HOROVOD_ELASTIC": "1", "HOROVOD_HOSTNAME": "host1"})
    assert (other.elastic, other.local_rank) == (True, 0)
    assert not topology.find_workers(ranks).elastic
