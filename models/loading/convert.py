"""``python -m models.loading.convert FOLDER OUT``: write an original LLaVA checkpoint as a Hugging Face folder."""

import argparse
import shutil
from pathlib import Path

from models.loading.checkpoints import stored_tensors
from models.loading.load import load
from models.loading.locate import locate
from models.loading.original import is_original, language_files
from tasks.errors import UserError, print_any_text


def convert(source: str | Path, out: Path, *, base: str | Path | None = None) -> Path:
    """Write an original checkpoint as a llava-hf folder, in the dtype of its language model.

    Args:
        source: A folder or Hugging Face id.
        out: The new folder; it exists only after everything is written.
        base: See ``read_original``.

    Raises:
        UserError: If ``out`` exists, or ``source`` is not an original checkpoint or invalid.
    """
    if out.exists():
        raise UserError(f"out must not exist, got {str(out)!r}. Choose another name.")
    located = locate(str(source))
    if not is_original(located.folder):
        raise UserError(f"source must be an original LLaVA checkpoint, got {str(source)!r}. It loads as it is.")
    _, first = next(stored_tensors(language_files(located.folder, base)[1]))
    llava = load(source, base=base, dtype=first.dtype)
    fresh = out.with_name(f".{out.name}.partial")
    shutil.rmtree(fresh, ignore_errors=True)
    llava.model.save_pretrained(fresh)
    llava.processor.save_pretrained(fresh)
    fresh.replace(out)
    return out


def main() -> None:
    """Convert one checkpoint."""
    print_any_text()
    parser = argparse.ArgumentParser(
        description="Write an original LLaVA checkpoint (such as liuhaotian/llava-v1.5-7b) as a llava-hf folder, which "
        "transformers, TransformerLens, nnsight and all commands of laccolith open.",
    )
    parser.add_argument("source", help="a folder or Hugging Face id in the authors' layout")
    parser.add_argument("out", type=Path, help="the new folder")
    parser.add_argument("--base", default=None, help="language model of a stage-1 folder, e.g. lmsys/vicuna-7b-v1.5")
    options = parser.parse_args()
    try:
        print(convert(options.source, options.out, base=options.base))
    except (ValueError, OSError) as error:
        parser.exit(2, f"error: {error}\n")


if __name__ == "__main__":
    main()
