"""A signer over a test's database, with its key, its role, and copies of heads in memory."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from control.signer import Signer
from services.audit.notes import SigningKeyPair
from services.settings import Settings

SEED, OTHER = "44" * 32, "55" * 32
ORIGIN = "lethe.test/log"


@dataclass
class Kept:
    """Copies of heads in memory."""

    held: dict[int, str] = field(default_factory=dict)
    later: dict[tuple[int, int], str] = field(default_factory=dict)
    journal: dict[tuple[int, int], str] = field(default_factory=dict)

    def keep(self, size: int, note: str, *, epoch: int = 0) -> None:
        if epoch:
            self.later.setdefault((epoch, size), note)
        else:
            self.held.setdefault(size, note)

    def newest(self) -> tuple[int, str] | None:
        if self.later:
            return max(self.later)[0], self.later[max(self.later)]
        return (0, self.held[max(self.held)]) if self.held else None

    def keep_erasure(self, leaf: int, sealed: str, *, epoch: int = 0) -> None:
        self.journal.setdefault((epoch, leaf), sealed)

    def erasures(self, epoch: int, first: int) -> Iterator[str]:
        yield from (sealed for (number, leaf), sealed in sorted(self.journal.items()) if number == epoch and leaf >= first)


def key(seed: str = SEED) -> SigningKeyPair:
    """Return a key of the tests' log."""
    return SigningKeyPair.from_hex(ORIGIN, seed)


def signer_over(ledger: Any, copies: Kept | None = None, *, seed: str = SEED, previous: str = "", **pace: Any) -> Signer:
    """Return a signer; it signs a head for each new leaf unless the pace says otherwise."""
    signer = {"origin": ORIGIN, "head_s": 3600, "receipt_s": 3600, "head_leaves": 1, **pace}
    settings = Settings.model_validate({"embedded": True, "keys": {"signing": seed, "signing_previous": previous}, "signer": signer})
    return Signer(ledger.engine("lethe_signer"), settings, copies or Kept())


def settle(signer: Signer, turns: int = 4) -> None:
    """Let a signer do all that waits."""
    for _ in range(turns):
        signer.turn()
