"""Manifests that are wrong in one place. Each change is applied to a copy of what is right, and must be refused:
otherwise the check proves nothing."""

from relations import container, find, pod


def workload(objects):
    return find(objects, "Deployment", "DaemonSet")["spec"]


def change_configuration(old, new):
    def change(objects):
        data = find(objects, "ConfigMap")["data"]
        assert old in data["echo-uring.toml"], f"{old!r} is not in the configuration"
        data["echo-uring.toml"] = data["echo-uring.toml"].replace(old, new)

    return change


def replace_in_profile(old, new):
    def change(objects):
        data = find(objects, "ConfigMap")["data"]
        data["echo-uring.json"] = data["echo-uring.json"].replace(old, new)

    return change


def node(objects):
    return find(objects, "DaemonSet")["spec"]["template"]["spec"]


def pod_monitor(objects):
    return find(objects, "PodMonitor")["spec"]


# Refused by the schemas: of "base with pod-monitor".
SCHEMA = {
    "a misspelled field of the pod": lambda it: pod(it)["spec"].update(terminationGracePeriodSecond=35),
    "a port that is no number": lambda it: container(it)["ports"][0].update(containerPort="echo"),
    "a missing selector": lambda it: workload(it).pop("selector"),
    "a probe without a port": lambda it: container(it)["readinessProbe"]["httpGet"].pop("port"),
    "a Service without ports by name": lambda it: find(it, "Service")["spec"].update(port=7),
    "a policy with a misspelled rule": lambda it: find(it, "NetworkPolicy")["spec"].update(ingres=[]),
    "a version that does not exist": lambda it: find(it, "Service").update(apiVersion="v2"),
    "a kind that does not exist": lambda it: find(it, "Service").update(kind="Servis"),
    "a ConfigMap with a number": lambda it: find(it, "ConfigMap")["data"].update(number=7),
    "a PodMonitor with a misspelled field": lambda it: pod_monitor(it).update(joblabel="x"),
    "a PodMonitor without a selector": lambda it: pod_monitor(it).pop("selector"),
    "an endpoint with a misspelled field": lambda it: pod_monitor(it)["podMetricsEndpoints"][0].update(Path="/"),
    "an endpoint whose port is a number": lambda it: pod_monitor(it)["podMetricsEndpoints"][0].update(port=17007),
}

# Refused by the relations, in "base".
RELATIONS = {
    "another port of TCP": change_configuration('"[::]:7777"', '"[::]:7778"'),
    "another port of UDP": change_configuration('"udp:[::]:7777"', '"udp:[::]:7778"'),
    "another port of the metrics": change_configuration("17007", "17008"),
    "a longer drain": change_configuration('drain = "15s"', 'drain = "1m"'),
    "a longer lead": change_configuration('drain-lead = "10s"', 'drain-lead = "16s"'),
    "no lead": change_configuration('drain-lead = "10s"', 'drain-lead = "0s"'),
    "more memory for stalled peers": change_configuration("64MiB", "129MiB"),
    "the socket elsewhere": change_configuration("unix:/run/", "unix:/var/run/"),
    "a shorter grace period": lambda it: pod(it)["spec"].update(terminationGracePeriodSeconds=29),
    "a preStop hook": lambda it: container(it).update(lifecycle={"preStop": {"sleep": {"seconds": 6}}}),
    "a port of the container": lambda it: container(it)["ports"][1].update(containerPort=7778),
    "a Service that leads elsewhere": lambda it: find(it, "Service")["spec"]["ports"][0].update(targetPort=7778),
    "two ports of the Service": lambda it: find(it, "Service")["spec"]["ports"][0].update(port=8),
    "a policy for another port": lambda it: find(it, "NetworkPolicy")["spec"]["ingress"][0]["ports"].pop(),
    "metrics for all": lambda it: find(it, "NetworkPolicy")["spec"]["ingress"][1].pop("from"),
    "a policy for every pod": lambda it: find(it, "NetworkPolicy")["spec"].update(podSelector={}),
    "a budget for every pod": lambda it: find(it, "PodDisruptionBudget")["spec"].update(selector={}),
    "an old image": lambda it: container(it).update(image="localhost/echo-uring:0.1.0"),
    "/ready as the probe": lambda it: container(it)["readinessProbe"]["httpGet"].update(path="/ready"),
    "a capability": lambda it: container(it)["securityContext"].update(capabilities={"add": ["NET_RAW"]}),
    "a user of the host": lambda it: pod(it)["spec"]["securityContext"].update(runAsUser=0),
    "no group of the volume": lambda it: pod(it)["spec"]["securityContext"].pop("fsGroup"),
    "a ConfigMap of another name": lambda it: find(it, "ConfigMap")["metadata"].update(name="other"),
}

# Refused by the relation of the profile, in "nodes".
PROFILE = {
    "a file of another name": lambda it: node(it)["containers"][0]["command"].__setitem__(3, "/seccomp/echo.json"),
    "another directory of the node": lambda it: node(it)["volumes"][1]["hostPath"].update(path="/var/lib/seccomp"),
    "a call less in the profile": replace_in_profile('"io_uring_enter",', ""),
    "a script that is not there": lambda it: find(it, "ConfigMap")["data"].pop("install-profile"),
    "a probe of another file": lambda it: node(it)["containers"][0]["readinessProbe"]["exec"]["command"].pop(),
}
