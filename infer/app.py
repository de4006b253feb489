"""A page in the browser: drop a picture, choose a task, draw boxes, move the threshold.

python infer/app.py
python infer/app.py --weights runs/detection/RUN weights/demo.safetensors hf://owner/name/w.safetensors

The page is at http://127.0.0.1:7860. Only this machine can open it; --host 0.0.0.0 opens it to
others, without a password. It needs gradio: pip install -r requirements-app.txt. It sends nothing
to other servers. Ctrl-C ends it.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # run from any folder

from config import CFG
from utils.cli import load_settings, log, parser, run
from utils.files import find_weight_file


def main(argv=None):
    # The command line and the settings
    args = parser(__doc__)
    args.add_argument(
        "--weights",
        type=Path,
        nargs="+",
        help="weight files, run folders or hf:// names, to choose from; default: the demo weights",
    )
    args.add_argument("--host", default="127.0.0.1", help="default: 127.0.0.1, only this machine")
    args.add_argument("--port", type=int, help="default: the first free port from 7860 on")
    args.add_argument(
        "--public-address", metavar="URL", help="of a proxy on this machine that leads to the page"
    )
    args.add_argument(
        "--max-upload", type=int, default=20, metavar="MB", help="largest picture; default: 20"
    )
    args.add_argument(
        "--device", help="auto (a GPU if there is one), cpu, cuda or cuda:1; default: the setting"
    )
    args = args.parse_args(argv)
    cfg = load_settings(args, CFG)
    weights = args.weights or [cfg.demo_weights]
    for path in weights:
        find_weight_file(path)

    # What takes long to import comes after the command line is understood.
    from infer.page import Answers
    from infer.page_layout import build_page, import_gradio, open_page

    gradio = import_gradio()
    page = build_page(gradio, Answers(weights, cfg, args.device))
    _, address, _ = open_page(
        gradio,
        page,
        host=args.host,
        port=args.port,
        max_upload=args.max_upload,
        public=args.public_address,
    )
    log(f"the page is at {address} (Ctrl-C ends it)")
    page.block_thread()


if __name__ == "__main__":
    run(main)
