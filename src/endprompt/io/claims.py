"""How a command takes the folder that it writes: held, claimed, and never somebody else's.

A folder that a command works in holds `claim.json`: which command it belongs to, and the settings,
digests of weights and text included, that decide about its result. The claim is written when all
checks have passed; nothing in a folder is replaced or removed without it. While a command runs,
the folder itself is locked, so that a lock ends with its process and leaves nothing behind.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
from collections.abc import Callable, Generator, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from endprompt.errors import DataError, OutputError
from endprompt.io import digests, files, records
from endprompt.record import Claim

CLAIM = "claim.json"
TRIES = 5
UNSUPPORTED = (errno.EBADF, errno.ENOLCK, errno.ENOTSUP, errno.EINVAL)
"""What a file system answers that can't lock a folder: then there is no lock."""


@dataclass
class Output:
    """A folder that this process holds.

    kind     which command it belongs to
    lock     open file descriptor; children that keep it open keep the hold
    claimed  settings of the claim that stands in it, None before there is one
    written  whether this process wrote the claim
    """

    folder: Path
    kind: str
    lock: int
    claimed: dict[str, Any] | None
    written: bool = False

    def require(self, settings: dict[str, Any]) -> None:
        """Refuse a folder that was claimed with other settings. Raises OutputError naming them."""
        now = json.loads(json.dumps(settings))
        before = self.claimed
        if before is None:
            return
        differing = [key for key in sorted({*before, *now}) if before.get(key) != now.get(key)]
        if differing:
            raise OutputError(
                f"{self.folder} holds a run with another {', '.join(differing)}: "
                "choose another --out, or remove the folder"
            )

    def reserve(self) -> None:
        """Note whose the folder is, where checks need files in it; any settings may follow."""
        if self.claimed is None:
            self._write(None)

    def claim(self, settings: dict[str, Any]) -> None:
        """Note what the folder is for, once all checks have passed."""
        self.require(settings)
        if self.claimed is None:
            self._write(settings)
            self.claimed = json.loads(json.dumps(settings))

    def _write(self, settings: dict[str, Any] | None) -> None:
        if first_rank():
            _write(self.folder / CLAIM, Claim(endprompt=self.kind, settings=settings))
            self.written = True


@contextlib.contextmanager
def output(
    folder: Path,
    kind: str,
    *,
    reads: Iterable[str | Path | None] = (),
    ours: Callable[[Path], bool] = lambda _: False,
) -> Generator[Output]:
    """Hold a folder until the block ends; it is made where it is not there.

    kind   which command it belongs to; another's folder is refused
    reads  what the command reads: paths, and names of other things, which are left alone
    ours   whether a folder without a claim is the command's all the same

    Leavings of a killed process are removed. A block that ends without a file but its claim leaves
    neither claim nor folder. Of several ranks the first one holds the folder for all.

    Raises OutputError where another process holds it, where it is, or holds, something that is
    read, where it holds other files, and where it can't be written.
    """
    require_apart(folder, reads)
    if not first_rank():
        yield Output(folder, kind, -1, settings_of(folder))
        return
    topmost, lock = _hold(folder)
    try:
        claim = _read(folder, kind)
        if claim is None and not ours(folder):
            _require_empty(folder)
        if topmost is None:
            files.clear_leavings(folder)
        held = Output(folder, kind, lock, claim.settings if claim else None)
        try:
            yield held
        finally:
            if held.written:
                _withdraw(folder)
    finally:
        _let_go(folder, topmost, lock)


@contextlib.contextmanager
def product(
    folder: Path, kind: str, *, reads: Iterable[str | Path | None] = (), force: bool = False
) -> Generator[Path]:
    """Give an empty folder to build in; it becomes `folder` when the block ends well.

    Its claim names every file with its digest.

    force  replace what is there, where it is the whole and unchanged product of this command

    Raises OutputError as `output` does, and for a folder that is not to be replaced.
    """
    require_apart(folder, reads)
    topmost, lock = _hold(folder)
    if files.clear_unfinished(folder):
        os.close(lock)
        topmost, lock = _hold(folder)
    try:
        _require_replaceable(folder, kind, force=force)
        with files.building(folder, replace=True) as partial:
            yield partial
            _require_replaceable(folder, kind, force=force)
            digests_of_files = digests.of_folder(partial)
            _write(partial / CLAIM, Claim(endprompt=kind, settings={}, files=digests_of_files))
    finally:
        _let_go(folder, topmost, lock)


def cached(folder: Path, build: Callable[[Path], None]) -> Path:
    """A folder that is made once, by whoever comes first; others wait for it.

    build  fills an empty folder

    Its claim lies beside it, so that it holds nothing but what was built. Raises OutputError for
    one that was changed since.
    """
    beside = folder.with_name(f".{folder.name}.{CLAIM}")
    if _is_filled(folder):
        _require_unchanged(folder, beside)
        return folder
    topmost, lock = _hold(folder, wait=True)
    try:
        if not _is_filled(folder):
            with files.building(folder) as partial:
                build(partial)
                digests_of_files = digests.of_folder(partial)
            _write(beside, Claim(endprompt="cache", files=digests_of_files))
    finally:
        _let_go(folder, topmost, lock)
    return folder


