"""One self-contained page about one or several runs: `liftplus report`, and `write` for Python."""

from liftplus.report.page import Options, Written, write

__all__ = ["Options", "Written", "write"]
