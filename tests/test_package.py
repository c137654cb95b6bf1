"""What `pip install` brings: the wheel's files, what runs from it, and what asking a server needs."""

import importlib
import os
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import venv
import zipfile
from pathlib import Path

import pytest
from PIL import Image, ImageChops

import retinaserve
from retinaserve.scripts.server.triton import Server, TritonServer
from retinaserve.scripts.shapes.draw import draw_dataset
from tests.cli import invoke
from tests.images import checker, encode

ROOT = Path(__file__).parent.parent
SITE_PACKAGES = Path(sysconfig.get_path("purelib"))
# What a Triton user's folder, or anybody's, has of its own.
DECOYS = ("model_repository", "eval", "training", "scripts", "plugins", "build_tools")


def test_the_public_names_are_these() -> None:
    assert sorted(retinaserve.__all__) == [
        "AsyncClient",
        "Client",
        "Detections",
        "ImageError",
        "Server",
        "UserError",
        "build",
        "export",
        "open_detector",
        "train",
    ]
    assert set(retinaserve.__all__) <= set(dir(retinaserve))
    for name in retinaserve.__all__:
        value = getattr(retinaserve, name)
        assert value.__doc__ and value.__module__.startswith("retinaserve."), name


def test_unknown_names_are_refused_as_python_does() -> None:
    with pytest.raises(AttributeError, match="module 'retinaserve' has no attribute 'Detector2'"):
        _ = retinaserve.Detector2  # type: ignore[attr-defined]


def test_importing_takes_no_time() -> None:
    code = "import time; t = time.perf_counter(); import retinaserve; print(time.perf_counter() - t)"
    seconds = [float(subprocess.check_output([sys.executable, "-c", code], text=True)) for _ in range(3)]
    assert min(seconds) < 0.3


@pytest.fixture(scope="module")
def dist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An sdist of this checkout, and the wheel that `build` makes from it."""
    source, dist = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("dist")
    tracked = subprocess.check_output(["git", "-C", ROOT, "ls-files", "-z"], text=True).split("\0")
    for name in filter(None, tracked):
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        if (ROOT / name).exists():
            shutil.copy(ROOT / name, source / name, follow_symlinks=False)
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", dist, source]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return dist


CARRIED = (
    "examples/shapes.pth",
    "training/check/codes.toml",
    "training/recipes/cpu.yaml",
    "training/recipes/fast-n.pth",
    "model_repository/cpu/detector/config.pbtxt",
    "model_repository/cpu/preprocess/1/model.py",
    "model_repository/gpu/preprocess/1/dali.py",
    "plugins/CMakeLists.txt",
    "plugins/kernels/decode.cu",
    "plugins/adapter/nms_plugin.cpp",
    "plugins/include/retinaserve/nms.h",
    "eval/web/static/index.html",
    "eval/report/page/template.html",
    "scripts/deploy/versions.toml",
    "scripts/deploy/monitoring/grafana/dashboards/retinaserve.json",
    "py.typed",
)


def test_the_wheel_carries_what_its_commands_need(dist: Path) -> None:
    (wheel,) = dist.glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    assert {f"retinaserve/{name}" for name in CARRIED} <= set(names)
    assert {name.split("/")[0].split("-")[0] for name in names} == {"retinaserve"}  # one name in site-packages
    assert not [name for name in names if "/lab/" in name or "/tests/" in name]
    files = [path for folder in DECOYS for kind in ("*.py", "static/*") for path in (ROOT / folder).rglob(kind)]
    needed = {str(path.relative_to(ROOT)) for path in files if path.is_file()}
    assert {f"retinaserve/{name}" for name in needed if "/lab/" not in name} <= set(names)


def test_the_sdist_that_the_wheel_is_built_from_has_no_links(dist: Path) -> None:
    (sdist,) = dist.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        assert not [member.name for member in archive if member.issym()]  # they have become what they lead to


@pytest.fixture(scope="module")
def installed(dist: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The python of an environment that has the wheel, and this environment's packages but not its retinaserve."""
    folder = tmp_path_factory.mktemp("installed")
    venv.create(folder, symlinks=True)
    (site,) = folder.glob("lib/python*/site-packages")
    (wheel,) = dist.glob("*.whl")
    zipfile.ZipFile(wheel).extractall(site)
    (site / "packages.pth").write_text(f"{SITE_PACKAGES}\n")  # the editable install's own .pth is not read there
    return folder / "bin" / "python"


@pytest.fixture
def decoys(tmp_path: Path) -> Path:
    """An almost empty folder to work in, with folders that bear the names of ours."""
    for name in DECOYS:
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text("raise ImportError('the user\\'s folder was taken for ours')")
        (tmp_path / name / "spec.py").write_text("raise ImportError('the user\\'s folder was taken for ours')")
    return tmp_path


