"""Every file of cluster/ against the schema of what reads it, offline; one Ray in all of them."""

import copy
import json
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import boto3
import jsonschema
import kubernetes_validate
import promql_parser
import pytest
import yaml
from botocore.validate import ParamValidator
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.cog.plugins import register_default_plugins
from grafana_foundation_sdk.models.dashboard import Dashboard
from ray.autoscaler._private.aws.config import _configure_security_group
from ray.autoscaler._private.util import prepare_config, validate_config

from dfkd.cluster import metrics
from dfkd.config.manifest import Manifest
from tests.helpers.jobs import ROOT

FOLDER = ROOT / "cluster"
KUBERNETES = "1.37"
"""The newest API that the validator knows; the files keep to what has been stable for years."""
SCHEMA = json.loads((Path(__file__).parent / "schemas" / "kuberay.json").read_text())

Tree = dict[str, Any]


def documents(name: str) -> list[Tree]:
    return [tree for tree in yaml.safe_load_all((FOLDER / name).read_text()) if tree]


def the(name: str, kind: str) -> Tree:
    (found,) = [tree for tree in documents(f"kubernetes/{name}.yaml") if tree["kind"] == kind]
    return found


def rayjob() -> Tree:
    return the("rayjob", "RayJob")


def templates(job: Tree) -> Iterator[Tree]:
    """Of every pod that a RayJob makes; the autoscaler's container as a pod of its own."""
    spec, cluster = job["spec"], job["spec"]["rayClusterSpec"]
    yield spec["submitterPodTemplate"]
    yield cluster["headGroupSpec"]["template"]
    for group in cluster["workerGroupSpecs"]:
        yield group["template"]
    options = cluster["autoscalerOptions"]
    shared = {key: options[key] for key in ("resources", "securityContext")}
    yield {"spec": {"containers": [{"name": "autoscaler", "image": "the head's", **shared}]}}


def test_the_rayjob_is_what_kuberay_and_kubernetes_read() -> None:
    job = rayjob()
    jsonschema.Draft202012Validator(SCHEMA).validate(job)
    for template in templates(job):
        whole = {"apiVersion": "v1", "kind": "PodTemplate", "template": template}
        kubernetes_validate.validate(whole, KUBERNETES, strict=True)


def test_the_other_kubernetes_files_are_what_kubernetes_reads() -> None:
    kinds = []
    for file in sorted((FOLDER / "kubernetes").iterdir()):
        for tree in documents(f"kubernetes/{file.name}"):
            if tree["kind"] != "RayJob":
                kubernetes_validate.validate(tree, KUBERNETES, strict=True)
                kinds.append(tree["kind"])
    accounts = ["ServiceAccount", "ServiceAccount", "Role", "RoleBinding"]
    assert kinds == [*accounts, "CronJob", "NetworkPolicy"]


def test_the_aws_cluster_is_what_ray_and_ec2_read() -> None:
    (tree,) = documents("aws.yaml")
    validate_config(prepare_config(copy.deepcopy(tree)))
    ec2 = boto3.client("ec2", region_name=tree["provider"]["region"]).meta.service_model
    for kind in tree["available_node_types"].values():
        request = {"MinCount": 1, "MaxCount": 1, **kind["node_config"]}
        report = ParamValidator().validate(request, ec2.operation_model("RunInstances").input_shape)
        assert not report.has_errors(), report.generate_report()


def test_ray_makes_no_security_group_of_its_own() -> None:
    """It would open SSH of that group to the whole internet, beside the rules of the file."""
    (tree,) = documents("aws.yaml")
    assert "security_group" not in tree["provider"]  # the rules of a group that Ray makes
    configured = _configure_security_group(prepare_config(copy.deepcopy(tree)))  # asks no AWS
    groups = {
        tuple(kind["node_config"]["SecurityGroupIds"])
        for kind in configured["available_node_types"].values()
    }
    assert groups == {("sg-00000000000000000",)}


def test_the_image_is_what_hadolint_accepts() -> None:
    hadolint = str(Path(sys.executable).parent / "hadolint")
    found = subprocess.run([hadolint, str(FOLDER / "Dockerfile")], capture_output=True, text=True)
    assert found.returncode == 0, found.stdout


def test_the_image_takes_in_all_that_it_copies() -> None:
    """The ignore file lets through nothing but the sources of COPY."""
    copied = [
        word
        for line in (FOLDER / "Dockerfile").read_text().splitlines()
        if line.startswith("COPY")
        for word in line.split()[1:-1]
    ]
    ignore = (FOLDER / "Dockerfile.dockerignore").read_text().split()
    assert {line.removeprefix("!") for line in ignore if line.startswith("!")} == set(copied)
    assert ignore[0] == "*"
    assert all((ROOT / name).exists() for name in copied)


