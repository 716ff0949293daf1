"""Write one self-contained page about one or several runs: `liftplus report`, and `write` for Python."""

from liftplus.report.page import write

__all__ = ["write"]
