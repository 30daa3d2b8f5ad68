"""Validates rendered manifests, and checks their relations: judge.py FILE, a JSON object of YAML texts."""

import copy
import functools
import json
import pathlib
import sys

sys.dont_write_bytecode = True

import kubernetes_validate  # noqa: E402
import relations  # noqa: E402
import wrong  # noqa: E402
import yaml  # noqa: E402
from cloudcoil.models.prometheus_operator.v1 import PodMonitor  # noqa: E402

# The oldest that has what the manifests need, one between, and the newest whose schema there is.
VERSIONS = ["1.29", "1.33", "1.37"]
# Definitions that no package has. They were compared with their sources by hand: docs/kubernetes.md.
NOT_VALIDATED = {
    "security-profiles-operator.x-k8s.io/v1 SeccompProfile",
    "gateway.networking.k8s.io/v1 Gateway",
    "gateway.networking.k8s.io/v1 TCPRoute",
    "gateway.networking.k8s.io/v1 UDPRoute",
}


class Refused(Exception):
    """The object is not valid."""


# Each validation would read a megabyte of definitions again.
kubernetes_validate.utils.schema_contents = functools.cache(kubernetes_validate.utils.schema_contents)


def validate(manifest):
    """Returns how many validations the object has passed; 0 if there is no schema for it."""
    # Most objects are the same in every rendering.
    return validate_text(json.dumps(manifest))


@functools.cache
def validate_text(text):
    manifest = json.loads(text)
    kind = f"{manifest['apiVersion']} {manifest['kind']}"
    if kind in NOT_VALIDATED:
        return 0
    if kind == "monitoring.coreos.com/v1 PodMonitor":
        validate_pod_monitor(manifest)
        return 1
    for version in VERSIONS:
        try:
            kubernetes_validate.validate(manifest, version, strict=True)
        except kubernetes_validate.SchemaNotFoundError as error:
            raise Refused(f"{kind} is unknown to Kubernetes {version}") from error
        except kubernetes_validate.ValidationError as error:
            path = ".".join(map(str, error.path))
            raise Refused(f"{kind}, Kubernetes {version}: {path}: {error.message}") from error
    return len(VERSIONS)


def validate_pod_monitor(manifest):
    try:
        model = PodMonitor.model_validate(manifest)
    except ValueError as error:
        raise Refused(f"PodMonitor: {error}") from error
    # The models ignore fields that they do not know, so what they know is compared.
    known = json.loads(model.model_dump_json(by_alias=True, exclude_unset=True))
    if known != manifest:
        raise Refused(f"PodMonitor: of {manifest} only {known} is known")


def refuses(judge, objects, change):
    """The refusal of `objects` after the change; None if there is none."""
    changed = copy.deepcopy(objects)
    change(changed)
    relations.expect(changed != objects, "the change changes nothing")
    try:
        judge(changed)
    except (Refused, AssertionError) as refusal:
        return refusal
    return None


def judge_schema(objects):
    return sum(validate(manifest) for manifest in objects)


def judge_relations(objects):
    for rule in relations.RULES:
        rule(objects)


def must_refuse(judge, objects, changes):
    for name, change in changes.items():
        refusal = refuses(judge, objects, change)
        relations.expect(refusal is not None, f"not refused, though it is wrong: {name}")
        print(f"  refused: {name}: {str(refusal).splitlines()[0][:110]}")


def main():
    texts = json.loads(pathlib.Path(sys.argv[1]).read_text())
    rendered = {name: list(yaml.safe_load_all(text)) for name, text in texts.items()}
    distinct = {json.dumps(it): it for objects in rendered.values() for it in objects}.values()
    passed = judge_schema(distinct)
    unread = sorted({it["kind"] for it in distinct if validate(it) == 0})
    print(f"{len(distinct)} objects passed {passed} strict validations (Kubernetes {', '.join(VERSIONS)})")
    print(f"not validated, as there is no package with their definitions: {', '.join(unread)}")
    must_refuse(judge_schema, rendered["base with pod-monitor"], wrong.SCHEMA)
    for name, objects in rendered.items():
        if name != "nodes":
            try:
                judge_relations(objects)
            except AssertionError as failure:
                raise AssertionError(f"{name}: {failure}") from failure
    judge_profile = functools.partial(
        relations.the_profile_is_where_pods_look_for_it,
        rendered["base"], rendered["base with security-profiles-operator"],
    )  # fmt: skip
    judge_profile(rendered["nodes"])
    print(f"{len(relations.RULES)} relations hold in each rendering, and those of the seccomp profile")
    must_refuse(judge_relations, rendered["base"], wrong.RELATIONS)
    must_refuse(judge_profile, rendered["nodes"], wrong.PROFILE)


if __name__ == "__main__":
    try:
        main()
    except (Refused, AssertionError) as failure:
        sys.exit(f"judge: {failure}")
