"""Start-up: XLA's flags, the compilation cache, what environment.json says."""

import json
import logging
import os
import platform
import subprocess
import sys
import zlib
from pathlib import Path

import jax
import pytest

from rcmnet_jax import runtime

ROOT = Path(__file__).parent.parent
FLAG = "--xla_cpu_experimental_ynn_fusion_type="


def python(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    clean = {k: v for k, v in os.environ.items() if k not in ("XLA_FLAGS", "RCMNET_KEEP_XLA_DEFECT")}
    command = [sys.executable, "-c", code]
    return subprocess.run(
        command,
        env={**clean, "JAX_PLATFORMS": "cpu", **environment},
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )


def test_importing_the_package_appends_the_flag_to_the_users_and_does_not_import_jax():
    done = python(
        "import os, sys, rcmnet_jax; print(os.environ['XLA_FLAGS'], 'jax' in sys.modules)", XLA_FLAGS="--xla_a=1"
    )
    assert done.stdout.split() == ["--xla_a=1", FLAG, "False"], done.stderr


@pytest.mark.parametrize(
    ("name", "value"), [("XLA_FLAGS", f"{FLAG}LIBRARY_FUSION_TYPE_DOT"), ("RCMNET_KEEP_XLA_DEFECT", "1")]
)
def test_the_users_own_choice_of_the_flag_stays(name, value):
    done = python("import os, rcmnet_jax; print(os.environ.get('XLA_FLAGS', ''))", **{name: value})
    assert done.stdout.strip() == (value if name == "XLA_FLAGS" else "")


def test_a_file_of_flags_is_read_and_kept(tmp_path):
    (tmp_path / "flags").write_text("--xla_a=1\n--xla_b=2\n")
    done = python("import os, rcmnet_jax; print(os.environ['XLA_FLAGS'])", XLA_FLAGS=str(tmp_path / "flags"))
    assert done.stdout.split() == ["--xla_a=1", "--xla_b=2", FLAG]


def test_a_jax_that_already_computed_is_refused_in_one_sentence():
    done = python("import jax; jax.devices(); import rcmnet_jax")
    assert "UserError: JAX computed on the CPU before rcmnet_jax was imported" in done.stderr


def test_the_environment_names_what_results_depend_on_and_is_json():
    facts = json.loads(json.dumps(runtime.environment()))
    assert facts["jax"] == jax.__version__
    assert facts["xla_flags"] == os.environ["XLA_FLAGS"]
    assert facts["orbax"]
    assert facts["cores"] >= 1
    assert facts["backend"] == jax.default_backend()


COMPILE = """
import sys, warnings; warnings.simplefilter("error")
from pathlib import Path
from rcmnet_jax import runtime
folder = runtime.enable_compilation_cache(Path(sys.argv[1]) if len(sys.argv) > 1 else None)
import jax; jax.jit(lambda x: x @ x + 1)(jax.numpy.ones((8, 8)))
print(folder)
"""


def test_compiled_programs_are_kept_in_a_private_folder_and_a_cut_off_one_is_written_anew(tmp_path):
    folder = Path(python(COMPILE, RCMNET_CACHE=str(tmp_path)).stdout.strip())
    assert folder.parent == tmp_path
    assert folder.stat().st_mode & 0o777 == 0o700
    entry = max(folder.glob("*-cache"), key=lambda f: f.stat().st_size)
    whole = entry.read_bytes()
    entry.write_bytes(whole[: len(whole) // 2])
    done = python(COMPILE, RCMNET_CACHE=str(tmp_path))
    assert done.returncode == 0, done.stderr
    assert entry.stat().st_size > len(whole) // 2


def test_a_sweep_removes_damaged_entries_only_and_looks_at_each_once(tmp_path):
    whole = zlib.compress(os.urandom(5000))
    for name, content in {"a-cache": whole, "b-cache": whole[:-1], "c-cache": b"", "d-cache": bytes(99)}.items():
        (tmp_path / name).write_bytes(content)
    assert sorted(runtime.sweep_compilation_cache(tmp_path)) == ["b-cache", "c-cache", "d-cache"]
    (tmp_path / "old-cache").write_bytes(b"")
    os.utime(tmp_path / "old-cache", (1, 1))
    assert runtime.sweep_compilation_cache(tmp_path) == []
    assert (tmp_path / "a-cache").read_bytes() == whole


def test_a_sweep_keeps_the_newest_two_gibibytes(tmp_path):
    for age, name in enumerate(("new-cache", "old-cache", "oldest-cache")):
        with (tmp_path / name).open("wb") as file:
            file.truncate(3 << 28)  # holes: three such files are 2.25 GiB and take no room
        os.utime(tmp_path / name, (1000 - age, 1000 - age))
    os.utime(tmp_path / "old-cache")  # used again
    (tmp_path / ".swept").touch()
    os.utime(tmp_path / ".swept", (1 << 32, 1 << 32))  # none is looked into
    assert runtime.sweep_compilation_cache(tmp_path) == ["oldest-cache"]
    assert {file.name for file in tmp_path.glob("*-cache")} == {"new-cache", "old-cache"}


@pytest.fixture
def no_cache():
    """JAX as it is before anything in this process has set a cache."""
    before = jax.config.jax_compilation_cache_dir
    jax.config.update("jax_compilation_cache_dir", None)
    yield
    jax.config.update("jax_compilation_cache_dir", before)


@pytest.mark.usefixtures("no_cache")
def test_a_cache_that_is_not_the_users_own_folder_is_not_used(tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(os, "getuid", lambda: 12345)
    with caplog.at_level(logging.WARNING):
        assert runtime.enable_compilation_cache(tmp_path) is None
    assert "not a folder of yours" in caplog.text
    assert not jax.config.jax_compilation_cache_dir


@pytest.mark.usefixtures("no_cache")
def test_each_model_of_processor_has_a_folder_of_its_own(tmp_path, monkeypatch):
    folders = []
    for model in (("one", "avx2"), ("one", "avx2 avx512f"), ("another", "avx2"), ("one", "avx2")):
        monkeypatch.setattr(runtime, "cpu_model", lambda model=model: model)
        folders.append(runtime.enable_compilation_cache(tmp_path))
        jax.config.update("jax_compilation_cache_dir", None)
    assert len(set(folders)) == 3
    assert folders[0] == folders[3]


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the setting is glibc's")
def test_a_large_block_that_was_freed_is_used_again_and_not_mapped_anew():
    code = """
import resource, rcmnet_jax, numpy as np
def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    np.ones(25_000_000, np.float32)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
print(faults(), faults())
"""
    again = {keep: int(python(code, RCMNET_KEEP_MALLOC=keep).stdout.split()[1]) for keep in ("0", "1")}
    assert again["0"] < 100
    assert again["1"] > again["0"]


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the setting is glibc's")
def test_the_space_of_a_program_is_used_again_and_not_mapped_anew():
    code = """
import resource, jax, jax.numpy as jnp
from rcmnet_jax import runtime
runtime.compute_where_called()
@jax.jit
def run(x):  # 200 MB between two products, more than glibc keeps for a thread that is not the first
    return (x @ x.T) @ x
x = jnp.ones((7000, 8))
def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    run(x).block_until_ready()
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
print(*[faults() for _ in range(12)])  # the first few take blocks before the last one is free
"""
    tunables = "glibc.malloc.hugetlb=0"  # pages of 4 kB, of which there are many
    again = {keep: python(code, RCMNET_KEEP_MALLOC=keep, GLIBC_TUNABLES=tunables) for keep in ("0", "1")}
    least = {keep: min(int(n) for n in done.stdout.split()[1:]) for keep, done in again.items()}
    assert least["0"] < 1000
    assert least["1"] > 10 * least["0"]


def test_a_run_is_set_up_before_jax_is_asked_for_its_devices(tmp_path):
    code = """
import jax
from rcmnet_jax import experiment
from jax._src import xla_bridge
def everywhere():
    raise SystemExit(f"{jax.config.read('jax_cpu_enable_async_dispatch')} {xla_bridge.backends_are_initialized()}")
experiment.Placement.everywhere = everywhere
experiment.run(None, None)
"""
    assert python(code, XDG_CACHE_HOME=str(tmp_path)).stderr.split()[-2:] == ["False", "False"]


ASKED_FOR = "import os, sys\nfrom rcmnet_jax import runtime\nruntime.use_huge_pages()\n"


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc has this tunable")
@pytest.mark.parametrize(
    ("given", "wanted"),
    [
        ({"GLIBC_TUNABLES": "glibc.malloc.check=0"}, "glibc.malloc.check=0:glibc.malloc.hugetlb=1"),
        ({"GLIBC_TUNABLES": "glibc.malloc.hugetlb=0"}, "glibc.malloc.hugetlb=0"),
        ({"GLIBC_TUNABLES": "", "RCMNET_KEEP_MALLOC": "1"}, ""),
    ],
)
def test_a_program_starts_anew_once_for_huge_pages_unless_the_user_chose(given, wanted):
    policy = Path("/sys/kernel/mm/transparent_hugepage/enabled")
    if not policy.is_file() or "[madvise]" not in policy.read_text():
        pytest.skip("this kernel does not leave huge pages to be asked for")
    done = python(ASKED_FOR + "print(os.getpid(), os.environ['GLIBC_TUNABLES'], sys.orig_argv[1])", **given)
    assert done.stdout.split()[1:] == ([wanted] if wanted else []) + ["-c"], done.stderr
