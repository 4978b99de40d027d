"""cluster.yaml and docs/kuberay-job.yaml: right by what can be asked without a cloud: Ray's schema, Ray's and rayds's commands."""

import copy
import re
import shlex
from importlib import metadata
from pathlib import Path

import pytest
import yaml

from rayds.cli._remote import check_command
from rayds.cli.main import cli

ROOT = Path(__file__).parents[2]
RAY = re.search(r"ray\[data,default\]>=(\S+?),", (ROOT / "pyproject.toml").read_text())[1] + ".0"

# The fields of KubeRay's API reference (ray.io/v1) that may stand at each level; a misspelt one is dropped without a word.
RAY_JOB = {
    "entrypoint", "submissionMode", "shutdownAfterJobFinishes", "ttlSecondsAfterFinished", "activeDeadlineSeconds",
    "backoffLimit", "runtimeEnvYAML", "rayClusterSpec", "jobId", "metadata", "clusterSelector", "submitterPodTemplate",
    "submitterConfig", "entrypointNumCpus", "entrypointNumGpus", "entrypointResources", "suspend", "managedBy",
    "deletionStrategy", "preRunningDeadlineSeconds",
}  # fmt: skip
RAY_CLUSTER = {
    "rayVersion", "authOptions", "enableInTreeAutoscaling", "autoscalerOptions", "headGroupSpec", "workerGroupSpecs",
    "headServiceAnnotations", "gcsFaultToleranceOptions", "suspend", "managedBy",
}  # fmt: skip
HEAD = {"rayStartParams", "template", "serviceType", "headService", "enableIngress", "resources", "labels"}
WORKER = {
    "groupName", "replicas", "minReplicas", "maxReplicas", "rayStartParams", "template", "numOfHosts", "scaleStrategy",
    "idleTimeoutSeconds", "suspend", "resources", "labels",
}  # fmt: skip


def start_options():
    """The options of `ray start`."""
    from ray.scripts.scripts import start

    return {o for p in start.params for o in (*p.opts, *p.secondary_opts)}


class TestCluster:
    @pytest.fixture
    def config(self):
        return yaml.safe_load((ROOT / "cluster.yaml").read_text())

    def check(self, config):
        from ray.autoscaler._private.util import prepare_config, validate_config

        validate_config(prepare_config(copy.deepcopy(config)))

    def test_fits_rays_schema(self, config):
        self.check(config)

    @pytest.mark.parametrize("spoil", ["provider", "head_node_type", "typo", "resources"])
    def test_the_schema_would_tell(self, config, spoil):
        from jsonschema import ValidationError

        if spoil == "typo":
            config["available_node_types"]["worker"]["max_wokers"] = 3
        elif spoil == "resources":
            config["available_node_types"]["worker"]["resources"] = {"CPU": "many"}
        else:
            del config[spoil]
        with pytest.raises((ValidationError, ValueError, RuntimeError, KeyError)):
            self.check(config)

    def test_no_task_runs_on_the_head_and_workers_come_and_go(self, config):
        types = config["available_node_types"]
        assert types[config["head_node_type"]]["resources"]["CPU"] == 0
        for name in ("worker", "gpu"):
            assert types[name]["min_workers"] == 0
            assert 0 < types[name]["max_workers"] <= config["max_workers"]

    def test_a_token_is_asked_for_and_nothing_listens_outside(self, config):
        text = (ROOT / "cluster.yaml").read_text()
        assert "0.0.0.0" not in text
        for key in ("head_start_ray_commands", "worker_start_ray_commands"):
            command = config[key][-1]
            assert "RAY_AUTH_MODE=token ray start" in command
        assert "--dashboard-host=127.0.0.1" in config["head_start_ray_commands"][-1]
        assert any("auth_token" in target for target in config["file_mounts"])

    def test_options_of_ray_start_are_real(self, config):
        for key in ("head_start_ray_commands", "worker_start_ray_commands"):
            for option in re.findall(r"(--[a-z-]+)", config[key][-1]):
                assert option in start_options(), option

    def test_every_node_has_the_ray_of_the_image(self, config):
        images = [
            config["docker"]["image"],
            *(t["docker"]["worker_image"] for t in config["available_node_types"].values() if "docker" in t),
        ]
        assert all(image.startswith(f"rayproject/ray:{RAY}-py311-") for image in images)
        assert any(f'"ray[data,default]=={RAY}"' in c for c in config["setup_commands"])

    def test_the_commands_of_its_comments_are_real(self):
        commands = re.findall(r"^#   rayds (submit.*?)(?:  #|$)", (ROOT / "cluster.yaml").read_text(), re.M)
        assert commands
        for command in commands:
            words = shlex.split(command)
            check_command(words[words.index("--") + 1 :], cli)


