import pickle
import subprocess
import sys
import threading

import pytest

from ns_support.errors import UserError

SENTENCE = "The data folder nowhere does not exist."


def test_ends_a_program_with_the_sentence_only():
    code = f"from ns_support.errors import UserError\nraise UserError({SENTENCE!r}) from KeyError('cause')"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (1, "", SENTENCE + "\n")


@pytest.mark.parametrize("kind", [UserError, SystemExit, ValueError, Exception])
def test_is_caught_as_an_exit_and_as_an_error(kind):
    with pytest.raises(kind) as caught:
        raise UserError(SENTENCE)
    assert str(caught.value) == SENTENCE
    assert caught.value.code == SENTENCE


def test_survives_pickling_from_another_process():
    assert str(pickle.loads(pickle.dumps(UserError(SENTENCE)))) == SENTENCE


def test_is_reported_when_a_thread_dies_of_it(capsys):
    def work():
        raise UserError(SENTENCE)

    # pytest collects what threads die of; Python's own hook is what a program would run.
    hook, threading.excepthook = threading.excepthook, threading.__excepthook__
    try:
        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
    finally:
        threading.excepthook = hook
    assert SENTENCE in capsys.readouterr().err
