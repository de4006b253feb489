"""Weights of the small PyTorch ports: same numbers, right boxes, refusals."""

import json

import cv2
import numpy as np
import pytest
import timm
import torch
from torch import nn

from dataset.geometry import Geometry
from download.convert_port_weights import main
from download.port_model import timm_name
from infer.predictor import Predictor
from models import generate, load_model
from tokenizer.base import TaskTokenizer
from tokenizer.detection import DetectionTokenizer
from tokenizer.vocabulary import Vocabulary
from utils.errors import UserError

BINS, CLASSES, SIDE, DIM, HEADS, MAX_LEN = 160, 20, 160, 32, 4, 42
MOEIN = Vocabulary.simple(BINS, CLASSES)
JJJYMMM = Vocabulary.simple(BINS, CLASSES, size=600, multi_task=True)


class Port(nn.Module):
    """What both ports compute, from parts of torch and timm, under their names."""

    def __init__(self, vocab_size, encoder="test_vit"):
        super().__init__()
        self.encoder, self.decoder = nn.Module(), nn.Module()
        self.encoder.model = timm.create_model(encoder, num_classes=0, global_pool="")
        self.encoder.bottleneck = nn.AdaptiveAvgPool1d(DIM)
        layer = nn.TransformerDecoderLayer(DIM, HEADS, batch_first=True)
        d = self.decoder
        d.embedding, d.output = nn.Embedding(vocab_size, DIM), nn.Linear(DIM, vocab_size)
        d.decoder_pos_embed = nn.Parameter(torch.randn(1, MAX_LEN - 1, DIM))
        d.encoder_pos_embed = nn.Parameter(torch.randn(1, 100, DIM))
        d.decoder = nn.TransformerDecoder(layer, 2)
        nn.init.normal_(d.output.weight)
        for parameter in d.decoder.parameters():
            parameter.data += 0.2 * torch.randn_like(parameter)  # no bias is 0, no norm is 1

    def encode(self, images):
        return self.encoder.bottleneck(self.encoder.model(images)[:, 1:])

    def forward(self, images, tokens):
        d, length = self.decoder, tokens.shape[1]
        mask = nn.Transformer.generate_square_subsequent_mask(length)
        x = d.embedding(tokens) + d.decoder_pos_embed[:, :length]
        return d.output(d.decoder(x, self.encode(images) + d.encoder_pos_embed, tgt_mask=mask))

    def greedy(self, images, tokens, steps):
        for _ in range(steps):
            tokens = torch.cat([tokens, self(images, tokens)[:, -1:].argmax(-1)], 1)
        return tokens


def options(vocab, source, out, *more):
    port = "moein" if vocab == MOEIN else "jjjymmm"
    return [
        *("--port", port, str(source), str(out), "--encoder", "test_vit"),
        *("--num-bins", str(BINS), "--num-classes", str(CLASSES), "--image-size", str(SIDE)),
        *("--heads", str(HEADS), *more),
    ]


def convert(port, vocab, folder, *more, legacy=False):
    source, out = folder / "port.pth", folder / "out.safetensors"
    torch.save(port.state_dict(), source, _use_new_zipfile_serialization=not legacy)
    main(options(vocab, source, out, *more))
    return out


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize(
    ("vocab", "encoder"), [(MOEIN, "test_vit"), (JJJYMMM, "test_vit2"), (JJJYMMM, "test_vit3")]
)
def test_a_port_keeps_its_numbers(tmp_path, vocab, encoder, legacy):
    """Whatever the pooling of the encoder and the format of the file."""
    torch.manual_seed(0)
    port = Port(vocab.size, encoder).eval()
    model = load_model(convert(port, vocab, tmp_path, "--encoder", encoder, legacy=legacy))
    images, tokens = torch.rand(2, 3, SIDE, SIDE), torch.randint(0, vocab.size, (2, 12))
    prompt = torch.full((2, 1), vocab.prompts["detection"])
    with torch.no_grad():
        normalised = (images - model.mean) / model.std
        memory = model.encode(images)
        torch.testing.assert_close(memory, port.encode(normalised), atol=2e-5, rtol=0)
        logits = model(images, tokens)
        torch.testing.assert_close(logits, port(normalised, tokens), atol=2e-5, rtol=0)
        answer, _ = model.generate(memory, prompt, max_new_tokens=MAX_LEN - 1)
        whole = port.greedy(normalised, prompt, MAX_LEN - 1)
    assert torch.equal(torch.cat([prompt, answer], 1), whole)
    assert len(set(whole[0].tolist())) > 5  # not the same token all over


