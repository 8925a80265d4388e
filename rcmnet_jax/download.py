"""Downloads that can be trusted: HTTPS only, checked, resumed after a break, of bounded size, never half there."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import http.client
import ipaddress
import os
import re
import ssl
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from rcmnet_jax import files
from rcmnet_jax.errors import UserError

_LOST = (urllib.error.URLError, http.client.HTTPException, TimeoutError, ConnectionError, ssl.SSLError)
_NO_ROUTE = (errno.EHOSTUNREACH, errno.ENETUNREACH, errno.ENETDOWN, errno.EHOSTDOWN)
_PIECE = 1 << 18  # bytes read at once
_SLOWEST = 1024  # bytes in `stall` seconds: fewer count as none
_ALGORITHMS = ("md5", "sha256")
_FEWEST_DIGITS = 8  # of a checksum that gives only how it begins, as PyTorch's file names do
Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Remote:
    """A file to be had: where, how large it may be, and what it must be."""

    url: str
    max_bytes: int
    checksum: str = ""  # 'md5:HEX' or 'sha256:HEX', or how HEX begins; empty: TLS alone vouches for it


class UnreachableError(UserError):
    """No connection, or none that lasted, after all attempts; `reason` is the last one's."""

    def __init__(self, message: str, reason: str):
        super().__init__(message)
        self.reason = reason


class _Broken(Exception):
    """The connection ended early or stalled; trying again may help."""


def download(
    remote: Remote,
    path: Path,
    *,
    stall: float = 30.0,
    attempts: int = 5,
    pause: float = 1.0,
    progress: Progress | None = None,
) -> Path:
    """Fetches `remote` to `path` and returns it; a whole file that is there already is only checked.

    The bytes gather in `path` + '.part', from where the next attempt, or the next run, goes on. Two processes must not
    fetch to the same path at once: the second is refused.

    Args:
      remote: what to fetch.
      path: where to; the folders above are made.
      stall: seconds with less than 1 KiB after which the connection counts as dead.
      attempts: how often a broken connection is taken up again.
      pause: seconds before the second attempt, doubled each time.
      progress: called with (bytes so far, bytes in all; 0 if not known).

    Raises:
      UserError: plain HTTP, a refusing server, a wrong checksum or size; UnreachableError: no connection that lasted.
      OSError: for instance no space left.
    """
    _require_safe(remote.url)
    if path.exists() and matches(path, remote.checksum):
        return path
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    with part.open("ab") as file, _locked(file, part):
        failures, reached, reason = 0, 0, ""
        while failures < attempts:
            if failures:
                time.sleep(pause * 2 ** (failures - 1))
            try:
                _fetch_checked(remote, file, stall, progress)
            except _Broken as error:
                reason, size = str(error), part.stat().st_size
                # A server that cuts off often but goes on each time gets there in the end.
                failures = 1 if size >= reached + _SLOWEST else failures + 1
                reached = max(reached, size)
                continue
            part.replace(path)
            files.fsync_path(path.parent)
            return path
    said = f"{remote.url}: {reason}; tried {attempts} times. Run again to go on, or fetch it yourself to {path}."
    raise UnreachableError(said, reason)


def _fetch_checked(remote: Remote, file: IO[bytes], stall: float, progress: Progress | None) -> None:
    """Takes the part to its end and checks it; it is emptied where the content is not what the checksum says."""
    resumed = file.seek(0, os.SEEK_END) > 0
    _fetch(remote, file, stall, progress)
    if matches(Path(file.name), remote.checksum):
        os.fsync(file.fileno())
        return
    file.truncate(0)
    reason = f"the content does not match {remote.checksum}"
    # What an earlier run left may be to blame once; a file fetched whole and wrong stays wrong.
    if resumed:
        raise _Broken(reason)
    raise UserError(f"{remote.url}: {reason}. Not used; tell the owner of the site.")


