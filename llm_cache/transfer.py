"""Moving answers: out of one Redis into a file, and from the file into another.

    await export_entries(cache, Path("answers.jsonl.gz"))
    await import_entries(other, Path("answers.jsonl.gz"))

The file holds prompts and answers in clear; it is made readable by its owner alone. What it looks
like is in `_exports.py`. None of this is for the path of a call: an export walks all keys of the
database, in small steps.
"""

# ruff: noqa: SLF001 - works on an open cache from the inside, as its own modules do

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import aclosing
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, Literal

from llm_cache._call import UNSET, Unset
from llm_cache._core.keys import SCHEMA, answer_digest
from llm_cache._core.policy import Purges
from llm_cache._core.targets import Anyone
from llm_cache._core.types import Entry
from llm_cache._core.vectors import salted_blob
from llm_cache._exports import (
    PART,
    Answer,
    Line,
    PartialFile,
    SemanticEntry,
    Tally,
    check_header,
    check_target,
    is_digest,
    part_of,
    read_lines,
    reading,
    to_answer,
    to_json,
)
from llm_cache._invalidate import tenant_of
from llm_cache._redis.bulk import BulkEntries, Stored
from llm_cache._semantic import vectors_of
from llm_cache.cache import LLMCache
from llm_cache.errors import (
    ConfigurationError,
    InvalidFile,
    InvalidRequest,
    SearchModuleMissing,
)

Progress = Callable[[int], None]
"""Told how many answers have been dealt with so far."""
Vectors = Literal["file", "embed", "none"]

_VALUE_BYTES = 2
"""Of a vector: FLOAT16."""
_STEP_KEYS = 500
"""What one `SCAN` looks at."""
_READ_TOGETHER = 100
"""Answers in memory at once; with `max_entry_bytes` this bounds the memory an export takes."""
_FLUSH_BYTES = 1024 * 1024
_WRITE_TOGETHER = 200
_CHECKPOINT_TTL_MS = 7 * 86_400_000


@dataclass(frozen=True, slots=True)
class Exported:
    """What an export wrote."""

    path: Path
    answers: int
    """Answers, without their aliases."""
    aliases: int
    semantic: int
    """Semantic entries."""
    unreadable: int
    """Stored under this namespace, but not readable by this release; they are not in the file."""
    resumed: bool
    """Whether it went on where an earlier one had stopped."""


@dataclass(slots=True)
class Imported:
    """What became of the lines of a file. Together they are all of them."""

    written: int = 0
    present: int = 0
    """Not written: the same or a newer answer is there, or was stored meanwhile."""
    expired: int = 0
    """Not written: their time was over."""
    invalidated: int = 0
    """Not written: invalidated in this very Redis since the export."""
    semantic: int = 0
    """Semantic entries that were written along."""
    embedded: int = 0
    """Those among them whose vectors were made anew."""
    unplaced: int = 0
    """Semantic entries that were not: without a prompt to embed, or one that the embedder cannot
    compare. Their answers are."""
    resumed_after: int = 0
    """Answers that an earlier, interrupted import of the file had dealt with; they are counted."""


@dataclass(frozen=True, slots=True)
class ExportInfo:
    """What a file holds, all of its lines having been checked."""

    path: Path
    namespace: str
    """Which it was exported from."""
    born: str
    """Token of the purge table of the Redis it was exported from: names that Redis."""
    tenant: str | None
    """The only tenant in it, if it was limited to one."""
    answers: int
    aliases: int
    semantic: int
    spaces: dict[str, int] = field(default_factory=dict)
    """Semantic entries with a vector, by the fingerprint of their embedder."""
    dimensions: dict[str, int] = field(default_factory=dict)
    """Of these vectors."""
    without_vectors: int = 0
    """Semantic entries without one."""
    embedders: dict[str, str] = field(default_factory=dict)
    """Names of the embedding models, as far as known, by their fingerprints."""
    file_id: str = ""

    @property
    def lines(self) -> int:
        """How many answers and aliases there are."""
        return self.answers + self.aliases


# ------------------------------------------------------------------ export