@pytest.mark.data
def test_the_recorded_port_keeps_its_numbers(reference, tmp_path):
    folder = reference / "ports"
    about = json.loads((folder / "jjjymmm_test_vit.json").read_text())
    want = {k: torch.from_numpy(v) for k, v in np.load(folder / "jjjymmm_test_vit.npz").items()}
    main(
        f"--port jjjymmm {folder}/jjjymmm_test_vit.pth {tmp_path}/w.safetensors --encoder test_vit "
        f"--num-classes {about['num_classes']} --num-bins {about['num_bins']} --image-size 160 "
        f"--heads {about['num_heads']} --dim {about['dim']} --layers {about['num_layers']} "
        f"--max-len {about['max_len']}".split()
    )
    model = load_model(tmp_path / "w.safetensors")
    vocab = Vocabulary.from_json(model.meta["vocabulary"])
    ids = (vocab.bos, vocab.eos, vocab.pad, vocab.prompts, vocab.size)
    assert ids == tuple(about[k] for k in ("bos", "eos", "pad", "task_ids", "vocab_size"))
    images = want["images_normalised"] * model.std + model.mean
    with torch.no_grad():
        memory, logits = model.encode(images), model(images, want["tokens"])
    torch.testing.assert_close(memory, want["encoder_out"], atol=2e-5, rtol=0)
    seen = (want["tokens"] == vocab.pad).cumsum(1) == 0  # what follows the end says nothing
    torch.testing.assert_close(logits[seen], want["logits"][seen], atol=2e-5, rtol=0)
    start = torch.full((3, 1), vocab.bos)
    for prompt, whole in ((start, want["greedy"]), (want["prompt"], want["prompt_greedy"])):
        tokens, _ = model.generate(memory, prompt, max_new_tokens=20)
        assert torch.equal(torch.cat([prompt, tokens], 1), whole)


def scripted(vocab, answer):
    """A port that gives this answer to every image: each position asks for its own token."""
    port = Port(vocab.size).eval()
    with torch.no_grad():
        for name, value in port.decoder.named_parameters():
            value.fill_(1.0 if ".norm" in name and name.endswith("weight") else 0.0)
        for step, token in enumerate(answer):
            port.decoder.decoder_pos_embed[0, step, step] = 1
            port.decoder.output.weight[token, step] += 1.5
    return port


def bin_below(value, extent):
    return int(value / extent * (BINS - 1))


@pytest.mark.parametrize(
    ("vocab", "mode"), [(MOEIN, "stretch"), (JJJYMMM, "letterbox"), (JJJYMMM, "stretch")]
)
def test_boxes_and_scores_of_an_answer(tmp_path, vocab, mode):
    """The port's own encoding, written out here, and back to the pixels of the image."""
    image = np.random.default_rng(0).integers(0, 256, (100, 200, 3), dtype=np.uint8)
    boxes, labels = np.float32([[20, 10, 150, 95], [60.5, 33.3, 90.9, 71.7]]), (14, 0)
    scale, shift = {"stretch": ((0.8, 1.6), (0, 0)), "letterbox": ((0.8, 0.8), (0, 40))}[mode]
    answer = []
    for box, label in zip(boxes, labels, strict=True):
        moved = box * np.tile(scale, 2) + np.tile(shift, 2)
        answer += [bin_below(value, SIDE) for value in moved] + [BINS + label]
    answer += [vocab.eos, 3, 5, 7, 9, BINS]  # what comes after the end is nothing
    port = scripted(vocab, answer)
    path = convert(port, vocab, tmp_path, "--resize-mode", mode)
    found = Predictor(path).detect(image)
    assert sorted(found.names) == ["aeroplane", "person"]
    order = [found.names.index(name) for name in ("person", "aeroplane")]
    half = np.tile(SIDE / (BINS - 1) / 2 / np.array(scale), 2)
    assert (np.abs(found.boxes[order] - boxes) <= half + 1e-3).all()
    with torch.no_grad():
        tokens = torch.tensor([[vocab.prompts["detection"], *answer]])
        probs = port(torch.zeros(1, 3, SIDE, SIDE), tokens).softmax(-1)[0]
    wanted = [probs[4, answer[4]], probs[9, answer[9]]]
    np.testing.assert_allclose(found.scores[order], wanted, rtol=1e-4)
    assert min(wanted) > 0.4 and max(wanted) < 1


