"""The files of docs/cluster say what their systems read, and start raft in the way that it takes."""

import json
import re
import shlex
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from raft.cli.main import parse

CLUSTER = Path(__file__).parents[2] / "docs" / "cluster"
FILES = sorted(CLUSTER.iterdir())


def read(name: str) -> Any:
    return yaml.safe_load((CLUSTER / name).read_text())


def scripts() -> dict[str, str]:
    sky = read("skypilot.yaml")
    return {"slurm": (CLUSTER / "slurm.sh").read_text(), "setup": sky["setup"], "run": sky["run"]}


def test_the_cluster_of_ray_up_is_valid_by_rays_own_schema_with_rays_own_defaults():
    import jsonschema
    import ray.autoscaler
    from ray.autoscaler._private import util

    written = read("ray-up.yaml")
    schema = json.loads((Path(ray.autoscaler.__file__).parent / "ray-schema.json").read_text())
    jsonschema.validate(written, schema)
    assert set(written) <= set(schema["properties"])
    whole = util.prepare_config(written)
    util.validate_config(whole)
    commands = [*whole["setup_commands"], *whole["head_setup_commands"], *whole["worker_setup_commands"]]
    assert not any("ray-wheels" in command for command in commands)  # Ray's defaults install another version of it


def test_every_node_of_ray_up_is_alike_and_their_number_is_fixed():
    written = read("ray-up.yaml")
    head, worker = (written["available_node_types"][name] for name in ("gpu_head", "gpu_worker"))
    assert head["node_config"] == worker["node_config"]
    assert worker["min_workers"] == worker["max_workers"] == written["max_workers"]


def test_every_pod_of_kuberay_is_alike_and_their_number_is_fixed():
    job = read("rayjob.yaml")
    assert (job["apiVersion"], job["kind"]) == ("ray.io/v1", "RayJob")
    cluster = job["spec"]["rayClusterSpec"]
    (group,) = cluster["workerGroupSpecs"]
    assert cluster["headGroupSpec"]["template"] == group["template"]
    assert group["minReplicas"] == group["replicas"] == group["maxReplicas"]
    (container,) = group["template"]["spec"]["containers"]
    mounted = {mount["name"] for mount in container["volumeMounts"]}
    assert mounted == {volume["name"] for volume in group["template"]["spec"]["volumes"]}
    assert container["resources"]["limits"]["nvidia.com/gpu"] == container["resources"]["requests"]["nvidia.com/gpu"]


def test_the_versions_of_ray_are_those_that_raft_takes():
    pinned = re.search(r'"ray>=([\d.]+),<(\d+)"', (CLUSTER.parents[1] / "pyproject.toml").read_text())
    assert pinned
    told = read("rayjob.yaml")["spec"]["rayClusterSpec"]["rayVersion"]
    assert told.startswith(f"{pinned[1]}.") and int(told.split(".")[0]) < int(pinned[2])


@pytest.mark.parametrize("name", ["slurm", "setup", "run"])
def test_scripts_are_bash(name: str):
    done = subprocess.run(["bash", "-n"], input=scripts()[name], text=True, capture_output=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_every_file_runs_raft_on_the_cluster_by_a_command_that_raft_takes(file: Path):
    found = re.findall(r"raft run (.*?launch\.address=(?:auto|\"\$head:6379\"))", file.read_text())
    assert found
    for words in found:
        options = shlex.split(words.replace('"$@"', "my-run.yaml").replace('"$head:6379"', "127.0.0.1:6379"))
        assert "launch.kind=ray" in options
        parse(["run", *options])


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_every_cluster_asks_for_a_token(file: Path):
    assert re.search(r"RAY_AUTH_MODE=token|mode: token", file.read_text())
