"""The environment's files agree, and what they must not say they do not."""

import re
import tomllib
from pathlib import Path

import yaml
from packaging.markers import Marker
from packaging.requirements import Requirement

ROOT = Path(__file__).parents[1]
PIN = re.compile(r"^([a-z0-9._-]+)==(\S+)(?: ; (.+?))? \\$", flags=re.M)


def locked(python: str) -> dict[str, str]:
    """Versions of requirements.lock for one Python on 64-bit Linux."""
    machine = {
        "python_version": python,
        "python_full_version": f"{python}.1",
        "sys_platform": "linux",
        "platform_machine": "x86_64",
    }
    return {
        name: version
        for name, version, marker in PIN.findall((ROOT / "requirements.lock").read_text())
        if not marker or Marker(marker).evaluate(machine)
    }


def declared() -> list[Requirement]:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    return [
        Requirement(x) for x in project["dependencies"] + project["optional-dependencies"]["test"]
    ]


def test_lock_has_hashes_and_no_addresses_and_fits_the_project():
    text = (ROOT / "requirements.lock").read_text()
    assert "://" not in text
    entries = re.split(r"\n(?=\S)", text.strip())
    assert all("--hash=sha256:" in entry for entry in entries)
    for python in ("3.11", "3.12", "3.13"):
        versions = locked(python)
        assert versions["torch"] == "2.15.0"
        assert versions["torchvision"] == "0.29.2"
        for requirement in declared():
            assert versions[requirement.name] in requirement.specifier


def test_conda_file_names_the_same_versions():
    content = yaml.safe_load((ROOT / "environment.yml").read_text())
    python = next(d for d in content["dependencies"] if str(d).startswith("python="))
    pip = next(d["pip"] for d in content["dependencies"] if isinstance(d, dict))
    versions = locked(python.removeprefix("python="))
    named = dict(entry.split("==") for entry in pip if "==" in entry)
    assert named == {r.name: versions[r.name] for r in declared()}
    assert "--editable ." in pip
