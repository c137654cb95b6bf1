"""The manifests: rendered, valid for every Kubernetes they are for, and closed where they say so."""

import shlex
import shutil
import subprocess
import tomllib
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from retinaserve.scripts.cli.ask.batch import batch
from tests.scripts.deploy.promql import Scrape, problems

ROOT = Path(__file__).parents[3]
DEPLOY = ROOT / "scripts" / "deploy"
KUSTOMIZE, KSERVE, KUBERAY = DEPLOY / "kustomize", DEPLOY / "kserve", DEPLOY / "kuberay"
VERSIONS = tomllib.loads((DEPLOY / "versions.toml").read_text())
OLDEST, NEWEST = (VERSIONS["kubernetes"][name] for name in ("oldest", "newest"))
RELEASES = [f"1.{minor}" for minor in range(int(OLDEST[2:]), int(NEWEST[2:]) + 1)]
# Not Kubernetes' own: their schemas are their operators', and no package carries them.
CUSTOM = {"PodMonitor", "PrometheusRule", "ServingRuntime", "InferenceService"}
SCRAPE = Scrape.parse(
    "\n".join(
        f'{name}{{model="{model}",version="1"}} 0'
        for name in ("nv_inference_queue_duration_us", "nv_inference_compute_infer_duration_us")
        for model in ("detector", "preprocess", "retinanet")
    )
)
needs_kubectl = pytest.mark.skipif(not shutil.which("kubectl"), reason="kubectl, which renders, is not installed")

Manifest = dict[str, Any]


def load(path: Path) -> list[Manifest]:
    return [each for each in yaml.safe_load_all(path.read_text()) if each]


def render(folder: str) -> list[Manifest]:
    command = ["kubectl", "kustomize", str(KUSTOMIZE / folder)]
    result = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert result.returncode == 0, result.stderr
    assert "deprecated" not in result.stderr, result.stderr
    return [each for each in yaml.safe_load_all(result.stdout) if each]


def one(manifests: list[Manifest], kind: str, name: str = "retinaserve") -> Manifest:
    (found,) = [each for each in manifests if each["kind"] == kind and each["metadata"]["name"] == name]
    return found


@pytest.fixture(scope="module", params=["base", "example"])
def rendered(request: pytest.FixtureRequest) -> list[Manifest]:
    return render(request.param)


def test_the_newest_schemas_are_those_we_say() -> None:
    assert kubernetes_validate.latest_version().startswith(f"{NEWEST}."), "validate for the newer one too"


@needs_kubectl
def test_everything_is_valid(rendered: list[Manifest]) -> None:
    for manifest in rendered:
        if manifest["kind"] not in CUSTOM:
            for release in RELEASES:
                kubernetes_validate.validate(manifest, release, strict=True)
        if manifest["kind"] != "Namespace":
            assert manifest["metadata"]["namespace"] == "retinaserve", manifest["kind"]


@needs_kubectl
def test_the_validation_notices() -> None:
    deployment = one(render("base"), "Deployment")
    deployment["spec"]["template"]["spec"]["containers"][0]["startupProbe"]["failureTreshold"] = 3
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(deployment, NEWEST, strict=True)


def check_pod(pod: Manifest, container: Manifest) -> None:
    """What a pod of ours must be, KServe's too."""
    assert pod["automountServiceAccountToken"] is False
    assert pod["securityContext"]["runAsNonRoot"] is True and pod["securityContext"]["runAsUser"] == 1000
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    security = container["securityContext"]
    assert security["readOnlyRootFilesystem"] is True and security["allowPrivilegeEscalation"] is False
    assert security["capabilities"] == {"drop": ["ALL"]}
    assert container["resources"]["limits"]["nvidia.com/gpu"] == "1"
    assert container["image"].endswith(f"retinaserve-server:{VERSIONS['container']['tag']}")
    mounts = {mount["mountPath"]: mount for mount in container["volumeMounts"]}
    assert mounts["/run/secrets/admin_token"]["readOnly"] is True
    assert not [entry for entry in container["env"] if "TOKEN" in entry["name"] and "value" in entry]
    startup = container["startupProbe"]
    assert startup["periodSeconds"] * startup["failureThreshold"] >= 600, "engines load for minutes"
    grace = pod["terminationGracePeriodSeconds"]
    env = {entry["name"]: entry["value"] for entry in container["env"]}
    assert grace > container["lifecycle"]["preStop"]["sleep"]["seconds"] + int(env["EXIT_SECONDS"])


