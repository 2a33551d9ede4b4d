"""Run ``generate-instructions``: ask for every sample, check the replies, write LLaVA's JSON and the table.

finished = run_generate(GenerateConfig(captions=Path("photos.jsonl"), model="some-model"))
finished.results, finished.folder / "instructions.json"
"""

import hashlib
import json
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import NamedTuple

import pandas as pd

from records.manifest import commit
from records.processes import Processes
from records.progress import OnProgress, ProgressBars
from records.run import FinishedRun, Run, read_timings, writing
from records.shared_jobs import one_at_a_time
from records.tables import read_results
from tasks.chat_server import ChatClient, ChatRequest, Price, Reply, read_price
from tasks.chat_server.connection import ChatServerError
from tasks.errors import UserError, user_errors
from tasks.files import real_path
from tasks.instructions import Job, Pair, assign_kinds, llava_sample, load_prompts, read_described, refusal, vocabulary
from tasks.instructions.duplicates import near_duplicates
from tasks.instructions.kinds import KINDS, parse_shares
from tasks.instructions.prompts import ReplyFormat
from tasks.instructions.reply import NOT_JSON, UnusableReplyError, parse_reply_json, parse_text
from tasks.instructions.validate import Limits
from tasks.readers.media import describe_unread
from tuning.instructions.config import DATA, LOG, REFUSED, RUN, GenerateConfig
from tuning.instructions.dry_run import GenerateEstimate, estimate
from tuning.instructions.table import render_summary, tabulate

_STAGE = "ask"
_NO_SCHEMAS = "most replies that are refused are not JSON: the server may ignore schemas. Use --reply-format text."


class Work(NamedTuple):
    """All that a run asks."""

    jobs: list[Job]
    requests: list[ChatRequest]
    names: frozenset[str]
    skipped: tuple[str, ...]
    unread: tuple[tuple[str, int], ...]
    """The keys of rows that are not read, each with its number of rows."""


class Made(NamedTuple):
    """What a reply came to: turns, or the reason of its refusal."""

    job: Job
    reply: Reply
    pairs: tuple[Pair, ...]
    reason: str


def run_generate(
    config: GenerateConfig,
    *,
    command: Sequence[str] = (),
    on_progress: OnProgress | None = None,
    on_note: Callable[[str], None] = lambda line: None,
) -> FinishedRun | GenerateEstimate:
    """Make the samples, or resume a run that was killed.

    Args:
        config: The settings.
        command: The command line, for the manifest.
        on_progress: Called with (stage, newly done, total); None shows bars in a terminal or notebook.
        on_note: Called with the keys that are not read, and with the estimate.

    Returns:
        The finished run; the estimate if ``config.dry_run`` is set.

    Raises:
        UserError: If the settings or files cannot be used, the server cannot be used, requests fail, or the limit of
            costs is reached. Replies are kept; the same command resumes.

    Example:
        >>> _ = Path("rows.jsonl").write_text('{"image": "1.jpg", "captions": ["A dog runs."]}')
        >>> run_generate(GenerateConfig(captions=Path("rows.jsonl"), model="m", dry_run=True)).n_requests
        1
    """
    on_progress = on_progress or ProgressBars()
    run = Run(config.folder, RUN, config.settings, command=command, overwrite=config.overwrite)
    work = plan_work(config)
    price = read_price(config.server.prices, config.model) if config.server.prices else None
    _client(config, price, None).close()  # checks address, key and limit
    if work.unread:
        on_note(describe_unread(work.unread))
    known = estimate(work.requests, config.tokenizer if config.dry_run else None, price)
    if config.dry_run:
        return known
    on_note(str(known))
    digest = hashlib.sha256("".join(request.key for request in work.requests).encode()).hexdigest()[:16]
    with run.open(Processes(), on_note=on_note, data={"n_requests": len(work.requests), "digest": digest}):
        if not run.is_finished:
            log = config.server.log or config.folder / LOG
            with _locked(config), _client(config, price, log) as client, run.timings.stage("asking"):
                replies = _ask(client, work, on_progress, skip_failed=config.skip_bad)
            with run.timings.stage("checking replies"):
                table = _write(config, work, replies)
            run.finish(table)
    return finished_generate(config.folder)


def finished_generate(folder: Path) -> FinishedRun:
    """The finished run in ``folder``; raise ``UserError`` if there is none."""
    results = read_results(folder, RUN)
    total = results[results["kind"] == "all"].iloc[0]
    notes = (
        f"data: {folder / DATA} ({int(total['samples'])} samples)",
        f"refused: {int(total['refused']) + int(total['duplicates'])}, listed in {folder / REFUSED}",
        *([_NO_SCHEMAS] if total["most_frequent_reason"] == NOT_JSON else []),
    )
    return FinishedRun(folder, results, render_summary(results), notes=notes, timings=read_timings(folder, RUN))


