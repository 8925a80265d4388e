"""Files that are whole or not there: atomic writes, folders committed by a rename, checksums, a folder's lock."""

from __future__ import annotations

import contextlib
import csv
import errno
import fcntl
import hashlib
import io
import json
import os
import secrets
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rcmnet_jax.errors import UserError

if TYPE_CHECKING:
    import numpy as np

SUMS = "SHA256SUMS"
LOCK = ".lock"
_CHUNK = 1 << 20  # bytes
_FULL_NUMBERS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_FULL_WORDS = ("No space left on device", "Disk quota exceeded", "File too large")
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)


def write_atomic(path: Path | str, content: bytes | str, *, durable: bool = True) -> None:
    """Writes the whole file or leaves the old one as it was, whatever happens; text as UTF-8, line ends as given.

    The bytes are on the disk when it returns, unless `durable` is off: for what can be made again and is checked when
    read, since each wait for the disk takes milliseconds. Makes the folders above the file.

    Raises:
      OSError: for instance no space left; the old file stands and no temporary file stays.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    # A name of its own, so that two writers never share a half-written file.
    temporary = path.with_name(f".tmp-{path.name}-{os.getpid()}-{secrets.token_hex(4)}")
    try:
        with temporary.open("wb") as f:
            f.write(content.encode() if isinstance(content, str) else content)
            if durable:
                f.flush()
                os.fsync(f.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    if durable:
        fsync_path(path.parent)


def write_safetensors(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """The arrays by name, in order of their names. Whole or not at all, as `write_atomic`."""
    import numpy as np
    from safetensors.numpy import save

    # `save` writes the memory behind a view as if it were the view's own.
    write_atomic(path, save({name: np.asarray(arrays[name], order="C") for name in sorted(arrays)}))


def write_json(path: Path, value: Any) -> None:
    """Indented JSON with sorted keys: equal values give equal bytes. Whole or not at all, as `write_atomic`."""
    write_atomic(path, json.dumps(value, indent=2, sort_keys=True) + "\n")


def fsync_path(path: Path) -> None:
    """Asks the disk to keep a file's bytes, or a folder's names, through a power cut."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        # Some network file systems cannot sync a folder; the rename itself is still atomic there.
        if not (path.is_dir() and error.errno in (errno.EINVAL, errno.ENOTSUP)):
            raise
    finally:
        os.close(handle)


def fsync_tree(folder: Path) -> None:
    """`fsync_path` on every file and folder below `folder`, and on itself last."""
    for path in sorted(folder.rglob("*"), reverse=True):
        fsync_path(path)
    fsync_path(folder)


def commit_folder(temporary: Path, final: Path, *, durable: bool = True) -> None:
    """Makes `temporary`, a finished folder beside `final`, appear as `final` in one step.

    The step survives a power cut, unless `durable` is off (as for `write_atomic`).

    Where `final` exists, it is set aside first as `.old-NAME` and deleted after; `recover_folders` puts it back if
    the process dies between the two renames.
    """
    if durable:
        fsync_tree(temporary)
    old = final.with_name(f".old-{final.name}")
    if final.exists():
        remove(old)
        final.rename(old)
    temporary.rename(final)
    if durable:
        fsync_path(final.parent)
    remove(old)


@contextmanager
def whole_folder(final: Path) -> Iterator[Path]:
    """A folder to fill, beside `final`: it becomes `final`, with checksums, when the block ends well, else it goes.

    What `final` was before is replaced as a whole.
    """
    final = final.absolute()
    final.parent.mkdir(parents=True, exist_ok=True)
    aside = Path(tempfile.mkdtemp(prefix=f".tmp-{final.name}-", dir=final.parent))
    try:
        aside.chmod(0o755)
        yield aside
        write_sums(aside)
        commit_folder(aside, final)
    finally:
        remove(aside)  # nothing is there any more if it was committed


def recover_folders(parent: Path) -> None:
    """Ends what a killed process left in `parent`: an interrupted replacement is undone, temporary things are removed.

    Only for a folder that no other process writes to; see `lock_folder`.
    """
    if not parent.is_dir():
        return
    for path in sorted(parent.iterdir()):
        if path.name.startswith(".old-"):
            final = parent / path.name.removeprefix(".old-")
            if final.exists():
                remove(path)
            else:
                path.rename(final)
        elif path.name.startswith(".tmp-"):
            remove(path)