@needs_kubectl
def test_a_replica_is_closed_and_ends_in_order(rendered: list[Manifest]) -> None:
    deployment = one(rendered, "Deployment")["spec"]
    pod = deployment["template"]["spec"]
    (container,) = pod["containers"]
    check_pod(pod, container)
    volumes = {volume["name"]: volume for volume in pod["volumes"]}
    assert volumes["shm"]["emptyDir"]["medium"] == "Memory"
    assert volumes["models"]["persistentVolumeClaim"]["readOnly"] is True
    mounts = {mount["mountPath"]: mount for mount in container["volumeMounts"]}
    assert mounts["/models"]["readOnly"] is True and mounts["/dev/shm"]["name"] == "shm"
    assert any("nvidia.com/gpu" in key for key in pod["nodeSelector"])
    assert deployment["strategy"]["rollingUpdate"] == {"maxUnavailable": 0, "maxSurge": 1}
    startup = container["startupProbe"]
    assert deployment["progressDeadlineSeconds"] > startup["periodSeconds"] * startup["failureThreshold"]


@needs_kubectl
def test_selectors_meet_the_pods_and_services_their_ports(rendered: list[Manifest]) -> None:
    deployment = one(rendered, "Deployment")
    labels = deployment["spec"]["template"]["metadata"]["labels"].items()
    (container,) = deployment["spec"]["template"]["spec"]["containers"]
    ports = {port["name"] for port in container["ports"]}
    selectors = [
        deployment["spec"]["selector"]["matchLabels"],
        one(rendered, "PodDisruptionBudget")["spec"]["selector"]["matchLabels"],
        one(rendered, "NetworkPolicy")["spec"]["podSelector"]["matchLabels"],
    ]
    services = [each for each in rendered if each["kind"] == "Service"]
    selectors += [service["spec"]["selector"] for service in services]
    for selector in selectors:
        assert selector and selector.items() <= labels
    assert {port["targetPort"] for service in services for port in service["spec"]["ports"]} <= ports
    policy = one(rendered, "NetworkPolicy")["spec"]
    assert set(policy["policyTypes"]) == {"Ingress", "Egress"}
    assert {port["port"] for rule in policy["ingress"] for port in rule["ports"]} <= ports


@needs_kubectl
def test_nothing_leaves_but_traces() -> None:
    assert one(render("base"), "NetworkPolicy")["spec"]["egress"] == []
    (traces, names) = one(render("example"), "NetworkPolicy")["spec"]["egress"]
    assert [port["port"] for port in traces["ports"]] == [4318] and {port["port"] for port in names["ports"]} == {
        53
    }


@needs_kubectl
def test_the_example_scales_on_a_metric_that_the_adapter_makes() -> None:
    example = render("example")
    scaler = one(example, "HorizontalPodAutoscaler")["spec"]
    assert "replicas" not in one(example, "Deployment")["spec"], "two owners of one number"
    (metric,) = scaler["metrics"]
    (rule,) = load(KUSTOMIZE / "components" / "autoscaling" / "adapter.yaml")[0]["rules"]["custom"]
    assert metric["pods"]["metric"]["name"] == rule["name"]["as"]
    query = rule["metricsQuery"].replace("<<.LabelMatchers>>", 'job="retinaserve"').replace("<<.GroupBy>>", "job")
    assert "<<" not in query and problems(query, SCRAPE) == []
    startup = one(example, "Deployment")["spec"]["template"]["spec"]["containers"][0]["startupProbe"]
    seconds = startup["periodSeconds"] * startup["failureThreshold"]
    assert scaler["behavior"]["scaleDown"]["stabilizationWindowSeconds"] >= seconds


