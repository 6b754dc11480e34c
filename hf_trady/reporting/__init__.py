from .page import write_report
from .record import RunRecord, read_run
from .summary import summarize


__all__ = ["RunRecord", "read_run", "summarize", "write_report"]