def test_decoding_stops_at_the_end_and_never_inside_an_object(tmp_path, monkeypatch):
    """The fifth class token comes although the port wants to end after two coordinates."""
    answer = [10, 20, MOEIN.eos, 40, BINS + 14, MOEIN.eos, 3, 5, 7, 9, BINS]
    predictor, steps = Predictor(convert(scripted(MOEIN, answer), MOEIN, tmp_path)), []
    pick = generate.sample
    monkeypatch.setattr(generate, "sample", lambda *more: steps.append(1) or pick(*more))
    found = predictor.detect(np.zeros((SIDE, SIDE, 3), np.uint8))
    assert found.names == ["person"] and len(steps) == 6


def test_half_a_bin_removes_the_bias():
    tokenizer = DetectionTokenizer(MOEIN, 1000)
    boxes = np.random.default_rng(0).random((1000, 4), np.float32) * SIDE
    tokens = tokenizer.encode(boxes, np.full(1000, 7), (SIDE, SIDE))
    decoded, labels, _ = tokenizer.decode(tokens, (SIDE, SIDE))
    error = decoded - boxes
    assert abs(error.mean()) < 0.02 and np.abs(error).max() <= SIDE / (BINS - 1) / 2 + 1e-3
    assert (labels == 7).all() and tokens[4] == BINS + 6  # the port counts from 0


@pytest.mark.parametrize(("mode", "pad"), [("letterbox", (0.1, 0.2, 0.3)), ("stretch", None)])
def test_the_model_sees_what_the_port_sees(tmp_path, mode, pad):
    """OpenCV's resize, and for the letterbox a border on both sides."""
    image = np.random.default_rng(0).integers(0, 256, (201, 320, 3), dtype=np.uint8)
    more = ["--pad-value", *map(str, pad)] if pad else []
    path = convert(Port(MOEIN.size), MOEIN, tmp_path, "--resize-mode", mode, *more)
    predictor, seen = Predictor(path), []
    encode = predictor.model.encode
    predictor.model.encode = lambda images: seen.append(images) or encode(images)
    predictor.detect(image)
    height = 100 if mode == "letterbox" else SIDE  # 201 / 2 to the even side
    want = np.empty((SIDE, SIDE, 3), np.float32)
    want[:] = pad or 0
    top = (SIDE - height) // 2
    want[top : top + height] = cv2.resize(image, (SIDE, height)) / 255
    np.testing.assert_allclose(seen[0][0].permute(1, 2, 0), want, atol=1.5 / 255)


def test_padding_is_black_in_the_middle_of_the_image_of_jjjymmm(tmp_path):
    meta = load_model(convert(Port(JJJYMMM.size), JJJYMMM, tmp_path)).meta
    assert meta["resize_mode"] == "letterbox"
    assert meta["resizing"] == {"pad_value": 0.0, "centered": True, "antialias": False}


def test_weights_of_one_task_start_at_bos(tmp_path):
    one = convert(Port(JJJYMMM.size), JJJYMMM, tmp_path, "--task", "detection")
    predictor = Predictor(one)
    assert predictor.tokenizer("detection").prompt.tolist() == [BINS + CLASSES]
    many = Predictor(convert(Port(JJJYMMM.size), JJJYMMM, tmp_path))
    assert many.tokenizer("detection").prompt.tolist() == [BINS + CLASSES + 3]


def test_a_timm_name_of_then_is_one_of_today():
    old, new = "deit3_small_patch16_384_in21ft1k", "deit3_small_patch16_384.fb_in22k_ft_in1k"
    assert timm_name(old) == new and timm_name(new) == new and timm_name("no_model") == "no_model"


