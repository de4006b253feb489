"""What the script of captions does."""

from infer.captioning import CaptionOptions
from infer.script import Answer, Item, answer_images, infer_parser, load_predictor
from utils.cli import snapshot
from utils.errors import UserError
from utils.images import list_images


def caption_script(doc: str, base: type, argv: list[str] | None) -> None:
    """Captions of images, printed.

    Args:
        base: the CFG class.
    """
    args = infer_parser(doc, pictures=False)
    args.add_argument("--num-captions", type=int, default=1, help="per image, best first")
    args = args.parse_args(argv)
    cfg = snapshot(base, args.set)
    options = caption_options(cfg, args.num_captions)
    several = len(list_images(args.image)) > 1
    predictor = load_predictor(args, cfg, cfg.coco_captioning_weights)

    def answer(items: list[Item]) -> list[Answer]:
        found = predictor.caption([image for _, image in items], options)
        heads = [f"{path}\n" if several else "" for path, _ in items]
        return [
            Answer(head + "\n".join(one.texts), {"captions": one.to_json()})
            for head, one in zip(heads, found, strict=True)
        ]

    answer_images(args, answer)


def caption_options(cfg, num_captions: int = 1) -> CaptionOptions:
    """Decoding of captions as the settings say.

    Raises:
        UserError: they make no sense.
    """
    try:
        return CaptionOptions(
            num_captions,
            cfg.caption_beams,
            cfg.caption_top_k,
            cfg.caption_top_p,
            cfg.caption_temperature,
            cfg.caption_length_penalty,
            cfg.seed,
        )
    except ValueError as error:
        raise UserError(f"settings of captions: {error}") from error
