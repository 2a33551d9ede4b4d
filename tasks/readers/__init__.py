"""The user's own data: a JSONL or Parquet file with a folder of pictures becomes a ``Dataset``.

It reads the file formats and checks every row. It does not depend on models or on the use of the examples.
"""

from tasks.readers.load_dataset import BadPicture, check_pictures, load_dataset, read_table

__all__ = ["BadPicture", "check_pictures", "load_dataset", "read_table"]