@contextlib.contextmanager
def _locked(file: IO[bytes], part: Path) -> Iterator[None]:
    """Keeps a second process from writing to the same file; removes it at the end where nothing came."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        # Between opening and locking, the other one may have finished and given the file its final name.
        mine = part.exists() and part.stat().st_ino == os.fstat(file.fileno()).st_ino
    except BlockingIOError:
        mine = False
    if not mine:
        raise UserError(f"{part}: another process is fetching it. Wait for it to end, then run again.")
    try:
        yield
    finally:
        if part.exists() and not part.stat().st_size:
            part.unlink()


def _require_safe(url: str) -> None:
    """Refuses all but HTTPS; plain HTTP only to this machine itself."""
    parts = urllib.parse.urlsplit(url)
    if parts.scheme == "https" and parts.hostname:
        return
    if parts.scheme == "http" and _is_loopback(parts.hostname or ""):
        return
    raise UserError(f"{url}: not an https address. Nothing is fetched over an open line.")


def _is_loopback(host: str) -> bool:
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


class _SafeRedirects(urllib.request.HTTPRedirectHandler):
    max_redirections = 5

    def redirect_request(
        self,
        req: urllib.request.Request,
        fp: IO[bytes],
        code: int,
        msg: str,
        headers: http.client.HTTPMessage,
        newurl: str,
    ) -> urllib.request.Request | None:
        _require_safe(newurl)
        # From another machine, an address of this one would reach what only this one may.
        if urllib.parse.urlsplit(req.full_url).scheme == "https":
            parts = urllib.parse.urlsplit(newurl)
            if parts.scheme != "https":
                raise UserError(f"{req.full_url}: leads to {newurl}, which is not https. Not followed.")
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _fetch(remote: Remote, file: IO[bytes], stall: float, progress: Progress | None) -> None:
    """Takes `file` further, to its end if the server lets it."""
    at = file.seek(0, os.SEEK_END)
    headers = {"User-Agent": "rcmnet_jax", "Accept-Encoding": "identity"}
    if at:
        headers["Range"] = f"bytes={at}-"
    request = urllib.request.Request(remote.url, headers=headers)
    try:
        with urllib.request.build_opener(_SafeRedirects).open(request, timeout=stall) as answer:
            at = _start(answer, at)
            total = _total(answer, at)
            if total > remote.max_bytes:
                raise UserError(
                    f"{remote.url}: has {total:,} bytes, at most {remote.max_bytes:,} were expected. Not fetched."
                )
            file.truncate(at)
            _copy(answer, file, remote, at, total, stall, progress)
    except urllib.error.HTTPError as error:
        with error:
            _answer(remote, file, error)
    except (urllib.error.URLError, http.client.HTTPException, OSError) as error:
        if not isinstance(error, _LOST) and getattr(error, "errno", None) not in _NO_ROUTE:
            raise  # the disk's
        if isinstance(getattr(error, "reason", None), ssl.SSLCertVerificationError):
            raise UserError(f"{remote.url}: its certificate is not valid. Not fetched.") from error
        raise _Broken(
            f"the connection failed ({getattr(error, 'reason', None) or error or type(error).__name__})"
        ) from error
    finally:
        file.flush()


def _answer(remote: Remote, file: IO[bytes], error: urllib.error.HTTPError) -> None:
    """What an error's status means: the part is whole already, try again, or give up."""
    if error.code == 416:
        size = re.fullmatch(r"bytes \*/(\d+)", error.headers.get("Content-Range", "").strip())
        if size and int(size[1]) == file.tell():
            return
        file.truncate(0)
        raise _Broken("the part that was there did not fit") from error
    if error.code in (408, 429, 500, 502, 503, 504):
        raise _Broken(f"the server answers {error.code} {error.reason}") from error
    raise UserError(f"{remote.url}: the server answers {error.code} {error.reason}. Check the address.") from error


def _start(answer: Any, at: int) -> int:
    """Where the answer's bytes belong: `at` if the server went on from there, else 0."""
    if answer.status != 206:
        return 0
    found = re.fullmatch(r"bytes (\d+)-\d+/(\d+|\*)", answer.headers.get("Content-Range", "").strip())
    if not found or int(found[1]) != at:
        raise _Broken("the server sent another part than asked for")
    return at


def _total(answer: Any, at: int) -> int:
    """Bytes of the whole file as the server says; 0 if it does not."""
    length = answer.headers.get("Content-Length", "")
    return at + int(length) if length.isdigit() else 0


def _copy(
    answer: Any, file: IO[bytes], remote: Remote, at: int, total: int, stall: float, progress: Progress | None
) -> None:
    mark, marked = time.monotonic(), at
    while piece := answer.read1(_PIECE):
        at += len(piece)
        if at > remote.max_bytes:
            file.truncate(0)
            raise UserError(f"{remote.url}: more than the {remote.max_bytes:,} bytes expected. Not fetched further.")
        file.write(piece)
        if progress is not None:
            progress(at, total)
        now = time.monotonic()
        if now - mark > stall:
            if at - marked < _SLOWEST:
                raise _Broken("the connection stalled")
            mark, marked = now, at
    if at < total:
        raise _Broken(f"the connection ended at {at:,} of {total:,} bytes")


def matches(path: Path, checksum: str) -> bool:
    """Whether a file is what the checksum says; any file is, where there is none."""
    if not checksum:
        return True
    kind, _, wanted = checksum.partition(":")
    if kind not in _ALGORITHMS or len(wanted) < _FEWEST_DIGITS:
        raise ValueError(f"checksum {checksum!r} is neither md5:HEX nor sha256:HEX")
    digest = hashlib.new(kind, usedforsecurity=False)
    with path.open("rb") as file:
        while piece := file.read(1 << 20):
            digest.update(piece)
    return digest.hexdigest().startswith(wanted.lower())
