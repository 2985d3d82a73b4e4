import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.jobs import messages


def test_every_frame_survives_the_pipe() -> None:
    for frame in (messages.JobFrame(folder="/x"), messages.StepFrame(name="unlearn"), messages.CancelFrame()):
        assert messages.read_command(messages.encode(frame)) == frame
    for frame in (
        messages.ReadyFrame(catalogue=[], device={}, versions={}),
        messages.ProgressFrame(name="unlearn", stage="noise", step=1, of=2, values={"loss": 0.5}),
        messages.DoneFrame(name="unlearn", seconds=1.0),
        messages.FailedFrame(name="unlearn", code="diverged", retry_class="permanent", detail="it diverged"),
    ):
        assert messages.read_answer(messages.encode(frame)) == frame


@given(st.binary(max_size=200))
def test_bytes_that_are_no_frame_are_refused_and_never_anything_else(line: bytes) -> None:
    with pytest.raises(messages.GarbledFrame):
        messages.read_answer(line)
