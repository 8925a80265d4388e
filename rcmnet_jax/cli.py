"""What both commands share: how a failure becomes one sentence and an exit status."""

from __future__ import annotations

import errno
import os
import sys
import sysconfig
import traceback
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from pathlib import Path

from rcmnet_jax.errors import Interrupted, RunError, UserError
from rcmnet_jax.files import is_disk_full
from rcmnet_jax.settings import check_setting

CONFIG_FAULTS = (LookupError, AttributeError, TypeError, ValueError, OSError, ImportError, SyntaxError, NameError,
                 ArithmeticError, AssertionError)  # fmt: skip
"""What running a config file can raise."""
_NO_PLACE = (errno.ENOTDIR, errno.EEXIST, errno.EISDIR, errno.ENAMETOOLONG, errno.ELOOP)
_PACKAGE = Path(__file__).parent
# What code that is not the user's lies in.
_OTHERS = (*(sysconfig.get_path(kind) for kind in ("stdlib", "purelib", "platlib")), f"{_PACKAGE}{os.sep}",
           str(_PACKAGE.parent / "launch.py"), "<frozen")  # fmt: skip


def guarded(main: Callable[[], None]) -> int:
    """Runs `main` and returns the process's exit status; only a defect of ours escapes as an exception.

    0 done, 2 the input or the machine is at fault, 3 the run's own guard, 75 stopped from outside with the last step
    safe. The sentence goes to standard error.
    """
    try:
        main()
    except RunError as error:
        return _report(error)
    except KeyboardInterrupt:
        return _report(Interrupted("Stopped by the keyboard; run the same command again to go on."))
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # the reader of our output left: nothing to say
        return 0
    except (OSError, RuntimeError) as error:
        return _machine_fault(error)
    except MemoryError:
        return _report(UserError("The machine's memory does not hold this run. Lower batch_size or image_size."))
    return 0


def check_words(words: Sequence[str]) -> None:
    """Refuses settings that do not exist, and a config file that is not there or not named, which absl says unclearly.

    Args:
      words: of the command line, without the program's name.

    Raises:
      UserError: what is wrong, and the nearest setting that exists.
    """
    named = False
    for word, following in pairwise([*words, ""]):
        flag, given, value = word.lstrip("-").partition("=")
        if word.startswith("-") and flag.startswith("config."):
            check_setting(flag)
        elif word.startswith("-") and flag == "config":
            file = (value if given else following).split(":")[0]
            named = bool(file)
            if named and not Path(file).is_file():
                raise UserError(f"{file}: no such config file. Try --config=configs/cart.py.")
    if not named:
        raise UserError("Command line: --config is missing. Try --config=configs/cart.py.")


def config_fault(error: Exception) -> UserError:
    """What a config file or a flag raised, as a sentence: with the file and the line where it is in a config file."""
    for one in _chain(error):
        text = " ".join(str(one).split())
        if isinstance(one, SyntaxError):
            return UserError(f"{one.filename}, line {one.lineno}: {one.msg}. Mend the config file.")
        frames = [frame for frame in traceback.extract_tb(one.__traceback__) if not frame.filename.startswith(_OTHERS)]
        if frames:
            place = f"{frames[-1].filename}, line {frames[-1].lineno}"
            return UserError(f"{place}: {type(one).__name__}: {text}. Mend the config file.")
    return UserError(f"Command line: {' '.join(str(error.args[0] if error.args else error).split())}")


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """The first exception of those that led to one another, then the next."""
    if error is not None:
        yield from _chain(error.__cause__ or error.__context__)
        yield error


def _machine_fault(error: OSError | RuntimeError) -> int:
    """Reports what the machine is to blame for, and raises anything else again."""
    name = getattr(error, "filename", None)
    if is_disk_full(error):
        where = f" while writing {name}" if name else ""
        return _report(Interrupted(f"The disk is full{where}. Make room and run the same command again to go on."))
    if isinstance(error, OSError) and error.errno in (errno.EACCES, errno.EROFS, errno.EPERM):
        return _report(UserError(f"{name}: {error.strerror}. Check who may read and write there."))
    if isinstance(error, OSError) and name and error.errno in _NO_PLACE:
        return _report(UserError(f"{name}: {error.strerror}. Nothing can be written there: name another place."))
    if "RESOURCE_EXHAUSTED" in str(error):
        first = str(error).splitlines()[0]
        text = f"The device's memory does not hold this run ({first}). Lower batch_size or image_size."
        return _report(UserError(text))
    raise error


def _report(error: RunError) -> int:
    sys.stdout.flush()
    print(f"{'stopped' if error.status == 75 else 'error'}: {error}", file=sys.stderr, flush=True)
    return error.status
