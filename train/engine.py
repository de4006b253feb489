"""The story of training, told once: one task is a list of length one."""

import math
import sys
import time
from pathlib import Path

import torch
from torch import Tensor, nn
from tqdm import tqdm

from dataset.batch import Batch
from infer.results import Report
from models import save_model
from train.build import (
    amp_dtype,
    build_model_of_run,
    build_source_of,
    build_state,
    build_streams,
    build_tokenizers,
    build_vocabulary,
    join_categories,
    step_counts,
)
from train.checkpoint import Saver, load_checkpoint, remove_leftovers
from train.distributed import local_device, session, synchronised, whole
from train.guards import (
    NonFiniteWatch,
    Statistics,
    Stopped,
    StopSignal,
    check_stop,
    memory_errors,
    report_skipped,
    update,
)
from train.loss import autocast, batch_loss, token_weights
from train.run_folder import (
    NoRecords,
    RunRecords,
    find_run_dir,
    new_run_dir,
    read_settings,
    write_environment,
    write_settings,
)
from train.state import TrainState, seed_all
from train.validate import validate
from utils.cli import log, settings_dict, snapshot
from utils.devices import World, pick_device


def train(cfg, tasks: list[str]) -> Path:
    """Trains one task or many and returns the run folder; under torchrun, on all its processes.

    An epoch is one pass over the data of the task that has most batches; the others go round.
    The folder holds settings.json, environment.jsonl, last.ckpt and the ones before it (complete
    state), last.safetensors and best.safetensors (weights alone), metrics.jsonl and the
    TensorBoard files.
    """
    with session() as world:
        return _run(cfg, tasks, world)


def resume(
    base: type, overrides: list[str], tasks: list[str], name: str, *, file: Path | None = None
) -> Path:
    """Continues the run folder `name` (or "auto") with its own settings and these overrides.

    "auto" takes the newest run of these tasks on this dataset; without one it starts one, so that a
    command that is repeated need not change.
    """
    with session() as world:
        cfg = snapshot(base, overrides, file=file)
        run_dir = world.broadcast(find_run_dir(cfg.runs_dir, tasks, name, dataset=cfg.dataset))
        if run_dir is None:
            log(f"no run to resume in {cfg.runs_dir / '+'.join(tasks)}: a new one starts")
            return _run(cfg, tasks, world)
        cfg = snapshot(base, overrides, saved=read_settings(run_dir), file=file)
        return _run(cfg, tasks, world, run_dir)


def _run(cfg, tasks: list[str], world: World, run_dir: Path | None = None) -> Path:
    device = local_device(pick_device(cfg.device), world)
    with memory_errors(device):
        return _train_on(device, cfg, tasks, world, run_dir)


def _train_on(device, cfg, tasks: list[str], world: World, run_dir: Path | None) -> Path:
    seed_all(cfg.seed)
    vocab = build_vocabulary(cfg, tasks)
    sources = {task: build_source_of(cfg, task, train=True) for task in tasks}
    categories = join_categories(sources)
    tokenizers = build_tokenizers(cfg, tasks, vocab, sources)
    eval_sources = {task: build_source_of(cfg, task, train=False) for task in tasks}
    streams = build_streams(cfg, sources, tokenizers, world)
    epoch_steps = max(len(stream) for stream in streams.values())
    total_steps, _ = step_counts(cfg, streams)
    total_steps = min(total_steps, cfg.max_steps or total_steps)
    model = build_model_of_run(cfg, vocab, tokenizers, categories, device)
    state = build_state(cfg, model, streams, total_steps, world)
    saver = Saver(keep=cfg.keep_checkpoints, steps=cfg.save_steps, minutes=cfg.save_minutes)
    if world.rank:  # the weights were drawn alike, dropout is not
        seed_all(cfg.seed + world.rank)
    if run_dir is None:  # only now: settings or data that are wrong leave no folder behind
        run_dir = world.broadcast(new_run_dir(cfg.runs_dir, tasks) if world.is_main else None)
    else:
        if world.is_main:
            remove_leftovers(run_dir)
        path = load_checkpoint(run_dir, state)
        log(f"continuing {path} from step {state.step}")
        saver.resumed(state)
        if state.step >= total_steps:
            log(f"all {total_steps} steps are done; to go on, raise max_steps or epochs")
    saver.run_dir = run_dir
    if world.is_main:
        write_settings(run_dir, settings_dict(cfg) | {"tasks": tasks})
        write_environment(run_dir, seed=cfg.seed, device=device, step=state.step)
    _announce(cfg, run_dir, state, sources, epoch_steps, total_steps)
    _loop(cfg, state, saver, eval_sources, epoch_steps, total_steps)
    log(f"run folder: {run_dir}")
    return run_dir


