"""Checkpoints that are whole or not there. The only file that imports Orbax.

Orbax writes the arrays; what it does not do is done here: it keeps no checksums (a flipped byte is restored without a
word), does not fall back from a damaged step to the one before, and trips over stray folders. A checkpoint is

    step_000000123/  state/ (Orbax)  leaves.json  facts.json  SHA256SUMS

written in a temporary folder, synced, and renamed last: that rename is the commit.
"""

from __future__ import annotations

import contextlib
import errno
import itertools
import json
import logging
import os
import shutil
import threading
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from rcmnet_jax import files
from rcmnet_jax.checkpoint import manifest, placement
from rcmnet_jax.errors import Interrupted, UserError

_BARRIER_SECONDS = 600
_UNWRITABLE = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EEXIST)
_ROOM = 1 << 20  # bytes left over for metadata; arrays are compressed, so they come to no more than their size
_operations = itertools.count()  # every process makes the same calls, so the numbers agree and name the barriers


def _is_news(record: logging.LogRecord) -> bool:
    """Orbax, and the event loops it runs, log tracebacks of errors that are also raised; people are to read the one
    sentence that `_explain` makes of them."""
    error = record.exc_info[1] if record.exc_info else None
    echo = error is not None and ("Event loop is closed" in str(error) or files.is_disk_full(error))
    return "orbax" not in Path(record.pathname).parts and not echo


for _logger in ("absl", "asyncio", "concurrent.futures"):
    logging.getLogger(_logger).addFilter(_is_news)


