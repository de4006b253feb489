# ruff: noqa: F811  fixtures are arguments
"""The step in C++ says what the plain decoder says, on all lanes and with every option."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import models.native_step as native
from models.beam import beam_search
from models.step import CpuStep
from tests.test_static_step import in_mode
from tests.test_step import (
    VARIANTS,
    assert_same,
    ends_at_some_time,
    grammar,
    memory,  # noqa: F401  a fixture
    model,  # noqa: F401  a fixture
    prompts,
    tiny,
)
from utils.errors import UserError

ROOT = Path(__file__).resolve().parents[1]
CAPABILITIES = ("DEFAULT", "AVX2", "AVX512")  # what torch calls them, 4, 8 and 16 lanes
compiler = pytest.mark.skipif(
    not any(map(shutil.which, ("c++", "g++", "clang++"))), reason="needs a C++ compiler"
)


def capability():
    return torch.backends.cpu.get_cpu_capability()


def on_lanes_of(monkeypatch, name):
    """The code for a processor of this or an earlier kind."""
    if name not in CAPABILITIES[: CAPABILITIES.index(capability()) + 1]:
        pytest.skip(f"this processor has no {name}")
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: name)
    native.compiled_step.cache_clear()


@pytest.fixture(autouse=True)
def fresh():
    yield
    native.compiled_step.cache_clear()
    native.native_is_available.cache_clear()


@pytest.fixture
def calls(monkeypatch):
    """How many rows each native step was called with; nothing else may stand in for it."""
    rows, call = [], native.NativeStep.__call__
    monkeypatch.setattr(
        native.NativeStep, "__call__", lambda *args: rows.append(len(args[1])) or call(*args)
    )
    return rows


def plain_and_native(model, memory, prompt, **options):
    return (in_mode(mode, model, memory, prompt, **options) for mode in ("plain", "native"))


@compiler
@pytest.mark.parametrize("name", CAPABILITIES)
@pytest.mark.parametrize("rows", [1, 2, 4, 5, 8, 9, 16, 23, 40])
def test_any_number_of_rows_on_any_lanes(monkeypatch, calls, model, memory, name, rows):
    on_lanes_of(monkeypatch, name)
    plain, fast = plain_and_native(model, memory[:1], prompts(1, rows, 3))
    assert calls == [rows] * 13  # all tokens but the first, which comes with the prompt
    assert_same(fast, plain)


@compiler
@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("shape", [(2, 1), (2, 3, 5), (2, 11, 2)])
def test_every_variant_of_the_decoder(calls, memory, variant, shape):
    plain, fast = plain_and_native(tiny(**VARIANTS[variant]), memory, prompts(*shape))
    assert calls
    assert_same(fast, plain)


@compiler
def test_one_row_of_a_post_norm_decoder(calls, memory):
    plain, fast = plain_and_native(tiny(decoder_norm="post"), memory[:1], prompts(1, 1))
    assert calls
    assert_same(fast, plain)


@compiler
@pytest.mark.parametrize("places", [1, 15, 16, 17, 50])
def test_any_number_of_image_tokens(calls, model, places):
    memory = torch.randn(1, places, 64, generator=torch.Generator().manual_seed(0))
    for rows in (1, 7):
        plain, fast = plain_and_native(model, memory, prompts(1, rows, 2))
        assert_same(fast, plain)
    assert calls


@compiler
@pytest.mark.parametrize("norm", ["pre", "post"])
def test_any_number_of_threads_says_the_same(calls, memory, norm):
    model, threads = tiny(decoder_norm=norm), torch.get_num_threads()
    answers = []
    try:
        for count in (1, 2, 3, 7):  # with 7 some have no head of the attention
            torch.set_num_threads(count)
            answers += [in_mode("native", model, memory, prompts(2, 3, 2))]
    finally:
        torch.set_num_threads(threads)
    assert calls
    for answer in answers[1:]:
        assert torch.equal(answer[0], answers[0][0]) and torch.equal(answer[1], answers[0][1])


@compiler
@pytest.mark.parametrize(
    "options",
    [
        {"allowed": grammar},
        {"suppress": range(0, 3000, 2)},
        {"score_range": (1000, 1100)},
    ],
    ids=lambda options: next(iter(options)),
)
def test_every_option_of_generate(calls, model, memory, options):
    plain, fast = plain_and_native(model, memory, prompts(2, 2, 3), num_samples=2, **options)
    assert calls
    assert_same(fast, plain)
    assert_same(fast[-2:], plain[-2:])


@compiler
@pytest.mark.parametrize("part", [(100, 600), (7, 8), (2990, 3000)])
def test_a_part_of_the_vocabulary(calls, model, memory, part):
    options = {"unscored_range": part, "allowed": lambda _: torch.ones(3000, dtype=torch.bool)}
    for shape in ((1, 1), (1, 3, 1)):
        plain, fast = plain_and_native(model, memory[:1], prompts(*shape), **options)
        assert torch.equal(fast[0], plain[0])
    assert calls


@compiler
def test_finished_rows_leave(calls, model, memory):
    options = {"max_new_tokens": 30, "allowed": ends_at_some_time, "eos_id": 7}
    plain, fast = plain_and_native(model, memory, prompts(2, 6, 3), **options)
    assert_same(fast, plain)
    assert len(set(calls)) > 1 and calls == sorted(calls, reverse=True), calls


@compiler
def test_beam_search(calls, model, memory):
    options = {"max_new_tokens": 10, "eos_id": 7, "num_beams": 3}
    plain, fast = (
        beam_search(model.decoder, memory, prompts(2, 2), mode=mode, **options)
        for mode in ("plain", "native")
    )
    assert calls
    assert_same(fast, plain)


@compiler
def test_weights_may_change_between_calls(calls, memory):
    model = tiny()
    in_mode("native", model, memory, prompts(2, 1))
    with torch.no_grad():
        for parameter in model.decoder.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    plain, fast = plain_and_native(model, memory, prompts(2, 1))
    assert_same(fast, plain)


@compiler
def test_numbers_that_are_not_finite_are_not_hidden(model, memory):
    for bad in (torch.nan, torch.inf):
        log_probs = in_mode("native", model, memory * bad, prompts(2, 1))[1]
        assert log_probs.isnan().all()


@compiler
def test_a_sequence_longer_than_the_decoder_is_refused(model, memory):
    with pytest.raises(ValueError, match="at most 40 tokens"):
        in_mode("native", model, memory, prompts(2, 1), max_new_tokens=41)


@compiler
def test_sizes_that_are_no_whole_vectors_take_the_other_step(monkeypatch, calls, memory):
    taken, call = [], CpuStep.__call__
    monkeypatch.setattr(CpuStep, "__call__", lambda *args: taken.append(1) or call(*args))
    in_mode("native", tiny(mlp_dim=100), memory, prompts(2, 1))
    assert taken and not calls


def test_a_matrix_that_does_not_lie_row_by_row_is_refused():
    assert native.address(torch.ones(3, 2)) and native.address(None) is None
    with pytest.raises(ValueError, match="contiguous"):
        native.address(torch.ones(3, 2).t())


@compiler
def test_auto_is_native_where_it_fits_and_plain_where_not(monkeypatch):
    model = tiny()
    model.prepare(mode="auto")
    assert model.decode_mode == "native"
    model.prepare(mode="auto", dtype=torch.bfloat16)
    assert model.decode_mode == "plain"
    with pytest.raises(UserError, match="float32 on a CPU"):
        model.prepare(mode="native", dtype=torch.bfloat16)


@pytest.mark.parametrize(
    ("cxx", "message"),
    [
        ("no-such-compiler", "no-such-compiler: No such file"),
        ("false", "the C\\+\\+ compiler failed \\(status 1\\)"),
        (f"{sys.executable} -c 'exit(\"error: out of ideas\")'", "error: out of ideas"),
        (f"{sys.executable} -c 'pass'", "cannot write .*native_step"),  # says yes, writes nothing
    ],
)
def test_a_compiler_that_fails_is_one_line_and_auto_goes_on(monkeypatch, tmp_path, cxx, message):
    monkeypatch.setenv("CXX", cxx)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    native.compiled_step.cache_clear()
    native.native_is_available.cache_clear()
    model = tiny()
    with pytest.raises(UserError, match=message) as error:
        model.prepare(mode="native")
    assert "\n" not in str(error.value) and not list(tmp_path.rglob("*.so"))
    model.prepare(mode="auto")
    assert model.decode_mode == "plain"


def test_no_compiler_is_one_line(monkeypatch):
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setenv("PATH", "")
    native.compiled_step.cache_clear()
    with pytest.raises(UserError, match="install g\\+\\+.*decode_mode=plain"):
        native.compiled_step()


@compiler
def test_a_damaged_file_in_the_cache_folder_is_one_line(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(native, "compile_to", lambda path, _: path.write_bytes(b"no library"))
    native.compiled_step.cache_clear()
    with pytest.raises(UserError, match=f"cannot load {tmp_path}.*native_step.*delete it"):
        native.compiled_step()


@compiler
def test_the_source_has_no_warning_and_needs_no_vectors(tmp_path):
    command = ["c++", *native.FLAGS, "-Wall", "-Wextra", "-Werror", str(native.SOURCE), "-o"]
    subprocess.run([*command, str(tmp_path / "step.so")], check=True)