def test_index_buffers_of_old_timm_versions_are_left_out(tmp_path):
    port = Port(MOEIN.size)
    port.encoder.model.register_buffer("relative_position_index", torch.zeros(3))
    assert convert(port, MOEIN, tmp_path).is_file()


@pytest.mark.parametrize(
    ("change", "more", "reason"),
    [
        ({"decoder.output.bias": None}, [], "1 tensors are missing, decoder.output.bias first"),
        ({"encoder.model.norm.bias": None}, [], "missing, encoder.model.norm.bias first"),
        ({"decoder.extra": torch.zeros(2)}, [], "1 tensors are left over, decoder.extra first"),
        (
            {"decoder.encoder_pos_embed": torch.zeros(1, 99, DIM)},
            [],
            r"decoder.encoder_pos_embed must have the shape \(1, 100, 32\).*\(1, 99, 32\)",
        ),
        (
            {"decoder.decoder.layers.1.multihead_attn.in_proj_weight": torch.zeros(64, 32)},
            [],
            r"in_proj_weight must have the shape \(96, 32\)",
        ),
        ({"decoder.embedding.weight": None}, [], "no tensor decoder.embedding.weight"),
        ({}, ["--image-size", "192"], "encoder.model.pos_embed must have the shape"),
        ({}, ["--num-bins", "161"], "the embedding has 183 tokens, moein .* has 184"),
        ({}, ["--layers", "3"], "--layers is 3, the tensors say 2"),
        ({}, ["--max-len", "300"], "--max-len is 300, the tensors say 42"),
        ({}, ["--heads", "5"], "multiple of num_heads"),
        ({}, ["--encoder", "test_vitt"], "no encoder 'test_vitt' in timm; similar names.*test_vit"),
        ({}, ["--encoder", "test_resnet"], "puts 0 tokens in front"),
        ({}, ["--task", "multi"], "moein has one task"),
        ({}, ["--pad-value", "1", "2"], "one number or three"),
    ],
)
def test_what_does_not_fit_is_refused(tmp_path, change, more, reason):
    state = {**Port(MOEIN.size).state_dict(), **change}
    state = {name: value for name, value in state.items() if value is not None}
    torch.save(state, tmp_path / "port.pth")
    with pytest.raises(UserError, match=reason):
        main(options(MOEIN, tmp_path / "port.pth", tmp_path / "out.safetensors", *more))
    assert not (tmp_path / "out.safetensors").exists()


class Mischief:
    def __reduce__(self):
        return (print, ("unpickled",))


@pytest.mark.parametrize("content", [Mischief(), {"epoch": 3}, [torch.zeros(2)], b"text"])
@pytest.mark.parametrize("legacy", [False, True])
def test_nothing_but_tensors_is_unpickled(tmp_path, capsys, content, legacy):
    path = tmp_path / "port.pth"
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        torch.save(content, path, _use_new_zipfile_serialization=not legacy)
    message = "port.pth (is not a valid file|must hold a state dict|contains more than tensors)"
    with pytest.raises(UserError, match=message) as error:
        main(options(MOEIN, path, tmp_path / "out.safetensors"))
    assert "unpickled" not in capsys.readouterr().out and "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("name", "content", "names", "first"),
    [
        ("c.txt", "cat\ndog\n", {1: "cat", 2: "dog"}, 1),
        ("c.json", '{"1": "cat", "2": "N/A", "3": "dog"}', {1: "cat", 3: "dog"}, 0),
        ("c.json", '{"categories": [{"id": 4, "name": "cat"}]}', {4: "cat"}, 0),
    ],
)
def test_class_names_come_from_a_file(tmp_path, name, content, names, first):
    (tmp_path / name).write_text(content)
    path = convert(Port(MOEIN.size), MOEIN, tmp_path, "--class-names", str(tmp_path / name))
    predictor = Predictor(path)
    assert predictor.categories.names == names and predictor.vocab.first_label == first


def test_a_class_without_a_token_is_refused(tmp_path):
    (tmp_path / "c.json").write_text('{"20": "cat"}')
    with pytest.raises(UserError, match="must be 0 to 19, .*c.json has 20 to 20"):
        convert(Port(MOEIN.size), MOEIN, tmp_path, "--class-names", str(tmp_path / "c.json"))


