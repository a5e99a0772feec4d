"""The KubeRay operator would accept the manifests, and they fit the rest of the checkout.

The names and types are those of the CRD of ray.io/v1 in KubeRay's ray-operator/config/crd/bases, as of August 2026: whole
for what is Ray's own, and for pods what the manifests may need.
"""

from __future__ import annotations

import copy
import re
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from packaging.requirements import Requirement

ROOT = Path(__file__).parent.parent
FOLDER = ROOT / "deploy" / "kuberay"

TEXT, NUMBER, FLAG, ANY = {"type": "string"}, {"type": "integer"}, {"type": "boolean"}, True
MAP = {"type": "object", "additionalProperties": TEXT}


def fields(required: str = "", others: str = "", **known: Any) -> dict[str, Any]:
    """An object with these fields and no others; of `others` only the names are known."""
    properties = {**dict.fromkeys(others.split(), ANY), **known}
    return {"type": "object", "properties": properties, "required": required.split(), "additionalProperties": False}


def every(schema: Any) -> dict[str, Any]:
    return {"type": "array", "items": schema}


QUANTITIES = {"type": "object", "additionalProperties": {"type": ["integer", "string"]}}
CONTAINER = fields(
    "name",
    "args command envFrom imagePullPolicy lifecycle livenessProbe readinessProbe securityContext workingDir",
    name=TEXT,
    image=TEXT,
    env=every(fields("name", "valueFrom", name=TEXT, value=TEXT)),
    ports=every(fields("containerPort", "hostIP hostPort protocol", name=TEXT, containerPort=NUMBER)),
    resources=fields(others="claims", limits=QUANTITIES, requests=QUANTITIES),
    volumeMounts=every(fields("name mountPath", "readOnly subPath", name=TEXT, mountPath=TEXT)),
)
POD = fields(
    "containers",
    "affinity imagePullSecrets initContainers nodeSelector priorityClassName serviceAccountName topologySpreadConstraints",
    containers=every(CONTAINER),
    terminationGracePeriodSeconds=NUMBER,
    tolerations=every(fields(key=TEXT, operator=TEXT, value=TEXT, effect=TEXT, tolerationSeconds=NUMBER)),
    securityContext=fields(others="runAsNonRoot seccompProfile", fsGroup=NUMBER, runAsUser=NUMBER, runAsGroup=NUMBER),
    volumes=every(
        fields(
            "name",
            "configMap csi hostPath nfs secret",
            name=TEXT,
            persistentVolumeClaim=fields("claimName", claimName=TEXT, readOnly=FLAG),
            emptyDir=fields(medium=TEXT, sizeLimit={"type": ["integer", "string"]}),
        )
    ),
)
TEMPLATE = fields(others="metadata", spec=POD)
CLUSTER = fields(
    "headGroupSpec",
    "gcsFaultToleranceOptions headServiceAnnotations historyServerOptions managedBy networkPolicy tlsOptions upgradeStrategy",
    rayVersion=TEXT,
    suspend=FLAG,
    enableInTreeAutoscaling=FLAG,
    autoscalerOptions=fields(
        others="args command env envFrom image imagePullPolicy resources securityContext version volumeMounts",
        idleTimeoutSeconds=NUMBER,
        upscalingMode={"enum": ["Default", "Aggressive", "Conservative"]},
    ),
    authOptions=fields(mode={"enum": ["disabled", "token"]}, enableK8sTokenAuth=FLAG, secretName=TEXT),
    headGroupSpec=fields(
        "template",
        "enableIngress headService ingressOptions labels resources serviceType",
        rayStartParams=MAP,
        template=TEMPLATE,
    ),
    workerGroupSpecs=every(
        fields(
            "groupName minReplicas maxReplicas template",
            "labels numOfHosts priority resources scaleStrategy suspend",
            groupName=TEXT,
            replicas=NUMBER,
            minReplicas=NUMBER,
            maxReplicas=NUMBER,
            idleTimeoutSeconds=NUMBER,
            rayStartParams=MAP,
            template=TEMPLATE,
        )
    ),
)
JOB = fields(
    others="clusterSelector deletionStrategy entrypointNumCpus entrypointNumGpus entrypointResources jobId managedBy metadata "
    "submitterConfig submitterPodTemplate",
    entrypoint=TEXT,
    runtimeEnvYAML=TEXT,
    submissionMode={"enum": ["K8sJobMode", "HTTPMode", "InteractiveMode", "SidecarMode"]},
    backoffLimit=NUMBER,
    activeDeadlineSeconds=NUMBER,
    preRunningDeadlineSeconds=NUMBER,
    ttlSecondsAfterFinished=NUMBER,
    shutdownAfterJobFinishes=FLAG,
    suspend=FLAG,
    rayClusterSpec=CLUSTER,
)
SPECS = {"raycluster.yaml": ("RayCluster", CLUSTER), "rayjob.yaml": ("RayJob", JOB)}


