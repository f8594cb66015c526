"""Ctrl-C and SIGTERM while an encode runs, and the display that runs with it."""

from __future__ import annotations

import re
import signal
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import nifcore
from nifcore.cli.interrupts import Interrupts
from nifcore.events import Control, ProgressEvent
from tests.cli.conftest import Coded
from tests.cli.program import Terminal, nif, nif_here, start, stop

# Colours, as opposed to bold and to moving the cursor.
COLOUR = re.compile(r"\x1b\[(?:\d+;)*(?:3[0-8]|9[0-7])(?:;\d+)*m")


def names_in(folder: Path) -> list[str]:
    return sorted(each.name for each in folder.iterdir())


def test_ctrl_c_once_codes_the_best_so_far(large: Path, tmp_path: Path) -> None:
    arguments = ["encode", "large.png", "--effort", 9, "--json", "--no-compare"]
    with Terminal(arguments, tmp_path) as terminal:
        terminal.wait_for(r"fitting.*PSNR \d+\.\d+ dB.*bpp.*left")
        terminal.type("\x03")
        terminal.wait_for("finishing: coding the best so far")
        run = terminal.finish()
    assert run.code == 0
    (said,) = run.objects
    assert said["complete"] is False
    assert said["bytes"] == (tmp_path / "large.nif").stat().st_size
    with Image.open(large) as original:
        error = np.asarray(original).astype(float) - np.asarray(
            nifcore.decode(tmp_path / "large.nif")
        )
    assert said["psnr_db"] == pytest.approx(10 * np.log10(255**2 / np.mean(error**2)), abs=0.01)
    assert names_in(tmp_path) == ["large.nif", "large.png"]
    assert "large.png" in run.stderr
    assert COLOUR.search(run.stderr)


@pytest.mark.usefixtures("large")
def test_ctrl_c_twice_leaves_no_file_and_no_colour_where_none_is_wanted(tmp_path: Path) -> None:
    arguments = ["encode", "large.png", "--effort", 9]
    with Terminal(arguments, tmp_path, {"NO_COLOR": "1"}) as terminal:
        terminal.wait_for(r"fitting.*PSNR")
        terminal.type("\x03")
        terminal.wait_for("finishing")
        terminal.type("\x03")
        run = terminal.finish()
    assert run.code == 130
    assert run.stdout == b""
    assert run.stderr.splitlines()[-1].count("nif: error: cancelled") == 1
    assert names_in(tmp_path) == ["large.png"]
    assert not COLOUR.search(run.stderr)


def test_sigterm_stops_and_the_checkpoint_goes_on(coded: Coded, tmp_path: Path) -> None:
    arguments = ["encode", coded.picture, "x.nif", "--bpp", 4, "--effort", 7, "--json"]
    arguments += ["--checkpoint", "state", "--no-compare"]
    with Terminal(arguments, tmp_path) as terminal:
        terminal.wait_for(r"fitting.*PSNR")
        terminal.signal(signal.SIGTERM)
        run = terminal.finish()
    assert run.code == 130
    assert names_in(tmp_path) == ["state"]
    assert run.stderr.count("nif: error: ") == 1
    (said,) = run.objects
    assert said["error"]["type"] == "Cancelled"

    resumed = nif(*arguments, folder=tmp_path)
    assert resumed.code == 0
    (said,) = resumed.objects
    assert said["complete"] is True
    assert any("resumed from a checkpoint" in note for note in said["notes"])
    assert names_in(tmp_path) == ["x.nif"]


@pytest.mark.usefixtures("large")
def test_ctrl_c_before_there_is_anything_to_keep_stops_at_once(tmp_path: Path) -> None:
    process = start(["encode", "large.png"], tmp_path)
    time.sleep(0.8)
    run = stop(process, signal.SIGINT)
    assert run.code == 130
    assert names_in(tmp_path) == ["large.png"]
    assert "Traceback" not in run.stderr


class Raised:
    """Interrupts with signals sent to this very process."""

    def __init__(self) -> None:
        self.said: list[str] = []
        self.interrupts = Interrupts(self.said.append)

    def send(self, number: signal.Signals) -> Control:
        signal.raise_signal(number)
        return self.interrupts.control()


def test_the_order_of_answers() -> None:
    raised = Raised()
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    with raised.interrupts:
        assert raised.interrupts.control() is Control.CONTINUE
        raised.interrupts.watch(ProgressEvent("fit", iteration=1, iterations=9))
        assert raised.send(signal.SIGINT) is Control.FINISH
        assert raised.send(signal.SIGINT) is Control.CANCEL
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
        assert raised.interrupts.control() is Control.CANCEL
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before
    assert [text.split(":")[0] for text in raised.said] == ["finishing", "stopping"]


def test_without_an_iteration_the_first_ctrl_c_cancels() -> None:
    raised = Raised()
    with raised.interrupts:
        raised.interrupts.watch(ProgressEvent("prepare"))
        assert raised.send(signal.SIGINT) is Control.CANCEL


def test_sigterm_cancels_even_while_finishing() -> None:
    raised = Raised()
    with raised.interrupts:
        raised.interrupts.watch(ProgressEvent("fit", iteration=1, iterations=9))
        assert raised.send(signal.SIGINT) is Control.FINISH
        assert raised.send(signal.SIGTERM) is Control.CANCEL


def test_a_resumed_state_of_another_picture_is_not_used(coded: Coded, tmp_path: Path) -> None:
    (tmp_path / "state").write_bytes(b"no state")
    run = nif_here(
        *("encode", coded.picture, tmp_path / "x.nif", "--effort", 1, "--bpp", 4),
        *("--checkpoint", tmp_path / "state", "--no-compare"),
    )
    assert run.code == 0
    assert "the checkpoint cannot be read: starting afresh" in run.stderr
    assert (tmp_path / "x.nif").read_bytes() == coded.file.read_bytes()
