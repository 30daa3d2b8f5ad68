"""What must hold between the manifests, the configuration in the ConfigMap, the image and the project. Each
rule takes the objects of one rendering and raises AssertionError; its docstring says what it demands."""

import json
import pathlib
import re
import tomllib

ROOT = pathlib.Path(__file__).resolve().parents[2]
LABELS = {"app.kubernetes.io/name": "echo-uring"}
# How long the last connections of a drain have to end, in seconds (echo-uring.toml(5), timeouts.drain).
LINGER = 5
UNITS = {"ms": 0.001, "s": 1, "m": 60, "h": 3600}


def expect(condition, message):
    if not condition:
        raise AssertionError(message)


def seconds(text):
    """A duration of the configuration."""
    parts = re.findall(r"(\d+)(ms|s|m|h)", text)
    expect("".join(map("".join, parts)) == text.replace(" ", ""), f"not a duration: {text!r}")
    return sum(int(number) * UNITS[unit] for number, unit in parts)


def size(text):
    """A size of the configuration, or a quantity of Kubernetes."""
    number, unit = re.fullmatch(r"(\d+)([KMG])iB?", text).groups()
    return int(number) << {"K": 10, "M": 20, "G": 30}[unit]


def find(objects, *kinds):
    """The only object of these kinds."""
    found = [it for it in objects if it["kind"] in kinds]
    expect(len(found) == 1, f"{len(found)} objects of kind {' or '.join(kinds)}")
    return found[0]


def pod(objects):
    """The template of the pods of echo-uring."""
    return find(objects, "Deployment", "DaemonSet")["spec"]["template"]


def container(objects):
    containers = pod(objects)["spec"]["containers"]
    expect(len(containers) == 1, "there is more than one container")
    return containers[0]


def configuration_text(objects):
    """The file that the daemon reads, as its arguments, the mounts and the ConfigMap have it."""
    arguments = container(objects)["args"]
    expect(arguments[:1] == ["--config"] and len(arguments) == 2, f"arguments: {arguments}")
    directory, name = arguments[1].rsplit("/", 1)
    mount = [it for it in container(objects)["volumeMounts"] if it["mountPath"] == directory]
    expect(len(mount) == 1 and mount[0].get("readOnly"), f"{directory} is not mounted read-only")
    volume = [it for it in pod(objects)["spec"]["volumes"] if it["name"] == mount[0]["name"]]
    maps = [it for it in objects if it["kind"] == "ConfigMap"]
    wanted = volume[0]["configMap"]["name"]
    data = [it["data"] for it in maps if it["metadata"]["name"] == wanted]
    expect(len(data) == 1 and name in data[0], f"no ConfigMap {wanted} with {name}")
    return data[0][name]


def configuration(objects):
    return tomllib.loads(configuration_text(objects))


def listeners(objects):
    """The ports of the configuration: (kind, protocol) and the number."""
    ports = {}
    for listener in configuration(objects)["listener"]:
        address = listener["address"]
        if address.startswith("unix:"):
            continue
        protocol = "UDP" if address.startswith("udp:") else "TCP"
        ports[listener["kind"], protocol] = int(address.rsplit(":", 1)[1])
    return ports


def the_ports_are_the_same_everywhere(objects):
    """Ports of the configuration, of the container, of the Service and of the NetworkPolicy."""
    wanted = listeners(objects)
    names = {"echo-tcp": ("echo", "TCP"), "echo-udp": ("echo", "UDP"), "metrics": ("metrics", "TCP")}
    expect(set(wanted) == set(names.values()), f"listeners: {wanted}")
    found = {it["name"]: (it["containerPort"], it["protocol"]) for it in container(objects)["ports"]}
    demanded = {name: (wanted[key], key[1]) for name, key in names.items()}
    expect(found == demanded, f"ports of the container are {found}, of the configuration {demanded}")
    service = find(objects, "Service")["spec"]
    targets = {(it["targetPort"], it["protocol"]) for it in service["ports"]}
    expect(targets == {("echo-tcp", "TCP"), ("echo-udp", "UDP")}, f"the Service leads to {targets}")
    expect(len({it["port"] for it in service["ports"]}) == 1, "TCP and UDP have different ports")
    if service.get("clusterIP") == "None":
        # Clients of a headless Service connect to the port of the pod.
        expect(service["ports"][0]["port"] == wanted["echo", "TCP"], "the port of the headless Service")
    rules = find(objects, "NetworkPolicy")["spec"]["ingress"]
    anyone = {(it["port"], it["protocol"]) for rule in rules if "from" not in rule for it in rule["ports"]}
    some = {(it["port"], it["protocol"]) for rule in rules if "from" in rule for it in rule["ports"]}
    echo = {(wanted["echo", protocol], protocol) for protocol in ("TCP", "UDP")}
    expect(anyone == echo, f"the NetworkPolicy opens {anyone} to all, and not {echo}")
    expect(some == {(wanted["metrics", "TCP"], "TCP")}, f"the NetworkPolicy opens {some} to some")


