"""Tables of the figures that benchmarks/gpu.sh left in a folder, in Markdown.

python benchmarks/gpu_table.py results/gpu
"""

import json
import sys
from pathlib import Path


def main(folder: Path) -> None:
    figures = {path.stem: json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))}
    decoding = [
        row for name in figures if name.startswith("decode") for row in decoded(figures[name])
    ]
    if decoding:
        print_table(
            ["model", "type", "mode", "images", "ms a token", "times the limit", "ms an image"],
            decoding,
        )
    training = [
        row for name in figures if name.startswith("train") for row in trained(figures[name])
    ]
    if training:
        head = ["step", "type", "compiled", "images", "images a second", "MFU", "plain loop / ours"]
        print_table(head, training)
    if rate := figures.get("data", {}).get("detection", {}).get("images_per_s"):
        needed = [
            f"{figures[name]['detection']['images_per_s'] / rate:.1f} ({name})"
            for name in ("train_step", "train_compiled")
            if "detection" in figures.get(name, {})
        ]
        print(f"The loader makes {rate:.0f} images of detection a second on one core.")
        if needed:
            print(f"Cores that a training needs: {', '.join(needed)}.")
    for name in ("decode_float32", "train_step"):
        if name in figures:
            print(f"\n{figures[name]['machine']}, torch {figures[name]['torch']}.")
            break


def decoded(run: dict) -> list[list]:
    """Rows of a file of benchmarks/decode.py: its own mode, then the others."""
    rows = []
    for one in run["batches"]:
        token, limit = one["ours_ms_per_token"], one["limit_ms_per_token"]
        head = [run["model"], run["dtype"]]
        image = f"{one['ours_ms_per_image']:.1f}"
        rows.append(
            [*head, run["mode"], one["batch"], f"{token:.2f}", f"{token / limit:.2f}", image]
        )
        for mode in run["also"]:
            token = one[f"{mode}_ms_per_token"]
            rows.append([*head, mode, one["batch"], f"{token:.2f}", f"{token / limit:.2f}", ""])
    return rows


def trained(run: dict) -> list[list]:
    """Rows of a file of benchmarks/train_step.py."""
    compiled = "yes" if run["compile"] else "no"
    return [
        [
            task,
            run["ours"],
            compiled,
            row["images"],
            f"{row['images_per_s']:.1f}",
            f"{row['mfu']:.2f}",
            f"{row['ratio']:.2f}",
        ]
        for task in run["tasks"]
        if (row := run.get(task))
    ]


def print_table(head: list[str], rows: list[list]) -> None:
    for row in (head, ["---"] * len(head), *rows):
        print(f"| {' | '.join(map(str, row))} |")
    print()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
