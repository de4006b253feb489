"""Runs a training: check, build, then train, evaluate and save until the end.

One task is a list of length one.
"""

import importlib
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from dataset.batch import Batch
from infer.results import Report
from train.build import Run, build_run
from train.checkpoint import Saver, load_checkpoint, remove_leftovers
from train.console import Progress, end_text, start_text
from train.distributed import synchronised, whole
from train.guards import (
    NonFiniteWatch,
    Statistics,
    Stopped,
    StopSignal,
    check_stop,
    report_skipped,
)
from train.init_weights import start_settings
from train.loss import (
    LOSS_KINDS,
    amp_dtype,
    autocast,
    supervised_losses,
    token_weights,
    weighted_mean,
)
from train.optim import guarded_step
from train.run_folder import (
    NoRecords,
    RunRecords,
    TextLog,
    find_run_dir,
    new_run_dir,
    settings_of_run,
    text_log,
    write_caption_vocab,
    write_environment,
    write_settings,
)
from train.settings import check_settings, settle_encoder, settle_init_weights
from train.state import StepRecord, TrainState, finite_mean
from train.validate import evaluate
from utils.cli import log, settings_dict
from utils.devices import (
    CoreWatch,
    World,
    memory_errors,
    session,
    set_matmul_precision,
    warn_if_busy,
)
from utils.files import check_place


def start(tasks: list[str], load: Callable) -> Path:
    """Starts a run of the command line; the model of `init_weights` comes before CFG and preset.

    Args:
        load: called as load(inherited=settings of the weight file, or None) -> settings.

    Returns:
        the run folder, see `_run`.
    """
    with session() as world, text_log() as lines:
        return _run(start_settings(load, tasks), tasks, world, lines)


def resume(name: str, tasks: list[str], load: Callable) -> Path:
    """Continues a run folder with its settings; those of the command line override them.

    "auto" takes the newest run of these tasks on this dataset; without one it starts one, so that a
    command that is repeated need not change.

    Args:
        name: the run folder, or "auto".
        load: called as load(inherited=settings of the run, or None) -> settings.
    """
    with session() as world, text_log() as lines:
        cfg = load(inherited=None)
        places = {"dataset": cfg.dataset, "data": cfg.data or cfg.train_json}
        run_dir = world.broadcast(find_run_dir(cfg.runs_dir, tasks, name, **places))
        if run_dir is None:
            log(f"no run to resume in {cfg.runs_dir / '+'.join(tasks)}: a new one starts")
            return _run(start_settings(load, tasks), tasks, world, lines)
        return _run(load(inherited=settings_of_run(run_dir)), tasks, world, lines, run_dir)


def train(cfg, tasks: list[str]) -> Path:
    """Starts a run with settings that are complete; tests call it."""
    with session() as world, text_log() as lines:
        return _run(cfg, tasks, world, lines)


def _run(cfg, tasks: list[str], world: World, lines: TextLog, run_dir: Path | None = None) -> Path:
    """From the settings to the trained weights, of one task or many, on all processes of torchrun.

    An epoch is one pass over the data of the task that has most batches; the others go round.

    Args:
        run_dir: the folder of a run to continue.

    Returns:
        the run folder. It holds settings.json, environment.jsonl, last.ckpt and the ones before it
        (complete state), last.safetensors and best.safetensors (weights alone), metrics.jsonl and
        the TensorBoard files.
    """
    watch, resumed = CoreWatch(), run_dir is not None
    cfg = settle_encoder(cfg, resumed=resumed)
    cfg = settle_init_weights(cfg, resumed=resumed)
    device = check_settings(cfg, tasks, world, resumed=resumed)
    if world.is_main:
        check_place(run_dir or cfg.runs_dir)
    set_matmul_precision(cfg.matmul_precision)
    with memory_errors(device):
        run = build_run(cfg, tasks, world, device, resumed=resumed)
        warn_if_busy(watch, device)
        saver = _open_folder(run, lines, run_dir)
        if world.is_main:
            log(start_text(run, saver.run_dir))
        _loop(run, saver)
        if world.is_main:
            log(end_text(run, saver.run_dir))
    return saver.run_dir


