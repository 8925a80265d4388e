"""What has to be right before JAX computes: XLA's flags, memory, the compilation cache; what a result depends on."""

from __future__ import annotations

import ctypes
import hashlib
import importlib.metadata
import importlib.util
import logging
import mmap
import os
import platform
import shutil
import stat
import subprocess
import sys
import time
import zlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from rcmnet_jax.errors import UserError

_log = logging.getLogger(__name__)

# XLA's CPU compiler hands some reductions and dots to a library whose fusions return wrong numbers without a word in
# jaxlib 0.10.2 (github.com/jax-ml/jax/issues/39103) and crash on others. An empty list of fusion types turns it off.
YNN_FLAG = "xla_cpu_experimental_ynn_fusion_type"
KEEP_DEFECT = "RCMNET_KEEP_XLA_DEFECT"  # environment variable: 1 leaves XLA_FLAGS as they are, for measuring the defect
KEEP_MALLOC = "RCMNET_KEEP_MALLOC"  # environment variable: 1 leaves the C library's allocator as it is
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # of malloc.h
_HUGE_PAGES = "glibc.malloc.hugetlb"
_CACHE_BYTES = 2 << 30  # compiled programs above this are dropped, oldest first
_PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")


def prepare() -> None:
    """Appends the flag that turns wrong fusions off to XLA_FLAGS, and lets freed memory be used again.

    To be called before JAX starts its devices. The user's flags stay, and theirs wins where they set the same one. A
    jaxlib that does not know the flag would abort the process on it, so its library is searched for the name first.

    Raises:
      UserError: JAX has started its CPU devices already, without the flag.
    """
    _keep_freed_memory()
    flags = user_flags()
    if os.environ.get(KEEP_DEFECT) == "1" or f"--{YNN_FLAG}" in flags or not _jaxlib_knows(YNN_FLAG):
        return
    if _cpu_started():
        raise UserError(
            "JAX computed on the CPU before rcmnet_jax was imported, so a compiler defect that returns wrong numbers "
            f"cannot be turned off any more. Import rcmnet_jax first, or set XLA_FLAGS='--{YNN_FLAG}=' before starting "
            f"Python, or {KEEP_DEFECT}=1 to go on regardless."
        )
    os.environ["XLA_FLAGS"] = f"{flags} --{YNN_FLAG}=".strip()


def _keep_freed_memory() -> None:
    """Tells glibc to keep blocks of up to 2 GiB, the most that it takes, instead of handing them back to the system.

    XLA's CPU runtime takes the space of a step's intermediate values anew at each step. From 32 MiB on, glibc maps
    fresh pages for it every time, and the page faults took 15 times as long as the arithmetic on them.
    """
    if os.environ.get(KEEP_MALLOC) == "1" or platform.libc_ver()[0] != "glibc":
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        for parameter in (_M_MMAP_THRESHOLD, _M_TRIM_THRESHOLD):
            mallopt(parameter, 2**31 - 1)


def set_up() -> Path | None:
    """What a program that trains does before it asks JAX for its devices; returns where compiled programs are kept.

    One that only predicts needs `enable_compilation_cache` alone: it has something to do while the network computes,
    and its passes have no more images than memory is kept for.
    """
    compute_where_called()
    return enable_compilation_cache()


def compute_where_called() -> None:
    """Has JAX run programs of one CPU device in the thread that calls them, and not in one of its own.

    glibc gives threads other than the first no more than 64 MiB that it keeps: a training step's space, of some 0.1 to
    2 GiB, was mapped and zeroed anew each time, which took 5 to 15% of it. The caller has nothing to do meanwhile that
    is worth that: what loads images has threads of its own. Without effect once JAX has started its devices, on
    several of them, and with RCMNET_KEEP_MALLOC=1.
    """
    import jax

    if os.environ.get(KEEP_MALLOC) != "1":
        jax.config.update("jax_cpu_enable_async_dispatch", False)  # type: ignore[no-untyped-call]