@needs_kubectl
def test_encrypted_replicas_offer_nothing_plain() -> None:
    example = render("example")
    for service in (each for each in example if each["kind"] == "Service"):
        assert [port["name"] for port in service["spec"]["ports"]] == ["grpc"]
    requests = one(example, "NetworkPolicy")["spec"]["ingress"][0]
    assert requests["ports"] == [{"port": "grpc", "protocol": "TCP"}]
    (container,) = one(example, "Deployment")["spec"]["template"]["spec"]["containers"]
    assert "/run/secrets/tls" in {mount["mountPath"] for mount in container["volumeMounts"]}


@needs_kubectl
def test_the_clusters_rules_are_the_rules() -> None:
    expected = yaml.safe_load((DEPLOY / "monitoring" / "rules.yml").read_text())
    example = render("example")
    assert one(example, "PrometheusRule")["spec"] == expected
    monitor = one(example, "PodMonitor")["spec"]
    ports = {port["name"] for port in _container(example)["ports"]}
    assert {endpoint["port"] for endpoint in monitor["podMetricsEndpoints"]} <= ports


def _container(manifests: list[Manifest]) -> Manifest:
    container: Manifest = one(manifests, "Deployment")["spec"]["template"]["spec"]["containers"][0]
    return container


def test_kserve_pods_are_as_closed_as_ours() -> None:
    """KServe merges the runtime's container into the predictor's pod."""
    (runtime,), (service,) = load(KSERVE / "servingruntime.yaml"), load(KSERVE / "inferenceservice.yaml")
    (container,) = runtime["spec"]["containers"]
    predictor = service["spec"]["predictor"]
    check_pod(predictor, container)
    assert container["name"] == "kserve-container", "the name by which KServe finds it"
    assert predictor["model"]["runtime"] == runtime["metadata"]["name"]
    formats = {(each["name"], each["version"]) for each in runtime["spec"]["supportedModelFormats"]}
    asked = predictor["model"]["modelFormat"]
    assert (asked["name"], asked["version"]) in formats
    assert predictor["model"]["protocolVersion"] in runtime["spec"]["protocolVersions"]
    (metric,) = predictor["autoScaling"]["metrics"]
    recorded = "retinaserve:queue_compute:ratio"
    assert problems(metric["external"]["metric"]["query"], SCRAPE, recorded=[recorded]) == []
    # Its pod, as Kubernetes would see it.
    fields = (
        "automountServiceAccountToken",
        "securityContext",
        "serviceAccountName",
        "terminationGracePeriodSeconds",
    )
    pod = {field: predictor[field] for field in fields}
    pod |= {field: runtime["spec"][field] for field in ("containers", "volumes", "nodeSelector", "tolerations")}
    manifest = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "retinaserve"}, "spec": pod}
    for release in RELEASES:
        kubernetes_validate.validate(manifest, release, strict=True)


def test_ray_pods_are_valid_and_ask_for_what_batch_takes() -> None:
    """KubeRay's own fields were compared with its schema once; the pods are Kubernetes' own."""
    (job,) = load(KUBERAY / "rayjob.yaml")
    cluster = job["spec"]["rayClusterSpec"]
    words = shlex.split(job["spec"]["entrypoint"])
    assert words[:2] == ["retinaserve", "batch"]
    given = batch.make_context("batch", words[2:]).params
    assert given["address"] == "auto" and str(given["model"]).startswith("/models/")
    (worker,) = cluster["workerGroupSpecs"]
    for group in (cluster["headGroupSpec"], worker):
        pod = group["template"]["spec"]
        (container,) = pod["containers"]
        assert pod["automountServiceAccountToken"] is False and pod["securityContext"]["runAsNonRoot"] is True
        assert container["securityContext"]["allowPrivilegeEscalation"] is False
        assert {mount["name"] for mount in container["volumeMounts"]} == {each["name"] for each in pod["volumes"]}
        manifest = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "ray"}, "spec": pod}
        for release in RELEASES:
            kubernetes_validate.validate(manifest, release, strict=True)
    limits = worker["template"]["spec"]["containers"][0]["resources"]["limits"]
    assert limits["nvidia.com/gpu"] == "1", "a plan asks Ray for one"
    assert cluster["rayVersion"] in (ROOT / "constraints.txt").read_text().split("ray==")[1]
