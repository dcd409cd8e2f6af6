#!/usr/bin/env python3
"""Wraps layers (tar files) as a docker-archive that `ctr images import` takes. Images may share layers.

usage: image.py OUT.tar <IMAGES, where IMAGES is JSON: [{"name": "NAME:TAG", "layers": ["FILE.tar", ...], "config": {...}}]
`config` is the image's own: Env, Entrypoint, Cmd, User, ..."""

import hashlib
import io
import json
import os
import sys
import tarfile


def digest_of(path):
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def add(archive, name, data):
    info = tarfile.TarInfo(name)
    info.size = len(data)
    archive.addfile(info, io.BytesIO(data))


def main():
    out, images = sys.argv[1], json.load(sys.stdin)
    digests = {path: digest_of(path) for image in images for path in image["layers"]}
    manifest = []
    with tarfile.open(out + ".partial", "w") as archive:
        for path, digest in digests.items():
            archive.add(path, digest + ".tar")
        for image in images:
            diff_ids = ["sha256:" + digests[path] for path in image["layers"]]
            config = json.dumps({
                "architecture": "amd64",
                "os": "linux",
                "config": image["config"],
                "rootfs": {"type": "layers", "diff_ids": diff_ids},
            }).encode()
            config_name = hashlib.sha256(config).hexdigest() + ".json"
            add(archive, config_name, config)
            manifest.append({
                "Config": config_name,
                "RepoTags": [image["name"]],
                "Layers": [digests[path] + ".tar" for path in image["layers"]],
            })
        add(archive, "manifest.json", json.dumps(manifest).encode())
    os.replace(out + ".partial", out)


main()
