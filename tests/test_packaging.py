# SPDX-License-Identifier: Apache-2.0
"""The rules that every module keeps, and what the bundles hold."""

from __future__ import annotations

import ast
import importlib
import json
import os
import re
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "atlas_flwr"
MODULES = sorted(PACKAGE.rglob("*.py"))
PACKAGES = sorted(
    ".".join(path.parent.relative_to(ROOT).parts)
    for path in PACKAGE.rglob("__init__.py")
)
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
LONGEST_MODULE = 400
HEAVY = ("torch", "transformers", "peft", "ray", "sklearn", "pandas", "matplotlib")


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


def rank(name: str) -> tuple[bool, bool, str]:
    """Put constants first, then classes, then functions, as ruff's RUF022 does."""
    return not name.isupper(), not name[0].isupper(), name


def public_names(tree: ast.Module) -> list[str] | None:
    for node in tree.body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__":
            names: list[str] = ast.literal_eval(node.value)
            return names
    return None


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_a_module_is_short_headed_described_and_sorted(path: Path) -> None:
    text = path.read_text()
    tree = ast.parse(text)
    assert text.startswith("# SPDX-License-Identifier: Apache-2.0\n")
    assert text.count("\n") <= LONGEST_MODULE
    first_line = (ast.get_docstring(tree) or "").partition("\n")[0]
    assert len(first_line.split()) >= 2
    assert first_line.endswith((".", ":"))
    names = public_names(tree)
    assert names is None or names == sorted(names, key=rank)


def test_importing_every_package_is_light() -> None:
    code = (
        "import importlib, json, sys\n"
        f"for name in {PACKAGES!r}: importlib.import_module(name)\n"
        f"print(json.dumps([n for n in {HEAVY!r} if n in sys.modules]))\n"
    )
    ran = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    assert json.loads(ran.stdout) == []


@pytest.mark.parametrize("name", PACKAGES)
def test_a_package_exports_what_it_says(name: str) -> None:
    package = importlib.import_module(name)
    for exported in getattr(package, "__all__", []):
        assert getattr(package, exported) is not None


@pytest.mark.parametrize("name", ["strategies", "client_apps", "server_apps"])
def test_a_link_at_the_top_leads_into_the_package(name: str) -> None:
    link = ROOT / name
    assert link.is_symlink()
    assert link.readlink() == Path("atlas_flwr") / name
    assert link.resolve() == PACKAGE / name


def test_keys_of_the_run_config_are_kebab_case_with_plain_values() -> None:
    config = PROJECT["tool"]["flwr"]["app"]["config"]
    odd = [key for key in config if not re.fullmatch(r"[a-z]+(-[a-z0-9]+)*", key)]
    assert odd == []
    assert all(isinstance(v, bool | int | float | str) for v in config.values())


def test_the_versions_agree() -> None:
    from atlas_flwr import __version__

    citation = (ROOT / "CITATION.cff").read_text()
    assert PROJECT["project"]["version"] == __version__
    assert f"version: {__version__}\n" in citation


def test_flowers_bundle_has_all_that_the_apps_need_and_nothing_else(
    tmp_path: Path,
) -> None:
    content = built_by_flower(tmp_path)
    source = {name_of(path) for path in MODULES}
    data = {
        name_of(path)
        for path in PACKAGE.rglob("*")
        if path.suffix in (".yaml", ".md") and path.is_file()
    }
    extra = {"pyproject.toml", "README.md", "LICENSE", ".info/CONTENT"}
    assert content == source | data | extra
    assert data


def built_by_flower(tmp_path: Path) -> set[str]:
    """Build the FAB of what git would check out, and list it."""
    copy = tmp_path / "atlas-flwr"
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    for name in listed.stdout.splitlines():
        source, target = ROOT / name, copy / name
        target.parent.mkdir(parents=True, exist_ok=True)
        if source.is_symlink():
            target.symlink_to(source.readlink())
        elif source.is_file():
            target.write_bytes(source.read_bytes())
    flwr = Path(sys.executable).parent / "flwr"
    subprocess.run(
        [flwr, "build", "--app", str(copy)],
        cwd=tmp_path,
        env=os.environ | {"FLWR_HOME": str(tmp_path / "home")},
        capture_output=True,
        check=True,
    )
    (fab,) = tmp_path.rglob("*.fab")
    with zipfile.ZipFile(fab) as bundle:
        return set(bundle.namelist())


def pages() -> list[Path]:
    return [
        *ROOT.glob("*.md"),
        *ROOT.glob("docs/**/*.md"),
        *ROOT.glob("examples/*/*.md"),
    ]


def test_links_in_the_documentation_lead_somewhere() -> None:
    dead = [
        f"{name_of(page)}: {link}"
        for page in pages()
        for link in re.findall(r"\]\(([^)#\s]+)", page.read_text())
        if "://" not in link and not (page.parent / link).exists()
    ]
    assert dead == []


def anchors(page: Path) -> set[str]:
    """Return the headings' anchors as GitHub makes them: of two alike the second is -1.

    Letters and digits stay, in lower case, and blanks become hyphens.
    """
    text = re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    found: set[str] = set()
    for heading in re.findall(r"^#{1,6} +(.*?) *#*$", text, flags=re.MULTILINE):
        shown = re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", heading)
        name = re.sub(r"[^\w\- ]", "", shown.lower()).replace(" ", "-")
        names = (f"{name}-{n}" if n else name for n in range(len(found) + 1))
        found.add(next(one for one in names if one not in found))
    return found


def test_links_to_headings_lead_to_ones_that_there_are() -> None:
    dead = [
        f"{name_of(page)}: {link}#{anchor}"
        for page in pages()
        for link, anchor in re.findall(r"\]\(([^)#\s]*)#([^)\s]+)\)", page.read_text())
        if "://" not in link
        for target in (page.parent / link if link else page,)
        if target.suffix == ".md" and anchor not in anchors(target)
    ]
    assert dead == []