def _is_filled(folder: Path) -> bool:
    return folder.is_dir() and any(folder.iterdir())


def _require_unchanged(folder: Path, beside: Path) -> None:
    """Refuse a folder that is not what was built; one of before there were claims is taken."""
    if not beside.is_file():
        return
    try:
        named = records.read(beside, Claim).files or {}
        now = digests.of_folder(folder)
        other = sorted(name for name in {*named, *now} if named.get(name) != now.get(name))
    except DataError:
        other = [beside.name]
    if other:
        raise OutputError(
            f"{folder} was changed after it was made ({', '.join(other[:3])}): remove it and "
            f"{beside.name}, and it is made again"
        )


def _write(path: Path, claim: Claim) -> None:
    files.write_json(path, claim.model_dump(exclude_none=True))


def _require_replaceable(folder: Path, kind: str, *, force: bool) -> None:
    """Refuse a folder with anything in it that the claim in it does not name as it is."""
    claim = _read(folder, kind)
    if claim is None:
        _require_empty(folder)
        return
    if not force:
        raise OutputError(f"{folder} is there already: choose another --out, or give --force")
    now = digests.of_folder(folder)
    named = claim.files or {}
    other = sorted(name for name in now if name != CLAIM and now[name] != named.get(name))
    if other:
        raise OutputError(
            f"{folder} holds files that were added or changed ({', '.join(other[:3])}): "
            "move them away, or choose another --out"
        )


def settings_of(folder: Path) -> dict[str, Any] | None:
    """What a folder was claimed for, None where there is no claim.

    Raises OutputError for a claim that can't be read.
    """
    claim = _read(folder)
    return claim.settings if claim else None


def _read(folder: Path, kind: str | None = None) -> Claim | None:
    """The claim in a folder, None where there is none; OutputError for one of another kind."""
    path = folder / CLAIM
    if not path.is_file():
        return None
    claim = records.read(path, Claim, error=OutputError)
    if kind not in (None, claim.endprompt):
        raise OutputError(
            f"{folder} belongs to `endprompt {claim.endprompt:.20}`: choose another --out"
        )
    return claim


def is_claimed(folder: Path) -> bool:
    """Whether a folder is one that a command of this package writes."""
    try:
        return _read(folder) is not None
    except OutputError:  # somebody else's file of that name
        return False


def require_apart(folder: Path, reads: Iterable[str | Path | None]) -> None:
    """Refuse a folder to write that is, or holds, something that is read; links are followed."""
    out = Path(os.path.realpath(folder))
    for source in reads:
        if source is None or not Path(source).exists():
            continue  # the name of something that lies elsewhere
        here = Path(os.path.realpath(source))
        if out == here or out in here.parents:
            raise OutputError(
                f"{folder} {'is' if out == here else 'holds'} what is read, {source}: "
                "choose another --out"
            )


def first_rank() -> bool:
    """Whether this process is the one that writes, of those that train together."""
    return os.environ.get("RANK", "0") == "0"


def _hold(folder: Path, *, wait: bool = False) -> tuple[Path | None, int]:
    """Make and lock a folder: the topmost folder that was made for it, and the descriptor."""
    for _ in range(TRIES):
        absent = [path for path in (folder, *folder.parents) if not os.path.lexists(path)]
        topmost = absent[-1] if absent else None
        try:
            folder.mkdir(parents=True, exist_ok=True)
            lock = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        except OSError as error:
            raise OutputError(f"cannot use folder {folder}: {error.strerror}") from error
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except OSError as error:
            if error.errno not in UNSUPPORTED:
                os.close(lock)
                raise OutputError(
                    f"another process is writing {folder}: wait for it, or choose another --out"
                ) from None
        with contextlib.suppress(OSError):
            if os.path.samestat(os.fstat(lock), folder.stat()):
                return topmost, lock
        os.close(lock)  # its holder has replaced or removed it meanwhile
    raise OutputError(f"another process is writing {folder}: choose another --out")


def _withdraw(folder: Path) -> None:
    """Remove a claim under which nothing was made, and the empty folders beside it."""
    paths = sorted(folder.rglob("*"), reverse=True)
    if [path for path in paths if not path.is_dir()] == [folder / CLAIM]:
        (folder / CLAIM).unlink()
        for path in paths:
            if path.is_dir():
                path.rmdir()


def _let_go(folder: Path, topmost: Path | None, lock: int) -> None:
    """Unlock a folder; remove it where it was made and stayed empty."""
    if topmost is not None:
        _remove_empty(folder, topmost)
    os.close(lock)


def _require_empty(folder: Path) -> None:
    strangers = sorted(
        path.name for path in folder.iterdir() if not files.PARTIAL.fullmatch(path.name)
    )
    if strangers:
        raise OutputError(
            f"{folder} holds other files ({', '.join(strangers[:3])}): choose another --out"
        )


def _remove_empty(folder: Path, topmost: Path) -> None:
    """Remove folders that were made and stayed empty, from `folder` up to `topmost`."""
    with contextlib.suppress(OSError):
        for path in (folder, *folder.parents):
            path.rmdir()
            if path == topmost:
                return
