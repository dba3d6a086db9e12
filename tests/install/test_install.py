"""Zero configuration against the real harness: each way of installing this package, and each way of installing it.

Every case is a virtual environment of its own. Its dependencies are links into the environment that runs the tests,
without lm_eval, without this package and without path files, so that nothing can leak in from there.
"""

import importlib.metadata
import importlib.util
import json
import os
import shutil
import subprocess
import sys
import venv
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
OURS = ("lume_", "_lume_", "yaml_tasks")
KEPT_TASKS = "hellaswag"  # the harness's other task folders only cost time

pytestmark = [pytest.mark.install, pytest.mark.skipif(os.name == "nt", reason="needs symbolic links")]

# Prints, as JSON, where the harness lies, what tasks it knows, where it found ours, which of our models it knows and
# what it complains about.
# Arguments are folders for --include_path, tried after no folder at all.
PROBE = """
import json, logging, sys
messages = []
handler = logging.Handler()
handler.emit = lambda record: messages.append(record.getMessage())
logging.getLogger().addHandler(handler)
import lm_eval
import lm_eval.models
from lm_eval.api.registry import model_registry
from lm_eval.tasks import TaskManager
manager = TaskManager()
entry = manager.task_index.get("lume_task1")
for folder in sys.argv[1:]:
    assert TaskManager(include_path=folder).all_tasks == manager.all_tasks
print(json.dumps([lm_eval.__file__, manager.all_tasks, str(entry.yaml_path.parent) if entry else None,
    sorted(name for name in model_registry if name.startswith("lume")), messages]))
"""
# The least that a harness must do to read the entry points that this package declares.
FUTURE_HARNESS = """
            from importlib import import_module, metadata
            for entry in metadata.entry_points(group="lm_eval.tasks"):
                all_paths += [Path(path) for path in import_module(entry.value).__path__]
"""
FUTURE_MODELS = """
from importlib import metadata
from lm_eval.api.registry import model_registry
for entry in metadata.entry_points(group="lm_eval.models"):
    model_registry.register(entry.name, target=entry)
"""
MODELS = ["lume-hf", "lume-vllm"]