def _open_folder(run: Run, lines: TextLog, run_dir: Path | None) -> Saver:
    """A new run folder, or an existing one, whose newest checkpoint is loaded into `run`."""
    cfg, world, state = run.cfg, run.world, run.state
    resumed = run_dir is not None
    if not resumed:  # only now: settings or data that are wrong leave no folder behind
        run_dir = world.broadcast(new_run_dir(cfg.runs_dir, run.tasks) if world.is_main else None)
    if world.is_main:
        lines.open(run_dir)
    saver = Saver(
        run_dir, keep=cfg.keep_checkpoints, steps=cfg.save_steps, minutes=cfg.save_minutes
    )
    if resumed:
        if world.is_main:
            remove_leftovers(run_dir)
        path = load_checkpoint(run_dir, state)
        log(f"continuing {path} from step {state.step}")
        saver.resumed(state)
        if state.step >= run.steps.total:
            log(f"all {run.steps.total} steps are done; to go on, raise max_steps or epochs")
    if world.is_main:
        write_settings(run_dir, settings_dict(cfg) | {"tasks": run.tasks})
        write_caption_vocab(run_dir, state.model.meta)
        write_environment(run_dir, seed=cfg.seed, device=state.model.device, step=state.step)
    return saver


@dataclass
class Sitting:
    """A run until it ends or stops, from step 0 or where it was resumed, and what watches it."""

    run: Run
    saver: Saver
    records: RunRecords | NoRecords  # of processes that are not the first, nothing
    watch: NonFiniteWatch
    stop: StopSignal
    progress: Progress


