"""ops/k8s without a cluster: core kinds by Kubernetes' own schemas, the RayService by the fields that it uses."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import ray
import yaml

from deployments.config import check
from serve.presets.catalog import check_file
from serve.settings import Settings

FOLDER = Path("ops/k8s")
VERSIONS = ("1.28", kubernetes_validate.latest_version())


def manifests() -> Iterator[tuple[str, dict[str, Any]]]:
    for path in sorted(FOLDER.glob("*.yaml")):
        for document in yaml.safe_load_all(path.read_text()):
            yield f"{path.name}/{document['kind']}/{document['metadata']['name']}", document


ALL = dict(manifests())
CORE = {name: document for name, document in ALL.items() if document["kind"] != "RayService"}
(SERVICE,) = (document for document in ALL.values() if document["kind"] == "RayService")
CLUSTER = SERVICE["spec"]["rayClusterConfig"]
GROUPS = [CLUSTER["headGroupSpec"], *CLUSTER["workerGroupSpecs"]]
SERVED = yaml.safe_load(SERVICE["spec"]["serveConfigV2"])
SHIPPED = yaml.safe_load(Path("config/serve.cluster.yaml").read_text())


def by_kind(kind: str) -> list[dict[str, Any]]:
    return [document for document in ALL.values() if document["kind"] == kind]


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("name", CORE)
def test_core_kinds_are_valid(name: str, version: str) -> None:
    kubernetes_validate.validate(CORE[name], version, strict=True)


@pytest.mark.parametrize("group", range(len(GROUPS)))
def test_pods_of_the_service_are_valid(group: int) -> None:
    template = GROUPS[group]["template"]
    pod = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": "p", **template["metadata"]},
        "spec": template["spec"],
    }
    kubernetes_validate.validate(pod, VERSIONS[-1], strict=True)


def test_it_validates_at_all() -> None:
    broken = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "a"}, "dta": {}}
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(broken, VERSIONS[-1], strict=True)


def test_the_service_uses_fields_of_the_resource_only() -> None:
    assert SERVICE["apiVersion"] == "ray.io/v1"
    assert set(SERVICE["spec"]) <= {
        "upgradeStrategy",
        "serviceUnhealthySecondThreshold",
        "deploymentUnhealthySecondThreshold",
        "excludeHeadPodFromServeSvc",
        "serveConfigV2",
        "rayClusterConfig",
    }
    assert set(CLUSTER) <= {
        "rayVersion",
        "enableInTreeAutoscaling",
        "autoscalerOptions",
        "authOptions",
        "gcsFaultToleranceOptions",
        "headGroupSpec",
        "workerGroupSpecs",
    }
    assert set(CLUSTER["headGroupSpec"]) <= {"rayStartParams", "template"}
    workers = {"groupName", "replicas", "minReplicas", "maxReplicas", "rayStartParams", "template"}
    assert all(set(group) == workers for group in CLUSTER["workerGroupSpecs"])
    for group in GROUPS:
        assert all(isinstance(value, str) for value in group["rayStartParams"].values()), "options of a command line"


def test_ray_is_the_tested_one() -> None:
    assert CLUSTER["rayVersion"] == ray.__version__


def test_one_cluster_at_a_time() -> None:
    """A second one beside it would fence the first one's Dispatcher off."""
    assert SERVICE["spec"]["upgradeStrategy"] == {"type": "None"}