def _loop(
    cfg, state: TrainState, saver: Saver, eval_sources: dict, epoch_steps: int, total_steps: int
) -> None:
    """Epochs, evaluations and checkpoints until the end, a signal, or nothing gets better."""
    run_dir, world = saver.run_dir, state.world
    records = NoRecords()
    if world.is_main:
        records = RunRecords(run_dir, step=state.step, evaluated=state.evaluated)
    scaled = state.scaler.is_enabled()
    watch = NonFiniteWatch(run_dir / "nonfinite", cfg.max_nonfinite, rank=world.rank, scaled=scaled)
    stop = StopSignal(cfg.max_minutes)
    bar = tqdm(
        total=total_steps,
        initial=state.step,
        unit="step",
        dynamic_ncols=True,
        disable=not world.is_main,
    )
    try:
        while True:
            epoch, rest = divmod(state.step, epoch_steps)
            last = state.step >= total_steps
            due = last or (rest == 0 and epoch % cfg.eval_every == 0)
            if due and state.evaluated < state.step:  # on resume it may be done already, or not yet
                saver.save(state)  # an evaluation may take longer than what it follows
                _evaluate(cfg, state, records, eval_sources, run_dir)
            if 0 < cfg.early_stop_patience <= state.stale and not last:
                last = True
                log(f"no better evaluation in the last {state.stale}: ending")
            if last or world.broadcast(saver.due(state.step, epoch_end=rest == 0)):
                saver.save(state)
            if last:
                break
            bar.set_description(f"epoch {epoch + 1}/{cfg.epochs}", refresh=False)
            end = min((epoch + 1) * epoch_steps, total_steps)
            train_epoch(cfg, state, records, watch, stop, bar, end, saver)
            report_skipped(state.streams, epoch + 1, world)
    except Stopped as reason:
        saver.save(state)
        log(f"{reason}: saved step {state.step}; continue with --resume {run_dir}")
        if stop.signal:
            raise SystemExit(128 + stop.signal) from None
    finally:
        stop.restore()
        bar.close()
        records.close()


def train_epoch(
    cfg,
    state: TrainState,
    records: RunRecords,
    watch: NonFiniteWatch,
    stop: StopSignal,
    bar: tqdm,
    end: int,
    saver: Saver,
) -> None:
    """Steps until step number `end`; a line of the records every few steps."""
    dtype = amp_dtype(cfg, state.model.device)
    state.model.train()
    outcomes, since, images = [], time.perf_counter(), 0
    while state.step < end:
        micro = [
            {task: stream.next() for task, stream in state.streams.items()}
            for _ in range(state.accumulate_steps)
        ]
        state.before_step()
        losses, grad_norm = train_step(state, micro, dtype, cfg.clip_grad)
        state.after_step()
        outcomes.append(torch.stack([*losses.values(), grad_norm]))  # (tasks + 1,)
        for line in watch.add(state.step, outcomes[-1], micro):
            tqdm.write(line, sys.stderr)
        images += sum(stream.images_per_step for stream in state.streams.values())
        bar.update()
        if state.step % cfg.log_every == 0 or state.step == end:
            seconds = time.perf_counter() - since
            # the only place that waits for the device
            values = _means(torch.stack(outcomes), list(losses), state)
            values["train/lr"] = state.scheduler.get_last_lr()[0]
            values["train/images_per_s"] = images / seconds
            records.scalars(state.step, values)
            bar.set_postfix(loss=f"{values.get('train/loss', math.nan):.3f}", refresh=False)
            state.seconds += seconds
            outcomes, since, images = [], time.perf_counter(), 0
        check_stop(stop, state.world)
        if state.step < end and state.world.broadcast(saver.due(state.step)):
            saver.save(state)


