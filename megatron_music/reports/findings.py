"""One finding of a check: what it is about, and what to do."""

from typing import NamedTuple

OK, NOTE, WRONG = "ok", "note", "wrong"


class Finding(NamedTuple):
    """One thing that was checked."""

    status: str  # ok, note or wrong
    what: str
    where: str
    remedy: str = ""

    @property
    def line(self) -> str:
        """For a person."""
        return f"{self.status:6}{self.where}: {self.what}{'; ' + self.remedy if self.remedy else ''}"


def finding_of(error: Exception, where: str) -> Finding:
    """A refusal as a finding: its last clause is the remedy."""
    what, _, remedy = str(error).rpartition("; ")
    return Finding(WRONG, what or remedy, where, remedy if what else "")
