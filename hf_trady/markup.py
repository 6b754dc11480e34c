"""Tables in HTML: what an object shows of itself in a notebook, and the summary of a report."""

from collections.abc import Iterable, Sequence
from html import escape


def html_table(rows: Iterable[Sequence], header: Sequence = (), caption: str = "") -> str:
    """An HTML table of `rows`, escaped: the first column to the left, all others to the right.

    Args:
        rows: Cells of each row; shown as `str` shows them.
        header: Names of the columns; none if empty.
        caption: Shown above the table.

    Example:
        >>> html_table([("<conv>", 8)])
        '<table><tbody><tr><th scope="row" style="text-align:left">&lt;conv&gt;</th><td>8</td></tr></tbody></table>'
    """
    parts = [f'<caption style="text-align:left">{escape(caption)}</caption>'] if caption else []
    if header:
        parts.append(f"<thead><tr>{_left('col', header[0])}{_cells('th', header[1:])}</tr></thead>")
    body = "".join(f"<tr>{_left('row', first)}{_cells('td', rest)}</tr>" for first, *rest in rows)
    return f"<table>{''.join(parts)}<tbody>{body}</tbody></table>"


def _left(scope: str, value) -> str:
    return f'<th scope="{scope}" style="text-align:left">{escape(str(value))}</th>'


def _cells(tag: str, values: Iterable) -> str:
    return "".join(f"<{tag}>{escape(str(value))}</{tag}>" for value in values)
