# ruff: noqa: F811  fixtures are arguments
"""What decoding leaves behind: no cache that lingers, no switch that stays."""

import gc
import random
import threading
import weakref

import pytest
import torch

from models import decode_step as modes
from models.decode_step import no_cudnn_attention
from models.decoder import Cache
from tests.tiny_models import beams_in_mode, in_mode, memory, model, prompts  # noqa: F401


@pytest.mark.parametrize("mode", ["plain", "native", "static", "compiled"])
@pytest.mark.parametrize("beams", [False, True])
def test_caches_are_gone_when_decoding_is_over(monkeypatch, model, memory, mode, beams):
    """Without the garbage collector: gigabytes must not wait for it."""
    monkeypatch.setattr(torch, "compile", lambda function: function)  # it takes half a minute
    seen, init = [], Cache.__init__

    def note(cache, *args, **kwargs):
        init(cache, *args, **kwargs)
        seen.append(weakref.ref(cache.layers[0]))

    monkeypatch.setattr(Cache, "__init__", note)
    gc.collect()
    gc.disable()
    try:
        if beams:
            beams_in_mode(mode, model, memory, prompts(2, 1))
        else:
            in_mode(mode, model, memory, prompts(2, 1), eos_id=5)
        assert seen and not any(layer() for layer in seen)
    finally:
        gc.enable()


def test_every_mode_is_tried():
    assert set(modes.MODES) == {"plain", "native", "static", "compiled"}


@pytest.mark.parametrize("before", [True, False])
@pytest.mark.parametrize("seed", range(5))
def test_the_switch_of_cudnn_is_as_before_after_any_overlap(before, seed):
    threads, order = 4, random.Random(seed)
    enabled = torch.backends.cuda.cudnn_sdp_enabled
    steps = [threading.Event() for _ in range(threads)], [threading.Event() for _ in range(threads)]
    moved = threading.Semaphore(0)

    def use(number):
        steps[0][number].wait(30)
        with no_cudnn_attention():
            moved.release()
            steps[1][number].wait(30)
            assert not enabled()
        moved.release()

    was = enabled()
    torch.backends.cuda.enable_cudnn_sdp(before)
    try:
        running = [threading.Thread(target=use, args=(n,)) for n in range(threads)]
        for thread in running:
            thread.start()
        moves = order.sample([n for n in range(threads) for _ in range(2)], 2 * threads)
        inside = set()
        for number in moves:  # the first move of a thread enters, its second leaves
            steps[number in inside][number].set()
            assert moved.acquire(timeout=30)
            inside ^= {number}
            assert enabled() is (before and not inside)
        for thread in running:
            thread.join()
        assert enabled() is before
    finally:
        torch.backends.cuda.enable_cudnn_sdp(was)
