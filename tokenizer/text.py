"""Captions as sub-word pieces: 0 `<pad>`, 1 `</s>`, 2 `<unk>`, then the learned pieces."""

import base64
import json
from collections.abc import Iterable, Sequence
from pathlib import Path

from safetensors import SafetensorError, safe_open
from tokenizers import (
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    trainers,
)

from utils.errors import UserError, one_line
from utils.files import decode_text, read_json, write_text_atomic

SPECIAL = ("<pad>", "</s>", "<unk>")
PAD, END, UNKNOWN = range(3)
MAX_WORDS = 200_000  # whose pieces are remembered
SPACE = "▁"  # represents the space before a word
MIN_COUNT = 2  # a pair of pieces that occurs less often is not merged


class TextTokenizer:
    """Text to piece ids and back; it can be rebuilt from `to_json`.

    Either a byte-pair vocabulary of our own (the `tokenizers` library) or a SentencePiece model,
    which needs the optional package `sentencepiece`.
    """

    def __init__(self, model: Tokenizer | bytes):
        """
        Args:
            model: of the `tokenizers` library, or the content of a SentencePiece file.

        Raises:
            UserError: the first three pieces are not the ones that captions need.
        """
        self._bytes = model if isinstance(model, bytes) else None
        self._model = _sentencepiece(model) if isinstance(model, bytes) else model
        # words are encoded once, where no piece depends on the words beside it
        self._words: dict[str, list[int]] | None = {} if self._is_word_by_word() else None
        piece = self._model.id_to_piece if self._bytes else self._model.id_to_token
        first = [piece(i) for i in range(min(len(SPECIAL), self.size))]
        if tuple(first) != SPECIAL:
            raise UserError(
                f"a caption vocabulary must start with the pieces {', '.join(SPECIAL)}, got "
                f"{', '.join(map(str, first))}; make one with dataset/build_captioning_vocab.py"
            )

    @classmethod
    def train(
        cls, captions: Iterable[str], vocab_size: int, *, lower_case: bool = False
    ) -> "TextTokenizer":
        """Learns byte-pair pieces; deterministic for the same captions in the same order.

        Text is normalised by NFKC, white space collapsed to single spaces and cut off at both
        ends. Pieces never cross a space, and punctuation is a piece of its own. Every character
        that occurs is a piece, so only characters that never occurred become `<unk>`.

        Args:
            vocab_size: most pieces, the three special ones included; it takes fewer if nothing
                that occurs twice is left to merge.
            lower_case: learn and say lower-case text alone.

        Raises:
            UserError: there is no text, or there are more characters than pieces.
        """
        model = Tokenizer(models.BPE(unk_token=SPECIAL[UNKNOWN]))
        model.normalizer, model.pre_tokenizer = _normalizer(lower_case), _pre_tokenizer()
        model.decoder = decoders.Metaspace()
        trainer = trainers.BpeTrainer(
            vocab_size=vocab_size,
            min_frequency=MIN_COUNT,
            special_tokens=list(SPECIAL),
            show_progress=False,
        )
        model.train_from_iterator(captions, trainer)
        size = model.get_vocab_size()
        if size == len(SPECIAL):
            raise UserError("there is no text to learn a caption vocabulary from")
        if size > vocab_size:
            raise UserError(
                f"the captions use {size - len(SPECIAL)} characters, too many for {vocab_size} "
                f"pieces; use --vocab-size {size} or more"
            )
        return cls(model)

    @classmethod
    def load(cls, path: str | Path) -> "TextTokenizer":
        """From a JSON file (`save`, `to_json`), a SentencePiece `.model` file, or a weight file.

        Raises:
            UserError: the file is missing or is no such file.
        """
        path = Path(path).expanduser()
        if not path.is_file():
            raise UserError(
                f"no caption vocabulary at {path}; make one with "
                "dataset/build_captioning_vocab.py, or name one with --set caption_vocab=FILE"
            )
        if path.suffix == ".safetensors":
            return cls._of_weights(path)
        content = path.read_bytes()
        if content[:20].lstrip(b"{ \n\r\t").startswith((b'"tokenizers"', b'"sentencepiece"')):
            values = read_json(path, "make a caption vocabulary with build_captioning_vocab.py")
            return cls.from_json(values)
        return cls(content if path.suffix == ".model" else _from_text(content, str(path)))

    @classmethod
    def _of_weights(cls, path: Path) -> "TextTokenizer":
        """The pieces of a weight file's training, from its header."""
        try:
            with safe_open(path, framework="np") as file:
                tasks = json.loads((file.metadata() or {})["meta"])["tasks"]
            return cls.from_json(tasks["captioning"]["text"])
        except (SafetensorError, OSError, KeyError, ValueError) as error:
            raise UserError(
                f"{path} is not a weight file with captions; make a caption vocabulary with "
                "dataset/build_captioning_vocab.py"
            ) from error

    def save(self, path: str | Path) -> None:
        write_text_atomic(path, self._model.to_str(pretty=True) + "\n")

    def to_json(self) -> dict:
        """JSON values: `{"tokenizers": …}`, or `{"sentencepiece": base64}`."""
        if self._bytes is not None:
            return {"sentencepiece": base64.b64encode(self._bytes).decode()}
        return {"tokenizers": json.loads(self._model.to_str())}

    @classmethod
    def from_json(cls, values: dict) -> "TextTokenizer":
        if "sentencepiece" in values:
            return cls(base64.b64decode(values["sentencepiece"]))
        return cls(_from_text(json.dumps(values["tokenizers"]).encode(), "the weight file"))

    @property
    def size(self) -> int:
        """Number of pieces, the special ones included."""
        return self._model.get_piece_size() if self._bytes else self._model.get_vocab_size()

    def piece(self, number: int) -> str:
        """The text of a piece; ▁ is the space before a word."""
        if self._bytes is not None:
            return self._model.id_to_piece(number)
        return self._model.id_to_token(number)

    def encode(self, text: str) -> list[int]:
        """Piece ids without `</s>`."""
        if self._words is None or SPACE in text:
            return self._encode(text)
        pieces: list[int] = []
        for word in text.split(" "):
            known = self._words.get(word)
            if known is None:
                known = self._encode(word)
                if len(self._words) < MAX_WORDS:
                    self._words[word] = known
            pieces += known
        return pieces

    def _encode(self, text: str) -> list[int]:
        if self._bytes is not None:
            return self._model.encode(text)
        return self._model.encode(text, add_special_tokens=False).ids

    def _is_word_by_word(self) -> bool:
        """Whether the text between two spaces is encoded on its own, as `train` arranges it."""
        if self._bytes is not None or self._model.truncation:
            return False
        if getattr(self._model.model, "dropout", None):  # it draws, every time anew
            return False
        ours = [(_normalizer(lower), _pre_tokenizer()) for lower in (False, True)]
        states = [tuple(map(_state, parts)) for parts in ours]
        return (_state(self._model.normalizer), _state(self._model.pre_tokenizer)) in states

    def decode(self, pieces: Sequence[int]) -> str:
        """Text up to the first `</s>`; other special pieces and unknown ids are ignored."""
        pieces = [int(piece) for piece in pieces]
        if END in pieces:
            pieces = pieces[: pieces.index(END)]
        known = [piece for piece in pieces if len(SPECIAL) <= piece < self.size]
        return self._model.decode(known).strip()


