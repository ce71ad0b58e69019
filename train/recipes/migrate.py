"""Migration of older recipes, which have no ``[method]`` section.

``[train]`` held the method with ``beta`` and ``label_smoothing``, ``[distill]`` the teacher of a static student, and
``[supernet]`` the teacher and the loss of sub-nets. The phases of a file share these sections, so settings that the
method of a phase does not use are dropped: ``beta`` and ``soft`` without the term that they weigh, tutors without an
attention loss, attack steps without an attack.
"""

from __future__ import annotations

import copy
from typing import Any

from zoo.system.errors import UsageError

RENAMED = {
    "train.method": "method",
    "train.beta": "method.beta",
    "train.label_smoothing": "method.label_smoothing",
    "distill.teacher": "teacher.name",
    "distill.versions": "teacher.versions",
    "distill.kl": "method.kl",
    "distill.gamma": "method.gamma",
    "distill.map_size": "method.map_size",
    "distill.tutors": "method.tutors",
    "supernet.teacher": "teacher.name",
    "supernet.loss": "method.name",
    "supernet.soft": "method.ce and method.kl",
}


def migrated(data: dict[str, Any], origin: str) -> dict[str, Any]:
    """The recipe ``data`` with today's keys; without old keys it is returned unchanged.

    Raises:
        UsageError: old keys beside new ones, or old keys that could never be combined.
    """
    sections = {key: value for key in ("train", "distill", "supernet") if isinstance(value := data.get(key), dict)}
    old = [f"{section}.{key}" for section, keys in sections.items() for key in keys if f"{section}.{key}" in RENAMED]
    if "method" in data or "teacher" in data:
        for key in old:
            raise UsageError(f"{origin}: '{key}' is now '{RENAMED[key]}': rename it")
        return data
    if "method" not in sections.get("train", {}):
        return data
    for section in ("distill", "supernet"):
        if section in data and section not in sections:
            raise UsageError(f"{origin}: '{section}' must be a section: write [{section}]")
    data = copy.deepcopy(data)
    train, distill, supernet = data["train"], data.pop("distill", None), data.get("supernet")
    name = train.pop("method")
    own = {"name": name} | {key: train.pop(key) for key in ("beta", "label_smoothing") if key in train}
    try:
        if name not in ("natural", "pgd-at", "trades", "mart", "n-fgsm"):
            data["method"] = {"name": name}  # the schema refuses it
        elif "beta" in own and name not in ("trades", "mart"):
            raise ValueError(f"method '{name}' does not use 'train.beta': remove it")
        elif supernet is not None:
            if distill is not None:
                raise ValueError("[supernet] names its teacher itself: remove [distill]")
            _sub_nets(data, supernet, own)
        elif distill is not None:
            _student(data, dict(distill), own)
        else:
            data["method"] = own
    except ValueError as error:
        raise UsageError(f"{origin}: {error}") from None
    if name == "natural" and isinstance(data.get("attack"), dict):
        data["attack"] = {key: value for key, value in data["attack"].items() if key in ("eps", "norm")}
    return data


def _student(data: dict[str, Any], distill: dict[str, Any], own: dict[str, Any]) -> None:
    name = own.pop("name")
    if name == "mart":
        raise ValueError("mart weighs images by the student's mistakes and takes no [distill]: choose another method")
    names = {"teacher": "name", "versions": "versions"}
    data["teacher"] = {new: distill.pop(old) for old, new in names.items() if old in distill}
    attended = distill.get("gamma", 1.0)
    if not attended:
        distill = {key: value for key, value in distill.items() if key not in ("map_size", "tutors")}
    if name in ("natural", "trades"):
        data["method"] = {"name": "rnascl", "hard": name, **own, **distill}
        return
    if attended:
        raise ValueError(
            f"attention maps are compared on clean images, which {name} does not use: "
            "set distill.gamma = 0, or choose natural or trades"
        )
    distill.pop("gamma")
    data["method"] = {"name": "ard", "inner": "n-fgsm" if name == "n-fgsm" else "pgd", **own, **distill}


def _sub_nets(data: dict[str, Any], supernet: dict[str, Any], own: dict[str, Any]) -> None:
    teacher, loss, soft = (
        supernet.pop(key, default) for key, default in (("teacher", "largest"), ("loss", "adversarial"), ("soft", 0.5))
    )
    if loss not in ("adversarial", "rslad"):
        raise ValueError(f"supernet.loss is 'adversarial' or 'rslad', not '{loss}'")
    if not isinstance(soft, int | float) or not 0 <= soft <= 1:
        raise ValueError(f"supernet.soft is a share from 0 to 1, not {soft!r}")
    if loss == "rslad" and (teacher == "none" or own["name"] == "n-fgsm"):
        raise ValueError("supernet.loss = 'rslad' needs a teacher, and PGD: choose method pgd-at or trades")
    if teacher == "none" or own["name"] == "natural":  # the latter is refused by the schema
        data["method"] = own
        return
    if own["name"] == "mart":
        raise ValueError("mart takes no teacher: set supernet.teacher = 'none', or choose another method")
    data["teacher"] = {"name": teacher}
    smoothing = {key: value for key, value in own.items() if key == "label_smoothing"}
    owned = teacher == "largest" and supernet.get("largest", 1.0)
    if loss == "rslad":
        data["method"] = {"name": "rslad"} | ({} if owned else smoothing)
        if isinstance(data.get("attack"), dict) and data["attack"].get("objective") == "ce":
            del data["attack"]["objective"]
    else:
        inner = "n-fgsm" if own["name"] == "n-fgsm" else "pgd"
        hard = smoothing if soft < 1 else {}
        data["method"] = {"name": "ard", "inner": inner, "ce": 1 - soft, "kl": soft} | hard
    if owned:
        supernet["own"] = own