class TestRayJob:
    @pytest.fixture
    def job(self):
        return yaml.safe_load((ROOT / "docs" / "kuberay-job.yaml").read_text())

    @pytest.fixture
    def cluster(self, job):
        return job["spec"]["rayClusterSpec"]

    @pytest.fixture
    def pods(self, cluster):
        groups = [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]
        return [g["template"]["spec"] for g in groups]

    def test_fields_are_those_of_the_api(self, job, cluster):
        assert (job["apiVersion"], job["kind"]) == ("ray.io/v1", "RayJob")
        assert set(job) == {"apiVersion", "kind", "metadata", "spec"}
        assert set(job["spec"]) <= RAY_JOB
        assert set(cluster) <= RAY_CLUSTER
        assert set(cluster["headGroupSpec"]) <= HEAD
        assert all(set(g) <= WORKER for g in cluster["workerGroupSpecs"])
        assert job["spec"]["submissionMode"] in ("K8sJobMode", "HTTPMode", "SidecarMode", "InteractiveMode")

    def test_the_command_is_one_of_rayds(self, job):
        program, *words = shlex.split(job["spec"]["entrypoint"])
        assert program == "rayds"
        remote = check_command(words, cli)
        assert not remote.inputs
        assert not remote.outputs
        assert words[-2:] == ["--address", "auto"]

    def test_the_environment_is_one_of_ray(self, job):
        from ray.runtime_env import RuntimeEnv

        assert RuntimeEnv(**yaml.safe_load(job["spec"]["runtimeEnvYAML"])).env_vars()

    def test_start_parameters_are_options_of_ray_start(self, cluster):
        for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"]):
            for name, value in group["rayStartParams"].items():
                assert f"--{name}" in start_options()
                assert isinstance(value, str)  # the API takes no numbers
        assert cluster["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"

    def test_token_and_versions(self, cluster, pods):
        assert cluster["authOptions"] == {"mode": "token"}
        assert cluster["rayVersion"] == RAY
        for pod in pods:
            (container,) = pod["containers"]
            assert f":{metadata.version('rayds')}-ray{RAY}-py311" in container["image"]

    def test_workers_scale_within_bounds(self, cluster):
        for group in cluster["workerGroupSpecs"]:
            assert 0 <= group["minReplicas"] <= group["replicas"] <= group["maxReplicas"]
        assert cluster["enableInTreeAutoscaling"] is True

    def test_pods_are_whole(self, pods):
        for pod in pods:
            (container,) = pod["containers"]
            assert container["resources"]["limits"] == container["resources"]["requests"]
            mounted = {m["name"] for m in container.get("volumeMounts", ())}
            assert mounted == {v["name"] for v in pod.get("volumes", ())}

    def test_nothing_is_open_to_the_outside(self):
        text = re.sub(r"#.*", "", (ROOT / "docs" / "kuberay-job.yaml").read_text())
        assert not re.search(r"LoadBalancer|NodePort|Ingress|0\.0\.0\.0", text)
        assert not re.search(r"AWS_SECRET|AWS_ACCESS|password", text, re.I)