@pytest.mark.parametrize("vocab", [MOEIN, JJJYMMM, Vocabulary.simple(384, 91, size=6000)])
def test_the_simple_layout(vocab):
    """Coordinates, classes, BOS, EOS, PAD; nothing twice; JSON and back."""
    after = vocab.class_range[1]
    assert vocab.coord_range[0] == 0 and vocab.class_range[0] == vocab.num_bins
    assert (vocab.bos, vocab.eos, vocab.pad) == (after, after + 1, after + 2)
    assert Vocabulary.from_json(json.loads(json.dumps(vocab.to_json()))) == vocab
    if vocab != MOEIN:
        assert (vocab.invisible, vocab.separator, vocab.text0) == (500, 501, 550)


def test_ids_that_many_bins_leave_no_room_for_are_left_out():
    vocab = Vocabulary.simple(1000, 91, size=2000, multi_task=True)
    assert (vocab.invisible, vocab.separator, vocab.size) == (None, None, 2000)
    assert vocab.prompts["detection"] == vocab.pad + 1
    with pytest.raises(ValueError, match="overlap"):
        Vocabulary.simple(1000, 91, size=1094, multi_task=True)


def test_a_vocabulary_of_older_files_still_loads():
    old = {
        k: v
        for k, v in Vocabulary().to_json().items()
        if k not in ("layout", "num_classes", "first_label", "bos", "eos")
    }
    assert len(old) == 10 and Vocabulary.from_json(old) == Vocabulary()


def test_an_answer_stops_at_the_end_token_and_anything_decodes():
    tokenizer = DetectionTokenizer(MOEIN, 9)
    one = [10, 20, 30, 40, BINS]
    boxes, labels, _ = tokenizer.decode(np.array([*one, MOEIN.eos, *one]), (SIDE, SIDE))
    assert labels.tolist() == [1] and (np.diff(boxes[0]) > 0).all()
    assert len(tokenizer.decode(np.array([*one, 1, MOEIN.eos, *one]), (SIDE, SIDE))[1]) == 1
    assert len(tokenizer.decode(np.array([MOEIN.eos]), (SIDE, SIDE))[1]) == 0
    rng = np.random.default_rng(0)
    for _ in range(1000):
        boxes, labels, _ = tokenizer.decode(rng.integers(-9, 999, rng.integers(0, 40)), (60, SIDE))
        assert (boxes >= 0).all() and (boxes <= [SIDE, 60, SIDE, 60]).all()
        assert (labels >= 0).all() and (labels <= CLASSES).all()


def test_the_grammar_ends_only_between_objects():
    tokenizer, tokens = DetectionTokenizer(MOEIN, 9), torch.zeros(1, 9, dtype=torch.long)
    counts = [int(tokenizer.allowed(tokens[:, :t]).sum()) for t in range(6)]
    assert counts == [BINS + 1, BINS, BINS, BINS, CLASSES, BINS + 1]
    assert tokenizer.allowed(tokens[:, :5])[MOEIN.eos]


def test_other_tasks_and_training_need_the_official_layout():
    other = type("Other", (TaskTokenizer,), {"task": "other"})
    with pytest.raises(ValueError, match="layout must be one of"):
        other(MOEIN)
    sequence = DetectionTokenizer(MOEIN, 9, noise=False).sequence
    with pytest.raises(ValueError, match="layout must be 'official' in training"):
        sequence(np.zeros((1, 4)), [1], (SIDE, SIDE), np.random.default_rng(0))


@pytest.mark.parametrize("orig", [(100, 37), (37, 100), (64, 64), (1, 301)])
def test_a_centred_letterbox_inverts(orig):
    geometry = Geometry.letterbox(orig, (64, 96), centered=True)
    h, w = geometry.unpadded
    corners = np.array([[0.0, 0.0], orig[::-1]])
    np.testing.assert_allclose(geometry.inverse_points(geometry.points(corners)), corners)
    low, high = geometry.points(corners)
    np.testing.assert_allclose(low[::-1], [(64 - h) // 2, (96 - w) // 2])
    np.testing.assert_allclose(high[::-1] - low[::-1], [h, w])
    if any(geometry.pad):
        with pytest.raises(ValueError, match="pad must be"):
            geometry.move_image(np.zeros((*orig, 3), np.uint8))