async def export_entries(
    cache: LLMCache,
    path: Path | str,
    *,
    tenant: str | Unset | None = UNSET,
    vectors: bool = True,
    resume: bool = False,
    overwrite: bool = False,
    on_progress: Progress = lambda _: None,
) -> Exported:
    """Write all living answers of the namespace to the file at *path*.

    The file appears when it is complete; until then it is `<path>.part`, which `resume` continues.
    What was invalidated by the end is not in it; what is stored meanwhile may be. Memory is
    bounded, whatever the number of answers. One round trip for every 500 keys of the database, two
    more for every 100 answers.

    Args:
        cache: What to export from; it is opened.
        path: Where to. With the suffix `.gz` it is packed.
        tenant: Export this tenant's answers alone (`None`: those of no tenant).
        vectors: Whether vectors are written; without them an import has to embed the prompts anew.
        resume: Continue the unfinished file of an earlier export with the same arguments.
        overwrite: Replace a file that is there, and begin anew where an unfinished one is.
        on_progress: Told how many answers have been written.

    Raises:
        InvalidRequest: there is such a file, or none to resume. Nothing was written.
        FileUnwritable: the disk is full, say; the unfinished file can be resumed.
        StoreError: Redis failed; the same.
    """
    path = Path(path)
    resume = _check_export(path, resume=resume, overwrite=overwrite)
    await cache.open()
    run = _Export(cache, path, vectors=vectors, tenant=tenant, on_progress=on_progress)
    return await run.run(resume=resume)


def _check_export(path: Path, *, resume: bool, overwrite: bool) -> bool:
    """Return whether there is something to go on from; make way for a new file if not.

    Raises:
        InvalidRequest: what is there must not go.
    """
    check_target(path)
    part = part_of(path)
    if path.is_dir():
        raise InvalidRequest(f"{path} is a directory: name a file in it")
    if path.exists() and not overwrite:
        raise InvalidRequest(f"{path} is there: choose another name, or overwrite=True (--force)")
    if resume and not part.exists():
        raise InvalidRequest(f"there is no {part} to resume")
    # One that was stopped before its first line has nothing to lose and nothing to go on from.
    is_begun = part.exists() and part.stat().st_size > 0
    if is_begun and not resume and not overwrite:
        raise InvalidRequest(
            f"{part} is there, an unfinished export: resume=True (--resume) continues it,"
            " overwrite=True (--force) begins anew"
        )
    if not (is_begun and resume):
        part.unlink(missing_ok=True)
    return is_begun and resume


class _Export:
    """One run of an export."""

    def __init__(
        self,
        cache: LLMCache,
        path: Path,
        *,
        vectors: bool,
        tenant: str | Unset | None,
        on_progress: Progress,
    ) -> None:
        self._cache = cache
        self._path = path
        self._vectors = vectors
        self._tenant = tenant_of(tenant, cache.config)
        self._spaces: list[str] = []
        self._on_progress = on_progress
        self._bulk = _bulk(cache)
        self._epochs = cache._epochs
        self._unreadable = 0

    async def run(self, *, resume: bool) -> Exported:
        server = await _server_id(self._cache)
        self._spaces = await self._cache._answers.spaces()
        purges = await self._epochs.current(None)
        file, cursor, epoch = await self._begin(purges, server, resume=resume)
        try:
            is_first = True
            while is_first or cursor != 0:
                is_first = False
                cursor, digests = await self._step(cursor)
                for start in range(0, len(digests), _READ_TOGETHER):
                    await self._take(digests[start : start + _READ_TOGETHER], file)
                if file.pending_bytes >= _FLUSH_BYTES and cursor != 0:
                    file.add({"kind": "mark", "cursor": cursor, "server": server})
                    await asyncio.to_thread(file.flush)
            now = await self._epochs.current(None)
            if now.epoch != epoch:
                await asyncio.to_thread(
                    file.filter, lambda answer: now.allow(answer.entry, answer.digest)
                )
            await asyncio.to_thread(file.finish, {"ended_s": self._cache._clock()})
        finally:
            file.close()
        tally = file.tally
        return Exported(
            self._path,
            tally.answers,
            tally.aliases,
            tally.semantic,
            unreadable=self._unreadable,
            resumed=resume,
        )

    async def _begin(
        self, purges: Purges, server: str, *, resume: bool
    ) -> tuple[PartialFile, int, str]:
        """Return the file, the cursor to walk on from, and the epoch that the file began in."""
        about = {
            "schema": SCHEMA.decode(),
            "namespace": self._cache.config.namespace,
            "born": purges.born,
            "vectors": self._vectors,
            # As it stands in Redis: with a secret, an HMAC.
            **({} if isinstance(self._tenant, Anyone) else {"tenant": self._tenant}),
        }
        if not resume:
            header = {
                **about,
                "epoch": purges.epoch,
                "embedder": await _embedder(self._cache),
                "started_s": self._cache._clock(),
            }
            file = await asyncio.to_thread(PartialFile.begin, self._path, header)
            return file, 0, purges.epoch
        file, first, mark = await asyncio.to_thread(PartialFile.resume, self._path)
        differing = [
            name
            for name in (*about, "tenant")
            if first.content.get(name, UNSET) != about.get(name, UNSET)
        ]
        if differing:
            file.close()
            raise InvalidRequest(
                f"{file.part} was begun otherwise ({', '.join(differing)}): resume it with the"
                " same arguments on the same Redis, or overwrite=True (--force) to begin anew"
            )
        # A server that was restarted walks its keys in another order: from the beginning, then.
        # What is in the file twice is imported once.
        is_same = mark is not None and mark.content.get("server") == server
        cursor = int(mark.content["cursor"]) if mark is not None and is_same else 0
        return file, cursor, str(first.content.get("epoch"))

    async def _step(self, cursor: int) -> tuple[int, list[str]]:
        """Walk some keys on; return the new cursor, 0 at the end, and digests of answers."""
        connection = self._cache._connection
        # The name of a namespace has no sign that a pattern would take for one of its own.
        pattern = self._cache._keys.answer("*")
        cursor, names = await connection.scan(cursor, "MATCH", pattern, "COUNT", _STEP_KEYS)
        digests = [answer_digest(name.decode("latin-1")) for name in dict.fromkeys(names)]
        ours = [digest for digest in digests if is_digest(digest)]
        self._unreadable += len(digests) - len(ours)
        return cursor, ours

    async def _take(self, digests: Sequence[str], file: PartialFile) -> None:
        """Add what is stored under *digests* and alive to the *file*."""
        read = await self._bulk.read(digests, spaces=self._spaces)
        purges = await self._epochs.current(read.epoch)
        for stored in read.found:
            if stored.entry is None:
                self._unreadable += 1
            elif purges.allow(stored.entry, stored.digest) and self._is_wanted(stored.entry):
                answer = Answer(stored.digest, stored.entry, stored.expires_ms, stored.semantic)
                file.add(to_json(answer, vectors=self._vectors))
                file.tally.add(answer)
        self._on_progress(file.tally.answers + file.tally.aliases)

    def _is_wanted(self, entry: Entry) -> bool:
        return isinstance(self._tenant, Anyone) or entry.tenant == self._tenant