def remove(path: Path) -> None:
    """Deletes a file, a link or a whole folder; nothing happens where there is none."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            path.unlink()


def refuse_within_bundle(output: Path, option: str = "") -> None:
    """Raises a UserError where `output` lies within a bundle: a further file there would make it a damaged one."""
    if any((above / "bundle.json").is_file() for above in output.resolve().parents):
        raise UserError(
            f"{option}{'=' * bool(option)}{output}: lies within a bundle, which it would spoil. Name another place."
        )


def csv_text(rows: Iterable[Sequence[object]]) -> str:
    """CSV with LF line ends; a row that has a carriage return in a cell is quoted, as readers take it for an end."""
    text = io.StringIO(newline="")
    plain, quoted = (csv.writer(text, lineterminator="\n", quoting=how) for how in (csv.QUOTE_MINIMAL, csv.QUOTE_ALL))
    for row in rows:
        (quoted if any("\r" in cell for cell in row if isinstance(cell, str)) else plain).writerow(row)
    return text.getvalue()


def sha256_bytes(data: bytes) -> str:
    """64 hex digits."""
    return hashlib.sha256(data).hexdigest()


def sha256_file(path: Path) -> str:
    """64 hex digits of the file's bytes, read in pieces."""
    digest = hashlib.sha256()
    with path.open("rb") as f:
        while piece := f.read(_CHUNK):
            digest.update(piece)
    return digest.hexdigest()


def write_sums(folder: Path, *, durable: bool = True) -> None:
    """Writes `folder`/SHA256SUMS over every other file below it, in the form that `sha256sum -c` reads."""
    lines = [f"{sha256_file(folder / name)}  {name}\n" for name in sorted(_files(folder) - {SUMS})]
    write_atomic(folder / SUMS, "".join(lines), durable=durable)


def verify_sums(folder: Path, *, extra: bool = True) -> list[str]:
    """What is wrong with `folder` by its SHA256SUMS, one phrase a file; empty when it is sound.

    Missing and changed files are named and, with `extra`, unlisted ones too: none can pass as part of the folder. What
    file managers leave about (.DS_Store, Thumbs.db) is passed over.
    """
    try:
        text = (folder / SUMS).read_bytes().decode("utf-8")
    except FileNotFoundError:
        return [f"{SUMS} is missing"]
    except (OSError, UnicodeDecodeError) as error:
        return [f"{SUMS} cannot be read ({error})"]
    listed = {}
    for line in text.split("\n")[:-1]:  # and at nothing else: a flipped bit makes another kind of line break of it
        digest, gap, name = line[:64], line[64:66], line[66:]
        if len(digest) != 64 or gap != "  " or not _stays_inside(name):
            return [f"{SUMS} is damaged"]
        listed[name] = digest
    if not listed or not text.endswith("\n"):
        return [f"{SUMS} is damaged"]
    found = _files(folder) - {SUMS}
    problems = [f"{name} is missing" for name in sorted(listed.keys() - found)]
    problems += [f"{name} is not in {SUMS}" for name in sorted(found - listed.keys()) if extra and not _is_litter(name)]
    for name in sorted(found & listed.keys()):
        try:
            if sha256_file(folder / name) != listed[name]:
                problems.append(f"{name} is damaged")
        except OSError as error:
            problems.append(f"{name} cannot be read ({error.strerror})")
    return problems


def _files(folder: Path) -> set[str]:
    return {p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_symlink() or not p.is_dir()}


def _is_litter(name: str) -> bool:
    last = name.rsplit("/", 1)[-1]
    return last.startswith("._") or last in (".DS_Store", "Thumbs.db", "desktop.ini")


def _stays_inside(name: str) -> bool:
    return bool(name) and not name.startswith("/") and "\\" not in name and ".." not in name.split("/")


def is_disk_full(error: BaseException) -> bool:
    """Whether an error says that the disk, the quota or the process's file size limit is reached.

    Follows causes, and reads the text too: storage libraries keep the system's words, not its error number.
    """
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, OSError) and seen.errno in _FULL_NUMBERS:
            return True
        if any(words in str(seen) for words in _FULL_WORDS):
            return True
        seen = seen.__cause__ or seen.__context__
    return False


@contextmanager
def lock_folder(folder: Path | str, warn: Callable[[str], None] | None = None) -> Iterator[None]:
    """Holds `folder` (made if it is missing) for this process alone, until the block ends or the process dies.

    The kernel drops the lock with the process, even by SIGKILL, so a stale one cannot exist.

    Args:
      folder: the work folder; its `.lock` file holds the owner's process number.
      warn: is told where the file system has no locks at all; the block then runs without one.

    Raises:
      UserError: another process holds it, or the folder cannot be made or written.
    """
    folder = Path(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        handle = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT, 0o644)
    except OSError as error:
        raise UserError(f"{folder}: cannot be written to ({error.strerror}). Choose another folder.") from error
    try:
        _take(handle, folder, warn)
        yield
    finally:
        os.close(handle)


def _take(handle: int, folder: Path, warn: Callable[[str], None] | None) -> None:
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        owner = os.pread(handle, 32, 0).decode(errors="replace").strip() or "unknown"
        raise UserError(f"{folder}: workdir in use by process {owner}. Wait for it to end, or stop it.") from error
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise
        if warn:
            warn(f"{folder}: this file system has no locks ({error.strerror}); never start two runs here at once.")
    os.ftruncate(handle, 0)
    os.pwrite(handle, f"{os.getpid()}\n".encode(), 0)