def test_the_head_may_be_lost_and_runs_no_replica() -> None:
    assert CLUSTER["gcsFaultToleranceOptions"]["redisAddress"] == "zimage-redis:6379"
    assert {service["metadata"]["name"] for service in by_kind("Service")} == {"zimage-redis"}
    assert CLUSTER["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"


def test_the_served_config_is_the_shipped_one(tmp_path: Path) -> None:
    arguments = SERVED["applications"][0]["args"]
    expected = SHIPPED["applications"][0]["args"] | {
        "model": "/models/Z-Image-Turbo",
        "presets": "/etc/zimage/presets.yaml",
    }
    assert arguments == expected
    SERVED["applications"][0]["args"] = SHIPPED["applications"][0]["args"]
    assert SERVED == SHIPPED
    config = tmp_path / "serve.yaml"
    config.write_text(yaml.safe_dump(SERVED))
    assert check(config) == []
    SERVED["applications"][0]["args"] = arguments


def test_what_the_config_names_is_mounted_everywhere() -> None:
    for group in GROUPS:
        (container,) = group["template"]["spec"]["containers"]
        mounted = {mount["mountPath"] for mount in container["volumeMounts"]}
        assert {"/etc/zimage", "/models", "/var/lib/zimage", "/dev/shm"} == mounted
        assert not any("subPath" in mount for mount in container["volumeMounts"]), "a file so mounted never changes"
        volumes = {volume["name"] for volume in group["template"]["spec"]["volumes"]}
        assert {mount["name"] for mount in container["volumeMounts"]} == volumes


def test_what_is_referred_to_exists() -> None:
    names = {(document["kind"], document["metadata"]["name"]) for document in ALL.values()}
    text = "".join(path.read_text() for path in FOLDER.glob("*.yaml"))
    for kind, pattern in (
        ("Secret", r"secret(?:Key)?Ref: \{name: ([a-z-]+)"),
        ("ConfigMap", r"configMap(?:Ref)?: \{name: ([a-z-]+)"),
    ):
        found = set(re.findall(pattern, text))
        assert found
        assert {(kind, name) for name in found} <= names
    (secret,) = by_kind("Secret")
    assert set(re.findall(r"key: ([A-Z_]+)\}", text)) <= set(secret["stringData"])
    assert not any(secret["stringData"].values()), "a template"
    assert {"PGPASSWORD", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "ZIMAGE_SECRET_KEY"} <= set(
        secret["stringData"]
    )


def test_the_presets_are_right(tmp_path: Path) -> None:
    (presets,) = (item for item in by_kind("ConfigMap") if item["metadata"]["name"] == "zimage-presets")
    file = tmp_path / "presets.yaml"
    file.write_text(presets["data"]["presets.yaml"])
    assert check_file(file, Settings(model="Tongyi-MAI/Z-Image-Turbo")) == []


def test_a_pod_has_the_time_that_its_replicas_need() -> None:
    longest = max(deployment["graceful_shutdown_timeout_s"] for deployment in SERVED["applications"][0]["deployments"])
    assert all(group["template"]["spec"]["terminationGracePeriodSeconds"] >= longest for group in GROUPS)


def test_workers_take_calls_only_while_ray_serve_does() -> None:
    for group in CLUSTER["workerGroupSpecs"]:
        (container,) = group["template"]["spec"]["containers"]
        assert container["readinessProbe"]["httpGet"] == {"path": "/-/healthz", "port": "serve"}
        assert {"name": "serve", "containerPort": SERVED["http_options"]["port"]} in container["ports"]


def test_every_replica_finds_a_node_and_a_gpu() -> None:
    wanted = {deployment["name"]: deployment for deployment in SERVED["applications"][0]["deployments"]}
    front, gpu = CLUSTER["workerGroupSpecs"]
    assert front["minReplicas"] >= wanted["Gateway"]["num_replicas"], "one Gateway a node"
    assert gpu["maxReplicas"] >= wanted["Denoiser"]["autoscaling_config"]["max_replicas"]
    share = sum(wanted[name]["ray_actor_options"]["num_gpus"] for name in ("Denoiser", "TextEncoder"))
    assert share <= 1


def test_budgets_select_the_pods() -> None:
    labels = {"app.kubernetes.io/name": "zimage"}
    assert all(group["template"]["metadata"]["labels"] == labels for group in GROUPS)
    for budget in by_kind("PodDisruptionBudget"):
        assert labels.items() <= budget["spec"]["selector"]["matchLabels"].items()
    assert {budget["spec"]["maxUnavailable"] for budget in by_kind("PodDisruptionBudget")} == {0, 1}


def test_nothing_but_ray_serve_scales() -> None:
    assert not by_kind("HorizontalPodAutoscaler")
    assert CLUSTER["enableInTreeAutoscaling"] is True
