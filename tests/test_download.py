"""Downloads against a server on this machine that lies, stalls, redirects and cuts off."""

from __future__ import annotations

import fcntl
import hashlib
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest

from rcmnet_jax.download import Remote, download
from rcmnet_jax.errors import UserError

CONTENT = np.random.default_rng(0).bytes(300_000)
MD5 = "md5:" + hashlib.md5(CONTENT, usedforsecurity=False).hexdigest()
SHA256 = "sha256:" + hashlib.sha256(CONTENT).hexdigest()


class Server(ThreadingHTTPServer):
    """Serves CONTENT in the manner of the path's name and keeps what was asked of it."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.asked = []
        self.done = threading.Event()

    def handle_error(self, *_):
        """A client that hung up is no matter here."""

    def url(self, name):
        return f"http://127.0.0.1:{self.server_port}/{name}"


class Handler(BaseHTTPRequestHandler):
    def log_message(self, *_):
        """Says nothing."""

    def do_GET(self):
        wanted = self.headers.get("Range", "")
        self.server.asked.append(wanted)
        name = self.path.strip("/")
        start = int(wanted[6:-1]) if wanted and name not in ("no-ranges", "cut-no-ranges") else 0
        count = len(self.server.asked)
        if name.startswith("status-"):
            self.send_error(int(name[7:]))
        elif name == "busy":
            self.send_error(503) if count < 3 else self.body(start)
        elif name.startswith("to-"):
            self.send_response(302)
            places = {
                "to-whole": "/whole", "to-http": "http://example.invalid/whole", "to-file": "file:///etc/passwd",
                "to-itself": "/to-itself", "to-ftp": "ftp://example.invalid/x",
            }  # fmt: skip
            self.send_header("Location", places[name])
            self.end_headers()
        elif start >= len(CONTENT):
            self.send_response(416)
            self.send_header("Content-Range", f"bytes */{len(CONTENT)}")
            self.end_headers()
        else:
            getattr(self, name.replace("-", "_"), self.body)(start)

    def body(self, start, stop=None, *, length=None, begin=None, content=CONTENT):
        self.send_response(206 if start else 200)
        if start:
            begin = start if begin is None else begin
            self.send_header("Content-Range", f"bytes {begin}-{len(content) - 1}/{len(content)}")
        if length != "none":
            self.send_header("Content-Length", str(len(content) - start if length is None else length))
        self.end_headers()
        self.wfile.write(content[start:stop])

    def cuts(self, start):
        self.body(start, start + 70_000)

    def cut_no_ranges(self, start):
        self.body(start, None if len(self.server.asked) > 2 else 70_000)

    def always_cut(self, start):
        self.body(start, start + 100)

    def wrong_range(self, start):
        self.body(start, begin=start + 1 if start else None)

    def other(self, start):
        self.body(start, content=CONTENT[::-1])

    def no_length(self, start):
        self.body(start, length="none")

    def endless(self, start):
        self.body(start, length="none")
        while not self.server.done.is_set():
            try:
                self.wfile.write(bytes(100_000))
            except OSError:
                return

    def huge(self, start):
        self.body(start, 0, length=10**12)

    def stalls(self, start):
        if len(self.server.asked) > 1:
            self.body(start)
            return
        self.body(start, 50_000)
        self.server.done.wait(20)

    def trickles(self, start):
        self.body(start, 1)
        while not self.server.done.wait(0.05):
            try:
                self.wfile.write(b"x")
            except OSError:
                return


@pytest.fixture
def server():
    made = Server()
    thread = threading.Thread(target=made.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    yield made
    made.done.set()
    made.shutdown()
    thread.join()
    made.server_close()


@pytest.fixture
def fetch(server, tmp_path):
    def run(name, checksum=SHA256, **options):
        remote = Remote(server.url(name), options.pop("max_bytes", 1_000_000), checksum)
        return download(remote, tmp_path / "f.zip", **{"stall": 0.3, "pause": 0.0} | options)

    return run


def leftovers(tmp_path):
    return sorted(path.name for path in tmp_path.iterdir())


@pytest.mark.parametrize("name", ["whole", "no-length", "to-whole", "busy", "cut-no-ranges"])
@pytest.mark.parametrize("checksum", [MD5, SHA256])
def test_a_file_arrives_whole(fetch, tmp_path, name, checksum):
    seen = []
    assert fetch(name, checksum, progress=lambda done, total: seen.append((done, total))).read_bytes() == CONTENT
    assert seen[-1][0] == len(CONTENT)
    assert leftovers(tmp_path) == ["f.zip"]


def test_a_server_that_cuts_off_is_taken_up_where_it_stopped(fetch, server):
    assert fetch("cuts", attempts=2).read_bytes() == CONTENT
    assert server.asked == ["", *(f"bytes={i}-" for i in range(70_000, 300_000, 70_000))]


def test_the_next_run_goes_on_where_the_last_one_stopped(fetch, server, tmp_path):
    (tmp_path / "f.zip.part").write_bytes(CONTENT[:200_000])
    assert fetch("whole").read_bytes() == CONTENT
    assert server.asked == ["bytes=200000-"]


def test_a_whole_part_needs_no_more_bytes(fetch, tmp_path):
    (tmp_path / "f.zip.part").write_bytes(CONTENT)
    assert fetch("whole").read_bytes() == CONTENT


@pytest.mark.parametrize("part", [bytes(1000), CONTENT + b"more"])
def test_a_part_of_another_file_is_given_up(fetch, tmp_path, part):
    (tmp_path / "f.zip.part").write_bytes(part)
    assert fetch("whole").read_bytes() == CONTENT


def test_a_file_that_is_there_is_checked_and_not_fetched(fetch, server, tmp_path):
    (tmp_path / "f.zip").write_bytes(CONTENT)
    fetch("whole")
    assert server.asked == []
    (tmp_path / "f.zip").write_bytes(CONTENT[:-1])
    assert fetch("whole").read_bytes() == CONTENT


def test_a_server_without_ranges_is_begun_anew(fetch, tmp_path):
    (tmp_path / "f.zip.part").write_bytes(CONTENT[:1000])
    assert fetch("no-ranges").read_bytes() == CONTENT


def test_a_stalled_connection_is_taken_up_again(fetch):
    begin = time.monotonic()
    assert fetch("stalls").read_bytes() == CONTENT
    assert time.monotonic() - begin < 5


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("trickles", "stalled.*tried 2 times"),
        ("always-cut", "ended at .* of 300,000.*tried 2 times"),
        ("other", "does not match sha256:.*Not used"),
        ("endless", "more than the 1,000,000 bytes expected"),
        ("huge", "has 1,000,000,000,000 bytes, at most"),
        ("status-404", "answers 404"),
        ("status-403", "answers 403"),
        ("status-503", "answers 503.*tried 2 times"),
        ("to-http", "not an https address"),
        ("to-file", "not an https address|302"),
        ("to-ftp", "not an https address"),
        ("to-itself", "302"),
    ],
)
def test_what_cannot_be_trusted_is_refused_and_never_takes_the_files_name(fetch, tmp_path, name, message):
    with pytest.raises(UserError, match=message):
        fetch(name, attempts=2)
    assert "f.zip" not in leftovers(tmp_path)
    assert name in ("trickles", "always-cut") or leftovers(tmp_path) == []


def test_a_wrong_range_is_not_joined_on(fetch, tmp_path):
    (tmp_path / "f.zip.part").write_bytes(CONTENT[:1000])
    with pytest.raises(UserError, match="another part than asked for"):
        fetch("wrong-range", attempts=2)


@pytest.mark.parametrize(
    "url", ["http://example.com/x", "ftp://example.com/x", "file:///etc/passwd", "x.zip", "https://"]
)
def test_only_https_is_fetched(tmp_path, url):
    with pytest.raises(UserError, match="not an https address"):
        download(Remote(url, 10), tmp_path / "f")


def test_no_connection_is_said(tmp_path):
    with pytest.raises(UserError, match=r"connection failed.*Run again"):
        download(Remote("http://127.0.0.1:9/x", 10), tmp_path / "f", attempts=2, pause=0)


def test_a_second_process_is_refused(fetch, tmp_path):
    with (tmp_path / "f.zip.part").open("ab") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        with pytest.raises(UserError, match="another process"):
            fetch("whole")


def test_a_checksum_may_give_only_how_it_begins(fetch, tmp_path):
    assert fetch("whole", SHA256[:15]).read_bytes() == CONTENT
    (tmp_path / "f.zip").unlink()
    with pytest.raises(UserError, match="does not match sha256:"):
        fetch("other", SHA256[:15])
    with pytest.raises(ValueError, match="neither"):
        fetch("whole", "sha256:")
