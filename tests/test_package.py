# Copyright 2026 The t5_experimental authors. Licensed under the Apache License, Version 2.0.
"""Wheel and sdist, as `make package` builds them: complete, and at work in an environment of their own."""

import os
import shutil
import subprocess
import sys
import tarfile
import venv
import zipfile
from dataclasses import dataclass
from pathlib import Path

import pytest

import t5_experimental


ROOT = Path(__file__).parent.parent
NOT_IN_AN_SDIST = shutil.ignore_patterns(
    ".git", ".venv*", "build", "dist", "*.egg-info", "__pycache__", "*.pyc", ".*_cache", ".hypothesis"
)
SHIPPED = (".py", ".yaml", ".html", ".md", ".typed")


@dataclass(frozen=True)
class Package:
    """What was built, and the tree that it was built from."""

    source: Path
    wheel: Path
    sdist: Path


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Package:
    folder = tmp_path_factory.mktemp("package")
    source = folder / "source"
    shutil.copytree(ROOT, source, ignore=NOT_IN_AN_SDIST)
    run([sys.executable, "-m", "build", "--no-isolation", "--outdir", str(folder / "dist")], source)
    (wheel,), (sdist,) = (folder / "dist").glob("*.whl"), (folder / "dist").glob("*.tar.gz")
    return Package(source, wheel, sdist)


def run(command: list[str], folder: Path) -> str:
    result = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    assert result.returncode == 0, f"{command}\n{result.stdout}\n{result.stderr}"
    return result.stdout


def files_of(*folders: Path) -> set[Path]:
    return {path for folder in folders for path in folder.rglob("*") if path.is_file()}


def test_wheel_holds_all_modules_and_their_data(package: Package) -> None:
    tops = {"t5_experimental": "", "convert": "t5_experimental/", "training": "t5_experimental/"}
    expected = {
        prefix + path.relative_to(package.source).as_posix()
        for top, prefix in tops.items()
        for path in files_of(package.source / top)
        if path.suffix in SHIPPED
    }
    with zipfile.ZipFile(package.wheel) as archive:
        names = {name for name in archive.namelist() if ".dist-info/" not in name}
    assert names == expected
    assert package.wheel.name.split("-")[1] == t5_experimental.__version__


def test_sdist_holds_what_its_tests_need(package: Package) -> None:
    folders = [package.source / name for name in ("tests", "docs", "benchmarks", "convert", "training")]
    expected = {path.relative_to(package.source).as_posix() for path in files_of(*folders)}
    expected |= {"Makefile", "constraints.txt", "README.md", "LICENSE", "CHANGELOG.md", "CITATION.cff", ".ci/run"}
    with tarfile.open(package.sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert expected - names == set()


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["wheel", "sdist"])
def test_installed_package_works(kind: str, package: Package, tmp_path: Path) -> None:
    environment = tmp_path / "environment"
    venv.create(environment, with_pip=False, symlinks=os.name != "nt")
    python = environment / ("Scripts" if os.name == "nt" else "bin") / "python"
    packages = Path(
        run([str(python), "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"], tmp_path).strip()
    )
    # Its requirements are those of the environment that the tests run in, behind its own packages.
    (packages / "outer.pth").write_text("".join(f"{path}\n" for path in sys.path if path.endswith("-packages")))
    install = ["install", "--ignore-installed", "--no-deps", "--no-index", "--no-build-isolation"]
    run([sys.executable, "-m", "pip", "--python", str(python), *install, str(getattr(package, kind))], tmp_path)

    presets = run([str(python.with_name("t5-experimental")), "presets"], tmp_path)
    assert [line.split()[0] for line in presets.splitlines()[1:16]] == list(t5_experimental.PRESETS)
    script = (
        "import t5_experimental.training.finetune as f, t5_experimental.training.pretrain as p, t5_experimental as t;"
        "import t5_experimental.training.prompt_tune; print(t.__version__, f.__file__, p.__file__, sep='\\n')"
    )
    version, *paths = run([str(python), "-c", script], tmp_path).splitlines()
    assert version == t5_experimental.__version__
    assert all(Path(path).is_relative_to(packages) for path in paths), paths
