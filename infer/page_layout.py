"""Layout and event handlers of the page of `infer/app.py`, with gradio.

gradio is an optional extra and is imported when the page is made. The page asks no server but its
own: no analytics, no fonts and no scripts of others.
"""

import html
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from urllib.parse import urlsplit

from infer.page import ANY_CLASS, BOXED, EMPTY, Answers, Session, view
from utils.errors import UserError

MISSING = "the page needs gradio; run: pip install -r requirements-app.txt"
# Variables that gradio and its libraries read when they are imported.
QUIET = {"GRADIO_ANALYTICS_ENABLED": "False", "HF_HUB_DISABLE_TELEMETRY": "1"}
OWN = "127.0.0.1,localhost,0.0.0.0"
LOOPBACK = ("127.0.0.1", "localhost", "::1")
FOREIGN = (
    "Open this page by the address in the terminal; other pages may not use it. If a proxy leads "
    "here, start the page with --public-address and the address of the proxy."
)
# The browser itself refuses what is not of this page.
POLICY = (
    "default-src 'self'; img-src 'self' data: blob:; media-src 'self' blob:; "
    "font-src 'self' data:; "
    "style-src 'self' 'unsafe-inline'; script-src 'self' 'unsafe-inline' 'unsafe-eval' blob:; "
    "worker-src 'self' blob:; connect-src 'self'; frame-ancestors 'self'; form-action 'self'"
)
FONTS, MONOSPACE = ["system-ui", "sans-serif"], ["ui-monospace", "monospace"]
EXAMPLE = Path(__file__).resolve().parents[1] / "images" / "demo.jpg"
HEAD = "# Pix2Seq\nObjects, masks, keypoints and captions of a picture."
HINT = (
    "Masks and keypoints: click two opposite corners of each object in the picture. Without boxes "
    "the model looks for the objects itself."
)
CSS = """
.gradio-container {max-width: 1280px !important; margin: 0 auto !important}
.gradio-container, .gradio-container > main {width: 100%}
#hint p, #notice p, #result-text p {margin: 0.2em 0}
#result-text blockquote {font-size: 1.15em; border-left: 3px solid var(--primary-500)}
#result-text table {width: 100%}
#result-text th, #result-text td {padding: 3px 10px; border-color: var(--border-color-primary)}
footer {display: none !important}
"""


def import_gradio():
    """Imports gradio with its analytics switched off.

    Raises:
        UserError: it is not installed.
    """
    for name, value in QUIET.items():
        os.environ.setdefault(name, value)
    for name in ("no_proxy", "NO_PROXY"):  # gradio asks its own page whether it is there
        os.environ[name] = ",".join(filter(None, [os.environ.get(name), OWN]))
    try:
        import gradio
    except ImportError as error:
        raise UserError(MISSING) from error
    return gradio


def build_page(gr, answers: Answers):
    """The page: weights and picture left, the answer right.

    Args:
        gr: gradio.
    """
    names = list(answers.files)
    tasks, classes = answers.tasks(names[0]), answers.classes(names[0])
    with gr.Blocks(title="Pix2Seq", delete_cache=(3600, 24 * 3600)) as page:
        session = gr.State(None, time_to_live=24 * 3600, delete_callback=_forget)
        gr.Markdown(HEAD)
        with gr.Row():
            weights = gr.Dropdown(names, value=names[0], label="Weights", elem_id="weights")
            task = gr.Radio(tasks, value=tasks[0], label="Task", elem_id="task")
        notice = gr.Markdown(answers.notice(names[0]), elem_id="notice")
        with gr.Row(equal_height=False):
            with gr.Column():
                picture = gr.Image(
                    type="filepath", sources=["upload", "clipboard"], label="Picture",
                    placeholder="Drop a picture here, or click to choose one",
                    elem_id="picture", height=420, buttons=[],
                )  # fmt: skip
                with gr.Row():
                    ask = gr.Button("Ask the model", variant="primary", elem_id="ask", scale=3)
                    example = gr.Button(
                        "Example picture", elem_id="example", scale=2, min_width=200,
                        visible=EXAMPLE.is_file(),
                    )  # fmt: skip
                with gr.Column(visible=tasks[0] in BOXED) as boxes:
                    gr.Markdown(HINT, elem_id="hint")
                    label = gr.Dropdown(
                        [ANY_CLASS, *classes], value=ANY_CLASS, label="Class in the boxes"
                    )
                    forget = gr.Button("Remove boxes", elem_id="forget")
            with gr.Column():
                result = gr.Image(
                    label="Answer", interactive=False, format="png", elem_id="result", height=420,
                    buttons=["fullscreen"],
                )  # fmt: skip
                threshold = gr.Slider(
                    0, 1, value=answers.cfg.score_threshold, step=0.01, elem_id="threshold",
                    label="Score threshold", info="Objects that score lower are hidden at once.",
                )  # fmt: skip
                with gr.Row():
                    png = gr.DownloadButton("Download PNG", interactive=False, elem_id="png")
                    file = gr.DownloadButton("Download JSON", interactive=False, elem_id="json")
                text = gr.Markdown(EMPTY, elem_id="result-text")
        inputs = session, weights, task, picture, label, threshold
        outputs = [session, result, text, png, file]
        _connect_picture(gr, inputs, outputs, (example, forget))
        _connect_model(gr, answers, inputs, outputs, ask)
        _connect_choices(gr, answers, inputs, (notice, boxes))
    return page