def use_huge_pages() -> None:
    """Starts the program anew with huge pages for large blocks, where glibc and the kernel leave that to be asked for.

    Where `compute_where_called` has no say (several devices), glibc's threads map each block of over 32 MiB anew, and
    a training step at 128 px waited a fifth of its time for page faults. With pages of 2 MiB there are 140 times fewer.
    glibc reads its tunables only when a program starts, hence the restart; the process stays the same one. To be called
    first thing by a program, never by a library. Nothing happens where the user set the tunable, or
    RCMNET_KEEP_MALLOC=1.
    """
    tunables = os.environ.get("GLIBC_TUNABLES", "")
    if os.environ.get(KEEP_MALLOC) == "1" or _HUGE_PAGES in tunables or platform.libc_ver()[0] != "glibc":
        return
    try:
        asked_for = "[madvise]" in Path("/sys/kernel/mm/transparent_hugepage/enabled").read_text()
    except OSError:
        return
    if asked_for and sys.executable:
        os.environ["GLIBC_TUNABLES"] = f"{tunables}:{_HUGE_PAGES}=1".lstrip(":")
        sys.stdout.flush()
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])


def user_flags() -> str:
    """XLA_FLAGS; XLA also takes the name of a file of flags there, whose content is returned then."""
    flags = os.environ.get("XLA_FLAGS", "").strip()
    if flags and not flags.startswith("-") and Path(flags).is_file():
        return " ".join(Path(flags).read_text().split())
    return flags


def _jaxlib_knows(flag: str) -> bool:
    spec = importlib.util.find_spec("jaxlib")
    for folder in (spec.submodule_search_locations or ()) if spec else ():
        for library in Path(folder).glob("libjax_common*"):
            with library.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
                if content.find(flag.encode()) >= 0:
                    return True
    return False


def _cpu_started() -> bool:
    bridge = sys.modules.get("jax._src.xla_bridge")
    if bridge is None or not getattr(bridge, "backends_are_initialized", lambda: False)():
        return False
    return bool(sys.modules["jax"].default_backend() == "cpu")


def cpu_model() -> tuple[str, str]:
    """Model name and instruction-set flags of the first core; a compiled program is only valid where both agree."""
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return platform.processor() or platform.machine(), ""
    facts = dict(line.split(":", 1) for line in text.split("\n\n")[0].splitlines() if ":" in line)
    known = {key.strip(): value.strip() for key, value in facts.items()}
    name = known.get("model name") or known.get("CPU part") or platform.machine()
    return name, known.get("flags") or known.get("Features") or ""


def cores() -> int:
    """Of the processor, those that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def cache_root() -> Path:
    """The user's cache folder: RCMNET_CACHE, else XDG_CACHE_HOME/rcmnet_jax, else ~/.cache/rcmnet_jax."""
    if own := os.environ.get("RCMNET_CACHE"):
        return Path(own).expanduser().absolute()
    base = os.environ.get("XDG_CACHE_HOME", "")
    # The XDG rule: a relative path there is to be ignored.
    return (Path(base) if base.startswith("/") else Path("~/.cache").expanduser()) / "rcmnet_jax"


def enable_compilation_cache(folder: Path | None = None) -> Path | None:
    """Keeps compiled programs on disk, so that the next process does not compile them again.

    The folder lies under `folder` (default: `cache_root()`), named after the processor and jaxlib's version, and is
    private to the user, since whoever writes there runs code here. Entries that an earlier process was killed in the
    midst of writing are removed first: JAX would never replace them.

    Returns the folder in use (JAX's own setting wins where the user made one), or None where it cannot be private or
    written; that is logged and costs time only.
    """
    import jax

    if configured := getattr(jax.config, "jax_compilation_cache_dir", None):
        return Path(configured)
    key = hashlib.sha256("\n".join(cpu_model()).encode()).hexdigest()[:8]
    path = (folder or cache_root()) / f"xla-{key}-{importlib.metadata.version('jaxlib')}"
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        facts = path.lstat()
        if not stat.S_ISDIR(facts.st_mode) or facts.st_uid != os.getuid():
            _log.warning("%s is not a folder of yours: programs are compiled afresh", path)
            return None
        path.chmod(0o700)
        sweep_compilation_cache(path)
    except OSError as error:
        _log.warning("%s: %s: programs are compiled afresh", path, error.strerror)
        return None
    settings = {"persistent_cache_min_compile_time_secs": 0.0, "persistent_cache_min_entry_size_bytes": -1}
    for name, value in {**settings, "compilation_cache_dir": str(path)}.items():
        jax.config.update(f"jax_{name}", value)  # type: ignore[no-untyped-call]
    return path