def require_known(written: Any, read: Any, place: str = "dashboard") -> None:
    """Every key that was written is one that Grafana reads, with the same value."""
    if isinstance(written, dict):
        assert written.keys() <= read.keys(), f"{place}: {written.keys() - read.keys()}"
        for key, value in written.items():
            require_known(value, read[key], f"{place}.{key}")
    elif isinstance(written, list):
        assert len(written) == len(read), place
        for number, (one, other) in enumerate(zip(written, read, strict=True)):
            require_known(one, other, f"{place}[{number}]")
    else:
        assert written == read, place


def the_dashboard() -> Tree:
    tree: Tree = json.loads((FOLDER / "dashboard.json").read_text())
    return tree


def test_the_dashboard_is_what_grafana_reads() -> None:
    register_default_plugins()
    # The SDK ignores keys that it does not know, so what it writes is compared with the file.
    read = Dashboard.from_json(the_dashboard())
    require_known(the_dashboard(), json.loads(json.dumps(read, cls=JSONEncoder)))
    panels = the_dashboard()["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    places = [panel["gridPos"] for panel in panels]
    assert all(place["x"] + place["w"] <= 24 for place in places)
    cells = [
        (x, y)
        for place in places
        for x in range(place["x"], place["x"] + place["w"])
        for y in range(place["y"], place["y"] + place["h"])
    ]
    assert len(cells) == len(set(cells)), "panels overlap"


def queried(expression: str) -> set[str]:
    """The metrics of a PromQL expression; ValueError if Prometheus could not read it."""
    for variable, value in {"$__rate_interval": "1m", "$__range": "1h"}.items():
        expression = expression.replace(variable, value)
    parsed = promql_parser.parse(expression)
    return set(re.findall(r"\bray_dfkd_\w+", str(parsed)))


def exported() -> set[str]:
    """Names that Prometheus sees."""
    return {f"ray_{count.name}_total" for count in metrics.ALL_COUNTS}


def test_the_dashboard_shows_every_metric_and_no_other() -> None:
    shown: set[str] = set()
    for panel in the_dashboard()["panels"]:
        for target in panel.get("targets", ()):
            shown |= queried(target["expr"])
    assert shown == exported()
    with pytest.raises(ValueError, match=r"."):
        queried("sum(rate(ray_dfkd_images_total[1m])")


def test_prometheus_reads_its_file() -> None:
    promtool = shutil.which("promtool")
    if promtool is None:
        pytest.skip("promtool is not installed: apt-get install promtool")
    found = subprocess.run(
        [promtool, "check", "config", str(FOLDER / "prometheus.yml")],
        capture_output=True,
        text=True,
    )
    assert found.returncode == 0, found.stderr


def test_prometheus_scrapes_the_port_and_the_pods_that_the_other_files_name() -> None:
    (tree,) = documents("prometheus.yml")
    pods, machines = tree["scrape_configs"]
    (aws,) = documents("aws.yaml")
    starts = aws["head_start_ray_commands"] + aws["worker_start_ray_commands"]
    (port,) = {found for line in starts for found in re.findall(r"export-port=(\d+)", line)}
    (ec2,) = machines["ec2_sd_configs"]
    assert str(ec2["port"]) == port
    assert ec2["region"] == aws["provider"]["region"]
    assert ec2["filters"][0]["values"] == [aws["cluster_name"]]
    cluster = rayjob()["spec"]["rayClusterSpec"]
    for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"]):
        assert group["rayStartParams"]["metrics-export-port"] == port
        (container,) = group["template"]["spec"]["containers"]
        assert {"name": "metrics", "containerPort": int(port)} in container["ports"]
        labels = group["template"]["metadata"]["labels"]
        assert labels["app.kubernetes.io/part-of"] == pods["relabel_configs"][0]["regex"]


def test_every_file_names_the_one_ray() -> None:
    constraints = (ROOT / ".ci" / "constraints.txt").read_text()
    (version,) = re.findall(r"^ray==(\S+)$", constraints, re.MULTILINE)
    for name in ("Dockerfile", "README.md", "aws.yaml", "kubernetes/rayjob.yaml"):
        assert f"dfkd:ray-{version}" in (FOLDER / name).read_text(), name
    for file in (file for file in FOLDER.rglob("*") if file.suffix in (".yaml", ".md", "")):
        if file.is_file():
            found = re.findall(r"(?:\bray-|rayVersion: |\bRay )(\d+\.\d+\.\d+)", file.read_text())
            assert set(found) <= {version}, file.name
    assert rayjob()["spec"]["rayClusterSpec"]["rayVersion"] == version


def test_no_file_holds_a_secret() -> None:
    for file in (file for file in FOLDER.rglob("*") if file.suffix in (".yaml", ".yml", ".json")):
        text = file.read_text()
        assert not re.search(r"AKIA[0-9A-Z]{16}|(?i:secret_access_key\s*[:=])", text), file.name


def pods() -> list[Tree]:
    scheduled = the("cronjob", "CronJob")["spec"]["jobTemplate"]["spec"]["template"]
    return [*templates(rayjob()), scheduled]


def test_every_container_is_bounded_and_cannot_become_root() -> None:
    for pod in pods():
        for container in pod["spec"]["containers"]:
            assert container["resources"].keys() == {"requests", "limits"}
            assert {"cpu", "memory"} <= container["resources"]["limits"].keys()
            assert container["securityContext"]["allowPrivilegeEscalation"] is False
            assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}
        if "securityContext" in pod["spec"]:  # the autoscaler's is the head's
            assert pod["spec"]["securityContext"]["runAsNonRoot"] is True
    assert sum("securityContext" in pod["spec"] for pod in pods()) == 4


