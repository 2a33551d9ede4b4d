"""The user's own data: a JSONL or Parquet file with a folder of pictures becomes a ``Dataset``.

Knows file formats and checks every row. Knows nothing of models or of what examples are used for.
"""

from tasks.readers.examples import BadPicture, check_pictures, load_dataset, read_table

__all__ = ["BadPicture", "check_pictures", "load_dataset", "read_table"]
