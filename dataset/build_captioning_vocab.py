"""Learn the caption vocabulary: sub-word pieces from the training captions of a COCO-format set.

python dataset/build_captioning_vocab.py --set coco_root=/data/coco
python dataset/build_captioning_vocab.py --set data=/my/folder --out my_vocab.json
python dataset/build_captioning_vocab.py --preset demo
python dataset/build_captioning_vocab.py --captions my.json --vocab-size 4000 --out my_vocab.json

Every piece is a row of the model's embedding: few pieces make a small model, many make short
sequences. Upper and lower case are kept (captions come out as people wrote them) unless
--lower-case is given; the metrics ignore case. White space becomes single spaces, characters their
NFKC form, and ones that never occur in the captions become <unk>. The same captions always give
the same file.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # run from any folder

from config import PRESETS
from utils.cli import load_settings, log, parser, run
from utils.errors import UserError


def main(argv=None) -> Path:
    args = parser(__doc__, presets=PRESETS)
    args.add_argument("--captions", type=Path, help="a captions_*.json; default: of coco_root")
    args.add_argument("--vocab-size", type=int, default=10_000, help="most pieces (10000)")
    args.add_argument("--lower-case", action="store_true", help="learn lower-case text alone")
    args.add_argument("--out", type=Path, help="default: the setting caption_vocab")
    args = args.parse_args(argv)
    cfg = load_settings(args, PRESETS["default"], presets=PRESETS)

    # imported when arguments and settings are understood: OpenCV and others take a while
    import numpy as np

    from dataset.coco_format import all_texts, open_coco, open_split
    from dataset.find_dataset import data_of
    from tokenizer.text import TextTokenizer

    # learn the pieces
    if args.captions is not None:
        if not args.captions.is_file():
            raise UserError(f"no file at --captions {args.captions}; name a captions_*.json")
        file = open_coco(args.captions, args.captions.parent, "captions")
    else:
        file = open_split(data_of(cfg) or cfg.coco_root, "train", "captions")
    file.errors.enforce()
    captions = all_texts(file.arrays, "caption")
    text = TextTokenizer.train(captions, args.vocab_size, lower_case=args.lower_case)
    out = args.out or cfg.caption_vocab
    text.save(out)

    # how long captions become
    lengths = np.array([len(text.encode(caption)) + 1 for caption in captions])
    print(
        f"{out}: {text.size} pieces from {len(captions)} captions; a caption has "
        f"{lengths.mean():.1f} tokens, 99 % at most {np.percentile(lengths, 99):.0f}, "
        f"the longest {lengths.max()} (max_caption_tokens = {cfg.max_caption_tokens})"
    )
    if not args.out:
        return out
    log(f"use it with --set caption_vocab={out}")
    return out


if __name__ == "__main__":
    run(main)