def test_two_runs_never_overlap_and_none_runs_for_ever() -> None:
    cron, job = the("cronjob", "CronJob")["spec"], rayjob()["spec"]
    assert cron["concurrencyPolicy"] == "Forbid"
    assert cron["startingDeadlineSeconds"] >= 100  # below it, Kubernetes may skip every start
    within = job["activeDeadlineSeconds"] * (job["backoffLimit"] + 1)
    assert within < cron["jobTemplate"]["spec"]["activeDeadlineSeconds"]
    assert job["shutdownAfterJobFinishes"] is True
    assert cron["jobTemplate"]["spec"]["ttlSecondsAfterFinished"] > job["ttlSecondsAfterFinished"]


def test_a_pod_that_saw_its_run_fail_is_not_replaced() -> None:
    """submit.py exits with 1 then, and with 4 if the API failed."""
    spec = the("cronjob", "CronJob")["spec"]["jobTemplate"]["spec"]
    evicted = {"action": "Ignore", "onPodConditions": [{"type": "DisruptionTarget"}]}
    failed = {"action": "FailJob", "onExitCodes": {"operator": "In", "values": [1]}}
    assert spec["podFailurePolicy"]["rules"] == [evicted, failed]  # the first that fits counts
    assert spec["template"]["spec"]["restartPolicy"] == "Never"  # which such a policy needs


def test_ray_is_closed() -> None:
    """Token mode everywhere, and nobody but the operator reaches a port that runs code."""
    cluster = rayjob()["spec"]["rayClusterSpec"]
    assert cluster["authOptions"] == {"mode": "token"}
    for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"]):
        (container,) = group["template"]["spec"]["containers"]
        assert {"name": "RAY_AUTH_MODE", "value": "token"} in container["env"]
    policy = the("network", "NetworkPolicy")["spec"]
    assert policy["policyTypes"] == ["Ingress", "Egress"]
    label = policy["podSelector"]["matchLabels"]
    for pod in [*pods()[:3], pods()[-1]]:
        assert pod["metadata"]["labels"] == label
    own, operator, monitoring = policy["ingress"]
    assert own == {"from": [{"podSelector": {"matchLabels": label}}]}
    assert [port["port"] for port in operator["ports"]] == [8265]
    assert [port["port"] for port in monitoring["ports"]] == [8080]
    assert all(
        "namespaceSelector" in each for rule in policy["ingress"][1:] for each in rule["from"]
    )
    (tree,) = documents("aws.yaml")
    for line in (tree["head_start_ray_commands"] + tree["worker_start_ray_commands"])[1::2]:
        assert "RAY_AUTH_MODE=token ray start" in line


def test_the_schedule_may_create_and_watch_rayjobs_and_nothing_else() -> None:
    assert the("access", "Role")["rules"] == [
        {"apiGroups": ["ray.io"], "resources": ["rayjobs"], "verbs": ["create", "get"]}
    ]
    (subject,) = the("access", "RoleBinding")["subjects"]
    pod = the("cronjob", "CronJob")["spec"]["jobTemplate"]["spec"]["template"]["spec"]
    assert pod["serviceAccountName"] == subject["name"] == "dfkd-schedule"


def test_the_entrypoint_is_a_command_that_works() -> None:
    shell, again, pause, program, script, path, *words = shlex.split(rayjob()["spec"]["entrypoint"])
    assert (shell, program) == ("sh", "python")
    assert (ROOT / again).is_file()
    assert float(pause) > 0
    assert (ROOT / script).is_file()
    assert words[::2] == ["--set"] * len(words[::2])
    manifest = Manifest.read(str(ROOT / path), tuple(words[1::2]))
    assert manifest.storage.root.startswith("s3://")
