"""``demo``: a page in the browser that shows what checkpoints say of pictures, side by side."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pipelines
from datamodules.common.errors import UserError
from datamodules.readers.pictures import find_pictures
from pipelines.listing import PROGRAM
from pipelines.quiet import quieten

#: Pictures shown at once: each is predicted by each checkpoint whenever the threshold is moved.
MOST_PICTURES = 50
TOP = 3  # classes named below a picture
MIN_WIDTH = 320  # pixels of a checkpoint's column


def main(words: list[str]) -> int:
    """The command ``demo``: serves the page until Ctrl-C.

    Args:
        words: Its flags.

    Returns:
        The exit status: 0, 1 if it cannot be done, 2 for wrong usage.
    """
    parser = argparse.ArgumentParser(
        prog=f"{PROGRAM} demo", description="Show what checkpoints say of pictures, on a page in the browser."
    )
    parser.add_argument("--ckpt_path", nargs="+", required=True, metavar="FILE", help="one or more, of any tasks")
    parser.add_argument("--source", default=None, help="pictures shown at the beginning: a folder, a file or a pattern")
    parser.add_argument("--device", default="auto", help="cpu, cuda, cuda:1 (auto: the GPU where there is one)")
    parser.add_argument("--trust", nargs="+", default=(), metavar="PACKAGE", help="your own, see SECURITY.md")
    parser.add_argument("--host", default="127.0.0.1", help="0.0.0.0 lets other machines in (127.0.0.1)")
    parser.add_argument("--port", type=int, default=7860, help="of the page's address (7860)")
    try:
        given = parser.parse_args(words)
    except SystemExit as stop:
        return int(stop.code or 0)
    try:
        quieten()
        page = make_page(given.ckpt_path, source=given.source, device=given.device, trust=given.trust)
        print(f"{serve(page, given.host, given.port)} shows the page until Ctrl-C", flush=True)
        page.block_thread()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def make_page(
    checkpoints: Sequence[str | Path],
    *,
    source: str | None = None,
    device: str = "auto",
    trust: Sequence[str] = (),
) -> Any:
    """The page: a ``gradio.Blocks`` with a column for each checkpoint.

    Args:
        checkpoints: Files, of any tasks.
        source: Pictures that are shown as long as none are dropped.
        device: Where the networks run, see ``pipelines.load``.
        trust: Packages whose classes the checkpoints may name, see ``pipelines.load``.

    Raises:
        UserError: If gradio is not installed, a checkpoint cannot be loaded, or there are no such pictures or too many.
    """
    gradio = _gradio()
    models = [pipelines.load(file, device, trust=trust) for file in checkpoints]
    some_find_boxes = any(_finds_boxes(model) for model in models)
    first = _at_most(find_pictures(source) if source else [])

    def show(dropped: list[str] | None, threshold: float) -> list[list[tuple[Any, str]]]:
        try:
            files = _at_most(dropped) if dropped else first
            return [shown(model, files, threshold) for model in models]
        except UserError as error:
            raise gradio.Error(str(error)) from error

    with gradio.Blocks(title="vision-pipelines", analytics_enabled=False) as page:
        with gradio.Row():
            pictures = gradio.File(label="Pictures", file_count="multiple", file_types=["image"], height=140)
            threshold = gradio.Slider(
                0, 1, 0, step=0.01, visible=some_find_boxes, label="Threshold", info="0: the checkpoint's own"
            )
        galleries = []
        with gradio.Row():
            for file, model in zip(checkpoints, models, strict=True):
                with gradio.Column(min_width=MIN_WIDTH):
                    gradio.Markdown(f"`{'/'.join(Path(file).parts[-4:])}`")  # NAME/VERSION/checkpoints/best.ckpt
                    pairs = shown(model, first)
                    galleries.append(gradio.Gallery(pairs, columns=2, show_label=False, interactive=False))
        gradio.on([pictures.change, threshold.release], show, [pictures, threshold], galleries)
    return page


def serve(page: Any, host: str, port: int) -> str:
    """Serve a page in threads of its own; ``page.block_thread()`` waits for Ctrl-C.

    Args:
        page: Of ``make_page``.
        host: The address to listen at.
        port: Its port.

    Returns:
        The page's address.

    Raises:
        UserError: If the port is taken.
    """
    gradio = _gradio()
    # gradio's own fonts are fetched from outside.
    theme = gradio.themes.Default(font="system-ui", font_mono="monospace")
    options = {"share": False, "ssr_mode": False, "footer_links": [], "show_error": True, "quiet": True}
    try:
        _, address, _ = page.launch(
            server_name=host, server_port=port, theme=theme, prevent_thread_lock=True, **options
        )
    except OSError as error:
        raise UserError(f"--port {port} at {host} cannot be used ({error}); take another one.") from error
    return str(address)


def shown(model: pipelines.Model, files: Sequence[str], threshold: float = 0.0) -> list[tuple[Any, str]]:
    """What a model says of pictures, each drawn uint8 (H, W, 3) and in words.

    Args:
        model: Of ``pipelines.load``.
        files: The pictures.
        threshold: The score from which on an object counts; 0 for the checkpoint's own.
    """
    chosen = threshold if threshold and _finds_boxes(model) else None
    results = model.predict(list(files), threshold=chosen) if files else []
    return [(result.plot(), describe(result)) for result in results]


def describe(result: Any) -> str:
    """The most probable classes; of other results what their summary says."""
    if isinstance(result, pipelines.ClassificationResult) and not result.multi_label:
        return ", ".join(f"{name} {probability:.2f}" for name, probability in result.top(TOP))
    return str(result.summary())


def _at_most(files: list[str]) -> list[str]:
    if len(files) > MOST_PICTURES:
        raise UserError(f"{len(files)} pictures are more than a page shows; give at most {MOST_PICTURES}.")
    return files


def _finds_boxes(model: pipelines.Model) -> bool:
    return bool(model.predictor.task.finds_boxes)


def _gradio() -> Any:
    """The package gradio, imported when it is needed.

    Raises:
        UserError: If it is not installed.
    """
    try:
        import gradio
    except ImportError as error:
        raise UserError('demo needs the package gradio: pip install "vision-pipelines[demo]".') from error
    return gradio