def manifest(name: str) -> dict[str, Any]:
    loaded = yaml.safe_load((FOLDER / name).read_text())
    assert isinstance(loaded, dict)
    return loaded


def cluster_of(name: str) -> dict[str, Any]:
    spec: dict[str, Any] = manifest(name)["spec"]
    return spec.get("rayClusterSpec", spec)


def containers(cluster: dict[str, Any]) -> list[dict[str, Any]]:
    groups = [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]
    return [group["template"]["spec"]["containers"][0] for group in groups]


def check(name: str, document: dict[str, Any]) -> None:
    kind, spec = SPECS[name]
    metadata = fields("name", "annotations labels namespace", name=TEXT)
    whole = fields(
        "apiVersion kind metadata spec",
        apiVersion={"const": "ray.io/v1"},
        kind={"const": kind},
        metadata=metadata,
        spec=spec,
    )
    jsonschema.validate(document, whole)


@pytest.mark.parametrize("name", SPECS)
def test_the_custom_resource_definition_has_all_its_fields(name: str) -> None:
    check(name, manifest(name))


@pytest.mark.parametrize("name", SPECS)
def test_the_validation_sees_mistakes(name: str) -> None:
    misspelt, mistyped = (copy.deepcopy(manifest(name)) for _ in range(2))
    pod = misspelt["spec"].get("rayClusterSpec", misspelt["spec"])["workerGroupSpecs"][0]["template"]["spec"]
    pod["containers"][0]["volumeMount"] = []
    with pytest.raises(jsonschema.ValidationError, match="volumeMount"):
        check(name, misspelt)
    mistyped["spec"].get("rayClusterSpec", mistyped["spec"])["headGroupSpec"]["rayStartParams"]["num-cpus"] = 0
    with pytest.raises(jsonschema.ValidationError, match="0 is not of type 'string'"):
        check(name, mistyped)


@pytest.mark.parametrize("name", SPECS)
def test_it_runs_the_pinned_ray_and_this_package(name: str) -> None:
    lines = (line for line in (ROOT / "constraints.txt").read_text().splitlines() if not line.startswith("#"))
    pins = {r.name: str(r.specifier).removeprefix("==") for r in map(Requirement, lines)}
    cluster, dockerfile = cluster_of(name), (FOLDER / "Dockerfile").read_text()
    assert cluster["rayVersion"] == pins["ray"]
    assert f"\nFROM rayproject/ray:{pins['ray']}-py311-gpu\n" in dockerfile
    (image,) = {container["image"] for container in containers(cluster)}
    version = re.search(r'^version = "(.+)"$', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)
    assert version and image.endswith(f"/raysuite:{version[1]}")
    assert f"REGISTRY/raysuite:{version[1]} " in dockerfile


def test_the_image_is_built_from_what_the_checkout_has() -> None:
    dockerfile = (FOLDER / "Dockerfile").read_text()
    copied = [words.split()[:-1] for words in re.findall(r"^COPY (?:--\S+ )?(.+)$", dockerfile, re.MULTILINE)]
    assert copied
    for path in (path for paths in copied for path in paths):
        assert (ROOT / path).exists(), path


@pytest.mark.parametrize("name", SPECS)
def test_tokens_are_asked_for_and_runs_outlive_their_pods(name: str) -> None:
    cluster = cluster_of(name)
    assert cluster["authOptions"] == {"mode": "token"}
    for container in containers(cluster):
        assert {"name": "runs", "mountPath": "/home/ray/raysuite-runs"} in container["volumeMounts"]  # jobs/train.py's
    for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"]):
        spec = group["template"]["spec"]
        volumes = {volume["name"]: volume for volume in spec["volumes"]}
        assert "persistentVolumeClaim" in volumes["runs"]
        assert {mount["name"] for mount in spec["containers"][0]["volumeMounts"]} == set(volumes)
        assert spec["terminationGracePeriodSeconds"] > 30
    assert int(containers(cluster)[0]["env"][0]["value"]) > 30  # a run that is told to stop has 30 s for its checkpoint


def test_the_job_runs_a_script_of_the_image_with_settings_that_exist() -> None:
    from raysuite.config import load

    words = manifest("rayjob.yaml")["spec"]["entrypoint"].split()
    assert words[0] == "python" and (ROOT / words[1].removeprefix("/home/ray/raysuite/")).is_file()
    config = load(words[2], dict(word.split("=", 1) for word in words[4::2]))
    (gpu,) = (group for group in cluster_of("rayjob.yaml")["workerGroupSpecs"])
    has = int(containers(cluster_of("rayjob.yaml"))[1]["resources"]["limits"]["nvidia.com/gpu"]) * gpu["maxReplicas"]
    where = config.cluster
    assert 0 < where.workers * where.worker_gpus + where.actors * where.actor_gpus <= has