def a_stop_fits_the_grace_period(objects):
    """terminationGracePeriodSeconds is at least preStop + drain-lead + drain + 5 s."""
    timeouts = configuration(objects)["timeouts"]
    hook = container(objects).get("lifecycle", {}).get("preStop", {})
    expect(not hook or set(hook) == {"sleep"}, "a preStop hook whose time is unknown")
    before = hook.get("sleep", {}).get("seconds", 0)
    stop = before + seconds(timeouts["drain-lead"]) + seconds(timeouts["drain"]) + LINGER
    grace = pod(objects)["spec"]["terminationGracePeriodSeconds"]
    expect(grace >= stop, f"the grace period is {grace} s, and a stop may take {stop:g} s")


def the_lead_is_noticed(objects):
    """The lead is longer than the readiness probe needs to notice anything, so /serving matters."""
    probe = container(objects)["readinessProbe"]
    notice = probe["periodSeconds"] * probe["failureThreshold"]
    lead = seconds(configuration(objects)["timeouts"]["drain-lead"])
    expect(lead > notice, f"the lead of {lead:g} s is over before a probe each {notice} s notices")


def the_probes_have_their_paths(objects):
    """Liveness is /healthz, and readiness /serving, at the port of the metrics."""
    for probe, path in (("livenessProbe", "/healthz"), ("readinessProbe", "/serving")):
        found = container(objects)[probe]["httpGet"]
        expect(found == {"path": path, "port": "metrics"}, f"{probe}: {found}")


def the_image_is_that_of_this_version(objects):
    """The tag of the image is the version in Cargo.toml."""
    version = tomllib.loads((ROOT / "Cargo.toml").read_text())["workspace"]["package"]["version"]
    tag = container(objects)["image"].rsplit(":", 1)[1]
    expect(tag == version, f"the image has the tag {tag}, and the project version {version}")


def every_selector_means_the_pods(objects):
    """No selector is empty, which would mean every pod of the namespace."""
    labels = pod(objects)["metadata"]["labels"]
    expect(labels == LABELS, f"labels of the pod: {labels}")
    workload = find(objects, "Deployment", "DaemonSet")["spec"]
    spread = pod(objects)["spec"].get("topologySpreadConstraints", [])
    selectors = [workload["selector"], *(it["labelSelector"] for it in spread)]
    selectors.append({"matchLabels": find(objects, "Service")["spec"]["selector"]})
    selectors.append(find(objects, "NetworkPolicy")["spec"]["podSelector"])
    selectors += [
        it["spec"]["selector"] for it in objects if it["kind"] in ("PodDisruptionBudget", "PodMonitor")
    ]
    for selector in selectors:
        expect(selector == {"matchLabels": LABELS}, f"a selector: {selector}")