async def _server_id(cache: LLMCache) -> str:
    """Return what names the processes of the servers; the order of keys is that of their lives."""
    connection = cache._connection
    servers = await connection.each("INFO", "server")
    return " ".join(str(info.get("run_id", "")) for info in servers)


async def _embedder(cache: LLMCache) -> dict[str, Any] | None:
    """Return which vector space *cache* searches; `None` without the semantic layer."""
    if not cache.config.semantic:
        return None
    layer = cache._semantic
    index = layer.vectors.index
    return {
        "space": index.removeprefix(cache._keys.index("")),
        "model_id": layer._embedder.model_id,
        "dimensions": layer.vectors.dimensions,
    }


# ------------------------------------------------------------------ import


def inspect_export(path: Path | str, *, on_progress: Progress = lambda _: None) -> ExportInfo:
    """Read the file at *path* to its end, check every line, and return what it holds. Blocking.

    Raises:
        InvalidFile: with the number of the first line that is damaged, foreign or missing.
    """
    path = Path(path)
    name, tally, without = str(path), Tally(), 0
    spaces: dict[str, int] = {}
    sizes: dict[str, int] = {}
    header = last = None
    with reading(path) as source:
        for line in read_lines(source, name=name):
            if last is not None and last.kind == "end":
                raise InvalidFile(f"{name}, line {line.number}: there is more after the end")
            if header is None:
                check_header(line, name=name)
                header = line
            elif line.kind == "answer":
                answer = to_answer(line, name=name)
                tally.add(answer)
                without += _count_vectors(answer, spaces, sizes, line, name)
                on_progress(tally.answers + tally.aliases)
            elif line.kind not in {"mark", "end"}:
                raise InvalidFile(f"{name}, line {line.number}: of a kind that is not known here")
            last = line
    _check_end(header, last, tally, name)
    assert header is not None  # noqa: S101 - `_check_end` saw to it
    assert last is not None  # noqa: S101
    embedder = header.content.get("embedder") or {}
    return ExportInfo(
        path=path,
        namespace=str(header.content.get("namespace")),
        born=str(header.content.get("born")),
        tenant=header.content.get("tenant"),
        spaces=spaces,
        dimensions={space: size // _VALUE_BYTES for space, size in sizes.items()},
        without_vectors=without,
        embedders={embedder["space"]: embedder["model_id"]} if embedder else {},
        file_id=last.check,
        **asdict(tally),
    )


def _count_vectors(
    answer: Answer, spaces: dict[str, int], sizes: dict[str, int], line: Line, name: str
) -> int:
    """Count the vectors of *answer* by their spaces; return how many there should have been."""
    missing = 0
    for entry in answer.semantic:
        if entry.vector is None:
            missing += 1
        elif sizes.setdefault(entry.space, len(entry.vector)) != len(entry.vector):
            raise InvalidFile(f"{name}, line {line.number}: a vector of another length")
        else:
            spaces[entry.space] = spaces.get(entry.space, 0) + 1
    return missing


def _check_end(header: Line | None, last: Line | None, tally: Tally, name: str) -> None:
    if header is None or last is None:
        raise InvalidFile(f"{name}: the file is empty")
    if last.kind != "end":
        unfinished = " It is an unfinished export: resume it." if name.endswith(PART) else ""
        raise InvalidFile(
            f"{name}, line {last.number}: the file was cut off after this line.{unfinished}"
        )
    counts = asdict(tally)
    if any(last.content.get(kind) != count for kind, count in counts.items()):
        raise InvalidFile(f"{name}, line {last.number}: the counts do not match the lines")


async def import_entries(
    cache: LLMCache,
    path: Path | str,
    *,
    info: ExportInfo | None = None,
    vectors: Vectors = "file",
    replace_newer: bool = False,
    revive: bool = False,
    on_progress: Progress = lambda _: None,
) -> Imported:
    """Store the answers of an export, each with the expiry it had.

    The whole file is checked before the first answer is written. Answers that are there already,
    or newer ones, stay; so an import can be repeated. One that was interrupted goes on where it
    was, up to a week later. Two round trips for every 200 answers.

    Where the file comes from this very Redis, what was invalidated since stays invalidated.
    Elsewhere answers count as stored now: an invalidation that comes later, or while the import is
    under way, reaches all of them.

    Args:
        cache: Where to; it is opened. Its namespace may be another than that of the export.
        path: The file.
        info: What `inspect_export` has returned for it, to not check it twice.
        vectors: `file` takes the vectors of the file; `embed` makes those that are missing or of
            another embedder than the cache's; `none` leaves all semantic entries out.
        replace_newer: Replace what is there, even if newer.
        revive: Bring back what was invalidated in this Redis since the export.
        on_progress: Told how many answers have been dealt with.

    Raises:
        InvalidFile: it is damaged, cut off or no export. Nothing was written.
        ConfigurationError: its vectors are not the cache's embedder's. Nothing was written.
        EmbedderError: an embedding failed; what was written by then stays.
        StoreError: Redis failed; the same.
    """
    path = Path(path)
    if info is None:
        info = await asyncio.to_thread(inspect_export, path)
    await cache.open()
    _check_vectors(cache, info, vectors)
    if vectors == "file" and not cache.config.semantic:
        await _ensure_indexes(cache, info.dimensions)
    run = _Import(cache, info, vectors, on_progress, replaces_newer=replace_newer, revives=revive)
    return await run.run()


def _check_vectors(cache: LLMCache, info: ExportInfo, vectors: Vectors) -> None:
    """Refuse vectors that no look-up of *cache* would ever find.

    Raises:
        ConfigurationError: saying what to do.
    """
    if vectors == "embed" and not cache.config.semantic:
        raise ConfigurationError("vectors='embed' needs the semantic layer: semantic=True")
    if vectors != "file":
        return
    foreign = sum(n for space, n in info.spaces.items() if not _is_searched(cache, space))
    if info.without_vectors or foreign:
        count = info.without_vectors + foreign
        raise ConfigurationError(
            f"{count:,} semantic entries of {info.path} have no vector of this cache's embedder:"
            " vectors='embed' (--vectors embed) makes them anew, vectors='none' leaves them out"
        )


async def _ensure_indexes(cache: LLMCache, dimensions: Mapping[str, int]) -> None:
    """Make the indexes of what a cache without the semantic layer imports for others.

    What is written before its index is there is read by it in the background, and not found until
    then.
    """
    for space, length in dimensions.items():
        vectors = vectors_of(cache._connection, cache._keys, space=space, dimensions=length)
        try:
            await vectors.ensure_index()
        except SearchModuleMissing:
            return
        finally:
            await vectors.aclose()


def _is_searched(cache: LLMCache, space: str) -> bool:
    """Tell whether *cache* searches *space*; one without the semantic layer may be for any."""
    if not cache.config.semantic:
        return True
    index = cache._semantic.vectors.index
    return bool(index == cache._keys.index(space))


class _Import:
    """One run of an import."""

    def __init__(
        self,
        cache: LLMCache,
        info: ExportInfo,
        vectors: Vectors,
        on_progress: Progress,
        *,
        replaces_newer: bool,
        revives: bool,
    ) -> None:
        self._cache = cache
        self._info = info
        self._vectors = vectors
        self._on_progress = on_progress
        self._replaces_newer = replaces_newer
        self._revives = revives
        self._bulk = _bulk(cache)
        self._done = Imported()
        self._is_resumed = False
        self._stamp: str | None = None
        """What is imported is stamped with; `None` where it keeps the stamp it has."""

    async def run(self) -> Imported:
        purges = await self._cache._epochs.current(None)
        is_home = purges.born == self._info.born and not self._revives
        self._stamp = None if is_home else purges.epoch
        await self._resume(purges)
        async with aclosing(_batches(self._info.path, skip=self._count())) as batches:
            async for batch in batches:
                await self._take(batch)
                self._on_progress(self._count())
        await self._cache._connection.execute("UNLINK", self._checkpoint)
        return self._done

    @property
    def _checkpoint(self) -> str:
        options = f"{self._vectors} {self._replaces_newer} {self._revives}"
        suffix = hashlib.sha256(options.encode()).hexdigest()[:8]
        return self._cache._keys.imported(f"{self._info.file_id}.{suffix}")

    def _count(self) -> int:
        done = self._done
        return done.written + done.present + done.expired + done.invalidated

    async def _resume(self, purges: Purges) -> None:
        """Take up what an interrupted import of the same file has left."""
        connection = self._cache._connection
        left = await connection.execute("GET", self._checkpoint)
        if left is None or not self._goes_on(json.loads(left), purges):
            note = self._note(self._done)
            await connection.execute("SET", self._checkpoint, note, "PX", _CHECKPOINT_TTL_MS)

    def _goes_on(self, noted: dict[str, Any], purges: Purges) -> bool:
        stamp = noted.pop("stamp")
        # What was stamped before the purge table was born is dead, and has to be imported again.
        if (stamp is None) != (self._stamp is None) or (stamp or purges.epoch) < purges.born:
            return False
        self._stamp = stamp
        self._done = Imported(**noted)
        self._done.resumed_after = self._count()
        self._is_resumed = True
        return True

    def _note(self, done: Imported) -> bytes:
        return json.dumps({**asdict(done), "stamp": self._stamp}).encode()

    async def _take(self, batch: Sequence[Answer]) -> None:
        """Write what of *batch* is to be written."""
        read = await self._bulk.read([answer.digest for answer in batch])
        purges = await self._cache._epochs.current(read.epoch)
        there = {stored.digest: stored for stored in read.found}
        chosen = [answer for answer in batch if self._is_due(answer, purges, there)]
        prepared = await asyncio.gather(*map(self._prepared, chosen))
        done = replace(self._done)
        # Counted as if all were written, which is known only after the counts are noted; what a
        # call has stored in between is put right in the next note.
        done.written += len(prepared)
        done.semantic += sum(len(answer.semantic) for answer in prepared)
        note = self._note(done)
        now_s = self._cache._clock()
        left_ms = max((answer.expires_ms for answer in prepared), default=0) - round(1000 * now_s)
        await self._cache._epochs.remember_for(max(0, left_ms))
        if not all(any(part.prompt for part in answer.semantic) for answer in prepared):
            await self._cache._answers.note_unindexed(now_s + left_ms / 1000, left_ms / 1000)
        written = await self._bulk.write(
            [(answer, there.get(answer.digest)) for answer in prepared],
            note=(self._checkpoint, note, _CHECKPOINT_TTL_MS),
        )
        for answer, is_written in zip(prepared, written, strict=True):
            if not is_written:
                done.written -= 1
                done.present += 1
                done.semantic -= len(answer.semantic)
        self._done = done

    def _is_due(self, answer: Answer, purges: Purges, there: dict[str, Stored]) -> bool:
        """Tell whether *answer* is to be written; count it if not."""
        if answer.expires_ms <= 1000 * self._cache._clock():
            self._done.expired += 1
            return False
        if self._stamp is None and not purges.allow(answer.entry, answer.digest):
            self._done.invalidated += 1
            return False
        stored = there.get(answer.digest)
        if stored is None or self._gives_way(stored, answer, purges):
            return True
        if self._is_own(stored, answer):
            self._done.written += 1
            self._done.semantic += 0 if self._vectors == "none" else len(answer.semantic)
        else:
            self._done.present += 1
        return False

    def _is_own(self, stored: Stored, answer: Answer) -> bool:
        """Tell whether *stored* was written by the run that this one goes on from.

        It may have ended between an answer and the note of it.
        """
        return (
            self._is_resumed
            and self._stamp is not None
            and stored.entry == replace(answer.entry, stamp=self._stamp)
        )

    def _gives_way(self, stored: Stored, answer: Answer, purges: Purges) -> bool:
        """Tell whether what is *stored* is to be replaced by *answer*."""
        if stored.entry is None:
            # Bytes of another version are an answer to those who can read them.
            return stored.problem is not None or self._replaces_newer
        if not purges.allow(stored.entry, stored.digest) or self._replaces_newer:
            return True
        return _is_better(answer.entry, stored.entry)

    async def _prepared(self, answer: Answer) -> Answer:
        """Return *answer* with its stamp, and its semantic entries as they are to be written."""
        entry = answer.entry
        if self._stamp is not None:
            entry = replace(entry, stamp=self._stamp)
        semantic: tuple[SemanticEntry, ...] = ()
        if self._vectors != "none":
            found = [await self._placed(part) for part in answer.semantic]
            self._done.unplaced += found.count(None)
            # Of two embedders' entries of one prompt, both have become this one's.
            semantic = tuple({part.space: part for part in found if part is not None}.values())
        return replace(answer, entry=entry, semantic=tuple(map(self._kept, semantic)))

    def _kept(self, part: SemanticEntry) -> SemanticEntry:
        """Return *part* with as much of its prompt as this cache keeps of one."""
        if self._cache.config.store_prompts or not part.prompt:
            return part
        kept = self._cache._semantic.kept(part.prompt)
        return replace(part, fields={**part.fields, "prompt": kept.field(None)})

    async def _placed(self, part: SemanticEntry) -> SemanticEntry | None:
        """Return *part* in the space of the cache; `None` where it has no place there."""
        cache = self._cache
        if part.vector is not None and _is_searched(cache, part.space):
            return part
        if not part.prompt:
            return None
        place = await cache._semantic.locate(part.prompt, part.scope)
        if place is None:
            return None
        # In the file, the scope of an entry is narrowed already to what its own embedder sees.
        scope = part.scope if _is_searched(cache, part.space) else place.scope
        index = cache._semantic.vectors.index
        space = index.removeprefix(cache._keys.index(""))
        fields = {
            **part.fields,
            "vector": salted_blob(place.vector, scope),
            "scope": scope.encode(),
        }
        self._done.embedded += 1
        return SemanticEntry(space, fields)


def _is_better(new: Entry, old: Entry) -> bool:
    """Tell whether *new* replaces the living *old* answer to the same request."""
    if (new.origin is None) != (old.origin is None):
        # An answer to this very request is better than the copy of one to a similar request.
        return new.origin is None
    return new.created_s > old.created_s


async def _batches(path: Path, *, skip: int) -> AsyncGenerator[list[Answer], None]:
    """Yield the answers of the file at *path* but the first ones, some hundred at a time.

    They are read and checked in a thread, the next ones while the last are being written.
    """
    with reading(path) as source:
        answers = _answers(source, str(path), skip)
        read: Callable[[], list[Answer]] = partial(_some, answers)
        reading_on: Awaitable[list[Answer]] = asyncio.ensure_future(asyncio.to_thread(read))
        try:
            while batch := await reading_on:
                reading_on = asyncio.ensure_future(asyncio.to_thread(read))
                yield batch
        finally:
            # A thread cannot be stopped; the file is closed when it is done.
            await asyncio.gather(reading_on, return_exceptions=True)


def _some(answers: Iterator[Answer]) -> list[Answer]:
    return list(islice(answers, _WRITE_TOGETHER))


def _answers(source: Any, name: str, skip: int) -> Iterator[Answer]:
    lines = (line for line in read_lines(source, name=name) if line.kind == "answer")
    for line in islice(lines, skip, None):
        yield to_answer(line, name=name)


def _bulk(cache: LLMCache) -> BulkEntries:
    return BulkEntries(
        cache._connection,
        cache._keys,
        compress=cache.config.compression,
        cipher=cache._cipher,
    )