def run(*command, cwd, **variables):
    """Run a command that must succeed in a clean environment; return what it printed."""
    env = {k: v for k, v in os.environ.items() if not k.startswith(("LUME_", "PYTHON", "PIP_", "VIRTUAL_ENV"))}
    env |= {"HF_HUB_OFFLINE": "1", **variables}
    done = subprocess.run(
        [str(part) for part in command], cwd=cwd, env=env, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout, done.stderr


class Environment:
    """A virtual environment without pip; pip runs from the outside."""

    def __init__(self, folder, dependencies):
        venv.create(folder, symlinks=True, with_pip=False)
        self.python = folder / "bin" / "python"
        self.site = next(folder.glob("lib/python*/site-packages"))
        self.outside = folder  # no package lies here, unlike in the checkout
        (self.site / "dependencies.pth").write_text(f"{dependencies}\n")

    def pip(self, command, *arguments):
        run(sys.executable, "-m", "pip", "--isolated", "-q", "--python", self.python, command, *arguments, cwd=ROOT)

    def install(self, *what):
        self.pip("install", "--no-deps", "--no-build-isolation", "--no-index", *what)

    def probe(self, *arguments, **variables):
        printed, complaints = run(self.python, "-c", PROBE, *arguments, cwd=self.outside, **variables)
        assert complaints == ""
        return json.loads(printed)


@pytest.fixture(scope="module")
def dependencies(tmp_path_factory):
    folder = tmp_path_factory.mktemp("dependencies")
    for entry in (Path(p) for p in sys.path if Path(p).name in ("site-packages", "dist-packages")):
        for item in entry.iterdir():
            left_out = item.name.startswith((*OURS, "lm_eval", "__editable__")) or item.suffix == ".pth"
            if not left_out and not (folder / item.name).exists():
                (folder / item.name).symlink_to(item)
    return folder


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wheel")
    offline = ("--no-deps", "--no-build-isolation", "--no-index")
    run(sys.executable, "-m", "pip", "--isolated", "-q", "wheel", *offline, "-w", folder, ROOT, cwd=folder)
    return next(folder.glob("*.whl"))


def copy_harness(folder):
    """Copy the package lm_eval into a folder, with one task folder of its own, and return the copy."""
    source = Path(importlib.util.find_spec("lm_eval").submodule_search_locations[0])

    def left_out(parent, names):
        kept = (KEPT_TASKS, "__pycache__")
        return [n for n in names if (Path(parent) / n).is_dir() and n not in kept] if parent == tasks else []

    tasks = str(source / "tasks")
    return Path(shutil.copytree(source, folder / "lm_eval", ignore=left_out))


def install_harness(kind, environment, folder):
    """Install the harness as a wheel would lay it out, or editable as its README tells contributors."""
    dist = importlib.metadata.distribution("lm_eval")
    if kind == "wheel":
        info = Path(str(dist.locate_file(f"lm_eval-{dist.version}.dist-info")))
        shutil.copytree(info, environment.site / info.name)
        return copy_harness(environment.site)
    (folder / "pyproject.toml").write_text(
        '[build-system]\nrequires = ["setuptools"]\nbuild-backend = "setuptools.build_meta"\n'
        f'[project]\nname = "lm_eval"\nversion = "{dist.version}"\n'
        '[tool.setuptools.packages.find]\ninclude = ["lm_eval*"]\n'
    )
    copy = copy_harness(folder)
    environment.install("-e", folder)
    return copy


def install_ours(kind, environment, wheel):
    """Install this package and return the folder of its task YAMLs."""
    environment.install(*([wheel] if kind == "wheel" else ["-e", ROOT]))
    return str((environment.site if kind == "wheel" else ROOT) / "yaml_tasks")


@pytest.fixture
def environment(tmp_path, dependencies):
    return Environment(tmp_path / "venv", dependencies)


@pytest.fixture
def project(tmp_path):
    folder = tmp_path / "project"
    folder.mkdir()
    return folder


@pytest.mark.parametrize(("ours", "harness"), [("wheel", "wheel"), ("wheel", "editable"), ("editable", "editable")])
def test_tasks_are_known_without_a_flag(ours, harness, environment, project, wheel):
    copy = install_harness(harness, environment, project)
    folder = install_ours(ours, environment, wheel)

    location, tasks, *found = environment.probe(folder)  # no duplicates with --include_path as well
    assert [location, *found] == [str(copy / "__init__.py"), folder, MODELS, []]
    assert {"lume_task1", "lume_mmlu", "hellaswag"} <= set(tasks)

    stock = [task for task in tasks if not task.startswith("lume")]
    assert environment.probe(LUME_TASKS_AUTOLOAD="0") == [location, stock, None, [], []]
    listing, _ = run(environment.python, "-m", "lm_eval", "ls", "subtasks", cwd=environment.outside)
    assert "lume_task1" in listing

    environment.pip("uninstall", "-y", "lume-unlearning")
    assert run(environment.python, "-c", "import lm_eval; print(1)", cwd=environment.outside) == ("1\n", "")
    assert not [item.name for item in environment.site.iterdir() if item.name.startswith(OURS)]


def test_the_path_line_alone_is_silent(environment, wheel):
    install_ours("wheel", environment, wheel)
    shutil.rmtree(environment.site / "lume_tasks")
    assert (environment.site / "lume_tasks_autoload.pth").is_file()
    assert run(environment.python, "-c", "print(1)", cwd=environment.outside) == ("1\n", "")


def test_a_harness_that_reads_entry_points_needs_no_hook(environment, project, wheel):
    copy = install_harness("wheel", environment, project)
    manager, models = copy / "tasks" / "manager.py", copy / "models" / "__init__.py"
    line = "            all_paths.append(Path(__file__).parent)\n"
    source = manager.read_text()
    if source.count(line) != 1:
        pytest.skip("this version of lm_eval builds its list of task folders in another way")
    manager.write_text(source.replace(line, line + FUTURE_HARNESS))
    models.write_text(models.read_text() + FUTURE_MODELS)

    folder = install_ours("wheel", environment, wheel)
    _, tasks, *found = environment.probe(LUME_TASKS_AUTOLOAD="0")
    assert {"lume_task1", "lume_mmlu"} <= set(tasks)
    assert found == [folder, MODELS, []]