def the_pod_has_no_privilege(objects):
    """What the level "restricted" of pod security demands, and a root file system that is read-only."""
    spec, context = pod(objects)["spec"], container(objects)["securityContext"]
    expect(context.get("capabilities") == {"drop": ["ALL"]}, "capabilities")
    expect(context.get("allowPrivilegeEscalation") is False, "privileges may be gained")
    expect(context.get("readOnlyRootFilesystem") is True, "the root file system is not read-only")
    whole = spec["securityContext"]
    # The user of the image: see packaging/container/image.py.
    for key in ("runAsUser", "runAsGroup", "fsGroup"):
        expect(whole.get(key) == 65532, f"{key} is {whole.get(key)}")
    expect(whole.get("runAsNonRoot") is True, "the pod may run as root")
    expect(whole["seccompProfile"]["type"] == "Localhost", "the seccomp profile")
    for key in ("hostNetwork", "hostPID", "hostIPC"):
        expect(not spec.get(key), f"{key} is set")
    expect(spec.get("automountServiceAccountToken") is False, "the pod has a token")


def memory_is_enough(objects):
    """What stalled peers may occupy is at most half of the container's memory."""
    stalled = size(configuration(objects)["limits"]["stalled-memory"])
    limit = size(container(objects)["resources"]["limits"]["memory"])
    expect(2 * stalled <= limit, f"stalled peers may occupy {stalled} of {limit} bytes")


def the_status_socket_has_its_volume(objects):
    """The directory of the status socket is a volume that can be written."""
    path = next(
        it["address"].removeprefix("unix:") for it in configuration(objects)["listener"] if it["kind"] == "status"
    )
    mounts = {it["mountPath"]: it for it in container(objects)["volumeMounts"]}
    mount = mounts.get(path.rsplit("/", 1)[0])
    expect(mount and not mount.get("readOnly"), f"{path} is in no volume that can be written")
    volume = next(it for it in pod(objects)["spec"]["volumes"] if it["name"] == mount["name"])
    expect("emptyDir" in volume, f"{path}: {volume}")


RULES = [
    the_ports_are_the_same_everywhere,
    a_stop_fits_the_grace_period,
    the_lead_is_noticed,
    the_probes_have_their_paths,
    the_image_is_that_of_this_version,
    every_selector_means_the_pods,
    the_pod_has_no_privilege,
    memory_is_enough,
    the_status_socket_has_its_volume,
]


def the_profile_is_where_pods_look_for_it(base, operator, nodes):
    """The file of the DaemonSet, and the object of the operator, are what the pods name; and both permit what
    packaging/container/seccomp.json permits."""
    profile = json.loads((ROOT / "packaging/container/seccomp.json").read_text())
    wanted = pod(base)["spec"]["securityContext"]["seccompProfile"]["localhostProfile"]
    spec = find(nodes, "DaemonSet")["spec"]["template"]["spec"]
    container = spec["containers"][0]
    shell, script, source, destination = container["command"]
    mounts = {it["mountPath"]: it["name"] for it in container["volumeMounts"]}
    volumes = {it["name"]: it for it in spec["volumes"]}
    host = volumes[mounts[destination.rsplit("/", 1)[0]]]["hostPath"]["path"]
    expect(host == "/var/lib/kubelet/seccomp", f"the profile is written to {host}")
    expect(destination.endswith(f"/{wanted}"), f"pods look for {wanted}, and the node has {destination}")
    data = find(nodes, "ConfigMap")
    for path in (script, source):
        directory, name = path.rsplit("/", 1)
        expect(volumes[mounts[directory]]["configMap"]["name"] == data["metadata"]["name"], f"{path}: mount")
        expect(name in data["data"], f"the ConfigMap has no {name}")
    expect(shell == "sh", f"the interpreter is {shell}")
    expect(container["readinessProbe"]["exec"]["command"][-2:] == [source, destination], "the probe")
    expect(json.loads(data["data"][source.rsplit("/", 1)[1]]) == profile, "the profile in the ConfigMap")
    wanted = pod(operator)["spec"]["securityContext"]["seccompProfile"]["localhostProfile"]
    made = find(operator, "SeccompProfile")
    expect(wanted == f"operator/{made['metadata']['name']}.json", f"pods look for {wanted}")
    spec = made["spec"]
    expect(spec["defaultAction"] == profile["defaultAction"], "the default of the operator's profile")
    expect(spec["architectures"] == profile["architectures"], "the architectures of the operator's profile")
    calls = [{key: it[key] for key in ("action", "names")} for it in profile["syscalls"]]
    expect(spec["syscalls"] == calls, "the calls of the operator's profile")