def train_step(
    state: TrainState, micro: list[dict[str, Batch]], dtype: torch.dtype | None, clip_grad: float
) -> tuple[dict[str, Tensor], Tensor]:
    """One optimiser step on the weighted sum of the tasks' losses.

    Each loss is the mean over the token weights of the whole step: how its images are shared out
    among processes and `micro` batches does not matter.

    Args:
        micro: batches of each task, on the host, that are accumulated one after the other.

    Returns:
        this process's share of the loss of each task, not weighted, and the norm of the gradient,
        still on the device. The optimiser makes no step where the norm is no finite number.
    """
    device, world = state.model.device, state.world
    state.optimizer.zero_grad(set_to_none=True)
    statistics = Statistics(state.model)
    totals = dict(zip(micro[0], world.sums(token_weights(micro)), strict=True))
    losses = {task: torch.zeros((), device=device) for task in totals}
    parts = [part for batches in micro for part in batches.items()]
    for number, (task, batch) in enumerate(parts, 1):
        batch = batch.to(device, non_blocking=True)
        with synchronised(state.forward, last=number == len(parts)):
            with autocast(device, dtype):
                loss = batch_loss(state.forward, batch, state.loss_type, totals[task])
            # times the processes: their gradients are averaged, not added
            factor = state.task_weights.get(task, 1.0) * world.size
            state.scaler.scale(factor * loss).backward()
        losses[task] += loss.detach()
    state.scaler.unscale_(state.optimizer)
    parameters = [p for p in state.model.parameters() if p.grad is not None]
    limit = clip_grad if clip_grad > 0 else torch.inf  # the official config writes -1 for "off"
    grad_norm = whole(nn.utils.clip_grad_norm_(parameters, limit))
    update(state, grad_norm)
    statistics.keep_if(grad_norm.isfinite())
    state.scheduler.step()
    state.step += 1
    return losses, grad_norm


def _means(outcomes: Tensor, tasks: list[str], state: TrainState) -> dict[str, float]:
    """Means over the steps (steps, tasks + 1) that were not skipped, over all processes."""
    losses, norms = outcomes[:, :-1].clone(), outcomes[:, -1:]
    rows = torch.cat([state.world.sum(losses), norms], dim=1)
    means = rows.where(rows.isfinite(), torch.nan).nanmean(0).tolist()
    weights = [state.task_weights.get(task, 1.0) for task in tasks]
    values = {"train/loss": sum(w * v for w, v in zip(weights, means[:-1], strict=True))}
    if len(tasks) > 1:
        values |= {f"train/loss/{task}": v for task, v in zip(tasks, means[:-1], strict=True)}
    values["train/grad_norm"] = means[-1]
    return {name: value for name, value in values.items() if math.isfinite(value)}


def _evaluate(cfg, state: TrainState, records: RunRecords, sources: dict, run_dir: Path) -> None:
    """Validation of every task; the best weights by the mean of the leading metrics are kept."""
    reports: dict[str, Report] = {}
    model = state.judged
    for task, source in sources.items():
        report, picture = validate(cfg, task, model, source, state.world)
        reports[task] = report
        records.scalars(state.step, {f"val/{task}/{k}": v for k, v in report.metrics.items()})
        records.image(state.step, f"val/{task}", picture)
        numbers = ", ".join(f"{k} {v:.3f}" for k, v in list(report.metrics.items())[:3])
        log(f"step {state.step}: {task} {numbers}")
    values = [_leading(report, alone=len(reports) == 1) for report in reports.values()]
    value = sum(values) / len(values)
    state.evaluated, state.stale = state.step, state.stale + 1
    if value > state.best:
        state.best, state.stale = value, 0
        if not state.world.is_main:
            return
        save_model(model, run_dir / "best.safetensors")
        for task, report in reports.items():
            report.save(run_dir / "best" / ("" if len(reports) == 1 else task))


def _leading(report: Report, *, alone: bool) -> float:
    """What models are compared by; beside other tasks not CIDEr, which goes up to 10."""
    first = next(iter(report.metrics.values()))
    return first if alone else report.metrics.get("BLEU-4", first)


def _announce(cfg, run_dir: Path, state: TrainState, sources, epoch_steps, total_steps) -> None:
    """The settings and the size of what is about to happen, once."""
    log("\n".join(f"  {name} = {value}" for name, value in settings_dict(cfg).items()))
    parameters = sum(p.numel() for p in state.model.parameters()) / 1e6
    images = ", ".join(f"{len(source)} images of {task}" for task, source in sources.items())
    processes = f", {state.world.size} processes" if state.world.size > 1 else ""
    log(
        f"{images}; {parameters:.1f} M parameters on {state.model.device}{processes}; "
        f"{epoch_steps} steps an epoch, {total_steps} in all, from step {state.step}"
    )
    log(f"run folder: {run_dir} (curves: tensorboard --logdir {cfg.runs_dir})")