def plan_work(config: GenerateConfig) -> Work:
    """What the settings ask for. Nothing is sent or written.

    Raises:
        UserError: If a file or setting cannot be used.
    """
    if config.captions is None:
        raise UserError("captions must be a file, got none. Give --captions.")
    if not config.model:
        raise UserError("model must be the name of a model at the server, got none. Give --model.")
    shares = parse_shares(config.shares)
    prompts = load_prompts(config.prompts, tuple(kind for kind in KINDS if shares[kind]))
    pictures, skipped, unread = read_described(config.captions, config.boxes, skip_bad=config.skip_bad)
    n_samples = len(pictures) if config.samples is None else config.samples
    jobs = assign_kinds(pictures, n_samples, shares=shares, seed=config.seed)
    requests = [
        ChatRequest(
            config.model,
            prompts[job.kind].messages(job.picture, config.reply_format),
            config.max_tokens,
            config.temperature,
            config.seed,
            prompts[job.kind].schema(config.reply_format),
        )
        for job in jobs
    ]
    return Work(jobs, requests, vocabulary(pictures), skipped, unread)


def _locked(config: GenerateConfig) -> AbstractContextManager[None]:
    """The lock of a shared log; that of the run covers its own."""
    log = config.server.log
    if log is None or real_path(log.parent) == real_path(config.folder):
        return nullcontext()
    with user_errors(OSError):
        log.parent.mkdir(parents=True, exist_ok=True)
    return one_at_a_time(log.parent)


def _client(config: GenerateConfig, price: Price | None, log: Path | None) -> ChatClient:
    options = config.server
    return ChatClient(
        options.url,
        key_env=options.key_env,
        log=log,
        concurrency=options.concurrency,
        timeout=options.timeout,
        attempts=options.attempts,
        price=price,
        max_cost=options.max_cost,
    )


def _ask(client: ChatClient, work: Work, on_progress: OnProgress, *, skip_failed: bool) -> list[Reply]:
    """The reply to every request.

    Raises:
        ChatServerError: If requests failed and ``skip_failed`` is False: they may be answered later.
    """
    replies = []
    for reply in client.ask_all((job.id, request) for job, request in zip(work.jobs, work.requests, strict=True)):
        replies.append(reply)
        on_progress(_STAGE, 1, len(work.jobs))
    failed = [reply for reply in replies if reply.status == "failed"]
    if failed and not skip_failed:
        raise ChatServerError(
            f"requests must be answered, got {len(failed)} of {len(replies)} without a reply ({failed[0].error}) Start "
            "the same command again: replies are kept, and --skip-bad does without these."
        )
    return replies


def _write(config: GenerateConfig, work: Work, replies: Sequence[Reply]) -> pd.DataFrame:
    """Write the data and the refusals; return the table."""
    limits = Limits(config.fewest_turns, config.most_turns)
    made = [
        judged(job, reply, config.reply_format, work.names, limits)
        for job, reply in zip(work.jobs, replies, strict=True)
    ]
    made = without_duplicates(made, config.duplicates)
    samples = [llava_sample(one.job, one.pairs, seed=config.seed) for one in made if not one.reason]
    refused = [(one.job.id, one.job.kind, one.reason, one.reply.text) for one in made if one.reason]
    with writing(config.folder):
        data = "[\n" + ",\n".join(json.dumps(sample, ensure_ascii=False) for sample in samples) + "\n]\n"
        commit(config.folder / DATA, data.encode())
        table = pd.DataFrame(refused, columns=["id", "kind", "reason", "reply"])
        commit(config.folder / REFUSED, table.to_csv(index=False).encode())
        if work.skipped:
            skipped = pd.DataFrame({"reason": work.skipped})
            commit(config.folder / "skipped.csv", skipped.to_csv(index=False).encode())
    rows = [(one.job.kind, one.reply, len(one.pairs), one.reason) for one in made]
    return tabulate(rows, len(work.skipped))


def judged(job: Job, reply: Reply, reply_format: ReplyFormat, names: frozenset[str], limits: Limits) -> Made:
    """The turns of a reply, or the reason why they become no sample."""
    if not reply.is_answered:
        return Made(job, reply, (), f"{reply.status}: {reply.error}")
    if reply.finish == "length":
        if reply_format == "json" and not reply.text.lstrip().startswith("{"):
            return Made(job, reply, (), NOT_JSON)  # more tokens would not help
        return Made(job, reply, (), "cut at the limit of tokens")
    try:
        pairs = (parse_reply_json if reply_format == "json" else parse_text)(reply.text, job.kind)
    except UnusableReplyError as error:
        return Made(job, reply, (), str(error))
    return Made(job, reply, pairs, refusal(pairs, job.kind, job.picture, names=names, limits=limits))


def without_duplicates(made: Sequence[Made], threshold: float) -> list[Made]:
    """The same with a reason at those that are near duplicates of an earlier one of their kind."""
    result = list(made)
    for kind in KINDS:
        places = [i for i, one in enumerate(made) if one.job.kind == kind and not one.reason]
        texts = ["\n".join(text for pair in made[i].pairs for text in pair) for i in places]
        for copy, original in near_duplicates(texts, threshold).items():
            place, first = places[copy], made[places[original]].job.id
            result[place] = made[place]._replace(reason=f"near duplicate of {first}")
    return result
