"""Measures a model folder: `python -m training.evaluate serve/engine/tiny --data build/emoji`."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from training.checks import Score, Subject, examine
from training.config import EvaluationConfig
from training.data import vocabulary
from training.data.textures import Textures, load_textures
from training.devices import best_device
from training.painter import Painter
from training.progress import disable_progress_bars

SHEET_PROMPTS = (
    "a red fox on a yellow background",
    "a rocket on a blue background",
    "two red hearts on a black background",
    "a cat",
    "a slice of pizza on a green background",
    "three bananas on a purple background",
    "a penguin in the snow",
    "an astronaut in space",
    "a cup of coffee on a wooden table",
    "a red car on a light blue background",
    "a dragon on a red background",
    "an owl at night",
    "a sailboat on the beach",
    "a blue triangle and a green square on a yellow background",
    "a sunflower on a blue to white gradient background",
    "a key and a padlock on a brown background",
)
_COLUMNS = 8


def evaluate(
    model: Path, data: Path, sizes: EvaluationConfig, sheet: Path | None = None, textures: Textures | None = None
) -> list[Score]:
    """All checks; `sheet` gets a few pictures to look at."""
    device = textures[128].device if textures else best_device()
    torch.set_float32_matmul_precision("highest")
    painter, known = Painter(model, device, sizes.batch), vocabulary.load(data)
    if sheet:
        _save_sheet(painter.paint(SHEET_PROMPTS[: sizes.sheet], seed=0), sheet)
    return examine(Subject(painter, known, textures or load_textures(data, known, device)), sizes)


def table(rows: Sequence[tuple[str, str]]) -> str:
    width = max(len(name) for name, _ in rows)
    return "\n".join(f"{name:<{width}}  {value}" for name, value in rows)


def score_row(score: Score) -> tuple[str, str]:
    value = f"{score.value:.2f} {score.unit}".strip() if score.unit else f"{score.value:.1%}"
    return score.name, f"{value}  (N={score.samples})"


def save_scores(scores: Sequence[Score], path: Path) -> None:
    path.write_text(json.dumps([asdict(score) for score in scores], indent=1) + "\n", encoding="utf-8")


def _save_sheet(pictures: Tensor, path: Path) -> None:
    side = pictures.shape[-1]
    rows = -(-len(pictures) // _COLUMNS)
    sheet = Image.new("RGB", (_COLUMNS * side, rows * side))
    pixels = (pictures.clamp(0, 1) * 255).round().byte().permute(0, 2, 3, 1).cpu().numpy()
    for index, picture in enumerate(pixels):
        sheet.paste(Image.fromarray(picture), (index % _COLUMNS * side, index // _COLUMNS * side))
    sheet.save(path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=Path, help="a folder in diffusers' ZImagePipeline layout")
    parser.add_argument("--data", type=Path, required=True, help="the folder that training.data.fetch filled")
    parser.add_argument("--json", type=Path, help="also write the scores here")
    parser.add_argument("--sheet", type=Path, help="also draw 16 pictures into this PNG")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    disable_progress_bars()
    scores = evaluate(arguments.model, arguments.data, EvaluationConfig(), arguments.sheet)
    print(table([score_row(score) for score in scores]))
    if arguments.json:
        save_scores(scores, arguments.json)


if __name__ == "__main__":
    main()
