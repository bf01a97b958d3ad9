"""As much of kustomize as k8s/ uses, for machines without kubectl; a test compares it with kubectl where there is one.

Resources, components, images, patches (JSON 6902, and `$patch: delete`), and replacements of a whole field. What it
does not know it refuses, so that nothing is left out in silence.
"""

import copy
import json
from pathlib import Path
from typing import Any

import yaml

Document = dict[str, Any]
KNOWN = {"apiVersion", "kind", "resources", "components", "images", "patches", "replacements"}


class Unknown(NotImplementedError):
    """The folder asks for more of kustomize than this module knows."""


def render(folder: Path) -> list[Document]:
    """The documents that `kubectl kustomize FOLDER` prints, in some order."""
    return _built(folder, [])


def _built(folder: Path, documents: list[Document]) -> list[Document]:
    """What a kustomization adds to documents and makes of them; a component is given those of whom it belongs to."""
    told = _read(folder / "kustomization.yaml")[0]
    unknown = set(told) - KNOWN
    if unknown:
        raise Unknown(f"{folder}/kustomization.yaml has {', '.join(sorted(unknown))}")
    for name in told.get("resources", ()):
        if "://" in name:
            raise Unknown(f"{folder}/kustomization.yaml has the resource {name}")
        documents = documents + (render(folder / name) if (folder / name).is_dir() else _loaded(folder / name))
    for name in told.get("components", ()):
        documents = _built(folder / name, documents)
    for patch in told.get("patches", ()):
        text = patch["patch"] if "patch" in patch else (folder / patch["path"]).read_text("utf-8")
        documents = _patched(documents, _yaml(text)[0], patch.get("target", {}))
    for image in told.get("images", ()):
        for document in documents:
            _tag(document, image)
    for replacement in told.get("replacements", ()):
        _replace(documents, replacement)
    return documents


def _loaded(file: Path) -> list[Document]:
    # By way of JSON: what YAML names once and uses twice (&, *) would be changed in both places.
    return [json.loads(json.dumps(document)) for document in _read(file) if document]


def _read(file: Path) -> list[Any]:
    return _yaml(file.read_text("utf-8"))


def _yaml(text: str) -> list[Any]:
    return list(yaml.load_all(text, Loader=yaml.CSafeLoader))


def _patched(documents: list[Document], patch: Any, target: dict[str, str]) -> list[Document]:
    if isinstance(patch, dict):
        if patch.get("$patch") != "delete":
            raise Unknown(f"a strategic merge patch of {patch.get('kind')}")
        kept = [each for each in documents if _identity(each) != _identity(patch)]
        if len(kept) != len(documents) - 1:
            raise LookupError(f"nothing to delete: {_identity(patch)}")
        return kept
    chosen = [each for each in documents if _chosen(each, target)]
    if not chosen:
        raise LookupError(f"no document for the target {target}")
    for document in chosen:
        for operation in copy.deepcopy(patch):
            operate(document, operation)
    return documents


def _chosen(document: Document, target: dict[str, str]) -> bool:
    """Whether a target means this document."""
    called = {"kind": document["kind"], "name": document["metadata"]["name"]}
    return all(called[key] == wanted for key, wanted in target.items())


def operate(document: Document, operation: dict[str, Any]) -> None:
    """Apply one operation of JSON 6902 to a document, in place."""
    *above, last = [part.replace("~1", "/").replace("~0", "~") for part in operation["path"].split("/")[1:]]
    place: Any = document
    for part in above:
        place = place[int(part)] if isinstance(place, list) else place[part]
    key: Any = last if isinstance(place, dict) else len(place) if last == "-" else int(last)
    match operation["op"]:
        case "add" if isinstance(place, list):
            place.insert(key, operation["value"])
        case "add":
            place[key] = operation["value"]
        case "replace":
            place[key]  # what is not there cannot be replaced
            place[key] = operation["value"]
        case "remove":
            del place[key]
        case other:
            raise Unknown(f"the operation {other} of a patch")


def _tag(node: Any, image: dict[str, str]) -> None:
    """Name anew the image of each container that has this one."""
    if isinstance(node, list):
        for each in node:
            _tag(each, image)
    elif isinstance(node, dict):
        for name, inner in node.items():
            if name in ("containers", "initContainers"):
                for container in inner:
                    if container["image"].partition(":")[0] == image["name"]:
                        container["image"] = _named(container["image"], image)
            _tag(inner, image)


def _named(image: str, told: dict[str, str]) -> str:
    if not set(told) <= {"name", "newName", "newTag", "digest"}:
        raise Unknown(f"an image with {', '.join(sorted(told))}")
    name, digest = told.get("newName", told["name"]), told.get("digest")
    tag = told.get("newTag") or ("" if digest else image.partition(":")[2])  # a digest alone takes the tag away
    return f"{name}{tag and f':{tag}'}{f'@{digest}' if digest else ''}"


def _replace(documents: list[Document], replacement: dict[str, Any]) -> None:
    (source,) = [each for each in documents if _chosen(each, {"kind": replacement["source"]["kind"]})]
    value = source[replacement["source"]["fieldPath"]]
    for target in replacement["targets"]:
        for document in documents:
            if _chosen(document, target["select"]):
                for path in target["fieldPaths"]:
                    operate(
                        document,
                        {"op": "add", "path": f"/{path.replace('.', '/')}", "value": copy.deepcopy(value)},
                    )


def _identity(document: Document) -> tuple[str, str | None, str]:
    return document["kind"], document["metadata"].get("namespace"), document["metadata"]["name"]


def by_identity(documents: list[Document]) -> dict[tuple[str, str | None, str], Document]:
    """The documents by kind, namespace and name, of which no two may be alike."""
    found = {_identity(document): document for document in documents}
    if len(found) != len(documents):
        raise ValueError("two documents with one name")
    return found