def sweep_compilation_cache(path: Path) -> list[str]:
    """Removes cut-off entries written since the last sweep, and the oldest of all above 2 GiB. Returns their names."""
    started, stamp = time.time(), path / ".swept"
    checked = stamp.stat().st_mtime if stamp.exists() else 0.0
    entries = sorted(((s.st_mtime, s.st_size, f) for f in path.glob("*-cache") if (s := f.stat())), reverse=True)
    removed, total = [], 0
    for written, size, file in entries:
        total += size
        # One second of slack: file systems round times, and a whole entry checked twice costs milliseconds.
        if total > _CACHE_BYTES or (written >= checked - 1.0 and not _is_whole(file.read_bytes())):
            file.unlink(missing_ok=True)
            removed.append(file.name)
    stamp.touch()
    os.utime(stamp, (started, started))
    return removed


def _is_whole(entry: bytes) -> bool:
    """Whether a cache entry decompresses to its end. JAX compresses with zstd where it is installed, else zlib."""
    if entry[:4] == b"\x28\xb5\x2f\xfd":
        return _is_whole_zstd(entry)
    inflate = zlib.decompressobj()
    try:
        inflate.decompress(entry)
    except zlib.error:
        return False
    return inflate.eof


def _is_whole_zstd(entry: bytes) -> bool:
    try:
        import zstandard  # type: ignore[import-not-found,unused-ignore]
    except ImportError:
        return True  # JAX, which looks for the same module, does not read such an entry either
    inflate = zstandard.ZstdDecompressor().decompressobj()
    try:
        inflate.decompress(entry)
    except zstandard.ZstdError:
        return False
    return bool(inflate.eof)


def circumstances(code: Iterable[Path | str], packages: Iterable[str], *facts: Any) -> str:
    """A digest of what a result hangs on: the processor, files of code, versions of packages, and facts by `repr`."""
    versions = [importlib.metadata.version(name) for name in packages]
    digest = hashlib.sha256(repr((cpu_model(), versions, facts)).encode())
    for file in code:
        digest.update(Path(file).read_bytes())
    return digest.hexdigest()[:32]


def environment() -> dict[str, Any]:
    """Versions, devices, processor, flags and commit that a result depends on, ready for JSON. Starts JAX's devices."""
    import jax

    devices = jax.devices()
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        **{name.split("-")[0]: _version(name) for name in _PACKAGES},
        "rcmnet_jax": sys.modules["rcmnet_jax"].__version__,
        "backend": devices[0].platform,
        "device": devices[0].device_kind,
        "devices": len(devices),
        "processes": jax.process_count(),
        "cpu": cpu_model()[0],
        "cores": cores(),
        "xla_flags": os.environ.get("XLA_FLAGS", ""),
        "commit": _commit(Path(__file__).resolve().parent),
    }


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _commit(package: Path) -> str | None:
    """Commit of the checkout that holds the package, with '+changes' where files differ; None outside of one."""
    git = shutil.which("git")
    # An installed copy may lie inside some other project's checkout: only our own has .git right above the package.
    if git is None or not (package.parent / ".git").exists():
        return None

    def ask(*words: str) -> str | None:
        command = [git, "-C", str(package.parent), *words]
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)
        return done.stdout.strip() if done.returncode == 0 else None

    try:
        head, changes = ask("rev-parse", "HEAD"), ask("status", "--porcelain", "--untracked-files=no")
    except (OSError, subprocess.TimeoutExpired):
        return None
    return f"{head}+changes" if head and changes else head
