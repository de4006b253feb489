"""The story of training, told once: one task is a list of length one."""

import signal
import sys
import time
from pathlib import Path

import torch
from torch import Tensor, nn
from tqdm import tqdm

from dataset.loader import Batch
from infer.report import Report
from models import save_model
from train import build, build_model, build_state
from train.checkpoint import Saver, load_checkpoint, remove_leftovers
from train.loss import autocast, batch_loss
from train.multi_task import join_categories
from train.records import (
    RunRecords,
    find_run_dir,
    new_run_dir,
    read_settings,
    write_environment,
    write_settings,
)
from train.rng import seed_all
from train.state import TrainState
from train.validate import validate
from utils.cli import log, settings_dict, snapshot
from utils.device import pick_device
from utils.errors import UserError


class Stopped(Exception):
    """Training was asked to stop between two steps: a signal, or the time is up."""


def train(cfg, tasks: list[str]) -> Path:
    """Trains one task or many and returns the run folder.

    An epoch is one pass over the data of the task that has most batches; the others go round.
    The folder holds settings.json, environment.jsonl, last.ckpt and the ones before it (complete
    state), last.safetensors and best.safetensors (weights alone), metrics.jsonl and the
    TensorBoard files.
    """
    return _run(cfg, tasks)


def resume(base: type, overrides: list[str], tasks: list[str], name: str) -> Path:
    """Continues the run folder `name` (or "auto") with its own settings and these overrides.

    "auto" without a run starts one, so that a command that is repeated need not change.
    """
    cfg = snapshot(base, overrides)
    run_dir = find_run_dir(cfg.runs_dir, tasks, name)
    if run_dir is None:
        log(f"no run to resume in {cfg.runs_dir / '+'.join(tasks)}: a new one starts")
        return _run(cfg, tasks)
    cfg = snapshot(base, overrides, saved=read_settings(run_dir))
    return _run(cfg, tasks, run_dir)


def _run(cfg, tasks: list[str], run_dir: Path | None = None) -> Path:
    device = pick_device(cfg.device)
    seed_all(cfg.seed)
    vocab = build.vocabulary(cfg, tasks)
    sources = {task: build.source(cfg, task, train=True) for task in tasks}
    categories = join_categories(sources)
    tokenizers = build.tokenizers(cfg, tasks, vocab, sources)
    eval_sources = {task: build.source(cfg, task, train=False) for task in tasks}
    streams = build.streams(cfg, sources, tokenizers)
    epoch_steps = max(len(stream) for stream in streams.values())
    total_steps, _ = build_state.step_counts(cfg, streams)
    total_steps = min(total_steps, cfg.max_steps or total_steps)
    model = build_model.model(cfg, vocab, tokenizers, categories, device)
    state = build_state.state(cfg, model, streams, total_steps)
    saver = Saver(keep=cfg.keep_checkpoints, steps=cfg.save_steps, minutes=cfg.save_minutes)
    if run_dir is None:  # only now: settings or data that are wrong leave no folder behind
        run_dir = new_run_dir(cfg.runs_dir, tasks)
    else:
        remove_leftovers(run_dir)
        path = load_checkpoint(run_dir, state)
        log(f"continuing {path} from step {state.step}")
        saver.resumed(state)
    saver.run_dir = run_dir
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
    run_dir = saver.run_dir
    records = RunRecords(run_dir, step=state.step, evaluated=state.evaluated)
    stop = StopSignal(cfg.max_minutes)
    bar = tqdm(total=total_steps, initial=state.step, unit="step", dynamic_ncols=True)
    try:
        while True:
            epoch, rest = divmod(state.step, epoch_steps)
            last = state.step >= total_steps
            due = last or (rest == 0 and epoch % cfg.eval_every == 0)
            if due and state.evaluated < state.step:  # on resume it may be done already, or not yet
                _evaluate(cfg, state, records, eval_sources, run_dir)
            if 0 < cfg.early_stop_patience <= state.stale and not last:
                last = True
                bar.write(f"no better evaluation in the last {state.stale}: ending", sys.stderr)
            if last or saver.due(state.step, epoch_end=rest == 0):
                saver.save(state)
            if last:
                break
            bar.set_description(f"epoch {epoch + 1}/{cfg.epochs}", refresh=False)
            end = min((epoch + 1) * epoch_steps, total_steps)
            train_epoch(cfg, state, records, stop, bar, end, saver)
    except Stopped as reason:
        saver.save(state)
        bar.write(
            f"{reason}: saved step {state.step}; continue with --resume {run_dir}", sys.stderr
        )
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
    stop: "StopSignal",
    bar: tqdm,
    end: int,
    saver: Saver,
) -> None:
    """Steps until step number `end`; a line of the records every few steps."""
    device = state.model.device
    dtype = build_state.amp_dtype(cfg, device)
    state.model.train()
    losses, since, images = [], time.perf_counter(), 0
    while state.step < end:
        batches = {task: stream.next() for task, stream in state.streams.items()}
        batches = {task: b.to(device, non_blocking=True) for task, b in batches.items()}
        state.before_step()
        step_losses, grad_norm = train_step(state, batches, dtype, cfg.clip_grad)
        state.after_step()
        losses.append(step_losses)
        images += sum(len(batch) for batch in batches.values())
        bar.update()
        if state.step % cfg.log_every == 0 or state.step == end:
            seconds = time.perf_counter() - since
            # the only place that waits for the device
            values = _mean_losses(losses, state.task_weights)
            values["train/lr"] = state.scheduler.get_last_lr()[0]
            values["train/grad_norm"] = float(grad_norm)
            values["train/images_per_s"] = images / seconds
            records.scalars(state.step, values)
            bar.set_postfix(loss=f"{values['train/loss']:.3f}", refresh=False)
            state.seconds += seconds
            losses, since, images = [], time.perf_counter(), 0
        if stop.reason():
            raise Stopped(stop.reason())
        if state.step < end and saver.due(state.step):
            saver.save(state)