class Store:
    """The newest `keep` checkpoints of one run, in `folder`.

    A tree is any JAX pytree of arrays. With several processes, all of them make every call, on a folder they share;
    process 0 decides, writes the checksums, renames and prunes.

    Args:
      folder: is made at the first save. No two runs may write to it at once; see `files.lock_folder`.
      keep: how many checkpoints stay, at least 1.
      warn: is told about damaged checkpoints, one sentence each.
    """

    def __init__(self, folder: Path | str, *, keep: int = 2, warn: Callable[[str], None] = warnings.warn):
        if keep < 1:
            raise UserError(f"config.checkpoint.keep={keep}: must be at least 1.")
        self.folder = Path(folder).absolute()
        self.keep = keep
        self._warn = warn
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None

    def __enter__(self) -> Store:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def steps(self) -> list[int]:
        """The committed steps, ascending; not yet verified."""
        return manifest.steps_in(self.folder)

    def save(self, step: int, tree: Any, facts: Mapping[str, Any] | None = None) -> None:
        """Starts writing `tree` as `step` and returns once it is copied, so that the caller may donate its arrays.

        Waits for a save still running. A checkpoint of the same step is replaced.

        Args:
          step: 0 or more.
          tree: pytree of jax.Array, numpy arrays or numbers.
          facts: small JSON values, given back by `restore`.

        Raises:
          Interrupted: the disk filled up during the save before; the last good step is untouched.
          UserError: the folder cannot be written to.
        """
        self.wait()
        notes = manifest.dump(facts or {})
        leaves, _ = manifest.flatten(tree)
        copies = {path: placement.own(leaf) for path, leaf in leaves.items()}
        # Not a daemon: a program that ends without close() still finishes its last save.
        work = (step, copies, notes, f"save-{next(_operations)}")
        self._thread = threading.Thread(target=self._run, args=work, name="checkpoint-save")
        self._thread.start()

    def wait(self) -> None:
        """Returns when the last save is committed and pruned, and raises what made it fail (see `save`), once."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        error, self._error = self._error, None
        if error is not None:
            raise error

    def close(self) -> None:
        """As `wait`; the store may still be used after it."""
        self.wait()

    def restore(self, like: Any) -> tuple[int, Any, dict[str, Any]] | None:
        """The newest sound checkpoint as (step, tree, facts), or None where there is none.

        Every byte is checked first. A damaged or half-written checkpoint is named through `warn`, set aside as
        `damaged-step_N` (nothing is deleted), and the one before is taken.

        Args:
          like: a tree of the same structure; each leaf is placed as its jax.Array or jax.ShapeDtypeStruct there is
            (sharding, shape, dtype). Numpy leaves come back as numpy arrays. All leaves own their memory, so that
            they can be donated.

        Raises:
          UserError: the checkpoint's tree, a shape or a dtype is not that of `like`; names the leaf.
        """
        self.wait()
        step = self._decide()
        if step is None:
            return None
        folder = self.folder / manifest.step_folder(step)
        wanted, structure = manifest.flatten(like)
        wanted = {path: leaf if hasattr(leaf, "dtype") else np.asarray(leaf) for path, leaf in wanted.items()}
        saved = json.loads((folder / manifest.LEAVES).read_text("utf-8"))
        manifest.check_fit(saved, manifest.describe(wanted), folder)
        stored = {path: placement.abstract(leaf) for path, leaf in wanted.items() if np.size(leaf)}
        found: manifest.Leaves = {}
        if stored:
            with _checkpointer(f"restore-{next(_operations)}") as orbax:
                tree = orbax.restore(folder / "state", args=ocp.args.StandardRestore(manifest.nest(stored)))
            found, _ = manifest.flatten(tree)
        leaves = [placement.place(found.get(path), leaf) for path, leaf in wanted.items()]
        facts = json.loads((folder / manifest.FACTS).read_text("utf-8"))
        return step, jax.tree.unflatten(structure, leaves), facts

    def _decide(self) -> int | None:
        """The newest sound step, the same in every process."""
        step = self._newest_sound() if jax.process_index() == 0 else None
        if jax.process_count() == 1:
            return step
        from jax.experimental import multihost_utils

        decided = int(multihost_utils.broadcast_one_to_all(np.int32(-1 if step is None else step)))
        return None if decided < 0 else decided

    def _newest_sound(self) -> int | None:
        try:
            files.recover_folders(self.folder)
        except OSError as error:
            self._warn(f"{self.folder}: left-over temporary folders could not be cleared ({error.strerror}).")
        for step in reversed(self.steps()):
            folder = self.folder / manifest.step_folder(step)
            problems = files.verify_sums(folder, extra=False)
            if not problems:
                return step
            more = f" and {len(problems) - 1} more" if len(problems) > 1 else ""
            self._warn(f"{folder}: damaged ({problems[0]}{more}). {self._set_aside(folder)}; the step before is used.")
        return None

    def _set_aside(self, folder: Path) -> str:
        names = itertools.chain([""], (f"-{n}" for n in itertools.count(2)))
        targets = (folder.with_name(f"damaged-{folder.name}{suffix}") for suffix in names)
        target = next(t for t in targets if not t.exists())
        try:
            folder.rename(target)
        except OSError as error:
            return f"It could not be set aside ({error.strerror})"
        return f"Set aside as {target.name}"

    def _run(self, step: int, leaves: manifest.Leaves, notes: str, operation: str) -> None:
        temporary = self.folder / f".tmp-{manifest.step_folder(step)}"
        try:
            self._write(step, leaves, notes, temporary, operation)
        except BaseException as error:  # surfaces at the caller's next call, in its thread
            self._error = self._explain(step, error)
            if jax.process_index() == 0:
                with contextlib.suppress(OSError):  # frees the space; what stays is swept by the next save or restore
                    files.remove(temporary)

    def _write(self, step: int, leaves: manifest.Leaves, notes: str, temporary: Path, operation: str) -> None:
        main = jax.process_index() == 0
        final = self.folder / manifest.step_folder(step)
        stored = {path: leaf for path, leaf in leaves.items() if leaf.size}  # Orbax refuses empty arrays
        # Barriers are reached after a failure too, or the other processes would wait for nothing.
        try:
            if main:
                self._make(temporary, sum(leaf.nbytes for leaf in stored.values()))
        finally:
            _barrier(f"{operation}-made")
        if not temporary.is_dir():
            raise Interrupted(f"{final}: process 0 could not begin this step. Run again to go on from the step before.")
        try:
            if stored:
                tree = manifest.nest(placement.fetched(stored))
                with _checkpointer(operation) as orbax:
                    orbax.save(temporary / "state", args=ocp.args.StandardSave(tree))
            if main:
                files.write_atomic(temporary / manifest.LEAVES, manifest.dump(manifest.describe(leaves)))
                files.write_atomic(temporary / manifest.FACTS, notes)
                files.write_sums(temporary)
                files.commit_folder(temporary, final)
                self._prune(step)
        finally:
            _barrier(f"{operation}-done")
        if not final.is_dir():
            raise Interrupted(
                f"{final}: process 0 could not commit this step. Run again to go on from the step before."
            )

    def _make(self, temporary: Path, size: int) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        files.recover_folders(self.folder)
        # Asked first: a disk that fills up half-way makes Orbax's threads fail one by one, each with a traceback.
        if shutil.disk_usage(self.folder).free < size + _ROOM:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        temporary.mkdir()

    def _prune(self, written: int) -> None:
        """Only this far below a checkpoint that has just been committed, so that a sound one is always left."""
        for step in self.steps()[: -self.keep]:
            if step != written:
                old = self.folder / manifest.step_folder(step)
                # Renamed first: a kill half-way through a deletion must not leave something that looks damaged.
                gone = old.with_name(f".tmp-{old.name}")
                old.rename(gone)
                files.remove(gone)

    def _explain(self, step: int, error: BaseException) -> BaseException:
        """The error as the caller meets it: its own type, but for the ends that have an exit status of their own."""
        steps = []
        with contextlib.suppress(OSError):  # a folder that cannot be listed either
            steps = self.steps()
        last = f"step {steps[-1]} is untouched" if steps else "no step had been saved before"
        explained: BaseException = error
        if files.is_disk_full(error):
            text = f"{self.folder}: no space left while saving step {step}; {last}. Free some and run again to go on."
            explained = Interrupted(text)
        elif isinstance(error, OSError) and error.errno in _UNWRITABLE:
            text = f"{self.folder}: step {step} cannot be written ({error.strerror}); {last}. Choose another --workdir."
            explained = UserError(text)
        elif jax.process_count() > 1 and "DEADLINE_EXCEEDED" in str(error):
            text = f"{self.folder}: another process did not finish its part of step {step}; {last}. Run again to go on."
            explained = Interrupted(text)
        if explained is not error:
            explained.__cause__ = error
        return explained


def _checkpointer(operation: str) -> ocp.Checkpointer:
    """Orbax with barriers that go through the coordinator: its default ones run on the devices, out of turn with the
    training step's own collectives when called from a thread."""
    count = jax.process_count()
    options = ocp.options.MultiprocessingOptions(
        active_processes=set(range(count)) if count > 1 else None, barrier_sync_key_prefix=f"rcmnet-{operation}"
    )
    return ocp.Checkpointer(
        ocp.StandardCheckpointHandler(multiprocessing_options=options), multiprocessing_options=options
    )


def _barrier(name: str) -> None:
    if jax.process_count() > 1:
        ocp.multihost.get_barrier_sync_fn()(key=f"rcmnet-{name}", timeout_ms=_BARRIER_SECONDS * 1000)