def _loop(run: Run, saver: Saver) -> None:
    """Trains an epoch, evaluates, saves; until the end, a signal, or nothing gets better."""
    cfg, state, run_dir = run.cfg, run.state, saver.run_dir
    records = NoRecords()
    if run.world.is_main:
        records = RunRecords(
            run_dir,
            step=state.step,
            evaluated=state.evaluated,
            logger=cfg.logger,
            settings=settings_dict(cfg),
        )
    scaled = state.scaler.is_enabled()
    watch = NonFiniteWatch(
        run_dir / "nonfinite", cfg.max_nonfinite, rank=run.world.rank, scaled=scaled
    )
    stop = StopSignal(cfg.max_minutes)
    progress = Progress(run)
    sitting = Sitting(run, saver, records, watch, stop, progress)
    try:
        # A resumed run may have been stopped after an epoch, before its evaluation.
        if run.evaluation_due:
            progress.evaluation(_evaluate_and_save(sitting))

        while not run.ended:
            try:
                loss, seconds = train_epoch(sitting)
            except Stopped as reason:
                if stop.signal:
                    raise
                _end_in_time(sitting, str(reason))
                return
            report_skipped(state.streams, -(-state.step // run.steps.epoch), run.world)
            reports = _evaluate_and_save(sitting)
            progress.epoch(loss, seconds, reports)

        if run.gets_no_better and state.step < run.steps.total:
            progress.say(f"no better evaluation in the last {state.stale}: ending")
    except Stopped as reason:
        saver.save(state)
        progress.say(f"{reason}: saved step {state.step}; continue with --resume {run_dir}")
        raise SystemExit(128 + stop.signal) from None
    finally:
        stop.restore()
        progress.close()
        records.close()


def _end_in_time(sitting: Sitting, reason: str) -> None:
    """Saves and evaluates a run whose time is up.

    Of an evaluation that is not due the checkpoint knows only which weights are the best: a worse
    evaluation must not replace them. Otherwise the run that goes on is that which never stopped.
    """
    run, saver, progress = sitting.run, sitting.saver, sitting.progress
    state, run_dir = run.state, saver.run_dir
    saver.save(state)
    progress.say(f"{reason}: saved step {state.step}; continue with --resume {run_dir}")
    if run.evaluation_due:
        progress.evaluation(_evaluate_and_save(sitting))
        saver.save(state)
    elif state.evaluated < state.step:
        evaluated, stale = state.evaluated, state.stale
        progress.evaluation(evaluate(run, sitting.records, run_dir, sitting.stop))
        state.evaluated, state.stale = evaluated, min(stale, state.stale)
        saver.save(state)


def train_epoch(sitting: Sitting) -> tuple[float, float]:
    """Trains until the end of the epoch or run; logs a point of the curves every few steps.

    At least one step has to be left (`Run.ended` is false).

    Returns:
        mean of the loss, and seconds.
    """
    run, stop, progress = sitting.run, sitting.stop, sitting.progress
    cfg, state = run.cfg, run.state
    dtype = amp_dtype(cfg.amp, state.model.device)
    end = min((state.step // run.steps.epoch + 1) * run.steps.epoch, run.steps.total)
    began = since = time.perf_counter()
    epoch_losses = []  # (tasks,) of each step
    state.model.train()
    while state.step < end:
        # One optimiser step, on as many batches of each task as are accumulated.
        micro = _next_batches(state, stop)
        if not state.step and state.world.is_main:
            _show_batches(run, sitting.records, micro[0])
        state.before_step()
        losses, grad_norm, kinds = train_step(state, micro, dtype, cfg.clip_grad)
        state.after_step()
        now = StepRecord(torch.stack([*losses.values()]), grad_norm, torch.stack([*kinds.values()]))
        now.images = sum(stream.images_per_step for stream in state.streams.values())
        state.window.steps.append(now)
        epoch_losses.append(now.losses)
        outcome = torch.cat([now.losses, grad_norm[None]])  # (tasks + 1,)
        for line in sitting.watch.add(state.step, outcome, micro):
            progress.warn(line)
        progress.step()

        # A point of the curves; beside the end of the epoch all that waits for the device.
        since = _add_time(state, since)
        if state.step % cfg.log_every == 0 or state.step == run.steps.total:
            _record_point(run, sitting.records, progress)

        # Between two steps the run may stop or be saved; after the last one it is evaluated first.
        check_stop(stop, state.world)
        if state.step < end and state.world.broadcast(sitting.saver.due(state.step)):
            sitting.saver.save(state)
    of_tasks = finite_mean(state.world.sum(torch.stack(epoch_losses))).tolist()
    pairs = zip(run.tasks, of_tasks, strict=True)
    loss = sum(state.task_weights.get(task, 1.0) * value for task, value in pairs)
    _add_time(state, since)  # to the last step
    return loss, time.perf_counter() - began


def _show_batches(run: Run, records: RunRecords | NoRecords, batches: dict[str, Batch]) -> None:
    """Pictures of the first batch of each task, as the model sees them."""
    draw = importlib.import_module("train.pictures").draw_batch
    for task, batch in batches.items():
        picture = draw(batch, run.state.model, run.tokenizers[task], run.categories)
        records.image(0, f"train/{task}", picture)


def _next_batches(state: TrainState, stop: StopSignal) -> list[dict[str, Batch]]:
    """The batches of one optimiser step.

    A signal ends the wait for them, and the streams stay where they were. Of several processes the
    others may be in the middle of this step: there the signal is heard after it.
    """
    places = {task: stream.state_dict() for task, stream in state.streams.items()}
    try:
        with stop.interrupts() if state.world.size == 1 else nullcontext():
            return [
                {task: stream.next() for task, stream in state.streams.items()}
                for _ in range(state.accumulate_steps)
            ]
    except Stopped:
        for task, stream in state.streams.items():
            stream.load_state_dict(places[task])
        raise


def _add_time(state: TrainState, since: float) -> float:
    """Counts the time since then as that of the last step, which there must be; returns now."""
    now = time.perf_counter()
    state.window.steps[-1].seconds += now - since
    state.seconds += now - since
    return now


def _record_point(run: Run, records: RunRecords | NoRecords, progress: Progress) -> None:
    """Writes and shows the means of the last `log_every` steps."""
    state = run.state
    values = state.window.means(run.tasks, state.world, state.task_weights)
    values["train/lr"] = state.scheduler.get_last_lr()[0]
    values["train/images_per_s"] = state.window.images_per_second
    records.scalars(state.step, values)
    progress.point(values)


def train_step(
    state: TrainState, micro: list[dict[str, Batch]], dtype: torch.dtype | None, clip_grad: float
) -> tuple[dict[str, Tensor], Tensor, dict[str, Tensor]]:
    """One optimiser step on the weighted sum of the tasks' losses.

    Each loss is the mean over the token weights of the whole step: how its images are shared out
    among processes and `micro` batches does not matter.

    Args:
        micro: batches of each task, on the host, that are accumulated one after the other.

    Returns:
        this process's share of the loss of each task, not weighted, the norm of the gradient, and
        of each task (kinds, 2), see `TokenKinds.sums`; all still on the device. The optimiser makes
        no step where the norm is no finite number.
    """
    device, world = state.model.device, state.world
    state.optimizer.zero_grad(set_to_none=True)
    statistics = Statistics(state.model)
    totals = dict(zip(micro[0], world.sums(token_weights(micro)), strict=True))
    task_losses = {task: torch.zeros((), dtype=torch.float32, device=device) for task in totals}
    kinds = {task: torch.zeros(len(LOSS_KINDS), 2, device=device) for task in totals}

    # Gradients add up over the batches of all tasks.
    parts = [part for batches in micro for part in batches.items()]
    for number, (task, batch) in enumerate(parts, 1):
        batch = batch.to(device, non_blocking=True)
        with synchronised(state.forward, last=number == len(parts)):
            with autocast(device, dtype):
                losses, weights, targets = supervised_losses(
                    state.forward, batch, state.loss_type
                )  # (M,) each
                loss = weighted_mean(losses, weights, totals[task])  # this batch's share
            # times the processes: their gradients are averaged, not added
            factor = state.task_weights.get(task, 1.0) * world.size
            state.scaler.scale(factor * loss).backward()
        task_losses[task] += loss.detach()
        kinds[task] += state.token_kinds[task].sums(losses, weights, targets)

    # Clip, then step, or skip the step if the gradient is not finite.
    state.scaler.unscale_(state.optimizer)
    parameters = [p for p in state.model.parameters() if p.grad is not None]
    limit = clip_grad if clip_grad > 0 else torch.inf  # the official config writes -1 for "off"
    grad_norm = whole(nn.utils.clip_grad_norm_(parameters, limit))
    guarded_step(state.optimizer, state.scaler, grad_norm, sharded=state.sharded)
    statistics.keep_if(grad_norm.isfinite())
    state.scheduler.step()
    state.step += 1
    return task_losses, grad_norm, kinds


def _evaluate_and_save(sitting: Sitting) -> dict[str, Report]:
    """Between two epochs: the evaluation, if one is due, and the checkpoint, if one is due.

    Returns:
        task -> its report; empty without an evaluation.
    """
    run, saver, reports = sitting.run, sitting.saver, {}
    state = run.state
    if run.evaluation_due:
        saver.save(state)  # an evaluation may take longer than what it follows
        reports = evaluate(run, sitting.records, saver.run_dir, sitting.stop)
    # All processes have to agree; where the run has ended, they do without asking.
    if run.ended or run.world.broadcast(saver.due(state.step, epoch_end=run.at_epoch_end)):
        saver.save(state)
    return reports