def _normalizer(lower_case: bool) -> normalizers.Normalizer:
    steps = [normalizers.NFKC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Strip()]
    return normalizers.Sequence(steps + [normalizers.Lowercase()] * lower_case)


def _pre_tokenizer() -> pre_tokenizers.PreTokenizer:
    return pre_tokenizers.Sequence(
        [pre_tokenizers.Metaspace(), pre_tokenizers.Punctuation("isolated")]
    )


def _state(part) -> bytes | None:
    """What a normalizer or pre-tokenizer is, to compare."""
    return None if part is None else part.__getstate__()


def _from_text(content: bytes, name: str) -> Tokenizer:
    try:
        return Tokenizer.from_str(decode_text(content))
    except Exception as error:  # the library raises bare Exceptions
        raise UserError(
            f"{name} holds no caption vocabulary ({one_line(error)}); make one with "
            "dataset/build_captioning_vocab.py"
        ) from error


def _sentencepiece(content: bytes):
    try:
        import sentencepiece
    except ImportError as error:
        raise UserError(
            "this caption vocabulary is a SentencePiece model; install what reads it: "
            "pip install sentencepiece"
        ) from error
    try:
        return sentencepiece.SentencePieceProcessor(model_proto=content)
    except (RuntimeError, OSError, ValueError) as error:
        raise UserError(f"not a SentencePiece model ({one_line(error)})") from error
