"""Writes the container image: an OCI image layout in one archive, from nothing but files.

    image.py --program FILE --version VERSION --machine MACHINE --output FILE

No container engine is needed. The format is the OCI image specification 1.1: image-layout.md, manifest.md,
config.md, layer.md. The archive also has the manifest.json of `docker save`, which Docker before 25 loads.
Same input, same bytes: names are in order, owners and times are fixed (SOURCE_DATE_EPOCH).
"""

import argparse
import datetime
import gzip
import hashlib
import io
import json
import os
import pathlib
import tarfile

ROOT = pathlib.Path(__file__).resolve().parents[2]
# As `uname -m` has them, and as the image specification has them (GOARCH).
ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64"}
# The user of the daemon: without files, and not that of any package. 65532 is what other images from
# scratch call "nonroot".
USER = 65532
# The socket of `echo-uring status` is made in it.
RUN = "run/echo-uring"
MANIFEST = "application/vnd.oci.image.manifest.v1+json"
CONFIG = "application/vnd.oci.image.config.v1+json"
LAYER = "application/vnd.oci.image.layer.v1.tar+gzip"
INDEX = "application/vnd.oci.image.index.v1+json"


def archive(entries, epoch):
    """The bytes of a tar archive. An entry is (name, mode, owner, content); None makes a directory."""
    output = io.BytesIO()
    with tarfile.open(fileobj=output, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for name, mode, owner, content in entries:
            member = tarfile.TarInfo(name)
            member.mode, member.uid, member.gid, member.mtime = mode, owner, owner, epoch
            if content is None:
                member.type = tarfile.DIRTYPE
                tar.addfile(member)
            else:
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
    return output.getvalue()


def root_directory(program):
    """The entries of the image's only layer, parents first."""
    def file(source, name, mode=0o644):
        return (name, mode, 0, (ROOT / source).read_bytes())

    passwd = f"root:x:0:0:root:/:/sbin/nologin\nnonroot:x:{USER}:{USER}:nonroot:/:/sbin/nologin\n"
    group = f"root:x:0:\nnonroot:x:{USER}:\n"
    files = [
        file(program, "usr/sbin/echo-uring", 0o755),
        file("packaging/container/echo-uring.toml", "etc/echo-uring.toml"),
        file("packaging/container/seccomp.json", "usr/share/echo-uring/seccomp.json"),
        file("LICENSE-APACHE", "usr/share/doc/echo-uring/LICENSE-APACHE"),
        file("LICENSE-MIT", "usr/share/doc/echo-uring/LICENSE-MIT"),
        ("etc/passwd", 0o644, 0, passwd.encode()),
        ("etc/group", 0o644, 0, group.encode()),
    ]
    parents = {str(parent) for name, *_ in files for parent in pathlib.PurePath(name).parents}
    parents |= {"run", "etc/echo-uring.toml.d"}
    directories = [(name, 0o755, 0, None) for name in parents - {"."}]
    return sorted(files + directories + [(RUN, 0o750, USER, None)])


def configuration(options, created, diff_id):
    """How the image is run, and its labels."""
    labels = {
        "title": "echo-uring",
        "description": "Echo service (RFC 862; TCP, UDP, Unix) on io_uring",
        "version": options.version,
        "licenses": "MIT OR Apache-2.0",
        "source": "https://github.com/echo-uring/echo-uring",
        "documentation": "https://github.com/echo-uring/echo-uring/blob/main/docs/containers.md",
        "created": created,
    }
    return {
        "created": created,
        "architecture": ARCHITECTURES[options.machine],
        "os": "linux",
        "config": {
            "User": f"{USER}:{USER}",
            "ExposedPorts": {"7777/tcp": {}, "7777/udp": {}, "17007/tcp": {}},
            # With it `docker exec NAME echo-uring status` finds the program.
            "Env": ["PATH=/usr/sbin"],
            "Entrypoint": ["/usr/sbin/echo-uring"],
            "WorkingDir": "/",
            # Writable on a read-only root file system, too.
            "Volumes": {f"/{RUN}": {}},
            "StopSignal": "SIGTERM",
            "Labels": {f"org.opencontainers.image.{key}": value for key, value in labels.items()},
        },
        "rootfs": {"type": "layers", "diff_ids": [diff_id]},
        "history": [{"created": created, "created_by": "packaging/build-image"}],
    }


class Layout:
    """The files of an image layout; blobs are named by their digest."""

    def __init__(self):
        self.files = {}

    def blob(self, media_type, content):
        """Adds a blob; returns its descriptor."""
        digest = hashlib.sha256(content).hexdigest()
        self.files[f"blobs/sha256/{digest}"] = content
        return {"mediaType": media_type, "digest": f"sha256:{digest}", "size": len(content)}

    def entries(self):
        """What `archive` takes."""
        directories = [(name, 0o755, 0, None) for name in ("blobs", "blobs/sha256")]
        return sorted(directories + [(name, 0o644, 0, it) for name, it in self.files.items()])


def encoded(value):
    """JSON with its members in order."""
    return json.dumps(value, sort_keys=True, separators=(",", ":")).encode()


def image(options, epoch):
    """The layout of the image."""
    moment = datetime.datetime.fromtimestamp(epoch, datetime.timezone.utc)
    created = moment.strftime("%Y-%m-%dT%H:%M:%SZ")
    tar = archive(root_directory(options.program.resolve()), epoch)
    layout = Layout()
    layer = layout.blob(LAYER, gzip.compress(tar, compresslevel=9, mtime=0))
    diff_id = f"sha256:{hashlib.sha256(tar).hexdigest()}"
    config = layout.blob(CONFIG, encoded(configuration(options, created, diff_id)))
    manifest = {
        "schemaVersion": 2,
        "mediaType": MANIFEST,
        "config": config,
        "layers": [layer],
    }
    descriptor = layout.blob(MANIFEST, encoded(manifest))
    reference = f"localhost/echo-uring:{options.version}"
    descriptor["platform"] = {"architecture": ARCHITECTURES[options.machine], "os": "linux"}
    descriptor["annotations"] = {
        # containerd and Docker take the name of the image from the former, OCI tools from the latter.
        "io.containerd.image.name": reference,
        "org.opencontainers.image.ref.name": options.version,
    }
    index = {"schemaVersion": 2, "mediaType": INDEX, "manifests": [descriptor]}
    path = "blobs/" + config["digest"].replace(":", "/")
    layers = ["blobs/" + layer["digest"].replace(":", "/")]
    legacy = [{"Config": path, "RepoTags": [reference], "Layers": layers}]
    layout.files["index.json"] = encoded(index)
    layout.files["manifest.json"] = encoded(legacy)
    layout.files["oci-layout"] = encoded({"imageLayoutVersion": "1.0.0"})
    return layout


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--program", required=True, type=pathlib.Path)
    parser.add_argument("--version", required=True)
    parser.add_argument("--machine", required=True, choices=ARCHITECTURES)
    parser.add_argument("--output", required=True, type=pathlib.Path)
    options = parser.parse_args()
    epoch = int(os.environ["SOURCE_DATE_EPOCH"])
    options.output.write_bytes(archive(image(options, epoch).entries(), epoch))


if __name__ == "__main__":
    main()
