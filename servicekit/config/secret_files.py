"""Files that hold secrets: made so that only their owner can read them, whatever the umask."""

import os
import tempfile
from pathlib import Path

from servicekit.config.errors import ConfigError


def write_secret_file(path: Path, content: bytes, *, keep_existing: bool = False) -> bool:
    """Write a file with mode 0600 (its directory 0700 when that is made here), all or nothing.

    With `keep_existing` a file that is there stays, also when another process makes it at the same moment.
    Returns whether the content was written.
    """
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")  # mkstemp makes 0600
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        if keep_existing:
            try:
                os.link(temporary, path)
            except FileExistsError:
                return False
        else:
            Path(temporary).replace(path)
        return True
    finally:
        Path(temporary).unlink(missing_ok=True)


def read_secret_file(path: Path) -> bytes:
    """Return what a secret file holds.

    Raises:
        ConfigError: it cannot be read, or others than its owner may read it.
    """
    try:
        with path.open("rb") as file:
            mode = os.fstat(file.fileno()).st_mode
            if mode & 0o077:
                raise ConfigError(
                    f"{path} holds a secret and has mode {mode & 0o777:04o}: others may use it."
                    f" Run: chmod 600 {path}"
                )
            return file.read()
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}") from error
