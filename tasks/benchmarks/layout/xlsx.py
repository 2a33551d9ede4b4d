"""A table as an Excel file: one sheet of texts and numbers. The bytes depend only on the values."""

import io
import zipfile
from collections.abc import Sequence
from xml.sax.saxutils import escape

_HEAD = '<?xml version="1.0" encoding="UTF-8" standalone="yes"?>\n'
_MAIN = "http://schemas.openxmlformats.org/spreadsheetml/2006/main"
_OFFICE = "http://schemas.openxmlformats.org/officeDocument/2006/relationships"
_PACKAGE = "http://schemas.openxmlformats.org/package/2006"
_TYPE = "application/vnd.openxmlformats-officedocument.spreadsheetml"
_PARTS = {
    "[Content_Types].xml": f'<Types xmlns="{_PACKAGE}/content-types">'
    '<Default Extension="rels" ContentType="application/vnd.openxmlformats-package.relationships+xml"/>'
    '<Default Extension="xml" ContentType="application/xml"/>'
    f'<Override PartName="/xl/workbook.xml" ContentType="{_TYPE}.sheet.main+xml"/>'
    f'<Override PartName="/xl/worksheets/sheet1.xml" ContentType="{_TYPE}.worksheet+xml"/></Types>',
    "_rels/.rels": f'<Relationships xmlns="{_PACKAGE}/relationships">'
    f'<Relationship Id="rId1" Type="{_OFFICE}/officeDocument" Target="xl/workbook.xml"/></Relationships>',
    "xl/workbook.xml": f'<workbook xmlns="{_MAIN}" xmlns:r="{_OFFICE}">'
    '<sheets><sheet name="Sheet1" sheetId="1" r:id="rId1"/></sheets></workbook>',
    "xl/_rels/workbook.xml.rels": f'<Relationships xmlns="{_PACKAGE}/relationships">'
    f'<Relationship Id="rId1" Type="{_OFFICE}/worksheet" Target="worksheets/sheet1.xml"/></Relationships>',
}
_EARLIEST = (1980, 1, 1, 0, 0, 0)  # the first time that a zip file can hold
Value = str | int | float | None


def xlsx_file(columns: Sequence[str], rows: Sequence[Sequence[Value]]) -> bytes:
    """The bytes of an Excel file with a header and rows; None is an empty cell.

    Example:
        >>> xlsx_file(["index", "prediction"], [[1, "A"]])[:2]
        b'PK'
    """
    lines = [_row(number, values) for number, values in enumerate([columns, *rows], 1)]
    sheet = f'<worksheet xmlns="{_MAIN}"><sheetData>{"".join(lines)}</sheetData></worksheet>'
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as file:
        for name, text in {**_PARTS, "xl/worksheets/sheet1.xml": sheet}.items():
            info = zipfile.ZipInfo(name, date_time=_EARLIEST)
            info.compress_type = zipfile.ZIP_DEFLATED
            file.writestr(info, _HEAD + text)
    return buffer.getvalue()


def _row(number: int, values: Sequence[Value]) -> str:
    cells = "".join(_cell(f"{_letters(column)}{number}", value) for column, value in enumerate(values))
    return f'<row r="{number}">{cells}</row>'


def _cell(name: str, value: Value) -> str:
    if value is None:
        return ""
    if isinstance(value, str):
        plain = "".join(one for one in value if one in "\t\n\r" or ord(one) >= 32)  # XML holds no other control marks
        return f'<c r="{name}" t="inlineStr"><is><t xml:space="preserve">{escape(plain)}</t></is></c>'
    return f'<c r="{name}"><v>{value}</v></c>'


def _letters(column: int) -> str:
    """The letters of a column from 0: A, B, ..., Z, AA."""
    found = ""
    column += 1
    while column:
        column, rest = divmod(column - 1, 26)
        found = chr(65 + rest) + found
    return found
