"""What can go wrong with stored bytes, one tree; the docstring of a class is its message.

```
StoreError
|- StoreUnavailable     no answer, 5xx, a cut connection: try again later
|- StoreRefused         wrong key, missing bucket or right: the deployment must be mended
|- ObjectMissing        no such object or version
|- RangeBeyondEnd       the first byte asked for does not exist
|- DeletionNotProved    the listing still shows what was deleted
|- DigestWrong          the bytes are not those that the digest names
`- Refused              a checkpoint or manifest did not pass a gate
```
This storey knows nothing of services; callers translate: StoreUnavailable -> StoreDown, DigestWrong -> DigestMismatch, Refused -> UnsafeCheckpoint.
"""


class StoreError(Exception):
    """The object store could not do this."""

    def __init__(self, **facts: object) -> None:
        self.facts = facts
        super().__init__((type(self).__doc__ or "").format_map(facts))


class StoreUnavailable(StoreError):
    """The object store does not answer: {detail}"""


class StoreRefused(StoreError):
    """The object store refuses the call ({code}). Check bucket, credentials and rights. {detail}"""


class ObjectMissing(StoreError):
    """There is no object {key!r}."""

    def __init__(self, *, key: str) -> None:
        self.key = key
        super().__init__(key=key)


class RangeBeyondEnd(StoreError):
    """Object {key!r} has no byte {start}."""


class DeletionNotProved(StoreError):
    """Object {key!r} was deleted, and the store still lists {left} version(s) of it."""


class DigestWrong(StoreError):
    """The bytes of {name} have digest {actual}, not {expected}."""

    def __init__(self, *, name: str, expected: str, actual: str) -> None:
        self.name, self.expected, self.actual = name, expected, actual
        super().__init__(name=name, expected=expected, actual=actual)


class Refused(StoreError):
    """Refused by gate {gate}: {detail}"""

    def __init__(self, gate: str, detail: str) -> None:
        self.gate, self.detail = gate, detail
        super().__init__(gate=gate, detail=detail)

    def __reduce__(self) -> tuple[type["Refused"], tuple[str, str]]:
        """Keep the two arguments when the error crosses a process border."""
        return type(self), (self.gate, self.detail)