def train_step(
    state: TrainState, batches: dict[str, Batch], dtype: torch.dtype | None, clip_grad: float
) -> tuple[dict[str, Tensor], Tensor]:
    """One batch of each task, one optimiser step on the weighted sum of their losses.

    Returns:
        the loss of each task, not weighted, and the norm of the gradient, still on the device.
    """
    device = state.model.device
    state.optimizer.zero_grad(set_to_none=True)
    losses = {}
    for task, batch in batches.items():
        with autocast(device, dtype):
            loss = batch_loss(state.model, batch, state.loss_type)
        state.scaler.scale(state.task_weights.get(task, 1.0) * loss).backward()
        losses[task] = loss.detach()
    state.scaler.unscale_(state.optimizer)
    grad_norm = nn.utils.clip_grad_norm_(state.model.parameters(), clip_grad or torch.inf)
    state.scaler.step(state.optimizer)
    state.scaler.update()
    state.scheduler.step()
    state.step += 1
    return losses, grad_norm


def _mean_losses(losses: list[dict[str, Tensor]], weights: dict[str, float]) -> dict[str, float]:
    """Means over the logged steps; a loss that is no number stops the run."""
    tasks = list(losses[0])
    means = {task: float(torch.stack([row[task] for row in losses]).mean()) for task in tasks}
    for task, value in means.items():
        if value != value or value in (float("inf"), float("-inf")):
            raise UserError(
                f"the {task} loss is {value}; lower the learning rate (--set lr=...), clip the "
                "gradient (--set clip_grad=1) or use --set amp=off"
            )
    values = {"train/loss": sum(weights.get(task, 1.0) * v for task, v in means.items())}
    if len(tasks) > 1:
        values |= {f"train/loss/{task}": mean for task, mean in means.items()}
    return values


def _evaluate(cfg, state: TrainState, records: RunRecords, sources: dict, run_dir: Path) -> None:
    """Validation of every task; the best weights by the mean of the leading metrics are kept."""
    reports: dict[str, Report] = {}
    for task, source in sources.items():
        report, picture = validate(cfg, task, state.judged, source)
        reports[task] = report
        records.scalars(state.step, {f"val/{task}/{k}": v for k, v in report.metrics.items()})
        records.image(state.step, f"val/{task}", picture)
        numbers = ", ".join(f"{k} {v:.3f}" for k, v in list(report.metrics.items())[:3])
        tqdm.write(f"step {state.step}: {task} {numbers}", sys.stderr)
    values = [_leading(report, alone=len(reports) == 1) for report in reports.values()]
    value = sum(values) / len(values)
    state.evaluated, state.stale = state.step, state.stale + 1
    if value > state.best:
        state.best, state.stale = value, 0
        save_model(state.judged, run_dir / "best.safetensors")
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
    log(
        f"{images}; {parameters:.1f} M parameters on {state.model.device}; "
        f"{epoch_steps} steps an epoch, {total_steps} in all, from step {state.step}"
    )
    log(f"run folder: {run_dir} (curves: tensorboard --logdir {cfg.runs_dir})")


class StopSignal:
    """Ctrl-C, SIGTERM and the time limit, all asked for between two steps."""

    def __init__(self, max_minutes: float):
        self.signal = 0
        self.deadline = time.monotonic() + 60 * max_minutes if max_minutes else None
        numbers = (signal.SIGINT, signal.SIGTERM)
        self._previous = {number: signal.signal(number, self._remember) for number in numbers}

    def restore(self) -> None:
        """Gives the signals back to whoever had them before."""
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _remember(self, number, _frame) -> None:
        if self.signal:  # the second Ctrl-C does not wait
            raise KeyboardInterrupt
        self.signal = number

    def reason(self) -> str:
        if self.signal:
            return signal.Signals(self.signal).name
        if self.deadline is not None and time.monotonic() > self.deadline:
            return "time is up"
        return ""