def run(python: Path, *words: object, folder: Path) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    command = [str(word) for word in (python, *words)]
    done = subprocess.run(
        command, capture_output=True, text=True, cwd=folder, env=environment, timeout=200, check=False
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    return done


@pytest.mark.server
def test_the_wheel_serves_boxes_from_a_folder_with_decoys(
    installed: Path, decoys: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    where = run(installed, "-c", "import retinaserve; print(retinaserve.__file__)", folder=decoys).stdout
    assert Path(where.strip()).is_relative_to(installed.parent.parent)
    monkeypatch.chdir(decoys)
    done, output = (
        run(installed, "-m", "retinaserve", "demo", "--quick", "--output", "out", folder=decoys),
        Path("out"),
    )
    assert done.stdout.splitlines()[-1] == str(output / "predictions") and "{" not in done.stdout
    originals, changed = sorted((output / "data" / "val" / "images").iterdir()), 0
    assert len(originals) == 12
    for original in originals:
        with Image.open(original) as before, Image.open(output / "predictions" / original.name) as after:
            if before.size == after.size:  # not one that EXIF turns
                difference = ImageChops.difference(before.convert("RGB"), after.convert("RGB"))
                changed += max(high for _, high in difference.getextrema()) > 100
    assert changed >= 6  # boxes are drawn on most of them; JPEG alone changes less
    # The commands that it ends with, on free ports.
    assert "next:" not in done.stderr, "a step would name a server that is gone"
    lines = re.findall("retinaserve .*", done.stderr[done.stderr.index("then try") :])
    commands = [shlex.split(line, comments=True)[1:] for line in lines]
    assert [words[0] for words in commands] == ["serve", "predict", "web", "data", "train"]
    (_, repository), predict, web, *helps = commands
    with Server(Path(repository)) as server:
        answered = invoke(*predict, "--server", server.grpc_url)
        assert answered.exit_code == 0 and len(list((output / "annotated").iterdir())) == 12, answered.output
    for words in ([*web, "--help"], *helps):
        assert invoke(*words).exit_code == 0


def test_torchrun_takes_ours(installed: Path, decoys: Path) -> None:
    drawn = draw_dataset(decoys / "drawn", images=4, seed=5)
    torchrun = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", 1, "-m", "retinaserve")
    data = ("--images", drawn.images, "--annotations", drawn.annotations, "--size", 64, 64, "--batch", 2)
    small = ("--backbone", "resnet18", "--width", 4, "--fpn-channels", 8, "--head-depth", 1, "--iters", 1)
    run(installed, *torchrun, "train", "model.pth", *data, *small, folder=decoys)
    assert (decoys / "model.pth").is_file()


# Packages of the extras: what asking a server over gRPC has to do without.
EXTRAS = (
    "torch onnx onnxruntime onnxscript openvino nvidia matplotlib yaml starlette uvicorn psutil gevent aiohttp"
)
WITHOUT = f"""
import sys
from importlib.machinery import PathFinder
class Installed:
    def find_spec(self, name, path=None, target=None):
        return None if name.partition(".")[0] in {EXTRAS.split()} else PathFinder.find_spec(name, path, target)
sys.meta_path[sys.meta_path.index(PathFinder)] = Installed()
"""


def test_asking_a_server_needs_no_extra(server: TritonServer, tmp_path: Path) -> None:
    for number in range(2):
        (tmp_path / f"{number}.jpg").write_bytes(encode(checker(320, 200, seed=number)))
    ask = (
        f"from retinaserve import Client\nwith Client({server.grpc_url!r}) as client:\n"
        "    print(len(client.predict([open('0.jpg', 'rb').read()])[0]))\n"
    )
    assert int(run(Path(sys.executable), "-c", WITHOUT + ask, folder=tmp_path).stdout) > 3
    verb = "from retinaserve.scripts.cli.main import main\nmain(sys.argv[1:])"
    words = ("predict", ".", "--server", server.grpc_url, "--output", "annotated")
    done = run(Path(sys.executable), "-c", WITHOUT + verb, *words, folder=tmp_path)
    assert len(done.stdout.splitlines()) == 2 and (tmp_path / "annotated" / "0.jpg").is_file()


def test_an_editor_follows_the_editable_install() -> None:
    """Type checkers read paths in .pth files and run no import hooks."""
    (path,) = SITE_PACKAGES.glob("__editable__.retinaserve-*.pth")
    assert (Path(path.read_text().strip()) / "retinaserve" / "__init__.py").samefile(retinaserve.__file__)


PYRIGHT = shutil.which("pyright") or shutil.which("basedpyright")


@pytest.mark.skipif(not PYRIGHT, reason="pyright is not installed: pip install basedpyright brings it with Node")
def test_pyright_knows_the_public_names(tmp_path: Path) -> None:
    uses = "\n".join(f"from retinaserve import {name}\nreveal_type({name})" for name in retinaserve.__all__)
    (tmp_path / "uses.py").write_text(uses)
    (tmp_path / "pyrightconfig.json").write_text('{"typeCheckingMode": "standard"}')
    command = [str(PYRIGHT), "--pythonpath", sys.executable, "uses.py"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=False)
    assert "0 errors" in done.stdout and "Unknown" not in done.stdout, done.stdout


def test_every_module_is_imported_by_one_name() -> None:
    importlib.import_module("retinaserve.training.spec")
    assert "training" not in sys.modules and "retinaserve.training" in sys.modules