def _show(gr, state: Session | None, threshold: float) -> tuple:
    """The visible part of an answer, as values of the page."""
    state = state or Session()
    seen = view(state, threshold)
    files = [gr.DownloadButton(value=str(path), interactive=True) for path in seen.files] or [
        gr.DownloadButton(value=None, interactive=False)
    ] * 2
    return state, seen.picture, seen.text, *files


def _connect_picture(gr, inputs: tuple, outputs: list, buttons: tuple) -> None:
    """What happens with another picture, and with clicks in it."""
    session, _, _, picture, _, threshold = inputs
    example, forget = buttons

    def open_picture(state: Session | None, path: str | None, limit: float) -> tuple:
        state = state or Session()
        with _Messages(gr):
            state.open(path)
        return _show(gr, state, limit)

    def open_example(state: Session | None, limit: float) -> tuple:
        shown = open_picture(state, str(EXAMPLE), limit)
        return shown[0].image, *shown

    def click(state: Session | None, event: gr.SelectData) -> tuple:
        state = state or Session()
        state.click(*event.index)
        return state, state.marked()

    def forget_boxes(state: Session | None) -> tuple:
        state = state or Session()
        state.forget_boxes()
        return state, state.marked()

    quick = {"show_progress": "hidden"}
    picture.upload(open_picture, [session, picture, threshold], outputs, **quick)
    picture.clear(open_picture, [session, picture, threshold], outputs, **quick)
    picture.select(click, [session], [session, picture], **quick)
    example.click(open_example, [session, threshold], [picture, *outputs], **quick)
    forget.click(forget_boxes, [session], [session, picture], **quick)


def _connect_model(gr, answers: Answers, inputs: tuple, outputs: list, ask) -> None:
    """What happens when the model is asked, and when the slider moves."""
    session, weights, task, _, label, threshold = inputs

    def ask_model(state: Session | None, name: str, wanted: str, kind: str, limit: float) -> tuple:
        state = state or Session()
        with _Messages(gr):
            answers.answer(state, name, wanted, kind)
        return _show(gr, state, limit)

    def show(state: Session | None, limit: float) -> tuple:
        return _show(gr, state, limit)

    one = {"concurrency_limit": 1, "show_progress_on": outputs[1]}
    ask.click(ask_model, [session, weights, task, label, threshold], outputs, **one)
    moves = {"trigger_mode": "always_last", "show_progress": "hidden"}
    threshold.input(show, [session, threshold], outputs, **moves)


def _connect_choices(gr, answers: Answers, inputs: tuple, parts: tuple) -> None:
    """What other weights and other tasks change on the page."""
    _, weights, task, _, label, _ = inputs
    notice, boxes = parts

    def choose_weights(name: str, wanted: str) -> tuple:
        tasks = answers.tasks(name)
        value = wanted if wanted in tasks else tasks[0]
        classes = gr.Dropdown([ANY_CLASS, *answers.classes(name)], value=ANY_CLASS)
        return gr.Radio(tasks, value=value), classes, answers.notice(name), choose_task(value)

    def choose_task(wanted: str):
        return gr.Column(visible=wanted in BOXED)

    quick = {"show_progress": "hidden"}
    weights.input(choose_weights, [weights, task], [task, label, notice, boxes], **quick)
    task.input(choose_task, [task], [boxes], **quick)


class _Messages:
    """Errors of the person at the page become messages there; the page itself stays as it is."""

    def __init__(self, gr):
        self.gr = gr

    def __enter__(self) -> None: ...

    def __exit__(self, kind, error, _) -> bool:
        if isinstance(error, UserError):
            self.gr.Warning(html.escape(str(error)))  # a message may be HTML, a file name too
        return isinstance(error, UserError)


def _forget(session: Session | None) -> None:
    if session is not None and session.folder is not None:
        shutil.rmtree(session.folder, ignore_errors=True)


def is_own(headers: Mapping[str, str], host: str, public: str | None = None) -> bool:
    """Whether a request is of the page itself.

    A page that only this machine can open must not be used by other pages in the same browser.

    Args:
        host: that the page is served at.
        public: address of a proxy that leads to it.
    """
    if host not in LOOPBACK:
        return True
    place, origin = headers.get("host", ""), headers.get("origin")
    proxy = None if public is None else urlsplit(public).netloc
    known = urlsplit(f"//{place}").hostname in LOOPBACK or place == proxy
    return known and (origin is None or urlsplit(origin).netloc in (place, proxy))


def open_page(gr, page, *, host: str, port: int | None, max_upload: int, public: str | None = None):
    """Serves the page until Ctrl-C.

    Args:
        host, public: see `is_own`.
        port: None = the first free one from 7860 on.
        max_upload: megabytes of a picture.

    Raises:
        UserError: the port is taken.
    """
    from starlette.middleware import Middleware
    from starlette.middleware.base import BaseHTTPMiddleware
    from starlette.responses import PlainTextResponse

    async def protect(request, call_next):
        if not is_own(request.headers, host, public):
            return PlainTextResponse(FOREIGN, status_code=403)
        answer = await call_next(request)
        answer.headers["Content-Security-Policy"] = POLICY
        return answer

    theme = gr.themes.Default(primary_hue="blue", font=FONTS, font_mono=MONOSPACE)
    try:
        return page.launch(
            server_name=host,
            server_port=port,
            share=False,
            max_file_size=f"{max_upload}mb",
            theme=theme,
            css=CSS,
            footer_links=[],
            quiet=True,
            ssr_mode=False,
            prevent_thread_lock=True,
            app_kwargs={"middleware": [Middleware(BaseHTTPMiddleware, dispatch=protect)]},
        )
    except OSError as error:
        place = f"{host}:{port or 7860}"
        raise UserError(f"cannot serve at {place} ({error}); name another --port") from error
